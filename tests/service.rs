//! The HTTP service of a whole daemon: what it tells is what happened, and nothing that a client does reaches the line.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dsad::daemon::pipeline::{Camera, Ending, MakeDetectors, Parts, run};
use dsad::daemon::upkeep::Aside;
use dsad::inspection::anomaly::AnomalyScore;
use dsad::inspection::calibration::{Calibration, GoodPart};
use dsad::inspection::detect::{Detection, Detector, DetectorError, Plan};
use dsad::inspection::frame::{CameraId, Frame, FrameSource, Prepared, SourceError};
use dsad::inspection::time::Clock;
use dsad::output::latest;
use dsad::platform::clock::SystemClock;
use dsad::service::Service;
use serde_json::Value;

use crate::cli::{config, lines};
use crate::pipeline::job;
use crate::support::doors::{self, ask};
use crate::support::{DSAD, ScriptedCamera, ScriptedDetector, Shot, calibration, envelopes, kept, state, tiny_bundle};

const LONG: Duration = Duration::from_secs(30);

/// A camera that plays what it is told, when it is told.
struct ToldCamera {
    shots: Receiver<Shot>,
    script: ScriptedCamera,
    clock: Arc<dyn Clock>,
}

impl FrameSource for ToldCamera {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        let shot = self.shots.recv_timeout(Duration::from_millis(5)).map_err(|_| SourceError::Timeout)?;
        self.script.shots.push(shot);
        let mut frame = self.script.next_frame()?;
        frame.meta.captured_at = self.clock.now();
        Ok(frame)
    }
}

/// A daemon with a service, running.
pub(super) struct Station {
    pub(super) address: SocketAddr,
    cameras: Vec<Sender<Shot>>,
    stop: Arc<AtomicBool>,
    ending: JoinHandle<Ending>,
}

impl Station {
    /// Cameras by name and whether they may lose frames.
    pub(super) fn start(
        dir: &Path,
        cameras: &[(&'static str, bool)],
        calibration: &Calibration,
        detectors: MakeDetectors,
    ) -> Station {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|http| Service::new(Some(http), None));
        let (mut accounts, _) = doors::settings(dir, Arc::clone(&clock));
        let (seen, latest) = latest::open(cameras.iter().map(|(name, _)| CameraId((*name).into())));
        accounts.picture = Some(Arc::new(move |camera| latest.jpeg(camera)));
        let service = service.expect("binds").with_accounts(accounts);
        let (address, stop) =
            (service.addresses().expect("address").0.expect("http"), Arc::new(AtomicBool::new(false)));
        let mut told = Vec::new();
        let mut sources = Vec::new();
        for (name, paced) in cameras {
            let (sender, shots) = channel();
            let script = ScriptedCamera::new(name, Vec::new());
            let source = Box::new(ToldCamera { shots, script, clock: Arc::clone(&clock) });
            sources.push(Camera::free(CameraId((*name).into()), source, *paced, job(Some(calibration.clone()))));
            told.push(sender);
        }
        let kept = kept(dir, Vec::new(), &clock);
        let parts = Parts {
            cameras: sources,
            detectors,
            envelopes: envelopes(Arc::clone(&clock)),
            sinks: vec![Box::new(seen)],
            record: Box::new(kept.recording),
            workers: vec![kept.worker],
            service: Some(service),
            desk: Arc::default(),
            state: state(Arc::clone(&clock)),
            watches: Vec::new(),
            clock,
            stop: Arc::clone(&stop),
            shutdown: Duration::from_secs(20),
            ready: Box::new(|| {}),
            alive: Box::new(|| {}),
            lease: Arc::default(),
            aside: Aside::default(),
        };
        Station { address, cameras: told, stop, ending: std::thread::spawn(move || run(parts)) }
    }

    pub(super) fn tell(&self, camera: usize, shots: impl IntoIterator<Item = Shot>) {
        shots.into_iter().for_each(|shot| self.cameras[camera].send(shot).expect("camera"));
    }

    pub(super) fn metrics(&self) -> Metrics {
        let (status, head, body) = get(self.address, "/metrics");
        assert_eq!(status, 200);
        assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
        parse(&body)
    }

    /// The counters once this many frames are judged.
    fn judged(&self, frames: usize) -> Metrics {
        wait(|| {
            let metrics = self.metrics();
            (sum(&metrics, "dsad_inspections_total") as usize == frames).then_some(metrics)
        })
    }

    pub(super) fn stop(self) -> Ending {
        self.stop.store(true, Ordering::Relaxed);
        self.ending.join().expect("the daemon")
    }
}

pub(super) fn wait<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < LONG, "nothing within {LONG:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Status, head and body of an answer.
fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: dsad\r\n\r\n"))
}

/// Samples by metric and labels.
pub(super) type Metrics = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// Reads the Prometheus text format and refuses everything that is not it.
fn parse(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    let mut types = BTreeMap::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let (word, rest) = comment.split_once(' ').expect("HELP or TYPE");
            let (name, said) = rest.split_once(' ').expect("a name");
            assert!(is_name(name) && !said.is_empty(), "{line}");
            match word {
                "HELP" => {}
                "TYPE" => {
                    assert!(["counter", "gauge", "histogram"].contains(&said), "{line}");
                    assert!(types.insert(name.to_owned(), said.to_owned()).is_none(), "twice: {line}");
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| {
            (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}")))
        });
        assert!(is_name(name), "{line}");
        let family = |suffix: &str| {
            name.strip_suffix(suffix).filter(|family| types.get(*family).is_some_and(|t| t == "histogram"))
        };
        let of_histogram = ["_bucket", "_sum", "_count"].into_iter().any(|suffix| family(suffix).is_some());
        let kind = types.get(name).map(String::as_str);
        assert!(of_histogram || matches!(kind, Some("counter" | "gauge")), "no type: {line}");
        assert!(kind != Some("counter") || name.ends_with("_total"), "{line}");
        assert!(metrics.insert((name.to_owned(), parse_labels(labels)), value).is_none(), "twice: {line}");
    }
    for ((name, labels), count) in metrics.iter().filter(|((name, _), _)| name.ends_with("_count")) {
        let bucket = name.replace("_count", "_bucket");
        let mut buckets: Vec<(f64, f64)> = metrics
            .iter()
            .filter(|((other, with), _)| {
                *other == bucket && labels.iter().all(|(key, value)| with.get(key) == Some(value))
            })
            .map(|((_, with), count)| (with["le"].parse().expect("a bound"), *count))
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name} {labels:?}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{name} {labels:?}");
    }
    metrics
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, quoted) = rest.split_once("=\"").unwrap_or_else(|| panic!("{text}"));
        assert!(is_name(key), "{text}");
        let mut value = String::new();
        let mut letters = quoted.char_indices();
        let end = loop {
            match letters.next().unwrap_or_else(|| panic!("{text}")) {
                (at, '"') => break at,
                (_, '\\') => match letters.next().unwrap_or_else(|| panic!("{text}")).1 {
                    'n' => value.push('\n'),
                    letter @ ('\\' | '"') => value.push(letter),
                    _ => panic!("{text}"),
                },
                (_, letter) => value.push(letter),
            }
        };
        assert!(labels.insert(key.to_owned(), value).is_none(), "twice: {text}");
        rest = &quoted[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    labels
}

pub(super) fn sum(metrics: &Metrics, name: &str) -> f64 {
    metrics.iter().filter(|((other, _), _)| other == name).map(|(_, value)| value).sum()
}

fn value(metrics: &Metrics, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let key = (name.to_owned(), labels);
    *metrics.get(&key).unwrap_or_else(|| panic!("no {key:?}"))
}

pub(super) fn scripted(delay: Duration) -> MakeDetectors {
    Box::new(move || Ok(vec![Box::new(ScriptedDetector { delay }) as Box<dyn Detector>]))
}

pub(super) fn shots(count: usize, value: u8) -> Vec<Shot> {
    vec![Shot::Value(value); count]
}

#[test]
fn the_counters_are_those_of_the_events() {
    let dir = tempfile::tempdir().expect("directory");
    let names = ["a", "b \"left\"\\"];
    let cameras = [(names[0], false), (names[1], true)];
    let station = Station::start(dir.path(), &cameras, &calibration(), scripted(Duration::from_millis(2)));
    station.tell(0, [shots(20, 20), shots(3, 200), vec![Shot::Damaged, Shot::Value(254)]].concat());
    // Faster than they are judged, and the last one is let in.
    station.tell(1, shots(40, 20));
    let metrics = station.judged(65);
    let again = station.metrics();
    assert_eq!(metrics, again, "nothing more comes");
    let Ending::Drained(counts) = station.stop() else { panic!("failed") };
    assert_eq!(counts.frames_in, 65);

    let events = lines(&std::fs::read_to_string(dir.path().join("events.ndjson")).expect("events"));
    let mut seen: BTreeMap<[String; 3], f64> = BTreeMap::new();
    for event in &events {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        *seen.entry([text("camera"), text("verdict"), text("reason")]).or_default() += 1.0;
    }
    let mut told: BTreeMap<[String; 3], f64> = BTreeMap::new();
    for ((_, labels), count) in
        metrics.iter().filter(|((name, _), count)| name == "dsad_inspections_total" && **count > 0.0)
    {
        told.insert(["camera", "verdict", "reason"].map(|key| labels[key].clone()), *count);
    }
    assert_eq!(told, seen);
    assert!(seen.len() >= 5, "{seen:?}");
    let judged = |camera| {
        let of = |event: &&Value| event["camera"] == camera && event["score"].is_number();
        (
            events.iter().filter(of).count(),
            events.iter().filter(of).filter_map(|e| e["latency_ms"]["infer"].as_f64()).sum::<f64>(),
        )
    };
    for camera in names {
        let labels = [("camera", camera)];
        let overruns = seen.get(&[camera.into(), "fault".into(), "overrun".into()]).copied().unwrap_or_default();
        assert_eq!(value(&metrics, "dsad_overruns_total", &labels), overruns);
        assert_eq!(value(&metrics, "dsad_frames_total", &labels), if camera == "a" { 25.0 } else { 40.0 });
        assert_eq!(value(&metrics, "dsad_driver_drops_total", &labels), 0.0);
        assert_eq!(value(&metrics, "dsad_camera_losses_total", &labels), 0.0);
        let (count, millis) = judged(camera);
        // The score of one frame was no number: it was detected, and its event has none.
        let detected = count + usize::from(camera == "a");
        let labels = [("camera", camera), ("part", "infer")];
        assert_eq!(value(&metrics, "dsad_latency_seconds_count", &labels) as usize, detected);
        let sum = value(&metrics, "dsad_latency_seconds_sum", &labels);
        assert!(sum > millis / 1e3 - 1e-6 && sum < millis / 1e3 + 0.5, "{sum} {millis}");
    }
    assert_eq!(value(&metrics, "dsad_sink_errors_total", &[("sink", "latest")]), 0.0);
    assert!(sum(&metrics, "dsad_start_time_seconds") > 1.7e9);
    assert_eq!(sum(&metrics, "dsad_build_info"), 1.0);
}

/// Says how its frames are launched.
struct GraphDetector(ScriptedDetector, Option<bool>);

impl Detector for GraphDetector {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        self.0.detect(batch, plan)
    }

    fn graph_recorded(&self) -> Option<bool> {
        self.1
    }
}

#[test]
fn launching_kernel_by_kernel_is_told() {
    for (recorded, expected) in [(Some(true), Some(1.0)), (Some(false), Some(0.0)), (None, None)] {
        let dir = tempfile::tempdir().expect("directory");
        let detectors: MakeDetectors = Box::new(move || {
            let scripted = ScriptedDetector { delay: Duration::ZERO };
            Ok(vec![Box::new(GraphDetector(scripted, recorded)) as Box<dyn Detector>])
        });
        let station = Station::start(dir.path(), &[("a", false)], &calibration(), detectors);
        station.tell(0, shots(1, 20));
        let metrics = station.judged(1);
        let key = ("dsad_graph_recorded".to_owned(), BTreeMap::from([("camera".to_owned(), "a".to_owned())]));
        assert_eq!(metrics.get(&key).copied(), expected);
        assert!(matches!(station.stop(), Ending::Drained(_)));
    }
}

#[test]
fn ready_is_said_when_detectors_are_loaded_and_frames_come() {
    let dir = tempfile::tempdir().expect("directory");
    let (load, loading) = channel::<()>();
    let detectors: MakeDetectors = Box::new(move || {
        loading.recv().expect("the test");
        scripted(Duration::ZERO)()
    });
    let station = Station::start(dir.path(), &[("a", false)], &calibration(), detectors);
    let reasons = |expected: u16| {
        wait(|| {
            let (status, _, body) = get(station.address, "/readyz");
            let body: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!(body["ready"], status == 200, "{body}");
            (status == expected).then(|| body["reasons"].to_string())
        })
    };
    assert_eq!(reasons(503), "[\"the detectors are not loaded yet\",\"camera a: no frame yet\"]");
    assert_eq!(get(station.address, "/livez").0, 200);
    load.send(()).expect("loads");
    wait(|| (reasons(503) == "[\"camera a: no frame yet\"]").then_some(()));
    station.tell(0, shots(1, 20));
    assert_eq!(reasons(200), "[]");
    station.tell(0, [Shot::Lost]);
    assert_eq!(reasons(503), "[\"camera a: lost\"]");
    station.tell(0, shots(1, 20));
    assert_eq!(reasons(200), "[]");
    assert_eq!(get(station.address, "/livez").0, 200);
    assert!(matches!(station.stop(), Ending::Drained(_)));
}

#[test]
fn the_picture_is_that_of_the_last_part_that_was_judged() {
    let dir = tempfile::tempdir().expect("directory");
    let cameras = [("a", false), ("b \"left\"", false)];
    let station = Station::start(dir.path(), &cameras, &calibration(), scripted(Duration::ZERO));
    let picture = |camera: &str| {
        let request = doors::request("GET", &format!("/v1/cameras/{camera}/frame.jpg"), "", "");
        let (status, head, body) = ask(station.address, &request);
        assert_eq!(head.contains("content-type: image/jpeg"), status == 200, "{head}");
        (status == 200).then_some(body)
    };
    assert_eq!((picture("a"), picture("nobody")), (None, None));
    station.tell(0, shots(1, 20));
    let dark = wait(|| picture("a"));
    station.tell(0, shots(1, 200));
    let bright = wait(|| picture("a").filter(|picture| *picture != dark));
    station.tell(0, [Shot::Damaged]);
    station.tell(1, shots(1, 20));
    wait(|| picture("b%20%22left%22").filter(|picture| *picture == dark));
    station.judged(4);
    assert_eq!(picture("a"), Some(bright), "there is none of a fault");
    station.tell(0, shots(1, 20));
    wait(|| picture("a").filter(|picture| *picture == dark));
    assert!(matches!(station.stop(), Ending::Drained(_)));
}

#[test]
fn what_is_no_question_gets_no_answer() {
    let dir = tempfile::tempdir().expect("directory");
    let station = Station::start(dir.path(), &[("a", false)], &calibration(), scripted(Duration::ZERO));
    assert_eq!(get(station.address, "/nothing").0, 404);
    let post = "POST /metrics HTTP/1.1\r\nHost: dsad\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(ask(station.address, post).0, 405);
    assert_eq!(ask(station.address, "what?\r\n\r\n").0, 400);
    let long = format!("GET /livez HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
    let mut stream = TcpStream::connect(station.address).expect("connects");
    // It is cut off while it still speaks.
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(get(station.address, "/livez").0, 200);
    assert!(matches!(station.stop(), Ending::Drained(_)));
}

/// Rejects dark parts.
struct DarkDetector(ScriptedDetector);

impl Detector for DarkDetector {
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError> {
        let mut found = self.0.detect(batch, plan)?;
        found.iter_mut().for_each(|detection| detection.score = AnomalyScore(1.0 - detection.score.0));
        Ok(found)
    }
}

#[test]
fn a_fading_lamp_is_told_before_the_first_false_reject() {
    let dir = tempfile::tempdir().expect("directory");
    // Good parts are 60 % bright, a little more or less; those below half are rejected.
    let level = |k: usize, share: f32| ((150.0 + (k * 7 % 11) as f32) * share) as u8;
    let mut calibration = calibration();
    calibration.entries[0].good = (0..110)
        .map(|k| {
            let light = f32::from(level(k, 1.0)) / 255.0;
            GoodPart { score: 1.0 - light, level: 0.0, light, novelty: None }
        })
        .collect();
    let detectors: MakeDetectors =
        Box::new(|| Ok(vec![Box::new(DarkDetector(ScriptedDetector { delay: Duration::ZERO })) as Box<dyn Detector>]));
    let station = Station::start(dir.path(), &[("a", false)], &calibration, detectors);
    let place = [("camera", "a"), ("recipe", "scripted")];
    let alarm = |metrics: &Metrics, what| value(metrics, "dsad_drift_alarm", &[place[0], place[1], ("what", what)]);
    let failed = |metrics: &Metrics| {
        value(metrics, "dsad_inspections_total", &[place[0], ("verdict", "fail"), ("reason", "image_score")])
    };
    station.tell(0, (0..10).map(|k| Shot::Value(level(k, 1.0))));
    let few = station.judged(10);
    assert!(!few.keys().any(|(name, _)| name.starts_with("dsad_drift")), "too early to tell");
    station.tell(0, (10..60).map(|k| Shot::Value(level(k, 1.0))));
    let bright = station.judged(60);
    let rank = |metrics: &Metrics| value(metrics, "dsad_drift_score_rank", &place);
    let spreads = |metrics: &Metrics| value(metrics, "dsad_drift_light_spreads", &place);
    assert!((rank(&bright) - 0.5).abs() < 0.1 && spreads(&bright).abs() < 0.5, "{bright:?}");
    assert_eq!((alarm(&bright, "light"), alarm(&bright, "score"), failed(&bright)), (0.0, 0.0, 0.0));
    station.tell(0, (0..60).map(|k| Shot::Value(level(k, 0.9))));
    let darker = station.judged(120);
    assert!(rank(&darker) > 0.9 && spreads(&darker) < -1.5, "{darker:?}");
    assert_eq!((alarm(&darker, "light"), alarm(&darker, "score"), failed(&darker)), (1.0, 1.0, 0.0));
    station.tell(0, (0..60).map(|k| Shot::Value(level(k, 0.8))));
    let dark = station.judged(180);
    assert!(failed(&dark) > 0.0 && alarm(&dark, "light") == 1.0, "{dark:?}");
    assert!(matches!(station.stop(), Ending::Drained(_)));
}

#[test]
fn slow_clients_do_not_slow_the_line() {
    let dir = tempfile::tempdir().expect("directory");
    let station = Station::start(dir.path(), &[("a", false)], &calibration(), scripted(Duration::from_millis(1)));
    station.tell(0, shots(100_000, 20));
    wait(|| (sum(&station.metrics(), "dsad_inspections_total") > 0.0).then_some(()));
    let address = station.address;
    let (over, told) = channel::<()>();
    let slow = std::thread::spawn(move || {
        let mut clients: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).expect("connects")).collect();
        for byte in b"GET /metrics" {
            clients.iter_mut().for_each(|client| client.write_all(&[*byte]).expect("takes a byte"));
            if told.recv_timeout(Duration::from_secs(1)).is_ok() {
                break;
            }
        }
        clients
    });
    // The line goes on, the counters can be read, and none of the two hundred is through.
    let mut before = 0.0;
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(500));
        let now = sum(&station.metrics(), "dsad_inspections_total");
        assert!(now > before + 50.0, "{now} after {before}");
        before = now;
    }
    over.send(()).expect("clients");
    let clients = slow.join().expect("clients");
    // They still hold on: that does not hold the daemon.
    let stopped = Instant::now();
    assert!(matches!(station.stop(), Ending::Drained(_)));
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
    drop(clients);
}

#[test]
fn the_program_tells_its_port_and_ends_with_its_service() {
    let (bundle, _) = tiny_bundle();
    let dir = tempfile::tempdir().expect("directory");
    config(dir.path(), bundle, "{ kind = 'synthetic', product = 'washer', fps = 20.0 }", "events.ndjson");
    let file = dir.path().join("dsad.toml");
    let text = std::fs::read_to_string(&file).expect("reads");
    std::fs::write(&file, format!("{text}[http]\nlisten = '127.0.0.1:0'\n")).expect("writes");
    let mut program = Command::new(DSAD)
        .args(["run", "--config", "dsad.toml"])
        .current_dir(dir.path())
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut log = BufReader::new(program.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let address = log.find_map(|line| line.split_once("http: listening on ")?.1.parse().ok()).expect("the address");
    let log = std::thread::spawn(move || log.collect::<Vec<_>>());
    wait(|| (get(address, "/readyz").0 == 200).then_some(()));
    let metrics = wait(|| Some(parse(&get(address, "/metrics").2)).filter(|m| sum(m, "dsad_inspections_total") > 3.0));
    assert!(sum(&metrics, "dsad_frames_total") >= sum(&metrics, "dsad_inspections_total"));
    assert!(!metrics.keys().any(|(name, _)| name == "dsad_graph_recorded"), "a processor records nothing");
    assert!(Command::new("kill").args(["-TERM", &program.id().to_string()]).status().expect("kills").success());
    let status = program.wait().expect("ends");
    let log = log.join().expect("log");
    assert_eq!(status.code(), Some(0), "{log:?}");
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    let events = lines(&std::fs::read_to_string(dir.path().join("events.ndjson")).expect("events"));
    assert!(events.len() as f64 >= sum(&metrics, "dsad_inspections_total"));

    // An address in use is said with its key and what to do.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let taken_address = taken.local_addr().expect("address").to_string();
    std::fs::write(&file, format!("{text}[http]\nlisten = '{taken_address}'\n")).expect("writes");
    let (code, _, error) = crate::support::run(DSAD, &["run", "--config", "dsad.toml"], dir.path());
    assert_eq!(code, 1, "{error}");
    for word in ["dsad.toml", "http.listen", &taken_address, "free port"] {
        assert!(error.contains(word), "no {word}: {error}");
    }
    let (code, out, error) = crate::support::run(DSAD, &["check", "--config", "dsad.toml"], dir.path());
    assert!(code == 0 && out.contains(&format!("http: {taken_address}")), "{out}{error}");
}
