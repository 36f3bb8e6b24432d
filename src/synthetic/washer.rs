//! A washer: circularly brushed metal with bevelled edges on a dark belt.

use rand::{Rng, RngExt};

use super::Scene;
use super::canvas::{Canvas, mix, smooth_step};
use super::noise::Noise;

pub(super) fn paint(size: usize, rng: &mut impl Rng) -> Scene {
    let centre = (0.5 + rng.random_range(-0.025..0.025f32), 0.5 + rng.random_range(-0.025..0.025f32));
    let outer = 0.37 * rng.random_range(0.985..1.015f32);
    let inner = 0.165 * rng.random_range(0.985..1.015f32);
    let lamp = rng.random_range(-0.35..0.35f32);
    let (brush, belt) = (Noise::new(rng.random()), Noise::new(rng.random()));
    let edge = 1.0 / size as f32;
    let behind = [0.11, 0.115, 0.12];
    let mut part = Vec::with_capacity(size * size);
    let canvas = Canvas::paint(size, |x, y| {
        let (dx, dy) = (x - centre.0, y - centre.1);
        let radius = dx.hypot(dy);
        let angle = dy.atan2(dx);
        part.push(radius < outer && radius > inner);
        let weave = belt.fractal(x * 40.0, y * 40.0, 3);
        // The shadow falls below and to the right.
        let shadow = smooth_step(outer + 0.05, outer - 0.02, (dx - 0.012).hypot(dy - 0.016));
        let ground = behind.map(|v| (v + 0.05 * (weave - 0.5)) * (1.0 - 0.55 * shadow));
        // Fine grooves run around the centre: they change fast with the radius and slowly with the angle.
        let groove = brush.fractal(radius * 260.0, angle * 1.6 + 20.0, 2) - 0.5;
        let sheen = (2.0 * (angle - lamp)).cos().abs().powi(3);
        let bevel = smooth_step(outer - 0.02, outer, radius) + smooth_step(inner + 0.018, inner, radius);
        let facing = (angle - lamp + std::f32::consts::FRAC_PI_4).cos();
        let level = 0.52 + 0.16 * sheen + 0.13 * groove + 0.16 * bevel * facing;
        let metal = [level * 0.99, level, level * 1.02];
        let cover = smooth_step(outer + edge, outer - edge, radius) * smooth_step(inner - edge, inner + edge, radius);
        mix(ground, metal, cover)
    });
    Scene { canvas, part, behind }
}
