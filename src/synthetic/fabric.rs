//! Plain-woven fabric: warp and weft threads that pass over and under each other.

use std::f32::consts::PI;

use rand::{Rng, RngExt};

use super::Scene;
use super::canvas::Canvas;
use super::noise::Noise;

pub(super) fn paint(size: usize, rng: &mut impl Rng) -> Scene {
    let threads = 26.0 * rng.random_range(0.98..1.02f32);
    let turn = rng.random_range(-0.03..0.03f32);
    let (sin, cos) = turn.sin_cos();
    let phase = (rng.random::<f32>(), rng.random::<f32>());
    let (bend, hair, dye) = (Noise::new(rng.random()), Noise::new(rng.random()), Noise::new(rng.random()));
    let base = [0.36, 0.43, 0.53].map(|v: f32| v * rng.random_range(0.98..1.02f32));
    let canvas = Canvas::paint(size, |x, y| {
        let wave = (bend.at(x * 3.0, y * 3.0) - 0.5) * 0.35;
        let u = (x * cos - y * sin) * threads + phase.0 + wave;
        let v = (x * sin + y * cos) * threads + phase.1 + wave;
        let over = (u.floor() as i32 + v.floor() as i32).rem_euclid(2) == 0;
        let (across, along) = if over { (u.fract(), v.fract()) } else { (v.fract(), u.fract()) };
        let (across, along) = (across.rem_euclid(1.0), along.rem_euclid(1.0));
        // A thread is round across, and rises in the middle of its float.
        let round = (PI * across).sin().max(0.0).sqrt();
        let rise = 0.65 + 0.35 * (PI * along).sin();
        let fibre = hair.fractal(u * 9.0, v * 9.0, 2) - 0.5;
        let tone = if over { 1.06 } else { 0.9 };
        let level =
            (0.45 + 0.55 * round * rise) * tone * (1.0 + 0.16 * fibre) * (0.95 + 0.1 * dye.at(x * 5.0, y * 5.0));
        base.map(|c| c * level * 1.35)
    });
    Scene { canvas, part: vec![true; size * size], behind: [0.06, 0.06, 0.07] }
}
