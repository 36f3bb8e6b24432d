//! How a picture looks as a whole: light, contrast, focus; and how far many pictures spread in that.

use serde::Serialize;

use super::select::quantile;

/// Light, contrast and focus of one picture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Appearance {
    /// Mean brightness, 0 to 1.
    pub light: f32,
    /// Standard deviation of the brightness, 0 to 0.5.
    pub contrast: f32,
    /// Mean square of the Laplacian over the variance of the brightness: how much of the contrast is in fine detail. Only
    /// pictures of one size compare.
    pub sharpness: f32,
}

/// Contrast below which a picture shows nothing: one step of 8 bits.
pub const FLAT: f32 = 1.0 / 255.0;

impl Appearance {
    /// Of brightness values in 0 to 1, row by row.
    pub fn of(grey: &[f32], width: usize) -> Self {
        let count = grey.len().max(1) as f64;
        let mean = grey.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
        let variance = grey.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
        let (mut sum, mut cells) = (0.0f64, 0.0f64);
        let rows: Vec<&[f32]> = grey.chunks_exact(width.max(1)).collect();
        for three in rows.windows(3) {
            for x in 1..width.saturating_sub(1) {
                let around = three[0][x] + three[2][x] + three[1][x - 1] + three[1][x + 1];
                sum += f64::from(around - 4.0 * three[1][x]).powi(2);
                cells += 1.0;
            }
        }
        let sharpness = sum / cells.max(1.0) / variance.max(f64::from(FLAT).powi(2));
        Self { light: mean as f32, contrast: variance.sqrt() as f32, sharpness: sharpness as f32 }
    }

    /// Of interleaved bytes RGB.
    pub fn of_rgb(rgb: &[u8], width: usize) -> Self {
        Self::of(&grey(rgb), width)
    }
}

/// Brightness in 0 to 1 of interleaved bytes RGB.
pub fn grey(rgb: &[u8]) -> Vec<f32> {
    rgb.chunks_exact(3).map(|p| (u16::from(p[0]) + u16::from(p[1]) + u16::from(p[2])) as f32 / 765.0).collect()
}

/// What most of many values lie between: one odd picture moves neither end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// 5 % are below.
    pub low: f64,
    /// Half are below.
    pub median: f64,
    /// 5 % are above.
    pub high: f64,
}

impl Spread {
    /// Of values; none of none.
    pub fn of(values: impl Iterator<Item = f32> + Clone) -> Option<Self> {
        let at = |level| quantile(values.clone(), level);
        Some(Self { low: at(0.05)?, median: at(0.5)?, high: at(0.95)? })
    }

    /// The high end over the low end.
    pub fn ratio(&self) -> f64 {
        self.high / self.low.max(1e-6)
    }

    /// Half of the distance between the ends.
    pub fn half_width(&self) -> f64 {
        0.5 * (self.high - self.low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(low: u8, high: u8) -> Vec<u8> {
        (0..32 * 32).flat_map(|i| [if (i / 2 + i / 64) % 2 == 0 { low } else { high }; 3]).collect()
    }

    #[test]
    fn light_and_contrast_are_what_they_say_and_sharpness_ignores_both() {
        let (strong, weak) = (Appearance::of_rgb(&checks(50, 150), 32), Appearance::of_rgb(&checks(120, 140), 32));
        assert!((strong.light - 100.0 / 255.0).abs() < 1e-4 && (strong.contrast - 50.0 / 255.0).abs() < 1e-4);
        assert!((strong.sharpness / weak.sharpness - 1.0).abs() < 1e-3);
        let flat = Appearance::of_rgb(&[7; 32 * 32 * 3], 32);
        assert_eq!((flat.contrast, flat.sharpness), (0.0, 0.0));
    }

    #[test]
    fn one_odd_value_does_not_move_a_spread() {
        let spread = Spread::of((0..100).map(|k| if k == 50 { 1e6 } else { 1.0 + k as f32 * 0.01 })).expect("values");
        assert!(spread.ratio() < 2.0 && (spread.median - 1.5).abs() < 0.02, "{spread:?}");
        assert_eq!(Spread::of([].into_iter()), None);
    }
}
