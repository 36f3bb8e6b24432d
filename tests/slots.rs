//! Bundles in two places: installed, tried, exchanged while the station runs, taken back, and killed in the middle.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dsad::bundle::Bundle;
use dsad::bundle::signature::KeyList;
use dsad::bundle::slots::{self, Slots};
use dsad::daemon::exchange::{Exchange, add};
use dsad::daemon::job::Job;
use dsad::daemon::pipeline::{Camera, Ending, Parts, run as run_station};
use dsad::daemon::upkeep::{Aside, Running};
use dsad::inspection::anomaly::{AnomalyMap, AnomalyScore};
use dsad::inspection::detect::{Detection, Detector, DetectorError, Plan, Reconstruction, Steps};
use dsad::inspection::frame::{
    CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, Prepared, SourceError,
};
use dsad::inspection::time::Clock;
use dsad::inspection::verdict::Verdict;
use dsad::output::store::read::Reader;
use dsad::platform::clock::SystemClock;
use serde_json::{Value, json};

use crate::cli::lines;
use crate::pipeline::job;
use crate::support::{self, DSAD, RecordingSink, calibration, run, tiny_bundle};

/// A copy of the tiny bundle under another name, so that its hash is another.
pub fn renamed(dir: &Path, name: &str) -> PathBuf {
    let (bundle, _) = tiny_bundle();
    let place = dir.join(name);
    copy(bundle, &place);
    let path = place.join("manifest.json");
    let text = std::fs::read_to_string(&path).expect("reads");
    let id = serde_json::from_str::<Value>(&text).expect("JSON")["id"].as_str().expect("id").to_owned();
    let text = text.replacen(&format!("\"id\": \"{id}\""), &format!("\"id\": \"{name}\""), 1);
    std::fs::write(&path, text).expect("writes");
    place
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("makes");
    for entry in std::fs::read_dir(from).expect("lists").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copies");
        }
    }
}

/// The same with a golden picture whose map is not what the networks make of it, all hashes right.
pub fn wrong(dir: &Path) -> PathBuf {
    let place = renamed(dir, "wrong");
    let path = place.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("JSON");
    let map = "golden/0.map.safetensors";
    let mut bytes = std::fs::read(place.join(map)).expect("reads");
    let count = bytes.len();
    // The last numbers of the map, f32.
    bytes[count - 400..].chunks_exact_mut(4).for_each(|number| number.copy_from_slice(&7.0f32.to_le_bytes()));
    std::fs::write(place.join(map), &bytes).expect("writes");
    manifest["files"][map] = blake3::hash(&bytes).to_hex().to_string().into();
    std::fs::write(&path, serde_json::to_vec_pretty(&manifest).expect("JSON")).expect("writes");
    place
}

fn verb(dir: &Path, args: &[&str]) -> (i32, Vec<Value>, String) {
    let (code, out, error) = run(DSAD, &[&["bundle"], args].concat(), dir);
    let json = if args.contains(&"--json") { lines(&out) } else { Vec::new() };
    (code, json, error)
}

fn in_force(dir: &Path) -> (String, bool) {
    let (_, out, error) = verb(dir, &["list", "slots", "--json"]);
    let slots = out.last().unwrap_or_else(|| panic!("{error}"))["slots"].as_array().expect("list").clone();
    let current: Vec<&Value> = slots.iter().filter(|slot| slot["in_force"] == true).collect();
    assert_eq!(current.len(), 1, "{slots:?}");
    (current[0]["id"].as_str().expect("id").to_owned(), current[0]["proven"] == true)
}

/// A station whose recipe names the two places.
pub fn station(dir: &Path, parts: &str) {
    let text = format!(
        "station = 's'\n[[cameras]]\nname = 'a'\nrecipe = 'r.toml'\n\
         source = {{ kind = 'synthetic', product = 'washer', fps = 20.0{parts} }}\n[outputs]\nevents = 'events.ndjson'\n"
    );
    std::fs::write(dir.join("dsad.toml"), text).expect("writes");
    std::fs::write(dir.join("r.toml"), "id = 'r'\nbundle = 'slots'\nsteps = 1\n").expect("writes");
}

pub fn events(dir: &Path) -> Vec<Value> {
    std::fs::read_to_string(dir.join("events.ndjson")).map(|text| lines(&text)).unwrap_or_default()
}

pub fn deeds(dir: &Path, what: &str) -> Vec<Value> {
    let mut found = Vec::new();
    Reader::open(&dir.join("state")).expect("opens").audit(|deed| found.push(deed)).expect("reads");
    found.retain(|deed| deed["what"] == what);
    found
}

#[test]
fn a_new_bundle_is_tried_before_it_counts_and_the_one_before_comes_back() {
    let home = tempfile::tempdir().expect("directory");
    let dir = home.path();
    let (first, second, wrong) = (renamed(dir, "first"), renamed(dir, "second"), wrong(dir));
    station(dir, ", parts = 3");
    let install = |bundle: &Path| verb(dir, &["install", bundle.to_str().expect("path"), "--into", "slots", "--json"]);
    let (code, out, error) = install(&first);
    assert_eq!((code, &out[0]["slot"]), (0, &"a".into()), "{error}");
    assert_eq!(in_force(dir), ("first".into(), false));
    let (code, _, error) = run(DSAD, &["run", "--config", "dsad.toml"], dir);
    assert_eq!(code, 0, "{error}");
    assert_eq!(in_force(dir), ("first".into(), true));
    // What does not pass its own test changes nothing.
    let (code, out, error) = install(&wrong);
    assert!(code == 1 && out[0]["ok"] == false && error.contains("nothing has changed"), "{error}");
    assert_eq!(in_force(dir), ("first".into(), true));
    let (code, _, error) = verb(dir, &["rollback", "slots"]);
    assert!(code != 0 && error.contains("no bundle before this one"), "nothing of it is left to go back to: {error}");
    let (code, _, error) = install(&second);
    assert_eq!(code, 0, "{error}");
    assert_eq!(in_force(dir), ("second".into(), false));
    // On the station it fails: the one before is in force again, and the trail knows.
    let places = Slots::open(&dir.join("slots")).expect("opens");
    let (slot, _) = places.current().expect("current");
    std::fs::remove_dir_all(places.place(slot)).expect("removes");
    copy(&wrong, &places.place(slot));
    let (code, _, error) = run(DSAD, &["run", "--config", "dsad.toml"], dir);
    assert!(code == 1 && error.contains("in force again"), "{code}: {error}");
    assert_eq!(in_force(dir), ("first".into(), true));
    let deeds = deeds(dir, "bundle");
    assert!(deeds.last().expect("a deed")["refused"].as_str().expect("why").contains("golden"), "{deeds:?}");
    let (code, _, error) = run(DSAD, &["run", "--config", "dsad.toml"], dir);
    assert_eq!(code, 0, "{error}");
    assert!(events(dir).iter().all(|event| event["bundle_id"] == "first"));
    // By hand.
    assert_eq!(install(&second).0, 0);
    let (code, _, error) = verb(dir, &["rollback", "slots"]);
    assert_eq!((code, in_force(dir)), (0, ("first".into(), false)), "{error}");
    // A folder that holds something else is left alone.
    let (code, _, error) = verb(dir, &["install", "first", "--into", "."]);
    assert!(code == 1 && error.contains("holds no slots"), "{error}");
}

#[test]
fn a_station_that_runs_takes_a_bundle_when_it_is_reloaded() {
    let home = tempfile::tempdir().expect("directory");
    let dir = home.path();
    let (first, second, wrong) = (renamed(dir, "first"), renamed(dir, "second"), wrong(dir));
    station(dir, "");
    let install = |bundle: &Path| {
        let (code, _, error) = verb(dir, &["install", bundle.to_str().expect("path"), "--into", "slots"]);
        assert_eq!(code, 0, "{error}");
    };
    install(&first);
    let mut child = Command::new(DSAD);
    let log = std::fs::File::create(dir.join("log")).expect("makes");
    let mut child = child.args(["run", "--config", "dsad.toml"]).current_dir(dir).stderr(log).spawn().expect("starts");
    let until = |what: &str, is: &dyn Fn(&[Value]) -> bool| {
        let begun = Instant::now();
        while !is(&events(dir)) {
            let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let reload = || {
        let sent = Command::new("kill").args(["-HUP", &child.id().to_string()]).status().expect("kills");
        assert!(sent.success());
    };
    until("the first", &|events| events.len() > 3);
    install(&second);
    reload();
    until("the second", &|events| events.last().is_some_and(|event| event["bundle_id"] == "second"));
    // One that fails here: what judges judges on.
    let places = Slots::open(&dir.join("slots")).expect("opens");
    install(&first);
    let (slot, _) = Slots::open(&dir.join("slots")).expect("opens").current().expect("current");
    std::fs::remove_dir_all(places.place(slot)).expect("removes");
    copy(&wrong, &places.place(slot));
    reload();
    let begun = Instant::now();
    while in_force(dir).0 != "second" {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{}",
            std::fs::read_to_string(dir.join("log")).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let known = events(dir).len();
    until("more of the second", &|events| events.len() > known + 3);
    Command::new("kill").arg(child.id().to_string()).status().expect("kills");
    assert!(child.wait().expect("ends").success());
    let events = events(dir);
    let mut models: Vec<(&Value, &Value)> =
        events.iter().map(|event| (&event["bundle_id"], &event["model_hash"])).collect();
    models.dedup();
    assert_eq!(models.len(), 2, "{models:?}");
    assert!(events.iter().all(|event| event["verdict"] != "fault" || event["reason"] == "overrun"));
    let deeds = deeds(dir, "bundle");
    assert_eq!((&deeds[0]["old"], &deeds[0]["new"]), (models[0].1, models[1].1));
    assert!(deeds.len() == 2 && deeds[1]["refused"].is_string(), "{deeds:?}");
}

/// A detector whose score says which one it is.
pub struct Numbered(pub u64);

impl Detector for Numbered {
    fn detect(&mut self, batch: &[Prepared], _: &Plan) -> Result<Vec<Detection>, DetectorError> {
        let found = batch.iter().map(|_| Detection {
            map: AnomalyMap { width: 32, height: 32, values: vec![0.0; 1024] },
            score: AnomalyScore(self.0 as f32 / 4096.0),
            reconstruction: Reconstruction { width: 32, height: 32, rgb: vec![0; 3072] },
            steps: Steps(1),
            tiles: None,
            rois: None,
            novelty: 0.0,
            infer_ms: 1.0,
        });
        Ok(found.collect())
    }
}

/// A camera of thirty frames a second, until it is told to end.
pub struct Thirty {
    pub next: u64,
    pub clock: Arc<dyn Clock>,
    pub end: Arc<AtomicBool>,
}

impl FrameSource for Thirty {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        std::thread::sleep(Duration::from_millis(33));
        if self.end.load(Ordering::Relaxed) {
            return Err(SourceError::Ended);
        }
        let mut meta = FrameMeta { id: FrameId(self.next), sequence: self.next, ..FrameMeta::of_picture("a", 32, 32) };
        meta.captured_at = self.clock.now();
        self.next += 1;
        Ok(Frame { meta, format: PixelFormat::Gray8, pixels: FrameBuf::from(vec![20; 1024]) })
    }
}

/// So many exchanges under a camera of thirty frames a second: every inspection is of one model, and none is lost.
fn exchanges(count: u64) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let end = Arc::new(AtomicBool::new(false));
    let source = Thirty { next: 0, clock: Arc::clone(&clock), end: Arc::clone(&end) };
    let hashed = |number: u64, job: Job| Job { model_hash: number.to_string(), ..job };
    let first = hashed(0, job(Some(calibration())));
    let done = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&done);
    let old: Mutex<Vec<usize>> = Mutex::default();
    let upkeep = move |running: &Running| {
        let number = counted.load(Ordering::Relaxed) + 1;
        if number > count {
            end.store(true, Ordering::Relaxed);
            return;
        }
        let made = add(&running.exchanges, Box::new(move || Ok(Box::new(Numbered(number)))), Vec::new());
        let Ok(detector) = made else { return };
        let recipes = &running.cameras[0].1;
        let before = recipes.all().remove(0);
        let next = Job { detector, ..hashed(number, before.with(before.recipe.clone()).expect("fits")) };
        recipes.renew(vec![next], running.clock.now());
        // What was taken under one before it is out when the fifth after it comes.
        let mut old = old.lock().expect("old");
        old.push(before.detector);
        if old.len() > 5 {
            running.exchanges.send(Exchange::Retire(old.remove(0))).expect("the stage is there");
        }
        counted.store(number, Ordering::Relaxed);
    };
    let sink = RecordingSink::default();
    let camera = Camera::free(CameraId("a".into()), Box::new(source), true, first);
    let ending = run_station(Parts {
        sinks: vec![Box::new(sink.clone())],
        aside: Aside { upkeep: Some(Box::new(upkeep)), ..Aside::default() },
        ..support::station(vec![camera], Numbered(0), clock)
    });
    assert!(matches!(ending, Ending::Drained(_)), "{ending:?}");
    let inspections = sink.0.lock().expect("sink");
    assert_eq!(done.load(Ordering::Relaxed), count);
    let mut models: Vec<u64> = Vec::new();
    for (number, inspection) in inspections.iter().enumerate() {
        assert_eq!(inspection.frame.id.0, number as u64, "none is lost");
        assert_eq!((inspection.decision.verdict, &inspection.fault), (Verdict::Pass, &None));
        let model: u64 = inspection.model_hash.parse().expect("number");
        let score = inspection.detection.as_ref().expect("judged").score.0;
        assert_eq!(score, model as f32 / 4096.0, "judged by the model that it names");
        models.push(model);
    }
    assert!(models.is_sorted());
    models.dedup();
    println!("{}", json!({"exchanges": count, "inspections": inspections.len(), "models_that_judged": models.len()}));
}

#[test]
fn bundles_are_exchanged_under_load_and_none_is_mixed() {
    exchanges(30);
}

#[test]
#[ignore = "takes half a minute: cargo test --test main slots -- --ignored --nocapture"]
fn two_hundred_bundles_are_exchanged_under_load() {
    exchanges(200);
}

/// Installations that are killed at any moment: the old bundle is in force or the new one, whole.
fn killed(times: u64) {
    let home = tempfile::tempdir().expect("directory");
    let dir = home.path();
    let names = ["first", "second"];
    names.iter().for_each(|name| drop(renamed(dir, name)));
    let (code, _, error) = verb(dir, &["install", "first", "--into", "slots"]);
    assert_eq!(code, 0, "{error}");
    let whole = || {
        let place = slots::in_force(&dir.join("slots")).expect("one is in force");
        Bundle::open(&place, &KeyList::empty()).expect("whole").manifest.id
    };
    let begun = Instant::now();
    let (code, _, error) = verb(dir, &["install", "second", "--into", "slots"]);
    assert_eq!(code, 0, "{error}");
    // The first would be the way back.
    let (code, _, error) = verb(dir, &["install", "second", "--into", "slots"]);
    assert!(code == 1 && error.contains("not proven itself yet"), "{error}");
    let whole_time = begun.elapsed().as_micros() as u64;
    let mut took = 0;
    for time in 0..times {
        let before = whole();
        // As the station does when it has judged by it.
        let mut places = Slots::open(&dir.join("slots")).expect("opens");
        let (slot, _) = places.current().expect("current");
        places.point(slot, true).expect("is proven");
        let next = if before == "first" { "second" } else { "first" };
        let mut command = Command::new(DSAD);
        command.args(["bundle", "install", next, "--into", "slots"]).current_dir(dir);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        std::thread::sleep(Duration::from_micros(time * 7_919_777 % (whole_time + whole_time / 4)));
        child.kill().expect("is killed");
        child.wait().expect("ends");
        let after = whole();
        assert!(after == before || after == next);
        took += u64::from(after == next);
    }
    let mut places = Slots::open(&dir.join("slots")).expect("opens");
    let (slot, _) = places.current().expect("current");
    places.point(slot, true).expect("is proven");
    // What was left over goes with the next.
    let (code, _, error) = verb(dir, &["install", "first", "--into", "slots"]);
    assert_eq!(code, 0, "{error}");
    let left: Vec<String> = std::fs::read_dir(dir.join("slots"))
        .expect("lists")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
    println!("{}", json!({"killed": times, "new_in_force": took}));
}

#[test]
fn an_installation_that_is_killed_leaves_the_old_bundle_or_the_new_one() {
    killed(5);
}

#[test]
#[ignore = "takes a minute: cargo test --test main slots -- --ignored --nocapture"]
fn fifty_installations_that_are_killed_leave_the_old_bundle_or_the_new_one() {
    killed(50);
}
