use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use dsad::config::gpio::GpioOutput;
use dsad::daemon::pipeline::{Camera, Ending, Parts, run};
use dsad::daemon::upkeep::Aside;
use dsad::gpio::chips::chips;
use dsad::gpio::input::Edges;
use dsad::gpio::output;
use dsad::inspection::detect::{Detection, Detector, DetectorError, Plan};
use dsad::inspection::frame::{
    CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, Prepared, SourceError,
};
use dsad::inspection::line::Actuation;
use dsad::inspection::time::{Clock, Timestamp};
use dsad::inspection::trigger::{Asked, TriggerMode};
use dsad::inspection::verdict::{Inspection, Verdict};
use serde_json::json;

use super::chip::{Chip, Trace, pace};
use super::{clock, counts, input, number, pin, rises, spread};
use crate::pipeline::job;
use crate::support::{RecordingSink, ScriptedDetector, Unrecorded, calibration, envelopes};

/// A camera that gives a frame every two milliseconds, as bright as the part that is before it.
struct Camera500 {
    level: Arc<AtomicU8>,
    next: u64,
    clock: Arc<dyn Clock>,
}

impl FrameSource for Camera500 {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        std::thread::sleep(Duration::from_millis(2));
        let meta = FrameMeta {
            id: FrameId(self.next),
            captured_at: self.clock.now(),
            sequence: self.next,
            ..FrameMeta::of_picture("top", 32, 32)
        };
        self.next += 1;
        let level = self.level.load(Ordering::Relaxed);
        Ok(Frame { meta, format: PixelFormat::Gray8, pixels: FrameBuf::from(vec![level; 32 * 32]) })
    }
}

/// A detector that takes six milliseconds, and a fifth of a second at every hundredth frame.
struct Hanging {
    seen: u64,
    inner: ScriptedDetector,
}

impl Detector for Hanging {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        self.seen += 1;
        if self.seen.is_multiple_of(100) {
            std::thread::sleep(Duration::from_millis(200));
        }
        self.inner.detect(batch, plan)
    }
}

/// Whether somebody has a line.
fn taken(name: &str) -> bool {
    chips().iter().flat_map(|chip| &chip.lines).any(|line| line.name == name && line.used)
}

#[test]
#[ignore = "needs gpio-sim: .ci/gpio/run"]
fn sim_a_thousand_edges_are_a_thousand_inspections() {
    const WINDOW: u32 = 100;
    let wanted = number("EDGES", 1000);
    let (chip, clock) = (Chip::new("plc", &["TRIGGER"]), clock());
    let _outputs = Chip::new("outputs", &["PASS", "READY"]);
    let level = Arc::new(AtomicU8::new(20));
    let source = Camera500 { level: Arc::clone(&level), next: 0, clock: Arc::clone(&clock) };
    let mut judged = job(Some(calibration()));
    judged.recipe.deadline_ms = Some(80);
    let camera = Camera {
        id: CameraId("top".into()),
        source: Box::new(source),
        paced: true,
        mode: TriggerMode::Asked(Asked { delay_nanos: 0, debounce_nanos: 0, patience_nanos: 500_000_000 }),
        line: Some(Box::new(Edges::new(input("TRIGGER", 0), Arc::clone(&clock)))),
        recipes: vec![judged],
    };
    let outputs = [
        GpioOutput::Pass { pin: pin("PASS"), cameras: None, pulse_ms: 6, gap_ms: 3, window_ms: Some(WINDOW) },
        GpioOutput::Ready { pin: pin("READY"), period_ms: 50 },
    ];
    let (stop, lease) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let ready = {
        let (lease, clock) = (Arc::clone(&lease), Arc::clone(&clock));
        move || clock.now().0 < lease.load(Ordering::Relaxed)
    };
    let (sink, worker, health) = output::open(&outputs, Arc::clone(&clock), Box::new(ready));
    let kept = RecordingSink::default();
    let trace = Trace::start();
    let parts = Parts {
        cameras: vec![camera],
        detectors: Box::new(|| {
            let inner = ScriptedDetector { delay: Duration::from_millis(6) };
            Ok(vec![Box::new(Hanging { seen: 0, inner }) as Box<dyn Detector>])
        }),
        envelopes: envelopes(Arc::clone(&clock)),
        sinks: vec![Box::new(sink), Box::new(kept.clone())],
        record: Box::new(Unrecorded),
        workers: vec![("gpio", Box::new(move || worker.run()))],
        service: None,
        desk: Arc::default(),
        state: crate::support::state(Arc::clone(&clock)),
        watches: Vec::new(),
        clock: Arc::clone(&clock),
        stop: Arc::clone(&stop),
        shutdown: Duration::from_secs(20),
        ready: Box::new(|| {}),
        alive: Box::new(|| {}),
        lease,
        aside: Aside::default(),
    };
    let ending = std::thread::scope(|scope| {
        let daemon = scope.spawn(|| run(parts));
        // An edge before the line is open is nobody's.
        while !taken("TRIGGER") {
            std::thread::sleep(Duration::from_millis(10));
        }
        pace(clock.as_ref(), Duration::from_millis(10), wanted, |part| {
            // A value that is no number is the fault of its part; a detector that breaks would end the test.
            let bad = if part % 50 == 49 { 254 } else { 200 };
            level.store(if part % 10 == 9 { bad } else { 20 }, Ordering::Relaxed);
            chip.pull(0, true);
            std::thread::sleep(Duration::from_millis(4));
            chip.pull(0, false);
        });
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        daemon.join().unwrap()
    });
    let [pulses, beats] = trace.stop(2, clock.as_ref()).try_into().unwrap();
    let Ending::Drained(of_run) = ending else { panic!("{ending:?}") };
    let kept = kept.0.lock().unwrap();
    let at = |inspection: &Inspection| inspection.frame.trigger.as_ref().map(|trigger| trigger.at).unwrap();
    let accepted = kept.iter().filter(|inspection| inspection.actuation == Actuation::Accept);
    let accepted: Vec<Timestamp> = accepted.map(at).collect();
    let passed = kept.iter().filter(|inspection| inspection.decision.verdict == Verdict::Pass).count();
    let rises = rises(&pulses);
    let [given, _, withheld, failed] = counts(&health, 0);
    // Every pulse lies in the window of an accepted part of its own. The emulated processor may stand still for some
    // milliseconds between the look at the clock and the line.
    let mut waiting = accepted.iter();
    let own = |rise: &Timestamp| {
        waiting.by_ref().map(|at| rise.millis_since(*at)).find(|millis| *millis < f64::from(WINDOW) + 10.0)
    };
    let after: Vec<f64> = rises.iter().filter_map(own).collect();
    println!(
        "{}",
        json!({"check": "daemon", "edges": wanted, "inspections": kept.len(), "counts": of_run,
               "accepted": accepted.len(), "pass_pulses": rises.len(), "withheld": withheld,
               "pulse_after_edge_ms": spread(&after), "ready_changes": beats.len()})
    );
    assert_eq!((kept.len() as u64, of_run.frames_in), (wanted, wanted), "one inspection for each edge");
    assert_eq!(passed, accepted.len(), "nothing but a pass is accepted");
    assert!(of_run.overrun > 0 && of_run.fail > 0 && of_run.fault > 0 && passed > 0, "{of_run:?}");
    assert_eq!((rises.len() as u64, failed), (given, 0), "what was given was seen");
    assert_eq!(given + withheld, passed as u64, "a pulse for each pass that is in its window");
    assert_eq!(after.len(), rises.len(), "each pulse inside the window of its own part");
    assert!(beats.len() as u64 > wanted / 10, "READY beats while edges come");
    assert!(beats.last().is_some_and(|(_, up)| !up), "and ends low");
}
