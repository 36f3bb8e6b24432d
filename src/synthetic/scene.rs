//! A part on its bed before the camera, and the camera that turns it into bytes.
//!
//! Geometry is in *units*: the frame is 256 units wide at every picture size. Reflectance is 0 to 1 per channel, in
//! display space. What a part looks like ([`Scene`]) and how it is lit and sensed ([`Camera`]) are kept apart so that a
//! defective part differs from the same good part by the defect alone: light and sensor noise are identical.

use rand::{Rng, RngExt};

use super::shapes::{Point, coverage};

/// Red, green, blue.
pub(super) type Colour = [f32; 3];

/// Width of the frame in units.
pub(super) const FRAME: f32 = 256.0;

/// Where the part lies: `frame = centre + scale * rotate(part)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pose {
    centre: Point,
    axis: Point,
    pub(super) scale: f32,
}

impl Pose {
    /// Shifted by up to `shift` units, turned by up to `angle` radians, scaled by up to `scale` (a share).
    pub(super) fn random(shift: f32, angle: f32, scale: f32, rng: &mut impl Rng) -> Pose {
        let turn: f32 = rng.random_range(-1.0..1.0) * angle;
        let centre =
            (0.5 * FRAME + rng.random_range(-1.0..1.0) * shift, 0.5 * FRAME + rng.random_range(-1.0..1.0) * shift);
        Pose { centre, axis: (turn.cos(), turn.sin()), scale: 1.0 + rng.random_range(-1.0..1.0) * scale }
    }

    /// Turned by `angle` more, and `scale` times as large.
    pub(super) fn adjusted(self, angle: f32, scale: f32) -> Pose {
        let (cos, sin) = (angle.cos(), angle.sin());
        let axis = (self.axis.0 * cos - self.axis.1 * sin, self.axis.1 * cos + self.axis.0 * sin);
        Pose { axis, scale: self.scale * scale, ..self }
    }

    /// A direction of the frame as the part sees it.
    pub(super) fn direction(self, x: f32, y: f32) -> Point {
        (x * self.axis.0 + y * self.axis.1, y * self.axis.0 - x * self.axis.1)
    }

    /// From frame units to part units, whose origin is the middle of the part.
    pub(super) fn to_part(self, x: f32, y: f32) -> Point {
        let (dx, dy) = ((x - self.centre.0) / self.scale, (y - self.centre.1) / self.scale);
        (dx * self.axis.0 + dy * self.axis.1, dy * self.axis.0 - dx * self.axis.1)
    }

    /// From part units to frame units.
    pub(super) fn to_frame(self, u: f32, v: f32) -> Point {
        (
            self.centre.0 + self.scale * (u * self.axis.0 - v * self.axis.1),
            self.centre.1 + self.scale * (v * self.axis.0 + u * self.axis.1),
        )
    }
}

/// A component that can be missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site {
    /// Its middle, in part units.
    pub(super) centre: Point,
    /// Its half sides, leads included, in part units.
    pub(super) half: Point,
}

/// A part on its bed. All planes are row-major, `size * size`.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    /// Pixels per side.
    pub(super) size: usize,
    /// Where the part lies.
    pub(super) pose: Pose,
    /// Unit vector towards the light, in the picture plane.
    pub(super) light: Point,
    /// What the camera sees.
    pub(super) surface: Vec<Colour>,
    /// What it would see with the part taken away.
    pub(super) bed: Vec<Colour>,
    /// What it would see with all components taken off, for products that have components.
    pub(super) bare: Option<Vec<Colour>>,
    /// Share of each pixel that the part covers.
    pub(super) cover: Vec<f32>,
    /// Components that can be missing.
    pub(super) sites: Vec<Site>,
}

impl Scene {
    /// Side of a pixel in units.
    pub(super) fn unit(&self) -> f32 {
        FRAME / self.size as f32
    }

    /// Index of the pixel at a place in units, clamped into the picture.
    pub(super) fn index(&self, at: Point) -> usize {
        let last = (self.size - 1) as f32;
        let (x, y) = (at.0 / self.unit(), at.1 / self.unit());
        y.clamp(0.0, last) as usize * self.size + x.clamp(0.0, last) as usize
    }

    /// How much of the place belongs to the part.
    pub(super) fn cover_at(&self, at: Point) -> f32 {
        let inside = at.0 >= 0.0 && at.1 >= 0.0 && at.0 < FRAME && at.1 < FRAME;
        if inside { self.cover[self.index(at)] } else { 0.0 }
    }
}

/// Pixels of a `size * size` picture whose middles lie within `reach` units of `centre` per axis: index and place.
pub(super) fn window(size: usize, centre: Point, reach: Point) -> impl Iterator<Item = (usize, f32, f32)> {
    let unit = FRAME / size as f32;
    let span = |middle: f32, reach: f32| {
        let low = ((middle - reach) / unit).floor().clamp(0.0, size as f32) as usize;
        let high = ((middle + reach) / unit).ceil().clamp(0.0, size as f32) as usize;
        low..high
    };
    let columns = span(centre.0, reach.0);
    span(centre.1, reach.1).flat_map(move |row| {
        let y = (row as f32 + 0.5) * unit;
        columns.clone().map(move |column| (row * size + column, (column as f32 + 0.5) * unit, y))
    })
}

/// All pixels of a `size * size` picture: index and place in units.
pub(super) fn whole(size: usize) -> impl Iterator<Item = (usize, f32, f32)> {
    window(size, (0.5 * FRAME, 0.5 * FRAME), (FRAME, FRAME))
}

/// Blends `to` over `from`.
pub(super) fn blend(from: Colour, to: Colour, alpha: f32) -> Colour {
    std::array::from_fn(|c| from[c] + (to[c] - from[c]) * alpha)
}

/// A colour with all channels multiplied.
pub(super) fn shade(colour: Colour, factor: f32) -> Colour {
    colour.map(|c| c * factor)
}

/// Draws shapes given in part units into a plane of the scene.
pub(super) struct Painter<'a> {
    /// The plane drawn into.
    pub(super) plane: &'a mut [Colour],
    /// Nothing is drawn where this is 0.
    pub(super) clip: &'a [f32],
    /// Pixels per side.
    pub(super) size: usize,
    /// Where the part lies.
    pub(super) pose: Pose,
}

impl Painter<'_> {
    /// Draws one shape: `distance` is signed, in part units relative to `centre`; `colour` gets the same coordinates and
    /// the distance. `reach` bounds the shape and `soft` (0 for sharp) widens its edge.
    pub(super) fn fill(
        &mut self,
        centre: Point,
        reach: f32,
        soft: f32,
        opacity: f32,
        distance: impl Fn(f32, f32) -> f32,
        colour: impl Fn(f32, f32, f32) -> Colour,
    ) {
        let edge = (FRAME / self.size as f32 / self.pose.scale).max(soft);
        let margin = (reach + edge) * self.pose.scale + 1.0;
        let at = self.pose.to_frame(centre.0, centre.1);
        for (i, x, y) in window(self.size, at, (margin, margin)) {
            let (u, v) = self.pose.to_part(x, y);
            let (u, v) = (u - centre.0, v - centre.1);
            let d = distance(u, v);
            let alpha = coverage(d, edge) * opacity * self.clip[i];
            if alpha > 0.0 {
                self.plane[i] = blend(self.plane[i], colour(u, v, d), alpha);
            }
        }
    }
}

/// Light and sensor of one exposure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Camera {
    /// Factor of all light.
    pub(super) gain: f32,
    /// Change of the light from the middle to the right and the lower edge, as a share.
    pub(super) slope: Point,
    /// Factor per channel.
    pub(super) cast: Colour,
    /// Loss of light in the corners, as a share.
    pub(super) vignette: f32,
    /// Standard deviation of the sensor's noise on white, of 255.
    pub(super) noise: f32,
}

impl Camera {
    /// The small differences between two exposures on one line.
    pub(super) fn random(rng: &mut impl Rng) -> Camera {
        Camera {
            gain: rng.random_range(0.93..1.07),
            slope: (rng.random_range(-0.07..0.07), rng.random_range(-0.07..0.07)),
            cast: std::array::from_fn(|_| rng.random_range(0.985..1.015)),
            vignette: rng.random_range(0.06..0.12),
            noise: rng.random_range(1.2..2.4),
        }
    }

    /// Lens and light without sensor noise: `size * size` pixels of 0 to 255.
    pub(super) fn expose(&self, plane: &[Colour], size: usize) -> Vec<Colour> {
        let mut picture = soften(plane, size);
        let step = 2.0 / size as f32;
        for (row, line) in picture.chunks_exact_mut(size).enumerate() {
            let dy = (row as f32 + 0.5) * step - 1.0;
            for (column, pixel) in line.iter_mut().enumerate() {
                let dx = (column as f32 + 0.5) * step - 1.0;
                let light = 255.0
                    * self.gain
                    * (1.0 + self.slope.0 * dx + self.slope.1 * dy)
                    * (1.0 - 0.5 * self.vignette * (dx * dx + dy * dy));
                *pixel = std::array::from_fn(|c| (light * self.cast[c] * pixel[c]).clamp(0.0, 255.0));
            }
        }
        picture
    }

    /// Adds sensor noise and rounds to bytes: `3 * size * size`, RGB.
    pub(super) fn sense(&self, picture: &[Colour], rng: &mut impl Rng) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(3 * picture.len());
        for pixel in picture {
            // Nine summed uniform numbers of 7 bits, three per channel: close enough to a Gaussian at a tenth of its price.
            let bits = rng.next_u64();
            for (c, value) in pixel.iter().enumerate() {
                let part = bits >> (21 * c);
                let sum = (part & 127) + ((part >> 7) & 127) + ((part >> 14) & 127);
                let normal = (sum as f32 - 190.5) / 64.0;
                // Photon noise grows with the light: half of it at black.
                let sigma = self.noise * (0.5 + 0.5 * (value / 255.0).sqrt());
                // The cast saturates at 0 and 255.
                bytes.push((value + sigma * normal + 0.5) as u8);
            }
        }
        bytes
    }
}

/// The blur of a lens that is a little less sharp than the sensor: 1-4-1 in both directions.
pub(super) fn soften(plane: &[Colour], size: usize) -> Vec<Colour> {
    let weigh = |a: Colour, b: Colour, c: Colour| std::array::from_fn(|i| (a[i] + 4.0 * b[i] + c[i]) / 6.0);
    let mut rows = Vec::with_capacity(plane.len());
    for line in plane.chunks_exact(size) {
        rows.extend((0..size).map(|x| weigh(line[x.max(1) - 1], line[x], line[(x + 1).min(size - 1)])));
    }
    let mut out = Vec::with_capacity(plane.len());
    for y in 0..size {
        let (above, below) = (y.max(1) - 1, (y + 1).min(size - 1));
        out.extend((0..size).map(|x| weigh(rows[above * size + x], rows[y * size + x], rows[below * size + x])));
    }
    out
}
