//! A procedural product line: parts with known defects, and defects for any picture.
//!
//! Pure: no files, no clock, no threads. Everything follows from a seed, so a part can be made again anywhere.
//!
//! | file | what |
//! |---|---|
//! | `noise`, `shapes` | seeded noise; signed distances of paths, polygons and blobs |
//! | `scene` | a part on its bed, and the camera that turns it into bytes |
//! | `washer`, `fabric`, `board` | the three products |
//! | `defects` | defects of these products |
//! | `procedural` | pictures of any number of other products: what networks are pre-trained on |
//! | `corrupt` | defects on pictures of any product: what training supervises with |

mod board;
pub mod corrupt;
mod defects;
mod fabric;
pub mod noise;
pub mod procedural;
mod scene;
pub mod shapes;
mod washer;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use self::defects::DefectFamily;
use self::scene::{Camera, Colour, Scene};

/// What the line makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Product {
    /// A washer of brushed metal on a dark mat.
    Washer,
    /// Woven fabric that fills the frame.
    Fabric,
    /// A printed circuit board on a light conveyor.
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

    fn scene(self, size: usize, rng: &mut impl Rng) -> Scene {
        match self {
            Product::Washer => washer::scene(size, rng),
            Product::Fabric => fabric::scene(size, rng),
            Product::Board => board::scene(size, rng),
        }
    }
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
    let line = Line::new(product, seed);
    let side = size as usize;
    let scene = product.scene(side, &mut line.rng(Stream::Part));
    let picture = line.camera().expose(&scene.surface, side);
    let rgb = line.camera().sense(&picture, &mut line.rng(Stream::Sensor));
    Part { product, defect: None, width: size, height: size, rgb, mask: vec![0; side * side] }
}

/// The part of [`good_part`] with the same seed, under the same light and sensor noise, with one defect. The mask holds
/// the pixels that the defect changes by more than a just visible amount; it is never empty.
pub fn defective_part(product: Product, family: DefectFamily, seed: u64, size: u32) -> Part {
    let line = Line::new(product, seed);
    let side = size as usize;
    let good = product.scene(side, &mut line.rng(Stream::Part));
    let before = line.camera().expose(&good.surface, side);
    let mut rng = line.rng(Stream::Defect);
    let mut attempt = 0;
    let (picture, mask) = loop {
        // A draw may be lost in the texture or lie off the part: draw again, and clearer.
        let mut scene = good.clone();
        defects::apply(&mut scene, product, family, 1.0 + 0.25 * attempt as f32, &mut rng);
        let picture = line.camera().expose(&scene.surface, side);
        let mask = visible(&before, &picture, side);
        attempt += 1;
        if attempt == TRIES || clear(&before, &picture, &mask) {
            break (picture, mask);
        }
    };
    let rgb = line.camera().sense(&picture, &mut line.rng(Stream::Sensor));
    Part { product, defect: Some(family), width: size, height: size, rgb, mask }
}

/// Change of a channel, of 255, from which a defect counts as visible: about three times the sensor noise.
const VISIBLE: f32 = 6.5;
/// The smallest defect covers one pixel of this many: 26 pixels of a frame of 256 x 256.
const SMALLEST: usize = 2500;
/// Mean change, of 255, of the largest channel over the mask of a defect that an inspector would notice.
const CLEAR: f32 = 17.0;
/// Draws per defect. Strength grows with each; a test finds none that needs the last.
const TRIES: u32 = 12;

/// What is random about a part comes from streams of its own, so that a defect changes nothing else.
enum Stream {
    Part,
    Light,
    Sensor,
    Defect,
}

struct Line {
    product: Product,
    seed: u64,
}

impl Line {
    fn new(product: Product, seed: u64) -> Line {
        Line { product, seed }
    }

    fn rng(&self, stream: Stream) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.product as u64 * 8 + stream as u64);
        rng
    }

    fn camera(&self) -> Camera {
        Camera::random(&mut self.rng(Stream::Light))
    }
}

fn largest_change(before: &Colour, after: &Colour) -> f32 {
    before.iter().zip(after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Whether a defect is large and strong enough to be called one.
fn clear(before: &[Colour], after: &[Colour], mask: &[u8]) -> bool {
    let changes = before.iter().zip(after).zip(mask).filter(|(_, m)| **m > 0).map(|((a, b), _)| largest_change(a, b));
    let (area, sum) = changes.fold((0usize, 0.0f32), |(area, sum), change| (area + 1, sum + change));
    area * SMALLEST >= mask.len() && sum >= CLEAR * area as f32
}

/// 255 where a channel differs by more than `VISIBLE`; gaps of one pixel are closed.
fn visible(before: &[Colour], after: &[Colour], side: usize) -> Vec<u8> {
    let differs = |(a, b)| largest_change(a, b) > VISIBLE;
    let mask = before.iter().zip(after).map(|pair| if differs(pair) { 255 } else { 0 }).collect();
    close_gaps(mask, side, side)
}

/// Closes gaps of one pixel in a mask of 0 and 255 (dilation, then erosion, 3 x 3): a textured defect is one region.
pub(crate) fn close_gaps(mask: Vec<u8>, width: usize, height: usize) -> Vec<u8> {
    let spread = |mask: &[u8], grow: bool| {
        let pick = |a: u8, b: u8| if grow { a.max(b) } else { a.min(b) };
        let mut rows = mask.to_vec();
        for (line, out) in mask.chunks_exact(width).zip(rows.chunks_exact_mut(width)) {
            for x in 0..width {
                out[x] = pick(pick(line[x.max(1) - 1], line[x]), line[(x + 1).min(width - 1)]);
            }
        }
        let mut out = rows.clone();
        for y in 0..height {
            let (above, below) = (y.max(1) - 1, (y + 1).min(height - 1));
            for x in 0..width {
                out[y * width + x] = pick(pick(rows[above * width + x], rows[y * width + x]), rows[below * width + x]);
            }
        }
        out
    };
    let mut closed = spread(&spread(&mask, true), false);
    // Erosion cannot see beyond the picture: on its border nothing is closed.
    for (i, value) in closed.iter_mut().enumerate() {
        let (x, y) = (i % width, i / width);
        if x == 0 || y == 0 || x == width - 1 || y == height - 1 {
            *value = mask[i];
        }
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(part: &Part) -> usize {
        part.mask.iter().filter(|m| **m == 255).count()
    }

    #[test]
    fn a_seed_makes_the_same_part() {
        for product in Product::ALL {
            assert_eq!(good_part(product, 5, 96), good_part(product, 5, 96));
            assert_ne!(good_part(product, 5, 96).rgb, good_part(product, 6, 96).rgb);
            let defective = |seed| defective_part(product, DefectFamily::Stain, seed, 96);
            assert_eq!(defective(5), defective(5));
            assert_ne!(defective(5).mask, defective(6).mask);
        }
    }

    #[test]
    fn a_mask_covers_a_change_that_can_be_seen() {
        for product in Product::ALL {
            for family in DefectFamily::ALL {
                for seed in 20..26 {
                    let (good, bad) = (good_part(product, seed, 128), defective_part(product, family, seed, 128));
                    let inside = (0..bad.mask.len()).filter(|i| bad.mask[*i] == 255);
                    let change = |i: usize| (0..3).map(|c| good.rgb[3 * i + c].abs_diff(bad.rgb[3 * i + c])).max();
                    let sum: u32 = inside.filter_map(change).map(u32::from).sum();
                    let mean = f64::from(sum) / area(&bad) as f64;
                    assert!(mean > 15.0, "{product:?} {family:?} seed {seed}: {mean}");
                }
            }
        }
    }

    #[test]
    fn every_family_shows_on_every_product_and_stays_a_defect() {
        for product in Product::ALL {
            for family in DefectFamily::ALL {
                for seed in 0..12 {
                    let part = defective_part(product, family, seed, 128);
                    let share = area(&part) as f64 / part.mask.len() as f64;
                    let smallest = 1.0 / SMALLEST as f64;
                    assert!((smallest..0.25).contains(&share), "{product:?} {family:?} seed {seed}: {share}");
                    assert!(part.mask.iter().all(|m| matches!(m, 0 | 255)));
                }
            }
        }
    }

    #[test]
    fn outside_its_mask_a_defective_part_is_the_good_part() {
        for product in Product::ALL {
            for family in DefectFamily::ALL {
                let (good, bad) = (good_part(product, 3, 128), defective_part(product, family, 3, 128));
                for (i, mask) in bad.mask.iter().enumerate() {
                    let change = (0..3).map(|c| good.rgb[3 * i + c].abs_diff(bad.rgb[3 * i + c])).max();
                    assert!(*mask == 255 || change <= Some(8), "{product:?} {family:?}: {change:?} at pixel {i}");
                }
            }
        }
    }

    #[test]
    fn defects_lie_on_the_part() {
        for product in [Product::Washer, Product::Board] {
            for family in DefectFamily::ALL {
                let (mut on, mut all) = (0, 0);
                for seed in 0..8 {
                    let cover = product.scene(128, &mut Line::new(product, seed).rng(Stream::Part)).cover;
                    let part = defective_part(product, family, seed, 128);
                    all += area(&part);
                    on += part.mask.iter().zip(&cover).filter(|(m, c)| **m == 255 && **c > 0.0).count();
                }
                assert!(on * 10 >= all * 7, "{product:?} {family:?}: {on} of {all} pixels on the part");
            }
        }
    }

    #[test]
    fn sizes_other_than_the_usual_work() {
        for size in [32, 65, 300] {
            let part = defective_part(Product::Board, DefectFamily::Missing, 1, size);
            assert_eq!(part.rgb.len(), (size * size * 3) as usize);
            assert!(area(&part) > 0);
        }
    }

    #[test]
    fn good_parts_have_no_mask() {
        assert!(good_part(Product::Board, 1, 64).mask.iter().all(|m| *m == 0));
    }

    #[test]
    fn gaps_of_one_pixel_close_and_nothing_else_grows() {
        let row = [0, 255, 0, 255, 0, 0, 0];
        let empty = [0; 7];
        let closed = close_gaps([empty, row, empty].concat(), 7, 3);
        assert_eq!(closed, [empty, [0, 255, 255, 255, 0, 0, 0], empty].concat());
    }
}
