//! A printed circuit board: solder mask, traces, pads, chips and passives at fixed places.

use rand::{Rng, RngExt};

use super::Scene;
use super::canvas::{Canvas, mix, segment_distance, smooth_step};
use super::noise::Noise;

/// Chips: centre, half sides, pins per long side.
const CHIPS: [((f32, f32), (f32, f32), usize); 3] =
    [((0.34, 0.34), (0.105, 0.075), 7), ((0.70, 0.30), (0.06, 0.06), 4), ((0.66, 0.70), (0.085, 0.06), 6)];

/// Passives: centre and half sides; longer side decides where the caps are.
const PASSIVES: [((f32, f32), (f32, f32)); 6] = [
    ((0.18, 0.60), (0.028, 0.014)),
    ((0.18, 0.67), (0.028, 0.014)),
    ((0.18, 0.74), (0.028, 0.014)),
    ((0.40, 0.72), (0.014, 0.028)),
    ((0.46, 0.72), (0.014, 0.028)),
    ((0.86, 0.50), (0.014, 0.030)),
];

/// Traces: segments of copper under the mask.
const TRACES: [((f32, f32), (f32, f32)); 14] = [
    ((0.10, 0.20), (0.23, 0.20)),
    ((0.23, 0.20), (0.28, 0.26)),
    ((0.45, 0.30), (0.64, 0.27)),
    ((0.45, 0.36), (0.64, 0.33)),
    ((0.10, 0.14), (0.90, 0.14)),
    ((0.34, 0.42), (0.34, 0.55)),
    ((0.34, 0.55), (0.20, 0.60)),
    ((0.38, 0.42), (0.38, 0.60)),
    ((0.38, 0.60), (0.40, 0.69)),
    ((0.70, 0.36), (0.70, 0.52)),
    ((0.70, 0.52), (0.62, 0.63)),
    ((0.76, 0.34), (0.86, 0.46)),
    ((0.86, 0.54), (0.75, 0.66)),
    ((0.10, 0.86), (0.90, 0.86)),
];

/// Holes with an annular ring.
const VIAS: [(f32, f32); 9] = [
    (0.10, 0.20),
    (0.90, 0.14),
    (0.10, 0.14),
    (0.52, 0.50),
    (0.56, 0.56),
    (0.10, 0.86),
    (0.90, 0.86),
    (0.28, 0.80),
    (0.84, 0.80),
];

fn box_distance(p: (f32, f32), centre: (f32, f32), half: (f32, f32)) -> f32 {
    let (dx, dy) = ((p.0 - centre.0).abs() - half.0, (p.1 - centre.1).abs() - half.1);
    dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0)
}

pub(super) fn paint(size: usize, rng: &mut impl Rng) -> Scene {
    let (sin, cos) = rng.random_range(-0.02..0.02f32).sin_cos();
    let shift = (rng.random_range(-0.012..0.012f32), rng.random_range(-0.012..0.012f32));
    let (grain, glass) = (Noise::new(rng.random()), Noise::new(rng.random()));
    let solder = rng.random_range(0.68..0.78f32);
    let edge = 0.9 / size as f32;
    let cover = |distance: f32| smooth_step(edge, -edge, distance);
    let behind = [0.62, 0.62, 0.60];
    let mut part = Vec::with_capacity(size * size);
    let canvas = Canvas::paint(size, |x, y| {
        let (dx, dy) = (x - 0.5 - shift.0, y - 0.5 - shift.1);
        let p = (0.5 + dx * cos - dy * sin, 0.5 + dx * sin + dy * cos);
        let outline = box_distance(p, (0.5, 0.5), (0.455, 0.455)) - 0.012;
        part.push(outline < 0.0);
        let speckle = grain.fractal(x * 90.0, y * 90.0, 2) - 0.5;
        let laminate = glass.at(p.0 * 55.0, p.1 * 8.0) - 0.5;
        let mask = [0.05, 0.30, 0.16].map(|c: f32| c * (1.0 + 0.10 * speckle + 0.07 * laminate));
        let mut colour = mask;
        let trace = TRACES.iter().map(|(a, b)| segment_distance(p, *a, *b)).fold(f32::MAX, f32::min) - 0.006;
        colour = mix(colour, [0.11, 0.42, 0.23], cover(trace));
        let tin = |level: f32| [level, level * 0.98, level * 0.93];
        for via in VIAS {
            let radius = (p.0 - via.0).hypot(p.1 - via.1);
            if radius < 0.03 {
                colour = mix(colour, tin(solder + 0.08 * speckle), cover(radius - 0.017));
                colour = mix(colour, [0.03, 0.03, 0.03], cover(radius - 0.008));
            }
        }
        for (centre, half, pins) in CHIPS {
            if box_distance(p, centre, half) > 0.06 {
                continue;
            }
            for pin in 0..pins {
                let along = centre.0 - half.0 + (pin as f32 + 0.5) * 2.0 * half.0 / pins as f32;
                for side in [-1.0, 1.0] {
                    let pad = box_distance(p, (along, centre.1 + side * (half.1 + 0.012)), (0.007, 0.018));
                    colour = mix(colour, tin(solder + 0.1 * speckle), cover(pad));
                }
            }
            let body = box_distance(p, centre, half);
            let dot = (p.0 - centre.0 + half.0 - 0.018).hypot(p.1 - centre.1 - half.1 + 0.018) - 0.007;
            let plastic = [0.085, 0.085, 0.095].map(|c: f32| c * (1.0 + 0.25 * speckle));
            colour = mix(colour, plastic, cover(body));
            colour = mix(colour, [0.20, 0.20, 0.20], cover(dot));
            let line = box_distance(p, (centre.0 + 0.01, centre.1), (half.0 * 0.5, 0.006));
            colour = mix(colour, [0.33, 0.33, 0.33], cover(line));
        }
        for (centre, half) in PASSIVES {
            let body = box_distance(p, centre, half);
            if body > 0.02 {
                continue;
            }
            let across =
                if half.0 > half.1 { (p.0 - centre.0).abs() / half.0 } else { (p.1 - centre.1).abs() / half.1 };
            let cap = smooth_step(0.52, 0.62, across);
            let ceramic = [0.50, 0.39, 0.27].map(|c: f32| c * (1.0 + 0.1 * speckle));
            colour = mix(colour, mix(ceramic, tin(solder), cap), cover(body));
        }
        let table = behind.map(|c: f32| c * (1.0 + 0.06 * speckle));
        mix(table, colour, cover(outline))
    });
    Scene { canvas, part, behind }
}
