use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsad::config::gpio::GpioOutput;
use dsad::daemon::pipeline::{Camera, Ending, Parts, run};
use dsad::gpio::input::{EdgeError, Edges};
use dsad::gpio::output;
use dsad::inspection::detect::Detector;
use dsad::inspection::event::Event;
use dsad::inspection::frame::{
    CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, SourceError, TriggerInfo,
};
use dsad::inspection::line::{Actuation, LineRules, LineState};
use dsad::inspection::time::Timestamp;
use dsad::inspection::verdict::{Inspection, SinkError, Verdict, VerdictSink};
use serde_json::json;

use super::chip::{Chip, Sampler, pace};
use super::{clock, counts, input, number, pin, spread};
use crate::pipeline::job;
use crate::support::{RecordingSink, ScriptedDetector, calibration, record};

/// A camera that takes a picture at every edge: each tenth of a bad part, each fiftieth of one that the detector cannot judge.
struct EdgeCamera {
    edges: Edges,
    left: u64,
    next: u64,
}

impl FrameSource for EdgeCamera {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        if self.left == 0 {
            return Err(SourceError::Ended);
        }
        let edge = self.edges.next().map_err(|error| match error {
            EdgeError::Timeout => SourceError::Timeout,
            EdgeError::Lost { reason } => SourceError::Lost { reason },
        })?;
        self.left -= 1;
        let id = self.next;
        self.next += 1;
        let value = match id {
            id if id % 50 == 49 => 255,
            id if id % 10 == 9 => 200,
            _ => 20,
        };
        let trigger = Some(TriggerInfo { source: "gpio".into(), part_id: None, at: edge.at });
        let meta = FrameMeta {
            id: FrameId(id),
            camera: CameraId("top".into()),
            captured_at: edge.at,
            sequence: id,
            trigger,
            width: 32,
            height: 32,
        };
        Ok(Frame { meta, format: PixelFormat::Gray8, pixels: FrameBuf(Arc::from(vec![value; 32 * 32])) })
    }
}

/// What the end of the way does with verdicts, before the lines hear of them.
struct Line<S> {
    state: LineState,
    sink: S,
    said: Arc<Mutex<Vec<(Actuation, Timestamp)>>>,
}

impl<S: VerdictSink> VerdictSink for Line<S> {
    fn name(&self) -> &str {
        self.sink.name()
    }

    fn publish(&mut self, inspection: &Inspection, event: &Event) -> Result<(), SinkError> {
        let actuation = self.state.next(&LineRules::default(), inspection.decision.verdict, true);
        let at = inspection.frame.trigger.as_ref().map_or(inspection.frame.captured_at, |trigger| trigger.at);
        self.said.lock().unwrap().push((actuation, at));
        self.sink.publish(&Inspection { actuation, ..inspection.clone() }, event)
    }
}

#[test]
#[ignore = "needs gpio-sim: .ci/gpio/run"]
fn sim_a_thousand_edges_are_a_thousand_inspections() {
    const WINDOW: u32 = 100;
    let wanted = number("EDGES", 1000);
    let (chip, clock) = (Chip::new("plc", &["TRIGGER"]), clock());
    let plc = Chip::new("outputs", &["PASS"]);
    let camera = EdgeCamera { edges: Edges::new(input("TRIGGER", 0), Arc::clone(&clock)), left: wanted, next: 0 };
    let pass = [GpioOutput::Pass { pin: pin("PASS"), cameras: None, pulse_ms: 6, gap_ms: 3, window_ms: Some(WINDOW) }];
    let (sink, worker, health) = output::open(&pass, Arc::clone(&clock), Box::new(|| true));
    let (kept, said) = (RecordingSink::default(), Arc::default());
    let line = Line { state: LineState::default(), sink, said: Arc::clone(&said) };
    let sampler = Sampler::start(&plc, 1, Arc::clone(&clock));
    let parts = Parts {
        cameras: vec![Camera { source: Box::new(camera), paced: true }],
        jobs: [(CameraId("top".into()), job(Some(calibration())))].into(),
        detectors: Box::new(|| {
            Ok(vec![Box::new(ScriptedDetector { delay: Duration::from_millis(7) }) as Box<dyn Detector>])
        }),
        record: record(Arc::clone(&clock)),
        sinks: vec![Box::new(line), Box::new(kept.clone())],
        workers: vec![("gpio", Box::new(move || worker.run()))],
        service: None,
        clock: Arc::clone(&clock),
        stop: Arc::new(AtomicBool::new(false)),
        shutdown: Duration::from_secs(20),
        ready: Box::new(|| {}),
        alive: Box::new(|| {}),
    };
    let ending = std::thread::scope(|scope| {
        let daemon = scope.spawn(|| run(parts));
        // The line is open by then.
        std::thread::sleep(Duration::from_millis(500));
        pace(clock.as_ref(), Duration::from_millis(10), wanted, |_| {
            chip.pull(0, true);
            std::thread::sleep(Duration::from_millis(4));
            chip.pull(0, false);
        });
        daemon.join().unwrap()
    });
    let pulses = sampler.stop().remove(0);
    let Ending::Drained(counts_of_run) = ending else { panic!("{ending:?}") };
    let kept = kept.0.lock().unwrap();
    let rises: Vec<Timestamp> = pulses.iter().filter(|(_, up)| *up).map(|(at, _)| *at).collect();
    let mut accepted = said.lock().unwrap().clone();
    accepted.retain(|(actuation, _)| *actuation == Actuation::Accept);
    let [given, _, withheld, failed] = counts(&health, 0);
    // Every pulse lies in the window of an accepted part of its own.
    let mut waiting = accepted.iter();
    let after: Vec<f64> = rises
        .iter()
        .filter_map(|rise| {
            waiting.by_ref().map(|(_, at)| rise.millis_since(*at)).find(|millis| *millis < f64::from(WINDOW) + 2.0)
        })
        .collect();
    println!(
        "{}",
        json!({"check": "daemon", "edges": wanted, "inspections": kept.len(), "counts": counts_of_run,
               "accepted": accepted.len(), "pass_pulses": rises.len(), "withheld": withheld,
               "pulse_after_edge_ms": spread(&after)})
    );
    assert_eq!((kept.len() as u64, counts_of_run.frames_in), (wanted, wanted));
    let passed = kept.iter().filter(|inspection| inspection.decision.verdict == Verdict::Pass).count();
    assert_eq!(passed, accepted.len(), "nothing but a pass is accepted");
    assert_eq!((rises.len() as u64, failed), (given, 0));
    assert_eq!(given + withheld, passed as u64, "a pulse for each pass in its window");
    assert_eq!(after.len(), rises.len(), "each pulse inside the window of its own part");
}
