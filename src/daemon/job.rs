//! A recipe in force, and the one path from prepared pixels to an inspection: for the daemon and for `dsad inspect`.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::inspection::calibration::{Calibration, CalibrationEntry};
use crate::inspection::command::RecipeName;
use crate::inspection::decide::decide;
use crate::inspection::detect::{ClassId, Detection, Detector, DetectorError, Plan, StepPlan};
use crate::inspection::drift::Drift;
use crate::inspection::frame::{FrameBuf, FrameMeta, PixelFormat, Prepared};
use crate::inspection::line::Actuation;
use crate::inspection::mask::Placement;
use crate::inspection::recipe::Recipe;
use crate::inspection::tiles::TileGrid;
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::verdict::{Decision, FaultReason, Inspection, Latency, Verdict};
use crate::preprocess::spec::{Geometry, PreprocessSpec};

/// A recipe in force, with its bundle: everything that judging needs besides the pixels.
pub struct Job {
    /// The recipe.
    pub recipe: Recipe,
    /// What names the recipe as it is meant.
    pub recipe_hash: Arc<str>,
    /// Which of the detectors judges.
    pub detector: usize,
    /// Identity of the bundle.
    pub bundle: String,
    /// Hash of the bundle's manifest.
    pub model_hash: String,
    /// The model's input.
    pub spec: PreprocessSpec,
    /// The thresholds.
    pub calibration: Option<Arc<Calibration>>,
    /// Compute dtype.
    pub dtype: String,
    /// Seed of the noise.
    pub seed: u64,
}

impl Job {
    /// The same, with a recipe that was changed.
    ///
    /// # Errors
    /// A ROI without a cell on the model's grid.
    pub fn with(&self, recipe: Recipe) -> Result<Self, String> {
        fits(&recipe, &self.spec)?;
        let Self { detector, bundle, model_hash, spec, calibration, dtype, seed, .. } = self;
        Ok(Self {
            recipe_hash: recipe.hash(),
            recipe,
            detector: *detector,
            bundle: bundle.clone(),
            model_hash: model_hash.clone(),
            spec: spec.clone(),
            calibration: calibration.clone(),
            dtype: dtype.clone(),
            seed: *seed,
        })
    }

    /// What the detector is asked for.
    pub fn plan(&self) -> Plan {
        let Recipe { class, steps, sensitivity, .. } = &self.recipe;
        let rois = self.recipe.rois.id();
        let gates = |c: &Calibration| c.gates(class.as_ref(), rois.as_ref(), *sensitivity);
        let gates = || self.calibration.as_deref().map(gates).unwrap_or_default();
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
        let entries = self.calibration.as_deref().map_or(&[][..], |calibration| &calibration.entries);
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

/// Whether every ROI of a recipe has a cell on the grid that a bundle has, where that can be known.
///
/// # Errors
/// The one that has none.
pub fn fits(recipe: &Recipe, spec: &PreprocessSpec) -> Result<(), String> {
    // How a letterbox lies follows from the frames, which are not there yet.
    if spec.geometry != Geometry::Stretch {
        return Ok(());
    }
    let (columns, rows) = spec.canvas();
    let mask = recipe.rois.mask(&Placement::of_crop(&recipe.roi, (columns, rows)));
    mask.map(drop).map_err(|problem| format!("recipe '{}': {problem} (it has {columns}x{rows} cells)", recipe.id.0))
}

/// The recipes that a camera knows, and which of them judges its frames.
pub struct Recipes {
    /// Held for the time of a look.
    book: Mutex<Book>,
}

struct Book {
    /// All that ever were in force: what is under way is judged as it was meant when it was taken.
    jobs: Vec<Arc<Job>>,
    /// Where those are that can be chosen, in the order of the configuration.
    known: Vec<usize>,
    turn: Turn,
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
        let known = (0..jobs.len()).collect();
        let turn = Turn { before: 0, recipe: 0, since: Timestamp(0) };
        Self { book: Mutex::new(Book { jobs: jobs.into_iter().map(Arc::new).collect(), known, turn }) }
    }

    /// When which one judges.
    pub fn turn(&self) -> Turn {
        self.book().turn
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

    /// One of them, or of those that they were before they were changed.
    pub fn get(&self, recipe: usize) -> Arc<Job> {
        Arc::clone(&self.book().jobs[recipe])
    }

    /// All that can be chosen, in the order of the configuration.
    pub fn all(&self) -> Vec<Arc<Job>> {
        let book = self.book();
        book.known.iter().map(|known| Arc::clone(&book.jobs[*known])).collect()
    }

    /// Whether a camera is set in the same way for both.
    pub fn alike(&self, one: usize, other: usize) -> bool {
        one == other || self.get(one).recipe.controls == self.get(other).recipe.controls
    }

    /// The recipe of this name, if it is known.
    pub fn find(&self, name: &RecipeName) -> Option<usize> {
        let book = self.book();
        let meant = |recipe: &Recipe| match name {
            RecipeName::Id(id) => recipe.id == *id,
            RecipeName::Number(number) => recipe.number == Some(*number),
        };
        book.known.iter().copied().find(|known| meant(&book.jobs[*known].recipe))
    }

    /// Lets one of them judge what is taken from now on.
    pub fn select(&self, recipe: usize, now: Timestamp) {
        let mut book = self.book();
        // It may have been changed since it was found.
        let is_same = |known: &usize| book.jobs[*known].recipe.id == book.jobs[recipe].recipe.id;
        let newest = book.known.iter().copied().find(is_same).unwrap_or(recipe);
        book.turn_to(newest, now);
    }

    /// Puts changed ones in the place of those of the same order. What is taken from now on is judged by them.
    pub fn renew(&self, changed: Vec<Job>, now: Timestamp) {
        let mut book = self.book();
        for (place, job) in changed.into_iter().enumerate().take(book.known.len()) {
            let old = book.known[place];
            if book.jobs[old].recipe == job.recipe && book.jobs[old].detector == job.detector {
                continue;
            }
            // One that is changed back and forth does not fill the memory.
            let same = book.jobs.iter().position(|known| known.recipe == job.recipe && known.detector == job.detector);
            let new = same.unwrap_or_else(|| {
                book.jobs.push(Arc::new(job));
                book.jobs.len() - 1
            });
            book.known[place] = new;
            if book.turn.recipe == old {
                book.turn_to(new, now);
            }
        }
    }

    /// Lets go of thresholds and good parts of jobs of a detector that judges nothing any more. What is under way keeps its own.
    pub fn forget(&self, detector: usize) {
        let mut book = self.book();
        let Book { jobs, known, .. } = &mut *book;
        for (place, job) in jobs.iter_mut().enumerate() {
            if job.detector == detector && !known.contains(&place) && job.calibration.is_some() {
                let Ok(light) = job.with(job.recipe.clone()) else { continue };
                *job = Arc::new(Job { calibration: None, ..light });
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn turn_to(&mut self, recipe: usize, now: Timestamp) {
        if recipe != self.turn.recipe {
            self.turn = Turn { before: self.turn.recipe, recipe, since: now };
        }
    }
}

/// A frame on its way to a detector.
pub struct Item {
    /// The frame.
    pub meta: FrameMeta,
    /// Its model input.
    pub prepared: Prepared,
    /// What the camera gave, where somebody may want to keep it.
    pub pixels: Option<(PixelFormat, FrameBuf)>,
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
    jobs: &[impl Deref<Target = Job>],
    mut plan: Plan,
    detector: &mut dyn Detector,
    clock: &dyn Clock,
) -> Vec<Inspection> {
    let (mut frames, mut prepared) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    plan.until = items.iter().filter_map(|item| item.due).min();
    for item in items {
        frames.push((item.meta, item.latency, item.pixels));
        prepared.push(item.prepared);
    }
    let count = frames.len();
    if plan.steps == StepPlan::Auto(Vec::new()) {
        let faults = frames.into_iter().zip(jobs);
        return faults
            .map(|((meta, _, pixels), job)| Inspection {
                pixels,
                ..faulty(meta, job, FaultReason::Uncalibrated, job.uncalibrated(), clock)
            })
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
            .map(|((((meta, latency, pixels), prepared), detection), job)| {
                let latency = Latency { infer, ..latency };
                Inspection { pixels, ..judged(meta, latency, prepared, detection, &plan, job, clock) }
            })
            .collect(),
        Err(error) => frames
            .into_iter()
            .zip(jobs)
            .map(|((meta, _, pixels), job)| Inspection {
                pixels,
                ..faulty(meta, job, FaultReason::DetectorFault, error.0.clone(), clock)
            })
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
    let decision = decide(&detection, plan, job.calibration.as_deref(), job.recipe.sensitivity);
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
        recipe_hash: Arc::clone(&job.recipe_hash),
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
        pixels: None,
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
        recipe_hash: Arc::clone(&job.recipe_hash),
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
        pixels: None,
        full_scale: None,
        drift: Drift::default(),
        actuation: Actuation::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::detect::{StepChoice, Steps};
    use crate::preprocess::spec::{Normalisation, SketchPlane};

    fn job(detector: usize) -> Job {
        let recipe = Recipe::whole_frame("r", None, StepChoice::Fixed(Steps(1)));
        let spec = PreprocessSpec {
            width: 32,
            height: 32,
            geometry: Geometry::Stretch,
            normalisation: Normalisation::SymmetricOne,
            sketch: SketchPlane::None,
            tiles: None,
        };
        Job {
            recipe_hash: recipe.hash(),
            recipe,
            detector,
            bundle: "b".into(),
            model_hash: detector.to_string(),
            spec,
            calibration: Some(Arc::new(Calibration { id: "c".into(), entries: Vec::new() })),
            dtype: "f32".into(),
            seed: 0,
        }
    }

    #[test]
    fn thresholds_of_a_bundle_that_went_do_not_stay_in_memory() {
        let recipes = Recipes::new(vec![job(0)]);
        let old = Arc::downgrade(recipes.get(0).calibration.as_ref().expect("calibrated"));
        recipes.renew(vec![job(1)], Timestamp(5));
        recipes.forget(1);
        assert!(
            recipes.get(recipes.current()).calibration.is_some() && old.strong_count() == 1,
            "what judges keeps its own"
        );
        recipes.forget(0);
        assert_eq!((old.strong_count(), recipes.get(0).model_hash.as_str()), (0, "0"));
    }
}
