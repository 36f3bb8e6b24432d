//! Scripted parts for the pipeline's tests, and a tiny bundle made by the trainer itself.

pub mod doors;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use dsad::config::record::StoreLimits;
use dsad::daemon::pipeline::{Camera, MakeDetectors, Parts, Worker};
use dsad::daemon::publish;
use dsad::daemon::state::StationState;
use dsad::daemon::upkeep::Aside;
use dsad::inspection::anomaly::{AnomalyMap, AnomalyScore};
use dsad::inspection::calibration::{Calibration, CalibrationEntry};
use dsad::inspection::detect::{Detection, Detector, DetectorError, Plan, Reconstruction, StepChoice, StepPlan, Steps};
use dsad::inspection::event::Envelope;
use dsad::inspection::frame::{
    CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, Prepared, SourceError,
};
use dsad::inspection::station_state::Start;
use dsad::inspection::time::{Clock, Timestamp};
use dsad::inspection::verdict::{Inspection, Record, SinkError, VerdictSink};
use dsad::output::envelope::Envelopes;
use dsad::output::ndjson::Lines;
use dsad::output::record::{self, Clerk, Places, RecordHealth, Recording};
use dsad::output::store::Store;
use dsad::output::store::outbox::Outlet;
use dsad::output::store::read::Reader;

/// A clock that moves a microsecond at every look.
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self(AtomicU64::new(1)))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(1_000, Ordering::Relaxed))
    }

    fn wall_nanos(&self) -> u64 {
        1_700_000_000_000_000_000
    }
}

/// What a scripted camera does next.
#[derive(Clone)]
pub enum Shot {
    /// A frame whose first pixel is this value.
    Value(u8),
    /// A damaged frame.
    Damaged,
    /// The camera is lost for a moment.
    Lost,
}

/// A camera that plays a script, then ends.
pub struct ScriptedCamera {
    pub name: &'static str,
    pub shots: Vec<Shot>,
    next: usize,
    id: u64,
}

impl ScriptedCamera {
    pub fn new(name: &'static str, shots: Vec<Shot>) -> Self {
        Self { name, shots, next: 0, id: 0 }
    }

    fn meta(&mut self) -> FrameMeta {
        let id = self.id;
        self.id += 1;
        FrameMeta {
            id: FrameId(id),
            camera: CameraId(self.name.into()),
            captured_at: Timestamp(1),
            sequence: id,
            trigger: None,
            width: 32,
            height: 32,
        }
    }
}

impl FrameSource for ScriptedCamera {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        let Some(shot) = self.shots.get(self.next).cloned() else { return Err(SourceError::Ended) };
        self.next += 1;
        match shot {
            Shot::Value(value) => {
                let pixels = FrameBuf::from(vec![value; 32 * 32]);
                Ok(Frame { meta: self.meta(), format: PixelFormat::Gray8, pixels })
            }
            Shot::Damaged => Err(SourceError::Damaged { meta: Box::new(self.meta()), reason: "scripted".into() }),
            Shot::Lost => Err(SourceError::Lost { reason: "scripted".into() }),
        }
    }
}

/// A detector whose score is the brightness of the frame, 0 to 1. 255 fails, 254 gives no number, 253 panics.
pub struct ScriptedDetector {
    pub delay: Duration,
}

impl Detector for ScriptedDetector {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        std::thread::sleep(self.delay);
        batch
            .iter()
            .map(|prepared| {
                let level = (prepared.image[0] + 1.0) * 0.5;
                let score = match (level * 255.0).round() as u8 {
                    255 => return Err(DetectorError("scripted".into())),
                    254 => f32::NAN,
                    253 => panic!("scripted"),
                    _ => level,
                };
                Ok(Detection {
                    map: AnomalyMap { width: 32, height: 32, values: vec![0.0; 1024] },
                    score: AnomalyScore(score),
                    reconstruction: Reconstruction { width: 32, height: 32, rgb: vec![0; 3072] },
                    steps: match plan.steps {
                        StepPlan::Fixed(steps) => steps,
                        StepPlan::Auto(_) => Steps(1),
                    },
                    tiles: None,
                    rois: None,
                    novelty: 0.0,
                    infer_ms: 1.0,
                })
            })
            .collect()
    }
}

/// The state of a station that goes to work by itself, whose deeds nobody keeps.
pub fn state(clock: Arc<dyn Clock>) -> Arc<StationState> {
    Arc::new(StationState::new(Start::Automatic, clock, Arc::new(|_| Ok(()))))
}

/// Envelopes of a station without a name.
pub fn envelopes(clock: Arc<dyn Clock>) -> publish::Envelopes {
    let mut envelopes = Envelopes::new("", "", 0, clock);
    Box::new(move || envelopes.make())
}

/// A record that keeps nothing.
pub struct Unrecorded;

impl Record for Unrecorded {
    fn keep(&mut self, _: Envelope, _: Box<Inspection>) -> Result<(), SinkError> {
        Ok(())
    }

    fn amend(&mut self, _: Envelope, _: Box<Inspection>) -> Result<(), SinkError> {
        Ok(())
    }
}

/// A record as a station has it.
pub struct Kept {
    pub recording: Recording,
    pub clerk: Clerk,
    pub worker: Worker,
    pub health: Arc<RecordHealth>,
}

/// What a database of a test keeps.
pub const LIMITS: StoreLimits =
    StoreLimits { days: 400, max_bytes: 1 << 30, outbox_bytes: 256 << 20, outbox_hours: 168 };

/// A record in `dir`, with `events.ndjson` beside its database.
pub fn kept(dir: &Path, outlets: Vec<Outlet>, clock: &Arc<dyn Clock>) -> Kept {
    let store = Store::open(dir, outlets, LIMITS).expect("opens");
    let reader = Reader::open(dir).expect("opens");
    let lines = Lines::new(&dir.join("events.ndjson"), u64::MAX);
    let (recording, clerk, queue) = record::queue(Arc::clone(clock));
    let places = Places { store: Some((store, reader)), lines, archive: None, shown: None };
    let (worker, health) = queue.worker(places, Box::new(|| true), Arc::default());
    Kept { recording, clerk, worker: ("record", Box::new(move || worker.run())), health }
}

/// A station of these cameras with one detector, which nobody hears of and nothing is added to.
pub fn station(cameras: Vec<Camera>, detector: impl Detector + 'static, clock: Arc<dyn Clock>) -> Parts {
    station_of(cameras, Box::new(move || Ok(vec![Box::new(detector) as Box<dyn Detector>])), clock)
}

/// The same with detectors that are made where they judge.
pub fn station_of(cameras: Vec<Camera>, detectors: MakeDetectors, clock: Arc<dyn Clock>) -> Parts {
    Parts {
        cameras,
        detectors,
        envelopes: envelopes(Arc::clone(&clock)),
        sinks: Vec::new(),
        record: Box::new(Unrecorded),
        workers: Vec::new(),
        service: None,
        desk: Arc::default(),
        state: state(Arc::clone(&clock)),
        watches: Vec::new(),
        clock,
        stop: Arc::default(),
        shutdown: Duration::from_secs(20),
        ready: Box::new(|| {}),
        alive: Box::new(|| {}),
        lease: Arc::default(),
        aside: Aside::default(),
    }
}

/// A sink that keeps everything.
#[derive(Clone, Default)]
pub struct RecordingSink(pub Arc<Mutex<Vec<Inspection>>>);

impl VerdictSink for RecordingSink {
    fn name(&self) -> &str {
        "recording"
    }

    fn publish(&mut self, inspection: &Inspection, _: &Envelope) -> Result<(), SinkError> {
        self.0.lock().expect("sink").push(inspection.clone());
        Ok(())
    }
}

/// Thresholds of one half.
pub fn calibration() -> Calibration {
    let entry = CalibrationEntry {
        class: None,
        steps: StepChoice::Fixed(Steps(1)),
        image_threshold: 0.5,
        region_threshold: 1.0,
        min_area: 4,
        tiles: None,
        rois: None,
        samples: 99,
        alpha: 0.01,
        alpha_bound: 0.03,
        median_score: 0.2,
        good: Vec::new(),
    };
    Calibration { id: "scripted".into(), entries: vec![entry] }
}

/// Runs a program of this package: exit code, standard output, standard error.
pub fn run(program: &str, args: &[&str], dir: &Path) -> (i32, String, String) {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("RUST_LOG", "warn")
        .env_remove("NOTIFY_SOCKET")
        .output()
        .expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Starts a program of this package and kills it as soon as `file` is there.
pub fn kill_once_there(program: &str, args: &[&str], dir: &Path, file: &Path) {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("starts");
    let until = Instant::now() + Duration::from_secs(120);
    while !file.exists() {
        assert!(Instant::now() < until && child.try_wait().expect("runs").is_none(), "no {}", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("is killed");
    child.wait().expect("ends");
}

/// `dsad` and `trainer` as built for this test.
pub const DSAD: &str = env!("CARGO_BIN_EXE_dsad");
pub const TRAINER: &str = env!("CARGO_BIN_EXE_trainer");

/// A bundle that `trainer fit` made of synthetic parts in a few steps at 64x64, and the parts. Made once per process.
pub fn tiny_bundle() -> &'static (PathBuf, PathBuf) {
    static MADE: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    MADE.get_or_init(|| {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tiny-{}", std::process::id()));
        std::fs::create_dir_all(&home).expect("directory");
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train/edge-small.toml"))
            .expect("ships");
        let text = text.replace("grid = 65536", "grid = [64, 64]");
        std::fs::write(home.join("tiny.toml"), text.replace("steps = [1, 2, 4]", "steps = [1, 2]")).expect("writes");
        let synth =
            ["synth", "--count", "12", "--test-good", "3", "--test-defective", "7", "--size", "64", "--out", "parts"];
        let (code, _, error) = run(TRAINER, &synth, &home);
        assert_eq!(code, 0, "{error}");
        let fit = ["fit", "--data", "parts/washer", "--out", "bundle", "--config", "tiny.toml", "--stage-steps", "3"];
        let (code, _, error) = run(TRAINER, &fit, &home);
        assert_eq!(code, 0, "{error}");
        (home.join("bundle"), home.join("parts"))
    })
}
