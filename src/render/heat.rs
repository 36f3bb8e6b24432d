//! Heat maps.

use crate::inspection::anomaly::AnomalyMap;

/// The colour of a value from 0 to 1: dark blue, cyan, green, yellow, red (a polynomial fit of the Turbo map by
/// A. Mikhailov, 2019, public domain approximation).
pub fn colour(value: f32) -> [u8; 3] {
    let x = if value.is_finite() { value.clamp(0.0, 1.0) } else { 1.0 };
    let polynomial = |k: [f32; 6]| {
        let v = k[0] + x * (k[1] + x * (k[2] + x * (k[3] + x * (k[4] + x * k[5]))));
        (v.clamp(0.0, 1.0) * 255.0).round() as u8
    };
    [
        polynomial([0.135_721_4, 4.615_393, -42.660_32, 132.131_1, -152.942_4, 59.286_38]),
        polynomial([0.091_402_6, 2.194_188, 4.842_967, -14.185_03, 4.277_299, 2.829_566]),
        polynomial([0.106_673_3, 12.641_946, -60.582_05, 110.362_77, -89.903_11, 27.348_25]),
    ]
}

/// The part of the scale below which nothing is drawn over the picture: good parts stay as they are.
const QUIET: f32 = 0.25;

/// A picture (`height * width * 3` bytes) with its map over it. `full` is the map value that gets the hottest colour;
/// it comes from the calibration, so that the same value has the same colour on every picture.
///
/// # Panics
/// If picture and map differ in size.
pub fn overlay(rgb: &[u8], map: &AnomalyMap, full: f32) -> Vec<u8> {
    assert_eq!(rgb.len(), map.values.len() * 3, "picture and map must have the same size");
    let mut out = Vec::with_capacity(rgb.len());
    for (pixel, value) in rgb.chunks_exact(3).zip(&map.values) {
        let level = value / full.max(f32::MIN_POSITIVE);
        let cover = ((level - QUIET) / (0.5 - QUIET)).clamp(0.0, 1.0) * 0.65;
        let hot = colour(level);
        out.extend((0..3).map(|c| (f32::from(pixel[c]) * (1.0 - cover) + f32::from(hot[c]) * cover).round() as u8));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_part_stays_as_it_is() {
        let rgb = vec![90u8; 4 * 4 * 3];
        let values: Vec<f32> = (0..16).map(|i| i as f32 * 0.015).collect();
        let map = AnomalyMap { width: 4, height: 4, values };
        assert_eq!(overlay(&rgb, &map, 1.0), rgb);
    }

    #[test]
    fn a_value_has_one_colour_whatever_else_is_on_the_picture() {
        let rgb = vec![90u8; 2 * 3];
        let alone = AnomalyMap { width: 2, height: 1, values: vec![0.7, 0.0] };
        let beside = AnomalyMap { width: 2, height: 1, values: vec![0.7, 30.0] };
        assert_eq!(overlay(&rgb, &alone, 1.0)[..3], overlay(&rgb, &beside, 1.0)[..3]);
    }

    #[test]
    fn the_scale_runs_from_blue_to_red() {
        let ([r0, _, b0], [r1, _, b1]) = (colour(0.1), colour(0.95));
        assert!(b0 > r0 && r1 > b1);
        assert_eq!(colour(f32::NAN), colour(1.0));
    }
}
