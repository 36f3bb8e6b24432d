//! How far a figure may be off because a test split is a sample: percentile intervals by resampling its pictures.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Resamples; the ends of an interval move by about a tenth of its width between seeds.
const RESAMPLES: usize = 1000;
/// Share of the resamples inside of the interval.
const LEVEL: f64 = 0.95;
/// The same pictures give the same interval.
const SEED: u64 = 0xb007;

/// The 95 % percentile interval (Efron 1979) of the area under the ROC curve of `(score, defective)`. Good and defective
/// pictures are drawn apart, as many of each as there are: their ratio is the test split's and no chance.
///
/// `None` where a class is missing. A split that is told apart without an error gives 1 to 1, however few pictures it has.
pub fn auroc_interval(scored: impl Iterator<Item = (f32, bool)>) -> Option<(f64, f64)> {
    let mut sorted: Vec<(f32, bool)> = scored.collect();
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let places = |defective: bool| -> Vec<usize> {
        sorted.iter().enumerate().filter(|(_, (_, d))| *d == defective).map(|(place, _)| place).collect()
    };
    let classes = [places(false), places(true)];
    if classes.iter().any(Vec::is_empty) {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut areas: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            // Sorted once: a resample is how often each picture is in it.
            let mut counts = vec![0u32; sorted.len()];
            for places in &classes {
                places.iter().for_each(|_| counts[places[rng.random_range(0..places.len())]] += 1);
            }
            area(&sorted, &counts) / (classes[0].len() * classes[1].len()) as f64
        })
        .collect();
    areas.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| areas[((RESAMPLES - 1) as f64 * share).round() as usize];
    Some((at((1.0 - LEVEL) / 2.0), at((1.0 + LEVEL) / 2.0)))
}

/// Pairs of a good and a defective picture whose order is right; equal scores count half.
fn area(sorted: &[(f32, bool)], counts: &[u32]) -> f64 {
    let (mut below, mut pairs) = (0.0, 0.0);
    let mut from = 0;
    for group in sorted.chunk_by(|a, b| a.0 == b.0) {
        let mut here = [0.0, 0.0];
        for ((_, defective), count) in group.iter().zip(&counts[from..]) {
            here[usize::from(*defective)] += f64::from(*count);
        }
        pairs += here[1] * (below + 0.5 * here[0]);
        below += here[0];
        from += group.len();
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::metrics::Ranking;

    #[test]
    fn every_picture_once_is_the_area_itself() {
        let mut scored = vec![(0.1f32, false), (0.4, false), (0.35, true), (0.8, true), (0.4, true)];
        scored.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let expected = Ranking::new(scored.iter().copied()).auroc().expect("both classes");
        assert!((area(&scored, &[1; 5]) / 6.0 - expected).abs() < 1e-12);
    }

    #[test]
    fn a_resample_of_one_good_and_one_of_two_defective_pictures_has_three_areas() {
        // The defective pictures are drawn as (0, 0), (0, 2) or (2, 2) with odds of 1 : 2 : 1, so the area is 0, 0.5 or 1.
        let known = [(1.0, false), (0.0, true), (2.0, true)];
        assert_eq!(auroc_interval(known.into_iter()), Some((0.0, 1.0)));
        // Of 400 and 400 with an area of 0.5 the standard error is sqrt((m + n + 1) / (12 m n)) = 0.0204.
        let even = (0..400).flat_map(|k| [(k as f32, false), (k as f32, true)]);
        let (low, high) = auroc_interval(even).expect("both classes");
        assert!((low - 0.46).abs() < 0.01 && (high - 0.54).abs() < 0.01, "{low} {high}");
    }

    #[test]
    fn what_is_told_apart_has_no_width_and_a_missing_class_no_interval() {
        let apart = [(0.0, false), (0.2, false), (0.9, true), (1.0, true)];
        assert_eq!(auroc_interval(apart.into_iter()), Some((1.0, 1.0)));
        assert_eq!(auroc_interval([(0.0, false)].into_iter()), None);
    }
}
