//! Annotated pictures: frame, reconstruction and map side by side, with a bar that says the verdict.

use super::font;
use super::heat::overlay;
use crate::inspection::detect::Detection;
use crate::inspection::verdict::{Decision, Verdict};

/// Height of the verdict bar, pixels.
const BAR: usize = 18;
/// Space between the pictures, pixels.
const GAP: usize = 4;

/// A drawn panel: `height * width * 3` bytes RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panel {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Pixels.
    pub rgb: Vec<u8>,
}

/// Colour of a verdict: green, red, amber.
pub fn verdict_colour(verdict: Verdict) -> [u8; 3] {
    match verdict {
        Verdict::Pass => [24, 140, 60],
        Verdict::Fail => [196, 32, 32],
        Verdict::Fault(_) => [214, 140, 16],
    }
}

/// Draws `seen` (the model's input as bytes, same grid as the map), its reconstruction and its map, with the regions
/// boxed. `full` is the map value with the hottest colour, `caption` follows the verdict in the bar.
pub fn inspection_panel(seen: &[u8], detection: &Detection, decision: &Decision, full: f32, caption: &str) -> Panel {
    let (width, height) = (detection.map.width, detection.map.height);
    let mut heat = overlay(seen, &detection.map, full);
    for region in &decision.regions {
        outline(&mut heat, width, height, region.x, region.y, region.width, region.height);
    }
    let pictures = [seen, &detection.reconstruction.rgb, &heat];
    let total = 3 * width + 2 * GAP;
    let mut rgb = Vec::with_capacity(total * (height + BAR) * 3);
    rgb.extend(verdict_colour(decision.verdict).repeat(total * BAR));
    for y in 0..height {
        for (index, picture) in pictures.iter().enumerate() {
            if index > 0 {
                rgb.extend([30u8; 3].repeat(GAP));
            }
            rgb.extend(&picture[y * width * 3..(y + 1) * width * 3]);
        }
    }
    let text = format!("{} {caption}", decision.verdict.word());
    font::write(&mut rgb, total, BAR, 6, 5, &text.to_uppercase());
    Panel { width: total, height: height + BAR, rgb }
}

fn outline(rgb: &mut [u8], width: usize, height: usize, x: u32, y: u32, across: u32, down: u32) {
    let (left, top) = ((x as usize).saturating_sub(2), (y as usize).saturating_sub(2));
    let right = ((x + across) as usize + 1).min(width - 1);
    let bottom = ((y + down) as usize + 1).min(height - 1);
    let mut dot = |x: usize, y: usize| rgb[(y * width + x) * 3..][..3].copy_from_slice(&[255, 255, 255]);
    for column in left..=right {
        dot(column, top);
        dot(column, bottom);
    }
    for row in top..=bottom {
        dot(left, row);
        dot(right, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::anomaly::{AnomalyMap, AnomalyScore, Region};
    use crate::inspection::detect::{Reconstruction, Steps};

    #[test]
    fn the_bar_has_the_colour_of_the_verdict_and_regions_are_boxed() {
        let detection = Detection {
            map: AnomalyMap { width: 32, height: 32, values: vec![0.0; 1024] },
            score: AnomalyScore(0.0),
            reconstruction: Reconstruction { width: 32, height: 32, rgb: vec![50; 3072] },
            steps: Steps(1),
            infer_ms: 0.0,
        };
        let region = Region { x: 10, y: 10, width: 4, height: 4, area: 16, peak: 2.0 };
        let decision = Decision { verdict: Verdict::Fail, rule: None, threshold: Some(1.0), regions: vec![region] };
        let panel = inspection_panel(&[100; 3072], &detection, &decision, 1.0, "x");
        assert_eq!((panel.width, panel.height), (104, 50));
        assert_eq!(panel.rgb.len(), 104 * 50 * 3);
        assert_eq!(panel.rgb[..3], verdict_colour(Verdict::Fail));
        let at = |x: usize, y: usize| &panel.rgb[(y * 104 + x) * 3..][..3];
        assert_eq!(at(72 + 8, BAR + 8), [255, 255, 255]);
        assert_eq!(at(72 + 11, BAR + 11), [100, 100, 100]);
    }
}
