//! Golden parts that are judged between frames: a detector that begins to answer otherwise takes the station's readiness away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dsad::daemon::challenge::{Challenge, GoldenPart};
use dsad::daemon::health::Health;
use dsad::daemon::pipeline::{Camera, Ending, Parts, run};
use dsad::daemon::upkeep::Aside;
use dsad::inspection::audit::{Audit, Deed};
use dsad::inspection::conditions::Conditions;
use dsad::inspection::detect::{Detection, Detector, DetectorError, Plan};
use dsad::inspection::frame::{
    CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, Prepared, SourceError,
};
use dsad::inspection::golden::Expected;
use dsad::inspection::time::{Clock, Timestamp};
use dsad::platform::clock::SystemClock;
use dsad::preprocess::prepare;

use crate::pipeline::job;
use crate::support::{RecordingSink, ScriptedDetector, calibration, station};

/// A grey picture of 32x32.
fn frame(level: u8, id: u64, captured_at: Timestamp) -> Frame {
    let camera = CameraId("a".into());
    let meta = FrameMeta { id: FrameId(id), camera, captured_at, sequence: id, trigger: None, width: 32, height: 32 };
    Frame { meta, format: PixelFormat::Gray8, pixels: FrameBuf::from(vec![level; 32 * 32]) }
}

/// Two golden parts, a good one and a bad one.
fn golden() -> Vec<GoldenPart> {
    let part = |name: &str, level: u8| {
        let job = job(Some(calibration()));
        let prepared = prepare(&frame(level, 0, Timestamp(0)), &job.recipe.roi, &job.spec).expect("prepares");
        GoldenPart {
            detector: 0,
            bundle: "b".into(),
            name: name.into(),
            prepared,
            plan: job.plan(),
            expected: Expected { map: vec![0.0; 1024], score: f32::from(level) / 255.0, tolerance: 1e-3 },
            calibration: job.calibration,
        }
    };
    vec![part("good.png", 40), part("bad.png", 200)]
}

fn trail() -> (Audit, Arc<Mutex<Vec<Deed>>>) {
    let deeds: Arc<Mutex<Vec<Deed>>> = Arc::default();
    let kept = Arc::clone(&deeds);
    let audit: Audit = Arc::new(move |deed| {
        kept.lock().expect("deeds").push(deed);
        Ok(())
    });
    (audit, deeds)
}

/// Scores what it sees a little higher while it is broken, and counts what it saw.
struct Drifting {
    broken: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    inner: ScriptedDetector,
}

impl Detector for Drifting {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        self.seen.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let mut found = self.inner.detect(batch, plan)?;
        if self.broken.load(Ordering::Relaxed) {
            found.iter_mut().for_each(|detection| detection.score.0 += 0.01);
        }
        Ok(found)
    }
}

/// A clock that is set by hand.
struct SetClock(AtomicU64);

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }

    fn wall_nanos(&self) -> u64 {
        0
    }
}

#[test]
fn one_golden_part_goes_between_two_frames_and_only_when_it_is_time() {
    let (audit, deeds) = trail();
    let clock = SetClock(AtomicU64::new(5));
    let health = Health::new(std::iter::empty(), std::iter::empty(), Arc::<Conditions>::default());
    health.loaded.store(true, Ordering::Relaxed);
    let (broken, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let inner = ScriptedDetector { delay: Duration::ZERO };
    let drifting = Drifting { broken: Arc::clone(&broken), seen: Arc::clone(&seen), inner };
    let mut detectors: Vec<Box<dyn Detector>> = vec![Box::new(drifting)];
    let hour = Duration::from_secs(3600);
    let mut challenge = Challenge::new(golden(), hour, audit, &clock);
    let at = |minutes: f64| clock.0.store(5 + (minutes * 60e9) as u64, Ordering::Relaxed);
    let mut step = |waiting: bool| {
        let before = seen.load(Ordering::Relaxed);
        challenge.step(waiting, &mut detectors, &clock, &health);
        seen.load(Ordering::Relaxed) - before
    };
    at(59.9);
    assert_eq!((step(false), step(true)), (0, 0));
    // Frames wait: they go first, until it is late.
    at(60.0);
    assert_eq!(step(true), 0);
    at(66.0);
    assert_eq!((step(true), deeds.lock().expect("deeds").len()), (1, 0));
    assert_eq!((step(false), deeds.lock().expect("deeds").len()), (1, 1));
    assert_eq!(step(false), 0, "the next one is in an hour");
    let counts = |health: &Health| health.reading(0, Timestamp(0)).challenges;
    assert_eq!(counts(&health), [("passed", 1), ("failed", 0)]);
    assert!(health.is_ready(Timestamp(0)));

    broken.store(true, Ordering::Relaxed);
    at(126.0);
    assert_eq!((step(false), step(false)), (1, 1));
    assert_eq!(counts(&health), [("passed", 1), ("failed", 1)]);
    assert!(!health.is_ready(Timestamp(0)));
    let obstacles = health.reading(0, Timestamp(0)).obstacles;
    for words in ["the last challenge failed", "'good.png' of bundle 'b'", "'bad.png'", "allowed is 0.001"] {
        assert!(obstacles[0].contains(words), "no {words}: {obstacles:?}");
    }
    let last = deeds.lock().expect("deeds").last().cloned().expect("a deed");
    assert!(last.what == "challenge" && last.refused.is_some_and(|why| why.contains("differs")));

    // It is tried again soon.
    broken.store(false, Ordering::Relaxed);
    at(126.9);
    assert_eq!(step(false), 0);
    at(127.0);
    assert_eq!((step(false), step(false)), (1, 1));
    assert!(health.is_ready(Timestamp(0)) && health.reading(0, Timestamp(0)).obstacles.is_empty());
    assert_eq!(deeds.lock().expect("deeds").last().expect("a deed").refused, None);
}

/// A camera with a frame every few milliseconds.
struct Steady {
    next: u64,
    clock: Arc<dyn Clock>,
}

impl FrameSource for Steady {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        std::thread::sleep(Duration::from_millis(5));
        self.next += 1;
        Ok(frame(20, self.next - 1, self.clock.now()))
    }
}

#[test]
fn a_detector_that_begins_to_answer_otherwise_takes_ready_away_until_it_answers_right() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let (audit, deeds) = trail();
    let (broken, seen) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default());
    let (stop, lease) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let source = Box::new(Steady { next: 0, clock: Arc::clone(&clock) });
    let inner = ScriptedDetector { delay: Duration::from_millis(1) };
    let drifting = Drifting { broken: Arc::clone(&broken), seen: Arc::clone(&seen), inner };
    let sink = RecordingSink::default();
    let challenge = Challenge::new(golden(), Duration::from_millis(50), audit, clock.as_ref());
    let camera = Camera::free(CameraId("a".into()), source, false, job(Some(calibration())));
    let parts = Parts {
        sinks: vec![Box::new(sink.clone())],
        stop: Arc::clone(&stop),
        lease: Arc::clone(&lease),
        aside: Aside { challenge: Some(challenge), ..Aside::default() },
        ..station(vec![camera], drifting, clock)
    };
    let ending = std::thread::spawn(move || run(parts));
    let until = |what: &str, is: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !is() {
            assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let is_ready = || lease.load(Ordering::Relaxed) > 0;
    let of = |passed: bool| {
        let deeds = deeds.lock().expect("deeds");
        deeds.iter().filter(|deed| deed.refused.is_none() == passed).count()
    };
    until("ready", &|| is_ready() && of(true) > 2);
    broken.store(true, Ordering::Relaxed);
    until("not ready", &|| !is_ready() && of(false) > 0);
    // Nothing passes by a detector that is known to answer wrongly: what was taken before is out, and no more is taken.
    until("the last of before", &|| {
        let before = sink.0.lock().expect("sink").len();
        std::thread::sleep(Duration::from_millis(300));
        sink.0.lock().expect("sink").len() == before
    });
    broken.store(false, Ordering::Relaxed);
    until("ready again", &is_ready);
    stop.store(true, Ordering::Relaxed);
    let Ending::Drained(counts) = ending.join().expect("the daemon") else { panic!("failed") };
    // A challenge is no inspection.
    let inspections = sink.0.lock().expect("sink").len() as u64;
    assert_eq!((counts.frames_in, counts.pass + counts.fail), (inspections, inspections));
    let challenged = seen.load(Ordering::Relaxed) - inspections;
    let whole = 2 * deeds.lock().expect("deeds").len() as u64;
    assert!(challenged == whole || challenged == whole + 1, "{challenged} golden parts in {whole}");
}
