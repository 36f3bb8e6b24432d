//! Memory of a daemon that has run for a while: what lives after a frame is what lived after the frames before it, and to
//! capture, prepare and publish one allocates nothing. And of a bundle that is refused: it takes no more than its manifest does.
//!
//! A program of its own, because it counts every allocation.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dsad::bundle::manifest::{MapSpec, NumberFormat};
use dsad::bundle::signature::KeyList;
use dsad::bundle::{Bundle, MANIFEST, WEIGHTS};
use dsad::camera::unpack::{Encoding, Picture, Unpacker};
use dsad::config::device::DeviceChoice;
use dsad::config::record::StoreLimits;
use dsad::daemon::job::Job;
use dsad::daemon::pipeline::{Camera, Ending, MakeDetectors, Parts, run};
use dsad::daemon::state::StationState;
use dsad::daemon::upkeep::Aside;
use dsad::detector::{DetectorSpec, DiffusionDetector};
use dsad::device;
use dsad::inspection::anomaly::Pooling;
use dsad::inspection::calibration::{Calibration, CalibrationEntry, GoodPart};
use dsad::inspection::detect::{Detector, StepChoice, Steps};
use dsad::inspection::event::Envelope;
use dsad::inspection::frame::{CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, SourceError};
use dsad::inspection::layout::{self, LAYOUTS};
use dsad::inspection::recipe::Recipe;
use dsad::inspection::roi::Roi;
use dsad::inspection::station_state::Start;
use dsad::inspection::time::{Clock, Timestamp};
use dsad::inspection::verdict::{Inspection, SinkError, VerdictSink};
use dsad::model::network::MapWeights;
use dsad::model::profile::{ModelConfig, Profile};
use dsad::output::envelope::Envelopes;
use dsad::output::ndjson::Lines;
use dsad::output::record::{self, Places};
use dsad::output::store::Store;
use dsad::output::store::read::Reader;
use dsad::platform::clock::SystemClock;
use dsad::preprocess::Preparer;
use dsad::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};

/// The system's allocator, how many bytes are out, and how often each thread asked.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
/// The most of it since it was last set.
static PEAK: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

/// One test at a time: they count the same bytes.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: everything is the system allocator's; counting touches no memory of it.
#[allow(unsafe_code, reason = "an allocator cannot be written without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size() as isize;
        PEAK.fetch_max(LIVE.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
        // A thread that ends has no counter any more.
        let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Frames before the first that counts: rings of the last frames fill, pools and buffers take their size.
const SETTLE: usize = 60;
/// Frames in each of the windows that are compared.
const WINDOW: usize = 70;
/// Of these so many: where builds keep both cores busy the record is behind for the first three.
const WINDOWS: usize = 6;
/// Side of the model grid.
const SIDE: usize = 32;

/// Gives a frame when the one before it has gone all the way, and notes what lives then.
struct OneByOne {
    gone: Receiver<()>,
    next: u64,
    live: Arc<Mutex<Vec<isize>>>,
    clock: Arc<dyn Clock>,
}

impl FrameSource for OneByOne {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        if self.next > 0 {
            self.gone.recv_timeout(Duration::from_millis(100)).map_err(|_| SourceError::Timeout)?;
            // The publish stage and the event's worker let go of it just after they say so.
            std::thread::sleep(Duration::from_millis(2));
        }
        self.live.lock().unwrap().push(LIVE.load(Ordering::Relaxed));
        if self.next as usize == SETTLE + WINDOWS * WINDOW {
            return Err(SourceError::Ended);
        }
        let meta = FrameMeta {
            id: FrameId(self.next),
            camera: CameraId("a".into()),
            captured_at: self.clock.now(),
            sequence: self.next,
            trigger: None,
            width: 96,
            height: 64,
        };
        let level = (self.next * 7 % 31) as u8;
        self.next += 1;
        Ok(Frame { meta, format: PixelFormat::Rgb8, pixels: FrameBuf::from(vec![level; 96 * 64 * 3]) })
    }
}

/// Says that a frame has gone all the way.
struct Last(SyncSender<()>);

impl VerdictSink for Last {
    fn name(&self) -> &str {
        "last"
    }

    fn publish(&mut self, _: &Inspection, _: &Envelope) -> Result<(), SinkError> {
        // The camera may have ended.
        let _ = self.0.send(());
        Ok(())
    }
}

fn spec() -> PreprocessSpec {
    PreprocessSpec {
        width: SIDE,
        height: SIDE,
        geometry: Geometry::Stretch,
        normalisation: Normalisation::SymmetricOne,
        sketch: SketchPlane::None,
        tiles: None,
    }
}

/// `edge-small`, untrained.
fn detectors(clock: Arc<dyn Clock>) -> MakeDetectors {
    Box::new(move || {
        let compute = device::open(DeviceChoice::Cpu).map_err(|error| error.to_string())?;
        let model = ModelConfig::of(Profile::EdgeSmall, 0);
        let weights = MapWeights {
            features: 1.0,
            features_floor: 0.0,
            latent: 1.0,
            refine: 1.0,
            refine_power: 1.0,
            prototypes: 1.0,
            prototypes_floor: 0.0,
        };
        let spec = DetectorSpec {
            classes: Vec::new(),
            map: MapSpec { weights, sigma: 1.0, pooling: Pooling::TopFraction { fraction: 0.01 } },
            seed: 0,
            latent_channels: model.autoencoder.latent_channels,
            normalisation: Normalisation::SymmetricOne,
        };
        let network = model.init(&compute.device);
        let detector = DiffusionDetector::new(network, spec, &compute.device, NumberFormat::F32, clock);
        Ok(vec![Box::new(detector) as Box<dyn Detector>])
    })
}

fn job() -> Job {
    let entry = CalibrationEntry {
        class: None,
        steps: StepChoice::Fixed(Steps(1)),
        image_threshold: 1.0,
        region_threshold: 1.0,
        min_area: 4,
        tiles: None,
        rois: None,
        samples: 30,
        alpha: 0.1,
        alpha_bound: 0.3,
        median_score: 0.2,
        // For the drift monitor, which remembers.
        good: (0..30)
            .map(|k| GoodPart { score: k as f32, level: 0.0, light: k as f32 / 30.0, novelty: None })
            .collect(),
    };
    let recipe = Recipe::whole_frame("r", None, StepChoice::Fixed(Steps(1)));
    Job {
        recipe_hash: recipe.hash(),
        recipe,
        detector: 0,
        bundle: "b".into(),
        model_hash: "0".into(),
        spec: spec(),
        calibration: Some(Arc::new(Calibration { id: "c".into(), entries: vec![entry] })),
        dtype: "f32".into(),
        seed: 0,
    }
}

/// Runs the whole daemon on one camera; `say` hears of every frame that has gone all the way.
fn daemon(source: Box<dyn FrameSource>, paced: bool, say: SyncSender<()>, clock: Arc<dyn Clock>) -> Ending {
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits { days: 400, max_bytes: 1 << 30, outbox_bytes: 1 << 20, outbox_hours: 1 };
    let store = Store::open(dir.path(), Vec::new(), limits).unwrap();
    let reader = Reader::open(dir.path()).unwrap();
    let lines = Lines::new(&dir.path().join("events.ndjson"), u64::MAX);
    let (recording, _, queue) = record::queue(Arc::clone(&clock));
    let places = Places { store: Some((store, reader)), lines, archive: None, shown: None };
    let (worker, _) = queue.worker(places, Box::new(|| true), Arc::default());
    let mut envelopes = Envelopes::new("", "", 0, Arc::clone(&clock));
    run(Parts {
        cameras: vec![Camera::free(CameraId("a".into()), source, paced, job())],
        detectors: detectors(Arc::clone(&clock)),
        envelopes: Box::new(move || envelopes.make()),
        sinks: vec![Box::new(Last(say))],
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
    })
}

#[test]
fn what_lives_after_a_frame_stays_the_same() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    // Bounded: the other kind allocates for every 31 messages.
    let (say, gone) = sync_channel(SETTLE + WINDOWS * WINDOW);
    let live = Arc::new(Mutex::new(Vec::with_capacity(SETTLE + WINDOWS * WINDOW + 1)));
    let source = OneByOne { gone, next: 0, live: Arc::clone(&live), clock: Arc::clone(&clock) };
    let ending = daemon(Box::new(source), false, say, clock);
    let Ending::Drained(counts) = ending else { panic!("{ending:?}") };
    assert_eq!((counts.frames_in, counts.fault), ((SETTLE + WINDOWS * WINDOW) as u64, 0));
    let live = live.lock().unwrap();
    // The least of a window is that of a moment at which nothing was on its way.
    let least: Vec<isize> = live[SETTLE..].chunks_exact(WINDOW).map(|window| *window.iter().min().unwrap()).collect();
    println!("{least:?}");
    // What grows with the frames grows in every window; a table that takes its size late does so once.
    let growth = least.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
    assert!(growth < WINDOW as isize, "less than a byte a frame: {least:?}");
}

/// Windows in which allocations are counted.
const COUNTED: usize = 3;
/// Stages whose allocations are counted.
const STAGES: [&str; 3] = ["capture", "prepare", "publish"];
/// Allocations of each stage's thread when it last asked for the time.
static SEEN: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// The system's clock, which notes how often the stage that asks has allocated.
struct NotingClock(SystemClock);

impl Clock for NotingClock {
    fn now(&self) -> Timestamp {
        let thread = std::thread::current();
        if let Some(stage) = STAGES.iter().position(|stage| thread.name() == Some(stage)) {
            SEEN[stage].store(ASKED.get(), Ordering::Relaxed);
        }
        self.0.now()
    }

    fn wall_nanos(&self) -> u64 {
        self.0.wall_nanos()
    }
}

/// A camera of 320x240 whose buffers are full, one frame after the other.
struct Full {
    gone: Receiver<()>,
    unpacker: Unpacker,
    buffer: Vec<u8>,
    next: u64,
    camera: CameraId,
    /// Allocations of the stages when a window begins.
    seen: Arc<Mutex<Vec<[usize; 3]>>>,
    clock: Arc<dyn Clock>,
}

impl FrameSource for Full {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        if self.next > 0 {
            self.gone.recv_timeout(Duration::from_millis(100)).map_err(|_| SourceError::Timeout)?;
            std::thread::sleep(Duration::from_millis(2));
        }
        let captured_at = self.clock.now();
        if (SETTLE..=SETTLE + COUNTED * WINDOW).step_by(WINDOW).any(|begin| begin == self.next as usize) {
            self.seen.lock().unwrap().push(std::array::from_fn(|stage| SEEN[stage].load(Ordering::Relaxed)));
        }
        if self.next as usize == SETTLE + COUNTED * WINDOW {
            return Err(SourceError::Ended);
        }
        let encoding = Encoding { bt709: false, full_range: false };
        let picture = Picture { layout: layout::Layout::Yuyv, width: 320, height: 240, stride: 0, encoding };
        let (format, pixels) = self.unpacker.unpack(&picture, &self.buffer).unwrap();
        let meta = FrameMeta {
            id: FrameId(self.next),
            camera: self.camera.clone(),
            captured_at,
            sequence: self.next,
            trigger: None,
            width: 320,
            height: 240,
        };
        self.next += 1;
        Ok(Frame { meta, format, pixels })
    }
}

#[test]
fn capture_prepare_and_publish_allocate_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let clock: Arc<dyn Clock> = Arc::new(NotingClock(SystemClock::start()));
    // Bounded: the other kind allocates for every 31 messages.
    let (say, gone) = sync_channel(SETTLE + WINDOWS * WINDOW);
    let seen = Arc::new(Mutex::new(Vec::with_capacity(COUNTED + 1)));
    let source = Full {
        gone,
        unpacker: Unpacker::default(),
        buffer: (0..320 * 240 * 2).map(|k| (k * 7 % 251) as u8).collect(),
        next: 0,
        camera: CameraId("a".into()),
        seen: Arc::clone(&seen),
        clock: Arc::clone(&clock),
    };
    let ending = daemon(Box::new(source), true, say, clock);
    assert!(matches!(ending, Ending::Drained(_)), "{ending:?}");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), COUNTED + 1);
    // What a frame takes it takes in every window; a pool that needs one buffer more, as a busy core is late with one, does so once.
    let least = |stage: usize| seen.windows(2).map(|pair| pair[1][stage] - pair[0][stage]).min();
    let asked: [_; 3] = std::array::from_fn(least);
    assert_eq!(asked, [Some(0); 3], "allocations of {STAGES:?} in each {WINDOW} frames: {seen:?}");
}

#[test]
fn preparing_a_frame_allocates_nothing_after_the_first_of_its_kind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let crop = Roi { x: 0.1, y: 0.23, width: 0.61, height: 0.5 };
    let formats = [PixelFormat::Gray8, PixelFormat::Rgb8, PixelFormat::Gray16 { bits: 12 }, PixelFormat::Rgb16];
    let mut kinds = Vec::new();
    for format in formats {
        for (width, height) in [(320, 240), (20, 90)] {
            let pixels = FrameBuf::from(vec![9; width * height * format.bytes_per_pixel()]);
            let meta = FrameMeta::of_picture("a", width as u32, height as u32);
            for geometry in [Geometry::Stretch, Geometry::Letterbox] {
                for roi in [Roi::FULL, crop] {
                    let frame = Frame { meta: meta.clone(), format, pixels: pixels.clone() };
                    kinds.push((frame, roi, PreprocessSpec { geometry, ..spec() }));
                }
            }
        }
    }
    let mut preparer = Preparer::default();
    let mut rounds = [0; 3];
    for asked in &mut rounds {
        let before = ASKED.get();
        for (frame, roi, spec) in &kinds {
            preparer.prepare(frame, roi, spec).unwrap();
        }
        *asked = ASKED.get() - before;
    }
    assert!(rounds[0] > 0, "the first frames count");
    assert_eq!(rounds[1..], [0, 0], "of {} kinds", kinds.len());
}

/// Allocations of this thread for so many frames of a camera, of which the daemon holds some.
fn allocations(unpacker: &mut Unpacker, picture: &Picture, bytes: &[u8], frames: usize) -> usize {
    let camera = CameraId("top".into());
    // Two in the mailbox, one that is prepared.
    let mut held: [Option<Frame>; 3] = [None, None, None];
    let before = ASKED.get();
    for id in 0..frames {
        let meta = FrameMeta {
            id: FrameId(id as u64),
            camera: camera.clone(),
            captured_at: Default::default(),
            sequence: id as u64,
            trigger: None,
            width: picture.width as u32,
            height: picture.height as u32,
        };
        let (format, pixels) = unpacker.unpack(picture, bytes).unwrap();
        held[id % 3] = Some(Frame { meta, format, pixels });
    }
    let after = ASKED.get();
    drop(held);
    after - before
}

#[test]
fn a_camera_allocates_nothing_for_a_frame() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes: Vec<u8> = (0..640 * 480 * 3).map(|k| (k * 7 % 251) as u8).collect();
    let encoding = Encoding { bt709: false, full_range: false };
    let mut counted = 0;
    for (name, layout) in LAYOUTS.into_iter().filter(|(_, layout)| *layout != layout::Layout::Jpeg) {
        let picture = Picture { layout, width: 640, height: 480, stride: 0, encoding };
        let mut unpacker = Unpacker::default();
        assert!(allocations(&mut unpacker, &picture, &bytes, 5) > 0, "{name}: the first frames count");
        assert_eq!(allocations(&mut unpacker, &picture, &bytes, 200), 0, "{name}");
        counted += 1;
    }
    assert_eq!(counted, 17);
}

/// What opening a bundle takes at its most, in bytes, and whether it is refused.
fn opened(dir: &Path) -> (isize, bool) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let refused = Bundle::open(dir, &KeyList::empty()).is_err();
    (PEAK.load(Ordering::Relaxed) - before, refused)
}

#[test]
fn a_bundle_is_refused_without_the_memory_of_its_weights() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let home = tempfile::tempdir().unwrap();
    let (dir, demo) = (home.path(), Path::new("configs/bundles/demo"));
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(demo.join(MANIFEST)).unwrap()).unwrap();
    for name in manifest["files"].as_object().unwrap().keys() {
        std::fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        std::fs::copy(demo.join(name), dir.join(name)).unwrap();
    }
    let mut put = |weights: &[u8]| {
        std::fs::write(dir.join(WEIGHTS), weights).unwrap();
        manifest["files"][WEIGHTS] = blake3::hash(weights).to_hex().as_str().into();
        std::fs::write(dir.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
    };
    let weights = std::fs::read(demo.join(WEIGHTS)).unwrap();
    let length = weights.len() as u64;
    put(&weights);
    let (sound, refused) = opened(dir);
    assert!(!refused && sound < weights.len() as isize / 2, "{sound} bytes");
    // What a lie about the header's length makes it read.
    for lie in [0, 1, 1 << 20, (1 << 20) + 1, length / 2, length - 8, length, u64::MAX] {
        put(&[&lie.to_le_bytes(), &weights[8..]].concat());
        let (most, refused) = opened(dir);
        assert!(
            refused && most <= sound + (2 << 20),
            "a header of {lie} bytes: {most} bytes, a sound one takes {sound}"
        );
    }
    // Not a number, in the last tensor.
    let mut none = weights.clone();
    none[weights.len() - 2..].copy_from_slice(&0x7E00u16.to_le_bytes());
    put(&none);
    let (most, refused) = opened(dir);
    assert!(refused && most <= sound + (1 << 20), "{most} bytes, a sound one takes {sound}");
}
