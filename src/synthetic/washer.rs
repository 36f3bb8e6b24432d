//! A turned steel washer with concentric brushing on a dark rubber mat.

use std::f32::consts::TAU;

use rand::{Rng, RngExt};

use super::noise::Noise;
use super::scene::{Colour, FRAME, Pose, Scene, blend, shade, whole};
use super::shapes::{coverage, length, smoothstep};

const OUTER: f32 = 98.0;
const INNER: f32 = 43.0;
const BEVEL: f32 = 4.0;
/// Lattice cells of the brushing around the full circle; few, so that streaks run long.
const AROUND: i32 = 9;

/// One washer.
pub(super) fn scene(size: usize, rng: &mut impl Rng) -> Scene {
    let pose = Pose::random(8.0, TAU, 0.03, rng);
    let angle: f32 = -2.2 + rng.random_range(-0.25..0.25);
    let light = (angle.cos(), angle.sin());
    let brushing = Noise::new(rng.next_u32());
    let mat = Noise::new(rng.next_u32());
    let depth = rng.random_range(0.75..1.2);
    let steel: Colour = {
        let tone = rng.random_range(0.52..0.57);
        let warmth = rng.random_range(-0.008..0.012);
        [tone + warmth, tone, tone - warmth]
    };
    let middle = pose.to_frame(0.0, 0.0);
    let edge = FRAME / size as f32 / pose.scale;
    let pixels = size * size;
    let (mut surface, mut bed, mut cover) =
        (Vec::with_capacity(pixels), Vec::with_capacity(pixels), Vec::with_capacity(pixels));
    for (_, x, y) in whole(size) {
        let (u, v) = pose.to_part(x, y);
        let radius = length(u, v).max(1e-3);
        let inside = coverage((radius - OUTER).max(INNER - radius), edge);

        let (su, sv) = pose.to_part(x + 5.0 * light.0, y + 5.0 * light.1);
        let shadow_radius = length(su, sv);
        let shadow = 0.55 * smoothstep(6.0, -5.0, (shadow_radius - OUTER).max(INNER - shadow_radius));
        let grain = 0.035 * mat.value(0.5 * x, 0.5 * y) + 0.02 * mat.value(0.07 * x, 0.07 * y);
        let ground = shade([0.165 + grain, 0.17 + grain, 0.18 + grain], 1.0 - shadow);
        bed.push(ground);
        cover.push(inside);
        if inside <= 0.0 {
            surface.push(ground);
            continue;
        }

        let turn = v.atan2(u) / TAU + 0.5;
        let streak = |across: f32, along: i32| brushing.value_around(turn * along as f32, radius * across, along);
        let brushed = 0.028 * streak(0.9, AROUND) + 0.022 * streak(0.33, 2 * AROUND) + 0.018 * streak(2.3, 3 * AROUND);
        // Light direction relative to the radius, in the frame: concentric grooves shine in two opposite fans.
        let (fx, fy) = (x - middle.0, y - middle.1);
        let facing = (fx * light.0 + fy * light.1) / length(fx, fy).max(1e-3);
        let fan = facing * facing;
        let mut tone = 0.86 + 0.34 * fan * fan + depth * brushed * (1.5 + 1.4 * fan);
        // Bevels look towards or away from the light; the flat top meets them in a fine bright line.
        let (outer, inner) = (OUTER - radius, radius - INNER);
        let bevel = smoothstep(BEVEL, 0.0, outer) * facing - smoothstep(BEVEL, 0.0, inner) * facing;
        tone += 0.30 * bevel;
        tone += 0.10 * (smoothstep(1.2, 0.0, (outer - BEVEL).abs()) + smoothstep(1.2, 0.0, (inner - BEVEL).abs()));
        surface.push(blend(ground, shade(steel, tone), inside));
    }
    Scene { size, pose, light, surface, bed, bare: None, cover, sites: Vec::new() }
}
