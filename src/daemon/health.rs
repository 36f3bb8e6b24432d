//! Counters that the stages bump; the supervisor and the service read them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::job::Recipes;
use crate::inspection::conditions::Conditions;
use crate::inspection::drift::{Drift, Levels};
use crate::inspection::frame::{CameraId, FrameMeta};
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::verdict::{Decision, FailRule, FaultReason, Inspection, Verdict};
use crate::service::metrics::{CameraReading, Histogram, Reading};

/// Verdicts with their reasons in the order of [`outcome`].
const OUTCOMES: [(&str, &str); 7] = [
    ("pass", ""),
    ("fail", "image_score"),
    ("fail", "region"),
    ("fault", "overrun"),
    ("fault", "camera_fault"),
    ("fault", "detector_fault"),
    ("fault", "uncalibrated"),
];
/// Place of the overruns among them.
const OVERRUN: usize = 3;
/// Parts of a frame's way whose times are counted.
const WAY: [&str; 4] = ["queue", "prepare", "infer", "total"];
/// Upper bounds of the buckets of times, milliseconds: from a lookup on a GPU to a large network on a processor.
const BOUNDS: [f64; 13] = [1., 2.5, 5., 10., 25., 50., 100., 250., 500., 1_000., 2_500., 5_000., 10_000.];
/// A camera is silent after this time, milliseconds, and after three times the interval between its last frames.
const SILENCE: f64 = 10_000.0;

/// Counts since the start. `frames_in = pass + fail + faults`, exactly, once the stages have drained.
#[derive(Default)]
pub struct Health {
    /// Bumped by every stage as it progresses or waits by design: capture, prepare, inspect, publish.
    pub beats: [AtomicU64; 4],
    /// Whether the detectors are there.
    pub loaded: AtomicBool,
    /// The machine.
    conditions: Arc<Conditions>,
    /// Challenges that passed, and that failed.
    challenges: [AtomicU64; 2],
    /// Whether the last one failed,
    is_challenge_failed: AtomicBool,
    /// and why. Held for the time of a copy.
    challenge: Mutex<Option<String>>,
    /// Inspections that each sink refused, in the order of the sinks.
    sinks: Vec<(String, AtomicU64)>,
    cameras: BTreeMap<CameraId, CameraHealth>,
    /// Of cameras that nobody announced.
    strangers: CameraHealth,
}

/// Counts of one camera.
#[derive(Default)]
pub struct CameraHealth {
    /// What judges its frames; nothing, where nobody announced it.
    recipes: Option<Arc<Recipes>>,
    /// Whether silence is a fault: not where it waits for a trigger.
    must_speak: bool,
    frames: AtomicU64,
    owed: AtomicU64,
    /// Inspections that every sink has heard of.
    told: AtomicU64,
    late: AtomicU64,
    idle: AtomicU64,
    triggers_refused: AtomicU64,
    trigger_lost: AtomicBool,
    /// The driver's number of the last frame, one more; 0 before the first.
    after: AtomicU64,
    dropped: AtomicU64,
    losses: AtomicU64,
    outcomes: [AtomicU64; OUTCOMES.len()],
    latency: [Times; WAY.len()],
    /// From a trigger to the frame of its part.
    waited: Times,
    last: AtomicU64,
    interval: AtomicU64,
    /// Whether nobody asks it for a frame,
    rests: AtomicBool,
    /// and since when it is asked again.
    asked: AtomicU64,
    lost: AtomicBool,
    /// These are held for the time of a copy, by the inspect stage and by readers.
    drift: Mutex<Option<(Levels, Drift)>>,
    graph_recorded: Mutex<Option<bool>>,
}

/// A histogram of times.
#[derive(Debug, Default)]
struct Times {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

/// All cameras together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    /// Inspections that were owed: a frame that a camera gave, or a trigger that was accepted.
    pub frames_in: u64,
    /// Passed.
    pub pass: u64,
    /// Failed.
    pub fail: u64,
    /// Frames that were not judged in time.
    pub overrun: u64,
    /// All other faults.
    pub fault: u64,
    /// Inspections that a sink refused.
    pub sink_errors: u64,
}

impl Health {
    /// Nothing has happened yet to these cameras, of which some may be silent, and sinks.
    pub fn new<'a>(
        cameras: impl Iterator<Item = (&'a CameraId, &'a Arc<Recipes>, bool)>,
        sinks: impl Iterator<Item = &'a str>,
        conditions: Arc<Conditions>,
    ) -> Self {
        let of = |recipes: &Arc<Recipes>, must_speak| CameraHealth {
            recipes: Some(Arc::clone(recipes)),
            must_speak,
            ..CameraHealth::default()
        };
        Self {
            cameras: cameras.map(|(camera, recipes, must_speak)| (camera.clone(), of(recipes, must_speak))).collect(),
            conditions,
            sinks: sinks.map(|sink| (sink.to_owned(), AtomicU64::new(0))).collect(),
            ..Self::default()
        }
    }

    /// The counts of a camera.
    pub fn camera(&self, camera: &CameraId) -> &CameraHealth {
        self.cameras.get(camera).unwrap_or(&self.strangers)
    }

    /// Counts an inspection.
    pub fn count(&self, inspection: &Inspection) {
        let camera = self.camera(&inspection.frame.camera);
        bump(&camera.outcomes[outcome(&inspection.decision)]);
        if inspection.detection.is_some() {
            let spent = inspection.latency;
            let spent = [spent.queue, spent.prepare, spent.infer, spent.total];
            camera.latency.iter().zip(spent).for_each(|(times, millis)| times.add(millis));
        }
    }

    /// Counts an inspection that a sink refused.
    pub fn refused(&self, sink: usize) {
        bump(&self.sinks[sink].1);
    }

    /// What the last challenge found wrong.
    pub fn failed_challenge(&self) -> Option<String> {
        if !self.is_challenge_failed.load(Ordering::Relaxed) {
            return None;
        }
        self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a challenge, which failed for this reason; gives back why the one before it failed.
    pub fn challenged(&self, failed: Option<String>) -> Option<String> {
        bump(&self.challenges[usize::from(failed.is_some())]);
        self.is_challenge_failed.store(failed.is_some(), Ordering::Relaxed);
        std::mem::replace(&mut self.challenge.lock().unwrap_or_else(PoisonError::into_inner), failed)
    }

    /// Says that a stage is alive.
    pub fn beat(&self, stage: usize) {
        bump(&self.beats[stage]);
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for camera in self.cameras.values().chain([&self.strangers]) {
            counts.frames_in += get(&camera.owed);
            let [pass, image_score, region, overrun, faults @ ..] = camera.outcomes.each_ref().map(get);
            counts.pass += pass;
            counts.fail += image_score + region;
            counts.overrun += overrun;
            counts.fault += faults.iter().sum::<u64>();
        }
        counts.sink_errors = self.sinks.iter().map(|(_, count)| get(count)).sum();
        counts
    }

    /// Whether parts can be judged now.
    pub fn is_ready(&self, now: Timestamp) -> bool {
        let obstructed = self.is_challenge_failed.load(Ordering::Relaxed) || self.conditions.is_critical();
        !obstructed
            && self.loaded.load(Ordering::Relaxed)
            && self.cameras.values().all(|camera| camera.silent(now).is_none())
    }

    /// Cameras that must give frames, gave some, and give none any more.
    pub fn silences(&self, now: Timestamp) -> impl Iterator<Item = (&CameraId, String)> {
        self.cameras.iter().filter_map(move |(id, camera)| Some((id, camera.quiet(now)?)))
    }

    /// Everything now, for the service.
    pub fn reading(&self, started_nanos: u64, now: Timestamp) -> Reading {
        let detectors = (!self.loaded.load(Ordering::Relaxed)).then(|| "the detectors are not loaded yet".to_owned());
        let silent =
            self.cameras.iter().filter_map(|(id, camera)| Some(format!("camera {id}: {}", camera.silent(now)?)));
        let challenge = self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let challenge = challenge.map(|wrong| format!("the last challenge failed: {wrong}"));
        let obstacles = detectors.into_iter().chain(silent).chain(challenge).chain(self.conditions.obstacles());
        let [passed, failed] = self.challenges.each_ref().map(get);
        Reading {
            started_nanos,
            obstacles: obstacles.collect(),
            machine: self.conditions.machine(),
            challenges: vec![("passed", passed), ("failed", failed)],
            cameras: self.cameras.iter().map(|(id, camera)| camera.reading(id)).collect(),
            sink_errors: self.sinks.iter().map(|(sink, count)| (sink.clone(), get(count))).collect(),
            ..Reading::default()
        }
    }
}

impl CameraHealth {
    /// Counts an inspection that is owed.
    pub fn owed(&self) {
        bump(&self.owed);
    }

    /// Counts an inspection that every sink has heard of.
    pub fn told(&self) {
        bump(&self.told);
    }

    /// Counts a result that came after its deadline.
    pub fn late(&self) {
        bump(&self.late);
    }

    /// Counts a frame of a camera that runs free, while nothing is judged that nobody asked for.
    pub fn idle(&self) {
        bump(&self.idle);
    }

    /// Counts a trigger that was refused.
    pub fn refused_trigger(&self) {
        bump(&self.triggers_refused);
    }

    /// Says whether the line is gone that triggers come from.
    pub fn trigger_lost(&self, lost: bool) {
        self.trigger_lost.store(lost, Ordering::Relaxed);
    }

    /// Counts a frame that the camera gave, whether it is inspected or not.
    pub fn seen(&self, meta: &FrameMeta) {
        bump(&self.frames);
        let before = self.last.swap(meta.captured_at.0, Ordering::Relaxed).max(get(&self.asked));
        self.interval.store(meta.captured_at.0.saturating_sub(before), Ordering::Relaxed);
        let expected = self.after.swap(meta.sequence + 1, Ordering::Relaxed);
        if expected > 0 {
            self.dropped.fetch_add(meta.sequence.saturating_sub(expected), Ordering::Relaxed);
        }
        self.lost.store(false, Ordering::Relaxed);
    }

    /// Says that nobody asks for a frame: a source without a rate while there is no room for one or nobody wants one, and any that
    /// ended.
    pub fn rests(&self) {
        self.rests.store(true, Ordering::Relaxed);
    }

    /// Says that it is asked for a frame.
    pub fn asked(&self, clock: &dyn Clock) {
        if self.rests.load(Ordering::Relaxed) {
            self.asked.store(clock.now().0, Ordering::Relaxed);
            // Whoever sees that it is asked sees since when.
            self.rests.store(false, Ordering::Release);
        }
    }

    /// Counts the time from a trigger to the frame of its part.
    pub fn waited(&self, millis: f64) {
        self.waited.add(millis);
    }

    /// Says that the camera is gone, until its next frame.
    pub fn lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
        bump(&self.losses);
    }

    /// Says that the camera is there again, before its next frame.
    pub fn found(&self) {
        self.lost.store(false, Ordering::Relaxed);
    }

    /// Says where the camera's last frames lie.
    pub fn drift(&self, levels: Option<Levels>, drift: Drift) {
        *self.drift.lock().unwrap_or_else(PoisonError::into_inner) = levels.map(|levels| (levels, drift));
    }

    /// Says whether the camera's frames are replayed as one recorded graph.
    pub fn graph_recorded(&self, recorded: Option<bool>) {
        *self.graph_recorded.lock().unwrap_or_else(PoisonError::into_inner) = recorded;
    }

    /// Why no frames come, if so.
    fn silent(&self, now: Timestamp) -> Option<String> {
        match get(&self.frames) {
            _ if self.trigger_lost.load(Ordering::Relaxed) => Some("its trigger line is lost".into()),
            0 if self.must_speak => Some("no frame yet".into()),
            _ if self.lost.load(Ordering::Relaxed) => Some("lost".into()),
            _ => self.quiet(now),
        }
    }

    /// For how long a camera gave no frame that must and did, if that is too long.
    fn quiet(&self, now: Timestamp) -> Option<String> {
        let rests = self.rests.load(Ordering::Acquire);
        let since = now.millis_since(Timestamp(get(&self.last).max(get(&self.asked))));
        let limit = SILENCE.max(3.0 * get(&self.interval) as f64 / 1e6);
        let quiet = self.must_speak && !rests && get(&self.frames) > 0 && since > limit;
        quiet.then(|| format!("no frame for {:.0} s", since / 1e3))
    }

    fn reading(&self, id: &CameraId) -> CameraReading {
        let inspections = OUTCOMES.iter().zip(&self.outcomes);
        let job = self.recipes.as_ref().map(|all| all.get(all.current()));
        let recipe = job.as_ref().map(|job| &job.recipe);
        CameraReading {
            camera: id.to_string(),
            recipe: recipe.map(|recipe| recipe.id.0.clone()).unwrap_or_default(),
            recipe_number: recipe.and_then(|recipe| recipe.number),
            owed: get(&self.owed).saturating_sub(get(&self.told)),
            frames: get(&self.frames),
            late: get(&self.late),
            idle: get(&self.idle),
            triggers_refused: get(&self.triggers_refused),
            dropped: get(&self.dropped),
            losses: get(&self.losses),
            inspections: inspections.map(|((verdict, reason), count)| (*verdict, *reason, get(count))).collect(),
            overruns: get(&self.outcomes[OVERRUN]),
            latency: WAY.into_iter().zip(self.latency.iter().map(Times::reading)).collect(),
            waited: self.waited.reading(),
            drift: *self.drift.lock().unwrap_or_else(PoisonError::into_inner),
            graph_recorded: *self.graph_recorded.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Times {
    fn add(&self, millis: f64) {
        bump(&self.buckets[BOUNDS.partition_point(|bound| *bound < millis)]);
        self.nanos.fetch_add((millis * 1e6).round() as u64, Ordering::Relaxed);
    }

    fn reading(&self) -> Histogram {
        let bounds = BOUNDS.iter().map(|millis| millis / 1e3).chain([f64::INFINITY]);
        Histogram { buckets: bounds.zip(self.buckets.iter().map(get)).collect(), sum: get(&self.nanos) as f64 / 1e9 }
    }
}

/// Where a decision stands in [`OUTCOMES`].
fn outcome(decision: &Decision) -> usize {
    match (decision.verdict, decision.rule) {
        (Verdict::Pass, _) => 0,
        (Verdict::Fail, Some(FailRule::ImageScore) | None) => 1,
        (Verdict::Fail, Some(FailRule::Region)) => 2,
        (Verdict::Fault(FaultReason::Overrun), _) => OVERRUN,
        (Verdict::Fault(FaultReason::CameraFault), _) => 4,
        (Verdict::Fault(FaultReason::DetectorFault), _) => 5,
        (Verdict::Fault(FaultReason::Uncalibrated), _) => 6,
    }
}

fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_events() {
        let fault = |reason| (Verdict::Fault(reason), None);
        let all = [
            (Verdict::Pass, None),
            (Verdict::Fail, Some(FailRule::ImageScore)),
            (Verdict::Fail, Some(FailRule::Region)),
            fault(FaultReason::Overrun),
            fault(FaultReason::CameraFault),
            fault(FaultReason::DetectorFault),
            fault(FaultReason::Uncalibrated),
        ];
        for (at, (verdict, rule)) in all.into_iter().enumerate() {
            let decision = Decision { verdict, rule, threshold: None, regions: Vec::new() };
            assert_eq!(outcome(&decision), at);
            assert_eq!(OUTCOMES[at], (verdict.word(), decision.reason().unwrap_or_default()));
        }
    }

    #[test]
    fn a_time_is_in_the_first_bucket_that_holds_it() {
        let times = Times::default();
        [0.5, 1.0, 2.5, 1e6].into_iter().for_each(|millis| times.add(millis));
        let Histogram { buckets, sum } = times.reading();
        let filled: Vec<_> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.001, 2), (0.0025, 1), (f64::INFINITY, 1)]);
        assert!((sum - 1000.004).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn a_camera_is_silent_by_its_own_rhythm() {
        let second = |s: u64| Timestamp(s * 1_000_000_000);
        let camera = CameraHealth { must_speak: true, ..CameraHealth::default() };
        let frame = |at: u64| {
            camera.seen(&FrameMeta { captured_at: second(at), ..FrameMeta::of_picture("top", 0, 0) });
        };
        assert_eq!(camera.silent(second(1)).as_deref(), Some("no frame yet"));
        frame(1);
        frame(2);
        assert_eq!(camera.silent(second(12)), None);
        assert_eq!(camera.silent(second(13)).as_deref(), Some("no frame for 11 s"));
        // One part in 20 seconds.
        frame(22);
        assert_eq!(camera.silent(second(81)), None);
        assert_eq!(camera.silent(second(83)).as_deref(), Some("no frame for 61 s"));
        camera.lost();
        assert_eq!(camera.silent(second(22)).as_deref(), Some("lost"));
        frame(84);
        assert_eq!(camera.silent(second(85)), None);
    }

    /// The clock of a moment.
    struct At(u64);

    impl Clock for At {
        fn now(&self) -> Timestamp {
            Timestamp(self.0 * 1_000_000_000)
        }

        fn wall_nanos(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_source_that_nobody_asks_is_not_silent() {
        let camera = CameraHealth { must_speak: true, ..CameraHealth::default() };
        camera.asked(&At(1));
        camera.seen(&FrameMeta { captured_at: At(1).now(), ..FrameMeta::of_picture("top", 0, 0) });
        assert_eq!(camera.silent(At(12).now()).as_deref(), Some("no frame for 11 s"));
        camera.rests();
        assert_eq!(camera.silent(At(3_600).now()), None);
        camera.asked(&At(4_000));
        assert_eq!(camera.silent(At(4_009).now()), None);
        assert_eq!(camera.silent(At(4_011).now()).as_deref(), Some("no frame for 11 s"));
        // Its rest says nothing of how long it takes between two frames.
        camera.seen(&FrameMeta { captured_at: At(4_001).now(), ..FrameMeta::of_picture("top", 1, 0) });
        assert_eq!(camera.silent(At(4_013).now()).as_deref(), Some("no frame for 12 s"));
    }

    #[test]
    fn what_a_driver_counted_and_gave_nobody_is_counted() {
        let camera = CameraHealth::default();
        for sequence in [7, 8, 12, 13, 20] {
            camera.seen(&FrameMeta { sequence, ..FrameMeta::of_picture("top", 0, 0) });
        }
        camera.lost();
        let reading = camera.reading(&CameraId("top".into()));
        assert_eq!((reading.frames, reading.dropped, reading.losses), (5, 3 + 6, 1));
    }
}
