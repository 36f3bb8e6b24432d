//! The four stages: one plain function each, a loop over what the stage before hands on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};

use super::health::{CameraHealth, Health};
use super::mailbox::{Consumer, Producer, Taken};
use crate::inspection::calibration::{Calibration, CalibrationEntry};
use crate::inspection::decide::decide;
use crate::inspection::detect::{ClassId, Detector, Plan, StepChoice, StepPlan};
use crate::inspection::drift::{Drift, DriftMonitor};
use crate::inspection::event::Event;
use crate::inspection::frame::{CameraId, Frame, FrameId, FrameMeta, FrameSource, Prepared, SourceError};
use crate::inspection::line::Actuation;
use crate::inspection::recipe::Recipe;
use crate::inspection::tiles::TileGrid;
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::verdict::{Decision, FaultReason, Inspection, Latency, Verdict, VerdictSink};
use crate::preprocess::prepare_for;
use crate::preprocess::spec::PreprocessSpec;

/// Wait of a stage that has nothing to do: bounds how long a stop or a heartbeat takes.
const IDLE: Duration = Duration::from_millis(100);
/// First and longest wait before a lost camera is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What capture hands on.
#[derive(Debug, Clone)]
pub enum Captured {
    /// A frame.
    Frame(Frame),
    /// A frame that was due and cannot be used.
    Damaged(FrameMeta, String),
}

impl Captured {
    fn meta(&self) -> &FrameMeta {
        match self {
            Captured::Frame(frame) => &frame.meta,
            Captured::Damaged(meta, _) => meta,
        }
    }
}

/// What prepare hands on.
pub enum Work {
    /// Model input.
    Judge {
        /// The frame.
        meta: FrameMeta,
        /// Its model input.
        prepared: Prepared,
        /// Milliseconds in the mailbox and in preprocessing.
        latency: Latency,
    },
    /// A frame that ends here.
    Fault {
        /// The frame.
        meta: FrameMeta,
        /// Why.
        reason: FaultReason,
        /// In words.
        text: String,
    },
}

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
        Plan { steps: StepPlan::new(*steps, gates), class: class.clone() }
    }

    /// Why nothing can be judged without thresholds.
    fn uncalibrated(&self) -> String {
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

/// Makes the event of an inspection.
pub type Record = Box<dyn FnMut(&Inspection) -> Event + Send>;

/// Jobs by camera.
pub type Jobs = HashMap<CameraId, Job>;

/// Takes frames from a camera until it ends or `stop` is set. `paced` sources lose frames when nobody takes them; others
/// wait for room.
pub fn capture(
    mut source: Box<dyn FrameSource>,
    paced: bool,
    frames: &Producer<Captured>,
    stop: &AtomicBool,
    health: &Health,
) {
    let mut retry = RETRY.0;
    // Known from the first frame on.
    let mut counts: Option<&CameraHealth> = None;
    let mut gone: Option<String> = None;
    while !stop.load(Ordering::Relaxed) {
        health.beat(0);
        let captured = match source.next_frame() {
            Ok(frame) => Captured::Frame(frame),
            Err(SourceError::Damaged { meta, reason }) => Captured::Damaged(*meta, reason),
            Err(SourceError::Timeout) => continue,
            Err(SourceError::Ended) => break,
            Err(SourceError::Lost { reason }) => {
                if gone.is_none() {
                    counts.inspect(|counts| counts.lost());
                }
                // Once for each reason: a camera may be unplugged for weeks.
                if gone.as_ref() != Some(&reason) {
                    log::error!("camera lost: {reason}; it is tried again until it is back");
                }
                gone = Some(reason);
                std::thread::sleep(retry);
                retry = (retry * 2).min(RETRY.1);
                continue;
            }
        };
        retry = RETRY.0;
        let meta = captured.meta();
        counts.get_or_insert_with(|| health.camera(&meta.camera)).frame(meta);
        if gone.take().is_some() {
            log::info!("camera {} is back", meta.camera);
        }
        if paced {
            // What is evicted leaves a gap in the ids, and prepare records the gap.
            frames.push(captured);
            continue;
        }
        let mut waiting = Some(captured);
        while let Some(captured) = waiting.take() {
            if let Err(back) = frames.offer(captured) {
                waiting = Some(back);
                health.beat(0);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Turns frames into model input. A gap in a camera's frame ids becomes one overrun per missing id.
pub fn prepare_frames(
    mut frames: Consumer<Captured>,
    work: &Sender<Work>,
    jobs: &Jobs,
    clock: &dyn Clock,
    health: &Health,
) {
    let mut expected: HashMap<CameraId, u64> = HashMap::new();
    loop {
        health.beat(1);
        let captured = match frames.take(IDLE) {
            Taken::Item(captured) => captured,
            Taken::Nothing => continue,
            Taken::Closed => return,
        };
        let meta = captured.meta().clone();
        // Every camera counts from 0: the first frames may be lost like any other.
        let next = expected.entry(meta.camera.clone()).or_insert(0);
        for missing in *next..meta.id.0 {
            let text = "the frame was replaced by a newer one before it could be inspected".to_owned();
            let meta = FrameMeta { id: FrameId(missing), trigger: None, width: 0, height: 0, ..meta.clone() };
            if work.send(Work::Fault { meta, reason: FaultReason::Overrun, text }).is_err() {
                return;
            }
        }
        *next = meta.id.0 + 1;
        let item = match captured {
            Captured::Damaged(meta, text) => Work::Fault { meta, reason: FaultReason::CameraFault, text },
            Captured::Frame(frame) => prepared(&frame, jobs, clock),
        };
        if work.send(item).is_err() {
            return;
        }
    }
}

fn prepared(frame: &Frame, jobs: &Jobs, clock: &dyn Clock) -> Work {
    let meta = frame.meta.clone();
    let started = clock.now();
    let Some(job) = jobs.get(&meta.camera) else {
        let text = format!("camera '{}' has no recipe", meta.camera);
        return Work::Fault { meta, reason: FaultReason::CameraFault, text };
    };
    match prepare_for(&job.recipe, frame, &job.spec) {
        Ok(prepared) => {
            let latency = Latency {
                queue: started.millis_since(meta.captured_at),
                prepare: clock.now().millis_since(started),
                ..Latency::default()
            };
            Work::Judge { meta, prepared, latency }
        }
        Err(error) => Work::Fault { meta, reason: FaultReason::CameraFault, text: error.to_string() },
    }
}

/// Judges. The only stage that touches a detector: burn's streams belong to threads.
pub fn inspect(
    work: &Receiver<Work>,
    inspections: &Sender<Inspection>,
    mut detectors: Vec<Box<dyn Detector>>,
    jobs: &Jobs,
    clock: &dyn Clock,
    health: &Health,
) {
    let mut monitors = Monitors::new();
    for (camera, job) in jobs {
        health.camera(camera).graph_recorded(detectors[job.detector].graph_recorded());
    }
    loop {
        health.beat(2);
        let item = match work.recv_timeout(IDLE) {
            Ok(item) => item,
            Err(crossbeam::channel::RecvTimeoutError::Timeout) => continue,
            Err(crossbeam::channel::RecvTimeoutError::Disconnected) => return,
        };
        let mut inspection = judge(item, &mut detectors, jobs, clock);
        if let Some(job) = jobs.get(&inspection.frame.camera) {
            // A frame may have been the first of its kind.
            let recorded = detectors[job.detector].graph_recorded();
            health.camera(&inspection.frame.camera).graph_recorded(recorded);
        }
        inspection.drift = watch(&inspection, jobs, &mut monitors, health);
        if inspections.send(inspection).is_err() {
            return;
        }
    }
}

/// Drift monitors by camera, and what each said last; none where the thresholds keep no good parts.
type Monitors = HashMap<CameraId, Option<(DriftMonitor, Drift)>>;

/// What drifts on the camera of an inspection; a change is logged.
fn watch(inspection: &Inspection, jobs: &Jobs, monitors: &mut Monitors, health: &Health) -> Drift {
    let camera = &inspection.frame.camera;
    let (Some(job), Some(detection), Some(prepared)) = (jobs.get(camera), &inspection.detection, &inspection.prepared)
    else {
        return Drift::default();
    };
    let class = job.recipe.class.as_ref();
    let entry = job.calibration.as_ref().and_then(|c| c.judging(class, job.recipe.steps, detection.roi_set()));
    let monitor =
        monitors.entry(camera.clone()).or_insert_with(|| Some((DriftMonitor::new(entry?)?, Drift::default())));
    let Some((monitor, last)) = monitor else { return Drift::default() };
    // Scores of different step counts have different scales.
    let unit = match job.recipe.steps {
        StepChoice::Fixed(_) => 1.0,
        StepChoice::Auto => {
            let (ran, through) = (StepChoice::Fixed(detection.steps), entry.and_then(|entry| entry.rois.as_ref()));
            let entry = job.calibration.as_ref().and_then(|c| c.entry_through(class, ran, through));
            entry.map_or(1.0, |entry| entry.image_threshold)
        }
    };
    let drift = monitor.observe(detection.plain_score().0 / unit, prepared.light, detection.novelty);
    health.camera(camera).drift(monitor.levels(), drift);
    if drift != *last {
        match drift.words().join(" and ") {
            none if none.is_empty() => log::info!("camera {camera}: no drift any more"),
            words => log::warn!(
                "camera {camera}: the {words} drifted from the good parts behind the thresholds; look at light, lens and \
                 material before good parts are rejected"
            ),
        }
        *last = drift;
    }
    drift
}

fn judge(item: Work, detectors: &mut [Box<dyn Detector>], jobs: &Jobs, clock: &dyn Clock) -> Inspection {
    match item {
        Work::Fault { meta, reason, text } => {
            let job = jobs.get(&meta.camera);
            faulty(meta, job, reason, text, clock)
        }
        Work::Judge { meta, prepared, latency } => match jobs.get(&meta.camera) {
            Some(job) => judge_one(meta, prepared, latency, job, detectors[job.detector].as_mut(), clock),
            None => faulty(meta, None, FaultReason::CameraFault, "the camera has no recipe".into(), clock),
        },
    }
}

/// Judges one prepared frame by a job: the one path from a detection to an inspection, for the daemon and for `dsad inspect`.
pub fn judge_one(
    meta: FrameMeta,
    prepared: Prepared,
    mut latency: Latency,
    job: &Job,
    detector: &mut dyn Detector,
    clock: &dyn Clock,
) -> Inspection {
    let plan = job.plan();
    if plan.steps == StepPlan::Auto(Vec::new()) {
        return faulty(meta, Some(job), FaultReason::Uncalibrated, job.uncalibrated(), clock);
    }
    let started = clock.now();
    let detection = match detector.detect(std::slice::from_ref(&prepared), &plan).map(|mut found| found.pop()) {
        Ok(Some(detection)) => detection,
        Ok(None) => return faulty(meta, Some(job), FaultReason::DetectorFault, "no detection".into(), clock),
        Err(error) => return faulty(meta, Some(job), FaultReason::DetectorFault, error.0, clock),
    };
    let detected = clock.now();
    let decision = decide(&detection, &plan, job.calibration.as_ref(), job.recipe.sensitivity);
    let decided = clock.now();
    latency.infer = detected.millis_since(started);
    latency.decide = decided.millis_since(detected);
    latency.total = decided.millis_since(meta.captured_at);
    let fault = match decision.verdict {
        Verdict::Fault(FaultReason::Uncalibrated) => Some(job.uncalibrated()),
        Verdict::Fault(_) => Some("the map or the score is not finite".into()),
        _ => None,
    };
    let limits = job.calibration.as_ref().and_then(|calibration| calibration.limits(&plan, &detection));
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
        dtype: job.dtype.clone(),
        seed: job.seed,
        fault,
        prepared: Some(Arc::new(prepared)),
        drift: Drift::default(),
        actuation: Actuation::Nothing,
    }
}

/// The inspection of a frame that was not judged.
pub fn faulty(meta: FrameMeta, job: Option<&Job>, reason: FaultReason, text: String, clock: &dyn Clock) -> Inspection {
    let total = if meta.captured_at == Timestamp(0) { 0.0 } else { clock.now().millis_since(meta.captured_at) };
    Inspection {
        frame: meta,
        recipe: job.map_or_else(|| crate::inspection::recipe::RecipeId(String::new()), |job| job.recipe.id.clone()),
        bundle: job.map(|job| job.bundle.clone()).unwrap_or_default(),
        model_hash: job.map(|job| job.model_hash.clone()).unwrap_or_default(),
        calibration: None,
        detection: None,
        decision: Decision { verdict: Verdict::Fault(reason), rule: None, threshold: None, regions: Vec::new() },
        latency: Latency { total, ..Latency::default() },
        dtype: job.map(|job| job.dtype.clone()).unwrap_or_default(),
        seed: job.map_or(0, |job| job.seed),
        fault: Some(text),
        prepared: None,
        full_scale: None,
        drift: Drift::default(),
        actuation: Actuation::Nothing,
    }
}

/// Makes the event of every inspection and hands both to every sink, in order. A sink that fails
/// does not stop the others.
pub fn publish(
    inspections: &Receiver<Inspection>,
    mut record: Record,
    mut sinks: Vec<Box<dyn VerdictSink>>,
    health: &Health,
) {
    let mut reported = vec![false; sinks.len()];
    loop {
        health.beat(3);
        let inspection = match inspections.recv_timeout(IDLE) {
            Ok(inspection) => inspection,
            Err(crossbeam::channel::RecvTimeoutError::Timeout) => continue,
            Err(crossbeam::channel::RecvTimeoutError::Disconnected) => return,
        };
        health.count(&inspection);
        let event = record(&inspection);
        for (number, (sink, reported)) in sinks.iter_mut().zip(&mut reported).enumerate() {
            match sink.publish(&inspection, &event) {
                Ok(()) => *reported = false,
                Err(error) => {
                    health.refused(number);
                    if !std::mem::replace(reported, true) {
                        log::error!("{}: frame {} not taken: {error}", sink.name(), inspection.frame.id.0);
                    }
                }
            }
        }
    }
}
