//! A procedural product line: parts with known defects, and defects for any picture.
//!
//! Pure: no files, no clock, no threads. Everything follows from a seed, so a part can be made again anywhere.
//!
//! | file | what |
//! |---|---|
//! | `noise`, `canvas` | value noise; a floating-point picture |
//! | `washer`, `fabric`, `board` | the three products |
//! | `defects` | defects of these products, with masks |
//! | `corrupt`, `texture` | defects on pictures of any product: what training supervises with |

pub mod board;
pub mod canvas;
pub mod corrupt;
pub mod defects;
pub mod fabric;
pub mod noise;
pub mod texture;
pub mod washer;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::canvas::Canvas;
pub use self::defects::DefectFamily;

/// What the line makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Product {
    /// A washer of brushed metal on a dark belt.
    Washer,
    /// Woven fabric that fills the frame.
    Fabric,
    /// A printed circuit board.
    Board,
}

impl Product {
    /// All products.
    pub const ALL: [Product; 3] = [Product::Washer, Product::Fabric, Product::Board];

    /// Name of the product, its class and its folder.
    pub fn name(self) -> &'static str {
        match self {
            Product::Washer => "washer",
            Product::Fabric => "fabric",
            Product::Board => "board",
        }
    }

    fn paint(self, size: usize, rng: &mut impl Rng) -> Scene {
        match self {
            Product::Washer => washer::paint(size, rng),
            Product::Fabric => fabric::paint(size, rng),
            Product::Board => board::paint(size, rng),
        }
    }
}

/// A painted part before light and sensor.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The picture.
    pub canvas: Canvas,
    /// Where the part is, `size * size`.
    pub part: Vec<bool>,
    /// Colour behind the part: what shows where material is missing.
    pub behind: [f32; 3],
}

/// One part as a camera sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub product: Product,
    /// What is wrong with it, if anything.
    pub defect: Option<DefectFamily>,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * 3` bytes RGB.
    pub rgb: Vec<u8>,
    /// 255 where the defect shows, `height * width` bytes.
    pub mask: Vec<u8>,
}

/// A good part of `size x size` pixels.
pub fn good_part(product: Product, seed: u64, size: u32) -> Part {
    make(product, None, seed, size)
}

/// A part with one defect. Its mask is never empty.
pub fn defective_part(product: Product, family: DefectFamily, seed: u64, size: u32) -> Part {
    make(product, Some(family), seed, size)
}

/// Change of a channel, in 0 to 1, from which a defect counts as visible.
const VISIBLE: f32 = 0.035;

fn make(product: Product, defect: Option<DefectFamily>, seed: u64, size: u32) -> Part {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let side = size as usize;
    let mut scene = product.paint(side, &mut rng);
    let mut mask = vec![0u8; side * side];
    if let Some(family) = defect {
        // A faint draw may fall where it cannot be seen: draw again, and stronger.
        for attempt in 0..8 {
            let before = scene.canvas.clone();
            defects::apply(&mut scene, family, 1.0 + 0.25 * attempt as f32, &mut rng);
            mask = scene.canvas.changed(&before, VISIBLE);
            if mask.iter().filter(|m| **m > 0).count() >= side * side / 4096 {
                break;
            }
            scene.canvas = before;
        }
    }
    light(&mut scene.canvas, &mut rng);
    let rgb = scene.canvas.expose(0.008, &mut rng);
    Part { product, defect, width: size, height: size, rgb, mask }
}

/// Uneven light: gain, a gradient across the frame, and a slight colour cast.
fn light(canvas: &mut Canvas, rng: &mut impl Rng) {
    let gain = rng.random_range(0.92..1.06f32);
    let (gx, gy) = (rng.random_range(-0.06..0.06f32), rng.random_range(-0.06..0.06f32));
    let cast = [0; 3].map(|_| rng.random_range(0.985..1.015f32));
    canvas.map(|x, y, colour| {
        let level = gain * (1.0 + gx * (x - 0.5) * 2.0 + gy * (y - 0.5) * 2.0);
        std::array::from_fn(|c| colour[c] * level * cast[c])
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_part() {
        for product in Product::ALL {
            assert_eq!(good_part(product, 5, 96), good_part(product, 5, 96));
            assert_ne!(good_part(product, 5, 96).rgb, good_part(product, 6, 96).rgb);
        }
    }

    #[test]
    fn every_family_shows_on_every_product() {
        for product in Product::ALL {
            for family in DefectFamily::ALL {
                for seed in 0..6 {
                    let part = defective_part(product, family, seed, 128);
                    let area = part.mask.iter().filter(|m| **m == 255).count();
                    let share = area as f64 / part.mask.len() as f64;
                    assert!(area >= 4 && share < 0.35, "{} {}: {share}", product.name(), family.name());
                    assert!(part.mask.iter().all(|m| matches!(m, 0 | 255)));
                }
            }
        }
    }

    #[test]
    fn good_parts_have_no_mask() {
        assert!(good_part(Product::Board, 1, 64).mask.iter().all(|m| *m == 0));
    }
}
