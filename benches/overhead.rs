//! What the daemon adds to a frame of 1280x1024 besides the model: from the bytes in the camera's buffer to the verdict at the last
//! sink, without the detector's own time. `cargo bench --bench overhead`
//!
//! One JSON object a line, milliseconds: `whole` is from the buffer to the last sink, `unpack` makes pixels, `prepare` the model's
//! input, `added` is all of it but the model; `rest` is `added` without both.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use dsad::bundle::signature::KeyList;
use dsad::camera::unpack::{Encoding, Picture, Unpacker};
use dsad::commands::load::Bundles;
use dsad::config::device::DeviceChoice;
use dsad::config::record::StoreLimits;
use dsad::daemon::job::Job;
use dsad::daemon::pipeline::{self, Camera, Ending, MakeDetectors, Parts};
use dsad::daemon::state::StationState;
use dsad::daemon::upkeep::Aside;
use dsad::inspection::anomaly::{AnomalyMap, AnomalyScore};
use dsad::inspection::detect::{ClassId, Detection, Detector, DetectorError, Plan, Reconstruction, StepChoice, Steps};
use dsad::inspection::event::Envelope;
use dsad::inspection::frame::{
    CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, Prepared, SourceError,
};
use dsad::inspection::layout::FourCc;
use dsad::inspection::recipe::Recipe;
use dsad::inspection::station_state::Start;
use dsad::inspection::time::{Clock, Timestamp};
use dsad::inspection::verdict::{Inspection, Latency, SinkError, VerdictSink};
use dsad::output::envelope::Envelopes;
use dsad::output::ndjson::Lines;
use dsad::output::record::{self, Places};
use dsad::output::store::Store;
use dsad::output::store::read::Reader;
use dsad::platform::clock::SystemClock;
use dsad::render::encode::jpeg;
use dsad::synthetic::{Product, good_part};
use serde_json::json;

const FRAMES: u64 = 300;
const SIZE: (usize, usize) = (1280, 1024);
/// Side of the demo's model grid.
const SIDE: u32 = 256;

/// A part as the demo knows it, enlarged: a frame that fails everywhere has more regions than any real one.
fn part(seed: u64) -> Vec<u8> {
    let part = good_part(Product::Washer, seed, SIDE);
    let place = |at: usize, of: usize| at * SIDE as usize / of;
    let cells = (0..SIZE.1 * SIZE.0).map(|i| (place(i / SIZE.0, SIZE.1), place(i % SIZE.0, SIZE.0)));
    cells.flat_map(|(y, x)| part.rgb[3 * (y * SIDE as usize + x)..][..3].to_vec()).collect()
}

/// Bytes as a camera's buffer holds them: YUYV without colour, MJPEG, or GREY.
fn encoded(code: &[u8; 4]) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    (0..4)
        .map(|seed| {
            let rgb = part(seed);
            Ok(match code {
                b"YUYV" => rgb.chunks_exact(3).flat_map(|pixel| [pixel[1], 128]).collect(),
                b"MJPG" => jpeg(&rgb, SIZE.0, SIZE.1, 85)?,
                _ => rgb.chunks_exact(3).map(|pixel| pixel[1]).collect(),
            })
        })
        .collect()
}

/// A camera whose buffers are full already.
struct Buffers {
    picture: Picture,
    buffers: Vec<Vec<u8>>,
    /// Frames come slower than they are judged: what waits is not what this measures.
    every: Duration,
    unpacker: Unpacker,
    next: u64,
    clock: Arc<dyn Clock>,
    /// Tells how long unpacking took, milliseconds.
    unpacked: Sender<f64>,
}

impl FrameSource for Buffers {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        if self.next == FRAMES {
            return Err(SourceError::Ended);
        }
        std::thread::sleep(self.every);
        let captured_at = self.clock.now();
        let buffer = &self.buffers[self.next as usize % self.buffers.len()];
        let unpacked = self.unpacker.unpack(&self.picture, buffer);
        let (format, pixels): (PixelFormat, FrameBuf) = unpacked.map_err(|reason| SourceError::Lost { reason })?;
        // Whoever listens ends after the camera.
        let _ = self.unpacked.send(self.clock.now().millis_since(captured_at));
        let meta = FrameMeta {
            id: FrameId(self.next),
            camera: CameraId("a".into()),
            captured_at,
            sequence: self.next,
            trigger: None,
            width: SIZE.0 as u32,
            height: SIZE.1 as u32,
        };
        self.next += 1;
        Ok(Frame { meta, format, pixels })
    }
}

/// A detector that takes its time and finds nothing.
struct Scripted(Duration);

impl Detector for Scripted {
    fn detect(&mut self, batch: &[Prepared], _: &Plan) -> Result<Vec<Detection>, DetectorError> {
        std::thread::sleep(self.0);
        let found = batch.iter().map(|prepared| {
            let (width, height) = (prepared.width, prepared.height);
            Detection {
                map: AnomalyMap { width, height, values: vec![0.0; width * height] },
                score: AnomalyScore(0.0),
                novelty: 0.0,
                reconstruction: Reconstruction { width, height, rgb: vec![0; 3 * width * height] },
                steps: Steps(2),
                tiles: None,
                rois: None,
                infer_ms: 0.0,
            }
        });
        Ok(found.collect())
    }
}

/// The last sink: tells the whole way of a frame and its parts.
struct Last(Sender<(Timestamp, Latency)>, Arc<dyn Clock>);

impl VerdictSink for Last {
    fn name(&self) -> &str {
        "last"
    }

    fn publish(&mut self, inspection: &Inspection, _: &Envelope) -> Result<(), SinkError> {
        let way = Timestamp(self.1.now().0 - inspection.frame.captured_at.0);
        self.0.send((way, inspection.latency)).map_err(|error| SinkError(error.to_string()))
    }
}

/// The demo's recipe, and its detector or one that sleeps.
fn judged_by(model: bool, clock: &Arc<dyn Clock>) -> Result<(Job, MakeDetectors), Box<dyn Error>> {
    let mut bundles = Bundles::default();
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/bundles/demo");
    let index = bundles.open(&demo, &KeyList::empty())?;
    let recipe = Recipe::whole_frame("r", Some(ClassId("washer".into())), StepChoice::Fixed(Steps(2)));
    let job = bundles.job(index, recipe, DeviceChoice::Cpu, None)?;
    let detectors = match model {
        true => bundles.detectors(DeviceChoice::Cpu, Arc::clone(clock), [std::slice::from_ref(&job)], None, |_| {}),
        false => Box::new(|| Ok(vec![Box::new(Scripted(Duration::from_millis(5))) as Box<dyn Detector>])),
    };
    Ok((job, detectors))
}

fn measure(code: &[u8; 4], model: bool) -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("dsad-overhead-{}", std::process::id()));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let (job, detectors) = judged_by(model, &clock)?;
    let layout = FourCc(*code).layout().ok_or("no such layout")?;
    let (tell_unpacked, unpacked) = channel();
    let source = Buffers {
        picture: Picture {
            layout,
            width: SIZE.0,
            height: SIZE.1,
            stride: 0,
            encoding: Encoding { bt709: false, full_range: false },
        },
        buffers: encoded(code)?,
        every: Duration::from_millis(if model { 400 } else { 50 }),
        unpacker: Unpacker::default(),
        next: 0,
        clock: Arc::clone(&clock),
        unpacked: tell_unpacked,
    };
    let limits = StoreLimits { days: 400, max_bytes: 1 << 30, outbox_bytes: 1 << 20, outbox_hours: 1 };
    let store = Store::open(&dir, Vec::new(), limits)?;
    let lines = Lines::new(&dir.join("events.ndjson"), u64::MAX);
    let (recording, _, queue) = record::queue(Arc::clone(&clock));
    let places = Places { store: Some((store, Reader::open(&dir)?)), lines, archive: None, shown: None };
    let (worker, _) = queue.worker(places, Box::new(|| true), Arc::default());
    let mut envelopes = Envelopes::new("", "", 0, Arc::clone(&clock));
    let (say, told) = channel();
    let ending = pipeline::run(Parts {
        cameras: vec![Camera::free(CameraId("a".into()), Box::new(source), true, job)],
        detectors,
        envelopes: Box::new(move || envelopes.make()),
        sinks: vec![Box::new(Last(say, Arc::clone(&clock)))],
        record: Box::new(recording),
        workers: vec![("record", Box::new(move || worker.run()))],
        service: None,
        desk: Arc::default(),
        state: Arc::new(StationState::new(Start::Automatic, Arc::clone(&clock), Arc::new(|_| Ok(())))),
        watches: Vec::new(),
        clock,
        stop: Arc::new(AtomicBool::new(false)),
        shutdown: Duration::from_secs(20),
        ready: Box::new(|| {}),
        alive: Box::new(|| {}),
        lease: Arc::default(),
        aside: Aside::default(),
    });
    std::fs::remove_dir_all(&dir)?;
    let Ending::Drained(counts) = ending else { return Err(format!("{ending:?}").into()) };
    if (counts.frames_in, counts.overrun) != (FRAMES, 0) {
        return Err(format!("frames were lost: {counts:?}").into());
    }
    let unpacked: Vec<f64> = unpacked.try_iter().collect();
    let rows: Vec<[f64; 5]> = told
        .try_iter()
        .zip(unpacked)
        // The first frames fill buffers.
        .skip(20)
        .map(|((way, latency), unpack)| {
            let whole = way.0 as f64 / 1e6;
            let added = whole - latency.infer;
            [whole, unpack, latency.prepare, added, added - unpack - latency.prepare]
        })
        .collect();
    let names = ["whole", "unpack", "prepare", "added", "rest"];
    let quantiles = names.into_iter().enumerate().map(|(column, name)| {
        let mut all: Vec<f64> = rows.iter().map(|row| row[column]).collect();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| (all[((all.len() as f64 * share).ceil() as usize).max(1) - 1] * 1e3).round() / 1e3;
        (name.to_owned(), json!({"p50": at(0.5), "p99": at(0.99), "most": at(1.0)}))
    });
    let quantiles: serde_json::Map<String, serde_json::Value> = quantiles.collect();
    let detector = if model { "the demo bundle on the CPU" } else { "sleeps 5 ms" };
    println!(
        "{}",
        json!({"format": FourCc(*code).to_string(), "detector": detector, "frames": rows.len(), "ms": quantiles})
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    for (code, model) in [(b"YUYV", false), (b"MJPG", false), (b"GREY", false), (b"YUYV", true)] {
        measure(code, model)?;
    }
    Ok(())
}
