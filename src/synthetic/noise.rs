//! Seeded value and gradient noise: sampled at points (product textures) or over a grid (synthetic corruptions).

/// A seeded noise function over the plane. The same seed gives the same plane on every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    seed: u32,
}

impl Noise {
    /// Noise of one seed.
    pub fn new(seed: u32) -> Noise {
        Noise { seed }
    }

    /// A random number in [0, 1) for a lattice cell.
    pub fn cell(self, ix: i32, iy: i32) -> f32 {
        (self.hash(ix, iy) >> 8) as f32 / 16_777_216.0
    }

    /// Smooth value noise in [-1, 1] with features about one unit wide.
    pub fn value(self, x: f32, y: f32) -> f32 {
        self.interpolate(x, y, |ix| ix)
    }

    /// Value noise that repeats every `period` units along x, for textures around a circle.
    pub fn value_around(self, x: f32, y: f32, period: i32) -> f32 {
        self.interpolate(x, y, |ix| ix.rem_euclid(period))
    }

    /// Sum of `octaves` of value noise, each at twice the frequency and half the height of the last, in about [-1, 1].
    pub fn fractal(self, x: f32, y: f32, octaves: u32) -> f32 {
        self.spectrum(x, y, octaves, 0.5)
    }

    /// As [`Self::fractal`], each octave `roughness` (0 to 1) as high as the last.
    pub fn spectrum(self, x: f32, y: f32, octaves: u32, roughness: f32) -> f32 {
        let (mut sum, mut height, mut total, mut scale) = (0.0, 1.0, 0.0, 1.0);
        for octave in 0..octaves {
            let layer = Noise::new(self.seed.wrapping_add(octave.wrapping_mul(0x9e37_79b9)));
            sum += height * layer.value(x * scale, y * scale);
            total += height;
            height *= roughness;
            scale *= 2.0;
        }
        sum / total
    }

    fn hash(self, ix: i32, iy: i32) -> u32 {
        let mut h = (ix as u32).wrapping_mul(0x8da6_b343) ^ (iy as u32).wrapping_mul(0xd816_3841) ^ self.seed;
        h = (h ^ (h >> 16)).wrapping_mul(0x7feb_352d);
        h = (h ^ (h >> 15)).wrapping_mul(0x846c_a68b);
        h ^ (h >> 16)
    }

    fn interpolate(self, x: f32, y: f32, wrap: impl Fn(i32) -> i32) -> f32 {
        let (ix, iy) = (floor(x), floor(y));
        let (fx, fy) = (fade(x - ix as f32), fade(y - iy as f32));
        let (left, right) = (wrap(ix), wrap(ix + 1));
        let top = mix(self.cell(left, iy), self.cell(right, iy), fx);
        let bottom = mix(self.cell(left, iy + 1), self.cell(right, iy + 1), fx);
        2.0 * mix(top, bottom, fy) - 1.0
    }
}

/// Perlin gradient noise over a grid: `height * width` values, row-major, in about [-1, 1], with features `cell_x` by
/// `cell_y` pixels wide (both above 0). The gradients are drawn once per lattice point, which makes a whole picture cheap.
pub fn perlin_field(width: usize, height: usize, cell_x: f32, cell_y: f32, seed: u32) -> Vec<f32> {
    let columns = (width as f32 / cell_x) as usize + 2;
    let rows = (height as f32 / cell_y) as usize + 2;
    let noise = Noise::new(seed);
    let gradients: Vec<(f32, f32)> = (0..rows * columns)
        .map(|i| {
            let angle = std::f32::consts::TAU * noise.cell((i % columns) as i32, (i / columns) as i32);
            (angle.cos(), angle.sin())
        })
        .collect();
    let mut field = Vec::with_capacity(width * height);
    for y in 0..height {
        let v = y as f32 / cell_y;
        let row = v as usize;
        let dy = v - row as f32;
        let fy = fade(dy);
        for x in 0..width {
            let u = x as f32 / cell_x;
            let column = u as usize;
            let dx = u - column as f32;
            let at = row * columns + column;
            let slope = |i: usize, dx: f32, dy: f32| gradients[i].0 * dx + gradients[i].1 * dy;
            let fx = fade(dx);
            let top = mix(slope(at, dx, dy), slope(at + 1, dx - 1.0, dy), fx);
            let bottom = mix(slope(at + columns, dx, dy - 1.0), slope(at + columns + 1, dx - 1.0, dy - 1.0), fx);
            field.push(1.414 * mix(top, bottom, fy));
        }
    }
    field
}

/// Without SSE 4.1, which x86-64 does not promise, `f32::floor` is a function call: this is the hottest line of the module.
pub(super) fn floor(x: f32) -> i32 {
    let towards_zero = x as i32;
    towards_zero - i32::from(x < towards_zero as f32)
}

fn fade(t: f32) -> f32 {
    t * t * t * (t * (t * 6.0 - 15.0) + 10.0)
}

fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_noise_is_bounded_smooth_and_seeded() {
        let noise = Noise::new(7);
        let mut largest_step: f32 = 0.0;
        for i in 0..4000 {
            let x = i as f32 * 0.01 - 20.0;
            let here = noise.value(x, 3.3);
            assert!((-1.0..=1.0).contains(&here));
            largest_step = largest_step.max((noise.value(x + 0.01, 3.3) - here).abs());
        }
        assert!(largest_step < 0.05, "value noise jumps by {largest_step}");
        assert_ne!(noise.value(0.5, 0.5), Noise::new(8).value(0.5, 0.5));
        assert_eq!(noise.value(0.5, 0.5), Noise::new(7).value(0.5, 0.5));
    }

    #[test]
    fn noise_around_a_circle_has_no_seam() {
        let noise = Noise::new(3);
        for i in 0..50 {
            let y = i as f32 * 0.37;
            assert!((noise.value_around(0.0, y, 12) - noise.value_around(12.0, y, 12)).abs() < 1e-6);
        }
    }

    #[test]
    fn perlin_is_zero_at_lattice_points_and_varies_between() {
        let field = perlin_field(64, 48, 16.0, 8.0, 1);
        assert_eq!(field.len(), 64 * 48);
        assert_eq!(field[8 * 64 + 16], 0.0);
        let (low, high) = field.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        assert!(low < -0.2 && high > 0.2 && low > -1.5 && high < 1.5, "{low} to {high}");
    }
}
