//! Small changes that a good part may show: of light, of focus, of pose. How much of each is chosen from the good pictures
//! themselves.
//!
//! | file | what |
//! |---|---|
//! | `choose` | the ranges from the spread between pictures |
//! | `pose` | how far parts lie apart from picture to picture |
//! | `symmetry` | whether a flipped or turned picture is still a usual one |
//! | `resample` | pixels after a change |

pub mod choose;
mod pose;
mod resample;
mod symmetry;

use std::fmt;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

pub use self::symmetry::{Symmetry, Turn};

/// How good pictures of one set are varied.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Light: values are multiplied by up to this more or less than 1.
    pub gain: f64,
    /// Light: up to this is added or taken away, of 255.
    pub offset: f64,
    /// Focus: largest standard deviation of the blur, pixels.
    pub blur: f64,
    /// Pose: pixels to each side.
    pub shift: f64,
    /// Pose: degrees to each side.
    pub rotation: f64,
    /// Pose: up to this larger or smaller, of 1.
    pub scale: f64,
    /// Flips and turns.
    pub symmetry: Symmetry,
}

/// Share of the pictures that are moved by whole pixels and keep their sharpness: what is judged later was not resampled
/// either.
const EXACT: f64 = 0.5;
/// Share of the pictures that are blurred.
const BLURRED: f64 = 0.5;

impl Augmentation {
    /// What a station shows however carefully it is built.
    pub const LEAST: Self =
        Self { gain: 0.04, offset: 2.0, blur: 0.3, shift: 1.5, rotation: 1.0, scale: 0.01, symmetry: Symmetry::NONE };
    /// Beyond this it is better to take pictures of it: what varies more than the part does hides defects.
    pub const MOST: Self =
        Self { gain: 0.25, offset: 12.0, blur: 1.2, shift: 12.0, rotation: 10.0, scale: 0.1, symmetry: Symmetry::ALL };

    /// A varied copy of `height * width * 3` bytes RGB. The same generator gives the same copy.
    pub fn apply(&self, rgb: &[u8], width: usize, height: usize, rng: &mut impl Rng) -> Vec<u8> {
        let mut draw = |range: f64| range * rng.random_range(-1.0..1.0f64);
        let (gain, offset) = (1.0 + draw(self.gain), draw(self.offset));
        let (dx, dy) = (draw(self.shift), draw(self.shift));
        let (angle, scale) = (draw(self.rotation).to_radians(), 1.0 + draw(self.scale));
        let blur = draw(self.blur).abs();
        // Turned by a right angle, another grid would come out.
        let quarter_turn = self.symmetry.quarter_turn && width == height;
        let turn = Symmetry { quarter_turn, ..self.symmetry }.draw(rng);
        let (exact, blurred) = (rng.random_bool(EXACT), rng.random_bool(BLURRED));
        let moved = if exact {
            resample::turned(rgb, width, height, turn, (dx.round() as isize, dy.round() as isize))
        } else {
            resample::posed(rgb, width, height, &resample::Pose { turn, angle, scale, dx, dy })
        };
        let mut out = if blurred { resample::blurred(&moved, width, height, blur) } else { moved };
        let lit = |value: usize| (value as f64 * gain + offset).round().clamp(0.0, 255.0) as u8;
        let table: [u8; 256] = std::array::from_fn(lit);
        out.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        out
    }
}

impl fmt::Display for Augmentation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "light ±{:.0} % ±{:.0}, blur to {:.1} px, shift ±{:.1} px, rotation ±{:.1}°, scale ±{:.1} %, {}",
            100.0 * self.gain,
            self.offset,
            self.blur,
            self.shift,
            self.rotation,
            100.0 * self.scale,
            self.symmetry
        )
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::synthetic::{Product, good_part};

    #[test]
    fn a_seed_gives_the_same_copy_and_another_seed_another() {
        let part = good_part(Product::Board, 1, 96).rgb;
        let copy = |seed| Augmentation::MOST.apply(&part, 96, 96, &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(copy(1), copy(1));
        assert_ne!(copy(1), copy(2));
        // On a grid that is not square nothing is turned by a right angle.
        for seed in 0..40 {
            let copy = Augmentation::MOST.apply(&part, 64, 144, &mut ChaCha8Rng::seed_from_u64(seed));
            assert_eq!(copy.len(), part.len());
        }
    }

    #[test]
    fn without_any_range_a_picture_stays_as_it_is() {
        let none = Augmentation {
            gain: 0.0,
            offset: 0.0,
            blur: 0.0,
            shift: 0.0,
            rotation: 0.0,
            scale: 0.0,
            symmetry: Symmetry::NONE,
        };
        let part = good_part(Product::Washer, 1, 64).rgb;
        for seed in 0..8 {
            assert_eq!(none.apply(&part, 64, 64, &mut ChaCha8Rng::seed_from_u64(seed)), part);
        }
    }

    #[test]
    fn the_least_change_is_small_and_the_most_keeps_the_part_in_sight() {
        let part = good_part(Product::Washer, 1, 128).rgb;
        let change = |range: &Augmentation, seed| {
            let copy = range.apply(&part, 128, 128, &mut ChaCha8Rng::seed_from_u64(seed));
            part.iter().zip(&copy).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / part.len() as f64
        };
        let mean = |range: &Augmentation| (0..20).map(|seed| change(range, seed)).sum::<f64>() / 20.0;
        let (least, most) = (mean(&Augmentation::LEAST), mean(&Augmentation::MOST));
        assert!((1.0..12.0).contains(&least) && most > 2.0 * least, "{least} {most}");
    }

    /// By hand, in a release build.
    #[test]
    #[ignore = "a measurement: cargo test --release measures_augmentation -- --ignored --nocapture"]
    fn measures_augmentation() {
        let part = good_part(Product::Board, 1, 256).rgb;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let started = std::time::Instant::now();
        for _ in 0..200 {
            std::hint::black_box(Augmentation::MOST.apply(&part, 256, 256, &mut rng));
        }
        println!("{:.2} ms a picture of 256x256", started.elapsed().as_secs_f64() * 1e3 / 200.0);
    }
}
