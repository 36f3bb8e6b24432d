//! Synthetic defects for a picture of any product: what the networks learn to see and to remove.
//!
//! In the manner of DRAEM (arXiv 2108.07610), CutPaste (arXiv 2104.04015) and GLASS (arXiv 2407.09359), all procedural:
//! no picture of a third party goes into what is trained on them. Sizes run from a few pixels to half the picture,
//! mostly small; on a grey picture all defects are grey.

mod lines;
mod regions;
pub(super) mod texture;

use rand::{Rng, RngExt};
use serde::Serialize;

use super::close_gaps;
use super::shapes::{Point, length, smoothstep};

/// A corrupted picture and where it is corrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// `height * width * 3` bytes RGB.
    pub rgb: Vec<u8>,
    /// 255 where the picture changed visibly, gaps of one pixel closed, `height * width` bytes; never empty.
    pub mask: Vec<u8>,
}

/// Ways to corrupt a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CorruptionFamily {
    /// A procedural texture inside a mask of Perlin noise, opacity 0.15 to 1.
    PerlinTexture,
    /// A patch from elsewhere in the same picture, turned, scaled and tinted.
    CutPaste,
    /// A patch from another picture.
    PasteOther,
    /// A thin line, brighter or darker, with a lip.
    Scratch,
    /// A jagged dark line that branches.
    Crack,
    /// A soft spot, brighter, darker or tinted.
    Blob,
    /// A region filled with its blurred surroundings or a flat colour: missing material.
    Erase,
    /// Small dots and pits.
    Specks,
    /// Shading as of a dent or a bump: one flank brighter, the other darker.
    Relief,
    /// A local bulge, pinch or twist.
    Warp,
    /// A thread with a shadow.
    Fibre,
}

impl CorruptionFamily {
    /// All families.
    pub const ALL: [CorruptionFamily; 11] = [
        CorruptionFamily::PerlinTexture,
        CorruptionFamily::CutPaste,
        CorruptionFamily::PasteOther,
        CorruptionFamily::Scratch,
        CorruptionFamily::Crack,
        CorruptionFamily::Blob,
        CorruptionFamily::Erase,
        CorruptionFamily::Specks,
        CorruptionFamily::Relief,
        CorruptionFamily::Warp,
        CorruptionFamily::Fibre,
    ];
    /// Families that training sees.
    pub const TRAINING: [CorruptionFamily; 9] = [
        CorruptionFamily::PerlinTexture,
        CorruptionFamily::CutPaste,
        CorruptionFamily::PasteOther,
        CorruptionFamily::Scratch,
        CorruptionFamily::Crack,
        CorruptionFamily::Blob,
        CorruptionFamily::Erase,
        CorruptionFamily::Specks,
        CorruptionFamily::Relief,
    ];
    /// Families that training never sees: hyper-parameters and checkpoints are chosen on them.
    pub const VALIDATION: [CorruptionFamily; 2] = [CorruptionFamily::Warp, CorruptionFamily::Fibre];
}

/// Corrupts `rgb` (`height * width * 3` bytes) by one family. `other` is a picture of the same size for `PasteOther`;
/// without it the patch comes from the same picture.
///
/// # Panics
/// If `rgb` or `other` has another size, or the picture has no pixels.
pub fn corrupt(
    rgb: &[u8],
    width: usize,
    height: usize,
    other: Option<&[u8]>,
    family: CorruptionFamily,
    rng: &mut impl Rng,
) -> Corruption {
    assert!(width > 0 && height > 0 && rgb.len() == width * height * 3, "{width}x{height} is not {} bytes", rgb.len());
    assert!(other.is_none_or(|other| other.len() == rgb.len()), "the other picture must have the same size");
    let source = Source { rgb, width, height };
    let grey = rgb.chunks_exact(3).all(|p| p[0].abs_diff(p[1]) < 4 && p[1].abs_diff(p[2]) < 4);
    for _ in 0..TRIES {
        let centre = place(&source, rng);
        let mut canvas = Canvas { rgb: rgb.to_vec(), width, height };
        match family {
            CorruptionFamily::PerlinTexture => regions::perlin_texture(&mut canvas, centre, rng),
            CorruptionFamily::CutPaste => regions::paste(&mut canvas, &source, centre, rng),
            CorruptionFamily::PasteOther => {
                let donor = Source { rgb: other.unwrap_or(rgb), ..source };
                regions::paste(&mut canvas, &donor, centre, rng);
            }
            CorruptionFamily::Scratch => lines::scratch(&mut canvas, centre, rng),
            CorruptionFamily::Crack => lines::crack(&mut canvas, centre, rng),
            CorruptionFamily::Blob => regions::blob(&mut canvas, centre, rng),
            CorruptionFamily::Erase => regions::erase(&mut canvas, &source, centre, rng),
            CorruptionFamily::Specks => lines::specks(&mut canvas, centre, rng),
            CorruptionFamily::Relief => regions::relief(&mut canvas, centre, rng),
            CorruptionFamily::Warp => regions::warp(&mut canvas, &source, centre, rng),
            CorruptionFamily::Fibre => lines::fibre(&mut canvas, centre, rng),
        }
        if grey {
            canvas.drain_colour();
        }
        let mask = visible(rgb, &canvas.rgb, width, height);
        let area = mask.iter().filter(|m| **m > 0).count();
        if area >= SMALLEST && area * 2 < mask.len() {
            return Corruption { rgb: canvas.rgb, mask };
        }
    }
    strong_spot(&source, rng)
}

/// Change of a byte above which a pixel counts as defective.
const VISIBLE: u8 = 6;
/// The smallest corruption, in pixels.
const SMALLEST: usize = 5;
/// Draws before a strong spot is put down instead.
const TRIES: usize = 6;

/// A picture to read from.
#[derive(Clone, Copy)]
struct Source<'a> {
    rgb: &'a [u8],
    width: usize,
    height: usize,
}

impl Source<'_> {
    /// The colour of the pixel at a place, clamped into the picture, 0 to 255.
    fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let column = (x.max(0.0) as usize).min(self.width - 1);
        let row = (y.max(0.0) as usize).min(self.height - 1);
        let cell = (row * self.width + column) * 3;
        std::array::from_fn(|c| f32::from(self.rgb[cell + c]))
    }

    /// The colour between four pixels.
    fn between(&self, x: f32, y: f32) -> [f32; 3] {
        let (x, y) = (x.clamp(0.0, (self.width - 1) as f32), y.clamp(0.0, (self.height - 1) as f32));
        let (fx, fy) = (x.fract(), y.fract());
        let [a, b, c, d] = [self.at(x, y), self.at(x + 1.0, y), self.at(x, y + 1.0), self.at(x + 1.0, y + 1.0)];
        std::array::from_fn(|k| (a[k] * (1.0 - fx) + b[k] * fx) * (1.0 - fy) + (c[k] * (1.0 - fx) + d[k] * fx) * fy)
    }

    /// Mean colour of a 5 x 5 grid of pixels `step` apart around a place.
    fn mean(&self, x: f32, y: f32, step: f32) -> [f32; 3] {
        let mut sum = [0.0; 3];
        for k in 0..25 {
            let pixel = self.at(x + step * (k % 5 - 2) as f32, y + step * (k / 5 - 2) as f32);
            (0..3).for_each(|c| sum[c] += pixel[c] / 25.0);
        }
        sum
    }
}

/// The picture being changed.
struct Canvas {
    rgb: Vec<u8>,
    width: usize,
    height: usize,
}

impl Canvas {
    /// The shorter side in pixels.
    fn side(&self) -> f32 {
        self.width.min(self.height) as f32
    }

    /// Half the extent of a defect in pixels: from 2.5 to a quarter of the picture, small ones more often.
    fn radius(&self, rng: &mut impl Rng) -> f32 {
        let largest = (0.25 * self.side()).max(3.0);
        2.5 * (largest / 2.5).powf(rng.random_range(0.0..1.0))
    }

    /// Changes the pixels of the box around `centre`: `change(x, y, colour)`, colours 0 to 255.
    fn paint(&mut self, centre: Point, reach: Point, mut change: impl FnMut(f32, f32, [f32; 3]) -> [f32; 3]) {
        let span = |middle: f32, reach: f32, limit: usize| {
            ((middle - reach).max(0.0) as usize).min(limit)..((middle + reach + 2.0).max(0.0) as usize).min(limit)
        };
        let columns = span(centre.0, reach.0, self.width);
        for y in span(centre.1, reach.1, self.height) {
            for x in columns.clone() {
                let pixel = &mut self.rgb[(y * self.width + x) * 3..][..3];
                let changed = change(x as f32, y as f32, std::array::from_fn(|c| f32::from(pixel[c])));
                // The cast saturates at 0 and 255.
                (0..3).for_each(|c| pixel[c] = (changed[c] + 0.5) as u8);
            }
        }
    }

    fn drain_colour(&mut self) {
        for pixel in self.rgb.chunks_exact_mut(3) {
            if pixel[0].abs_diff(pixel[1]) >= 4 || pixel[1].abs_diff(pixel[2]) >= 4 {
                let luma = (u32::from(pixel[0]) * 77 + u32::from(pixel[1]) * 150 + u32::from(pixel[2]) * 29) >> 8;
                pixel.fill(luma as u8);
            }
        }
    }
}

fn mix(from: [f32; 3], to: [f32; 3], alpha: f32) -> [f32; 3] {
    std::array::from_fn(|c| from[c] + (to[c] - from[c]) * alpha)
}

/// A place for a defect. Where the border of the picture is of one colour, places of that colour are empty background:
/// a defect there teaches little, so a few tries look for another.
fn place(source: &Source<'_>, rng: &mut impl Rng) -> Point {
    let (right, bottom) = ((source.width - 1) as f32, (source.height - 1) as f32);
    let border: Vec<[f32; 3]> = (0..32)
        .map(|k| {
            let t = (k / 4) as f32 / 7.0;
            match k % 4 {
                0 => source.at(t * right, 1.0),
                1 => source.at(t * right, bottom - 1.0),
                2 => source.at(1.0, t * bottom),
                _ => source.at(right - 1.0, t * bottom),
            }
        })
        .collect();
    let ground: [f32; 3] = std::array::from_fn(|c| border.iter().map(|p| p[c]).sum::<f32>() / border.len() as f32);
    let far = |p: &[f32; 3]| (0..3).map(|c| (p[c] - ground[c]).abs()).fold(0.0, f32::max);
    let flat = border.iter().filter(|p| far(p) < 28.0).count() * 5 >= border.len() * 4;
    let mut at = (0.0, 0.0);
    for _ in 0..8 {
        at = (rng.random_range(0.02..0.98) * right, rng.random_range(0.02..0.98) * bottom);
        if !flat || far(&source.mean(at.0, at.1, 1.0)) > 16.0 {
            break;
        }
    }
    at
}

fn visible(before: &[u8], after: &[u8], width: usize, height: usize) -> Vec<u8> {
    let differs = |(a, b): (&[u8], &[u8])| a.iter().zip(b).any(|(a, b)| a.abs_diff(*b) > VISIBLE);
    let mask = before.chunks_exact(3).zip(after.chunks_exact(3)).map(|p| if differs(p) { 255 } else { 0 }).collect();
    close_gaps(mask, width, height)
}

/// A spot against its own level, which always shows: for pictures that swallow a family (a patch of a flat picture, say).
fn strong_spot(source: &Source<'_>, rng: &mut impl Rng) -> Corruption {
    let (width, height) = (source.width, source.height);
    let centre = place(source, rng);
    let mut canvas = Canvas { rgb: source.rgb.to_vec(), width, height };
    let radius = (0.04 * canvas.side()).max(2.0);
    let level = source.mean(centre.0, centre.1, 1.0).iter().sum::<f32>() / 3.0;
    let by = if level > 127.0 { -90.0 } else { 90.0 };
    canvas.paint(centre, (radius, radius), |x, y, colour| {
        let cover = smoothstep(radius, 0.5 * radius, length(x - centre.0, y - centre.1));
        colour.map(|c| c + by * cover)
    });
    let mask = visible(source.rgb, &canvas.rgb, width, height);
    Corruption { rgb: canvas.rgb, mask }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::{Product, good_part};
    use super::*;

    #[test]
    fn masks_are_where_the_picture_changed_and_never_empty() {
        for (name, base) in [("flat", 128u8), ("black", 0), ("white", 255)] {
            let picture = vec![base; 96 * 64 * 3];
            for family in CorruptionFamily::ALL {
                for seed in 0..10 {
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    let Corruption { rgb, mask } = corrupt(&picture, 96, 64, None, family, &mut rng);
                    assert!(mask.contains(&255), "{family:?} on {name}, seed {seed}");
                    assert_eq!(mask, visible(&picture, &rgb, 96, 64));
                    let grey = rgb.chunks_exact(3).all(|p| p[0].abs_diff(p[2]) < 8);
                    assert!(grey, "{family:?} coloured a grey picture");
                }
            }
        }
    }

    #[test]
    fn a_seed_makes_the_same_corruption_of_a_real_part() {
        let part = good_part(Product::Board, 1, 96);
        let other = good_part(Product::Fabric, 2, 96);
        for family in CorruptionFamily::ALL {
            let mut areas = Vec::new();
            for seed in 0..24 {
                let draw = || {
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    corrupt(&part.rgb, 96, 96, Some(&other.rgb), family, &mut rng)
                };
                let first = draw();
                assert_eq!(first, draw());
                areas.push(first.mask.iter().filter(|m| **m == 255).count());
            }
            areas.sort_unstable();
            let (least, most) = (areas[0], areas[areas.len() - 1]);
            assert!(least >= SMALLEST && most < 96 * 96 / 2, "{family:?}: {areas:?}");
            assert!(most >= 2 * least, "{family:?} has one size only: {areas:?}");
        }
    }

    #[test]
    fn tiny_pictures_are_corrupted_too() {
        for family in CorruptionFamily::ALL {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let Corruption { rgb, mask } = corrupt(&[90; 8 * 6 * 3], 8, 6, None, family, &mut rng);
            assert!(rgb.len() == 144 && mask.contains(&255), "{family:?}");
        }
    }

    #[test]
    fn on_a_flat_background_most_defects_meet_the_object() {
        let (width, height) = (96usize, 96usize);
        let on_object = |i: usize| (24..72).contains(&(i % width)) && (24..72).contains(&(i / width));
        let picture: Vec<u8> = (0..width * height).flat_map(|i| [if on_object(i) { 190 } else { 30 }; 3]).collect();
        let met = (0..60)
            .filter(|seed| {
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                let spoilt = corrupt(&picture, width, height, None, CorruptionFamily::Blob, &mut rng);
                spoilt.mask.iter().enumerate().any(|(i, m)| *m == 255 && on_object(i))
            })
            .count();
        // A quarter of the picture is object: without the search about a third of the spots would touch it.
        assert!(met >= 48, "{met} of 60 meet the object");
    }

    #[test]
    fn training_and_validation_share_no_family() {
        assert!(CorruptionFamily::VALIDATION.iter().all(|f| !CorruptionFamily::TRAINING.contains(f)));
        let both = CorruptionFamily::VALIDATION.len() + CorruptionFamily::TRAINING.len();
        assert_eq!(both, CorruptionFamily::ALL.len());
    }
}
