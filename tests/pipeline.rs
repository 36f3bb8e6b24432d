//! The whole daemon with scripted parts: every frame ends as exactly one inspection.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dsad::daemon::job::Job;
use dsad::daemon::pipeline::{Camera, Ending, Parts, run};
use dsad::daemon::upkeep::Aside;
use dsad::inspection::calibration::Calibration;
use dsad::inspection::detect::{Detection, Detector, DetectorError, Plan, StepChoice, Steps};
use dsad::inspection::frame::{CameraId, Prepared};
use dsad::inspection::recipe::Recipe;
use dsad::inspection::time::Clock;
use dsad::inspection::verdict::{FaultReason, Inspection, Verdict};
use dsad::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use dsad::service::Service;

use crate::support::doors::HandClock;
use crate::support::{
    ManualClock, RecordingSink, ScriptedCamera, ScriptedDetector, Shot, Unrecorded, calibration, envelopes, state,
    station,
};

pub(super) fn job(calibration: Option<Calibration>) -> Job {
    Job {
        recipe: Recipe::whole_frame("scripted", None, StepChoice::Fixed(Steps(1))),
        recipe_hash: "0".into(),
        detector: 0,
        bundle: "scripted".into(),
        model_hash: "0".into(),
        spec: PreprocessSpec {
            width: 32,
            height: 32,
            geometry: Geometry::Stretch,
            normalisation: Normalisation::SymmetricOne,
            sketch: SketchPlane::None,
            tiles: None,
        },
        calibration: calibration.map(Arc::new),
        dtype: "f32".into(),
        seed: 0,
    }
}

struct Run {
    ending: Ending,
    inspections: Vec<Inspection>,
}

fn play(
    cameras: Vec<(ScriptedCamera, bool)>,
    calibration: Option<Calibration>,
    delay: Duration,
    stop: Arc<AtomicBool>,
) -> Run {
    play_beside(None, cameras, calibration, delay, stop)
}

fn play_beside(
    service: Option<Service>,
    cameras: Vec<(ScriptedCamera, bool)>,
    calibration: Option<Calibration>,
    delay: Duration,
    stop: Arc<AtomicBool>,
) -> Run {
    let sink = RecordingSink::default();
    let camera = |(camera, paced): (ScriptedCamera, bool)| {
        Camera::free(CameraId(camera.name.into()), Box::new(camera), paced, job(calibration.clone()))
    };
    let ending = run(Parts {
        cameras: cameras.into_iter().map(camera).collect(),
        detectors: Box::new(move || Ok(vec![Box::new(ScriptedDetector { delay }) as Box<dyn Detector>])),
        envelopes: envelopes(ManualClock::shared()),
        sinks: vec![Box::new(sink.clone())],
        record: Box::new(Unrecorded),
        workers: Vec::new(),
        service,
        desk: Arc::default(),
        state: state(ManualClock::shared()),
        watches: Vec::new(),
        clock: ManualClock::shared(),
        stop,
        shutdown: Duration::from_secs(20),
        ready: Box::new(|| {}),
        alive: Box::new(|| {}),
        lease: Arc::default(),
        aside: Aside::default(),
    });
    let inspections = sink.0.lock().expect("sink").clone();
    Run { ending, inspections }
}

fn values(count: usize, value: u8) -> Vec<Shot> {
    vec![Shot::Value(value); count]
}

fn never() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

fn ids(inspections: &[Inspection], camera: &str) -> Vec<u64> {
    let mut ids: Vec<u64> = inspections.iter().filter(|i| &*i.frame.camera.0 == camera).map(|i| i.frame.id.0).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn every_frame_of_an_unhurried_source_is_judged_once() {
    let mut shots = values(40, 20);
    shots[7] = Shot::Value(200);
    let run = play(vec![(ScriptedCamera::new("a", shots), false)], Some(calibration()), Duration::ZERO, never());
    assert_eq!(ids(&run.inspections, "a"), (0..40).collect::<Vec<_>>());
    let failed: Vec<u64> =
        run.inspections.iter().filter(|i| i.decision.verdict == Verdict::Fail).map(|i| i.frame.id.0).collect();
    assert_eq!(failed, [7]);
    let Ending::Drained(counts) = run.ending else { panic!("{:?}", run.ending) };
    assert_eq!((counts.frames_in, counts.pass, counts.fail, counts.overrun), (40, 39, 1, 0));
}

#[test]
fn a_slow_detector_loses_no_frame_without_a_record() {
    let cameras =
        vec![(ScriptedCamera::new("a", values(150, 20)), true), (ScriptedCamera::new("b", values(90, 20)), true)];
    let run = play(cameras, Some(calibration()), Duration::from_millis(3), never());
    assert_eq!(ids(&run.inspections, "a"), (0..150).collect::<Vec<_>>());
    assert_eq!(ids(&run.inspections, "b"), (0..90).collect::<Vec<_>>());
    let Ending::Drained(counts) = run.ending else { panic!("{:?}", run.ending) };
    assert!(counts.overrun > 0, "the detector was meant to be too slow");
    assert_eq!(counts.frames_in, counts.pass + counts.fail + counts.overrun + counts.fault);
}

#[test]
fn a_stop_drains_what_was_captured() {
    let stop = never();
    let setter = Arc::clone(&stop);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(80));
        setter.store(true, Ordering::Relaxed);
    });
    let camera = ScriptedCamera::new("a", values(100_000, 20));
    let run = play(vec![(camera, false)], Some(calibration()), Duration::from_millis(2), stop);
    let Ending::Drained(counts) = run.ending else { panic!("{:?}", run.ending) };
    assert!(counts.frames_in > 0 && counts.frames_in < 100_000);
    assert_eq!(run.inspections.len() as u64, counts.frames_in);
}

/// A detector that takes half a minute for a frame, by a clock that is set on by hand.
struct Crawling(Arc<HandClock>, ScriptedDetector);

impl Detector for Crawling {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        let found = self.1.detect(batch, plan);
        self.0.pass(30);
        // The supervisor looks at the cameras ten times a second.
        std::thread::sleep(Duration::from_millis(250));
        found
    }
}

#[test]
fn a_source_that_waits_for_a_slow_detector_is_not_silent() {
    let clock = HandClock::shared();
    let shared: Arc<dyn Clock> = clock.clone();
    let sink = RecordingSink::default();
    let camera = ScriptedCamera::new("a", values(6, 20));
    let camera = Camera::free(CameraId("a".into()), Box::new(camera), false, job(Some(calibration())));
    let ending = run(Parts {
        sinks: vec![Box::new(sink.clone())],
        ..station(vec![camera], Crawling(clock, ScriptedDetector { delay: Duration::from_millis(250) }), shared)
    });
    let Ending::Drained(counts) = ending else { panic!("{ending:?}") };
    assert_eq!((counts.frames_in, counts.pass), (6, 6), "{:?}", sink.0.lock().expect("sink"));
}

#[test]
fn faults_are_named_and_never_pass() {
    let shots = vec![Shot::Value(20), Shot::Damaged, Shot::Lost, Shot::Value(254), Shot::Value(20)];
    let run = play(vec![(ScriptedCamera::new("a", shots), false)], Some(calibration()), Duration::ZERO, never());
    let verdicts: Vec<Verdict> = run.inspections.iter().map(|i| i.decision.verdict).collect();
    let fault = Verdict::Fault;
    assert_eq!(
        verdicts,
        [Verdict::Pass, fault(FaultReason::CameraFault), fault(FaultReason::DetectorFault), Verdict::Pass]
    );
    assert!(run.inspections.iter().all(|i| (i.fault.is_some()) == matches!(i.decision.verdict, Verdict::Fault(_))));
}

#[test]
fn without_a_calibration_everything_is_a_fault() {
    let run = play(vec![(ScriptedCamera::new("a", values(5, 20)), false)], None, Duration::ZERO, never());
    assert_eq!(run.inspections.len(), 5);
    let uncalibrated = Verdict::Fault(FaultReason::Uncalibrated);
    assert!(run.inspections.iter().all(|i| i.decision.verdict == uncalibrated));
}

#[test]
fn a_panic_in_a_stage_ends_the_run() {
    let mut shots = values(10, 20);
    shots.push(Shot::Value(253));
    let run = play(vec![(ScriptedCamera::new("a", shots), false)], Some(calibration()), Duration::ZERO, never());
    let Ending::Failed(reason) = run.ending else { panic!("{:?}", run.ending) };
    assert!(reason.contains("inspect") && reason.contains("scripted"), "{reason}");
}

#[test]
fn a_service_that_ends_ends_nothing_else() {
    // A file is no listener: the service cannot run.
    let file = File::open(std::env::current_exe().expect("a path")).expect("opens");
    let service = Service::new(Some(TcpListener::from(OwnedFd::from(file))), None).expect("not looked at yet");
    let cameras = vec![(ScriptedCamera::new("a", values(100, 20)), false)];
    let run = play_beside(Some(service), cameras, Some(calibration()), Duration::from_millis(1), never());
    let Ending::Drained(counts) = run.ending else { panic!("{:?}", run.ending) };
    assert_eq!((counts.frames_in, counts.pass), (100, 100));
}
