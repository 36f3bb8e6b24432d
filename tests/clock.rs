//! The wall clock is set while the station runs: by a person, by the time service, by a battery that is empty.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsad::camera::synthetic::SyntheticCamera;
use dsad::config::camera::SyntheticLine;
use dsad::daemon::pipeline::{Camera, Ending, Parts, run};
use dsad::inspection::frame::{CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, SourceError};
use dsad::inspection::time::{Clock, Timestamp};
use dsad::inspection::verdict::Verdict;
use dsad::platform::clock::SystemClock;
use dsad::synthetic::Product;

use crate::cli::lines;
use crate::pipeline::job;
use crate::support::doors::HandClock;
use crate::support::{Kept, RecordingSink, ScriptedDetector, calibration, kept, station};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// What the wall clock shows at first, seconds: 2026.
const START: i64 = 1_795_000_000;
/// The last second that 32 bits hold.
const LAST: i64 = i32::MAX as i64;
/// Where the wall clock is set to, one after the other.
const JUMPS: [i64; 9] =
    [START + HOUR, START - HOUR, START - DAY, START + 365 * DAY, LAST - 1, LAST + 1, LAST + 10 * 365 * DAY, 0, START];
/// Parts between two jumps.
const PARTS: u64 = 40;

/// A wall clock that is set while it runs; the monotonic one goes on.
struct Jumping {
    inner: SystemClock,
    seconds: Mutex<i64>,
}

impl Clock for Jumping {
    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    fn wall_nanos(&self) -> u64 {
        *self.seconds.lock().expect("clock") as u64 * 1_000_000_000 + self.inner.now().0 % 1_000_000_000
    }
}

/// A camera that sets the clock after every few frames.
struct Setting {
    next: u64,
    clock: Arc<Jumping>,
}

impl FrameSource for Setting {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        std::thread::sleep(Duration::from_millis(1));
        if self.next == PARTS * (JUMPS.len() as u64 + 1) {
            return Err(SourceError::Ended);
        }
        if self.next > 0 && self.next.is_multiple_of(PARTS) {
            *self.clock.seconds.lock().expect("clock") = JUMPS[(self.next / PARTS) as usize - 1];
        }
        let meta = FrameMeta {
            id: FrameId(self.next),
            camera: CameraId("a".into()),
            captured_at: self.clock.now(),
            sequence: self.next,
            trigger: None,
            width: 32,
            height: 32,
        };
        self.next += 1;
        Ok(Frame { meta, format: PixelFormat::Gray8, pixels: FrameBuf::from(vec![20; 32 * 32]) })
    }
}

#[test]
fn a_wall_clock_that_jumps_moves_no_deadline_and_no_event() {
    let dir = tempfile::tempdir().expect("directory");
    let clock = Arc::new(Jumping { inner: SystemClock::start(), seconds: Mutex::new(START) });
    let mut job = job(Some(calibration()));
    // Long enough for any machine, and far below the shortest jump.
    job.recipe.deadline_ms = Some(600_000);
    let source = Box::new(Setting { next: 0, clock: Arc::clone(&clock) });
    let clock: Arc<dyn Clock> = clock;
    let Kept { recording, worker, .. } = kept(dir.path(), Vec::new(), &clock);
    let sink = RecordingSink::default();
    let lease = Arc::new(AtomicU64::new(0));
    let ending = run(Parts {
        record: Box::new(recording),
        sinks: vec![Box::new(sink.clone())],
        workers: vec![worker],
        lease: Arc::clone(&lease),
        ..station(
            vec![Camera::free(CameraId("a".into()), source, false, job)],
            ScriptedDetector { delay: Duration::ZERO },
            clock,
        )
    });
    assert!(matches!(ending, Ending::Drained(_)), "{ending:?}");
    assert_eq!(lease.load(Ordering::Relaxed), 0);
    let all = PARTS * (JUMPS.len() as u64 + 1);
    for inspection in sink.0.lock().expect("sink").iter() {
        let spent = inspection.latency;
        assert_eq!(inspection.decision.verdict, Verdict::Pass, "{:?}", inspection.fault);
        let parts = [spent.queue, spent.prepare, spent.infer, spent.decide, spent.total];
        assert!(parts.iter().all(|millis| (0.0..600_000.0).contains(millis)), "{spent:?}");
    }
    let events = lines(&std::fs::read_to_string(dir.path().join("events.ndjson")).expect("events"));
    let number = |key: &str| events.iter().map(|event| event[key].as_u64().expect("a number")).collect::<Vec<_>>();
    assert_eq!(number("seq"), (1..=all).collect::<Vec<_>>());
    assert_eq!(number("frame_id"), (0..all).collect::<Vec<_>>());
    assert!(number("t_mono_ns").windows(2).all(|pair| pair[0] <= pair[1]));
    let ids: BTreeSet<&str> = events.iter().map(|event| event["event_id"].as_str().expect("an id")).collect();
    assert_eq!(ids.len() as u64, all, "an id for each");
    // The jumps are there to be seen, in the times that people read.
    let walls: Vec<&str> = events.iter().map(|event| event["t_wall"].as_str().expect("a time")).collect();
    assert!(walls.windows(2).filter(|pair| pair[1] < pair[0]).count() >= 3, "{walls:?}");
    for day in ["2038-01-19", "2048-01-17", "1970-01-01"] {
        assert!(walls.iter().any(|wall| wall.starts_with(day)), "no {day}");
    }
}

/// A station that loads for ten seconds behind a line of ten parts a second must not meet a hundred parts at once.
#[test]
fn a_line_does_not_make_up_for_lost_time() {
    let clock = HandClock::shared();
    let line =
        SyntheticLine { product: Product::Washer, seed: 1, fps: Some(10.0), defect_rate: 0.0, parts: None, size: 16 };
    let mut camera = SyntheticCamera::new(CameraId::from("line".to_owned()), line, clock.clone());
    assert!(camera.next_frame().is_ok());
    clock.pass(10);
    assert_eq!(camera.next_frame().map(|frame| frame.meta.id), Ok(FrameId(1)));
    assert_eq!(camera.next_frame().err(), Some(SourceError::Timeout), "a tenth of a second has not passed");
    clock.pass(1);
    assert_eq!(camera.next_frame().map(|frame| frame.meta.id), Ok(FrameId(2)));
}
