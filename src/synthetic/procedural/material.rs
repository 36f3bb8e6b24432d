//! What surfaces look like from near: noise of many spectra, gratings, weaves, grids, brushed and turned metal.

use std::f32::consts::{PI, TAU};

use rand::{Rng, RngExt};

use super::super::corrupt::texture::Texture;
use super::super::noise::{Noise, floor};
use super::super::scene::{Colour, blend, shade};
use super::super::shapes::{Point, length, rounded_box, smoothstep};

/// The colours of one product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Palette {
    /// Whether there are none.
    pub(super) grey: bool,
    hue: f32,
}

impl Palette {
    /// Grey as often as colour, as industrial cameras are.
    pub(super) fn random(rng: &mut impl Rng) -> Self {
        Self { grey: rng.random_bool(0.5), hue: rng.random_range(0.0..1.0) }
    }

    /// A colour of any brightness; most are faint, and strong ones of a product are related.
    pub(super) fn colour(&self, rng: &mut impl Rng) -> Colour {
        let value = rng.random_range(0.04..0.97);
        self.of_value(value, rng)
    }

    /// A colour at least `apart` from another in brightness.
    pub(super) fn contrast(&self, other: Colour, apart: f32, rng: &mut impl Rng) -> Colour {
        let level = other.iter().sum::<f32>() / 3.0;
        let apart = apart + rng.random_range(0.0..0.3);
        let up = if level + apart > 0.97 { false } else { level - apart < 0.03 || rng.random_bool(0.5) };
        let value = if up { level + apart } else { level - apart };
        self.of_value(value.clamp(0.03, 0.97), rng)
    }

    fn of_value(&self, value: f32, rng: &mut impl Rng) -> Colour {
        let strong = rng.random_bool(0.35);
        let saturation = if strong { rng.random_range(0.2..0.85) } else { rng.random_range(0.0..0.14) };
        let hue = if rng.random_bool(0.7) { self.hue + rng.random_range(-0.07..0.07) } else { rng.random() };
        if self.grey {
            return [value; 3];
        }
        [5.0, 3.0, 1.0].map(|n: f32| {
            let k = (n + hue * 6.0).rem_euclid(6.0);
            value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
        })
    }
}

/// Course of one period of a grating.
#[derive(Debug, Clone, Copy)]
enum Profile {
    Sine,
    Square,
    Saw,
    /// A thin line, of this share of the period.
    Line(f32),
}

/// What becomes of a noise field.
#[derive(Debug, Clone, Copy)]
enum Fold {
    Smooth,
    Veins,
    /// Spots where the noise is above a level.
    Spots(f32),
}

/// Outline of the cells of a grid.
#[derive(Debug, Clone, Copy)]
enum Cell {
    Box { corner: f32 },
    Disc { radius: f32 },
}

/// How a surface varies; lengths are in cells of the material.
enum Pattern {
    Plain,
    Cloud { octaves: u32, roughness: f32, stretch: f32, warp: f32, fold: Fold },
    Grating { profile: Profile, wobble: f32 },
    Weave { period: i32, over: i32, step: i32 },
    Grid { aspect: f32, stagger: f32, joint: f32, cell: Cell, variation: f32, relief: f32 },
    Mosaic { joint: f32, variation: f32 },
    Brushed { depth: f32 },
    Turned { depth: f32, grooves: f32 },
    Speckle { share: f32 },
    Texture(Texture),
}

/// A surface as a function of the place on it.
pub(super) struct Material {
    pattern: Pattern,
    noise: Noise,
    from: Colour,
    to: Colour,
    /// Cells per unit.
    scale: f32,
    axis: Point,
    /// Depth of fine grain, and of slow unevenness.
    grain: f32,
    uneven: f32,
}

/// What differs between two pieces of one material: where the piece was cut from, and its tone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    offset: Point,
    tone: f32,
}

impl Piece {
    /// A piece from anywhere: grain and weave lie elsewhere on every part.
    pub(super) fn anywhere(rng: &mut impl Rng) -> Self {
        let mut offset = || rng.random_range(-2000.0..2000.0);
        Self { offset: (offset(), offset()), tone: rng.random_range(0.97..1.03) }
    }

    /// The same piece always, as a print is: only the tone varies.
    pub(super) fn fixed(rng: &mut impl Rng) -> Self {
        Self { offset: (0.0, 0.0), tone: rng.random_range(0.98..1.02) }
    }

    /// The piece with another tone.
    pub(super) fn toned(self, factor: f32) -> Self {
        Self { tone: self.tone * factor, ..self }
    }
}

/// A number whose logarithm is uniform.
pub(super) fn log_uniform(low: f32, high: f32, rng: &mut impl Rng) -> f32 {
    low * (high / low).powf(rng.random_range(0.0..1.0))
}

impl Material {
    /// Any surface.
    pub(super) fn random(palette: &Palette, rng: &mut impl Rng) -> Self {
        let pattern = match rng.random_range(0..20) {
            0 | 1 => Pattern::Plain,
            2..=6 => cloud(rng),
            7 | 8 => grating(rng),
            9 | 10 => weave(rng),
            11..=13 => grid(rng),
            14 => Pattern::Mosaic { joint: rng.random_range(0.0..0.16), variation: rng.random_range(0.1..1.0) },
            15 | 16 => Pattern::Brushed { depth: rng.random_range(0.1..0.45) },
            17 => Pattern::Turned { depth: rng.random_range(0.05..0.3), grooves: rng.random_range(0.0..0.15) },
            18 => Pattern::Speckle { share: rng.random_range(0.03..0.5) },
            _ => Pattern::Texture(Texture::random(rng)),
        };
        Self::with(pattern, palette, rng)
    }

    /// A calm surface: what lies under a part, or is the body of one.
    pub(super) fn calm(palette: &Palette, rng: &mut impl Rng) -> Self {
        let pattern = match rng.random_range(0..8) {
            0..=3 => Pattern::Plain,
            4 => Pattern::Brushed { depth: rng.random_range(0.03..0.2) },
            5 => Pattern::Turned { depth: rng.random_range(0.03..0.15), grooves: rng.random_range(0.0..0.05) },
            _ => cloud(rng),
        };
        let mut material = Self::with(pattern, palette, rng);
        material.to = blend(material.from, material.to, rng.random_range(0.1..0.5));
        material
    }

    fn with(pattern: Pattern, palette: &Palette, rng: &mut impl Rng) -> Self {
        let from = palette.colour(rng);
        let to = palette.contrast(from, 0.06, rng);
        let period = match pattern {
            Pattern::Grating { .. } | Pattern::Weave { .. } => log_uniform(4.0, 40.0, rng),
            Pattern::Grid { .. } => log_uniform(9.0, 90.0, rng),
            Pattern::Brushed { .. } | Pattern::Turned { .. } => log_uniform(1.2, 5.0, rng),
            Pattern::Speckle { .. } => log_uniform(1.0, 3.0, rng),
            _ => log_uniform(6.0, 90.0, rng),
        };
        // Most surfaces lie square to the camera.
        let angle: f32 = match rng.random_range(0..4) {
            0 => 0.0,
            1 => 0.5 * PI,
            2 => 0.25 * PI,
            _ => rng.random_range(0.0..PI),
        };
        Self {
            pattern,
            noise: Noise::new(rng.next_u32()),
            from,
            to,
            scale: 1.0 / period,
            axis: (angle.cos(), angle.sin()),
            grain: if rng.random_bool(0.6) { rng.random_range(0.0..0.16) } else { 0.0 },
            uneven: if rng.random_bool(0.6) { rng.random_range(0.0..0.12) } else { 0.0 },
        }
    }

    /// The plain colour that the surface has most of.
    pub(super) fn main_colour(&self) -> Colour {
        self.from
    }

    /// The colour at a place in units, lit from `light`.
    pub(super) fn at(&self, u: f32, v: f32, light: Point, piece: &Piece) -> Colour {
        let (x, y) = (u + piece.offset.0, v + piece.offset.1);
        let mut tone = piece.tone;
        if self.grain > 0.0 {
            tone += self.grain * (self.noise.cell(floor(x * 0.9), floor(y * 0.9)) - 0.5);
        }
        if self.uneven > 0.0 {
            tone += self.uneven * self.noise.value(0.013 * x + 0.004 * y, 0.016 * y);
        }
        let across = |x: f32, y: f32| (x * self.axis.0 + y * self.axis.1, y * self.axis.0 - x * self.axis.1);
        let (p, q) = across(x, y);
        let (share, relief) = match &self.pattern {
            Pattern::Texture(texture) => return shade(texture.at(p, q).map(|c| c / 255.0), tone),
            // Turned about the part's middle, wherever the piece was cut.
            Pattern::Turned { depth, grooves } => self.turned(u, v, *depth, *grooves, light, piece),
            pattern => self.sample(pattern, p * self.scale, q * self.scale, across(light.0, light.1)),
        };
        shade(blend(self.from, self.to, share), tone * relief)
    }

    /// Share of the second colour, and the factor of the light.
    fn sample(&self, pattern: &Pattern, p: f32, q: f32, light: Point) -> (f32, f32) {
        let noise = self.noise;
        match *pattern {
            Pattern::Cloud { octaves, roughness, stretch, warp, fold } => {
                let bend = if warp > 0.0 { warp * noise.value(0.6 * p + 11.0, 0.6 * q) } else { 0.0 };
                let level = noise.spectrum((p + bend) * stretch, (q - bend) / stretch, octaves, roughness);
                let share = match fold {
                    Fold::Smooth => 0.5 + 0.9 * level,
                    Fold::Veins => 1.0 - 3.0 * level.abs(),
                    Fold::Spots(above) => smoothstep(above, above + 0.12, level),
                };
                (share.clamp(0.0, 1.0), 1.0)
            }
            Pattern::Grating { profile, wobble } => {
                let bend = if wobble > 0.0 { wobble * noise.value(0.2 * p, 0.05 * q) } else { 0.0 };
                let phase = p + bend - floor(p + bend) as f32;
                let edge = (0.7 * self.scale).min(0.2);
                let bar = |width: f32| smoothstep(-edge, edge, 0.5 * width - (phase - 0.5).abs());
                let share = match profile {
                    Profile::Sine => 0.5 + 0.5 * (TAU * phase).sin(),
                    Profile::Square => bar(0.5),
                    Profile::Saw => phase,
                    Profile::Line(width) => bar(width),
                };
                (share, 1.0)
            }
            Pattern::Weave { period, over, step } => {
                let u = p + 0.14 * noise.value(0.08 * p, 0.15 * q);
                let v = q + 0.14 * noise.value(0.15 * p + 40.0, 0.08 * q);
                let (column, row) = (floor(u), floor(v));
                let (cu, cv) = (u - column as f32 - 0.5, v - row as f32 - 0.5);
                let warp = (column + step * row).rem_euclid(period) < over;
                let (across, along, thread, lean) =
                    if warp { (cu, cv, column, light.0) } else { (cv, cu, row + 7919, light.1) };
                let round = (1.0 - 3.0 * across * across) * (1.0 - 1.2 * along * along);
                let uneven = 0.1 * (noise.cell(thread, 0) - 0.5);
                (f32::from(u8::from(warp)), 0.35 + 0.7 * round + 0.3 * lean * across + uneven)
            }
            Pattern::Grid { aspect, stagger, joint, cell, variation, relief } => {
                let row = floor(q);
                let p = p / aspect + stagger * (row.rem_euclid(2)) as f32;
                let column = floor(p);
                let (x, y) = ((p - column as f32 - 0.5) * aspect, q - row as f32 - 0.5);
                let distance = match cell {
                    Cell::Box { corner } => rounded_box(x, y, (0.5 * aspect - joint, 0.5 - joint), corner),
                    Cell::Disc { radius } => length(x, y) - radius,
                };
                let edge = (0.7 * self.scale).min(0.2);
                let inside = smoothstep(edge, -edge, distance);
                let rim = smoothstep(-0.16, 0.0, distance) * inside * (x * light.0 / aspect + y * light.1);
                let own = variation * (noise.cell(column, row) - 0.5) * inside;
                (1.0 - inside, 1.0 + own + relief * rim)
            }
            Pattern::Mosaic { joint, variation } => {
                let (nearest, second, own) = self.mosaic(p, q);
                let edge = (0.7 * self.scale).min(0.2);
                let inside = if joint > 0.0 { smoothstep(joint - edge, joint + edge, second - nearest) } else { 1.0 };
                (1.0 - inside * (1.0 - variation * own), 1.0)
            }
            Pattern::Brushed { depth } => {
                let streak = 0.6 * noise.value(0.03 * p, q) + 0.4 * noise.value(0.05 * p + 90.0, 2.3 * q);
                (0.5 + 0.5 * streak, 1.0 + depth * streak)
            }
            Pattern::Speckle { share } => (f32::from(u8::from(noise.cell(floor(p), floor(q)) < share)), 1.0),
            Pattern::Plain | Pattern::Turned { .. } | Pattern::Texture(_) => (0.0, 1.0),
        }
    }

    /// Distances to the nearest and second nearest seed of a cell, and the nearest cell's random number.
    fn mosaic(&self, p: f32, q: f32) -> (f32, f32, f32) {
        let (column, row) = (floor(p), floor(q));
        let (mut nearest, mut second, mut own) = (f32::MAX, f32::MAX, 0.0);
        for k in 0..9 {
            let (ix, iy) = (column + k % 3 - 1, row + k / 3 - 1);
            let (a, b) = (self.noise.cell(ix, iy), self.noise.cell(ix + 5077, iy - 811));
            let (dx, dy) = (ix as f32 + a - p, iy as f32 + b - q);
            let squared = dx * dx + dy * dy;
            if squared < nearest {
                (nearest, second, own) = (squared, nearest, (a * 7.3 + b * 3.1).fract());
            } else {
                second = second.min(squared);
            }
        }
        (nearest.sqrt(), second.sqrt(), own)
    }

    /// Concentric grooves shine in two opposite fans.
    fn turned(&self, u: f32, v: f32, depth: f32, grooves: f32, light: Point, piece: &Piece) -> (f32, f32) {
        let radius = length(u, v).max(1e-3);
        let turn = v.atan2(u) / TAU + 0.5;
        let across = radius * self.scale + piece.offset.0;
        let streak = self.noise.value_around(turn * 9.0, across, 9);
        let facing = (u * light.0 + v * light.1) / radius;
        let groove = grooves * (radius * self.scale * 2.0).sin();
        (0.5 + 0.5 * streak, 0.9 + depth * (streak + facing * facing) + groove)
    }
}

fn cloud(rng: &mut impl Rng) -> Pattern {
    let fold = match rng.random_range(0..5) {
        0 => Fold::Veins,
        1 => Fold::Spots(rng.random_range(-0.1..0.45)),
        _ => Fold::Smooth,
    };
    // Wood and rolled metal have a grain.
    let stretch = if rng.random_bool(0.3) { log_uniform(1.5, 5.0, rng) } else { 1.0 };
    let warp = if rng.random_bool(0.3) { rng.random_range(0.2..1.5) } else { 0.0 };
    Pattern::Cloud { octaves: rng.random_range(2..6), roughness: rng.random_range(0.4..1.0), stretch, warp, fold }
}

fn grating(rng: &mut impl Rng) -> Pattern {
    let profile = match rng.random_range(0..4) {
        0 => Profile::Sine,
        1 => Profile::Square,
        2 => Profile::Saw,
        _ => Profile::Line(rng.random_range(0.1..0.4)),
    };
    Pattern::Grating { profile, wobble: if rng.random_bool(0.4) { rng.random_range(0.05..0.6) } else { 0.0 } }
}

fn weave(rng: &mut impl Rng) -> Pattern {
    let (period, over, step) =
        [(2, 1, 1), (3, 1, 1), (4, 2, 1), (4, 2, 2), (5, 1, 2), (8, 3, 3)][rng.random_range(0..6)];
    Pattern::Weave { period, over, step }
}

fn grid(rng: &mut impl Rng) -> Pattern {
    let joint = rng.random_range(0.02..0.14);
    let round = rng.random_bool(0.35);
    Pattern::Grid {
        aspect: if round { 1.0 } else { [1.0, 1.0, 2.0, 2.6][rng.random_range(0..4)] },
        stagger: [0.0, 0.5][rng.random_range(0..2)],
        joint,
        cell: if round {
            Cell::Disc { radius: rng.random_range(0.18..0.46) }
        } else {
            Cell::Box { corner: rng.random_range(0.0..0.3) * (0.5 - joint) }
        },
        variation: if rng.random_bool(0.5) { rng.random_range(0.02..0.4) } else { 0.0 },
        relief: if rng.random_bool(0.5) { rng.random_range(0.2..1.2) } else { 0.0 },
    }
}
