//! Judging pictures outside of the daemon: the same `prepare`, the same detector, the same decision.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;

use super::dataset::Set;
use super::dataset::mask::load_mask;
use super::evaluate::{Judged, Protocol};
use super::pictures::prepare_file;
use crate::inspection::calibration::{CALIBRATED_POINT, Calibration};
use crate::inspection::decide::decide;
use crate::inspection::detect::{ClassId, Detector, Plan, StepChoice, StepPlan};
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::verdict::Verdict;
use crate::preprocess::spec::PreprocessSpec;

/// Time as the trainer reads it.
#[derive(Debug)]
pub struct TrainerClock {
    origin: Instant,
}

impl TrainerClock {
    /// A clock that starts now.
    pub fn start() -> Arc<dyn Clock> {
        Arc::new(Self { origin: Instant::now() })
    }
}

impl Clock for TrainerClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.origin.elapsed().as_nanos() as u64)
    }

    fn wall_nanos(&self) -> u64 {
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        std::time::SystemTime::now().duration_since(epoch).map_or(0, |since| since.as_nanos() as u64)
    }
}

/// What pictures are judged by, besides the detector.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// How pictures come to the model.
    pub preprocess: &'a PreprocessSpec,
    /// The classes that it knows.
    pub classes: &'a [ClassId],
    /// The thresholds, if there are any.
    pub calibration: Option<&'a Calibration>,
    /// Denoising steps.
    pub steps: StepChoice,
    /// How ground truth is read.
    pub protocol: Protocol,
}

impl Rules<'_> {
    /// What is asked of the detector for the pictures of a set.
    pub fn plan(&self, set: &Set) -> Plan {
        let class = self.classes.iter().find(|class| class.0 == set.name);
        let gates = || self.calibration.map(|c| c.gates(class, None, CALIBRATED_POINT)).unwrap_or_default();
        Plan::new(StepPlan::new(self.steps, gates), class.cloned())
    }
}

/// Judges the test pictures of a set at the calibrated point, each from its file; what cannot be read is left out and said.
///
/// # Errors
/// What the detector says, or a mask that cannot be read.
pub fn judge(set: &Set, rules: Rules<'_>, detector: &mut dyn Detector) -> anyhow::Result<Vec<Judged>> {
    let plan = rules.plan(set);
    let mut judged = Vec::with_capacity(set.test.len());
    for sample in &set.test {
        let started = Instant::now();
        let prepared = match prepare_file(&sample.path, rules.preprocess) {
            Ok(prepared) => prepared,
            Err(reason) => {
                log::warn!("left out: {}: {reason}", sample.path.display());
                continue;
            }
        };
        let inside = prepared.inside;
        let detection = detector.detect(&[prepared], &plan)?.pop().context("one detection per frame")?;
        let decision = decide(&detection, &plan, rules.calibration, CALIBRATED_POINT);
        let frame_ms = started.elapsed().as_secs_f64() * 1e3;
        let mask = sample.mask.as_deref().map(|path| load_mask(path, rules.preprocess, rules.protocol)).transpose();
        judged.push(Judged {
            path: sample.path.clone(),
            score: detection.score.0,
            map: detection.map,
            inside,
            defective: sample.defect.is_some(),
            mask: mask.map_err(anyhow::Error::msg)?,
            rejected: match decision.verdict {
                Verdict::Pass => Some(false),
                Verdict::Fail => Some(true),
                Verdict::Fault(_) => None,
            },
            frame_ms,
        });
    }
    Ok(judged)
}
