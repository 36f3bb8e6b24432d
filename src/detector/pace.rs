//! How long frames take on this device, and how many at once pay.

use std::collections::HashMap;

use super::{DiffusionDetector, prepare_picture};
use crate::bundle::Bundle;
use crate::inspection::detect::{Detector, DetectorError, Plan, StepPlan, Steps};
use crate::preprocess::spec::PreprocessSpec;

/// Frames that go through the networks together at most.
const TOGETHER: usize = 8;
/// Frames together pay where they take at most this share of their times alone.
const PAYS: f64 = 0.8;

/// Times of this device, milliseconds.
#[derive(Debug, Clone)]
pub struct Pace {
    /// The last of each number of steps and frames.
    last: HashMap<(Steps, usize), f64>,
    /// Numbers of frames that are faster together, upwards, and their times.
    batches: Vec<(usize, f64)>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { last: HashMap::new(), batches: vec![(1, 0.0)] }
    }
}

impl Pace {
    /// Notes a time.
    pub fn note(&mut self, steps: Steps, frames: usize, millis: f64) {
        self.last.insert((steps, frames), millis);
    }

    /// What to expect: the last time, or that of the next larger number of frames, or of one by one. 0 where nothing is known.
    pub fn expected(&self, steps: Steps, frames: usize) -> f64 {
        let larger = (frames..=TOGETHER).find_map(|count| self.last.get(&(steps, count)).copied());
        let one_by_one = || self.last.get(&(steps, 1)).map(|alone| alone * frames as f64);
        larger.or_else(one_by_one).unwrap_or_default()
    }

    /// These steps were not taken for want of time: what is expected falls a little, so that one stall is not believed for ever.
    pub fn skipped(&mut self, steps: Steps) {
        let times = self.last.iter_mut().filter(|((of, _), _)| *of == steps);
        times.for_each(|(_, millis)| *millis *= 0.98);
    }

    /// Numbers of frames that are faster together, upwards, and their times; the first is one frame.
    pub fn batches(&self) -> &[(usize, f64)] {
        &self.batches
    }

    /// Takes what so many frames took together at their best; whether it pays.
    pub fn tried(&mut self, frames: usize, millis: f64) -> bool {
        let alone = &mut self.batches[0].1;
        if frames == 1 {
            *alone = alone.max(millis);
            return true;
        }
        let pays = millis < PAYS * frames as f64 * *alone;
        if pays {
            self.batches.retain(|(known, _)| *known != frames);
            self.batches.push((frames, millis));
            self.batches.sort_by_key(|(known, _)| *known);
        } else {
            // For another plan on the same networks it did.
            self.batches.retain(|(known, _)| *known < frames);
        }
        pays
    }
}

impl DiffusionDetector {
    /// Judges a golden picture at every step count of a plan: the first part must not wait for kernels and recordings to be
    /// made. Where `cameras` ask for the same, finds out how many frames at once pay.
    ///
    /// # Errors
    /// A picture that cannot be read, or what [`Detector::detect`] says.
    pub fn warm_up(
        &mut self,
        bundle: &Bundle,
        spec: &PreprocessSpec,
        plan: &Plan,
        cameras: usize,
    ) -> Result<(), DetectorError> {
        let Some(golden) = bundle.manifest.golden.first() else { return Ok(()) };
        let picture = bundle.read(&golden.picture).map_err(|error| DetectorError(error.to_string()))?;
        let prepared = prepare_picture(&picture, spec).map_err(DetectorError)?;
        let counts = match &plan.steps {
            StepPlan::Fixed(steps) => vec![*steps],
            StepPlan::Auto(gates) => gates.iter().map(|gate| gate.steps).collect(),
        };
        // The first of a kind compiles and records; the best of the others is what it takes.
        let runs = if cameras > 1 { 4 } else { 1 };
        let mut frames = vec![prepared];
        while frames.len() <= cameras.min(TOGETHER) {
            let mut took: f64 = 0.0;
            for &steps in &counts {
                let plan = Plan::new(StepPlan::Fixed(steps), plan.class.clone());
                let mut best = f64::INFINITY;
                for _ in 0..runs {
                    self.detect(&frames, &plan)?;
                    best = best.min(self.pace.expected(steps, frames.len()));
                }
                took = took.max(best);
            }
            if !self.pace.tried(frames.len(), took) {
                break;
            }
            frames.extend(frames.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_pays_is_done_together() {
        let mut pace = Pace::default();
        assert!(pace.tried(1, 10.0) && pace.tried(2, 12.0) && !pace.tried(4, 35.0));
        assert_eq!(pace.batches(), [(1, 10.0), (2, 12.0)]);
        // Another plan on the same networks, which takes longer.
        assert!(pace.tried(1, 15.0) && pace.tried(2, 20.0));
        assert_eq!(pace.batches(), [(1, 15.0), (2, 20.0)]);
        // And one for which two together are no faster.
        assert!(pace.tried(1, 40.0) && !pace.tried(2, 70.0));
        assert_eq!(pace.batches(), [(1, 40.0)]);
    }

    #[test]
    fn what_was_never_timed_is_expected_from_what_was() {
        let (mut pace, steps) = (Pace::default(), Steps(2));
        assert_eq!(pace.expected(steps, 3), 0.0);
        pace.note(steps, 1, 10.0);
        assert_eq!(pace.expected(steps, 3), 30.0);
        pace.note(steps, 4, 25.0);
        assert_eq!(pace.expected(steps, 3), 25.0);
        (0..100).for_each(|_| pace.skipped(steps));
        assert!(pace.expected(steps, 1) < 2.0, "one stall is not believed for ever");
    }
}
