//! Defects of the synthetic products. Each changes the scene where the part is; the mask is measured afterwards.

use std::f32::consts::TAU;

use rand::{Rng, RngExt};

use super::Product;
use super::noise::Noise;
use super::scene::{Colour, FRAME, Scene, blend, shade, window};
use super::shapes::{Blob, Path, Point, Polygon, coverage, rounded_box, smoothstep};

/// Kinds of defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DefectFamily {
    /// A thin line: bright or dark on metal, a pulled thread in cloth, bare copper on a board.
    Scratch,
    /// A soft spot of oil, dirt, water or flux.
    Stain,
    /// A dent in metal, a crease in cloth, a blister of the board's coating: shading and a local distortion.
    Dent,
    /// A broken edge, or a torn slit in cloth: the bed shows.
    Chip,
    /// A thin line that branches, from the edge inwards; in cloth a run, where threads of one direction have parted.
    Crack,
    /// Blow holes in metal, a hole in cloth, a missing component on a board.
    Missing,
    /// A foreign thread or hair on the part, with its shadow.
    Fibre,
    /// Temper colours on metal, scorched cloth, a burnt board.
    Burn,
}

impl DefectFamily {
    /// All families.
    pub const ALL: [DefectFamily; 8] = [
        DefectFamily::Scratch,
        DefectFamily::Stain,
        DefectFamily::Dent,
        DefectFamily::Chip,
        DefectFamily::Crack,
        DefectFamily::Missing,
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
            DefectFamily::Missing => "missing",
            DefectFamily::Fibre => "fibre",
            DefectFamily::Burn => "burn",
        }
    }
}

/// Puts one defect onto the part. `strength` is about 1; above it the defect is clearer.
pub(super) fn apply(scene: &mut Scene, product: Product, family: DefectFamily, strength: f32, rng: &mut impl Rng) {
    match family {
        DefectFamily::Scratch => scratch(scene, product, strength, rng),
        DefectFamily::Stain => stain(scene, product, strength, rng),
        DefectFamily::Dent => dent(scene, product, strength, rng),
        DefectFamily::Chip if product == Product::Fabric => tear(scene, rng),
        DefectFamily::Chip => chip(scene, rng),
        DefectFamily::Crack if product == Product::Fabric => run(scene, strength, rng),
        DefectFamily::Crack => crack(scene, product, strength, rng),
        DefectFamily::Missing => match product {
            Product::Washer => blow_holes(scene, rng),
            Product::Fabric => cloth_hole(scene, rng),
            Product::Board => missing_component(scene, rng),
        },
        DefectFamily::Fibre => fibre(scene, product, rng),
        DefectFamily::Burn => burn(scene, product, strength, rng),
    }
}

/// A place where the part is, with as much of the circle of `radius` on the part as a few tries can find.
fn place(scene: &Scene, radius: f32, rng: &mut impl Rng) -> Point {
    let mut best = ((0.5 * FRAME, 0.5 * FRAME), -1.0);
    for _ in 0..24 {
        let at = (rng.random_range(12.0..FRAME - 12.0), rng.random_range(12.0..FRAME - 12.0));
        let around = [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)];
        let ring: f32 = around.iter().map(|d| scene.cover_at((at.0 + radius * d.0, at.1 + radius * d.1))).sum();
        let held = 2.0 * scene.cover_at(at) + ring;
        if held > best.1 {
            best = (at, held);
        }
        if held > 5.5 {
            break;
        }
    }
    best.0
}

/// Larger sizes are rarer: `low * (high / low)^u`.
fn spread(low: f32, high: f32, rng: &mut impl Rng) -> f32 {
    low * (high / low).powf(rng.random_range(0.0..1.0))
}

/// Changes the part's pixels in a window: `change(x, y, colour)` gives the new colour and its opacity.
fn alter(scene: &mut Scene, centre: Point, reach: Point, mut change: impl FnMut(f32, f32, Colour) -> (Colour, f32)) {
    for (i, x, y) in window(scene.size, centre, reach) {
        if scene.cover[i] > 0.0 {
            let (colour, opacity) = change(x, y, scene.surface[i]);
            scene.surface[i] = blend(scene.surface[i], colour, opacity * scene.cover[i]);
        }
    }
}

fn path_window(path: &Path, margin: f32) -> (Point, Point) {
    let (low, high) = path.bounds();
    let centre = (0.5 * (low.0 + high.0), 0.5 * (low.1 + high.1));
    (centre, (0.5 * (high.0 - low.0) + margin, 0.5 * (high.1 - low.1) + margin))
}

fn brightness(colour: Colour) -> f32 {
    (colour[0] + colour[1] + colour[2]) / 3.0
}

fn scratch(scene: &mut Scene, product: Product, strength: f32, rng: &mut impl Rng) {
    let length = spread(14.0, 85.0, rng);
    let centre = place(scene, 0.4 * length, rng);
    let angle = if product == Product::Fabric {
        // A pulled thread runs along the weave.
        rng.random_range(-0.12..0.12) + if rng.random_bool(0.5) { 0.0 } else { 0.25 * TAU }
    } else {
        rng.random_range(0.0..TAU)
    };
    let wander = if product == Product::Fabric { 0.04 } else { 0.09 };
    let path = Path::walk(centre, angle, length, 12, wander, rng).centred(centre);
    let width = rng.random_range(0.7..1.7f32);
    let depth = strength * rng.random_range(0.16..0.5f32);
    let dark = rng.random_bool(0.4);
    let unit = scene.unit();
    let (middle, reach) = path_window(&path, 4.0 * width + 2.0);
    alter(scene, middle, reach, |x, y, colour| {
        let near = path.nearest(x, y);
        let taper = smoothstep(0.0, 0.12, near.along) * smoothstep(1.0, 0.8, near.along);
        let core = coverage(near.distance - width * (0.45 + 0.55 * taper), unit.max(1.0));
        // The raised lip beside the groove catches the light on one side and shades the other.
        let lip = smoothstep(3.2 * width, width, near.distance) * (1.0 - core) * near.side * 0.35 * depth * taper;
        let (line, opacity) = match product {
            Product::Washer if dark => (shade(colour, 1.0 - 1.5 * depth), core),
            Product::Washer => (colour.map(|c| c + depth), core),
            Product::Fabric if dark => (shade(colour, 1.0 - 1.4 * depth), core),
            Product::Fabric => ([0.80, 0.83, 0.86], core * (0.3 + depth)),
            Product::Board if dark => ([0.66, 0.40, 0.22], core * (0.35 + depth)),
            Product::Board => ([0.55, 0.66, 0.54], core * (0.15 + depth)),
        };
        (blend(shade(colour, 1.0 + lip), line, opacity.min(1.0)), 1.0)
    });
}

fn stain(scene: &mut Scene, product: Product, strength: f32, rng: &mut impl Rng) {
    let radius = spread(7.0, 36.0, rng);
    let centre = place(scene, 0.7 * radius, rng);
    let blob = Blob::random(centre, radius, rng.random_range(0.55..1.0), 0.55, rng);
    let noise = Noise::new(rng.next_u32());
    let depth = strength * rng.random_range(0.35..0.8f32);
    let tints: [Colour; 3] = match product {
        Product::Washer => [[0.42, 0.36, 0.26], [0.30, 0.31, 0.33], [0.55, 0.33, 0.18]],
        Product::Fabric => [[0.45, 0.42, 0.38], [0.70, 0.52, 0.32], [0.40, 0.45, 0.58]],
        Product::Board => [[0.78, 0.78, 0.70], [0.62, 0.52, 0.25], [0.45, 0.48, 0.47]],
    };
    let tint = tints[rng.random_range(0..3)];
    let (soft, ring) = (rng.random_range(0.15..0.5f32), rng.random_range(0.0..0.35f32));
    let residue = product == Product::Board;
    let reach = blob.reach(1.25);
    alter(scene, centre, (reach, reach), |x, y, colour| {
        let level = blob.level(x, y) + 0.16 * noise.fractal(0.11 * x, 0.11 * y, 3);
        let body = smoothstep(1.0, 1.0 - soft, level);
        // A drying liquid leaves more at its rim.
        let rim = ring * smoothstep(0.16, 0.0, (level - 0.9).abs());
        let alpha = (depth * body * (0.85 + 0.3 * noise.value(0.2 * x, 0.2 * y)) + depth * rim).clamp(0.0, 0.95);
        // Residue lies on the board; a liquid filters what is below.
        let wet: Colour = std::array::from_fn(|c| colour[c] * tint[c] * 1.15);
        (if residue { blend(colour, tint, 0.8) } else { wet }, alpha)
    });
}

fn dent(scene: &mut Scene, product: Product, strength: f32, rng: &mut impl Rng) {
    let radius = spread(if product == Product::Fabric { 14.0 } else { 8.0 }, 34.0, rng);
    let centre = place(scene, 0.8 * radius, rng);
    let (aspect, angle) = match product {
        Product::Fabric => (rng.random_range(0.22..0.4), rng.random_range(0.0..TAU)),
        _ => (rng.random_range(0.6..1.0), rng.random_range(0.0..TAU)),
    };
    let (cos, sin): Point = (f32::cos(angle), f32::sin(angle));
    let deepest = if product == Product::Fabric { 0.75 } else { 0.6 };
    let depth = strength * rng.random_range(0.45 * deepest..deepest) * if rng.random_bool(0.5) { 1.0 } else { -1.0 };
    let gloss = if product == Product::Board { 0.16 } else { 0.0 };
    let before = scene.surface.clone();
    let (unit, size, light) = (scene.unit(), scene.size as i32, scene.light);
    let sample = |x: f32, y: f32| {
        let (x, y) = (x / unit - 0.5, y / unit - 0.5);
        let (ix, iy) = (x.floor(), y.floor());
        let at = |dx: i32, dy: i32| {
            let (column, row) = ((ix as i32 + dx).clamp(0, size - 1), (iy as i32 + dy).clamp(0, size - 1));
            before[(row * size + column) as usize]
        };
        let (fx, fy) = (x - ix, y - iy);
        blend(blend(at(0, 0), at(1, 0), fx), blend(at(0, 1), at(1, 1), fx), fy)
    };
    alter(scene, centre, (1.15 * radius, 1.15 * radius), |x, y, _| {
        let (dx, dy) = (x - centre.0, y - centre.1);
        let (u, v) = ((dx * cos + dy * sin) / radius, (dy * cos - dx * sin) / (radius * aspect));
        let rho = u * u + v * v;
        if rho >= 1.0 {
            return ([0.0; 3], 0.0);
        }
        let height = (1.0 - rho) * (1.0 - rho);
        // Slope of the surface towards the light, from the derivative of the height.
        let (gu, gv) = (u * (1.0 - rho), v * (1.0 - rho));
        let slope = (gu * cos - gv * sin) * light.0 + (gu * sin + gv * cos) * light.1;
        let pulled = sample(x - 0.22 * depth * height * dx, y - 0.22 * depth * height * dy);
        let gleam = gloss * smoothstep(0.12, 0.38, slope * depth.signum());
        (shade(pulled, (1.0 + 2.6 * depth * slope).clamp(0.2, 1.5)).map(|c| c + gleam), 1.0)
    });
}

/// A pixel on the edge of the part and the direction into the part.
fn edge_place(scene: &Scene, rng: &mut impl Rng) -> (Point, f32) {
    let unit = scene.unit();
    let rim: Vec<usize> = (0..scene.cover.len()).filter(|i| scene.cover[*i] > 0.2 && scene.cover[*i] < 0.8).collect();
    let Some(i) = (!rim.is_empty()).then(|| rim[rng.random_range(0..rim.len())]) else {
        return (place(scene, 8.0, rng), rng.random_range(0.0..TAU));
    };
    let at = (((i % scene.size) as f32 + 0.5) * unit, ((i / scene.size) as f32 + 0.5) * unit);
    let (mut dx, mut dy) = (0.0, 0.0);
    for k in 0..16 {
        let angle = TAU * k as f32 / 16.0;
        let held = scene.cover_at((at.0 + 6.0 * angle.cos(), at.1 + 6.0 * angle.sin()));
        dx += held * angle.cos();
        dy += held * angle.sin();
    }
    (at, dy.atan2(dx))
}

fn chip(scene: &mut Scene, rng: &mut impl Rng) {
    let (edge, inwards) = edge_place(scene, rng);
    let radius = spread(5.0, 20.0, rng);
    let centre = (edge.0 + 0.25 * radius * inwards.cos(), edge.1 + 0.25 * radius * inwards.sin());
    let corners = rng.random_range(7..12);
    let outline = Polygon::irregular(centre, radius, corners, rng);
    let noise = Noise::new(rng.next_u32());
    let unit = scene.unit();
    for (i, x, y) in window(scene.size, centre, (radius + 4.0, radius + 4.0)) {
        if scene.cover[i] <= 0.0 {
            continue;
        }
        let distance = outline.distance(x, y) + 0.8 * noise.value(0.4 * x, 0.4 * y);
        let gone = coverage(distance, unit);
        // The fracture face: rough, and lit on one side.
        let face = smoothstep(3.0, 0.0, distance) * (1.0 - gone);
        let rough = 0.85 + 0.35 * noise.value(0.9 * x, 0.9 * y);
        let broken = blend(scene.surface[i], shade(scene.surface[i], 0.7 * rough), face);
        let bed = shade(scene.bed[i], 0.85);
        scene.surface[i] = blend(broken, bed, gone * scene.cover[i]);
    }
}

fn tear(scene: &mut Scene, rng: &mut impl Rng) {
    let length = spread(14.0, 70.0, rng);
    let centre = place(scene, 0.3 * length, rng);
    let path = Path::walk(centre, rng.random_range(0.0..TAU), length, 9, 0.22, rng).centred(centre);
    let width = 1.6 + length * rng.random_range(0.03..0.075f32);
    open_cloth(scene, &path, width, rng);
}

fn cloth_hole(scene: &mut Scene, rng: &mut impl Rng) {
    let radius = spread(5.5, 18.0, rng);
    let centre = place(scene, radius, rng);
    let path = Path::walk(centre, rng.random_range(0.0..TAU), 0.6 * radius, 2, 0.2, rng).centred(centre);
    open_cloth(scene, &path, radius, rng);
}

/// Opens cloth along a path: the bed shows, the rim is frayed, a few loose ends hang in.
fn open_cloth(scene: &mut Scene, path: &Path, width: f32, rng: &mut impl Rng) {
    let fray = Noise::new(rng.next_u32());
    let unit = scene.unit();
    let roughness = 0.35 * width.min(6.0) + 0.6;
    let (middle, reach) = path_window(path, width + roughness + 6.0);
    for (i, x, y) in window(scene.size, middle, reach) {
        let near = path.nearest(x, y);
        let taper = 0.35 + 0.65 * smoothstep(0.0, 0.3, near.along) * smoothstep(1.0, 0.7, near.along);
        let distance = near.distance - width * taper + roughness * fray.fractal(0.35 * x, 0.35 * y, 2);
        let gone = coverage(distance, unit.max(1.0));
        // Yarn ends at the rim are paler and stand up.
        let rim = smoothstep(4.0, 0.5, distance) * (1.0 - gone);
        let pale = blend(scene.surface[i], [0.66, 0.69, 0.74], 0.45 * rim * (0.5 + 0.5 * fray.value(0.8 * x, 0.8 * y)));
        scene.surface[i] = blend(pale, scene.bed[i], 0.97 * gone);
    }
    for _ in 0..rng.random_range(2..5) {
        let joint = path.points[rng.random_range(0..path.points.len())];
        let turn = rng.random_range(0.0..TAU);
        let start = (joint.0 + width * turn.cos(), joint.1 + width * turn.sin());
        let end = Path::walk(start, turn + 0.5 * TAU, rng.random_range(0.6..1.3) * width + 3.0, 5, 0.35, rng);
        let (middle, reach) = path_window(&end, 3.0);
        alter(scene, middle, reach, |x, y, _| {
            ([0.52, 0.58, 0.68], 0.85 * coverage(end.nearest(x, y).distance - 0.6, unit))
        });
    }
}

fn crack(scene: &mut Scene, product: Product, strength: f32, rng: &mut impl Rng) {
    let (start, inwards) = edge_place(scene, rng);
    let length = spread(18.0, 75.0, rng);
    let trunk = Path::jagged(start, inwards + rng.random_range(-0.5..0.5), length, 11, rng);
    let mut branches = vec![(trunk.clone(), rng.random_range(0.55..1.25f32))];
    for _ in 0..rng.random_range(0..3) {
        let knot = rng.random_range(3..9);
        let (a, b) = (trunk.points[knot], trunk.points[knot + 1]);
        let heading = (b.1 - a.1).atan2(b.0 - a.0) + if rng.random_bool(0.5) { 0.7 } else { -0.7 };
        let reach = length * rng.random_range(0.15..0.4);
        branches.push((Path::jagged(a, heading, reach, 6, rng), rng.random_range(0.45..0.9)));
    }
    let depth = (strength * rng.random_range(0.5..0.95f32)).min(1.0);
    let unit = scene.unit();
    let deep: Colour = if product == Product::Board { [0.62, 0.60, 0.44] } else { [0.05, 0.05, 0.06] };
    for (path, width) in branches {
        let (middle, reach) = path_window(&path, 4.0);
        alter(scene, middle, reach, |x, y, colour| {
            let near = path.nearest(x, y);
            let half = width * (1.0 - 0.7 * near.along);
            let gap = coverage(near.distance - half, unit.max(1.0)) * depth;
            // One flank of the crack stands a little higher and catches the light.
            let flank = smoothstep(2.6, 0.6, near.distance) * near.side.max(0.0) * 0.16 * depth;
            (blend(shade(colour, 1.0 + flank), deep, gap), 1.0)
        });
    }
}

/// A run: a few threads of one direction are broken, and those that remain have moved apart.
fn run(scene: &mut Scene, strength: f32, rng: &mut impl Rng) {
    let length = spread(22.0, 85.0, rng);
    let centre = place(scene, 0.4 * length, rng);
    let heading = if rng.random_bool(0.5) { 0.0 } else { 0.25 * TAU };
    let path = Path::walk(centre, heading + rng.random_range(-0.06..0.06), length, 10, 0.02, rng).centred(centre);
    let width = rng.random_range(1.6..3.4f32);
    let depth = (strength * rng.random_range(0.75..1.0f32)).min(1.0);
    let ladder = Noise::new(rng.next_u32());
    let beds = scene.bed.clone();
    let (unit, size) = (scene.unit(), scene.size);
    let (middle, reach) = path_window(&path, width + 6.0);
    alter(scene, middle, reach, |x, y, colour| {
        let near = path.nearest(x, y);
        let taper = smoothstep(0.0, 0.25, near.along) * smoothstep(1.0, 0.75, near.along);
        let gap = coverage(near.distance - width * (0.2 + 0.8 * taper), unit.max(1.5));
        // Cross threads bridge the gap.
        let bridged = 0.7 + 0.3 * ladder.value(near.along * length * 0.25, 0.0);
        let bed = beds[((y / unit) as usize).min(size - 1) * size + ((x / unit) as usize).min(size - 1)];
        let crowded = 1.0 + 0.12 * smoothstep(5.0, 1.0, near.distance - width) * (1.0 - gap);
        (blend(shade(colour, crowded), bed, gap * bridged * depth), 1.0)
    });
}

fn blow_holes(scene: &mut Scene, rng: &mut impl Rng) {
    let count = if rng.random_bool(0.5) { 1 } else { rng.random_range(2..6) };
    let largest = if count == 1 { spread(4.0, 12.0, rng) } else { rng.random_range(2.2..4.5) };
    let middle = place(scene, 1.5 * largest, rng);
    let (unit, light) = (scene.unit(), scene.light);
    for k in 0..count {
        let drift = if k == 0 { 0.0 } else { 4.0 * largest };
        let centre =
            (middle.0 + drift * rng.random_range(-1.0..1.0f32), middle.1 + drift * rng.random_range(-1.0..1.0f32));
        let radius = largest * if k == 0 { 1.0 } else { rng.random_range(0.5..1.0) };
        let blob = Blob::random(centre, radius, rng.random_range(0.7..1.0), 0.25, rng);
        let reach = blob.reach(1.0) + 3.0;
        alter(scene, centre, (reach, reach), |x, y, colour| {
            let distance = (blob.level(x, y) - 1.0) * radius;
            let facing = ((x - centre.0) * light.0 + (y - centre.1) * light.1) / radius;
            let inside = coverage(distance, unit);
            // Inside, the wall that faces the light is the far one.
            let wall = shade([0.14, 0.13, 0.13], (0.8 - 0.6 * facing).clamp(0.3, 1.6));
            let lip = smoothstep(2.0, 0.2, distance) * 0.18 * facing;
            (blend(shade(colour, 1.0 + lip), wall, inside), 1.0)
        });
    }
}

fn missing_component(scene: &mut Scene, rng: &mut impl Rng) {
    let site = scene.sites[rng.random_range(0..scene.sites.len())];
    let Some(bare) = scene.bare.take() else { return };
    let pose = scene.pose;
    let centre = pose.to_frame(site.centre.0, site.centre.1);
    let reach = 1.2 * (site.half.0 + site.half.1) + 4.0;
    for (i, x, y) in window(scene.size, centre, (reach, reach)) {
        let (u, v) = pose.to_part(x, y);
        // Wide enough for the component's shadow, narrow enough to leave its neighbours.
        let inside = smoothstep(2.0, 0.0, rounded_box(u - site.centre.0, v - site.centre.1, site.half, 3.0));
        scene.surface[i] = blend(scene.surface[i], bare[i], inside);
    }
    scene.bare = Some(bare);
}

fn fibre(scene: &mut Scene, product: Product, rng: &mut impl Rng) {
    let length = spread(24.0, 100.0, rng);
    let centre = place(scene, 0.3 * length, rng);
    let path = Path::walk(centre, rng.random_range(0.0..TAU), length, 22, 0.28, rng).centred(centre);
    let width = rng.random_range(0.65..1.35f32);
    let yarns: [Colour; 5] =
        [[0.92, 0.91, 0.88], [0.62, 0.10, 0.12], [0.08, 0.07, 0.07], [0.85, 0.62, 0.15], [0.15, 0.25, 0.62]];
    let under = brightness(scene.surface[scene.index(centre)]);
    let mut yarn = yarns[rng.random_range(0..5)];
    // On cloth of its own colour a thread would not be foreign.
    if (brightness(yarn) - under).abs() < 0.18 || product == Product::Fabric && yarn[2] > 1.5 * yarn[0] {
        yarn = if under > 0.45 { yarns[2] } else { yarns[0] };
    }
    let (unit, light) = (scene.unit(), scene.light);
    let (middle, reach) = path_window(&path, 7.0);
    // A thread lies across the whole frame, part or bed.
    for (i, x, y) in window(scene.size, middle, reach) {
        let shadow = path.nearest(x + 2.2 * light.0, y + 2.2 * light.1).distance;
        let near = path.nearest(x, y);
        let dark = 0.30 * smoothstep(3.0 + width, 0.0, shadow);
        let gleam = 1.0 + 0.25 * smoothstep(width, 0.0, (near.distance - 0.4 * width).abs()) * near.side;
        let body = coverage(near.distance - width, unit.max(0.8));
        scene.surface[i] = blend(shade(scene.surface[i], 1.0 - dark), shade(yarn, gleam), 0.92 * body);
    }
}

fn burn(scene: &mut Scene, product: Product, strength: f32, rng: &mut impl Rng) {
    let radius = spread(8.0, 38.0, rng);
    let centre = place(scene, 0.7 * radius, rng);
    let blob = Blob::random(centre, radius, rng.random_range(0.7..1.0), 0.3, rng);
    let noise = Noise::new(rng.next_u32());
    let depth = (strength * rng.random_range(0.45..0.95f32)).min(1.0);
    // From the rim inwards, as filters over what is below.
    let bands: [Colour; 4] = match product {
        // Temper colours of steel: straw, brown, purple, blue.
        Product::Washer => [[1.0, 0.90, 0.62], [0.85, 0.60, 0.36], [0.62, 0.42, 0.62], [0.42, 0.52, 0.85]],
        Product::Fabric => [[0.95, 0.85, 0.66], [0.80, 0.60, 0.38], [0.48, 0.32, 0.20], [0.20, 0.14, 0.11]],
        Product::Board => [[1.15, 0.82, 0.62], [1.3, 0.62, 0.42], [0.80, 0.36, 0.28], [0.28, 0.18, 0.18]],
    };
    let reach = blob.reach(1.2);
    alter(scene, centre, (reach, reach), |x, y, colour| {
        let level = blob.level(x, y) + 0.13 * noise.fractal(0.1 * x, 0.1 * y, 3);
        let heat = ((1.0 - level) * 4.0).clamp(0.0, 3.0);
        let band = (heat as usize).min(2);
        let filter = blend(bands[band], bands[band + 1], heat - band as f32);
        let grey = brightness(colour);
        let charred: Colour = std::array::from_fn(|c| (0.55 * colour[c] + 0.45 * grey) * filter[c]);
        (charred, depth * smoothstep(1.0, 0.85, level))
    });
}
