//! Anomaly maps: smoothing, pooling to a score, and regions.

use serde::{Deserialize, Serialize};

/// One number per frame, pooled from its map; higher is more anomalous.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct AnomalyScore(pub f32);

/// Anomaly value per cell of the model grid: row-major, non-negative, absolute scale.
#[derive(Debug, Clone, PartialEq)]
pub struct AnomalyMap {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` values.
    pub values: Vec<f32>,
}

/// A connected set of cells above a threshold, in cells of the model grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Left column of the bounding box.
    pub x: u32,
    /// Top row of the bounding box.
    pub y: u32,
    /// Columns of the bounding box.
    pub width: u32,
    /// Rows of the bounding box.
    pub height: u32,
    /// Cells in the region.
    pub area: u32,
    /// Largest map value in the region.
    pub peak: f32,
    /// The number of the ROI that it lies on (`RoiMask::name`); absent where the recipe has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roi: Option<u8>,
}

impl AnomalyMap {
    /// The largest value; 0 for an empty map.
    pub fn max(&self) -> f32 {
        self.values.iter().copied().fold(0.0, f32::max)
    }

    /// Whether every value is a number.
    pub fn is_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }

    /// 8-connected regions of cells above `threshold`, largest peak first.
    pub fn regions(&self, threshold: f32) -> Vec<Region> {
        let mut regions = Vec::new();
        self.each_region(threshold, |region, _| regions.push(region));
        regions.sort_by(|a, b| b.peak.total_cmp(&a.peak));
        regions
    }

    /// Calls `visit` with every 8-connected region of cells above `threshold` and its cells, in no stated order.
    pub(super) fn each_region(&self, threshold: f32, mut visit: impl FnMut(Region, &[usize])) {
        let mut labelled = vec![false; self.values.len()];
        // Those before `next` are done, those from it on wait.
        let mut cells = Vec::new();
        for start in 0..self.values.len() {
            if labelled[start] || self.values[start] <= threshold {
                continue;
            }
            labelled[start] = true;
            cells.clear();
            cells.push(start);
            let mut next = 0;
            let (mut left, mut right) = (usize::MAX, 0);
            let (mut top, mut bottom) = (usize::MAX, 0);
            let mut peak = f32::MIN;
            while let Some(&cell) = cells.get(next) {
                next += 1;
                let (x, y) = (cell % self.width, cell / self.width);
                (left, right) = (left.min(x), right.max(x));
                (top, bottom) = (top.min(y), bottom.max(y));
                peak = peak.max(self.values[cell]);
                neighbours(x, y, self.width, self.height, |next| {
                    if !labelled[next] && self.values[next] > threshold {
                        labelled[next] = true;
                        cells.push(next);
                    }
                });
            }
            let region = Region {
                x: left as u32,
                y: top as u32,
                width: (right - left + 1) as u32,
                height: (bottom - top + 1) as u32,
                area: cells.len() as u32,
                peak,
                roi: None,
            };
            visit(region, &cells);
        }
    }

    /// The level below which some 8-connected region has at least `min_area` cells: `regions(threshold)` holds such a
    /// region exactly when `threshold` is less than this. 0 if the map has fewer cells.
    ///
    /// Cells are added from the highest down and joined (union-find), so one pass answers for every threshold.
    pub fn region_level(&self, min_area: u32) -> f32 {
        let mut order: Vec<u32> = (0..self.values.len() as u32).collect();
        order.sort_unstable_by(|a, b| self.values[*b as usize].total_cmp(&self.values[*a as usize]));
        let mut parents: Vec<u32> = (0..self.values.len() as u32).collect();
        let mut areas = vec![0u32; self.values.len()];
        for &cell in &order {
            let cell = cell as usize;
            areas[cell] = 1;
            let mut root = cell as u32;
            neighbours(cell % self.width, cell / self.width, self.width, self.height, |next| {
                if areas[next] > 0 {
                    let other = find(&mut parents, next as u32);
                    if other != root {
                        let (small, large) =
                            if areas[other as usize] < areas[root as usize] { (other, root) } else { (root, other) };
                        parents[small as usize] = large;
                        areas[large as usize] += areas[small as usize];
                        root = large;
                    }
                }
            });
            if areas[root as usize] >= min_area {
                return self.values[cell];
            }
        }
        0.0
    }
}

impl AnomalyMap {
    /// Calls `visit` with the index of every cell that touches `cell`, corners included.
    pub(super) fn neighbours_of(&self, cell: usize, visit: impl FnMut(usize)) {
        neighbours(cell % self.width, cell / self.width, self.width, self.height, visit);
    }
}

fn find(parents: &mut [u32], mut cell: u32) -> u32 {
    while parents[cell as usize] != cell {
        parents[cell as usize] = parents[parents[cell as usize] as usize];
        cell = parents[cell as usize];
    }
    cell
}

fn neighbours(x: usize, y: usize, width: usize, height: usize, mut visit: impl FnMut(usize)) {
    for row in y.saturating_sub(1)..=(y + 1).min(height - 1) {
        for column in x.saturating_sub(1)..=(x + 1).min(width - 1) {
            if (column, row) != (x, y) {
                visit(row * width + column);
            }
        }
    }
}

/// How a map becomes one number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Pooling {
    /// Eight successive 8x8 averages with stride 1, then the maximum: the published rule.
    BoxMax,
    /// Mean of the largest cells: steadier than a maximum.
    TopFraction {
        /// Share of the cells, above 0 and at most 1.
        fraction: f64,
    },
}

impl Pooling {
    /// The score of a map of one frame of the model grid.
    pub fn pool(&self, map: &AnomalyMap) -> AnomalyScore {
        self.pool_tiles(map, map.values.len())
    }

    /// The score of a map whose tiles have `tile` cells each: shares are of a tile, so that a defect counts as much as on a
    /// frame of that size, however many good tiles lie around it.
    pub fn pool_tiles(&self, map: &AnomalyMap, tile: usize) -> AnomalyScore {
        match *self {
            Pooling::BoxMax => {
                let (mut values, mut width, mut height) = (map.values.clone(), map.width, map.height);
                for _ in 0..8 {
                    (values, width, height) = box_average(&values, width, height, 8);
                }
                AnomalyScore(values.into_iter().fold(0.0, f32::max))
            }
            Pooling::TopFraction { fraction } => {
                let count = ((tile as f64 * fraction).round() as usize).clamp(1, map.values.len().max(1));
                let values = highest(&map.values, count);
                AnomalyScore((values.iter().map(|v| f64::from(*v)).sum::<f64>() / count as f64) as f32)
            }
        }
    }
}

/// The `count` highest values in any order, by [`f32::total_cmp`]: what is no number is above or below all that are, by its sign.
///
/// The highest of each block is found with vectors. The last of the `count` highest of these is a bound that `count` values reach, so
/// only what reaches it is looked at one by one. Selecting among all took three times as long, 0.1 ms more for 256x256.
fn highest(values: &[f32], count: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    // A value's bits, ordered as `total_cmp` orders values, and back.
    let ordered = |bits: i32| bits ^ (((bits >> 31) as u32) >> 1) as i32;
    let keys: Vec<i32> = values.iter().map(|value| ordered(value.to_bits() as i32)).collect();
    let best: Vec<i32> = keys.chunks(BLOCK).map(|block| block.iter().copied().fold(i32::MIN, i32::max)).collect();
    let bound = match count.checked_sub(1) {
        Some(last) if last < best.len() => *best.clone().select_nth_unstable_by(last, |a, b| b.cmp(a)).1,
        _ => i32::MIN,
    };
    let mut found = Vec::new();
    for (block, _) in keys.chunks(BLOCK).zip(best).filter(|(_, best)| *best >= bound) {
        found.extend(block.iter().copied().filter(|key| *key >= bound));
    }
    if (1..found.len()).contains(&count) {
        found.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    }
    found.truncate(count);
    found.into_iter().map(|key| f32::from_bits(ordered(key) as u32)).collect()
}

/// Averages of `side x side` cells, stride 1, no padding; a side of the map that is shorter stays as it is.
fn box_average(values: &[f32], width: usize, height: usize, side: usize) -> (Vec<f32>, usize, usize) {
    let (across, down) = (side.min(width), side.min(height));
    let (columns, rows) = (width - across + 1, height - down + 1);
    let mut out = Vec::with_capacity(columns * rows);
    // Down first, then across: all 64 sums of every cell took 26 ms of a frame of 256x256.
    let mut sums = vec![0.0f64; width];
    for y in 0..rows {
        sums.fill(0.0);
        for row in values[y * width..].chunks_exact(width).take(down) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let averages = sums.windows(across).map(|cells| (cells.iter().sum::<f64>() / (across * down) as f64) as f32);
        out.extend(averages);
    }
    (out, columns, rows)
}

/// What [`gaussian_blur`] weighs a cell and its neighbours on one axis with; a single one changes nothing.
pub fn gaussian_taps(sigma: f64) -> Vec<f32> {
    let radius = (4.0 * sigma.max(0.0) + 0.5) as isize;
    if radius == 0 {
        return vec![1.0];
    }
    let weights: Vec<f64> = (-radius..=radius).map(|i| (-0.5 * (i as f64 / sigma).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / total) as f32).collect()
}

/// Gaussian smoothing with radius `int(4 sigma + 0.5)` and half-sample symmetric borders (`d c b a | a b c d | d c b a`).
///
/// `values` are `height * width`, row-major; a sigma of 0 or less changes nothing.
pub fn gaussian_blur(values: &[f32], width: usize, height: usize, sigma: f64) -> Vec<f32> {
    let taps = gaussian_taps(sigma);
    if taps.len() == 1 || values.is_empty() {
        return values.to_vec();
    }
    let mirror = |index: isize, size: usize| {
        let size = size as isize;
        let folded = index.rem_euclid(2 * size);
        (if folded < size { folded } else { 2 * size - 1 - folded }) as usize
    };
    let radius = taps.len() / 2;
    let mut rows = vec![0.0f32; values.len()];
    let mut padded = vec![0.0f32; width + 2 * radius];
    for (source, target) in values.chunks_exact(width).zip(rows.chunks_exact_mut(width)) {
        padded[radius..radius + width].copy_from_slice(source);
        for k in 0..radius {
            padded[k] = source[mirror(k as isize - radius as isize, width)];
            padded[radius + width + k] = source[mirror((width + k) as isize, width)];
        }
        weigh(&taps, |k| &padded[k..], target);
    }
    let mut out = vec![0.0f32; values.len()];
    for (y, target) in out.chunks_exact_mut(width).enumerate() {
        let row = |k: usize| mirror(y as isize + k as isize - radius as isize, height);
        let seen: Vec<&[f32]> = (0..taps.len()).map(|k| &rows[row(k) * width..][..width]).collect();
        weigh(&taps, |k| seen[k], target);
    }
    out
}

/// Values whose sums stay in registers.
const LANES: usize = 16;

/// The sum of what every tap sees, times the tap.
fn weigh<'a>(taps: &[f32], seen: impl Fn(usize) -> &'a [f32], target: &mut [f32]) {
    let (blocks, rest) = target.as_chunks_mut::<LANES>();
    let first = blocks.len() * LANES;
    for (block, target) in blocks.iter_mut().enumerate() {
        let mut sums = [0.0f32; LANES];
        for (k, tap) in taps.iter().enumerate() {
            // Of a length that the compiler knows: the sums stay in registers.
            if let Some(seen) = seen(k)[block * LANES..].first_chunk::<LANES>() {
                for (sum, value) in sums.iter_mut().zip(seen) {
                    *sum += tap * value;
                }
            }
        }
        *target = sums;
    }
    for (index, target) in rest.iter_mut().enumerate() {
        *target = taps.iter().enumerate().map(|(k, tap)| tap * seen(k)[first + index]).sum();
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn map(width: usize, values: &[f32]) -> AnomalyMap {
        AnomalyMap { width, height: values.len() / width, values: values.to_vec() }
    }

    #[test]
    fn diagonal_cells_are_one_region() {
        let map = map(4, &[5.0, 0.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0]);
        let regions = map.regions(1.0);
        assert_eq!(regions.len(), 2);
        assert_eq!(regions[0], Region { x: 3, y: 2, width: 1, height: 1, area: 1, peak: 7.0, roi: None });
        assert_eq!(regions[1], Region { x: 0, y: 0, width: 2, height: 2, area: 2, peak: 6.0, roi: None });
    }

    #[test]
    fn region_level_agrees_with_regions_at_every_threshold() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..50 {
            let values: Vec<f32> = (0..9 * 7).map(|_| rng.random_range(0..12) as f32).collect();
            let map = map(9, &values);
            for min_area in [1, 2, 5, 20] {
                let level = map.region_level(min_area);
                for threshold in (0..24).map(|t| t as f32 * 0.5) {
                    let found = map.regions(threshold).iter().any(|region| region.area >= min_area);
                    assert_eq!(found, threshold < level, "area {min_area}, threshold {threshold}, level {level}");
                }
            }
        }
    }

    #[test]
    fn a_blurred_point_is_the_gaussian() {
        let mut values = vec![0.0; 64 * 64];
        values[32 * 64 + 32] = 1.0;
        let blurred = gaussian_blur(&values, 64, 64, 5.0);
        assert!((f64::from(blurred[32 * 64 + 32]) - 0.079_791_7f64.powi(2)).abs() < 1e-8);
        assert!((blurred.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn borders_mirror_half_samples() {
        // A ramp at the border: the mirrored ramp averages to the plain mean of the first cells.
        let plane = vec![3.0; 8 * 8];
        assert!(gaussian_blur(&plane, 8, 8, 4.0).iter().all(|v| (v - 3.0).abs() < 1e-5));
    }

    #[test]
    fn the_highest_are_those_of_a_sorted_map() {
        let noise = |index: usize| ((index * 7919 + 13) % 10_007) as f32 / 10_007.0 - 0.2;
        let hill = |index: usize| (-(index as f32 - 700.0).powi(2) / 900.0).exp();
        let odd = |index: usize| [f32::NAN, -0.0, 0.0, -f32::NAN, f32::INFINITY, 1e-40, 2.0, 2.0][index % 8];
        for length in [0, 1, 15, 16, 17, 1000, 4099] {
            for of in [&noise as &dyn Fn(usize) -> f32, &hill, &odd] {
                let values: Vec<f32> = (0..length).map(of).collect();
                let mut sorted = values.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                for count in [0, 1, 2, 15, 60, 257, 999, 1000, 4099] {
                    let mut found = highest(&values, count);
                    found.sort_by(|a, b| b.total_cmp(a));
                    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&found), bits(&sorted[..count.min(length)]), "{count} of {length}");
                }
            }
        }
    }

    #[test]
    fn pooling_rules() {
        let values: Vec<f32> = (0..100).map(|v| v as f32).collect();
        assert_eq!(Pooling::TopFraction { fraction: 0.02 }.pool(&map(10, &values)).0, 98.5);
        let mut few = values.clone();
        few[..99].fill(0.0);
        assert_eq!(Pooling::TopFraction { fraction: 0.02 }.pool(&map(10, &few)).0, 49.5, "shares are of all cells");
        assert_eq!(Pooling::TopFraction { fraction: 1.0 }.pool(&map(10, &[0.0; 100])).0, 0.0);
        assert_eq!(Pooling::TopFraction { fraction: 1e-9 }.pool(&map(10, &values)).0, 99.0);
        let plane = map(64, &vec![2.0; 64 * 64]);
        assert!((Pooling::BoxMax.pool(&plane).0 - 2.0).abs() < 1e-6);
    }
}
