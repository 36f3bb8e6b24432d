//! Value noise: random values on a lattice, blended smoothly between.

/// A field of noise; the same seed gives the same field.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    seed: u32,
}

impl Noise {
    /// The field of a seed.
    pub fn new(seed: u32) -> Self {
        Self { seed }
    }

    /// The value at a lattice point, 0 to 1.
    fn corner(self, x: i32, y: i32) -> f32 {
        let mut h = (x as u32).wrapping_mul(0x85EB_CA6B) ^ (y as u32).wrapping_mul(0xC2B2_AE35) ^ self.seed;
        h ^= h >> 15;
        h = h.wrapping_mul(0x2C1B_3C6D);
        h ^= h >> 12;
        h = h.wrapping_mul(0x297A_2D39);
        h ^= h >> 15;
        (h >> 8) as f32 / (1u32 << 24) as f32
    }

    /// One octave at `(x, y)`, 0 to 1, with features of size 1.
    pub fn at(self, x: f32, y: f32) -> f32 {
        let (column, row) = (x.floor(), y.floor());
        let ease = |t: f32| t * t * (3.0 - 2.0 * t);
        let (tx, ty) = (ease(x - column), ease(y - row));
        let (c, r) = (column as i32, row as i32);
        let top = self.corner(c, r) + (self.corner(c + 1, r) - self.corner(c, r)) * tx;
        let bottom = self.corner(c, r + 1) + (self.corner(c + 1, r + 1) - self.corner(c, r + 1)) * tx;
        top + (bottom - top) * ty
    }

    /// `octaves` octaves, each half as large and half as strong, 0 to 1.
    pub fn fractal(self, x: f32, y: f32, octaves: u32) -> f32 {
        let (mut sum, mut total, mut weight, mut scale) = (0.0, 0.0, 1.0, 1.0);
        for octave in 0..octaves {
            let field = Noise { seed: self.seed.wrapping_add(octave.wrapping_mul(0x9E37_79B9)) };
            sum += weight * field.at(x * scale, y * scale);
            total += weight;
            weight *= 0.5;
            scale *= 2.0;
        }
        sum / total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_bounded_smooth_and_spread() {
        let noise = Noise::new(9);
        let values: Vec<f32> = (0..4000).map(|i| noise.fractal(i as f32 * 0.01, 3.7, 3)).collect();
        assert!(values.iter().all(|v| (0.0..=1.0).contains(v)));
        assert!(values.windows(2).all(|pair| (pair[0] - pair[1]).abs() < 0.08));
        let spread = values.iter().copied().fold(0.0, f32::max) - values.iter().copied().fold(1.0, f32::min);
        assert!(spread > 0.4, "{spread}");
    }
}
