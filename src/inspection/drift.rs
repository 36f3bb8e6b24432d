//! Drift: parts that are good slowly stop looking like those behind the thresholds (a lamp ages, dust, a new batch of
//! material). Said while they still pass, so that the cause is removed before good parts are rejected.

use std::collections::VecDeque;

use super::calibration::CalibrationEntry;

/// Frames that are looked at together.
const WINDOW: usize = 50;
/// Frames before which nothing is said.
const ENOUGH: usize = 20;
/// Standard errors that the mean rank may be above the middle.
const RANK_LIMIT: f64 = 4.0;
/// Spreads of the good parts' light that the mean light may be off.
const LIGHT_LIMIT: f64 = 1.5;
/// A light that never varied in calibration may still vary by this much.
const LEAST_SPREAD: f64 = 0.005;

/// What drifts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drift {
    /// Scores lie higher than those of the good parts behind the thresholds.
    pub score: bool,
    /// Pictures are brighter or darker than those.
    pub light: bool,
    /// Pictures as a whole look less like good parts than those: another material, another lens, dust everywhere.
    pub features: bool,
}

impl Drift {
    /// The words of an event.
    pub fn words(self) -> Vec<&'static str> {
        let all = [(self.score, "score"), (self.light, "light"), (self.features, "features")];
        all.into_iter().filter_map(|(on, word)| on.then_some(word)).collect()
    }
}

/// Where the last frames lie among the good parts behind the thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Levels {
    /// Mean rank of the scores, 0 to 1; 0.5 is like the good parts.
    pub score_rank: f64,
    /// Spreads of the good parts' light that the mean light is brighter than theirs, negative for darker.
    pub light_spreads: f64,
    /// Mean rank of how unlike good parts the pictures are as a whole; 0.5 is like the good parts, or not known.
    pub novelty_rank: f64,
}

/// Watches the frames of one camera and recipe.
#[derive(Debug, Clone)]
pub struct DriftMonitor {
    scores: Vec<f32>,
    /// Empty where the entry does not know them.
    novelties: Vec<f32>,
    light: f64,
    spread: f64,
    window: VecDeque<Seen>,
}

/// One frame among the good parts.
#[derive(Debug, Clone, Copy)]
struct Seen {
    score_rank: f64,
    novelty_rank: f64,
    light: f64,
}

impl DriftMonitor {
    /// A monitor of the good parts behind an entry; none if the entry keeps no good parts.
    pub fn new(entry: &CalibrationEntry) -> Option<Self> {
        if entry.good.is_empty() {
            return None;
        }
        let mut scores: Vec<f32> = entry.good.iter().map(|part| part.score).collect();
        scores.sort_by(f32::total_cmp);
        let mut novelties: Vec<f32> = entry.good.iter().filter_map(|part| part.novelty).collect();
        novelties.sort_by(f32::total_cmp);
        let lights = || entry.good.iter().map(|part| f64::from(part.light));
        let light = median(lights());
        // From the median absolute deviation to the standard deviation of a normal distribution.
        let spread = (1.4826 * median(lights().map(|l| (l - light).abs()))).max(LEAST_SPREAD);
        Some(Self { scores, novelties, light, spread, window: VecDeque::with_capacity(WINDOW) })
    }

    /// Takes one judged frame and says what drifts. Frames that fail count too: on a line few parts are defective, and when
    /// most frames fail, that is what must be said. `score` is in the units of the entry.
    pub fn observe(&mut self, score: f32, light: f32, novelty: f32) -> Drift {
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(Seen {
            score_rank: rank(&self.scores, score),
            novelty_rank: if self.novelties.is_empty() { 0.5 } else { rank(&self.novelties, novelty) },
            light: f64::from(light),
        });
        let Some(levels) = self.levels() else { return Drift::default() };
        // Ranks of like parts are uniform; both samples are finite.
        let error = ((1.0 / self.window.len() as f64 + 1.0 / self.scores.len() as f64) / 12.0).sqrt();
        let above = |rank: f64| (rank - 0.5) / error > RANK_LIMIT;
        Drift {
            score: above(levels.score_rank),
            light: levels.light_spreads.abs() > LIGHT_LIMIT,
            features: above(levels.novelty_rank),
        }
    }

    /// Where the last frames lie; nothing before there are enough of them.
    pub fn levels(&self) -> Option<Levels> {
        let count = self.window.len() as f64;
        let mean = |of: fn(&Seen) -> f64| self.window.iter().map(of).sum::<f64>() / count;
        (self.window.len() >= ENOUGH).then(|| Levels {
            score_rank: mean(|seen| seen.score_rank),
            light_spreads: (mean(|seen| seen.light) - self.light) / self.spread,
            novelty_rank: mean(|seen| seen.novelty_rank),
        })
    }
}

/// Share of the sorted values that are below.
fn rank(sorted: &[f32], value: f32) -> f64 {
    sorted.partition_point(|other| *other < value) as f64 / sorted.len() as f64
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    let middle = values.len() / 2;
    if values.is_empty() { 0.0 } else { *values.select_nth_unstable_by(middle, f64::total_cmp).1 }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::calibration::{GoodPart, calibrate};
    use super::super::detect::{StepChoice, Steps};
    use super::*;

    fn part(rng: &mut ChaCha8Rng, score: f32, light: f32) -> GoodPart {
        let draw = rng.random::<f32>();
        let score = score + 0.3 * draw;
        GoodPart { score, level: score, light: light + 0.02 * rng.random::<f32>(), novelty: Some(draw) }
    }

    fn entry(rng: &mut ChaCha8Rng) -> CalibrationEntry {
        let parts: Vec<GoodPart> = (0..120).map(|_| part(rng, 1.0, 0.5)).collect();
        calibrate(&parts, 0.01, None, StepChoice::Fixed(Steps(2)), 4).expect("enough")
    }

    fn observe(monitor: &mut DriftMonitor, part: GoodPart) -> Drift {
        monitor.observe(part.score, part.light, part.novelty.expect("measured"))
    }

    #[test]
    fn like_parts_never_alarm() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut alarms = 0;
        for _ in 0..20 {
            let mut monitor = DriftMonitor::new(&entry(&mut rng)).expect("has good parts");
            alarms += (0..500).filter(|_| observe(&mut monitor, part(&mut rng, 1.0, 0.5)) != Drift::default()).count();
        }
        assert!(alarms < 10, "{alarms} of 10,000");
    }

    #[test]
    fn drift_is_said_before_parts_are_rejected() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let entry = entry(&mut rng);
        let mut monitor = DriftMonitor::new(&entry).expect("has good parts");
        let (mut first, mut rejected) = (None, None);
        for k in 0..400 {
            // The score rises by a tenth of its spread every twenty frames.
            let seen = part(&mut rng, 1.0 + 0.03 * (k / 20) as f32, 0.5);
            if observe(&mut monitor, seen).score {
                first = first.or(Some(k));
            }
            if seen.score > entry.image_threshold * 1.05 {
                rejected = rejected.or(Some(k));
            }
        }
        assert!(first.is_some_and(|first| rejected.is_none_or(|rejected| first < rejected)), "{first:?} {rejected:?}");
    }

    #[test]
    fn unlike_pictures_are_said_even_where_scores_stay() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut monitor = DriftMonitor::new(&entry(&mut rng)).expect("has good parts");
        let mut unlike = || GoodPart { novelty: Some(0.9), ..part(&mut rng, 1.0, 0.5) };
        let drift = (0..ENOUGH).map(|_| observe(&mut monitor, unlike())).last().expect("frames");
        assert_eq!(drift.words(), ["features"]);
    }

    #[test]
    fn a_tenth_less_light_is_said_and_named() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut monitor = DriftMonitor::new(&entry(&mut rng)).expect("has good parts");
        let drift = (0..ENOUGH).map(|_| observe(&mut monitor, part(&mut rng, 1.0, 0.45))).last().expect("frames");
        assert_eq!(drift.words(), ["light"]);
        let levels = monitor.levels().expect("enough frames");
        assert!(levels.light_spreads < -LIGHT_LIMIT && (0.3..0.7).contains(&levels.score_rank), "{levels:?}");
    }
}
