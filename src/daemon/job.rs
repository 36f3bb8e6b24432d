//! A recipe in force, and the one path from prepared pixels to an inspection: for the daemon and for `dsad inspect`.

use std::sync::{Arc, Mutex, PoisonError};

use crate::inspection::calibration::{Calibration, CalibrationEntry};
use crate::inspection::command::RecipeName;
use crate::inspection::decide::decide;
use crate::inspection::detect::{ClassId, Detection, Detector, DetectorError, Plan, StepPlan};
use crate::inspection::drift::Drift;
use crate::inspection::frame::{FrameMeta, Prepared};
use crate::inspection::line::Actuation;
use crate::inspection::recipe::Recipe;
use crate::inspection::tiles::TileGrid;
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::verdict::{Decision, FaultReason, Inspection, Latency, Verdict};
use crate::preprocess::spec::PreprocessSpec;

/// A recipe in force, with its bundle: everything that judging needs besides the pixels.
pub struct Job {
    /// The recipe.
    pub recipe: Recipe,
    /// Which of the detectors judges.
    pub detector: usize,
    /// Identity of the bundle.
    pub bundle: String,
    /// Hash of the bundle's manifest.
    pub model_hash: String,
    /// The model's input.
    pub spec: PreprocessSpec,
    /// The thresholds.
    pub calibration: Option<Calibration>,
    /// Compute dtype.
    pub dtype: String,
    /// Seed of the noise.
    pub seed: u64,
}

impl Job {
    /// What the detector is asked for.
    pub fn plan(&self) -> Plan {
        let Recipe { class, steps, sensitivity, .. } = &self.recipe;
        let rois = self.recipe.rois.id();
        let gates = |c: &Calibration| c.gates(class.as_ref(), rois.as_ref(), *sensitivity);
        let gates = || self.calibration.as_ref().map(gates).unwrap_or_default();
        Plan::new(StepPlan::new(*steps, gates), class.clone())
    }

    /// When the inspection of a frame must be out.
    pub fn due(&self, meta: &FrameMeta) -> Option<Timestamp> {
        let since = meta.trigger.as_ref().map_or(meta.captured_at, |trigger| trigger.at);
        self.recipe.deadline_ms.map(|deadline| since.plus_millis(deadline))
    }

    /// Whether frames of both can go through the networks together.
    pub fn goes_with(&self, other: &Job) -> bool {
        self.detector == other.detector && self.spec == other.spec && self.plan() == other.plan()
    }

    /// Whether there are thresholds to judge by.
    pub fn is_calibrated(&self) -> bool {
        let Recipe { class, steps, rois, .. } = &self.recipe;
        let entry = self.calibration.as_ref().and_then(|c| c.judging(class.as_ref(), *steps, rois.id().as_ref()));
        // Thresholds of frames that were cut otherwise judge nothing.
        entry.is_some_and(|entry| entry.tiles == self.spec.tiles)
    }

    /// Why nothing can be judged without thresholds.
    pub fn uncalibrated(&self) -> String {
        let name = |class: &Option<ClassId>| class.as_ref().map_or("(none)".into(), |class| class.0.clone());
        let entries = self.calibration.as_ref().map_or(&[][..], |calibration| &calibration.entries);
        let cut = |tiles: Option<TileGrid>| tiles.map_or(String::new(), |tiles| format!(" in {tiles} tiles"));
        let row = |e: &CalibrationEntry| format!("{} steps {}{}", e.steps, name(&e.class), cut(e.tiles));
        let known: Vec<String> = entries.iter().map(row).collect();
        let remedy = self.spec.tiles.map_or(String::new(), |tiles| format!(" --tiles {tiles}"));
        format!(
            "bundle '{}' has no calibration for {} steps and class {}{} (make one with `dsad calibrate{remedy}`); calibrated are: {}",
            self.bundle,
            self.recipe.steps,
            name(&self.recipe.class),
            cut(self.spec.tiles),
            if known.is_empty() { "nothing".into() } else { known.join(", ") }
        )
    }
}

/// The recipes that a camera knows, and which of them judges its frames.
pub struct Recipes {
    jobs: Vec<Job>,
    turn: Mutex<Turn>,
}

/// When which recipe judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// What is taken before `since` is judged by this,
    pub before: usize,
    /// and from then on by this.
    pub recipe: usize,
    /// When it changed.
    pub since: Timestamp,
}

impl Recipes {
    /// The first one judges.
    pub fn new(jobs: Vec<Job>) -> Self {
        Self { jobs, turn: Mutex::new(Turn { before: 0, recipe: 0, since: Timestamp(0) }) }
    }

    /// When which one judges.
    pub fn turn(&self) -> Turn {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which one judges what is taken now.
    pub fn current(&self) -> usize {
        self.turn().recipe
    }

    /// Which one judges what came at this time.
    pub fn at(&self, time: Timestamp) -> usize {
        let Turn { before, recipe, since } = self.turn();
        if time < since { before } else { recipe }
    }

    /// One of them.
    pub fn get(&self, recipe: usize) -> &Job {
        &self.jobs[recipe]
    }

    /// All of them.
    pub fn all(&self) -> &[Job] {
        &self.jobs
    }

    /// The recipe of this name, if it is known.
    pub fn find(&self, name: &RecipeName) -> Option<usize> {
        self.jobs.iter().position(|job| match name {
            RecipeName::Id(id) => job.recipe.id == *id,
            RecipeName::Number(number) => job.recipe.number == Some(*number),
        })
    }

    /// Lets one of them judge what is taken from now on.
    pub fn select(&self, recipe: usize, now: Timestamp) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if recipe != turn.recipe {
            *turn = Turn { before: turn.recipe, recipe, since: now };
        }
    }
}

/// A frame on its way to a detector.
pub struct Item {
    /// The frame.
    pub meta: FrameMeta,
    /// Its model input.
    pub prepared: Prepared,
    /// Milliseconds in the mailbox and in preprocessing.
    pub latency: Latency,
    /// When its inspection must be out.
    pub due: Option<Timestamp>,
}

/// Judges one prepared frame by a job.
pub fn judge_one(item: Item, job: &Job, detector: &mut dyn Detector, clock: &dyn Clock) -> Inspection {
    let (items, plan) = (vec![item], job.plan());
    // One frame gives one inspection.
    judge(items, &[job], plan, detector, clock).remove(0)
}

/// Judges frames that go through the networks together, each by the job of its own, as `plan` says for all of them.
pub fn judge(
    items: Vec<Item>,
    jobs: &[&Job],
    mut plan: Plan,
    detector: &mut dyn Detector,
    clock: &dyn Clock,
) -> Vec<Inspection> {
    let (mut frames, mut prepared) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    plan.until = items.iter().filter_map(|item| item.due).min();
    for item in items {
        frames.push((item.meta, item.latency));
        prepared.push(item.prepared);
    }
    let count = frames.len();
    if plan.steps == StepPlan::Auto(Vec::new()) {
        let faults = frames.into_iter().zip(jobs);
        return faults
            .map(|((meta, _), job)| faulty(meta, job, FaultReason::Uncalibrated, job.uncalibrated(), clock))
            .collect();
    }
    let started = clock.now();
    let found = match detector.detect(&prepared, &plan) {
        Ok(found) if found.len() == count => Ok(found),
        Ok(found) => Err(DetectorError(format!("{} detections of {count} frames", found.len()))),
        Err(error) => Err(error),
    };
    let detected = clock.now();
    let infer = detected.millis_since(started);
    match found {
        Ok(found) => frames
            .into_iter()
            .zip(prepared)
            .zip(found)
            .zip(jobs)
            .map(|((((meta, latency), prepared), detection), job)| {
                let latency = Latency { infer, ..latency };
                judged(meta, latency, prepared, detection, &plan, job, clock)
            })
            .collect(),
        Err(error) => frames
            .into_iter()
            .zip(jobs)
            .map(|((meta, _), job)| faulty(meta, job, FaultReason::DetectorFault, error.0.clone(), clock))
            .collect(),
    }
}

/// From a detection to an inspection.
fn judged(
    meta: FrameMeta,
    mut latency: Latency,
    prepared: Prepared,
    detection: Detection,
    plan: &Plan,
    job: &Job,
    clock: &dyn Clock,
) -> Inspection {
    let detected = clock.now();
    let decision = decide(&detection, plan, job.calibration.as_ref(), job.recipe.sensitivity);
    let decided = clock.now();
    latency.decide = decided.millis_since(detected);
    latency.total = decided.millis_since(meta.captured_at);
    let fault = match decision.verdict {
        Verdict::Fault(FaultReason::Uncalibrated) => Some(job.uncalibrated()),
        Verdict::Fault(_) => Some("the map or the score is not finite".into()),
        _ => None,
    };
    let limits = job.calibration.as_ref().and_then(|calibration| calibration.limits(plan, &detection));
    Inspection {
        frame: meta,
        recipe: job.recipe.id.clone(),
        bundle: job.bundle.clone(),
        model_hash: job.model_hash.clone(),
        calibration: job.calibration.as_ref().map(|calibration| calibration.id.clone()),
        full_scale: limits.map(|limits| 2.0 * limits.region_threshold),
        detection: Some(detection),
        decision,
        latency,
        deadline_ms: job.recipe.deadline_ms,
        dtype: job.dtype.clone(),
        seed: job.seed,
        fault,
        prepared: Some(Arc::new(prepared)),
        drift: Drift::default(),
        actuation: Actuation::Nothing,
    }
}

/// The inspection of a frame that was not judged.
pub fn faulty(meta: FrameMeta, job: &Job, reason: FaultReason, text: String, clock: &dyn Clock) -> Inspection {
    let total = if meta.captured_at == Timestamp(0) { 0.0 } else { clock.now().millis_since(meta.captured_at) };
    Inspection {
        frame: meta,
        recipe: job.recipe.id.clone(),
        bundle: job.bundle.clone(),
        model_hash: job.model_hash.clone(),
        calibration: None,
        detection: None,
        decision: Decision { verdict: Verdict::Fault(reason), rule: None, threshold: None, regions: Vec::new() },
        latency: Latency { total, ..Latency::default() },
        deadline_ms: job.recipe.deadline_ms,
        dtype: job.dtype.clone(),
        seed: job.seed,
        fault: Some(text),
        prepared: None,
        full_scale: None,
        drift: Drift::default(),
        actuation: Actuation::Nothing,
    }
}
