//! The model grid: how many pixels the networks see, and of which shape.

use serde::{Deserialize, Serialize};

/// Sides of a grid: multiples of this, because of the strides of the networks.
const STEP: usize = 32;
/// Shortest and longest side.
const SIDES: std::ops::RangeInclusive<usize> = 64..=2048;
/// A grid may have this share of the pixels asked for: a frame must not cost more than was meant, nor see much less.
const AREA: std::ops::RangeInclusive<f64> = 0.85..=1.02;

/// Pixels that a grid has even if pictures have fewer: the backbone knows things of the size that they have there.
const LEAST: f64 = 65_536.0;

/// The model grid as a configuration says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "grid: must be a number of pixels, as 65536, or columns and rows, as [256, 256]")]
pub enum Grid {
    /// About so many pixels, fewer where the pictures have fewer; columns and rows follow the pictures.
    Pixels(usize),
    /// Columns and rows.
    Fixed([usize; 2]),
}

impl Grid {
    /// What is wrong, if anything.
    pub fn problem(self) -> Option<String> {
        let (smallest, largest) = (SIDES.start().pow(2), SIDES.end().pow(2));
        match self {
            Self::Pixels(pixels) => (!(smallest..=largest).contains(&pixels))
                .then(|| format!("grid = {pixels}: must be {smallest} to {largest} pixels")),
            Self::Fixed(sides) => sides
                .into_iter()
                .find(|side| !(side.is_multiple_of(STEP) && SIDES.contains(side)))
                .map(|side| format!("grid = {sides:?}: {side} is not a multiple of {STEP} from 64 to 2048")),
        }
    }

    /// Columns and rows for pictures of this aspect (columns over rows) and with so many pixels: of all grids with about as
    /// many as asked for the one whose aspect is nearest, and of two such the larger.
    pub fn size(self, aspect: f64, native: f64) -> (usize, usize) {
        let pixels = match self {
            Self::Fixed([width, height]) => return (width, height),
            Self::Pixels(pixels) => (pixels as f64).min(native.max(LEAST)),
        };
        let sides = || SIDES.step_by(STEP);
        let share = |(width, height): (usize, usize)| (width * height) as f64 / pixels;
        let apart = |(width, height): (usize, usize)| (width as f64 / height as f64 / aspect).ln().abs();
        sides()
            .flat_map(|width| sides().map(move |height| (width, height)))
            .filter(|grid| share(*grid) <= *AREA.end())
            .min_by(|a, b| {
                let small = |grid| share(grid) < *AREA.start();
                small(*a).cmp(&small(*b)).then(apart(*a).total_cmp(&apart(*b))).then(share(*b).total_cmp(&share(*a)))
            })
            .unwrap_or((*SIDES.start(), *SIDES.start()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_follows_the_pictures_and_costs_no_more() {
        let auto = Grid::Pixels(65_536);
        let many = f64::INFINITY;
        assert_eq!(auto.size(1.0, many), (256, 256));
        assert_eq!(auto.size(640.0 / 261.0, many), (384, 160));
        assert_eq!(auto.size(384.0 / 512.0, many), (224, 288));
        assert_eq!(auto.size(512.0 / 384.0, many), (288, 224));
        for aspect in [0.01, 0.3, 0.5, 0.9, 1.1, 1.5, 16.0 / 9.0, 2.0, 4.0, 40.0] {
            let (width, height) = auto.size(aspect, many);
            assert!((width * height) as f64 <= 65_536.0 * 1.02 && width * height >= 55_000, "{width}x{height}");
            let off = (width as f64 / height as f64 / aspect).ln().abs();
            assert!(off < 0.15 || !(0.1..=10.0).contains(&aspect), "{aspect}: {width}x{height}");
        }
        assert_eq!(Grid::Pixels(5_000).size(1.0, many), (64, 64));
        assert_eq!(Grid::Fixed([64, 96]).size(3.0, many), (64, 96));
        // Pictures with fewer pixels are not enlarged, unless they are very small.
        assert_eq!(Grid::Pixels(147_456).size(1.0, many), (384, 384));
        assert_eq!(Grid::Pixels(147_456).size(1.0, 300.0 * 300.0), (288, 288));
        assert_eq!(Grid::Pixels(147_456).size(1.0, 100.0 * 100.0), (256, 256));
        assert_eq!(Grid::Pixels(5_000).size(1.0, 100.0 * 100.0), (64, 64));
    }

    #[test]
    fn both_forms_are_read_and_mistakes_are_named() {
        let read = |text: &str| toml::from_str::<toml::Table>(text).expect("toml")["grid"].clone().try_into::<Grid>();
        assert_eq!(read("grid = 65536"), Ok(Grid::Pixels(65_536)));
        assert_eq!(read("grid = [256, 192]"), Ok(Grid::Fixed([256, 192])));
        assert!(read("grid = 'auto'").expect_err("refused").to_string().contains("[256, 256]"));
        assert!(Grid::Pixels(100).problem().is_some_and(|problem| problem.contains("grid = 100")));
        assert!(Grid::Fixed([256, 250]).problem().is_some_and(|problem| problem.contains("250")));
        assert_eq!(Grid::Fixed([256, 64]).problem(), None);
    }
}
