//! Metrics of anomaly detection, equal to scikit-learn's. `None` where a class is missing: never a made-up number.

use super::anomaly::AnomalyMap;

/// Scores and labels in descending order of score: sorted once for all metrics of a threshold.
///
/// One sortable key each: a hundred million pixels stay within a gigabyte.
pub struct Ranking {
    keys: Vec<u64>,
    hits: f64,
    misses: f64,
}

/// The bits of a float in an order that follows its value; both zeros are one value, a tie.
fn ordered(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The float behind [`ordered`].
fn value_of(ordered: u32) -> f32 {
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

impl Ranking {
    /// Sorts scores with their labels.
    pub fn new(scored: impl Iterator<Item = (f32, bool)>) -> Self {
        let mut keys: Vec<u64> =
            scored.map(|(score, label)| u64::from(u32::MAX - ordered(score)) << 1 | u64::from(label)).collect();
        keys.sort_unstable();
        let hits = keys.iter().filter(|key| **key & 1 == 1).count();
        Self { hits: hits as f64, misses: (keys.len() - hits) as f64, keys }
    }

    /// Runs over groups of equal scores from the highest down: `visit(true positives, false positives)` after each group.
    /// Nothing, where a class is missing.
    fn sweep(&self, mut visit: impl FnMut(f64, f64)) -> Option<()> {
        if self.hits == 0.0 || self.misses == 0.0 {
            return None;
        }
        let (mut hits, mut misses) = (0u64, 0u64);
        for (index, key) in self.keys.iter().enumerate() {
            if key & 1 == 1 {
                hits += 1
            } else {
                misses += 1
            }
            if self.keys.get(index + 1).is_none_or(|next| next >> 1 != key >> 1) {
                visit(hits as f64, misses as f64);
            }
        }
        Some(())
    }

    /// Area under the ROC curve; values below 0.5 are reported as they are.
    pub fn auroc(&self) -> Option<f64> {
        let (mut area, mut last) = (0.0, (0.0, 0.0));
        self.sweep(|tp, fp| {
            area += (fp - last.1) * (tp + last.0) * 0.5;
            last = (tp, fp);
        })?;
        Some(area / (self.hits * self.misses))
    }

    /// Average precision: the sum of `(R_n - R_{n-1}) P_n`.
    pub fn average_precision(&self) -> Option<f64> {
        let (mut sum, mut last) = (0.0, 0.0);
        self.sweep(|tp, fp| {
            sum += (tp - last) / self.hits * tp / (tp + fp);
            last = tp;
        })?;
        Some(sum)
    }

    /// The largest F1 over all thresholds.
    pub fn f1_max(&self) -> Option<f64> {
        let mut best = 0.0f64;
        self.sweep(|tp, fp| best = best.max(2.0 * tp / (self.hits + tp + fp)))?;
        Some(best)
    }
}

/// False-positive rate up to which the per-region overlap is integrated.
const PRO_LIMIT: f64 = 0.3;

/// Thresholds of the released evaluation.
const DIAD_THRESHOLDS: f64 = 200.0;

/// All pixels of a test in descending order of value, each with the share of a ground-truth region that it covers.
///
/// Regions are 8-connected.
pub struct Overlap {
    /// Value, and share of a region (0 for a normal pixel).
    entries: Vec<(u32, f32)>,
    normal: usize,
    regions: usize,
}

impl Overlap {
    /// Sorts the pixels of maps with their masks; an empty mask marks nothing.
    pub fn new<'a>(judged: impl Iterator<Item = (&'a AnomalyMap, &'a [bool])>) -> Self {
        let mut overlap = Self { entries: Vec::new(), normal: 0, regions: 0 };
        for (map, mask) in judged {
            let shares = region_shares(mask, map.width, map.height, &mut overlap.regions);
            for (index, value) in map.values.iter().enumerate() {
                let share = shares.get(index).copied().unwrap_or(0.0);
                overlap.normal += usize::from(share == 0.0);
                overlap.entries.push((ordered(*value), share));
            }
        }
        overlap.entries.sort_unstable_by_key(|(value, _)| std::cmp::Reverse(*value));
        overlap
    }

    fn measurable(&self) -> bool {
        self.regions > 0 && self.normal > 0
    }

    /// Area under the per-region-overlap curve up to a false-positive rate of 0.3, divided by 0.3: every distinct value is
    /// a threshold, and the curve is interpolated at the limit.
    pub fn pro(&self) -> Option<f64> {
        if !self.measurable() {
            return None;
        }
        let (mut area, mut covered, mut misses) = (0.0, 0.0f64, 0usize);
        let mut last = (0.0, 0.0);
        for (index, (value, share)) in self.entries.iter().enumerate() {
            if *share == 0.0 {
                misses += 1
            } else {
                covered += f64::from(*share)
            }
            if self.entries.get(index + 1).is_some_and(|(next, _)| next == value) {
                continue;
            }
            let point = (misses as f64 / self.normal as f64, covered / self.regions as f64);
            if point.0 >= PRO_LIMIT {
                let part = if point.0 > last.0 { (PRO_LIMIT - last.0) / (point.0 - last.0) } else { 0.0 };
                let height = last.1 + part * (point.1 - last.1);
                area += (PRO_LIMIT - last.0) * (last.1 + height) * 0.5;
                return Some(area / PRO_LIMIT);
            }
            area += (point.0 - last.0) * (point.1 + last.1) * 0.5;
            last = point;
        }
        Some((area + (PRO_LIMIT - last.0) * last.1) / PRO_LIMIT)
    }

    /// The same as DiAD's released evaluation has it, for figures beside published ones: 200 thresholds from the smallest to
    /// the largest value, points below a false-positive rate of 0.3 alone, rates divided by the largest of them.
    pub fn pro_diad(&self) -> Option<f64> {
        let (first, last) = (self.entries.first()?, self.entries.last()?);
        let (highest, lowest) = (f64::from(value_of(first.0)), f64::from(value_of(last.0)));
        let step = (highest - lowest) / DIAD_THRESHOLDS;
        if !self.measurable() || step <= 0.0 {
            return None;
        }
        let mut points = Vec::new();
        let (mut index, mut covered, mut misses) = (0, 0.0f64, 0usize);
        for k in (0..((highest - lowest) / step).ceil() as usize).rev() {
            let threshold = lowest + k as f64 * step;
            while let Some((_, share)) = self.entries.get(index).filter(|e| f64::from(value_of(e.0)) > threshold) {
                misses += usize::from(*share == 0.0);
                covered += f64::from(*share);
                index += 1;
            }
            points.push((misses as f64 / self.normal as f64, covered / self.regions as f64));
        }
        points.retain(|(rate, _)| *rate < PRO_LIMIT);
        let largest = points.last().map(|(rate, _)| *rate).filter(|rate| *rate > 0.0)?;
        let area: f64 = points.windows(2).map(|pair| (pair[1].0 - pair[0].0) * (pair[1].1 + pair[0].1) * 0.5).sum();
        Some(area / largest)
    }
}

/// For every pixel of a mask, 1 / area of its region; 0 outside. Counts the regions.
fn region_shares(mask: &[bool], width: usize, height: usize, regions: &mut usize) -> Vec<f32> {
    let map = AnomalyMap { width, height, values: mask.iter().map(|m| f32::from(u8::from(*m))).collect() };
    let mut shares = vec![0.0; mask.len()];
    let mut pending = Vec::new();
    let mut cells = Vec::new();
    for start in 0..mask.len() {
        if !mask[start] || shares[start] != 0.0 {
            continue;
        }
        *regions += 1;
        shares[start] = 1.0;
        pending.push(start);
        while let Some(cell) = pending.pop() {
            cells.push(cell);
            map.neighbours_of(cell, |next| {
                if mask[next] && shares[next] == 0.0 {
                    shares[next] = 1.0;
                    pending.push(next);
                }
            });
        }
        let share = 1.0 / cells.len() as f32;
        cells.drain(..).for_each(|cell| shares[cell] = share);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values by scikit-learn 1.9.1:
    //   s = np.array([.1,.4,.35,.8,.8,.2,.65,.4,.05,.9], dtype=np.float32); y = [0,0,1,1,0,0,1,1,0,1]
    //   roc_auc_score(y, s), average_precision_score(y, s), max F1 of precision_recall_curve(y, s)
    const SCORES: [f32; 10] = [0.1, 0.4, 0.35, 0.8, 0.8, 0.2, 0.65, 0.4, 0.05, 0.9];
    const LABELS: [bool; 10] = [false, false, true, true, false, false, true, true, false, true];

    #[test]
    fn equal_to_scikit_learn() {
        let ranking = Ranking::new(SCORES.into_iter().zip(LABELS));
        assert!((ranking.auroc().expect("both classes") - 0.8).abs() < 1e-9);
        assert!((ranking.average_precision().expect("both classes") - 0.759_523_809_523_809_5).abs() < 1e-9);
        assert!((ranking.f1_max().expect("both classes") - 0.833_333_333_333_333_4).abs() < 1e-9);
    }

    #[test]
    fn both_zeros_are_a_tie() {
        // roc_auc_score([0, 1], [0.0, -0.0])
        assert_eq!(Ranking::new([(0.0, false), (-0.0, true)].into_iter()).auroc(), Some(0.5));
    }

    #[test]
    fn a_missing_class_has_no_metric() {
        assert_eq!(Ranking::new([(1.0, true), (2.0, true)].into_iter()).auroc(), None);
        assert_eq!(Ranking::new([(1.0, false)].into_iter()).average_precision(), None);
        let overlap = overlap(&[0.0, 1.0], &[]);
        assert_eq!((overlap.pro(), overlap.pro_diad()), (None, None));
    }

    fn overlap(values: &[f32], mask: &[bool]) -> Overlap {
        let map = AnomalyMap { width: values.len(), height: 1, values: values.to_vec() };
        Overlap::new([(&map, mask)].into_iter())
    }

    #[test]
    fn pro_of_a_perfect_map_is_one_and_of_an_inverted_one_is_zero() {
        let mask = vec![true, false, false, true, true, false, false, false];
        let perfect: Vec<f32> = mask.iter().map(|m| f32::from(u8::from(*m))).collect();
        assert!((overlap(&perfect, &mask).pro().expect("regions") - 1.0).abs() < 1e-9);
        let inverted: Vec<f32> = perfect.iter().map(|v| 1.0 - v).collect();
        assert!(overlap(&inverted, &mask).pro().expect("regions") < 0.2);
    }

    #[test]
    fn every_region_weighs_the_same() {
        // Ten normal pixels, one region of one pixel found first, one of nine found never below the limit.
        let mut values = vec![0.5; 10];
        let mut mask = vec![false; 10];
        values.push(0.9);
        mask.push(true);
        values.push(0.5);
        mask.push(false);
        values.extend([0.1; 9]);
        mask.extend([true; 9]);
        let value = overlap(&values, &mask).pro().expect("regions");
        assert!((value - 0.5).abs() < 1e-6, "{value}");
    }

    #[test]
    fn the_released_protocol_matches_its_code() {
        // The function of network.md 6.6 in numpy, with scipy.ndimage.label (3x3 of ones) and sklearn.metrics.auc:
        //   maps = ((np.arange(2*12*16) * 7919) % 1009).reshape(2, 12, 16).astype(np.float32) / 1009
        //   masks[0, 2:5, 3:9] = masks[1, 6:11, 1:4] = masks[1, 0:2, 12:16] = 1; maps[masks] += 0.3
        let mut maps: Vec<AnomalyMap> = (0..2)
            .map(|k| {
                let values = (0..192).map(|i| (((k * 192 + i) * 7919) % 1009) as f32 / 1009.0).collect();
                AnomalyMap { width: 16, height: 12, values }
            })
            .collect();
        let mut masks = vec![vec![false; 192]; 2];
        for (k, rows, columns) in [(0, 2..5, 3..9), (1, 6..11, 1..4), (1, 0..2, 12..16)] {
            for (y, x) in rows.flat_map(|y| columns.clone().map(move |x| (y, x))) {
                masks[k][y * 16 + x] = true;
                maps[k].values[y * 16 + x] += 0.3;
            }
        }
        let overlap = Overlap::new(maps.iter().zip(masks.iter().map(|mask| &mask[..])));
        assert!((overlap.pro_diad().expect("regions") - 0.426544738).abs() < 1e-6, "{:?}", overlap.pro_diad());
        assert!((overlap.pro().expect("regions") - 0.430724724).abs() < 1e-6, "{:?}", overlap.pro());
    }
}
