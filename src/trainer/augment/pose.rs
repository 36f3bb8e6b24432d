//! How far parts lie apart from picture to picture: shift, rotation and size, by matching their edges pair by pair.

use crate::trainer::appearance::grey;
use crate::trainer::pictures::Picture;
use crate::trainer::select::quantile;

/// How far poses lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PoseSpread {
    /// Pixels.
    pub shift: f64,
    /// Degrees.
    pub rotation: f64,
    /// Of 1.
    pub scale: f64,
}

/// Pairs that are matched, at most.
const PAIRS: usize = 24;
/// Longest side on which edges are matched, cells.
const SIDE: usize = 128;
/// Edges that correlate less than this in the best pose show different things: a texture, or other parts.
const ALIKE: f32 = 0.4;
/// A pose must match better by this much to be preferred to no change.
const BETTER: f32 = 0.01;
/// The searched poses, to each side: cells, degrees, of 1.
const SHIFTS: i32 = 7;
const ANGLES: f64 = 12.0;
const SCALES: f64 = 0.12;
/// Share of the pairs that lie within the range.
const WITHIN: f64 = 0.9;

/// The spread between the pictures of one set; none where fewer than half of the pairs show the same edges.
pub fn spread(pictures: &[Picture], (width, height): (usize, usize)) -> Option<PoseSpread> {
    let every = pictures.len().div_ceil(PAIRS + 1).max(1);
    let edges: Vec<Edges> =
        pictures.iter().step_by(every).map(|picture| Edges::of(&picture.rgb, width, height)).collect();
    let pairs = edges.len().saturating_sub(1);
    let found: Vec<Match> = edges.windows(2).filter_map(|pair| pair[0].find(&pair[1])).collect();
    if found.is_empty() || found.len() * 2 < pairs {
        return None;
    }
    // Two parts that each lie anywhere in a range are farther apart than one from the middle.
    let range = |of: &dyn Fn(&Match) -> f64| {
        quantile(found.iter().map(|pose| of(pose).abs() as f32), WITHIN).unwrap_or(0.0) / std::f64::consts::SQRT_2
    };
    Some(PoseSpread {
        shift: range(&|pose| pose.dx).max(range(&|pose| pose.dy)),
        rotation: range(&|pose| pose.angle.to_degrees()),
        scale: range(&|pose| pose.scale - 1.0),
    })
}

/// Where the edges of one picture are found in another.
#[derive(Debug, Clone, Copy)]
struct Match {
    dx: f64,
    dy: f64,
    angle: f64,
    scale: f64,
}

impl Match {
    const STILL: Self = Self { dx: 0.0, dy: 0.0, angle: 0.0, scale: 1.0 };

    fn and(&self, change: &Self) -> Self {
        Self {
            dx: self.dx + change.dx,
            dy: self.dy + change.dy,
            angle: self.angle + change.angle,
            scale: self.scale * change.scale,
        }
    }

    fn shifts(reach: i32) -> Vec<Self> {
        let side = |k: i32| f64::from(k % (2 * reach + 1) - reach);
        let count = (2 * reach + 1).pow(2);
        (0..count).map(|k| Self { dx: side(k), dy: side(k / (2 * reach + 1)), ..Self::STILL }).collect()
    }

    fn angles() -> Vec<Self> {
        (-8..=8).map(|k| Self { angle: (f64::from(k) / 8.0 * ANGLES).to_radians(), ..Self::STILL }).collect()
    }

    fn scales() -> Vec<Self> {
        (-6..=6).map(|k| Self { scale: 1.0 + f64::from(k) / 6.0 * SCALES, ..Self::STILL }).collect()
    }
}

/// The strength of the edges of a picture, on a coarse grid.
struct Edges {
    width: usize,
    height: usize,
    /// Pixels per cell.
    cell: usize,
    values: Vec<f32>,
}

impl Edges {
    fn of(rgb: &[u8], columns: usize, rows: usize) -> Self {
        let cell = columns.max(rows).div_ceil(SIDE);
        let (width, height) = (columns / cell, rows / cell);
        let bright = grey(rgb);
        let mean = |x: usize, y: usize| {
            let sum: f32 =
                (0..cell * cell).map(|k| bright[(y * cell + k / cell) * columns + x * cell + k % cell]).sum();
            sum / (cell * cell) as f32
        };
        let small: Vec<f32> = (0..width * height).map(|i| mean(i % width, i / width)).collect();
        let at = |x: usize, y: usize| small[y.min(height - 1) * width + x.min(width - 1)];
        let mut values: Vec<f32> = (0..width * height)
            .map(|i| {
                let (x, y) = (i % width, i / width);
                (at(x + 1, y) - at(x.saturating_sub(1), y)).hypot(at(x, y + 1) - at(x, y.saturating_sub(1)))
            })
            .collect();
        // Wider edges match from farther away.
        values = crate::inspection::anomaly::gaussian_blur(&values, width, height, 1.2);
        let middle = values.iter().sum::<f32>() / values.len() as f32;
        values.iter_mut().for_each(|value| *value -= middle);
        Self { width, height, cell, values }
    }

    fn find(&self, other: &Self) -> Option<Match> {
        let mut pose = Match::STILL;
        let mut alike = self.correlation(other, &pose);
        // One kind of change after the other, the shift once more at the end.
        for candidates in [Match::shifts(SHIFTS), Match::angles(), Match::scales(), Match::shifts(2)] {
            let tried =
                candidates.iter().map(|change| pose.and(change)).map(|next| (self.correlation(other, &next), next));
            if let Some((better, next)) = tried.max_by(|a, b| a.0.total_cmp(&b.0))
                && better > alike + BETTER
            {
                (alike, pose) = (better, next);
            }
        }
        let cell = self.cell as f64;
        (alike >= ALIKE).then_some(Match { dx: pose.dx * cell, dy: pose.dy * cell, ..pose })
    }

    /// Correlation of the inner part of the edges with those of another picture in a pose.
    fn correlation(&self, other: &Self, pose: &Match) -> f32 {
        let (sin, cos) = pose.angle.sin_cos();
        let (sin, cos) = ((sin * pose.scale) as f32, (cos * pose.scale) as f32);
        let (middle_x, middle_y) = ((self.width - 1) as f32 / 2.0, (self.height - 1) as f32 / 2.0);
        let (dx, dy) = (pose.dx as f32 + middle_x, pose.dy as f32 + middle_y);
        let (mut sums, mut count) = ([0.0f32; 5], 0.0f32);
        for y in (self.height / 8..self.height * 7 / 8).step_by(2) {
            for x in (self.width / 8..self.width * 7 / 8).step_by(2) {
                let (u, v) = (x as f32 - middle_x, y as f32 - middle_y);
                let (a, b) =
                    (self.values[y * self.width + x], other.between(cos * u - sin * v + dx, sin * u + cos * v + dy));
                sums = [sums[0] + a, sums[1] + b, sums[2] + a * a, sums[3] + b * b, sums[4] + a * b];
                count += 1.0;
            }
        }
        let [a, b, aa, bb, ab] = sums.map(|sum| sum / count.max(1.0));
        (ab - a * b) / ((aa - a * a) * (bb - b * b)).max(1e-12).sqrt()
    }

    /// The value between four cells.
    fn between(&self, x: f32, y: f32) -> f32 {
        let (x, y) = (x.clamp(0.0, (self.width - 1) as f32), y.clamp(0.0, (self.height - 1) as f32));
        let (column, row) = (x as usize, y as usize);
        let (right, below) = ((column + 1).min(self.width - 1), (row + 1).min(self.height - 1));
        let (px, py) = (x - column as f32, y - row as f32);
        let at = |x: usize, y: usize| self.values[y * self.width + x];
        let (above, under) = (
            at(column, row) * (1.0 - px) + at(right, row) * px,
            at(column, below) * (1.0 - px) + at(right, below) * px,
        );
        above * (1.0 - py) + under * py
    }
}

#[cfg(test)]
mod tests {
    use super::super::resample::{Pose, posed};
    use super::super::symmetry::Turn;
    use super::*;
    use crate::synthetic::{Product, good_part};

    #[test]
    fn the_change_between_two_pictures_of_a_part_is_found() {
        let part = good_part(Product::Board, 1, 256).rgb;
        let still = Edges::of(&part, 256, 256);
        for (dx, dy, degrees, scale) in
            [(0.0, 0.0, 0.0, 1.0), (8.0, -6.0, 0.0, 1.0), (4.0, 2.0, 6.0, 1.0), (0.0, 0.0, 0.0, 1.06)]
        {
            let pose = Pose { turn: Turn::NONE, angle: f64::to_radians(degrees), scale, dx, dy };
            let found = still.find(&Edges::of(&posed(&part, 256, 256, &pose), 256, 256)).expect("is the same part");
            let near =
                |a: f64, b: f64, allowed: f64| assert!((a - b).abs() <= allowed, "{found:?} instead of {pose:?}");
            near(found.dx, dx, 2.1);
            near(found.dy, dy, 2.1);
            near(found.angle.to_degrees(), degrees, 1.6);
            near(found.scale, scale, 0.021);
        }
    }

    #[test]
    fn pictures_of_different_things_have_no_pose() {
        let noise = |seed: u64| {
            let mut rng = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(seed);
            (0..128 * 128).flat_map(|_| [rand::RngExt::random::<u8>(&mut rng); 3]).collect()
        };
        let pictures: Vec<Picture> =
            (0..8).map(|seed| Picture { path: "x".into(), rgb: noise(seed), set: 0 }).collect();
        assert_eq!(spread(&pictures, (128, 128)), None);
    }
}
