//! Procedural textures: what a synthetic defect is filled with.

use rand::{Rng, RngExt};

use super::super::noise::Noise;

/// A texture as a function of the pixel's position; colours in 0 to 255.
pub(in crate::synthetic) enum Texture {
    /// Clouds between two colours.
    Clouds { noise: Noise, scale: f32, from: [f32; 3], to: [f32; 3] },
    /// Stripes of two colours, bent by noise.
    Stripes { noise: Noise, scale: f32, direction: (f32, f32), from: [f32; 3], to: [f32; 3] },
    /// Cells of random grey, tinted.
    Cells { noise: Noise, scale: f32, tint: [f32; 3] },
    /// Fine grain around a colour.
    Grain { noise: Noise, colour: [f32; 3], depth: f32 },
}

fn colour(rng: &mut impl Rng) -> [f32; 3] {
    // Grey as often as a colour: many products have none.
    if rng.random_bool(0.5) { [rng.random_range(0.0..255.0); 3] } else { [0; 3].map(|_| rng.random_range(0.0..255.0)) }
}

impl Texture {
    pub(in crate::synthetic) fn random(rng: &mut impl Rng) -> Self {
        let noise = Noise::new(rng.next_u32());
        let scale = (2.0f32).powf(rng.random_range(-6.0..-1.5));
        match rng.random_range(0..4) {
            0 => Texture::Clouds { noise, scale, from: colour(rng), to: colour(rng) },
            1 => {
                let angle: f32 = rng.random_range(0.0..std::f32::consts::PI);
                Texture::Stripes { noise, scale, direction: angle.sin_cos(), from: colour(rng), to: colour(rng) }
            }
            2 => Texture::Cells { noise, scale, tint: colour(rng) },
            _ => Texture::Grain { noise, colour: colour(rng), depth: rng.random_range(10.0..70.0) },
        }
    }

    pub(in crate::synthetic) fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let blend = |from: &[f32; 3], to: &[f32; 3], t: f32| std::array::from_fn(|c| from[c] + (to[c] - from[c]) * t);
        match self {
            Texture::Clouds { noise, scale, from, to } => {
                blend(from, to, 0.5 + 0.8 * noise.fractal(x * scale, y * scale, 3))
            }
            Texture::Stripes { noise, scale, direction, from, to } => {
                let bend = noise.value(x * scale * 0.3, y * scale * 0.3) * 1.5;
                let phase = (x * direction.0 + y * direction.1) * scale * 6.0 + bend;
                blend(from, to, 0.5 + 0.5 * phase.sin())
            }
            Texture::Cells { noise, scale, tint } => {
                let level = noise.cell((x * scale) as i32, (y * scale) as i32);
                tint.map(|c| c * (0.3 + 1.0 * level))
            }
            Texture::Grain { noise, colour, depth } => {
                let grain = 0.5 * noise.value(x * 0.9, y * 0.9);
                colour.map(|c| c + depth * grain)
            }
        }
    }
}
