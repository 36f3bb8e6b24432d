//! Triggers, deadlines, recipes and what the line does, through the whole daemon with scripted parts.

use std::cell::OnceCell;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dsad::config::access::Access;
use dsad::daemon::pipeline::{Camera, Ending, Parts, Worker, run};
use dsad::daemon::state::StationState;
use dsad::daemon::upkeep::Aside;
use dsad::inspection::account::Level;
use dsad::inspection::audit::{Audit, Deed};
use dsad::inspection::detect::{Detection, Detector, DetectorError, Plan};
use dsad::inspection::event::{Envelope, Event};
use dsad::inspection::frame::{
    CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, Prepared, SourceError,
};
use dsad::inspection::line::{Actuation, FailIf, LineRules};
use dsad::inspection::recipe::RecipeId;
use dsad::inspection::station_state::{Fault, Start, State};
use dsad::inspection::time::{Clock, Timestamp};
use dsad::inspection::trigger::{Asked, Edge, EdgeError, EdgeSource, TriggerMode};
use dsad::inspection::verdict::{FaultReason, Inspection, Record, SinkError, Verdict, VerdictSink};
use dsad::platform::clock::SystemClock;
use dsad::service::Service;

use crate::pipeline::job;
use crate::support::{ScriptedDetector, Unrecorded, calibration, doors, envelopes, kept};

/// A camera that gives a frame every few milliseconds, all of one level, until the test ends it.
struct Steady {
    name: &'static str,
    every: Duration,
    level: Arc<AtomicU64>,
    blind: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
    next: u64,
    clock: Arc<dyn Clock>,
}

impl FrameSource for Steady {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        std::thread::sleep(self.every);
        if self.gone.load(Ordering::Relaxed) {
            return Err(SourceError::Lost { reason: "unplugged".into() });
        }
        if self.blind.load(Ordering::Relaxed) {
            return Err(SourceError::Timeout);
        }
        let meta = FrameMeta {
            id: FrameId(self.next),
            camera: CameraId(self.name.into()),
            captured_at: self.clock.now(),
            sequence: self.next,
            trigger: None,
            width: 32,
            height: 32,
        };
        self.next += 1;
        let level = self.level.load(Ordering::Relaxed) as u8;
        Ok(Frame { meta, format: PixelFormat::Gray8, pixels: FrameBuf::from(vec![level; 32 * 32]) })
    }
}

/// A detector that stalls now and then.
pub(super) struct Stalling {
    pub every: u64,
    pub stall: Duration,
    pub seen: u64,
    pub inner: ScriptedDetector,
}

impl Detector for Stalling {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        self.seen += 1;
        if self.seen.is_multiple_of(self.every) {
            std::thread::sleep(self.stall);
        }
        self.inner.detect(batch, plan)
    }
}

/// A detector that is faster with four frames than with one, and notes how many it got.
struct Batching {
    sizes: Arc<Mutex<Vec<usize>>>,
    inner: ScriptedDetector,
}

impl Detector for Batching {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        self.sizes.lock().expect("sizes").push(batch.len());
        self.inner.detect(batch, plan)
    }

    fn batches(&self) -> &[(usize, f64)] {
        &[(1, 8.0), (4, 9.0)]
    }
}

/// What went out, and when.
#[derive(Clone)]
pub(super) struct Told {
    pub at: Timestamp,
    pub inspection: Inspection,
    pub event: Event,
}

#[derive(Clone)]
struct TellingSink {
    told: Arc<Mutex<Vec<Told>>>,
    late: Arc<Mutex<Vec<Event>>>,
    clock: Arc<dyn Clock>,
}

impl VerdictSink for TellingSink {
    fn name(&self) -> &str {
        "telling"
    }

    fn publish(&mut self, inspection: &Inspection, envelope: &Envelope) -> Result<(), SinkError> {
        let event = Event::new(inspection, envelope, None);
        // Without its pictures: some tests see many thousands.
        let inspection = Inspection { detection: None, prepared: None, ..inspection.clone() };
        let told = Told { at: self.clock.now(), inspection, event };
        self.told.lock().expect("told").push(told);
        Ok(())
    }
}

/// Keeps what came too late, and hands everything on to a real record, if there is one.
struct TellingRecord(TellingSink, Box<dyn Record>);

impl Record for TellingRecord {
    fn keep(&mut self, envelope: Envelope, inspection: Box<Inspection>) -> Result<(), SinkError> {
        self.1.keep(envelope, inspection)
    }

    fn amend(&mut self, envelope: Envelope, late: Box<Inspection>) -> Result<(), SinkError> {
        let told = self.0.told.lock().expect("told");
        let of = told.iter().find(|told| told.event.seq == envelope.seq).expect("its overrun is out");
        let mut event = of.event.clone();
        event.amend(&late);
        self.0.late.lock().expect("late").push(event);
        self.1.amend(envelope, late)
    }
}

pub(super) struct Station {
    pub http: SocketAddr,
    pub tcp: SocketAddr,
    pub modbus: SocketAddr,
    sink: TellingSink,
    /// Of the frames: 20 is good, 200 bad, 255 breaks the detector.
    pub level: Arc<AtomicU64>,
    /// Whether the cameras give nothing.
    pub blind: Arc<AtomicBool>,
    /// Whether they are gone.
    pub gone: Arc<AtomicBool>,
    pub state: Arc<StationState>,
    pub deeds: Arc<Mutex<Vec<Deed>>>,
    /// Whether the trail takes nothing.
    pub deaf: Arc<AtomicBool>,
    /// What is broken beside the stages.
    pub broken: Arc<Mutex<Option<Fault>>>,
    lease: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
    stop: Arc<AtomicBool>,
    ending: JoinHandle<Ending>,
    /// Its accounts.
    home: tempfile::TempDir,
    token: OnceCell<String>,
}

/// What a station is made of.
pub(super) struct Setup {
    pub cameras: Vec<&'static str>,
    pub mode: TriggerMode,
    pub start: Start,
    pub level: Level,
    pub deadline_ms: Option<u64>,
    pub line: LineRules,
    pub every: Duration,
    pub paced: bool,
    /// Where events are kept, too.
    pub events: Option<PathBuf>,
    pub edges: Option<Box<dyn EdgeSource>>,
    pub detector: Box<dyn Detector>,
}

pub(super) fn asked(wait_ms: u64, debounce_ms: u64) -> TriggerMode {
    let millis = |millis: u64| millis * 1_000_000;
    TriggerMode::Asked(Asked { delay_nanos: 0, debounce_nanos: millis(debounce_ms), patience_nanos: millis(wait_ms) })
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            cameras: vec!["top"],
            mode: asked(1_000, 0),
            start: Start::Automatic,
            level: Level::Technician,
            deadline_ms: None,
            line: LineRules::default(),
            every: Duration::from_millis(3),
            paced: true,
            events: None,
            edges: None,
            detector: Box::new(ScriptedDetector { delay: Duration::ZERO }),
        }
    }
}

impl Station {
    pub fn start(setup: Setup) -> Station {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let access = Access { level: setup.level, ..Access::default() };
        let home = tempfile::tempdir().expect("directory");
        let (accounts, _) = doors::settings(home.path(), Arc::clone(&clock));
        let service = Service::new(Some(bind()), Some(bind())).expect("a service").with_accounts(accounts);
        let service = service.tcp_access(access.clone());
        let names: Vec<CameraId> = setup.cameras.iter().map(|name| CameraId((*name).into())).collect();
        let service = service.modbus(bind(), access, &names).expect("registers");
        let (http, tcp) = service.addresses().expect("addresses");
        let modbus = service.modbus_address().expect("address").expect("modbus");
        let (level, blind) = (Arc::new(AtomicU64::new(20)), Arc::new(AtomicBool::new(false)));
        let (gone, deaf) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let deeds: Arc<Mutex<Vec<Deed>>> = Arc::default();
        let audit: Audit = {
            let (deeds, deaf) = (Arc::clone(&deeds), Arc::clone(&deaf));
            Arc::new(move |deed| {
                if deaf.load(Ordering::Relaxed) {
                    return Err(SinkError("the disk is full".into()));
                }
                deeds.lock().expect("deeds").push(deed);
                Ok(())
            })
        };
        let state = Arc::new(StationState::new(setup.start, Arc::clone(&clock), audit));
        let broken: Arc<Mutex<Option<Fault>>> = Arc::default();
        let watch = {
            let broken = Arc::clone(&broken);
            Box::new(move || broken.lock().expect("broken").clone())
        };
        let mut line = setup.edges;
        let cameras = setup.cameras.into_iter().map(|name| {
            let recipe = |id: &str, sensitivity: f64| {
                let mut job = job(Some(calibration()));
                job.recipe.id = RecipeId(id.into());
                job.recipe.number = Some(if id == "usual" { 1 } else { 2 });
                (job.recipe.deadline_ms, job.recipe.line) = (setup.deadline_ms, setup.line);
                job.recipe.sensitivity = sensitivity;
                job
            };
            let source = Steady {
                name,
                every: setup.every,
                level: Arc::clone(&level),
                blind: Arc::clone(&blind),
                gone: Arc::clone(&gone),
                next: 0,
                clock: Arc::clone(&clock),
            };
            Camera {
                id: CameraId(name.into()),
                source: Box::new(source),
                paced: setup.paced,
                mode: setup.mode,
                line: line.take(),
                recipes: vec![recipe("usual", 0.5), recipe("strict", 1.0)],
            }
        });
        let sink = TellingSink { told: Arc::default(), late: Arc::default(), clock: Arc::clone(&clock) };
        let (stop, lease) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let detector = setup.detector;
        let mut sinks: Vec<Box<dyn VerdictSink>> = vec![Box::new(sink.clone())];
        sinks.extend(service.sinks());
        let mut record: Box<dyn Record> = Box::new(Unrecorded);
        let mut workers: Vec<Worker> = Vec::new();
        if let Some(folder) = &setup.events {
            let kept = kept(folder, Vec::new(), &clock);
            record = Box::new(kept.recording);
            workers.push(kept.worker);
        }
        let parts = Parts {
            cameras: cameras.collect(),
            detectors: Box::new(move || Ok(vec![detector])),
            envelopes: envelopes(Arc::clone(&clock)),
            sinks,
            record: Box::new(TellingRecord(sink.clone(), record)),
            workers,
            service: Some(service),
            desk: Arc::default(),
            state: Arc::clone(&state),
            watches: vec![watch],
            clock: Arc::clone(&clock),
            stop: Arc::clone(&stop),
            shutdown: Duration::from_secs(20),
            ready: Box::new(|| {}),
            alive: Box::new(|| {}),
            lease: Arc::clone(&lease),
            aside: Aside::default(),
        };
        let ending = std::thread::spawn(move || run(parts));
        let (http, tcp) = (http.expect("http"), tcp.expect("tcp"));
        let token = OnceCell::new();
        Station {
            http,
            tcp,
            modbus,
            sink,
            level,
            blind,
            gone,
            state,
            deeds,
            deaf,
            broken,
            lease,
            clock,
            stop,
            ending,
            home,
            token,
        }
    }

    /// A connection for commands.
    pub fn controller(&self) -> Controller {
        let stream = TcpStream::connect(self.tcp).expect("connects");
        stream.set_nodelay(true).expect("is set");
        Controller(BufReader::new(stream))
    }

    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.post_with("", path, body)
    }

    /// As an account that may.
    fn post_with(&self, header: &str, path: &str, body: &str) -> (u16, String) {
        let may = Level::Technician;
        let token = self.token.get_or_init(|| doors::login(self.http, may.word(), &doors::password(may)));
        let headers = format!("{}{header}", doors::bearer(token));
        let (status, _, body) = doors::ask(self.http, &doors::request("POST", path, &headers, body));
        (status, body.trim().to_owned())
    }

    /// What went out, once there is so much.
    pub fn told(&self, count: usize) -> Vec<Told> {
        let started = Instant::now();
        loop {
            let told = self.sink.told.lock().expect("told").clone();
            if told.len() >= count {
                return told;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{} of {count} inspections", told.len());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the station is in a state.
    pub fn reaches(&self, state: State) {
        let started = Instant::now();
        while self.state.now() != state {
            let now = self.state.now();
            assert!(started.elapsed() < Duration::from_secs(60), "{now:?}, and never {state:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the READY output may be on.
    pub fn is_ready(&self) -> bool {
        self.lease.load(Ordering::Relaxed) > self.clock.now().0
    }

    /// Waits until it is: a state may be reached before the detector is loaded.
    pub fn becomes_ready(&self) {
        let started = Instant::now();
        while !self.is_ready() {
            assert!(started.elapsed() < Duration::from_secs(60), "{:?}, and never ready", self.state.now());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops, and checks that everything owed went out once.
    pub fn stop(self) -> (Vec<Told>, Vec<Event>) {
        self.stop.store(true, Ordering::Relaxed);
        let ending = self.ending.join().expect("the daemon");
        let Ending::Drained(counts) = ending else { panic!("{ending:?}") };
        drop(self.home);
        let told = self.sink.told.lock().expect("told").clone();
        assert_eq!(counts.frames_in, told.len() as u64);
        (told, self.sink.late.lock().expect("late").clone())
    }
}

pub(super) struct Controller(BufReader<TcpStream>);

impl Controller {
    pub fn say(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(command.as_bytes()).expect("says");
        // Verdicts of triggers before it come when they come.
        loop {
            let line = self.line();
            if !line.starts_with("verdict ") {
                return line;
            }
        }
    }

    /// The next line of any kind.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("answers");
        line.trim().to_owned()
    }

    /// Says it until the station is ready.
    pub fn once_ready(&mut self, command: &str) -> String {
        loop {
            match self.say(command) {
                answer if answer.starts_with("error not_ready") => std::thread::sleep(Duration::from_millis(5)),
                answer => return answer,
            }
        }
    }
}

pub(super) fn fault(reason: FaultReason) -> Verdict {
    Verdict::Fault(reason)
}

#[test]
fn every_accepted_trigger_is_one_inspection_of_its_part() {
    let station = Station::start(Setup::default());
    let mut controller = station.controller();
    assert_eq!(controller.once_ready("StartSingleJob part_id=\"A 0\";"), "ok camera=top frame_id=0");
    station.told(1);
    for part in 1..40 {
        assert_eq!(
            controller.say(&format!("StartSingleJob camera=top part_id=\"A {part}\"\n")),
            format!("ok camera=top frame_id={part}")
        );
        station.told(part + 1);
    }
    assert_eq!(
        station.post("/v1/trigger", "{\"part_id\": \"web\"}"),
        (202, "{\"camera\":\"top\",\"frame_id\":40}".into())
    );
    station.told(41);
    let (status, text) = station.post("/v1/trigger", "{\"camera\": \"side\"}");
    assert!(status == 404 && text.contains("there are: top"), "{text}");
    let (status, text) = station.post("/v1/trigger", "{\"part\": 1}");
    assert!(status == 400 && text.contains("part_id"), "{text}");
    assert!(controller.say("Start;").starts_with("error unknown"));
    let (status, text) = station.post_with("Origin: http://x.example\r\n", "/v1/trigger", "{}");
    assert!(status == 403 && text.contains("web pages"), "{text}");
    let (told, late) = station.stop();
    assert_eq!((told.len(), late.len()), (41, 0));
    for (part, Told { inspection, event, .. }) in told.iter().enumerate() {
        assert_eq!(inspection.frame.id.0, part as u64);
        let trigger = inspection.frame.trigger.as_ref().expect("a trigger");
        assert!(inspection.frame.captured_at >= trigger.at, "the frame is of the part, not of the one before");
        let (source, name) = if part == 40 { ("http", "web".to_owned()) } else { ("tcp", format!("A {part}")) };
        assert_eq!((event.trigger.as_deref(), event.part_id.as_deref()), (Some(source), Some(name.as_str())));
        assert_eq!((event.verdict, event.actuation), ("pass", "accept"));
    }
}

#[test]
fn triggers_faster_than_the_detector_lose_no_part_without_a_record() {
    let detector = Box::new(ScriptedDetector { delay: Duration::from_millis(12) });
    let station = Station::start(Setup { detector, ..Setup::default() });
    let mut controller = station.controller();
    controller.once_ready("StartSingleJob part_id=0;");
    for part in 1..200 {
        assert_eq!(
            controller.say(&format!("StartSingleJob part_id={part};")),
            format!("ok camera=top frame_id={part}")
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    station.told(200);
    let (told, _) = station.stop();
    let parts: Vec<String> = told.iter().map(|told| told.event.part_id.clone().expect("a part")).collect();
    assert_eq!(parts, (0..200).map(|part| part.to_string()).collect::<Vec<_>>(), "once each, and in order");
    let overruns = told.iter().filter(|t| t.inspection.decision.verdict == fault(FaultReason::Overrun)).count();
    assert!((20..190).contains(&overruns), "{overruns} overruns");
    // A part that was not looked at is not let through.
    let accepted = told.iter().filter(|told| told.inspection.actuation == Actuation::Accept).count();
    assert_eq!(accepted, 200 - overruns);
}

#[test]
fn a_trigger_without_a_frame_is_a_camera_fault_and_a_bounce_is_none() {
    let station = Station::start(Setup { mode: asked(80, 40), ..Setup::default() });
    let mut controller = station.controller();
    controller.once_ready("StartSingleJob;");
    assert!(controller.say("StartSingleJob;").starts_with("error bounced"));
    station.told(1);
    station.blind.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(60));
    let asked = Instant::now();
    controller.say("StartSingleJob part_id=lost;");
    station.told(2);
    assert!(asked.elapsed() < Duration::from_millis(600), "{:?}", asked.elapsed());
    // One that waits when the station stops is answered, too.
    std::thread::sleep(Duration::from_millis(60));
    controller.say("StartSingleJob part_id=last;");
    let (told, _) = station.stop();
    let verdicts: Vec<Verdict> = told.iter().map(|told| told.inspection.decision.verdict).collect();
    assert_eq!(verdicts, [Verdict::Pass, fault(FaultReason::CameraFault), fault(FaultReason::CameraFault)]);
    assert!(told[1].event.fault.as_deref().is_some_and(|text| text.contains("no frame within 80 ms")));
    assert_eq!(told[1].event.actuation, "reject");
}

#[test]
fn at_the_deadline_an_overrun_goes_out_and_the_late_result_acts_on_nothing() {
    let inner = ScriptedDetector { delay: Duration::from_millis(2) };
    let detector = Box::new(Stalling { every: 6, stall: Duration::from_millis(220), seen: 0, inner });
    let dir = tempfile::tempdir().expect("directory");
    let events = dir.path().join("events.ndjson");
    let setup = Setup { detector, deadline_ms: Some(60), events: Some(dir.path().into()), ..Setup::default() };
    let station = Station::start(setup);
    let mut controller = station.controller();
    controller.once_ready("StartSingleJob part_id=0;");
    for part in 1..60 {
        std::thread::sleep(Duration::from_millis(30));
        controller.say(&format!("StartSingleJob part_id={part};"));
    }
    station.told(60);
    let (told, late) = station.stop();
    let overdue: Vec<&Told> =
        told.iter().filter(|told| told.inspection.decision.verdict == fault(FaultReason::Overrun)).collect();
    let after: Vec<f64> = told
        .iter()
        .map(|Told { at, inspection, .. }| {
            at.millis_since(inspection.frame.trigger.as_ref().expect("a trigger").at) - 60.0
        })
        .collect();
    assert!(overdue.len() >= 6, "{} overruns", overdue.len());
    // Five milliseconds are asked for; a machine that is busy with other things may take longer, and says so.
    let worst = after.iter().copied().fold(f64::MIN, f64::max);
    println!("{} of 60 at their deadline, at most {worst:.2} ms after it; {} late results", overdue.len(), late.len());
    assert!(worst < 50.0, "{worst} ms after the deadline");
    let passes = told.iter().zip(&after).filter(|(told, _)| told.inspection.decision.verdict == Verdict::Pass);
    assert!(passes.map(|(_, after)| *after).fold(f64::MIN, f64::max) < 10.0, "nothing passes after its deadline");
    assert!(told.iter().all(|told| told.event.deadline_ms == Some(60)));
    assert!(!late.is_empty(), "the detector spoke after its time");
    for event in &late {
        assert_eq!((event.verdict, event.late_verdict, event.actuation), ("fault", Some("pass"), "reject"));
        let out = told.iter().find(|told| told.event.event_id == event.event_id).expect("the same event");
        assert!(out.event.late_verdict.is_none() && event.score.is_some() && out.event.score.is_none());
    }
    // The record has both: the overrun, and what was said of it later.
    let lines = std::fs::read_to_string(&events).expect("events");
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), told.len() + late.len());
    for event in &late {
        let of = lines.iter().filter(|line| line["event_id"] == event.event_id.as_str());
        let said: Vec<&serde_json::Value> = of.map(|line| &line["late_verdict"]).collect();
        assert!(said.len() == 2 && said[0].is_null() && said[1] == "pass", "{said:?}");
    }
}

#[test]
fn another_recipe_judges_from_the_next_part_on() {
    let station = Station::start(Setup::default());
    let mut controller = station.controller();
    // Between the thresholds of the two recipes.
    station.level.store(100, Ordering::Relaxed);
    controller.once_ready("StartSingleJob;");
    station.told(1);
    let asked = Instant::now();
    assert_eq!(controller.say("PrepareRecipe recipe=strict;"), "ok cameras=top");
    controller.say("StartSingleJob;");
    let told = station.told(2);
    assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
    assert_eq!((told[0].event.recipe_id.as_str(), told[0].event.verdict), ("usual", "pass"));
    assert_eq!((told[1].event.recipe_id.as_str(), told[1].event.verdict), ("strict", "fail"));
    let (status, text) = station.post("/v1/recipe", "{\"recipe\": \"other\"}");
    assert!(status == 404 && text.contains("strict, usual"), "{text}");
    assert_eq!(station.post("/v1/recipe", "{\"recipe\": \"usual\"}"), (200, "{\"cameras\":[\"top\"]}".into()));
    controller.say("StartSingleJob;");
    assert_eq!(station.told(3)[2].event.recipe_id, "usual");
    station.stop();
}

#[test]
fn a_source_without_a_rate_gives_a_frame_for_each_trigger() {
    let station = Station::start(Setup { paced: false, ..Setup::default() });
    let mut controller = station.controller();
    controller.once_ready("StartSingleJob;");
    for part in 1..10 {
        station.told(part);
        std::thread::sleep(Duration::from_millis(20));
        controller.say("StartSingleJob;");
    }
    station.told(10);
    let (told, _) = station.stop();
    let taken: Vec<u64> = told.iter().map(|told| told.event.sequence).collect();
    assert_eq!(taken, (0..10).collect::<Vec<_>>(), "no frame was taken that nobody asked for");
}

#[test]
fn the_line_rejects_by_n_of_m_frames() {
    let line = LineRules { fail_if: FailIf { n: 2, of: 3 }, hold_after: Some(4), ..LineRules::default() };
    let station = Station::start(Setup { line, ..Setup::default() });
    let mut controller = station.controller();
    for (part, level) in [20, 200, 20, 200, 200, 200, 200].into_iter().enumerate() {
        station.level.store(level, Ordering::Relaxed);
        // A frame of the level before may be on its way.
        std::thread::sleep(Duration::from_millis(10));
        controller.once_ready("StartSingleJob;");
        station.told(part + 1);
    }
    let (told, _) = station.stop();
    let actuations: Vec<&str> = told.iter().map(|told| told.event.actuation).collect();
    assert_eq!(actuations, ["accept", "nothing", "accept", "reject", "reject", "reject", "hold"]);
}

#[test]
fn cameras_share_the_device_in_batches_that_keep_their_deadlines() {
    let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
    let inner = ScriptedDetector { delay: Duration::from_millis(8) };
    let detector = Box::new(Batching { sizes: Arc::clone(&sizes), inner });
    let cameras = vec!["a", "b", "c", "d"];
    let (mode, every) = (TriggerMode::Line, Duration::from_millis(20));
    let station = Station::start(Setup { cameras, mode, detector, every, deadline_ms: Some(100), ..Setup::default() });
    station.told(200);
    let (told, _) = station.stop();
    let sizes = sizes.lock().expect("sizes");
    assert!(sizes.iter().all(|size| [1, 4].contains(size)), "{sizes:?}");
    assert!(sizes.iter().filter(|size| **size == 4).count() > 10, "{sizes:?}");
    // One by one four frames take 32 of 20 milliseconds: without batches most would be overruns.
    let judged = told.iter().filter(|told| told.inspection.decision.verdict == Verdict::Pass).count();
    assert!(judged * 10 > told.len() * 7, "{judged} of {}", told.len());
    assert!(told.iter().all(|told| told.event.trigger.as_deref() == Some("line")));
}

/// Edges at their times, with some that were counted and not given.
struct Scripted {
    left: u64,
    clock: Arc<dyn Clock>,
}

impl EdgeSource for Scripted {
    fn name(&self) -> &'static str {
        "gpio"
    }

    fn next_edge(&mut self) -> Result<Edge, EdgeError> {
        std::thread::sleep(Duration::from_millis(10));
        if self.left == 0 {
            return Err(EdgeError::Timeout);
        }
        self.left -= 1;
        match self.left {
            30 => Err(EdgeError::Lost { reason: "scripted".into() }),
            left => Ok(Edge { at: self.clock.now(), missed: u64::from(left == 20) * 3 }),
        }
    }
}

#[test]
fn edges_of_a_line_are_triggers_and_those_it_lost_are_overruns() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let edges = Box::new(Scripted { left: 60, clock });
    let station = Station::start(Setup { edges: Some(edges), ..Setup::default() });
    // One was no edge but the line's loss; three were counted by the line and given to nobody.
    station.told(59 + 3);
    let ready = Instant::now();
    while station.lease.load(Ordering::Relaxed) <= station.clock.now().0 {
        assert!(ready.elapsed() < Duration::from_secs(10), "the line is back, and the station never ready");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (told, _) = station.stop();
    assert_eq!(told.len(), 62);
    let overruns =
        told.iter().filter(|told| told.event.fault.as_deref().is_some_and(|text| text.contains("faster than")));
    assert_eq!(overruns.count(), 3);
    assert!(told.iter().all(|told| told.event.trigger.as_deref() == Some("gpio")));
}
