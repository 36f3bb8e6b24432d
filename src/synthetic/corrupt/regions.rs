//! Corruptions with an area.

use std::f32::consts::TAU;

use rand::{Rng, RngExt};

use super::super::noise::{Noise, perlin_field};
use super::super::shapes::{Blob, Point, Polygon, length, rounded_box, smoothstep};
use super::texture::Texture;
use super::{Canvas, Source, mix};

/// Outline of a patch.
enum Outline {
    Box { half: Point, axis: Point, centre: Point },
    Blob(Blob),
    Polygon(Polygon),
}

impl Outline {
    fn random(centre: Point, radius: f32, rng: &mut impl Rng) -> Outline {
        match rng.random_range(0..4) {
            0 => {
                let angle = rng.random_range(0.0..TAU);
                let half = (radius, radius * rng.random_range(0.3..1.0));
                Outline::Box { half, axis: (angle.cos(), angle.sin()), centre }
            }
            1 => {
                // A scar: long and thin.
                let angle = rng.random_range(0.0..TAU);
                let half = (radius * 1.3, (radius * rng.random_range(0.06..0.25)).max(0.8));
                Outline::Box { half, axis: (angle.cos(), angle.sin()), centre }
            }
            2 => Outline::Polygon(Polygon::irregular(centre, radius, rng.random_range(4..10), rng)),
            _ => Outline::Blob(Blob::random(centre, radius, rng.random_range(0.4..1.0), 0.5, rng)),
        }
    }

    /// 1 inside, 0 outside, over an edge of `soft` pixels.
    fn cover(&self, x: f32, y: f32, soft: f32) -> f32 {
        let distance = match self {
            Outline::Box { half, axis, centre } => {
                let (dx, dy) = (x - centre.0, y - centre.1);
                rounded_box(dx * axis.0 + dy * axis.1, dy * axis.0 - dx * axis.1, *half, 0.0)
            }
            Outline::Blob(blob) => (blob.level(x, y) - 1.0) * blob.radius,
            Outline::Polygon(polygon) => polygon.distance(x, y),
        };
        smoothstep(0.5 * soft, -0.5 * soft, distance)
    }
}

fn sharp_or_soft(radius: f32, rng: &mut impl Rng) -> f32 {
    if rng.random_bool(0.6) { 1.2 } else { rng.random_range(1.2..(0.6 * radius).max(1.5)) }
}

pub(super) fn perlin_texture(canvas: &mut Canvas, centre: Point, rng: &mut impl Rng) {
    let texture = Texture::random(rng);
    let radius = 1.8 * canvas.radius(rng).max(3.0);
    let cell = (radius * rng.random_range(0.25..1.0), radius * rng.random_range(0.25..1.0));
    let side = 2 * radius as usize + 4;
    let field = perlin_field(side, side, cell.0.max(2.0), cell.1.max(2.0), rng.next_u32());
    let corner = ((centre.0 - radius).floor(), (centre.1 - radius).floor());
    let level = rng.random_range(0.05..0.3f32);
    let edge = rng.random_range(0.04..0.25f32);
    let opacity = rng.random_range(0.15..1.0f32);
    canvas.paint(centre, (radius, radius), |x, y, colour| {
        let (u, v) = ((x - corner.0).max(0.0) as usize, (y - corner.1).max(0.0) as usize);
        let value = field[v.min(side - 1) * side + u.min(side - 1)];
        // Falls off towards the rim, so that the window never shows.
        let rim = length(x - centre.0, y - centre.1) / radius;
        let cover = smoothstep(level, level + edge, value + 0.25 - rim * rim);
        mix(colour, texture.at(x, y), cover * opacity)
    });
}

pub(super) fn paste(canvas: &mut Canvas, donor: &Source<'_>, centre: Point, rng: &mut impl Rng) {
    let radius = canvas.radius(rng).max(3.0);
    let outline = Outline::random(centre, radius, rng);
    let from = (rng.random_range(0.0..1.0) * donor.width as f32, rng.random_range(0.0..1.0) * donor.height as f32);
    let angle = if rng.random_bool(0.3) { 0.0 } else { rng.random_range(0.0..TAU) };
    let zoom = rng.random_range(0.7..1.4f32);
    let flip = if rng.random_bool(0.5) { zoom } else { -zoom };
    let (cos, sin) = (f32::cos(angle), f32::sin(angle));
    let gain: [f32; 3] = {
        let common = rng.random_range(0.75..1.25f32);
        std::array::from_fn(|_| common * rng.random_range(0.93..1.07))
    };
    let opacity = if rng.random_bool(0.6) { 1.0 } else { rng.random_range(0.4..1.0f32) };
    let soft = sharp_or_soft(radius, rng);
    // Outside the picture it is mirrored: no streaks of repeated border pixels.
    let mirror = |v: f32, size: usize| {
        let (size, folded) = (size as f32, v.rem_euclid(2.0 * size as f32));
        if folded < size { folded } else { 2.0 * size - folded }
    };
    let reach = 1.6 * radius + soft;
    canvas.paint(centre, (reach, reach), |x, y, colour| {
        let cover = outline.cover(x, y, soft) * opacity;
        if cover <= 0.0 {
            return colour;
        }
        let (dx, dy) = (flip * (x - centre.0), zoom * (y - centre.1));
        let at = (from.0 + dx * cos - dy * sin, from.1 + dx * sin + dy * cos);
        let pasted = donor.between(mirror(at.0, donor.width), mirror(at.1, donor.height));
        mix(colour, std::array::from_fn(|c| pasted[c] * gain[c]), cover)
    });
}

pub(super) fn blob(canvas: &mut Canvas, centre: Point, rng: &mut impl Rng) {
    let radius = canvas.radius(rng).max(2.5);
    let blob = Blob::random(centre, radius, rng.random_range(0.5..1.0), 0.5, rng);
    let noise = Noise::new(rng.next_u32());
    let opacity = rng.random_range(0.15..0.9f32);
    let inner = rng.random_range(0.1..0.9f32);
    let tint: [f32; 3] = std::array::from_fn(|_| rng.random_range(0.0..1.0));
    let kind = rng.random_range(0..4);
    let scale = 2.5 / radius;
    let reach = blob.reach(1.2);
    canvas.paint(centre, (reach, reach), |x, y, colour| {
        let level = blob.level(x, y) + 0.12 * noise.value(scale * x, scale * y);
        let cover = opacity * smoothstep(1.0, inner, level);
        let target = match kind {
            0 => colour.map(|c| 0.35 * c),
            1 => colour.map(|c| 0.5 * c + 127.0),
            // A liquid filters what is below; paint covers it.
            2 => std::array::from_fn(|c| colour[c] * (0.3 + 0.9 * tint[c])),
            _ => tint.map(|t| 255.0 * t),
        };
        mix(colour, target, cover)
    });
}

pub(super) fn erase(canvas: &mut Canvas, source: &Source<'_>, centre: Point, rng: &mut impl Rng) {
    let radius = canvas.radius(rng).max(3.0);
    let outline = Outline::random(centre, radius, rng);
    let fill = match rng.random_range(0..4) {
        // The background often is what the border shows.
        0 => source.mean(1.0, rng.random_range(0.0..1.0) * source.height as f32, 1.0),
        1 => source
            .at(rng.random_range(0.0..1.0) * source.width as f32, rng.random_range(0.0..1.0) * source.height as f32),
        2 => [rng.random_range(0.0..60.0); 3],
        _ => source.mean(centre.0, centre.1, 0.6 * radius),
    };
    // The surroundings come through as if out of focus: corners of the region give a slow gradient.
    let spread = 1.2 * radius;
    let corner = |u: f32, v: f32| source.mean(centre.0 + u * spread, centre.1 + v * spread, 0.2 * radius);
    let blurred =
        rng.random_bool(0.35).then(|| [corner(-1.0, -1.0), corner(1.0, -1.0), corner(-1.0, 1.0), corner(1.0, 1.0)]);
    let noise = Noise::new(rng.next_u32());
    let grain = rng.random_range(1.0..12.0f32);
    let soft = sharp_or_soft(radius, rng).min(4.0);
    let reach = 1.6 * radius + soft;
    canvas.paint(centre, (reach, reach), |x, y, colour| {
        let cover = outline.cover(x, y, soft);
        if cover <= 0.0 {
            return colour;
        }
        let mut target = fill;
        if let Some([a, b, c, d]) = blurred {
            let u = (0.5 + 0.5 * (x - centre.0) / spread).clamp(0.0, 1.0);
            let v = (0.5 + 0.5 * (y - centre.1) / spread).clamp(0.0, 1.0);
            target = mix(mix(a, b, u), mix(c, d, u), v);
        }
        let rough = grain * noise.value(0.6 * x, 0.6 * y);
        mix(colour, target.map(|c| c + rough), cover)
    });
}

/// Height of a dome of radius 1 and its slope, as (height, slope along the radius vector).
fn dome(rho: f32) -> (f32, f32) {
    let rest = (1.0 - rho * rho).max(0.0);
    (rest * rest, rest)
}

pub(super) fn relief(canvas: &mut Canvas, centre: Point, rng: &mut impl Rng) {
    let radius = 1.3 * canvas.radius(rng).max(4.0);
    let (angle, light) = (rng.random_range(0.0..TAU), rng.random_range(0.0..TAU));
    let aspect = rng.random_range(0.3..1.0f32);
    let depth = rng.random_range(0.35..1.8f32);
    let base = rng.random_range(0.0..14.0f32);
    let (axis, light): (Point, Point) = ((f32::cos(angle), f32::sin(angle)), (f32::cos(light), f32::sin(light)));
    canvas.paint(centre, (radius, radius), |x, y, colour| {
        let (dx, dy) = ((x - centre.0) / radius, (y - centre.1) / radius);
        let (u, v) = (dx * axis.0 + dy * axis.1, (dy * axis.0 - dx * axis.1) / aspect);
        let (_, slope) = dome(length(u, v));
        let lit = slope * ((u * axis.0 - v * axis.1) * light.0 + (u * axis.1 + v * axis.0) * light.1);
        // `base` lets a dent show on black, where a factor alone would change nothing.
        colour.map(|c| c + (c + base) * (depth * lit).clamp(-0.85, 0.85))
    });
}

pub(super) fn warp(canvas: &mut Canvas, source: &Source<'_>, centre: Point, rng: &mut impl Rng) {
    let radius = 1.4 * canvas.radius(rng).max(5.0);
    let pull = rng.random_range(0.25..0.75f32) * if rng.random_bool(0.5) { 1.0 } else { -1.0 };
    let twist = rng.random_range(-1.0..1.0f32);
    let shine = rng.random_range(-0.4..0.4f32);
    let light: f32 = rng.random_range(0.0..TAU);
    let light = (light.cos(), light.sin());
    canvas.paint(centre, (radius, radius), |x, y, colour| {
        let (dx, dy) = (x - centre.0, y - centre.1);
        let rho = length(dx, dy) / radius;
        if rho >= 1.0 {
            return colour;
        }
        let (height, slope) = dome(rho);
        let (sin, cos) = (twist * height).sin_cos();
        let scale = 1.0 - pull * height;
        let at = (centre.0 + (dx * cos - dy * sin) * scale, centre.1 + (dx * sin + dy * cos) * scale);
        let lit = slope * (dx * light.0 + dy * light.1) / radius;
        source.between(at.0, at.1).map(|c| c * (1.0 + shine * 2.0 * lit))
    });
}
