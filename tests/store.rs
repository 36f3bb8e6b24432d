//! The record of a station: what is committed stays, in order, whatever ends the process; and who changes the trail is found.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dsad::config::record::{ArchiveLimits, ArchiveSettings, StoreLimits};
use dsad::inspection::anomaly::{AnomalyMap, AnomalyScore};
use dsad::inspection::audit::Deed;
use dsad::inspection::detect::{Detection, Reconstruction, Steps};
use dsad::inspection::drift::Drift;
use dsad::inspection::event::Event;
use dsad::inspection::frame::{FrameBuf, FrameId, FrameMeta, PixelFormat, Prepared, Rectangle};
use dsad::inspection::line::Actuation;
use dsad::inspection::recipe::RecipeId;
use dsad::inspection::roi::Transform;
use dsad::inspection::time::Clock;
use dsad::inspection::verdict::{Decision, FaultReason, Inspection, Latency, Record, Verdict};
use dsad::output::archive;
use dsad::output::envelope::Envelopes;
use dsad::output::ndjson::Lines;
use dsad::output::record::{self, Places};
use dsad::output::store::outbox::{Destination, Outlet, Turn};
use dsad::output::store::read::{Filter, Reader};
use dsad::output::store::{Row, Store};
use dsad::platform::clock::SystemClock;
use serde_json::Value;

use crate::support::doors::HandClock;
use crate::support::{LIMITS, kept};

/// An inspection of a frame of 32x32 that was seen.
pub fn inspection(frame: u64, verdict: Verdict, score: f32) -> Box<Inspection> {
    let map = AnomalyMap { width: 32, height: 32, values: vec![0.0; 1024] };
    let prepared = Prepared {
        width: 32,
        height: 32,
        tiles: None,
        image: Arc::new(vec![0.0; 3 * 1024]),
        sketch: None,
        light: 0.5,
        transform: Transform { offset_x: 0.0, offset_y: 0.0, scale_x: 1.0, scale_y: 1.0 },
        inside: Rectangle { left: 0, top: 0, width: 32, height: 32 },
        rois: None,
    };
    let detection = Detection {
        map,
        score: AnomalyScore(score),
        reconstruction: Reconstruction { width: 32, height: 32, rgb: vec![0; 3072] },
        steps: Steps(1),
        tiles: None,
        rois: None,
        novelty: 0.0,
        infer_ms: 1.0,
    };
    Box::new(Inspection {
        frame: FrameMeta { id: FrameId(frame), sequence: frame, ..FrameMeta::of_picture("top", 32, 32) },
        recipe: RecipeId("r".into()),
        recipe_hash: "".into(),
        bundle: "b".into(),
        model_hash: "0".into(),
        calibration: None,
        detection: Some(detection),
        decision: Decision { verdict, rule: None, threshold: Some(1.0), regions: Vec::new() },
        latency: Latency::default(),
        deadline_ms: None,
        dtype: "f32".into(),
        seed: 0,
        fault: None,
        prepared: Some(Arc::new(prepared)),
        pixels: Some((PixelFormat::Gray8, FrameBuf::from(vec![frame as u8; 1024]))),
        full_scale: Some(2.0),
        drift: Drift::default(),
        actuation: Actuation::Nothing,
    })
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::start())
}

fn numbers(dir: &Path) -> Vec<u64> {
    let mut found = Vec::new();
    let each = |_: i64, json: &str| {
        found.push(serde_json::from_str::<Value>(json).expect("JSON")["frame_id"].as_u64().expect("number"));
        true
    };
    Reader::open(dir).expect("opens").events(&Filter::default(), each).expect("reads");
    found
}

fn lines(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("events.ndjson")).expect("events");
    text.lines().map(|line| serde_json::from_str(line).expect("a whole line")).collect()
}

/// Keeps inspections of these frames in a station that starts and ends for them.
fn keep(dir: &Path, frames: std::ops::Range<u64>) {
    let clock = clock();
    let mut station = kept(dir, Vec::new(), &clock);
    let worker = std::thread::spawn(station.worker.1);
    let mut envelopes = Envelopes::new("l", "s", frames.start, Arc::clone(&clock));
    for frame in frames {
        let kept = station.recording.keep(envelopes.make(), inspection(frame, Verdict::Pass, 0.5));
        kept.expect("there is room");
        std::thread::sleep(Duration::from_micros(200));
    }
    drop(station.recording);
    worker.join().expect("ends");
    assert!(station.health.is_closed() && station.health.all_lost() == 0);
}

#[test]
fn what_a_crash_left_out_of_the_lines_is_taken_from_the_database() {
    let dir = tempfile::tempdir().expect("directory");
    keep(dir.path(), 0..40);
    assert_eq!(numbers(dir.path()), (0..40).collect::<Vec<u64>>());
    let path = dir.path().join("events.ndjson");
    let text = std::fs::read_to_string(&path).expect("reads");
    // The process was killed after the commit of the last ten and in the middle of a line.
    let cut = text.match_indices('\n').nth(29).expect("thirty lines").0 + 100;
    std::fs::write(&path, &text[..cut]).expect("writes");
    keep(dir.path(), 40..50);
    let frames: Vec<u64> = lines(dir.path()).iter().map(|line| line["frame_id"].as_u64().expect("number")).collect();
    assert_eq!(frames, (0..50).collect::<Vec<u64>>());
    assert_eq!(numbers(dir.path()), frames);
}

#[test]
fn a_file_of_lines_that_was_moved_away_begins_anew() {
    let dir = tempfile::tempdir().expect("directory");
    keep(dir.path(), 0..5);
    std::fs::rename(dir.path().join("events.ndjson"), dir.path().join("old")).expect("moves");
    keep(dir.path(), 5..8);
    assert_eq!(lines(dir.path()).len(), 3);
    assert_eq!(numbers(dir.path()).len(), 8);
}

#[test]
fn whoever_changes_the_audit_trail_is_found() {
    type Change = fn(&rusqlite::Connection) -> rusqlite::Result<usize>;
    let changes: [(&str, Change, Option<i64>); 5] = [
        ("nothing", |_| Ok(0), None),
        ("a field", |db| db.execute("UPDATE audit SET who = 'nobody' WHERE id = 4", []), Some(4)),
        ("a field to none", |db| db.execute("UPDATE audit SET new = NULL WHERE id = 4", []), Some(4)),
        ("a row away", |db| db.execute("DELETE FROM audit WHERE id = 4", []), Some(5)),
        ("the first rows away", |db| db.execute("DELETE FROM audit WHERE id < 4", []), Some(4)),
    ];
    for (what, change, broken) in changes {
        let dir = tempfile::tempdir().expect("directory");
        let mut store = Store::open(dir.path(), Vec::new(), LIMITS).expect("opens");
        for number in 0..8 {
            let new = Some(format!("{number}"));
            let deed = Deed {
                who: "anna".into(),
                from: "http ::1".into(),
                what: "PrepareRecipe".into(),
                new,
                ..Deed::default()
            };
            store.commit(&[Row::Deed(deed, number)]).expect("commits");
        }
        drop(store);
        change(&rusqlite::Connection::open(dir.path().join("dsad.db")).expect("opens")).expect("changes");
        let found = Reader::open(dir.path()).expect("opens").examine_audit().expect("reads");
        assert_eq!(found.broken, broken, "{what}");
        assert_eq!(found.last.len(), 64);
    }
}

fn event(frame: u64, verdict: Verdict) -> (Box<Event>, String) {
    let mut envelopes = Envelopes::new("l", "s", frame, clock());
    let event = Event::new(&inspection(frame, verdict, 0.5), &envelopes.make(), None);
    let json = serde_json::to_string(&event).expect("JSON");
    (Box::new(event), json)
}

fn commit(store: &mut Store, frame: u64, verdict: Verdict) {
    let (event, json) = event(frame, verdict);
    store.commit(&[Row::Event(event, json, frame)]).expect("commits");
}

/// Numbers of the frames that go next, and rows to acknowledge.
fn next(turn: &mut Turn, reader: &Reader, limit: usize) -> (Vec<u64>, Vec<i64>) {
    let waiting = turn.next(reader, limit).expect("reads");
    let frame = |body: &str| serde_json::from_str::<Value>(body).expect("JSON")["frame_id"].as_u64().expect("number");
    (waiting.iter().map(|waiting| frame(&waiting.body)).collect(), waiting.iter().map(|waiting| waiting.id).collect())
}

const MQTT: Outlet = Outlet { to: Destination::Mqtt, passes: true };
const FAIL: Verdict = Verdict::Fail;

#[test]
fn failures_go_first_and_what_is_fresh_goes_before_what_waited() {
    let dir = tempfile::tempdir().expect("directory");
    let mut store = Store::open(dir.path(), vec![MQTT], LIMITS).expect("opens");
    for (frame, verdict) in
        [(0, Verdict::Pass), (1, FAIL), (2, Verdict::Pass), (3, Verdict::Fault(FaultReason::Overrun))]
    {
        commit(&mut store, frame, verdict);
    }
    let reader = Reader::open(dir.path()).expect("opens");
    let mut turn = Turn::begin(&reader, Destination::Mqtt).expect("begins");
    for (frame, verdict) in [(4, Verdict::Pass), (5, FAIL), (6, Verdict::Pass)] {
        commit(&mut store, frame, verdict);
    }
    assert_eq!(next(&mut turn, &reader, 4).0, [5, 1, 3, 4]);
    commit(&mut store, 7, FAIL);
    let (rest, ids) = next(&mut turn, &reader, 10);
    assert_eq!(rest, [7, 6, 0, 2]);
    // Only what is acknowledged is gone: of another connection the rest is sent again.
    store.commit(&[Row::Sent(ids)]).expect("commits");
    let mut again = Turn::begin(&reader, Destination::Mqtt).expect("begins");
    assert_eq!(next(&mut again, &reader, 10).0, [1, 3, 5, 4]);
}

#[test]
fn a_destination_that_does_not_answer_costs_passes_first_and_is_counted() {
    let dir = tempfile::tempdir().expect("directory");
    let size = event(100, Verdict::Pass).1.len() as u64;
    let limits = StoreLimits { outbox_bytes: 4 * size + size / 2, ..LIMITS };
    let webhook = Outlet { to: Destination::Webhook, passes: false };
    let mut store = Store::open(dir.path(), vec![MQTT, webhook], limits).expect("opens");
    let mut given_up = 0;
    for (frame, verdict) in
        [(100, FAIL), (101, Verdict::Pass), (102, FAIL), (103, Verdict::Pass), (104, FAIL), (105, FAIL), (106, FAIL)]
    {
        let (event, json) = event(frame, verdict);
        given_up += store.commit(&[Row::Event(event, json, frame)]).expect("commits").given_up;
    }
    let reader = Reader::open(dir.path()).expect("opens");
    let of = |to| next(&mut Turn::begin(&reader, to).expect("begins"), &reader, 100).0;
    assert_eq!(of(Destination::Mqtt), [102, 104, 105, 106]);
    // Which has no passes to give up.
    assert_eq!((of(Destination::Webhook), given_up), (vec![102, 104, 105, 106], 3 + 1));
    // What waits longer than it may is given up, too; the events themselves stay.
    let hours = |hours: u64| hours * 3_600 * 1_000_000_000;
    let gone = store.sweep(Some(hours(200))).expect("sweeps");
    assert!(gone.given_up == 8 && of(Destination::Mqtt).is_empty());
    assert_eq!(numbers(dir.path()).len(), 7);
    // A year later they are old, too.
    store.sweep(Some(hours(24 * 500))).expect("sweeps");
    assert!(numbers(dir.path()).is_empty());
}

#[test]
fn a_database_that_is_too_large_loses_passes_and_never_failures() {
    let dir = tempfile::tempdir().expect("directory");
    let limits = StoreLimits { max_bytes: 128 << 10, ..LIMITS };
    let mut store = Store::open(dir.path(), Vec::new(), limits).expect("opens");
    for frame in 0..400 {
        commit(&mut store, frame, if frame % 50 == 7 { FAIL } else { Verdict::Pass });
    }
    store.sweep(None).expect("sweeps");
    assert_eq!(numbers(dir.path()), (0..8).map(|k| 50 * k + 7).collect::<Vec<u64>>());
}

#[test]
fn what_waits_for_a_destination_that_is_gone_is_given_up() {
    let dir = tempfile::tempdir().expect("directory");
    let mut store = Store::open(dir.path(), vec![MQTT], LIMITS).expect("opens");
    commit(&mut store, 1, FAIL);
    drop(store);
    drop(Store::open(dir.path(), Vec::new(), LIMITS).expect("opens"));
    let reader = Reader::open(dir.path()).expect("opens");
    assert!(next(&mut Turn::begin(&reader, Destination::Mqtt).expect("begins"), &reader, 10).0.is_empty());
}

#[test]
fn a_database_of_another_version_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    drop(Store::open(dir.path(), Vec::new(), LIMITS).expect("opens"));
    let db = rusqlite::Connection::open(dir.path().join("dsad.db")).expect("opens");
    db.execute("UPDATE meta SET value = 99 WHERE key = 'schema'", []).expect("changes");
    let error = Store::open(dir.path(), Vec::new(), LIMITS).err().expect("refused").to_string();
    assert!(error.contains("dsad.db") && error.contains("99") && error.contains("move the file away"), "{error}");
    // A file that is no database at all.
    std::fs::write(dir.path().join("dsad.db"), vec![7; 10_000]).expect("writes");
    let error = Store::open(dir.path(), Vec::new(), LIMITS).err().expect("refused").to_string();
    assert!(error.contains("dsad.db") && error.contains("damaged"), "{error}");
}

/// All files below a folder, by their names.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path.file_name().expect("name").to_string_lossy().into_owned()),
        }
    }
    found.sort();
    found
}

/// Keeps inspections with their pictures, in a station that starts and ends for them.
fn keep_pictures(dir: &Path, settings: &ArchiveSettings, inspections: Vec<Inspection>) -> Arc<archive::ArchiveHealth> {
    keep_pictures_by(dir, settings, inspections, &clock(), true)
}

/// The same by this clock; `synced` says whether somebody has set it.
fn keep_pictures_by(
    dir: &Path,
    settings: &ArchiveSettings,
    inspections: impl IntoIterator<Item = Inspection>,
    clock: &Arc<dyn Clock>,
    synced: bool,
) -> Arc<archive::ArchiveHealth> {
    let store = Store::open(dir, Vec::new(), LIMITS).expect("opens");
    let reader = || Reader::open(dir).expect("opens");
    let (mut recording, clerk, queue) = record::queue(Arc::clone(clock));
    let (archive, keeper, health) = archive::open(settings.clone(), Some((reader(), clerk.clone())));
    let lines = Lines::new(&dir.join("events.ndjson"), u64::MAX);
    let places = Places { store: Some((store, reader())), lines, archive: Some(archive), shown: None };
    let (worker, record) = queue.worker(places, Box::new(move || synced), Arc::default());
    let workers = [std::thread::spawn(move || keeper.run()), std::thread::spawn(move || worker.run())];
    let mut envelopes = Envelopes::new("l", "s", 7, Arc::clone(clock));
    for inspection in inspections {
        recording.keep(envelopes.make(), Box::new(inspection)).expect("there is room");
        // One after the other: pictures are given up where many come at once.
        std::thread::sleep(Duration::from_millis(40));
    }
    drop((recording, clerk));
    workers.into_iter().for_each(|worker| worker.join().expect("ends"));
    assert_eq!(record.all_lost(), 0);
    health
}

/// Everything but these limits.
fn limited(folder: &Path, limit: impl Fn(&mut ArchiveLimits)) -> ArchiveSettings {
    let mut settings = ArchiveSettings::everything(folder);
    limit(&mut settings.limits);
    settings
}

#[test]
fn pictures_are_whole_or_not_there_and_the_index_knows() {
    let dir = tempfile::tempdir().expect("directory");
    let folder = dir.path().join("images");
    let settings = limited(&folder, |limits| (limits.passes, limits.near) = (0.0, 0.9));
    let faulty = Inspection {
        detection: None,
        prepared: None,
        ..*inspection(3, Verdict::Fault(FaultReason::DetectorFault), 0.0)
    };
    let unseen = Inspection { pixels: None, ..faulty.clone() };
    let all = vec![
        *inspection(0, Verdict::Pass, 0.5),
        *inspection(1, FAIL, 1.5),
        *inspection(2, Verdict::Pass, 0.95),
        faulty,
        unseen,
    ];
    let health = keep_pictures(dir.path(), &settings, all);
    let get = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    // The failure, the pass near the threshold, and the fault that was seen, which has no drawing.
    assert_eq!((get(&health.written), get(&health.lost)), (3, 0));
    let kinds: Vec<String> =
        files(&folder).iter().map(|name| name.split(['-', '.']).skip(2).collect::<Vec<_>>().join(".")).collect();
    assert_eq!(
        kinds,
        ["fail.jpg", "fail.json", "fail.png", "pass.jpg", "pass.json", "pass.png", "fault.json", "fault.png"]
    );
    let reader = Reader::open(dir.path()).expect("opens");
    let mut indexed = Vec::new();
    reader.images(|images| indexed.push(images)).expect("reads");
    assert_eq!(indexed.len(), 3);
    for images in &indexed {
        let contents: Vec<u8> = ["png", "jpg", "json"]
            .iter()
            .flat_map(|kind| std::fs::read(folder.join(format!("{}.{kind}", images.stem))).unwrap_or_default())
            .collect();
        assert_eq!(
            (images.bytes, &images.blake3),
            (contents.len() as u64, &blake3::hash(&contents).to_hex().to_string())
        );
        let event: Value =
            serde_json::from_slice(&std::fs::read(folder.join(format!("{}.json", images.stem))).expect("reads"))
                .expect("JSON");
        assert_eq!(event["event_id"], images.event_id.as_str());
        assert!(Path::new(event["image"].as_str().expect("a picture")).is_file(), "{event}");
    }
    // The frame comes back as the camera gave it.
    let fail = indexed.iter().find(|images| images.verdict == "fail").expect("a failure");
    let frame =
        dsad::preprocess::decode::decode(&std::fs::read(folder.join(format!("{}.png", fail.stem))).expect("reads"));
    let frame = frame.expect("decodes").into_frame(FrameMeta::of_picture("x", 32, 32));
    assert!(frame.pixels.iter().all(|pixel| *pixel == 1));
    // A crash leaves half a file, and files without a row: those that are whole are found again, the others go.
    let hour = folder.join(&fail.stem).parent().expect("folder").to_path_buf();
    let id = "01KB000000000000000000000";
    std::fs::write(hour.join(format!("top-{id}A-fail.png.partial")), "half").expect("writes");
    std::fs::write(hour.join(format!("top-{id}B-fail.png")), "no event beside it").expect("writes");
    for kind in ["png", "jpg", "json"] {
        std::fs::write(hour.join(format!("top-{id}C-fail.{kind}")), kind).expect("writes");
    }
    keep_pictures(dir.path(), &settings, Vec::new());
    assert_eq!(files(&folder).len(), 8 + 3);
    assert!(
        reader.has_images(&format!("{id}C")).expect("reads") && !reader.has_images(&format!("{id}B")).expect("reads")
    );
}

#[test]
fn the_oldest_passes_make_room_and_a_failure_goes_last() {
    let dir = tempfile::tempdir().expect("directory");
    let folder = dir.path().join("images");
    let everything = ArchiveSettings::everything(&folder);
    let all = (0..6).map(|frame| *inspection(frame, if frame == 0 { FAIL } else { Verdict::Pass }, 0.5)).collect();
    keep_pictures(dir.path(), &everything, all);
    let reader = Reader::open(dir.path()).expect("opens");
    let (bytes, events) = reader.image_bytes().expect("reads");
    assert_eq!(events, 6);
    let settings = limited(&folder, |limits| limits.max_bytes = bytes / 2);
    let health = keep_pictures(dir.path(), &settings, vec![*inspection(6, Verdict::Pass, 0.5)]);
    let (after, events) = reader.image_bytes().expect("reads");
    assert!(after <= bytes / 2 + bytes / 6 + 64, "at most one more than fits: {after} of {bytes}");
    assert_eq!(health.deleted.load(std::sync::atomic::Ordering::Relaxed), 7 - events);
    let left = files(&folder);
    assert_eq!(left.len() as u64, 3 * events);
    assert!(left.iter().any(|name| name.ends_with("fail.json")), "{left:?}");
    // Where nothing else is left, failures go, too; and a disk that others filled gets none.
    let settings = limited(&folder, |limits| limits.min_free_bytes = u64::MAX);
    let health = keep_pictures(dir.path(), &settings, vec![*inspection(7, FAIL, 0.5)]);
    assert_eq!((files(&folder).len(), health.lost.load(std::sync::atomic::Ordering::Relaxed)), (0, 1));
}

#[test]
fn by_a_clock_that_nobody_set_nothing_is_old() {
    // An event stays for as long as its pictures do, so events that have none are looked at by themselves.
    for passes in [0.0, 1.0] {
        let dir = tempfile::tempdir().expect("directory");
        let folder = dir.path().join("images");
        let settings = limited(&folder, |limits| (limits.passes, limits.near, limits.days) = (passes, 0.9, 30));
        let hand = HandClock::shared();
        let clock: Arc<dyn Clock> = hand.clone();
        for (synced, first, left) in [(false, 0, vec![0, 1]), (true, 2, vec![3])] {
            let inspections = [first, first + 1].map(|frame| *inspection(frame, Verdict::Pass, 0.5));
            let each = inspections.into_iter().inspect(|inspection| {
                // Ten years pass while the station runs.
                if inspection.frame.id.0 > first {
                    while !numbers(dir.path()).contains(&first) {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    hand.pass(10 * 365 * 86_400);
                }
            });
            keep_pictures_by(dir.path(), &settings, each, &clock, synced);
            if passes == 0.0 || !synced {
                assert_eq!(numbers(dir.path()), left);
            }
            assert_eq!(files(&folder).len(), if passes == 0.0 { 0 } else { 3 * left.len() });
        }
    }
}
