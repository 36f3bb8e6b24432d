//! A square floating-point picture, and how a sensor would see it.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

/// `size * size` colours in 0 to 1, row-major. Coordinates are normalised: 0 to 1 across the frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Canvas {
    /// Pixels per side.
    pub size: usize,
    /// Colours.
    pub pixels: Vec<[f32; 3]>,
}

impl Canvas {
    /// Paints every pixel by the position of its centre.
    pub fn paint(size: usize, mut colour: impl FnMut(f32, f32) -> [f32; 3]) -> Self {
        let step = 1.0 / size as f32;
        let at = |i: usize| (i as f32 + 0.5) * step;
        let pixels = (0..size * size).map(|i| colour(at(i % size), at(i / size))).collect();
        Self { size, pixels }
    }

    /// Changes every pixel by the position of its centre.
    pub fn map(&mut self, mut change: impl FnMut(f32, f32, [f32; 3]) -> [f32; 3]) {
        let (size, step) = (self.size, 1.0 / self.size as f32);
        for (i, pixel) in self.pixels.iter_mut().enumerate() {
            *pixel = change(((i % size) as f32 + 0.5) * step, ((i / size) as f32 + 0.5) * step, *pixel);
        }
    }

    /// The pixel nearest to a position, clamped to the frame.
    pub fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let last = self.size as isize - 1;
        let index = |v: f32| ((v * self.size as f32) as isize).clamp(0, last) as usize;
        self.pixels[index(y) * self.size + index(x)]
    }

    /// 255 where a channel differs from `before` by more than `threshold`.
    pub fn changed(&self, before: &Canvas, threshold: f32) -> Vec<u8> {
        let differs = |(a, b): (&[f32; 3], &[f32; 3])| (0..3).any(|c| (a[c] - b[c]).abs() > threshold);
        self.pixels.iter().zip(&before.pixels).map(|pair| if differs(pair) { 255 } else { 0 }).collect()
    }

    /// Bytes as a sensor with Gaussian noise of standard deviation `noise` gives them.
    pub fn expose(&self, noise: f32, rng: &mut impl Rng) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.pixels.len() * 3);
        for pixel in &self.pixels {
            for value in pixel {
                let grain: f32 = StandardNormal.sample(rng);
                bytes.push(((value + grain * noise) * 255.0).round().clamp(0.0, 255.0) as u8);
            }
        }
        bytes
    }
}

/// `a` at 0, `b` at 1.
pub fn mix(a: [f32; 3], b: [f32; 3], t: f32) -> [f32; 3] {
    std::array::from_fn(|c| a[c] + (b[c] - a[c]) * t)
}

/// 0 below `low`, 1 above `high`, smooth between: an anti-aliased edge.
pub fn smooth_step(low: f32, high: f32, value: f32) -> f32 {
    let t = ((value - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Distance of a point from a segment.
pub fn segment_distance(p: (f32, f32), a: (f32, f32), b: (f32, f32)) -> f32 {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let t = (((p.0 - a.0) * dx + (p.1 - a.1) * dy) / (dx * dx + dy * dy).max(1e-12)).clamp(0.0, 1.0);
    (p.0 - a.0 - t * dx).hypot(p.1 - a.1 - t * dy)
}
