//! Thresholds from good parts alone, at a stated false-reject rate.
//!
//! Split conformal: of n held-out good parts the k-th smallest value with k = ceil((n + 1)(1 - alpha)) is exceeded
//! by a new good part with probability at most alpha, whatever the distribution (recipe: held-out normals only).
//! Image score and region level are calibrated *jointly*, on max(score / median score, level / median level), so that
//! the stated rate is that of both rules together. The medians come from the same parts, which makes the rate close
//! but not exact; dividing by the k-th smallest of each instead nearly doubles it where k = n, since the parts that
//! set the divisors are then the very ones that set the quantile.

use serde::{Deserialize, Serialize};

use super::detect::{ClassId, Detection, Gate, Plan, StepChoice, StepPlan};
use super::polygon::RoiSetId;
use super::tiles::TileGrid;

/// Thresholds for one class at one step count, or for `auto`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationEntry {
    /// The class; absent is the null class.
    pub class: Option<ClassId>,
    /// The step count. For `auto` scores and levels are in units of the thresholds of the step count that ran, because maps
    /// of different step counts have different scales.
    pub steps: StepChoice,
    /// Fail above this anomaly score.
    pub image_threshold: f32,
    /// Fail if a region of at least `min_area` cells lies above this map value.
    pub region_threshold: f32,
    /// Smallest region that counts, in cells of the model grid.
    pub min_area: u32,
    /// How the frames were cut; frames that are cut otherwise have other scores, and are not judged by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<TileGrid>,
    /// The ROIs through which good parts were looked at; absent is whole pictures. It judges with those ROIs alone, while an
    /// entry of whole pictures judges with any: what does not count can only lower a map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rois: Option<RoiSetId>,
    /// Good parts used.
    pub samples: u32,
    /// The stated false-reject rate.
    pub alpha: f64,
    /// 99 % upper confidence bound of the rate over repeated calibrations with `samples` parts.
    pub alpha_bound: f64,
    /// Median anomaly score of the good parts.
    pub median_score: f32,
    /// Image score and region level of every good part behind the thresholds, by score: what more good parts are added to.
    /// Empty in bundles of versions before it was kept.
    #[serde(default)]
    pub good: Vec<GoodPart>,
}

/// All thresholds of a bundle or a station.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Identity, named by every event that it judged.
    pub id: String,
    /// One per class and step count.
    pub entries: Vec<CalibrationEntry>,
}

impl Calibration {
    /// The entry of whole pictures for a class and step count; no fallback from a named class to the null class.
    pub fn entry(&self, class: Option<&ClassId>, steps: StepChoice) -> Option<&CalibrationEntry> {
        self.entry_through(class, steps, None)
    }

    /// The entry through exactly these ROIs.
    pub fn entry_through(
        &self,
        class: Option<&ClassId>,
        steps: StepChoice,
        rois: Option<&RoiSetId>,
    ) -> Option<&CalibrationEntry> {
        self.entries.iter().find(|e| e.class.as_ref() == class && e.steps == steps && e.rois.as_ref() == rois)
    }

    /// The entry that judges a recipe: the one through its ROIs where there is one, else the one of whole pictures.
    pub fn judging(
        &self,
        class: Option<&ClassId>,
        steps: StepChoice,
        rois: Option<&RoiSetId>,
    ) -> Option<&CalibrationEntry> {
        self.entry_through(class, steps, rois).or_else(|| self.entry(class, steps))
    }

    /// The calibrated step counts of a class, upwards, with their thresholds at a sensitivity: those that `auto` was
    /// calibrated with through these ROIs, or for whole pictures.
    pub fn gates(&self, class: Option<&ClassId>, rois: Option<&RoiSetId>, sensitivity: f64) -> Vec<Gate> {
        let through = self.judging(class, StepChoice::Auto, rois).map_or(rois, |whole| whole.rois.as_ref());
        self.gates_through(class, through, sensitivity)
    }

    /// The step counts that are calibrated through exactly these ROIs.
    pub fn gates_through(&self, class: Option<&ClassId>, rois: Option<&RoiSetId>, sensitivity: f64) -> Vec<Gate> {
        let own = self.entries.iter().filter(|entry| entry.class.as_ref() == class && entry.rois.as_ref() == rois);
        let mut gates: Vec<Gate> = own.filter_map(|entry| entry.gate(threshold_scale(sensitivity))).collect();
        gates.sort_by_key(|gate| gate.steps);
        gates
    }

    /// The thresholds of a detection that `plan` led to, before any sensitivity; none without a calibration for it.
    pub fn limits(&self, plan: &Plan, detection: &Detection) -> Option<Gate> {
        let class = plan.class.as_ref();
        let fits = |entry: &&CalibrationEntry| entry.tiles == detection.tiles;
        let fixed = StepChoice::Fixed(detection.steps);
        match &plan.steps {
            StepPlan::Fixed(steps) if *steps != detection.steps => None,
            StepPlan::Fixed(_) => self.judging(class, fixed, detection.roi_set()).filter(fits)?.gate(1.0),
            StepPlan::Auto(_) => {
                let whole = self.judging(class, StepChoice::Auto, detection.roi_set()).filter(fits)?;
                // In the units that it was calibrated in.
                let ran = self.entry_through(class, fixed, whole.rois.as_ref()).filter(fits)?.gate(1.0)?;
                Some(Gate {
                    image_threshold: ran.image_threshold * whole.image_threshold,
                    region_threshold: ran.region_threshold * whole.region_threshold,
                    ..ran
                })
            }
        }
    }

    /// This calibration with the entries of `other` in place of its own, and the name of that one.
    pub fn replaced_by(&self, other: &Calibration) -> Calibration {
        let replaced =
            |e: &&CalibrationEntry| other.entry_through(e.class.as_ref(), e.steps, e.rois.as_ref()).is_some();
        let kept = self.entries.iter().filter(|e| !replaced(e));
        Calibration { id: other.id.clone(), entries: kept.chain(&other.entries).cloned().collect() }
    }

    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        self.entries.iter().find_map(|entry| {
            [("image_threshold", entry.image_threshold), ("region_threshold", entry.region_threshold)]
                .into_iter()
                .find(|(_, value)| !(value.is_finite() && *value > 0.0))
                .map(|(key, value)| format!("{key}: {value} is not a positive number"))
        })
    }
}

impl CalibrationEntry {
    /// Its thresholds times `scale`; none for `auto`, which has none of its own.
    fn gate(&self, scale: f32) -> Option<Gate> {
        let StepChoice::Fixed(steps) = self.steps else { return None };
        let (image_threshold, region_threshold) = (self.image_threshold * scale, self.region_threshold * scale);
        Some(Gate { steps, image_threshold, region_threshold, min_area: self.min_area })
    }
}

/// The sensitivity at which thresholds stand as they were calibrated.
pub const CALIBRATED_POINT: f64 = 0.5;

/// The factor of thresholds at a sensitivity of 0 to 1: 0.5 is the calibrated point, 1 halves them, 0 doubles them.
pub fn threshold_scale(sensitivity: f64) -> f32 {
    4f64.powf(CALIBRATED_POINT - sensitivity.clamp(0.0, 1.0)) as f32
}

/// What one good part measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoodPart {
    /// Its anomaly score.
    pub score: f32,
    /// Its region level (`AnomalyMap::region_level`).
    pub level: f32,
    /// Mean brightness of the picture, 0 to 1.
    pub light: f32,
    /// How unlike good parts its features are as a whole (`Detection::novelty`); absent in bundles of versions before it.
    #[serde(default)]
    pub novelty: Option<f32>,
}

impl GoodPart {
    /// What a detection measured.
    pub fn of(detection: &Detection, light: f32, min_area: u32) -> Self {
        let level = detection.region_level(min_area);
        Self { score: detection.plain_score().0, level, light, novelty: Some(detection.novelty) }
    }

    /// A part that `auto` judged with the gates `old`, in the units of `new`. Which step count ran is not kept: the one that
    /// makes the part look worst is taken, so that thresholds never come out too low for it.
    pub fn regauged(self, old: &[Gate], new: &[Gate]) -> Self {
        let pairs = || old.iter().filter_map(|old| Some((old, new.iter().find(|new| new.steps == old.steps)?)));
        let worst = |ratio: fn(&Gate, &Gate) -> f32| pairs().map(|(old, new)| ratio(old, new)).reduce(f32::max);
        Self {
            score: self.score * worst(|old, new| old.image_threshold / new.image_threshold).unwrap_or(1.0),
            level: self.level * worst(|old, new| old.region_threshold / new.region_threshold).unwrap_or(1.0),
            ..self
        }
    }

    /// The same with score and level as multiples of the thresholds of the step count that ran: the units of `auto`.
    pub fn in_units_of(self, gate: &Gate) -> Self {
        Self { score: self.score / gate.image_threshold, level: self.level / gate.region_threshold, ..self }
    }
}

/// Why no threshold can be stated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    /// The rate is finer than the number of good parts allows.
    #[error(
        "{have} good parts cannot show a false-reject rate of {alpha}: it needs at least {need}; add good parts, or ask \
         for a rate of at least {smallest:.4}"
    )]
    TooFew {
        /// Parts given.
        have: usize,
        /// The rate asked for.
        alpha: f64,
        /// Parts needed for it.
        need: usize,
        /// The smallest rate that the given parts can show.
        smallest: f64,
    },
    /// A score is not a number.
    #[error("good part {index} has score {score} and region level {level}: not finite")]
    NotFinite {
        /// Which part.
        index: usize,
        /// Its score.
        score: f32,
        /// Its region level.
        level: f32,
    },
}

/// The smallest false-reject rate that `samples` good parts can show.
pub fn smallest_alpha(samples: usize) -> f64 {
    1.0 / (samples as f64 + 1.0)
}

/// Thresholds from good parts at the false-reject rate `alpha`, for both rules together.
///
/// # Errors
/// Too few parts for the rate, or a value that is not finite.
pub fn calibrate(
    parts: &[GoodPart],
    alpha: f64,
    class: Option<ClassId>,
    steps: StepChoice,
    min_area: u32,
) -> Result<CalibrationEntry, CalibrationError> {
    let n = parts.len();
    // Rates come from texts and divisions: a rate that is meant as 1/(n+1) must not fail by its last bit.
    if n == 0 || alpha.is_nan() || alpha < smallest_alpha(n) * (1.0 - 1e-9) {
        let need = (1.0 / alpha - 1.0 - 1e-9).ceil().max(1.0) as usize;
        return Err(CalibrationError::TooFew { have: n, alpha, need, smallest: smallest_alpha(n) });
    }
    if let Some(index) = parts.iter().position(|p| !(p.score.is_finite() && p.level.is_finite())) {
        let GoodPart { score, level, .. } = parts[index];
        return Err(CalibrationError::NotFinite { index, score, level });
    }
    let rank = (((n + 1) as f64 * (1.0 - alpha) - 1e-9).ceil() as usize).clamp(1, n);
    let ranked = |mut values: Vec<f32>, rank: usize| {
        values.sort_unstable_by(f32::total_cmp);
        values[rank - 1]
    };
    // A map of zeros must not make a threshold of zero: nothing could be above or below it by a factor.
    let floor = |value: f32| value.max(1e-6);
    let scores: Vec<f32> = parts.iter().map(|p| p.score).collect();
    let middle = n.div_ceil(2);
    let median_score = ranked(scores, middle);
    let image = floor(median_score);
    let region = floor(ranked(parts.iter().map(|p| p.level).collect(), middle));
    let joint: Vec<f32> = parts.iter().map(|p| (p.score / image).max(p.level / region)).collect();
    // The next float above: the part that sets the threshold is good and must pass in spite of rounding.
    let factor = ranked(joint, rank).next_up();
    Ok(CalibrationEntry {
        class,
        steps,
        image_threshold: (image * factor).next_up(),
        region_threshold: (region * factor).next_up(),
        min_area,
        tiles: None,
        rois: None,
        samples: n as u32,
        alpha,
        alpha_bound: rate_bound(n, rank),
        median_score,
        good: kept(parts),
    })
}

/// The good parts by score; of more than [`KEPT`] a share that is spread over the ranks.
fn kept(parts: &[GoodPart]) -> Vec<GoodPart> {
    let mut good = parts.to_vec();
    good.sort_by(|a, b| a.score.total_cmp(&b.score));
    if good.len() > KEPT {
        good = (0..KEPT).map(|k| good[k * (good.len() - 1) / (KEPT - 1)]).collect();
    }
    good
}

/// Confidence of the bound. A station is calibrated often, and each calibration is a draw: with 95 % one in twenty stations
/// would reject more than it was promised.
const CONFIDENCE: f64 = 0.99;

/// Good parts that an entry keeps at most: a manifest stays a file that can be read.
const KEPT: usize = 300;

/// 99 % upper bound of the false-reject rate when the threshold is the `rank`-th smallest of `n`.
///
/// Over repeated calibrations the rate follows Beta(n + 1 - rank, rank); its tail is a binomial sum:
/// `P(rate > p) = P(Binomial(n, p) <= n - rank)`.
fn rate_bound(n: usize, rank: usize) -> f64 {
    // In logarithms: with thousands of parts the first terms are below the smallest float.
    let tail = |p: f64| {
        let odds = (p / (1.0 - p)).ln();
        let mut term = n as f64 * (1.0 - p).ln();
        let mut sum = term;
        for k in 0..n - rank {
            term += ((n - k) as f64 / (k + 1) as f64).ln() + odds;
            let (large, small) = if term > sum { (term, sum) } else { (sum, term) };
            sum = large + (small - large).exp().ln_1p();
        }
        sum.exp()
    };
    let (mut low, mut high) = (0.0, 1.0 - 1e-12);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if tail(middle) > 1.0 - CONFIDENCE { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::detect::Steps;
    use super::*;

    fn parts(n: usize, rng: &mut ChaCha8Rng) -> Vec<GoodPart> {
        // Score and level go together for half of their spread, as on real parts.
        (0..n)
            .map(|_| {
                let common: f32 = rng.random();
                GoodPart {
                    score: common + rng.random::<f32>(),
                    level: 3.0 * (common + rng.random::<f32>()),
                    light: 0.5,
                    novelty: None,
                }
            })
            .collect()
    }

    fn rejects(parts: &[GoodPart], entry: &CalibrationEntry) -> f64 {
        let over = |p: &&GoodPart| p.score > entry.image_threshold || p.level > entry.region_threshold;
        parts.iter().filter(over).count() as f64 / parts.len() as f64
    }

    #[test]
    fn the_stated_rate_is_that_of_both_rules_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        // The second is what `fit` does by default: the smallest rate, where the largest part sets the threshold.
        for (alpha, rates) in [(0.05, 0.035..=0.055), (0.01, 0.007..=0.012)] {
            let (mut sum, mut within) = (0.0, 0);
            let rounds = 400;
            for _ in 0..rounds {
                let entry =
                    calibrate(&parts(99, &mut rng), alpha, None, StepChoice::Fixed(Steps(2)), 4).expect("enough parts");
                let rate = rejects(&parts(2_000, &mut rng), &entry);
                sum += rate;
                within += u32::from(rate <= entry.alpha_bound);
            }
            let mean = sum / f64::from(rounds);
            assert!(rates.contains(&mean), "alpha {alpha}: mean rate {mean}");
            assert!(f64::from(within) / f64::from(rounds) > 0.97, "{within} of {rounds} within the bound of {alpha}");
        }
    }

    #[test]
    fn too_few_parts_are_refused_with_the_number_needed() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let error = calibrate(&parts(30, &mut rng), 0.01, None, StepChoice::Fixed(Steps(1)), 4).expect_err("refused");
        assert!(error.to_string().contains("at least 99"), "{error}");
        let smallest = smallest_alpha(30);
        let set = parts(30, &mut rng);
        let entry = calibrate(&set, smallest, None, StepChoice::Fixed(Steps(1)), 4).expect("the smallest rate works");
        assert_eq!(rejects(&set, &entry), 0.0);
    }

    #[test]
    fn bound_matches_the_closed_form_of_the_largest_value() {
        // With rank n the rate is the smallest of n uniforms: P(rate > p) = (1 - p)^n.
        assert!((rate_bound(99, 99) - (1.0 - 0.01f64.powf(1.0 / 99.0))).abs() < 1e-9);
    }

    #[test]
    fn bound_matches_scipy_also_for_many_parts() {
        // scipy.stats.beta.ppf(.99, n + 1 - rank, rank)
        assert!((rate_bound(99, 95) - 0.112_789_172_459_970_03).abs() < 1e-9);
        assert!((rate_bound(20_000, 19_001) - 0.053_648_304_709_961_74).abs() < 1e-9);
    }

    #[test]
    fn a_rate_that_is_not_a_number_is_refused() {
        let good = [GoodPart { score: 1.0, level: 1.0, light: 0.5, novelty: None }];
        assert!(matches!(
            calibrate(&good, f64::NAN, None, StepChoice::Fixed(Steps(1)), 1),
            Err(CalibrationError::TooFew { .. })
        ));
    }

    #[test]
    fn parts_behind_auto_follow_the_thresholds_that_they_are_measured_by() {
        let gate = |steps, threshold| Gate {
            steps: Steps(steps),
            image_threshold: threshold,
            region_threshold: 2.0 * threshold,
            min_area: 4,
        };
        let part = GoodPart { score: 0.8, level: 0.5, light: 0.5, novelty: None };
        let regauged = part.regauged(&[gate(1, 1.0), gate(2, 3.0)], &[gate(1, 2.0), gate(2, 2.0)]);
        assert!((regauged.score - 1.2).abs() < 1e-6 && (regauged.level - 0.75).abs() < 1e-6, "{regauged:?}");
        assert_eq!(part.regauged(&[gate(1, 1.0)], &[gate(1, 1.0)]), part);
    }

    #[test]
    fn thresholds_through_rois_judge_with_those_alone_and_auto_keeps_to_one_kind() {
        let good: Vec<GoodPart> =
            (1..=9).map(|k| GoodPart { score: k as f32, level: k as f32, light: 0.5, novelty: None }).collect();
        let (hub, rim) = (RoiSetId("hub".into()), RoiSetId("rim".into()));
        let entry = |steps, rois: Option<&RoiSetId>, samples| CalibrationEntry {
            rois: rois.cloned(),
            samples,
            ..calibrate(&good, 0.5, None, steps, 1).expect("enough")
        };
        let one = StepChoice::Fixed(Steps(1));
        let whole = [entry(one, None, 1), entry(StepChoice::Auto, None, 2)];
        let mut calibration = Calibration { id: String::new(), entries: whole.to_vec() };
        let samples =
            |calibration: &Calibration, steps, rois| calibration.judging(None, steps, rois).map(|entry| entry.samples);
        assert_eq!([None, Some(&hub)].map(|rois| samples(&calibration, one, rois)), [Some(1), Some(1)]);
        let here = Calibration { id: "here".into(), entries: vec![entry(one, Some(&hub), 3)] };
        calibration = calibration.replaced_by(&here);
        assert_eq!(calibration.entries.len(), 3, "one kind does not replace the other");
        let three = [None, Some(&hub), Some(&rim)];
        assert_eq!(three.map(|rois| samples(&calibration, one, rois)), [Some(1), Some(3), Some(1)]);
        // `auto` is in units of the step count that it was calibrated with: the gates are of its own kind.
        let gates = |calibration: &Calibration| calibration.gates(None, Some(&hub), 0.5).len();
        assert_eq!((samples(&calibration, StepChoice::Auto, Some(&hub)), gates(&calibration)), (Some(2), 1));
        assert_eq!(calibration.gates_through(None, Some(&rim), 0.5), []);
        calibration.entries.retain(|entry| entry.rois.is_some());
        assert_eq!(samples(&calibration, one, Some(&rim)), None, "those of other ROIs judge nothing");
        assert_eq!(samples(&calibration, one, None), None);
    }

    #[test]
    fn values_that_are_not_numbers_are_refused() {
        let bad = [GoodPart { score: f32::NAN, level: 1.0, light: 0.5, novelty: None }];
        assert!(matches!(
            calibrate(&bad, 0.5, None, StepChoice::Fixed(Steps(1)), 1),
            Err(CalibrationError::NotFinite { index: 0, .. })
        ));
    }
}
