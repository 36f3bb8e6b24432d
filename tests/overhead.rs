//! What the daemon adds to a frame besides preparing and judging it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use dsad::bundle::signature::KeyList;
use dsad::commands::load::Bundles;
use dsad::config::device::DeviceChoice;
use dsad::daemon::pipeline::{self, Camera, Ending, Parts};
use dsad::inspection::detect::{ClassId, StepChoice, Steps};
use dsad::inspection::event::Event;
use dsad::inspection::frame::{CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, SourceError};
use dsad::inspection::recipe::Recipe;
use dsad::inspection::time::Clock;
use dsad::inspection::verdict::{Inspection, Latency, SinkError, VerdictSink};
use dsad::output::ndjson;
use dsad::platform::clock::SystemClock;
use dsad::platform::memory::peak_rss_mb;
use dsad::synthetic::{Product, good_part};

use crate::support::record;

const FRAMES: u64 = 200;
const SIZE: (u32, u32) = (1280, 1024);
/// Side of the model grid.
const SIDE: u32 = 256;

/// A colour camera whose frames come slower than they are judged.
struct Calm(u64, Arc<dyn Clock>);

impl FrameSource for Calm {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        if self.0 == FRAMES {
            return Err(SourceError::Ended);
        }
        std::thread::sleep(Duration::from_millis(250));
        // A part as the bundle knows it, enlarged: a frame that fails everywhere has more regions than any real one.
        let part = good_part(Product::Washer, self.0, SIDE);
        let cells = (0..SIZE.1 * SIZE.0).map(|i| (i / SIZE.0 * SIDE / SIZE.1, i % SIZE.0 * SIDE / SIZE.0));
        let pixels: Vec<u8> = cells.flat_map(|(y, x)| part.rgb[3 * (y * SIDE + x) as usize..][..3].to_vec()).collect();
        let pixels = FrameBuf::from(pixels);
        let meta = FrameMeta {
            id: FrameId(self.0),
            camera: CameraId("a".into()),
            captured_at: self.1.now(),
            sequence: self.0,
            trigger: None,
            width: SIZE.0,
            height: SIZE.1,
        };
        self.0 += 1;
        Ok(Frame { meta, format: PixelFormat::Rgb8, pixels })
    }
}

/// The last sink: tells the whole way of a frame and its parts, milliseconds.
struct Last(Sender<(f64, Latency)>, Arc<dyn Clock>);

impl VerdictSink for Last {
    fn name(&self) -> &str {
        "last"
    }

    fn publish(&mut self, inspection: &Inspection, _: &Event) -> Result<(), SinkError> {
        let way = self.1.now().millis_since(inspection.frame.captured_at);
        self.0.send((way, inspection.latency)).map_err(|error| SinkError(error.to_string()))
    }
}

/// `cargo test --release overhead -- --ignored --nocapture`
#[test]
#[ignore = "measures: a minute, release builds only"]
fn overhead_of_a_large_frame() {
    let dir = tempfile::tempdir().expect("directory");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mut bundles = Bundles::default();
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/bundles/demo");
    let index = bundles.open(&demo, &KeyList::empty()).expect("opens");
    let recipe = Recipe::whole_frame("r", Some(ClassId("washer".into())), StepChoice::Fixed(Steps(2)));
    let job = bundles.job(index, recipe, DeviceChoice::Cpu, None).expect("job");
    let detectors = bundles.detectors(DeviceChoice::Cpu, Arc::clone(&clock), [&job], |_| {});
    let (events, worker, _) = ndjson::open(&dir.path().join("events.ndjson"), u64::MAX);
    let (say, told) = channel();
    let ending = pipeline::run(Parts {
        cameras: vec![Camera::free(CameraId("a".into()), Box::new(Calm(0, Arc::clone(&clock))), true, job)],
        detectors,
        record: record(Arc::clone(&clock)),
        sinks: vec![Box::new(events), Box::new(Last(say, Arc::clone(&clock)))],
        workers: vec![("events", Box::new(move || worker.run()))],
        service: None,
        clock,
        stop: Arc::new(AtomicBool::new(false)),
        shutdown: Duration::from_secs(20),
        ready: Box::new(|| {}),
        alive: Box::new(|| {}),
        lease: Arc::default(),
    });
    let Ending::Drained(counts) = ending else { panic!("{ending:?}") };
    let ways: Vec<(f64, Latency)> = told.iter().collect();
    let say = |what: &str, of: fn(&(f64, Latency)) -> f64| {
        let mut all: Vec<f64> = ways.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() as f64 * share).ceil() as usize).max(1) - 1];
        println!("{what:<20} p50 {:>8.3}, p99 {:>8.3}, most {:>8.3} ms", at(0.5), at(0.99), at(1.0));
    };
    println!("{} frames of {SIZE:?}, {} overruns, peak memory {:?} MB", ways.len(), counts.overrun, peak_rss_mb());
    say("prepare and model", |(_, l)| l.prepare + l.infer);
    say("to prepare", |(_, l)| l.queue);
    say("to the model", |(_, l)| l.total - l.queue - l.prepare - l.infer - l.decide);
    say("decide", |(_, l)| l.decide);
    say("to the last sink", |(way, l)| way - l.total);
    say("added", |(way, l)| way - l.prepare - l.infer);
    // No limit is asserted: two frames of 200 decide the p99, and the other programs of the machine decide those.
    assert_eq!((ways.len() as u64, counts.overrun), (FRAMES, 0));
}
