//! What is on a part: holes, bosses, pockets, screws, grooves, labels, codes and text-like marks.

use std::f32::consts::TAU;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::noise::{Noise, floor};
use super::super::scene::{Colour, Painter, blend, shade};
use super::super::shapes::{Path, Point, length, rounded_box, smoothstep};
use super::material::{Palette, log_uniform};

/// Characters of a line of text at most.
const LINE: usize = 10;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Hole,
    Boss,
    Pocket,
    Screw {
        slots: f32,
    },
    Label {
        lines: usize,
    },
    Text,
    /// Text that is another one on every part.
    Serial,
    Matrix {
        cells: f32,
    },
    Bars,
    Groove,
    Ring,
}

/// One thing on a part.
pub(super) struct Feature {
    kind: Kind,
    centre: Point,
    half: Point,
    round: bool,
    colour: Colour,
    ink: Colour,
    /// Strength of shading at its rim.
    relief: f32,
    seed: u32,
    /// Units that it may lie off its place.
    play: f32,
}

impl Feature {
    /// One thing, or several of the same in an arrangement that a designer would choose.
    pub(super) fn group(palette: &Palette, body: Colour, radius: f32, rng: &mut impl Rng) -> Vec<Self> {
        let kind = match rng.random_range(0..17) {
            0..=3 => Kind::Hole,
            4 | 5 => Kind::Boss,
            6 | 7 => Kind::Pocket,
            8 => Kind::Screw { slots: [1.0, 2.0, 3.0][rng.random_range(0..3)] },
            9 => Kind::Label { lines: rng.random_range(0..4) },
            10 | 11 => Kind::Text,
            12 => Kind::Serial,
            13 => Kind::Matrix { cells: rng.random_range(8..16) as f32 },
            14 => Kind::Bars,
            15 => Kind::Groove,
            _ => Kind::Ring,
        };
        let side = radius * log_uniform(0.04, 0.4, rng);
        let half = match kind {
            Kind::Text | Kind::Serial => {
                let high = side.min(0.12 * radius);
                (high * rng.random_range(1.0..8.0), high)
            }
            Kind::Label { .. } | Kind::Bars => (1.3 * side.max(0.15 * radius), 0.8 * side.max(0.15 * radius)),
            Kind::Groove => (0.8 * radius, 0.02 * radius + 0.5),
            Kind::Ring => (side + 0.3 * radius, side + 0.3 * radius),
            _ => (side, side * [1.0, 1.0, rng.random_range(0.25..1.0)][rng.random_range(0..3)]),
        };
        let many = !matches!(kind, Kind::Label { .. } | Kind::Serial | Kind::Matrix { .. } | Kind::Groove | Kind::Ring);
        let colour = palette.contrast(body, 0.08, rng);
        let own = Self {
            kind,
            centre: (0.0, 0.0),
            half,
            round: half.0 == half.1 && rng.random_bool(0.7),
            colour: if matches!(kind, Kind::Hole) { shade(body, rng.random_range(0.05..0.4)) } else { colour },
            ink: palette.contrast(if matches!(kind, Kind::Label { .. }) { colour } else { body }, 0.2, rng),
            relief: rng.random_range(0.0..0.6),
            seed: rng.next_u32(),
            play: if rng.random_bool(0.5) { rng.random_range(0.0..0.9) } else { 0.0 },
        };
        let places = places(radius, half.0, many, matches!(kind, Kind::Ring), rng);
        places.into_iter().map(|centre| Self { centre, ..own }).collect()
    }

    /// Draws it on the part whose middle is at `middle` and that lies off by `lie` (shift and turn).
    pub(super) fn draw(
        &self,
        painter: &mut Painter<'_>,
        middle: Point,
        lie: (f32, f32, f32),
        light: Point,
        rng: &mut impl Rng,
    ) {
        let (sin, cos) = lie.2.sin_cos();
        let mut play = || self.play * rng.random_range(-1.0..1.0f32);
        let (x, y) = (self.centre.0 + play(), self.centre.1 + play());
        let centre = (middle.0 + lie.0 + x * cos - y * sin, middle.1 + lie.1 + y * cos + x * sin);
        let own = |u: f32, v: f32| (u * cos + v * sin, v * cos - u * sin);
        let reach = length(self.half.0, self.half.1);
        let shape = |u: f32, v: f32| {
            let (p, q) = own(u, v);
            if self.round { length(p, q) - self.half.0 } else { rounded_box(p, q, self.half, 0.2 * self.half.1) }
        };
        // Light on a rim: 1 where it looks towards the light from above.
        let rim = |u: f32, v: f32, d: f32, width: f32| {
            let facing = (u * light.0 + v * light.1) / length(u, v).max(1e-3);
            self.relief * facing * smoothstep(-width, 0.0, d)
        };
        let width = 0.35 * self.half.1;
        let mut fill = |opacity: f32, colour: &dyn Fn(f32, f32, f32) -> Colour| {
            painter.fill(centre, reach, 0.0, opacity, shape, colour);
        };
        match self.kind {
            Kind::Hole => fill(1.0, &|u, v, d| shade(self.colour, 1.0 - rim(u, v, d, width))),
            Kind::Boss => fill(1.0, &|u, v, d| shade(self.colour, 1.0 + rim(u, v, d, width))),
            Kind::Pocket => fill(0.8, &|u, v, d| shade(self.colour, 1.0 - rim(u, v, d, 0.5 * width))),
            Kind::Screw { slots } => {
                // Nobody turns all screws to the same angle.
                let turn = rng.random_range(0.0..TAU);
                fill(1.0, &|u, v, d| {
                    let angle = ((v.atan2(u) + turn) * slots / TAU * 2.0).rem_euclid(1.0) - 0.5;
                    let across = length(u, v) * (angle * 0.5 * TAU / slots).sin().abs();
                    let slot = across < 0.14 * self.half.0 && length(u, v) < 0.62 * self.half.0;
                    if slot { shade(self.ink, 0.5) } else { shade(self.colour, 1.0 + rim(u, v, d, width)) }
                });
            }
            Kind::Matrix { cells } => {
                let noise = Noise::new(self.seed);
                fill(1.0, &|u, v, _| {
                    let (p, q) = own(u, v);
                    let cell = |x: f32, half: f32| floor((x / half + 1.0) * 0.5 * cells);
                    let (column, row) = (cell(p, self.half.0), cell(q, self.half.1));
                    // Two sides are solid, as a reader needs them.
                    let dark = column <= 0 || row >= cells as i32 - 1 || noise.cell(column, row) < 0.5;
                    if dark { self.ink } else { self.colour }
                });
            }
            Kind::Bars => {
                let noise = Noise::new(self.seed);
                fill(1.0, &|u, v, _| {
                    let bar = floor((own(u, v).0 / self.half.0 + 1.0) * 22.0);
                    if noise.cell(bar, 0) < 0.5 { self.ink } else { self.colour }
                });
            }
            Kind::Groove => fill(1.0, &|_, _, _| self.ink),
            Kind::Ring => {
                let line = 0.02 * self.half.0 + 0.6;
                let ring = |u: f32, v: f32| (length(u, v) - self.half.0 + line).abs() - line;
                painter.fill(centre, reach, 0.0, 1.0, ring, |u, v, d| {
                    shade(blend(self.colour, self.ink, 0.5), 1.0 + rim(u, v, d, line))
                });
            }
            Kind::Text => self.write(painter, centre, self.half, self.seed, own),
            Kind::Serial => self.write(painter, centre, self.half, rng.next_u32(), own),
            Kind::Label { lines } => {
                fill(1.0, &|_, _, _| self.colour);
                for line in 0..lines {
                    let pitch = 1.7 * self.half.1 / lines as f32;
                    let down = (line as f32 - 0.5 * (lines as f32 - 1.0)) * pitch;
                    let at = (centre.0 - down * sin, centre.1 + down * cos);
                    self.write(painter, at, (0.85 * self.half.0, 0.34 * pitch), self.seed + line as u32, own);
                }
            }
        }
    }

    /// A line of characters that no alphabet has: strokes between points of a grid.
    fn write(
        &self,
        painter: &mut Painter<'_>,
        middle: Point,
        half: Point,
        seed: u32,
        own: impl Fn(f32, f32) -> Point + Copy,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.into());
        let count = ((half.0 / half.1 / 0.75) as usize).clamp(1, LINE);
        let pitch = 2.0 * half.0 / count as f32;
        let pen = 0.16 * half.1 + 0.25;
        for k in 0..count {
            if rng.random_bool(0.1) {
                continue;
            }
            let along = (k as f32 + 0.5) * pitch - half.0;
            let mut point = || {
                let (column, row) = (rng.random_range(-1..2), rng.random_range(-1..2));
                (along + 0.32 * pitch * column as f32, 0.9 * half.1 * row as f32)
            };
            let strokes = Path { points: (0..5).map(|_| point()).collect() };
            // The character's own window, in the coordinates of the line.
            let (cos, sin) = own(1.0, 0.0);
            let at = (middle.0 + along * cos, middle.1 - along * sin);
            let distance = |u: f32, v: f32| {
                let (p, q) = own(u + at.0 - middle.0, v + at.1 - middle.1);
                strokes.nearest(p, q).distance - pen
            };
            painter.fill(at, length(0.4 * pitch, half.1) + pen, 0.0, 0.9, distance, |_, _, _| self.ink);
        }
    }
}

/// Middles of one thing or of several: alone, mirrored, in the corners, around a circle, in a row, in a grid.
fn places(radius: f32, half: f32, many: bool, central: bool, rng: &mut impl Rng) -> Vec<Point> {
    let reach = (0.8 * radius - half).max(0.05 * radius);
    let (x, y) = (rng.random_range(-1.0..1.0) * reach, rng.random_range(-1.0..1.0) * reach);
    let line = |count: usize| (0..count).map(move |k| (k as f32 + 0.5) / count as f32 * 2.0 - 1.0);
    let fitting = ((reach / (1.3 * half)) as usize + 1).clamp(1, 9);
    match if central {
        0
    } else if many {
        rng.random_range(0..7)
    } else {
        1
    } {
        0 => vec![(0.0, 0.0)],
        1 => vec![(x, y)],
        2 => vec![(x, y), (-x, y)],
        3 => vec![(x, y), (-x, y), (x, -y), (-x, -y)],
        4 => {
            let count = rng.random_range(3..9);
            let radius = reach * rng.random_range(0.6..1.0);
            let phase = [0.0, 0.5][rng.random_range(0..2)] * TAU / count as f32;
            let angles = (0..count).map(|k| phase + TAU * k as f32 / count as f32);
            angles.map(|angle| (radius * angle.cos(), radius * angle.sin())).collect()
        }
        5 => line(fitting).map(|along| (along * reach, y)).collect(),
        _ => {
            let rows = fitting.min(5);
            line(rows).flat_map(|down| line(fitting).map(move |along| (along * reach, down * reach))).collect()
        }
    }
}
