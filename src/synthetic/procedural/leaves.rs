//! Dead leaves: things of all sizes that lie over each other, as in bulk goods, assemblies and natural pictures.

use std::f32::consts::{FRAC_PI_4, TAU};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::scene::{Colour, FRAME, Pose, shade, window};
use super::super::shapes::{Blob, Point, Polygon, length, rounded_box, smoothstep};
use super::material::{Material, Palette, Piece};

/// More leaves than this are not drawn: the smallest are a few pixels and take as long as large ones to place.
const MOST: usize = 320;

/// A heap of leaves.
pub(super) struct Leaves {
    materials: Vec<Material>,
    /// Smallest and largest radius in units.
    sizes: (f32, f32),
    /// Density of radius r is r to the minus this.
    exponent: f32,
    /// Area of all leaves as a share of the frame.
    area: f32,
    boxes: f32,
    /// Depth of shading at edges, and of the shadow on what lies below.
    relief: f32,
    shadow: f32,
    /// Units by which a leaf of a fixed heap moves between pictures.
    play: f32,
    /// Where the leaves of a fixed heap are drawn from; a loose one lies otherwise in every picture.
    fixed: Option<u64>,
}

enum Outline {
    Disc,
    Box { half: Point, corner: f32 },
    Polygon(Polygon),
    Blob(Blob),
}

struct Leaf {
    centre: Point,
    radius: f32,
    axis: Point,
    outline: Outline,
    material: usize,
    tone: f32,
    offset: u64,
}

impl Leaves {
    /// Any heap.
    pub(super) fn random(palette: &Palette, rng: &mut impl Rng) -> Self {
        // A few large ones are plates and panels, many small ones are goods.
        let large = rng.random_bool(0.4);
        let smallest = if large { rng.random_range(8.0..30.0) } else { rng.random_range(3.0..9.0) };
        let loose = !large && rng.random_bool(0.35);
        Self {
            materials: (0..rng.random_range(3..7)).map(|_| Material::random(palette, rng)).collect(),
            sizes: (smallest, smallest * rng.random_range(1.5..9.0)),
            exponent: rng.random_range(1.5..3.2),
            area: rng.random_range(0.4..2.2),
            boxes: [0.0, 0.3, 1.0][rng.random_range(0..3)],
            relief: if rng.random_bool(0.5) { rng.random_range(0.1..0.7) } else { 0.0 },
            shadow: if rng.random_bool(0.6) { rng.random_range(0.1..0.6) } else { 0.0 },
            play: if rng.random_bool(0.5) { rng.random_range(0.0..1.5) } else { 0.0 },
            fixed: (!loose).then(|| rng.next_u64()),
        }
    }

    fn leaf(&self, rng: &mut impl Rng) -> Leaf {
        let power = 1.0 - self.exponent;
        let (low, high) = (self.sizes.0.powf(power), self.sizes.1.powf(power));
        let radius = (low + rng.random_range(0.0..1.0) * (high - low)).powf(1.0 / power);
        let square = rng.random_bool(self.boxes.into());
        let angle = match square {
            true if rng.random_bool(0.9) => 0.0,
            true => FRAC_PI_4,
            false => rng.random_range(0.0..TAU),
        };
        let reach = 0.6 * FRAME;
        let outline = match if square { 1 } else { rng.random_range(0..4) } {
            0 => Outline::Disc,
            1 => {
                let half = (0.9 * radius, radius * rng.random_range(0.3..0.9));
                Outline::Box { half, corner: rng.random_range(0.0..0.5) * half.1 }
            }
            2 => Outline::Polygon(Polygon::irregular((0.0, 0.0), radius, rng.random_range(3..8), rng)),
            _ => Outline::Blob(Blob::random((0.0, 0.0), 0.85 * radius, rng.random_range(0.4..1.0), 0.15, rng)),
        };
        Leaf {
            centre: (rng.random_range(-reach..reach), rng.random_range(-reach..reach)),
            radius,
            axis: (angle.cos(), angle.sin()),
            outline,
            material: rng.random_range(1..self.materials.len()),
            tone: rng.random_range(0.8..1.25),
            offset: rng.next_u64(),
        }
    }

    /// Draws the heap. Front to back, so that what is hidden costs next to nothing.
    pub(super) fn draw(&self, size: usize, pose: Pose, light: Point, rng: &mut impl Rng) -> Vec<Colour> {
        let mut drawn = ChaCha8Rng::seed_from_u64(self.fixed.unwrap_or_else(|| rng.next_u64()));
        let light = pose.direction(light.0, light.1);
        let pixel = FRAME / size as f32 / pose.scale;
        let mut plane = vec![[0.0; 3]; size * size];
        // How much of each pixel is still free.
        let mut free = vec![1.0f32; size * size];
        let mut area = self.area * FRAME * FRAME;
        for _ in 0..MOST {
            if area <= 0.0 {
                break;
            }
            let leaf = self.leaf(&mut drawn);
            area -= 2.0 * leaf.radius * leaf.radius;
            let mut play = || self.play * rng.random_range(-1.0..1.0f32);
            let centre = (leaf.centre.0 + play(), leaf.centre.1 + play());
            let piece = Piece::anywhere(&mut ChaCha8Rng::seed_from_u64(leaf.offset)).toned(leaf.tone);
            let shade_width = if self.shadow > 0.0 { 0.15 * leaf.radius + 1.5 } else { 0.0 };
            let rim = 0.3 * leaf.radius;
            let reach = (1.25 * leaf.radius + shade_width) * pose.scale + 1.0;
            for (i, x, y) in window(size, pose.to_frame(centre.0, centre.1), (reach, reach)) {
                if free[i] < 0.01 {
                    continue;
                }
                let (u, v) = pose.to_part(x, y);
                let (u, v) = (u - centre.0, v - centre.1);
                let (p, q) = (u * leaf.axis.0 + v * leaf.axis.1, v * leaf.axis.0 - u * leaf.axis.1);
                let distance = leaf.distance(p, q);
                let cover = (0.5 - distance / pixel).clamp(0.0, 1.0) * free[i];
                if cover > 0.0 {
                    let facing = (u * light.0 + v * light.1) / leaf.radius;
                    let edge = 1.0 + self.relief * facing * smoothstep(-rim, 0.0, distance);
                    let colour = shade(self.materials[leaf.material].at(p, q, light, &piece), edge * cover);
                    (0..3).for_each(|c| plane[i][c] += colour[c]);
                    free[i] -= cover;
                } else if distance < shade_width {
                    // A shadow is a dark veil right below the leaf.
                    free[i] *= 1.0 - self.shadow * smoothstep(shade_width, 0.0, distance);
                }
            }
        }
        let piece = Piece::fixed(&mut drawn);
        for (i, x, y) in window(size, (0.5 * FRAME, 0.5 * FRAME), (FRAME, FRAME)) {
            if free[i] > 0.01 {
                let (u, v) = pose.to_part(x, y);
                let colour = self.materials[0].at(u, v, light, &piece);
                (0..3).for_each(|c| plane[i][c] += colour[c] * free[i]);
            }
        }
        plane
    }
}

impl Leaf {
    fn distance(&self, p: f32, q: f32) -> f32 {
        match &self.outline {
            Outline::Disc => length(p, q) - self.radius,
            Outline::Box { half, corner } => rounded_box(p, q, *half, *corner),
            Outline::Polygon(polygon) => polygon.distance(p, q),
            // About as steep as a distance near the outline.
            Outline::Blob(blob) => (blob.level(p, q) - 1.0) * 0.7 * blob.radius,
        }
    }
}
