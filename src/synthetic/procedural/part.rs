//! Rendered parts: an outline with bevels and a shadow on a bed, one or several in a tray, with what is mounted on it.

use std::f32::consts::{PI, TAU};

use rand::{Rng, RngExt};

use super::super::noise::Noise;
use super::super::scene::{Colour, FRAME, Painter, Pose, blend, shade, whole};
use super::super::shapes::{Point, Polygon, coverage, length, rounded_box, smoothstep};
use super::features::Feature;
use super::leaves::Leaves;
use super::material::{Material, Palette, Piece, log_uniform};

/// What a part lies on.
enum Bed {
    Surface(Material),
    Heap(Leaves),
}

/// A shape around the origin, about 1 from its middle to its farthest edge.
enum Outline {
    Disc,
    Ring { hole: f32 },
    Box { half: Point, corner: f32 },
    Regular { corners: f32, round: f32 },
    Gear { teeth: f32, depth: f32 },
    Cross { arm: f32, width: f32, shift: Point },
    Polygon(Polygon),
}

impl Outline {
    fn random(rng: &mut impl Rng) -> Self {
        match rng.random_range(0..12) {
            0 | 1 => Outline::Disc,
            2 => Outline::Ring { hole: rng.random_range(0.25..0.75) },
            3..=6 => {
                let half = (0.95, rng.random_range(0.15..0.95f32));
                Outline::Box { half, corner: [0.05, 0.3, 1.0][rng.random_range(0..3)] * half.1 }
            }
            7 => Outline::Regular { corners: rng.random_range(3..9) as f32, round: rng.random_range(0.0..0.25) },
            8 => Outline::Gear { teeth: rng.random_range(5..28) as f32, depth: rng.random_range(0.05..0.16) },
            9 | 10 => Outline::Cross {
                arm: rng.random_range(0.2..0.5),
                width: rng.random_range(0.2..0.5),
                shift: (rng.random_range(-0.6..0.6), rng.random_range(-0.6..0.6)),
            },
            _ => Outline::Polygon(Polygon::irregular((0.0, 0.0), 1.0, rng.random_range(4..8), rng)),
        }
    }

    /// Signed distance, or nearly so.
    fn distance(&self, u: f32, v: f32) -> f32 {
        match self {
            Outline::Disc => length(u, v) - 0.95,
            Outline::Ring { hole } => {
                let radius = length(u, v);
                (radius - 0.95).max(hole - radius)
            }
            Outline::Box { half, corner } => rounded_box(u, v, *half, *corner),
            Outline::Regular { corners, round } => {
                let sector = TAU / corners;
                let angle = (v.atan2(u) + TAU).rem_euclid(sector) - 0.5 * sector;
                let apothem = 0.95 * (0.5 * sector).cos();
                let flat = length(u, v) * angle.cos() - apothem;
                flat.max(length(u, v) - 0.95 + round * (0.95 - apothem))
            }
            Outline::Gear { teeth, depth } => {
                let wave = (v.atan2(u) * teeth).sin();
                0.8 * (length(u, v) - 0.95 + depth * (0.5 - 0.5 * (3.0 * wave).clamp(-1.0, 1.0)))
            }
            Outline::Cross { arm, width, shift } => {
                let across = rounded_box(u, v - shift.1, (0.95, *arm), 0.06);
                across.min(rounded_box(u - shift.0, v, (*width, 0.95), 0.06))
            }
            Outline::Polygon(polygon) => polygon.distance(u, v),
        }
    }
}

/// Parts of one kind in rows and columns.
#[derive(Clone, Copy)]
struct Tray {
    columns: i32,
    rows: i32,
    pitch: Point,
    /// Units by which each part lies off its place, and radians by which it is turned.
    play: f32,
    turn: f32,
}

/// A part, or a tray of them.
pub(super) struct Part {
    bed: Bed,
    body: Material,
    printed: bool,
    outline: Outline,
    /// Half the extent in units.
    radius: f32,
    /// Turn of every picture.
    angle: f32,
    bevel: f32,
    height: f32,
    shadow: f32,
    tray: Option<Tray>,
    features: Vec<Feature>,
    /// How far and how much a part may lie and be turned otherwise.
    shift: f32,
    turn: f32,
}

impl Part {
    /// Any part.
    pub(super) fn random(palette: &Palette, rng: &mut impl Rng) -> Self {
        let tray = rng.random_bool(0.25).then(|| {
            let (columns, rows) = (rng.random_range(1..6), rng.random_range(2..6));
            let pitch = 0.92 * FRAME / columns.max(rows) as f32;
            let tight = rng.random_bool(0.6);
            Tray {
                columns,
                rows,
                pitch: (pitch, pitch),
                play: if tight { 0.4 } else { 0.05 * pitch },
                turn: if tight { 0.02 } else { [0.2, PI][rng.random_range(0..2)] },
            }
        });
        let radius = match tray {
            Some(tray) => tray.pitch.0 * rng.random_range(0.28..0.44),
            // From small in the frame to a close-up that fills it.
            None => log_uniform(45.0, 190.0, rng),
        };
        let bed = if tray.is_none() && rng.random_bool(0.06) {
            Bed::Heap(Leaves::random(palette, rng))
        } else if rng.random_bool(0.75) {
            Bed::Surface(Material::calm(palette, rng))
        } else {
            Bed::Surface(Material::random(palette, rng))
        };
        let body = if rng.random_bool(0.7) { Material::calm(palette, rng) } else { Material::random(palette, rng) };
        let most = if tray.is_some() { 2 } else { 6 };
        let features = (0..rng.random_range(0..=most))
            .flat_map(|_| Feature::group(palette, body.main_colour(), radius, rng))
            .collect();
        let free = rng.random_bool(0.15);
        Self {
            bed,
            body,
            printed: rng.random_bool(0.3),
            outline: Outline::random(rng),
            radius,
            angle: if rng.random_bool(0.7) { 0.0 } else { rng.random_range(0.0..TAU) },
            bevel: rng.random_range(0.01..0.16) * radius,
            height: if rng.random_bool(0.7) { rng.random_range(0.05..0.6) } else { 0.0 },
            shadow: rng.random_range(0.0..0.09) * radius,
            tray,
            features,
            shift: rng.random_range(0.0..7.0),
            turn: if free && tray.is_none() { PI } else { rng.random_range(0.0..0.06) },
        }
    }

    /// Draws one picture.
    pub(super) fn draw(&self, size: usize, light: Point, rng: &mut impl Rng) -> Vec<Colour> {
        let pose = Pose::random(self.shift, self.turn, 0.02, rng).adjusted(self.angle, 1.0);
        let under = Piece::anywhere(rng);
        let mut plane = match &self.bed {
            Bed::Heap(leaves) => leaves.draw(size, Pose::random(2.0, 0.01, 0.01, rng), light, rng),
            Bed::Surface(_) => vec![[0.0; 3]; size * size],
        };
        let piece = if self.printed { Piece::fixed(rng) } else { Piece::anywhere(rng) };
        let lay = Noise::new(rng.next_u32());
        let towards = pose.direction(light.0, light.1);
        let pixel = FRAME / size as f32 / pose.scale;
        let mut cover = vec![0.0; size * size];
        for (i, x, y) in whole(size) {
            let (u, v) = pose.to_part(x, y);
            let (p, q) = self.fold(u, v, lay);
            let distance = self.distance(p, q);
            let inside = coverage(distance, pixel);
            if inside < 1.0 {
                if let Bed::Surface(bed) = &self.bed {
                    plane[i] = bed.at(x - 0.5 * FRAME, y - 0.5 * FRAME, light, &under);
                }
                if self.shadow > 0.0 && distance < 3.0 * self.shadow {
                    let (p, q) = self.fold(u + self.shadow * towards.0, v + self.shadow * towards.1, lay);
                    let covered = smoothstep(self.shadow, -self.shadow, self.distance(p, q));
                    plane[i] = shade(plane[i], 1.0 - 0.6 * covered);
                }
            }
            if inside > 0.0 {
                let tilt = smoothstep(-self.bevel, 0.0, distance) * self.height;
                let relief = if tilt > 0.0 { 1.0 + tilt * self.facing(p, q, distance, towards) } else { 1.0 };
                let colour = shade(self.body.at(p, q, towards, &piece), relief);
                plane[i] = blend(plane[i], colour, inside);
                cover[i] = inside;
            }
        }
        for place in self.places() {
            let mut painter = Painter { plane: &mut plane, clip: &cover, size, pose };
            for feature in &self.features {
                let lie = self.tray.map_or((0.0, 0.0, 0.0), |tray| tray.lie(place.0, place.1, lay));
                feature.draw(&mut painter, place.2, lie, towards, rng);
            }
        }
        plane
    }

    /// Columns, rows and middles of all parts.
    fn places(&self) -> Vec<(i32, i32, Point)> {
        let Some(tray) = self.tray else { return vec![(0, 0, (0.0, 0.0))] };
        let cells = (0..tray.rows).flat_map(|row| (0..tray.columns).map(move |column| (column, row)));
        cells.map(|(column, row)| (column, row, tray.middle(column, row))).collect()
    }

    /// From the tray to the nearest part's own coordinates.
    fn fold(&self, u: f32, v: f32, lay: Noise) -> Point {
        let Some(tray) = self.tray else { return (u, v) };
        let nearest = |x: f32, pitch: f32, count: i32| {
            ((x / pitch + 0.5 * (count - 1) as f32).round().max(0.0) as i32).min(count - 1)
        };
        let (column, row) = (nearest(u, tray.pitch.0, tray.columns), nearest(v, tray.pitch.1, tray.rows));
        let middle = tray.middle(column, row);
        let (dx, dy, turn) = tray.lie(column, row, lay);
        let (x, y) = (u - middle.0 - dx, v - middle.1 - dy);
        let (sin, cos) = turn.sin_cos();
        (x * cos + y * sin, y * cos - x * sin)
    }

    fn distance(&self, p: f32, q: f32) -> f32 {
        self.outline.distance(p / self.radius, q / self.radius) * self.radius
    }

    /// How much the bevel at a place looks towards the light, -1 to 1.
    fn facing(&self, p: f32, q: f32, distance: f32, light: Point) -> f32 {
        let slope = (self.distance(p + 0.5, q) - distance, self.distance(p, q + 0.5) - distance);
        (slope.0 * light.0 + slope.1 * light.1) / length(slope.0, slope.1).max(1e-3)
    }
}

impl Tray {
    fn middle(self, column: i32, row: i32) -> Point {
        let at = |index: i32, count: i32, pitch: f32| (index as f32 - 0.5 * (count - 1) as f32) * pitch;
        (at(column, self.columns, self.pitch.0), at(row, self.rows, self.pitch.1))
    }

    /// How a part lies off its place: shift and turn.
    fn lie(self, column: i32, row: i32, lay: Noise) -> (f32, f32, f32) {
        let draw = |k: i32| 2.0 * lay.cell(column + 31 * k, row) - 1.0;
        (self.play * draw(0), self.play * draw(1), self.turn * draw(2))
    }
}
