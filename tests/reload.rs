//! A configuration that is read again while the station runs: what judges changes at one moment, and no part is lost by it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dsad::daemon::pipeline::{Camera, Ending, Parts, run};
use dsad::daemon::upkeep::{Aside, Running};
use dsad::inspection::frame::{CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, SourceError};
use dsad::inspection::recipe::Recipe;
use dsad::inspection::time::Clock;
use dsad::inspection::trigger::{Asked, Edge, EdgeError, EdgeSource, TriggerMode};
use dsad::inspection::verdict::{FaultReason, Inspection, Verdict};
use dsad::platform::clock::SystemClock;
use serde_json::Value;

use crate::cli::{config, lines};
use crate::pipeline::job;
use crate::support::{DSAD, RecordingSink, ScriptedDetector, calibration, station, tiny_bundle};

/// Parts of every test.
const PARTS: u64 = 400;

/// A camera that gives frames until it is told to end.
struct Counting {
    left: Option<u64>,
    every: Duration,
    next: u64,
    clock: Arc<dyn Clock>,
    end: Arc<AtomicBool>,
}

impl FrameSource for Counting {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        std::thread::sleep(self.every);
        if self.left == Some(self.next) || self.end.load(Ordering::Relaxed) {
            return Err(SourceError::Ended);
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

/// A line with an edge every few milliseconds.
struct Edges {
    left: u64,
    clock: Arc<dyn Clock>,
    end: Arc<AtomicBool>,
}

impl EdgeSource for Edges {
    fn name(&self) -> &'static str {
        "edges"
    }

    fn next_edge(&mut self) -> Result<Edge, EdgeError> {
        std::thread::sleep(Duration::from_millis(9));
        if self.left == 0 {
            // The last part's frame is still to come.
            std::thread::sleep(Duration::from_secs(1));
            self.end.store(true, Ordering::Relaxed);
            return Err(EdgeError::Timeout);
        }
        self.left -= 1;
        Ok(Edge { at: self.clock.now(), missed: 0 })
    }
}

/// Runs a station whose recipe is changed back and forth, between two sensitivities, all the time.
fn changing(mode: TriggerMode) -> Vec<Inspection> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let end = Arc::new(AtomicBool::new(false));
    let asked = matches!(mode, TriggerMode::Asked(_));
    let (left, every) = if asked { (None, 2) } else { (Some(PARTS), 0) };
    let source = Counting {
        left,
        every: Duration::from_millis(every),
        next: 0,
        clock: Arc::clone(&clock),
        end: Arc::clone(&end),
    };
    let edges = Edges { left: PARTS, clock: Arc::clone(&clock), end };
    let camera = Camera {
        id: CameraId("a".into()),
        source: Box::new(source),
        paced: asked,
        mode,
        line: asked.then(|| Box::new(edges) as Box<dyn EdgeSource>),
        recipes: vec![job(Some(calibration()))],
    };
    let mut strict = false;
    let upkeep = move |running: &Running| {
        let recipes = &running.cameras[0].1;
        strict = !strict;
        let sensitivity = if strict { 1.0 } else { 0.5 };
        let changed = |recipe: &Recipe| Recipe { sensitivity, ..recipe.clone() };
        let jobs = recipes.all().iter().map(|job| job.with(changed(&job.recipe)).expect("fits")).collect();
        recipes.renew(jobs, running.clock.now());
    };
    let sink = RecordingSink::default();
    let delay = Duration::from_millis(3);
    let ending = run(Parts {
        sinks: vec![Box::new(sink.clone())],
        aside: Aside { upkeep: Some(Box::new(upkeep)), ..Aside::default() },
        ..station(vec![camera], ScriptedDetector { delay }, clock)
    });
    assert!(matches!(ending, Ending::Drained(_)), "{ending:?}");
    let inspections = sink.0.lock().expect("sink");
    inspections.clone()
}

#[test]
fn a_recipe_that_changes_all_the_time_loses_no_part() {
    let patient = Asked { delay_nanos: 0, debounce_nanos: 0, patience_nanos: 20_000_000_000 };
    for mode in [TriggerMode::Free, TriggerMode::Asked(patient)] {
        let inspections = changing(mode);
        let ids: Vec<u64> = inspections.iter().map(|inspection| inspection.frame.id.0).collect();
        assert_eq!(ids, (0..PARTS).collect::<Vec<_>>());
        let mut told: Vec<(Arc<str>, f32)> = Vec::new();
        let mut changes = 0;
        for inspection in &inspections {
            // A busy machine may be late for a part; no other fault comes of a change.
            match inspection.decision.verdict {
                Verdict::Fault(FaultReason::Overrun) => continue,
                verdict => assert_eq!((verdict, &inspection.fault), (Verdict::Pass, &None)),
            }
            let threshold = inspection.decision.threshold.expect("judged");
            if let Some((hash, known)) = told.last()
                && *hash != inspection.recipe_hash
            {
                assert_ne!(*known, threshold);
                changes += 1;
            }
            told.push((Arc::clone(&inspection.recipe_hash), threshold));
        }
        assert!(changes >= 5, "{changes}");
        let (first, known) = &told[0];
        assert!(told.iter().all(|(hash, threshold)| (hash == first) == (threshold == known)), "one hash, one meaning");
    }
}

/// The program with a service manager that listens.
struct Station {
    program: Child,
    manager: UnixDatagram,
    log: Arc<Mutex<Vec<String>>>,
}

impl Station {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("notify");
        let manager = UnixDatagram::bind(&socket).expect("binds");
        manager.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        let mut program = Command::new(DSAD)
            .args(["run", "--config", "dsad.toml"])
            .current_dir(dir)
            .env("NOTIFY_SOCKET", &socket)
            .env_remove("WATCHDOG_USEC")
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(program.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let kept = Arc::clone(&log);
        std::thread::spawn(move || lines.for_each(|line| kept.lock().expect("log").push(line)));
        let station = Self { program, manager, log };
        while !station.heard().contains("READY=1") {}
        station
    }

    fn heard(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.manager.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    fn signal(&self, name: &str) {
        let id = self.program.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().expect("kills").success());
    }

    /// Tells it to read its configuration again, and waits until it has.
    fn reload(&self) {
        self.signal("-HUP");
        self.reloaded();
    }

    /// Waits until the configuration was read again.
    fn reloaded(&self) {
        let reloading = loop {
            let message = self.heard();
            assert!(!message.contains("READY=1"), "{message}");
            if message.contains("RELOADING=1") {
                break message;
            }
        };
        let since = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time");
        assert!(since.parse::<u64>().expect("a number") > 0);
        while !self.heard().contains("READY=1") {}
    }

    fn log(&self) -> String {
        self.log.lock().expect("log").join("\n")
    }

    /// The log, once it has these words: it is read beside.
    fn said(&self, words: &str) -> String {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if log.contains(words) {
                return log;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "no '{words}': {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The address of a service that the log tells of.
    fn address(&self, service: &str) -> SocketAddr {
        let log = self.log();
        let line =
            log.lines().find_map(|line| line.split_once(&format!("{service}: listening on "))).expect("an address");
        line.1.split_whitespace().next().expect("an address").parse().expect("an address")
    }
}

/// The value of a series in `/metrics`.
fn metric(address: SocketAddr, series: &str) -> f64 {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: dsad\r\n\r\n").expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    let found = answer.lines().find_map(|line| line.strip_prefix(series));
    found.unwrap_or_else(|| panic!("no {series}: {answer}")).trim().parse().expect("a number")
}

/// The events so far, once `enough` says that they are.
fn events(dir: &Path, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let text = std::fs::read_to_string(dir.join("events.ndjson")).unwrap_or_default();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let events = lines(whole);
        if enough(&events) {
            return events;
        }
        assert!(Instant::now() < until, "{} events", events.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_running_station_takes_what_it_can_and_says_what_waits() {
    let (bundle, _) = tiny_bundle();
    let dir = tempfile::tempdir().expect("directory");
    let dir = dir.path();
    config(dir, bundle, "{ kind = 'synthetic', product = 'washer' }", "events.ndjson");
    let file = dir.join("dsad.toml");
    let text = std::fs::read_to_string(&file).expect("reads").replace("images = 'drawn'\nimages_of = 'all'\n", "");
    let text = format!("{text}[http]\nlisten = '127.0.0.1:0'\n[tcp]\nlisten = '127.0.0.1:0'\nlevel = 'engineer'\n");
    std::fs::write(&file, &text).expect("writes");
    let recipe = std::fs::read_to_string(dir.join("r.toml")).expect("reads");
    let station = Station::start(dir);
    let address = station.address("http");
    let before = events(dir, |events| events.len() > 3);
    let hash = |event: &Value| event["recipe_hash"].as_str().expect("a hash").to_owned();
    let judged_by = |hash: &str, events: &[Value]| events.last().is_some_and(|last| last["recipe_hash"] == hash);

    // Another sensitivity judges from one frame on.
    std::fs::write(dir.join("r.toml"), format!("sensitivity = 0.9\n{recipe}")).expect("writes");
    station.reload();
    let after = events(dir, |events| events.last().is_some_and(|last| hash(last) != hash(&before[0])));
    let changed = after.iter().position(|event| hash(event) != hash(&before[0])).expect("a change");
    assert!(after[changed..].iter().all(|event| hash(event) == hash(&after[changed])), "back and forth");
    let threshold = |event: &Value| event["threshold"].as_f64().expect("a threshold");
    let ratio = threshold(&after[changed]) / threshold(&after[0]);
    assert!((ratio - 4f64.powf(-0.4)).abs() < 1e-4, "{ratio}");
    let strict = hash(&after[changed]);
    station.said("sensitivity: 0.5 -> 0.9, from the next part on");
    assert_eq!(metric(address, "dsad_restart_needed "), 0.0);

    // A slip changes nothing, and is said with all that is wrong.
    std::fs::write(dir.join("r.toml"), format!("sensitivty = 0.1\n{recipe}")).expect("writes");
    std::fs::write(&file, text.replace("station = 's'", "station = ''")).expect("writes");
    station.reload();
    assert_eq!(metric(address, "dsad_reloads_total{result=\"refused\"}"), 1.0);
    for words in ["configuration refused", "did you mean 'sensitivity'?", "give the station a name", "r.toml"] {
        station.said(words);
    }
    let count = after.len();
    let later = events(dir, |events| events.len() > count + 20);
    assert!(judged_by(&strict, &later));

    // What was opened at the start waits for a restart; what judges does not.
    std::fs::write(dir.join("r.toml"), format!("sensitivity = 0.4\n{recipe}")).expect("writes");
    std::fs::write(&file, format!("log = 'debug'\n{}", text.replace("'washer'", "'fabric'"))).expect("writes");
    let mut controller = BufReader::new(TcpStream::connect(station.address("tcp")).expect("connects"));
    controller.get_mut().write_all(b"Reload;\n").expect("asks");
    let mut answer = String::new();
    controller.read_line(&mut answer).expect("answers");
    assert!(answer.starts_with("ok state="), "{answer}");
    station.reloaded();
    assert_eq!(metric(address, "dsad_restart_needed "), 1.0);
    assert_eq!(metric(address, "dsad_reloads_total{result=\"taken\"}"), 2.0);
    let words = "cameras[0].source.product: \"washer\" -> \"fabric\" needs a restart";
    station.said(words);
    let all = events(dir, |events| events.last().is_some_and(|last| hash(last) != strict));

    // No frame was lost over all of it.
    let ids: Vec<u64> = all.iter().map(|event| event["frame_id"].as_u64().expect("a number")).collect();
    assert_eq!(ids, (0..ids.len() as u64).collect::<Vec<_>>());
    assert!(all.iter().all(|event| event["verdict"] != "fault"), "a fault");
    station.signal("-TERM");
    // A manager that does not listen would be waited for.
    while !station.heard().contains("STOPPING=1") {}
    let mut program = station.program;
    assert_eq!(program.wait().expect("ends").code(), Some(0));
}
