//! Synthetic defects for a picture of any product: what the networks learn to see and to remove.
//!
//! In the manner of DRAEM (arXiv 2108.07610), CutPaste (arXiv 2104.04015) and the like, all procedural: no picture of a
//! third party goes into what is trained on them.

use rand::{Rng, RngExt};

use super::canvas::smooth_step;
use super::defects::{curve, curve_distance};
use super::noise::Noise;
use super::texture::Texture;

/// A corrupted picture and where it is corrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// `height * width * 3` bytes RGB.
    pub rgb: Vec<u8>,
    /// 255 where the picture changed visibly, `height * width` bytes; never empty.
    pub mask: Vec<u8>,
}

/// Ways to corrupt a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CorruptionFamily {
    /// Another texture inside a Perlin-like mask.
    PerlinTexture,
    /// A patch of the same picture in another place.
    CutPaste,
    /// A patch of another picture.
    PasteOther,
    /// A thin line, brighter or darker.
    Scratch,
    /// A branching dark line.
    Crack,
    /// A soft spot, brighter, darker or tinted.
    Blob,
    /// A region filled with a flat colour of the picture: missing material.
    Erase,
    /// Small dots.
    Specks,
    /// A local bulge.
    Warp,
    /// A thread with a shadow.
    Fibre,
}

impl CorruptionFamily {
    /// All families.
    pub const ALL: [CorruptionFamily; 10] = [
        CorruptionFamily::PerlinTexture,
        CorruptionFamily::CutPaste,
        CorruptionFamily::PasteOther,
        CorruptionFamily::Scratch,
        CorruptionFamily::Crack,
        CorruptionFamily::Blob,
        CorruptionFamily::Erase,
        CorruptionFamily::Specks,
        CorruptionFamily::Warp,
        CorruptionFamily::Fibre,
    ];
    /// Families that training sees.
    pub const TRAINING: [CorruptionFamily; 8] = [
        CorruptionFamily::PerlinTexture,
        CorruptionFamily::CutPaste,
        CorruptionFamily::PasteOther,
        CorruptionFamily::Scratch,
        CorruptionFamily::Crack,
        CorruptionFamily::Blob,
        CorruptionFamily::Erase,
        CorruptionFamily::Specks,
    ];
    /// Families that training never sees: choices are made on them.
    pub const VALIDATION: [CorruptionFamily; 2] = [CorruptionFamily::Warp, CorruptionFamily::Fibre];
}

/// Change of a byte from which a pixel counts as defective.
const VISIBLE: u8 = 8;
/// Tries before a strong blob is put in the middle.
const TRIES: usize = 6;

/// A picture as the families see it.
struct Source<'a> {
    rgb: &'a [u8],
    other: Option<&'a [u8]>,
    width: usize,
    height: usize,
}

impl Source<'_> {
    fn colour(&self, x: f32, y: f32) -> [f32; 3] {
        colour(self.rgb, self.width, self.height, x, y)
    }
}

fn colour(rgb: &[u8], width: usize, height: usize, x: f32, y: f32) -> [f32; 3] {
    let column = (x.max(0.0) as usize).min(width - 1);
    let row = (y.max(0.0) as usize).min(height - 1);
    let cell = (row * width + column) * 3;
    [0, 1, 2].map(|c| f32::from(rgb[cell + c]))
}

/// Corrupts `rgb` (`height * width * 3` bytes) by one family. `other` is a picture of the same size for `PasteOther`;
/// without it the patch comes from the same picture.
pub fn corrupt(
    rgb: &[u8],
    width: usize,
    height: usize,
    other: Option<&[u8]>,
    family: CorruptionFamily,
    rng: &mut impl Rng,
) -> Corruption {
    let source = Source { rgb, other, width, height };
    for _ in 0..TRIES {
        let changed = draw(&source, family, rng);
        let mask = difference(rgb, &changed);
        let area = mask.iter().filter(|m| **m > 0).count();
        if area >= 4 && area * 10 < mask.len() * 6 {
            return Corruption { rgb: changed, mask };
        }
    }
    // The picture swallows this family (a line of its own colour, say): a blob against its own level always shows.
    let mut changed = rgb.to_vec();
    let (cx, cy, radius) = (width as f32 * 0.5, height as f32 * 0.5, (width.min(height) as f32 * 0.05).max(2.0));
    let level = source.colour(cx, cy).iter().sum::<f32>() / 3.0;
    let by = if level > 127.0 { -90.0 } else { 90.0 };
    paint(&mut changed, width, height, (cx, cy), radius, |x, y, colour| {
        let cover = smooth_step(radius, radius * 0.5, (x - cx).hypot(y - cy));
        colour.map(|c| c + by * cover)
    });
    let mask = difference(rgb, &changed);
    Corruption { rgb: changed, mask }
}

fn difference(before: &[u8], after: &[u8]) -> Vec<u8> {
    let visible = |(a, b): (&[u8], &[u8])| a.iter().zip(b).any(|(a, b)| a.abs_diff(*b) > VISIBLE);
    before.chunks_exact(3).zip(after.chunks_exact(3)).map(|pair| if visible(pair) { 255 } else { 0 }).collect()
}

/// Changes the pixels of the square around `centre`.
fn paint(
    rgb: &mut [u8],
    width: usize,
    height: usize,
    centre: (f32, f32),
    reach: f32,
    mut change: impl FnMut(f32, f32, [f32; 3]) -> [f32; 3],
) {
    let span = |middle: f32, limit: usize| {
        let first = (middle - reach - 1.0).floor().max(0.0) as usize;
        first.min(limit)..(((middle + reach + 2.0).max(0.0)) as usize).min(limit)
    };
    for y in span(centre.1, height) {
        for x in span(centre.0, width) {
            let cell = (y * width + x) * 3;
            let colour = [0, 1, 2].map(|c| f32::from(rgb[cell + c]));
            let changed = change(x as f32, y as f32, colour);
            for c in 0..3 {
                rgb[cell + c] = changed[c].round().clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// A place for a defect: where the picture differs from its own border colour, if a few tries find such a place. A defect
/// on an empty background teaches little.
fn place(source: &Source<'_>, rng: &mut impl Rng) -> (f32, f32) {
    let (width, height) = (source.width as f32, source.height as f32);
    let corner = source.colour(1.0, 1.0);
    let mut point = (0.0, 0.0);
    for _ in 0..5 {
        point = (rng.random_range(0.03..0.97) * width, rng.random_range(0.03..0.97) * height);
        let here = source.colour(point.0, point.1);
        if (0..3).any(|c| (here[c] - corner[c]).abs() > 14.0) {
            break;
        }
    }
    point
}

/// Radius of a defect in pixels: mostly small, now and then up to a quarter of the picture.
fn radius(source: &Source<'_>, rng: &mut impl Rng) -> f32 {
    let side = source.width.min(source.height) as f32;
    let exponent = rng.random_range(0.0..1.0f32).powf(1.3);
    (side * 0.012 * (20.0f32).powf(exponent)).max(2.0)
}

fn draw(source: &Source<'_>, family: CorruptionFamily, rng: &mut impl Rng) -> Vec<u8> {
    let mut out = source.rgb.to_vec();
    let (width, height) = (source.width, source.height);
    let centre = place(source, rng);
    let noise = Noise::new(rng.random());
    let sign = if rng.random_bool(0.5) { 1.0f32 } else { -1.0 };
    match family {
        CorruptionFamily::PerlinTexture => {
            let texture = Texture::random(rng);
            let reach = radius(source, rng) * 1.6;
            let scale = rng.random_range(1.0..4.0) / reach;
            let opacity = rng.random_range(0.2..1.0f32);
            let level = rng.random_range(0.35..0.5f32);
            paint(&mut out, width, height, centre, reach, |x, y, colour| {
                let fall = 1.0 - (x - centre.0).hypot(y - centre.1) / reach;
                let cover =
                    smooth_step(level, level + 0.06, noise.fractal(x * scale, y * scale, 2) * fall.max(0.0).sqrt());
                let fill = texture.at(x, y);
                std::array::from_fn(|c| colour[c] + (fill[c] - colour[c]) * cover * opacity)
            });
        }
        CorruptionFamily::CutPaste | CorruptionFamily::PasteOther => {
            let donor =
                if family == CorruptionFamily::PasteOther { source.other.unwrap_or(source.rgb) } else { source.rgb };
            let half = (radius(source, rng), radius(source, rng));
            let from = (rng.random_range(0.0..width as f32), rng.random_range(0.0..height as f32));
            let (sin, cos) = rng.random_range(-1.6..1.6f32).sin_cos();
            let gain = [0; 3].map(|_| rng.random_range(0.8..1.2f32));
            let round = rng.random_bool(0.5);
            let reach = half.0.max(half.1);
            paint(&mut out, width, height, centre, reach, |x, y, colour| {
                let (dx, dy) = (x - centre.0, y - centre.1);
                let inside =
                    if round { (dx / half.0).hypot(dy / half.1) < 1.0 } else { dx.abs() < half.0 && dy.abs() < half.1 };
                if !inside {
                    return colour;
                }
                let at = (from.0 + dx * cos - dy * sin, from.1 + dx * sin + dy * cos);
                let mirror = |v: f32, size: usize| {
                    let period = 2.0 * size as f32;
                    let folded = v.rem_euclid(period);
                    if folded < size as f32 { folded } else { period - folded }
                };
                let pasted = self::colour(donor, width, height, mirror(at.0, width), mirror(at.1, height));
                std::array::from_fn(|c| pasted[c] * gain[c])
            });
        }
        CorruptionFamily::Scratch | CorruptionFamily::Crack | CorruptionFamily::Fibre => {
            draw_line(source, &mut out, family, centre, sign, rng);
        }
        CorruptionFamily::Blob => {
            let reach = radius(source, rng);
            let depth = sign * rng.random_range(18.0..90.0f32);
            let tint = [0; 3].map(|_| rng.random_range(0.5..1.2f32));
            let soft = rng.random_range(0.3..0.95f32);
            paint(&mut out, width, height, centre, reach * 1.4, |x, y, colour| {
                let wobble = 0.75 + 0.5 * noise.fractal(x * 3.0 / reach, y * 3.0 / reach, 2);
                let cover = smooth_step(1.0, soft, (x - centre.0).hypot(y - centre.1) / (reach * wobble));
                std::array::from_fn(|c| colour[c] + depth * tint[c] * cover)
            });
        }
        CorruptionFamily::Erase => {
            let reach = radius(source, rng);
            let from = (rng.random_range(0.0..width as f32), rng.random_range(0.0..height as f32));
            let fill = source.colour(from.0, from.1);
            let grain = rng.random_range(0.0..16.0f32);
            paint(&mut out, width, height, centre, reach * 1.5, |x, y, colour| {
                let jagged = 0.6 + 0.8 * noise.fractal(x * 4.0 / reach, y * 4.0 / reach, 3);
                let cover = smooth_step(1.0, 0.9, (x - centre.0).hypot(y - centre.1) / (reach * jagged));
                let rough = (noise.at(x * 0.7, y * 0.7) - 0.5) * grain;
                std::array::from_fn(|c| colour[c] + (fill[c] + rough - colour[c]) * cover)
            });
        }
        CorruptionFamily::Specks => {
            let spread = radius(source, rng) * 2.0;
            let depth = sign * rng.random_range(25.0..110.0f32);
            for _ in 0..rng.random_range(1..12) {
                let dot = (centre.0 + rng.random_range(-spread..spread), centre.1 + rng.random_range(-spread..spread));
                let size = rng.random_range(1.0..4.0f32);
                paint(&mut out, width, height, dot, size, |x, y, colour| {
                    let cover = smooth_step(size, size * 0.4, (x - dot.0).hypot(y - dot.1));
                    colour.map(|c| c + depth * cover)
                });
            }
        }
        CorruptionFamily::Warp => {
            let reach = radius(source, rng).max(6.0) * 1.3;
            let pull = sign * rng.random_range(0.5..0.9f32);
            let turn = rng.random_range(-1.2..1.2f32);
            let shine = rng.random_range(-0.25..0.25f32);
            let towards: f32 = rng.random_range(0.0..std::f32::consts::TAU);
            paint(&mut out, width, height, centre, reach, |x, y, colour| {
                let (dx, dy) = (x - centre.0, y - centre.1);
                let distance = dx.hypot(dy) / reach;
                if distance >= 1.0 {
                    return colour;
                }
                let inner = (1.0 - distance).powi(2);
                let (sin, cos) = (turn * inner).sin_cos();
                let scale = 1.0 - pull * inner;
                let at = (centre.0 + (dx * cos - dy * sin) * scale, centre.1 + (dx * sin + dy * cos) * scale);
                let slope = (dx * towards.cos() + dy * towards.sin()) / reach * (1.0 - distance);
                source.colour(at.0, at.1).map(|c| c * (1.0 + 4.0 * shine * slope))
            });
        }
    }
    out
}

fn draw_line(
    source: &Source<'_>,
    out: &mut [u8],
    family: CorruptionFamily,
    centre: (f32, f32),
    sign: f32,
    rng: &mut impl Rng,
) {
    let side = source.width.min(source.height) as f32;
    let length = side * rng.random_range(0.04..0.5f32);
    let (bend, width, depth) = match family {
        CorruptionFamily::Scratch => (0.15, rng.random_range(0.5..1.8f32), sign * rng.random_range(20.0..100.0f32)),
        CorruptionFamily::Crack => (0.6, rng.random_range(0.5..1.5f32), -rng.random_range(30.0..120.0f32)),
        _ => (0.5, rng.random_range(0.8..2.2f32), 0.0),
    };
    let mut lines = vec![curve(centre, length, bend, rng)];
    if family == CorruptionFamily::Crack {
        let fork = lines[0][rng.random_range(3..11)];
        lines.push(curve(fork, length * 0.4, bend, rng));
    }
    let thread = if sign > 0.0 { [225.0, 220.0, 210.0] } else { [60.0, 20.0, 20.0] };
    paint(out, source.width, source.height, centre, length + 6.0, |x, y, colour| {
        let distance = lines.iter().map(|line| curve_distance((x, y), line)).fold(f32::MAX, f32::min);
        let cover = smooth_step(width + 1.0, (width - 1.0).max(0.0), distance);
        if family == CorruptionFamily::Fibre {
            let shadow = smooth_step(width * 3.0 + 2.0, 0.0, distance) * 0.25;
            std::array::from_fn(|c| {
                let dark = colour[c] * (1.0 - shadow);
                dark + (thread[c] - dark) * cover * 0.9
            })
        } else {
            colour.map(|c| c + depth * cover)
        }
    });
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn masks_are_where_the_picture_changed_and_never_empty() {
        for (name, base) in [("flat", 128u8), ("black", 0), ("white", 255)] {
            let picture = vec![base; 96 * 64 * 3];
            for family in CorruptionFamily::ALL {
                for seed in 0..10 {
                    let mut rng = ChaCha8Rng::seed_from_u64(seed);
                    let Corruption { rgb, mask } = corrupt(&picture, 96, 64, None, family, &mut rng);
                    assert!(mask.iter().any(|m| *m == 255), "{family:?} on {name}, seed {seed}");
                    assert_eq!(mask, difference(&picture, &rgb));
                }
            }
        }
    }

    #[test]
    fn training_and_validation_share_no_family() {
        assert!(CorruptionFamily::VALIDATION.iter().all(|f| !CorruptionFamily::TRAINING.contains(f)));
        let both = CorruptionFamily::VALIDATION.len() + CorruptionFamily::TRAINING.len();
        assert_eq!(both, CorruptionFamily::ALL.len());
    }
}
