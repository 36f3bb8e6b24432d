//! Whether a flipped or turned picture is still a usual one. Only where the good pictures show it: text is never mirrored,
//! a lamp never changes its side.

use std::fmt;

use burn::tensor::{Device, Tensor, module::adaptive_avg_pool2d};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::resample::{self, Pose};
use crate::model::features::FeatureExtractor;
use crate::trainer::pictures::{Picture, picture_tensor, spread};
use crate::trainer::select::quantile;

/// A flip, a turn, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Rows become columns.
    pub swap: bool,
    /// Left becomes right, after that.
    pub mirror: bool,
    /// Top becomes bottom, after that.
    pub flip: bool,
}

impl Turn {
    /// As it is.
    pub const NONE: Self = Self { swap: false, mirror: false, flip: false };
    /// Left becomes right.
    pub const MIRROR: Self = Self { mirror: true, ..Self::NONE };
    /// Top becomes bottom.
    pub const FLIP: Self = Self { flip: true, ..Self::NONE };
    /// Upside down.
    pub const HALF: Self = Self { mirror: true, flip: true, ..Self::NONE };
    /// By a right angle.
    pub const QUARTER: Self = Self { swap: true, mirror: true, flip: false };
}

/// Which flips and turns leave a usual picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symmetry {
    /// Left and right.
    pub mirror: bool,
    /// Top and bottom.
    pub flip: bool,
    /// Upside down.
    pub half_turn: bool,
    /// By right angles.
    pub quarter_turn: bool,
}

impl Symmetry {
    /// None of them.
    pub const NONE: Self = Self { mirror: false, flip: false, half_turn: false, quarter_turn: false };
    /// All of them.
    pub const ALL: Self = Self { mirror: true, flip: true, half_turn: true, quarter_turn: true };

    /// One of the turns that these make together, each as often as any other.
    pub fn draw(self, rng: &mut impl Rng) -> Turn {
        let (swap, mirror, flip) = (rng.random(), rng.random(), rng.random());
        match self {
            Self { quarter_turn: true, mirror: false, flip: false, .. } => Turn { swap, mirror, flip: mirror ^ swap },
            Self { quarter_turn: true, .. } => Turn { swap, mirror, flip },
            Self { half_turn: true, mirror: false, flip: false, .. } => Turn { swap: false, mirror, flip: mirror },
            Self { half_turn: true, .. } => Turn { swap: false, mirror, flip },
            _ => Turn { swap: false, mirror: self.mirror && mirror, flip: self.flip && flip },
        }
    }
}

impl fmt::Display for Symmetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = [
            (self.mirror, "left-right"),
            (self.flip, "top-bottom"),
            (self.half_turn, "half turn"),
            (self.quarter_turn, "quarter turn"),
        ];
        let names: Vec<&str> = shown.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        if names.is_empty() { f.write_str("no flips") } else { write!(f, "flips: {}", names.join(", ")) }
    }
}

/// What the pictures of a set allow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown {
    /// Flips and turns.
    pub symmetry: Symmetry,
    /// Turns by [`ANGLE`] to both sides: parts lie at any angle.
    pub any_angle: bool,
}

/// The angle that stands for any, degrees.
pub const ANGLE: f64 = 10.0;
/// Pictures whose changed copies are looked at, and pictures that they are compared with, at most.
const PROBES: usize = 16;
const OTHERS: usize = 64;
/// Pictures below which nothing is shown.
const ENOUGH: usize = 10;
/// Places per side that are compared on their own: a printed word must not drown in the rest of a picture.
const PLACES: usize = 8;
/// A changed copy may be this much farther from the others than the picture itself, at nearly the worst place.
const FARTHER: f32 = 1.2;
/// Nearly the worst: the share of the places that must be nearer.
const WORST: f64 = 0.95;

/// Looks whether changed copies are as near to the other good pictures as unchanged ones, place by place in the backbone's
/// features.
///
/// # Errors
/// What the device says.
pub fn shown(
    pictures: &[Picture],
    features: &FeatureExtractor,
    (width, height): (usize, usize),
    device: &Device,
) -> anyhow::Result<Shown> {
    let nothing = Shown { symmetry: Symmetry::NONE, any_angle: false };
    if pictures.len() < ENOUGH {
        return Ok(nothing);
    }
    let others: Vec<&Picture> = spread(pictures, OTHERS).collect();
    let look = |rgb: &[u8]| places(rgb, features, (width, height), device);
    let mut known = others.iter().map(|picture| look(&picture.rgb)).collect::<anyhow::Result<Vec<_>>>()?;
    let scales = scales(&known);
    known.iter_mut().for_each(|place| scale(place, &scales));
    let every = others.len().div_ceil(PROBES);
    let probes: Vec<usize> = (0..others.len()).step_by(every).collect();
    let own = mean_nearest(probes.iter().map(|&probe| Ok((probe, known[probe].clone()))), &known)?;
    // A place where all pictures are alike (a plain background) would otherwise decide by its noise.
    let floor = 0.25 * own.iter().sum::<f32>() / own.len() as f32;
    let usual = |change: &dyn Fn(&[u8]) -> Vec<u8>| -> anyhow::Result<bool> {
        let changed = probes.iter().map(|&probe| {
            let mut found = look(&change(&others[probe].rgb))?;
            scale(&mut found, &scales);
            Ok((probe, found))
        });
        let ratios = mean_nearest(changed, &known)?.into_iter().zip(&own).map(|(far, near)| far / near.max(floor));
        let ratio = quantile(ratios, WORST);
        Ok(ratio.is_some_and(|ratio| ratio <= f64::from(FARTHER)))
    };
    let turn = |turn| usual(&|rgb| resample::turned(rgb, width, height, turn, (0, 0)));
    let symmetry = Symmetry {
        mirror: turn(Turn::MIRROR)?,
        flip: turn(Turn::FLIP)?,
        half_turn: turn(Turn::HALF)?,
        quarter_turn: width == height && turn(Turn::QUARTER)?,
    };
    let angle = |degrees: f64| {
        let pose = Pose { turn: Turn::NONE, angle: degrees.to_radians(), scale: 1.0, dx: 0.0, dy: 0.0 };
        usual(&|rgb| resample::posed(rgb, width, height, &pose))
    };
    Ok(Shown { symmetry, any_angle: angle(ANGLE)? && angle(-ANGLE)? })
}

/// Features of every place of a picture.
fn places(
    rgb: &[u8],
    features: &FeatureExtractor,
    (width, height): (usize, usize),
    device: &Device,
) -> anyhow::Result<Vec<Vec<f32>>> {
    let [_, fine, coarse] = features.forward(picture_tensor(rgb, width, height, device));
    let pool = |stage: Tensor<4>| adaptive_avg_pool2d(stage, [PLACES, PLACES]);
    let joined = Tensor::cat(vec![pool(fine), pool(coarse)], 1);
    let channels = joined.dims()[1];
    let values = joined.permute([0, 2, 3, 1]).try_into_vec_as::<f32>()?;
    Ok(values.chunks_exact(channels).map(<[f32]>::to_vec).collect())
}

/// One over the standard deviation of every channel over all pictures and places: each counts alike.
fn scales(pictures: &[Vec<Vec<f32>>]) -> Vec<f32> {
    let rows = || pictures.iter().flatten();
    let count = rows().count().max(1) as f32;
    let channels = rows().next().map_or(0, Vec::len);
    let mut means = vec![0.0f32; channels];
    let mut squares = vec![0.0f32; channels];
    for row in rows() {
        means.iter_mut().zip(row).for_each(|(mean, value)| *mean += value / count);
    }
    for row in rows() {
        squares.iter_mut().zip(row.iter().zip(&means)).for_each(|(sum, (v, mean))| *sum += (v - mean).powi(2) / count);
    }
    squares.into_iter().map(|square| square.sqrt().max(1e-3).recip()).collect()
}

fn scale(picture: &mut [Vec<f32>], scales: &[f32]) {
    picture.iter_mut().for_each(|place| place.iter_mut().zip(scales).for_each(|(value, scale)| *value *= scale));
}

/// Distance to the nearest of the known pictures but the probe's own, at every place, mean over the probes.
fn mean_nearest(
    probes: impl Iterator<Item = anyhow::Result<(usize, Vec<Vec<f32>>)>>,
    known: &[Vec<Vec<f32>>],
) -> anyhow::Result<Vec<f32>> {
    let mut sums = vec![0.0f32; PLACES * PLACES];
    let mut count = 0.0f32;
    for probe in probes {
        let (own, found) = probe?;
        count += 1.0;
        for (place, sum) in sums.iter_mut().enumerate() {
            let others = known.iter().enumerate().filter(|(index, _)| *index != own);
            let distance = |other: &[f32]| found[place].iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            *sum += others.map(|(_, other)| distance(&other[place])).fold(f32::INFINITY, f32::min).sqrt();
        }
    }
    sums.iter_mut().for_each(|sum| *sum /= count.max(1.0));
    Ok(sums)
}
