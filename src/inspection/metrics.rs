//! Metrics of anomaly detection, equal to scikit-learn's. `None` where a class is missing: never a made-up number.

use super::anomaly::AnomalyMap;

/// Score and label in descending order of score, as one sortable key each: 32 million pixels stay within 256 MB.
fn descending(scores: &[f32], positive: &[bool]) -> Vec<u64> {
    let mut keys: Vec<u64> = scores
        .iter()
        .zip(positive)
        .map(|(score, label)| u64::from(u32::MAX - ordered(*score)) << 1 | u64::from(*label))
        .collect();
    keys.sort_unstable();
    keys
}

/// The bits of a float in an order that follows its value.
fn ordered(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Runs over groups of equal scores from the highest down: `visit(true positives, false positives)` after each group.
fn sweep(keys: &[u64], mut visit: impl FnMut(f64, f64)) {
    let (mut hits, mut misses) = (0u64, 0u64);
    for (index, key) in keys.iter().enumerate() {
        if key & 1 == 1 {
            hits += 1
        } else {
            misses += 1
        }
        if keys.get(index + 1).is_none_or(|next| next >> 1 != key >> 1) {
            visit(hits as f64, misses as f64);
        }
    }
}

fn counts(positive: &[bool]) -> Option<(f64, f64)> {
    let hits = positive.iter().filter(|label| **label).count();
    let misses = positive.len() - hits;
    (hits > 0 && misses > 0).then_some((hits as f64, misses as f64))
}

/// Area under the ROC curve; values below 0.5 are reported as they are.
pub fn auroc(scores: &[f32], positive: &[bool]) -> Option<f64> {
    let (hits, misses) = counts(positive)?;
    let (mut area, mut last) = (0.0, (0.0, 0.0));
    sweep(&descending(scores, positive), |tp, fp| {
        area += (fp - last.1) * (tp + last.0) * 0.5;
        last = (tp, fp);
    });
    Some(area / (hits * misses))
}

/// Average precision: the sum of `(R_n - R_{n-1}) P_n`.
pub fn average_precision(scores: &[f32], positive: &[bool]) -> Option<f64> {
    let (hits, _) = counts(positive)?;
    let (mut sum, mut last) = (0.0, 0.0);
    sweep(&descending(scores, positive), |tp, fp| {
        sum += (tp - last) / hits * tp / (tp + fp);
        last = tp;
    });
    Some(sum)
}

/// The largest F1 over all thresholds.
pub fn f1_max(scores: &[f32], positive: &[bool]) -> Option<f64> {
    let (hits, _) = counts(positive)?;
    let mut best = 0.0f64;
    sweep(&descending(scores, positive), |tp, fp| best = best.max(2.0 * tp / (hits + tp + fp)));
    Some(best)
}

/// False-positive rate up to which the per-region overlap is integrated.
const PRO_LIMIT: f64 = 0.3;

/// Area under the per-region-overlap curve up to a false-positive rate of 0.3, divided by 0.3 (protocol `default`:
/// 8-connected ground-truth regions, every distinct value is a threshold, the curve is interpolated at the limit).
///
/// `masks` belong to `maps` in order; a good picture has an empty mask.
pub fn pro(maps: &[AnomalyMap], masks: &[Vec<bool>]) -> Option<f64> {
    let mut normal = 0usize;
    let mut regions = 0usize;
    // One entry per pixel: its value, and the share of a region that it covers (0 for a normal pixel).
    let mut entries: Vec<(u32, f32)> = Vec::with_capacity(maps.iter().map(|map| map.values.len()).sum());
    for (map, mask) in maps.iter().zip(masks) {
        let shares = region_shares(mask, map.width, map.height, &mut regions);
        for (value, share) in map.values.iter().zip(shares) {
            normal += usize::from(share == 0.0);
            entries.push((ordered(*value), share));
        }
    }
    if regions == 0 || normal == 0 {
        return None;
    }
    entries.sort_unstable_by_key(|(value, _)| std::cmp::Reverse(*value));
    let (mut area, mut covered, mut misses) = (0.0, 0.0f64, 0usize);
    let mut last = (0.0, 0.0);
    for (index, (value, share)) in entries.iter().enumerate() {
        if *share == 0.0 {
            misses += 1
        } else {
            covered += f64::from(*share)
        }
        if entries.get(index + 1).is_some_and(|(next, _)| next == value) {
            continue;
        }
        let point = (misses as f64 / normal as f64, covered / regions as f64);
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
        assert!((auroc(&SCORES, &LABELS).expect("both classes") - 0.8).abs() < 1e-9);
        assert!((average_precision(&SCORES, &LABELS).expect("both classes") - 0.759_523_809_523_809_5).abs() < 1e-9);
        assert!((f1_max(&SCORES, &LABELS).expect("both classes") - 0.833_333_333_333_333_4).abs() < 1e-9);
    }

    #[test]
    fn a_missing_class_has_no_metric() {
        assert_eq!(auroc(&[1.0, 2.0], &[true, true]), None);
        assert_eq!(average_precision(&[1.0], &[false]), None);
        assert_eq!(pro(&[AnomalyMap { width: 2, height: 1, values: vec![0.0, 1.0] }], &[vec![false, false]]), None);
    }

    fn map(values: &[f32]) -> AnomalyMap {
        AnomalyMap { width: values.len(), height: 1, values: values.to_vec() }
    }

    #[test]
    fn pro_of_a_perfect_map_is_one_and_of_an_inverted_one_is_zero() {
        let mask = vec![true, false, false, true, true, false, false, false];
        let perfect: Vec<f32> = mask.iter().map(|m| f32::from(u8::from(*m))).collect();
        assert!((pro(&[map(&perfect)], std::slice::from_ref(&mask)).expect("regions") - 1.0).abs() < 1e-9);
        let inverted: Vec<f32> = perfect.iter().map(|v| 1.0 - v).collect();
        assert!(pro(&[map(&inverted)], &[mask]).expect("regions") < 0.2);
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
        let value = pro(&[map(&values)], &[mask]).expect("regions");
        assert!((value - 0.5).abs() < 1e-6, "{value}");
    }
}
