//! Defects of the synthetic products.

use rand::{Rng, RngExt};

use super::Scene;
use super::canvas::{mix, segment_distance, smooth_step};
use super::noise::Noise;

/// Kinds of defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DefectFamily {
    /// A thin bright or dark line.
    Scratch,
    /// A soft spot of another colour.
    Stain,
    /// A shallow dent: light on one side, dark on the other.
    Dent,
    /// A jagged piece of material is missing.
    Chip,
    /// A thin branching dark line.
    Crack,
    /// A loose thread or hair lies on the part.
    Fibre,
    /// A heat mark: dark in the middle, brownish at the rim.
    Burn,
}

impl DefectFamily {
    /// All families.
    pub const ALL: [DefectFamily; 7] = [
        DefectFamily::Scratch,
        DefectFamily::Stain,
        DefectFamily::Dent,
        DefectFamily::Chip,
        DefectFamily::Crack,
        DefectFamily::Fibre,
        DefectFamily::Burn,
    ];

    /// Name of the family and its folder.
    pub fn name(self) -> &'static str {
        match self {
            DefectFamily::Scratch => "scratch",
            DefectFamily::Stain => "stain",
            DefectFamily::Dent => "dent",
            DefectFamily::Chip => "chip",
            DefectFamily::Crack => "crack",
            DefectFamily::Fibre => "fibre",
            DefectFamily::Burn => "burn",
        }
    }
}

/// Points of a smooth random walk of `length`, from `start`.
pub(super) fn curve(start: (f32, f32), length: f32, bend: f32, rng: &mut impl Rng) -> Vec<(f32, f32)> {
    let steps = 14;
    let mut heading = rng.random_range(0.0..std::f32::consts::TAU);
    let mut point = start;
    let mut points = vec![point];
    for _ in 0..steps {
        heading += rng.random_range(-bend..=bend);
        point = (point.0 + heading.cos() * length / steps as f32, point.1 + heading.sin() * length / steps as f32);
        points.push(point);
    }
    points
}

pub(super) fn curve_distance(p: (f32, f32), points: &[(f32, f32)]) -> f32 {
    points.windows(2).map(|pair| segment_distance(p, pair[0], pair[1])).fold(f32::MAX, f32::min)
}

/// A place on the part.
fn place(scene: &Scene, rng: &mut impl Rng) -> (f32, f32) {
    let size = scene.canvas.size;
    for _ in 0..200 {
        let (x, y) = (rng.random_range(0.06..0.94f32), rng.random_range(0.06..0.94f32));
        if scene.part[(y * size as f32) as usize * size + (x * size as f32) as usize] {
            return (x, y);
        }
    }
    (0.5, 0.5)
}

/// Puts one defect onto the part; `strength` above 1 makes it clearer.
pub(super) fn apply(scene: &mut Scene, family: DefectFamily, strength: f32, rng: &mut impl Rng) {
    let size = scene.canvas.size;
    let centre = place(scene, rng);
    let rough = Noise::new(rng.random());
    let part = &scene.part;
    let pixel = 1.0 / size as f32;
    let on_part = |x: f32, y: f32| part[(y * size as f32) as usize * size + (x * size as f32) as usize];
    let sign = if rng.random_bool(0.5) { 1.0 } else { -1.0f32 };
    let shade = |colour: [f32; 3], by: f32| colour.map(|c| (c + by).clamp(0.0, 1.0));
    match family {
        DefectFamily::Scratch => {
            let points = curve(centre, rng.random_range(0.10..0.40), 0.12, rng);
            let width = rng.random_range(0.7..1.6f32) * pixel;
            let depth = sign * rng.random_range(0.16..0.38f32) * strength;
            scene.canvas.map(|x, y, colour| {
                let cover = smooth_step(width + pixel, width - pixel, curve_distance((x, y), &points));
                if cover > 0.0 && on_part(x, y) { shade(colour, depth * cover) } else { colour }
            });
        }
        DefectFamily::Stain => {
            let radius = rng.random_range(0.03..0.12f32);
            let tint = [0; 3].map(|_| rng.random_range(0.0..0.75f32));
            let opacity = (rng.random_range(0.28..0.7f32) * strength).min(0.9);
            scene.canvas.map(|x, y, colour| {
                let wobble = 0.7 + 0.6 * rough.fractal(x * 18.0, y * 18.0, 2);
                let distance = (x - centre.0).hypot(y - centre.1) / (radius * wobble);
                let cover = smooth_step(1.0, 0.6, distance) * opacity;
                if on_part(x, y) { mix(colour, tint, cover) } else { colour }
            });
        }
        DefectFamily::Dent => {
            let radius = rng.random_range(0.03..0.09f32);
            let towards = rng.random_range(0.0..std::f32::consts::TAU);
            let depth = rng.random_range(0.20..0.42f32) * strength;
            scene.canvas.map(|x, y, colour| {
                let (dx, dy) = ((x - centre.0) / radius, (y - centre.1) / radius);
                let distance = dx.hypot(dy);
                if distance > 1.0 || !on_part(x, y) {
                    return colour;
                }
                let slope = (dx * towards.cos() + dy * towards.sin()) * (1.0 - distance * distance) * 2.2;
                shade(colour, slope * depth)
            });
        }
        DefectFamily::Chip => {
            let radius = rng.random_range(0.025..0.07f32);
            let behind = scene.behind;
            let depth = rng.random_range(0.75..1.0f32);
            scene.canvas.map(|x, y, colour| {
                let jagged = 0.55 + 0.9 * rough.fractal(x * 30.0, y * 30.0, 3);
                let distance = (x - centre.0).hypot(y - centre.1) / (radius * jagged);
                let cover = smooth_step(1.0 + 1.5 * pixel / radius, 1.0 - 1.5 * pixel / radius, distance) * depth;
                let grain = 0.85 + 0.3 * rough.at(x * 60.0, y * 60.0);
                if on_part(x, y) { mix(colour, behind.map(|c| c * grain), cover) } else { colour }
            });
        }
        DefectFamily::Crack => {
            let trunk = curve(centre, rng.random_range(0.12..0.32), 0.55, rng);
            let fork = trunk[rng.random_range(4..10)];
            let branch = curve(fork, rng.random_range(0.05..0.14), 0.6, rng);
            let width = rng.random_range(0.7..1.3f32) * pixel;
            let depth = rng.random_range(0.3..0.6f32) * strength;
            scene.canvas.map(|x, y, colour| {
                let distance = curve_distance((x, y), &trunk).min(curve_distance((x, y), &branch));
                let cover = smooth_step(width + pixel, width - pixel, distance);
                if cover > 0.0 && on_part(x, y) { colour.map(|c| c * (1.0 - depth * cover)) } else { colour }
            });
        }
        DefectFamily::Fibre => {
            let points = curve(centre, rng.random_range(0.14..0.40), 0.5, rng);
            let width = rng.random_range(1.0..2.0f32) * pixel;
            let tint = if sign > 0.0 { [0.88, 0.86, 0.82] } else { [0.30, 0.05, 0.06] };
            scene.canvas.map(|x, y, colour| {
                let distance = curve_distance((x, y), &points);
                let shadow = smooth_step(width * 3.0, 0.0, curve_distance((x - 2.0 * pixel, y - 2.0 * pixel), &points));
                let cover = smooth_step(width + pixel, width - pixel, distance);
                mix(colour.map(|c| c * (1.0 - 0.25 * shadow)), tint, cover * 0.9)
            });
        }
        DefectFamily::Burn => {
            let radius = rng.random_range(0.04..0.11f32);
            let opacity = (rng.random_range(0.4..0.8f32) * strength).min(0.95);
            scene.canvas.map(|x, y, colour| {
                let wobble = 0.75 + 0.5 * rough.fractal(x * 12.0, y * 12.0, 3);
                let distance = (x - centre.0).hypot(y - centre.1) / (radius * wobble);
                let core = smooth_step(0.75, 0.2, distance);
                let rim = smooth_step(1.0, 0.7, distance);
                let scorched = mix([0.33, 0.22, 0.10], [0.05, 0.04, 0.035], core);
                if on_part(x, y) { mix(colour, scorched, rim * opacity) } else { colour }
            });
        }
    }
}
