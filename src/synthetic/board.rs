//! A printed circuit board on a light conveyor. The design is fixed; placement, solder and print vary within tolerance.

use rand::{Rng, RngExt};

use super::noise::Noise;
use super::scene::{Colour, FRAME, Painter, Pose, Scene, Site, blend, shade, whole};
use super::shapes::{Point, coverage, length, rounded_box, smoothstep};

const HALF: Point = (113.0, 105.0);
const HOLES: [Point; 4] = [(-101.0, -93.0), (101.0, -93.0), (-101.0, 93.0), (101.0, 93.0)];
const HOLE: f32 = 5.5;

const MASK: Colour = [0.055, 0.27, 0.165];
const TRACE: Colour = [0.12, 0.40, 0.25];
const GOLD: Colour = [0.80, 0.66, 0.34];
const TIN: Colour = [0.70, 0.71, 0.72];
const PRINT: Colour = [0.86, 0.88, 0.86];

/// Conductors under the solder mask: half width, then the corners.
const TRACES: [(f32, &[Point]); 16] = [
    (1.1, &[(-4.0, -30.0), (12.0, -30.0), (24.0, -42.0), (40.0, -42.0)]),
    (1.1, &[(-4.0, -24.0), (15.0, -24.0), (25.0, -34.0), (40.0, -34.0)]),
    (1.1, &[(-4.0, -18.0), (18.0, -18.0), (26.0, -26.0), (40.0, -26.0)]),
    (1.1, &[(-4.0, -12.0), (22.0, -12.0), (42.0, 8.0), (42.0, 32.0), (50.0, 40.0)]),
    (1.1, &[(-4.0, -6.0), (10.0, -6.0), (16.0, 0.0), (16.0, 20.0)]),
    (1.1, &[(-60.0, -30.0), (-72.0, -30.0), (-78.0, -36.0)]),
    (1.1, &[(-60.0, -6.0), (-84.0, -6.0), (-90.0, 0.0), (-90.0, 50.0), (-80.0, 60.0), (-80.0, 68.0)]),
    (1.1, &[(-45.0, 12.0), (-45.0, 30.0), (-60.0, 45.0), (-60.0, 68.0)]),
    (1.1, &[(-38.0, 12.0), (-38.0, 34.0), (-40.0, 36.0), (-40.0, 68.0)]),
    (1.1, &[(-31.0, 12.0), (-31.0, 48.0), (-20.0, 59.0), (-20.0, 68.0)]),
    (1.1, &[(-24.0, 12.0), (-24.0, 40.0), (10.0, 74.0)]),
    (2.2, &[(-104.0, -76.0), (-104.0, 10.0), (-98.0, 16.0), (-98.0, 78.0)]),
    (2.2, &[(30.0, -92.0), (90.0, -92.0), (104.0, -78.0), (104.0, 78.0)]),
    (1.6, &[(76.0, -26.0), (92.0, -10.0), (92.0, 40.0), (80.0, 40.0)]),
    (1.6, &[(-45.0, -52.0), (-45.0, -66.0), (-20.0, -91.0), (20.0, -91.0)]),
    (1.1, &[(30.0, 58.0), (48.0, 58.0), (56.0, 66.0), (56.0, 84.0)]),
];

const VIAS: [Point; 14] = [
    (16.0, 20.0),
    (42.0, 8.0),
    (-72.0, -30.0),
    (-90.0, 0.0),
    (20.0, -91.0),
    (30.0, -92.0),
    (92.0, 8.0),
    (48.0, 58.0),
    (-45.0, 24.0),
    (-98.0, 40.0),
    (0.0, 48.0),
    (70.0, 8.0),
    (82.0, 62.0),
    (-10.0, -74.0),
];

#[derive(Clone, Copy)]
enum Kind {
    /// A black package with leads on the left and right, `n` a side.
    DualChip(u32),
    /// A black package with leads on all sides, `n` a side.
    QuadChip(u32),
    Resistor,
    Capacitor,
    /// A round aluminium can.
    Can,
    /// A metal crystal case.
    Crystal,
    Lamp,
}

/// Kind, middle, half sides of the body.
const COMPONENTS: [(Kind, Point, Point); 19] = [
    (Kind::QuadChip(8), (-32.0, -20.0), (24.0, 24.0)),
    (Kind::DualChip(6), (58.0, -42.0), (13.0, 25.0)),
    (Kind::DualChip(3), (66.0, 36.0), (10.0, 12.0)),
    (Kind::Can, (-84.0, -48.0), (13.0, 13.0)),
    (Kind::Can, (-62.0, -76.0), (11.0, 11.0)),
    (Kind::Crystal, (18.0, 34.0), (15.0, 6.5)),
    (Kind::Resistor, (-80.0, 72.0), (4.2, 7.5)),
    (Kind::Resistor, (-60.0, 72.0), (4.2, 7.5)),
    (Kind::Resistor, (-40.0, 72.0), (4.2, 7.5)),
    (Kind::Resistor, (-20.0, 72.0), (4.2, 7.5)),
    (Kind::Resistor, (86.0, -42.0), (4.2, 7.5)),
    (Kind::Capacitor, (10.0, 78.0), (7.5, 4.5)),
    (Kind::Capacitor, (24.0, 58.0), (7.5, 4.5)),
    (Kind::Capacitor, (-4.0, 58.0), (7.5, 4.5)),
    (Kind::Capacitor, (16.0, -64.0), (7.5, 4.5)),
    (Kind::Capacitor, (16.0, -78.0), (7.5, 4.5)),
    (Kind::Capacitor, (-70.0, 12.0), (4.5, 7.5)),
    (Kind::Lamp, (80.0, 76.0), (6.0, 6.0)),
    (Kind::Resistor, (62.0, 76.0), (4.2, 7.5)),
];

/// One board.
pub(super) fn scene(size: usize, rng: &mut impl Rng) -> Scene {
    let pose = Pose::random(4.0, 0.035, 0.015, rng);
    let angle: f32 = -2.2 + rng.random_range(-0.25..0.25);
    let light = (angle.cos(), angle.sin());
    let (belt, coat) = (Noise::new(rng.next_u32()), Noise::new(rng.next_u32()));
    let tone = rng.random_range(0.94..1.06);
    let edge = FRAME / size as f32 / pose.scale;
    let pixels = size * size;
    let (mut surface, mut bed, mut cover) =
        (Vec::with_capacity(pixels), Vec::with_capacity(pixels), Vec::with_capacity(pixels));
    for (_, x, y) in whole(size) {
        let (u, v) = pose.to_part(x, y);
        let corner = HOLES[usize::from(u > 0.0) + 2 * usize::from(v > 0.0)];
        let hole = -disc(u - corner.0, v - corner.1, HOLE);
        let distance = rounded_box(u, v, HALF, 6.0);
        let inside = coverage(distance.max(hole), edge);
        let (su, sv) = pose.to_part(x + 3.0 * light.0, y + 3.0 * light.1);
        let shadow = 0.45 * smoothstep(4.0, -3.0, rounded_box(su, sv, HALF, 6.0));
        // Deep below the board nothing can uncover the belt: its grain would be work for nobody.
        let hidden = distance < -30.0 && hole < -30.0;
        let ribs = if hidden { 0.0 } else { 0.02 * (y * 0.55).sin() + 0.02 * belt.value(0.3 * x, 0.3 * y) };
        let ground = shade([0.56 + ribs, 0.57 + ribs, 0.58 + ribs], 1.0 - shadow);
        bed.push(ground);
        cover.push(inside);
        if inside <= 0.0 {
            surface.push(ground);
            continue;
        }
        // The weave of the glass fibre shows faintly through the mask; the copper pour is a shade lighter.
        let weave = 0.02 * ((u * 0.9).sin() * (v * 0.9).sin()) + 0.04 * coat.value(0.35 * u, 0.35 * v);
        let pour = 0.10 * smoothstep(0.8, -0.8, rounded_box(u - 5.0, v - 10.0, (86.0, 84.0), 4.0));
        let mut colour = shade(MASK, tone * (1.0 + weave + pour));
        // The cut rim shows the bare glass fibre.
        colour = blend(colour, [0.62, 0.60, 0.42], 0.8 * smoothstep(-1.8, -0.6, distance));
        surface.push(blend(ground, colour, inside));
    }

    let mut painter = Painter { plane: &mut surface, clip: &cover, size, pose };
    print_copper(&mut painter, tone);
    for (kind, centre, half) in COMPONENTS {
        lands(&mut painter, kind, centre, half, rng);
    }
    let bare = surface.clone();
    let mut painter = Painter { plane: &mut surface, clip: &cover, size, pose };
    let mut sites = Vec::with_capacity(COMPONENTS.len());
    for (kind, centre, half) in COMPONENTS {
        let placed = (centre.0 + rng.random_range(-0.6..0.6), centre.1 + rng.random_range(-0.6..0.6));
        component(&mut painter, kind, placed, half, light, rng);
        let lead = if matches!(kind, Kind::DualChip(_) | Kind::QuadChip(_)) { 8.0 } else { 3.5 };
        sites.push(Site { centre, half: (half.0 + lead, half.1 + lead) });
    }
    Scene { size, pose, light, surface, bed, bare: Some(bare), cover, sites }
}

fn disc(x: f32, y: f32, radius: f32) -> f32 {
    length(x, y) - radius
}

fn print_copper(painter: &mut Painter<'_>, tone: f32) {
    for (half, corners) in TRACES {
        for pair in corners.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let middle = (0.5 * (a.0 + b.0), 0.5 * (a.1 + b.1));
            let along = (0.5 * (b.0 - a.0), 0.5 * (b.1 - a.1));
            let squared = along.0 * along.0 + along.1 * along.1;
            let stroke = |u: f32, v: f32| {
                let t = ((u * along.0 + v * along.1) / squared).clamp(-1.0, 1.0);
                disc(u - t * along.0, v - t * along.1, half)
            };
            painter.fill(middle, squared.sqrt() + half, 0.0, 1.0, stroke, |_, _, _| shade(TRACE, tone));
        }
    }
    for via in VIAS {
        painter.fill(via, 3.2, 0.0, 1.0, |u, v| disc(u, v, 3.2), |_, _, _| shade(GOLD, 0.85));
        painter.fill(via, 1.3, 0.0, 1.0, |u, v| disc(u, v, 1.3), |_, _, _| [0.06, 0.09, 0.07]);
    }
    for hole in HOLES {
        let ring = |u: f32, v: f32| disc(u, v, HOLE + 4.0).max(-disc(u, v, HOLE));
        painter.fill(hole, HOLE + 4.0, 0.0, 1.0, ring, |_, _, _| GOLD);
    }
    for pin in 0..9 {
        let centre = (-64.0 + 14.0 * pin as f32, 95.0);
        let land = |u: f32, v: f32| if pin == 0 { rounded_box(u, v, (4.2, 4.2), 0.5) } else { disc(u, v, 4.2) };
        painter.fill(centre, 6.0, 0.0, 1.0, land, |_, _, d| shade(GOLD, 1.0 + 0.05 * d));
        painter.fill(centre, 1.9, 0.0, 1.0, |u, v| disc(u, v, 1.9), |_, _, _| [0.05, 0.06, 0.05]);
    }
    // Printed frame of the connector, and two lines of dashes that stand for lettering.
    let frame = |u: f32, v: f32| rounded_box(u, v, (66.0, 7.5), 1.0).abs() - 0.5;
    painter.fill((-8.0, 95.0), 68.0, 0.0, 0.9, frame, |_, _, _| PRINT);
    for (k, width) in [3.0f32, 1.2, 2.4, 3.0, 1.2, 1.2, 2.4].into_iter().enumerate() {
        for row in 0..2 {
            let centre = (44.0 + 7.0 * k as f32, 10.0 + 6.0 * row as f32 - 2.0 * (k % 2) as f32 * row as f32);
            let dash = |u: f32, v: f32| rounded_box(u, v, (width, 0.8), 0.3);
            painter.fill(centre, 3.5, 0.0, 0.9, dash, |_, _, _| PRINT);
        }
    }
}

/// Middles of the leads of a package, and their half sides.
fn leads(kind: Kind, half: Point) -> Vec<(Point, Point)> {
    let spread = |n: u32, k: u32, reach: f32| (k as f32 + 0.5) / n as f32 * 2.0 * reach - reach;
    match kind {
        Kind::DualChip(n) => {
            (0..n).flat_map(|k| [-1.0, 1.0].map(|s| ((s * (half.0 + 3.0), spread(n, k, half.1)), (3.2, 1.5)))).collect()
        }
        Kind::QuadChip(n) => (0..n)
            .flat_map(|k| {
                let at = spread(n, k, half.0 - 1.0);
                [-1.0, 1.0]
                    .map(|s| ((s * (half.0 + 3.0), at), (3.2, 1.3)))
                    .into_iter()
                    .chain([-1.0, 1.0].map(|s| ((at, s * (half.1 + 3.0)), (1.3, 3.2))))
            })
            .collect(),
        Kind::Can => vec![((0.0, -half.1), (4.0, 3.5)), ((0.0, half.1), (4.0, 3.5))],
        Kind::Lamp => vec![((-half.0, 0.0), (2.6, 4.5)), ((half.0, 0.0), (2.6, 4.5))],
        Kind::Resistor | Kind::Capacitor | Kind::Crystal if half.1 > half.0 => {
            vec![((0.0, 1.0 - half.1), (half.0, 3.2)), ((0.0, half.1 - 1.0), (half.0, 3.2))]
        }
        Kind::Resistor | Kind::Capacitor | Kind::Crystal => {
            vec![((1.0 - half.0, 0.0), (3.2, half.1)), ((half.0 - 1.0, 0.0), (3.2, half.1))]
        }
    }
}

/// The soldering lands of a component and its printed outline.
fn lands(painter: &mut Painter<'_>, kind: Kind, centre: Point, half: Point, rng: &mut impl Rng) {
    for (at, size) in leads(kind, half) {
        let land = (size.0 + 0.9, size.1 + 0.7);
        let bright = rng.random_range(0.92..1.05);
        let middle = (centre.0 + at.0, centre.1 + at.1);
        let shape = |u: f32, v: f32| rounded_box(u, v, land, 0.8);
        painter.fill(middle, land.0 + land.1, 0.0, 1.0, shape, |u, v, _| shade(GOLD, bright - 0.015 * (u + v)));
    }
    let outline = match kind {
        Kind::Can => (half.0 + 2.5, half.1 + 2.5),
        Kind::QuadChip(_) => (half.0 - 2.0, half.1 - 2.0),
        Kind::DualChip(_) => (half.0 - 2.0, half.1 + 1.5),
        _ => (half.0 + 2.8, half.1 + 2.8),
    };
    let round = if matches!(kind, Kind::Can) { outline.0 } else { 0.5 };
    let line = |u: f32, v: f32| rounded_box(u, v, outline, round).abs() - 0.45;
    painter.fill(centre, outline.0 + outline.1, 0.0, 0.85, line, |_, _, _| PRINT);
}

/// The soldered component itself.
fn component(painter: &mut Painter<'_>, kind: Kind, centre: Point, half: Point, light: Point, rng: &mut impl Rng) {
    let reach = length(half.0, half.1);
    let round = match kind {
        Kind::Can => half.0,
        Kind::Crystal => half.1,
        Kind::Lamp => 2.0,
        _ => 0.8,
    };
    let body = |u: f32, v: f32| rounded_box(u, v, half, round);
    let height = if matches!(kind, Kind::Can) { 4.0 } else { 1.6 };
    let behind = (centre.0 - height * light.0, centre.1 - height * light.1);
    painter.fill(behind, reach, 3.0, 0.5, body, |_, _, _| [0.02, 0.05, 0.04]);

    let chip = matches!(kind, Kind::DualChip(_) | Kind::QuadChip(_));
    if chip {
        for (at, size) in leads(kind, half) {
            let bright = rng.random_range(0.92..1.08);
            let middle = (centre.0 + at.0 * 0.985, centre.1 + at.1 * 0.985);
            let shape = |u: f32, v: f32| rounded_box(u, v, (size.0 - 0.2, size.1 - 0.2), 0.4);
            let colour = |u: f32, v: f32, _: f32| shade(TIN, bright + 0.05 * (u * light.0 + v * light.1));
            painter.fill(middle, size.0 + size.1, 0.0, 1.0, shape, colour);
        }
    }
    let tone = rng.random_range(0.95..1.05);
    let colour = |u: f32, v: f32, d: f32| {
        // The slope of the body's rim towards the light.
        let (nu, nv) = (u / half.0, v / half.1);
        let facing = if nu.abs() > nv.abs() { nu.signum() * light.0 } else { nv.signum() * light.1 };
        let rim = smoothstep(-1.8, -0.3, d) * facing;
        let flat = (nu * light.0 + nv * light.1) * 0.05;
        match kind {
            Kind::DualChip(_) | Kind::QuadChip(_) => {
                shade([0.115, 0.118, 0.125], tone * (1.0 + 0.9 * rim + 2.0 * flat))
            }
            Kind::Resistor => shade([0.10, 0.10, 0.11], tone * (1.0 + 0.5 * rim)),
            Kind::Capacitor => shade([0.58, 0.45, 0.31], tone * (1.0 + 0.2 * rim + flat)),
            Kind::Crystal => shade([0.66, 0.67, 0.68], tone * (1.0 + 0.3 * rim + 3.0 * flat)),
            Kind::Lamp => shade([0.88, 0.87, 0.80], tone * (1.0 + 0.1 * rim)),
            Kind::Can => {
                let radial = (u * light.0 + v * light.1) / length(u, v).max(0.1);
                let collar = smoothstep(-3.2, -2.2, d) * radial;
                shade([0.62, 0.63, 0.65], tone * (1.0 + 0.35 * collar + 1.6 * flat))
            }
        }
    };
    painter.fill(centre, reach, 0.0, 1.0, body, colour);
    markings(painter, kind, centre, half, tone);
}

fn markings(painter: &mut Painter<'_>, kind: Kind, centre: Point, half: Point, tone: f32) {
    let at = |u: f32, v: f32| (centre.0 + u, centre.1 + v);
    match kind {
        Kind::DualChip(_) | Kind::QuadChip(_) => {
            let dot = at(3.5 - half.0, 3.5 - half.1);
            painter.fill(dot, 1.5, 0.0, 0.8, |u, v| disc(u, v, 1.5), |_, _, _| [0.30, 0.30, 0.30]);
            for (row, count) in [(-0.25, 6), (0.1, 4), (0.45, 5)] {
                for k in 0..count {
                    let width = if k % 3 == 1 { 0.7 } else { 1.1 };
                    let place = at(half.0 * (-0.62 + 0.23 * k as f32), half.1 * row);
                    let stroke = |u: f32, v: f32| rounded_box(u, v, (width, 1.6), 0.3);
                    painter.fill(place, 2.5, 0.0, 0.55, stroke, |_, _, _| [0.62, 0.62, 0.60]);
                }
            }
        }
        Kind::Resistor | Kind::Capacitor => {
            for (end, size) in leads(kind, half) {
                let size = if size.0 > size.1 { (size.0, 2.0) } else { (2.0, size.1) };
                let cap = |u: f32, v: f32| rounded_box(u, v, size, 0.6);
                let colour = |u: f32, v: f32, _: f32| shade(TIN, tone * (1.02 - 0.02 * (u + v)));
                painter.fill(at(end.0, end.1), size.0 + size.1, 0.0, 1.0, cap, colour);
            }
            if matches!(kind, Kind::Resistor) {
                for k in 0..3 {
                    let stroke = |u: f32, v: f32| rounded_box(u, v, (0.5, 1.2), 0.2);
                    painter.fill(at(-1.8 + 1.8 * k as f32, 0.0), 1.5, 0.0, 0.7, stroke, |_, _, _| PRINT);
                }
            }
        }
        Kind::Can => {
            // The dark segment marks the negative pole.
            let segment = |u: f32, v: f32| disc(u, v, half.0 - 2.6).max(u + 0.45 * half.0);
            painter.fill(centre, half.0, 0.0, 0.9, segment, |_, _, _| [0.13, 0.14, 0.18]);
        }
        Kind::Crystal => {
            for k in 0..5 {
                let stroke = |u: f32, v: f32| rounded_box(u, v, (0.7, 1.7), 0.2);
                painter.fill(at(-6.0 + 3.0 * k as f32, 0.0), 2.5, 0.0, 0.6, stroke, |_, _, _| [0.25, 0.25, 0.26]);
            }
        }
        Kind::Lamp => {
            painter.fill(centre, 3.6, 0.0, 1.0, |u, v| disc(u, v, 3.6), |_, _, _| [0.93, 0.84, 0.40]);
        }
    }
}
