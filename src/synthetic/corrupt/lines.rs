//! Corruptions that are thin or small: scratches, cracks, threads, specks.

use std::f32::consts::TAU;

use rand::{Rng, RngExt};

use super::super::shapes::{Path, Point, coverage, length, smoothstep};
use super::{Canvas, mix};

fn window(path: &Path, margin: f32) -> (Point, Point) {
    let (low, high) = path.bounds();
    let centre = (0.5 * (low.0 + high.0), 0.5 * (low.1 + high.1));
    (centre, (0.5 * (high.0 - low.0) + margin, 0.5 * (high.1 - low.1) + margin))
}

/// Length of a line in pixels: up to half the picture, short ones more often.
fn extent(canvas: &Canvas, rng: &mut impl Rng) -> f32 {
    let (low, high) = (7.0, (0.5 * canvas.side()).max(9.0));
    low * (high / low).powf(rng.random_range(0.0..1.0))
}

/// A level that differs from the pixels under it by `by`, away from the end of the range that is too near.
fn contrast(colour: [f32; 3], by: f32) -> f32 {
    let level = (colour[0] + colour[1] + colour[2]) / 3.0;
    if level + by > 285.0 || level + by < -30.0 { -by } else { by }
}

pub(super) fn scratch(canvas: &mut Canvas, centre: Point, rng: &mut impl Rng) {
    let reach = extent(canvas, rng);
    let sign = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
    let count = if rng.random_bool(0.8) { 1 } else { rng.random_range(2..5) };
    let angle = rng.random_range(0.0..TAU);
    for _ in 0..count {
        // Further scratches of a scuff run side by side.
        let drift = if count == 1 { 0.0 } else { 4.0 };
        let at = (centre.0 + drift * rng.random_range(-1.0..1.0f32), centre.1 + drift * rng.random_range(-1.0..1.0f32));
        let path = Path::walk(at, angle + rng.random_range(-0.1..0.1f32), reach, 10, 0.1, rng).centred(at);
        let width = rng.random_range(0.4..1.8f32);
        let depth = sign * rng.random_range(16.0..110.0f32);
        let lip = rng.random_range(0.0..0.4f32) * depth;
        let (middle, half) = window(&path, 3.0 * width + 2.0);
        canvas.paint(middle, half, |x, y, colour| {
            let near = path.nearest(x, y);
            let taper = smoothstep(0.0, 0.15, near.along) * smoothstep(1.0, 0.75, near.along);
            let core = coverage(near.distance - width * (0.3 + 0.7 * taper), 1.2);
            let side = smoothstep(2.5 * width + 0.5, width, near.distance) * (1.0 - core) * near.side;
            let by = contrast(colour, depth);
            colour.map(|c| c + by * core - lip * side * taper)
        });
    }
}

pub(super) fn crack(canvas: &mut Canvas, centre: Point, rng: &mut impl Rng) {
    let reach = extent(canvas, rng);
    let trunk = Path::jagged(centre, rng.random_range(0.0..TAU), reach, 9, rng).centred(centre);
    let width = rng.random_range(0.4..1.5f32);
    let opacity = rng.random_range(0.35..1.0f32);
    let deep = rng.random_range(0.0..40.0f32);
    let mut paths = vec![(trunk, width)];
    for _ in 0..rng.random_range(0..4) {
        let (parent, _) = &paths[rng.random_range(0..paths.len())];
        let knot = rng.random_range(1..parent.points.len() - 1);
        let (a, b) = (parent.points[knot], parent.points[knot + 1]);
        let heading = (b.1 - a.1).atan2(b.0 - a.0) + if rng.random_bool(0.5) { 0.8 } else { -0.8 };
        let branch = Path::jagged(a, heading, reach * rng.random_range(0.15..0.45), 5, rng);
        paths.push((branch, 0.75 * width));
    }
    for (path, width) in paths {
        let (middle, half) = window(&path, width + 2.0);
        canvas.paint(middle, half, |x, y, colour| {
            let near = path.nearest(x, y);
            let gap = coverage(near.distance - width * (1.0 - 0.6 * near.along), 1.2);
            // A crack in something black is seen by its bright flanks.
            let floor = if colour.iter().sum::<f32>() < 90.0 { 90.0 } else { deep };
            mix(colour, [floor; 3], gap * opacity)
        });
    }
}

pub(super) fn fibre(canvas: &mut Canvas, centre: Point, rng: &mut impl Rng) {
    let reach = 1.4 * extent(canvas, rng).max(10.0);
    let path = Path::walk(centre, rng.random_range(0.0..TAU), reach, 18, 0.3, rng).centred(centre);
    let width = rng.random_range(0.5..1.5f32);
    let yarn: [f32; 3] = if rng.random_bool(0.5) {
        [rng.random_range(0.0..255.0); 3]
    } else {
        std::array::from_fn(|_| rng.random_range(0.0..255.0))
    };
    let light: f32 = rng.random_range(0.0..TAU);
    let offset = (2.0 * light.cos(), 2.0 * light.sin());
    let depth = rng.random_range(0.0..0.4f32);
    let (middle, half) = window(&path, 6.0);
    canvas.paint(middle, half, |x, y, colour| {
        let shadow = smoothstep(3.0 + width, 0.0, path.nearest(x + offset.0, y + offset.1).distance);
        let near = path.nearest(x, y);
        let body = coverage(near.distance - width, 1.2);
        let gleam = 18.0 * near.side * smoothstep(width, 0.0, (near.distance - 0.5 * width).abs());
        mix(colour.map(|c| c * (1.0 - depth * shadow)), yarn.map(|c| c + gleam), 0.95 * body)
    });
}

pub(super) fn specks(canvas: &mut Canvas, centre: Point, rng: &mut impl Rng) {
    let spread = 1.5 * canvas.radius(rng);
    let depth = rng.random_range(25.0..130.0f32) * if rng.random_bool(0.5) { 1.0 } else { -1.0 };
    let largest = rng.random_range(1.2..4.5f32);
    let pit = rng.random_bool(0.4);
    for k in 0..rng.random_range(1..14) {
        let drift = if k == 0 { 0.0 } else { spread };
        let dot =
            (centre.0 + drift * rng.random_range(-1.0..1.0f32), centre.1 + drift * rng.random_range(-1.0..1.0f32));
        let radius = largest * rng.random_range(0.5..1.0f32);
        canvas.paint(dot, (radius + 2.0, radius + 2.0), |x, y, colour| {
            let distance = length(x - dot.0, y - dot.1);
            let core = coverage(distance - radius, 1.5);
            // A pit has a raised rim of the opposite brightness.
            let rim = if pit { 0.35 * smoothstep(1.8, 0.2, (distance - radius - 0.8).abs()) } else { 0.0 };
            let by = contrast(colour, depth);
            colour.map(|c| c + by * (core - rim * (1.0 - core)))
        });
    }
}
