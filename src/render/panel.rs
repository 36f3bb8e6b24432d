//! Annotated pictures: frame, reconstruction and map side by side, with a bar that says the verdict.
//!
//! ```text
//! +--------------------------------------------+
//! | FAIL  caption                              |  verdict bar: green, red or amber
//! +------------+----------------+--------------+
//! | frame,     | reconstruction | map over the |
//! | boxes      |                | frame, boxes |
//! +------------+----------------+--------------+
//! | FRAME      | RECONSTRUCTION | scale: 0 to full, a tick at the region threshold (half of it)
//! +--------------------------------------------+
//! ```

use super::font;
use super::heat::{colour, overlay};
use crate::inspection::anomaly::Region;
use crate::inspection::detect::Detection;
use crate::inspection::verdict::{Decision, Verdict};

/// Height of the verdict bar, pixels.
const BAR: usize = 18;
/// Height of the strip below the pictures, pixels.
const FOOT: usize = 13;
/// Space between the pictures, pixels.
const GAP: usize = 4;
/// Between and below the pictures.
const DARK: [u8; 3] = [30, 30, 30];
const WHITE: [u8; 3] = [255, 255, 255];
/// Outlines of ROIs.
const LINE: [u8; 3] = [110, 200, 230];

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

impl Panel {
    fn filled(width: usize, height: usize, colour: [u8; 3]) -> Panel {
        Panel { width, height, rgb: colour.repeat(width * height) }
    }

    fn dot(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        self.rgb[(y * self.width + x) * 3..][..3].copy_from_slice(&colour);
    }

    /// Puts a picture of `width` columns at a place; it must fit.
    fn place(&mut self, picture: &[u8], width: usize, left: usize, top: usize) {
        for (y, line) in picture.chunks_exact(width * 3).enumerate() {
            self.rgb[((top + y) * self.width + left) * 3..][..line.len()].copy_from_slice(line);
        }
    }

    fn write(&mut self, left: usize, top: usize, text: &str) {
        font::write(&mut self.rgb, self.width, self.height, left, top, &text.to_uppercase());
    }
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
/// boxed; with ROIs their outlines, and dark what does not count. `full` is the map value with the hottest colour, `caption`
/// follows the verdict in the bar.
///
/// # Panics
/// If `seen`, reconstruction and map differ in size.
pub fn inspection_panel(seen: &[u8], detection: &Detection, decision: &Decision, full: f32, caption: &str) -> Panel {
    let (width, height) = (detection.map.width, detection.map.height);
    let mut frame = seen.to_vec();
    let mut heat = overlay(seen, &detection.map, full);
    if let Some(mask) = detection.rois.as_ref().map(|counted| &counted.mask).filter(|mask| mask.fits(&detection.map)) {
        shade(&mut frame, width, mask.owners());
        shade(&mut heat, width, mask.owners());
    }
    for region in &decision.regions {
        outline(&mut frame, width, height, region);
        outline(&mut heat, width, height, region);
    }
    let pictures = [&frame, &detection.reconstruction.rgb, &heat];
    assert!(pictures.iter().all(|p| p.len() == width * height * 3), "pictures and map must have the same size");
    let mut panel = Panel::filled(3 * width + 2 * GAP, BAR + height + FOOT, DARK);
    let bar = verdict_colour(decision.verdict).repeat(panel.width * BAR);
    panel.rgb[..bar.len()].copy_from_slice(&bar);
    panel.write(6, 5, &format!("{} {caption}", decision.verdict.word()));
    for (index, picture) in pictures.into_iter().enumerate() {
        panel.place(picture, width, index * (width + GAP), BAR);
    }
    // On a small grid there is no room for the words; the colours of the scale always fit.
    if width >= 96 {
        panel.write(2, BAR + height + 3, "frame");
        panel.write(width + GAP + 2, BAR + height + 3, "reconstruction");
    }
    let (left, top) = (2 * (width + GAP), BAR + height);
    for x in 0..width {
        let tick = x == width / 2;
        for y in 3..FOOT - 2 {
            panel.dot(left + x, top + y, if tick { WHITE } else { colour((x as f32 + 0.5) / width as f32) });
        }
    }
    panel
}

/// Darkens what belongs to nobody, and draws a line where the owner of the cells changes.
fn shade(rgb: &mut [u8], width: usize, owners: &[u8]) {
    for (cell, (pixel, owner)) in rgb.chunks_exact_mut(3).zip(owners).enumerate() {
        let right = if (cell + 1) % width == 0 { owner } else { &owners[cell + 1] };
        let below = owners.get(cell + width).unwrap_or(owner);
        if (right, below) != (owner, owner) {
            pixel.copy_from_slice(&LINE);
        } else if *owner == 0 {
            pixel.iter_mut().for_each(|value| *value = *value / 5 * 2);
        }
    }
}

/// A white box, two pixels outside the region where the picture has room.
fn outline(rgb: &mut [u8], width: usize, height: usize, region: &Region) {
    let (left, top) = ((region.x as usize).saturating_sub(2), (region.y as usize).saturating_sub(2));
    let right = ((region.x + region.width) as usize + 1).min(width - 1);
    let bottom = ((region.y + region.height) as usize + 1).min(height - 1);
    let mut dot = |x: usize, y: usize| rgb[(y * width + x) * 3..][..3].copy_from_slice(&WHITE);
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
    use crate::inspection::anomaly::{AnomalyMap, AnomalyScore};
    use crate::inspection::detect::{Counted, Reconstruction, Steps};
    use crate::inspection::mask::Placement;
    use crate::inspection::polygon::{PolygonRoi, RoiMode, Rois};
    use crate::inspection::roi::Roi;
    use crate::inspection::verdict::FaultReason;

    const SIDE: usize = 32;

    fn panel(values: Vec<f32>, verdict: Verdict, regions: Vec<Region>) -> Panel {
        panel_of(values, verdict, regions, None)
    }

    fn panel_of(values: Vec<f32>, verdict: Verdict, regions: Vec<Region>, rois: Option<Counted>) -> Panel {
        let detection = Detection {
            map: AnomalyMap { width: SIDE, height: SIDE, values },
            score: AnomalyScore(0.0),
            reconstruction: Reconstruction { width: SIDE, height: SIDE, rgb: vec![50; 3 * SIDE * SIDE] },
            steps: Steps(1),
            tiles: None,
            rois,
            novelty: 0.0,
            infer_ms: 0.0,
        };
        let decision = Decision { verdict, rule: None, threshold: Some(1.0), regions };
        inspection_panel(&[100; 3 * SIDE * SIDE], &detection, &decision, 1.0, "x")
    }

    fn at(panel: &Panel, x: usize, y: usize) -> [u8; 3] {
        std::array::from_fn(|c| panel.rgb[(y * panel.width + x) * 3 + c])
    }

    #[test]
    fn frame_reconstruction_and_map_stand_side_by_side_with_boxes_on_frame_and_map() {
        let region = Region { x: 10, y: 10, width: 4, height: 4, area: 16, peak: 2.0, roi: None };
        let panel = panel(vec![0.0; SIDE * SIDE], Verdict::Fail, vec![region]);
        assert_eq!((panel.width, panel.height), (104, 32 + BAR + FOOT));
        assert_eq!(panel.rgb.len(), panel.width * panel.height * 3);
        for picture in [0, 2 * (SIDE + GAP)] {
            assert_eq!(at(&panel, picture + 8, BAR + 8), WHITE);
            assert_eq!(at(&panel, picture + 11, BAR + 11), [100; 3]);
        }
        assert_eq!(at(&panel, SIDE + GAP + 8, BAR + 8), [50; 3]);
        assert_eq!(at(&panel, SIDE, BAR + 8), DARK);
    }

    #[test]
    fn what_does_not_count_is_dark_behind_a_thin_line() {
        let roi = PolygonRoi {
            name: "hole".into(),
            polygon: vec![[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]],
            mode: RoiMode::Exclude,
            threshold: None,
            min_area: None,
        };
        let rois = Rois::new(vec![roi], &Roi::FULL).expect("valid");
        let mask = rois.mask(&Placement::of_crop(&Roi::FULL, (SIDE, SIDE))).expect("valid").expect("has ROIs");
        let counted = Counted { mask, plain_score: AnomalyScore(0.0) };
        let values: Vec<f32> = (0..SIDE * SIDE).map(|cell| if cell / SIDE == 16 { 0.9 } else { 0.0 }).collect();
        let plain = panel(values.clone(), Verdict::Pass, Vec::new());
        let masked = panel_of(values, Verdict::Pass, Vec::new(), Some(counted));
        for picture in [0, 2 * (SIDE + GAP)] {
            // Cells 8 to 23 are excluded; outside of them nothing changes, whatever the map says there.
            for y in [2, 16, 30] {
                assert_eq!(at(&masked, picture + 2, BAR + y), at(&plain, picture + 2, BAR + y));
            }
            let (inside, before) = (at(&masked, picture + 12, BAR + 16), at(&plain, picture + 12, BAR + 16));
            assert!(inside.iter().zip(before).all(|(dark, bright)| u16::from(*dark) * 2 <= u16::from(bright)));
            assert_eq!((at(&masked, picture + 7, BAR + 12), at(&masked, picture + 23, BAR + 12)), (LINE, LINE));
        }
        assert_eq!(at(&masked, SIDE + GAP + 12, BAR + 12), [50; 3], "the reconstruction stays as it is");
    }

    #[test]
    fn the_bar_has_the_colour_of_the_verdict_and_says_it_in_white() {
        for verdict in [Verdict::Pass, Verdict::Fail, Verdict::Fault(FaultReason::Overrun)] {
            let panel = panel(vec![0.0; SIDE * SIDE], verdict, Vec::new());
            assert_eq!(at(&panel, 0, 0), verdict_colour(verdict));
            let white = (0..BAR).any(|y| (0..panel.width).any(|x| at(&panel, x, y) == WHITE));
            assert!(white, "no text for {verdict:?}");
        }
    }

    #[test]
    fn a_good_part_shows_no_red_in_its_pictures_and_a_bad_one_does() {
        let red = |panel: &Panel| {
            (BAR..BAR + SIDE).any(|y| {
                (0..panel.width).any(|x| {
                    let [r, g, b] = at(panel, x, y);
                    i32::from(r) > 40 + i32::from(g.max(b))
                })
            })
        };
        let good: Vec<f32> = (0..SIDE * SIDE).map(|i| 0.3 * i as f32 / (SIDE * SIDE) as f32).collect();
        let mut bad = good.clone();
        bad[500] = 0.95;
        assert!(!red(&panel(good, Verdict::Pass, Vec::new())));
        assert!(red(&panel(bad, Verdict::Fail, Vec::new())));
    }
}
