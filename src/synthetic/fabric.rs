//! Plain-woven cloth in two colours, filling the frame.

use rand::{Rng, RngExt};

use super::noise::{Noise, floor};
use super::scene::{Colour, Pose, Scene, blend, shade, whole};

/// Distance between threads in units.
const PITCH: f32 = 8.0;

/// One piece of cloth.
pub(super) fn scene(size: usize, rng: &mut impl Rng) -> Scene {
    let pose = Pose::random(2.0 * PITCH, 0.06, 0.03, rng);
    let angle: f32 = -2.0 + rng.random_range(-0.25..0.25);
    let light = (angle.cos(), angle.sin());
    let (sway, yarn, fluff) = (Noise::new(rng.next_u32()), Noise::new(rng.next_u32()), Noise::new(rng.next_u32()));
    let tone = rng.random_range(0.95..1.05);
    let warp: Colour = shade([0.26, 0.36, 0.55], tone);
    let weft: Colour = shade([0.66, 0.70, 0.74], tone);
    let pixels = size * size;
    let (mut surface, mut bed) = (Vec::with_capacity(pixels), Vec::with_capacity(pixels));
    for (_, x, y) in whole(size) {
        let (u, v) = pose.to_part(x, y);
        // Threads are never quite straight.
        let u = u / PITCH + 0.16 * sway.value(0.012 * u, 0.02 * v);
        let v = v / PITCH + 0.16 * sway.value(0.02 * u + 40.0, 0.25 * v);
        let (column, row) = (floor(u), floor(v));
        let (cu, cv) = (u - column as f32 - 0.5, v - row as f32 - 0.5);
        let warp_on_top = (column + row).rem_euclid(2) == 0;
        let (across, along, thread, colour) =
            if warp_on_top { (cu, cv, column, warp) } else { (cv, cu, row + 7919, weft) };
        // A thread is round across and dives under its neighbour at both ends.
        let round = (1.0 - 3.2 * across * across).max(0.0);
        let dive = 1.0 - 2.4 * along * along;
        let lean = if warp_on_top { light.0 } else { light.1 } * across * 0.35;
        let twist = 0.07 * yarn.value(9.0 * across + 6.0 * along, 3.0 * thread as f32 + 2.0 * along);
        let uneven = 0.07 * (yarn.cell(thread, 0) - 0.5) + 0.05 * fluff.value(0.8 * u + 91.0, 0.8 * v);
        let tone = 0.30 + 0.72 * round * dive + lean + twist + uneven;
        let hole = (0.25 - round * dive).max(0.0) * 1.6;
        surface.push(blend(shade(colour, tone), [0.10, 0.11, 0.14], hole.min(0.6)));
        let ground = 0.065 + 0.02 * fluff.cell((0.7 * x) as i32, (0.7 * y) as i32);
        bed.push([ground, ground, ground * 1.05]);
    }
    Scene { size, pose, light, surface, bed, bare: None, cover: vec![1.0; pixels], sites: Vec::new() }
}
