//! A process that is killed at any moment: what it kept is whole, and what it left unfinished is gone after the next start.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dsad::output::store::read::{Filter, Reader};
use serde_json::{Value, json};

use crate::store::files;
use crate::support::{DSAD, run, tiny_bundle};

/// A station that judges fifty parts a second and keeps the pictures of all.
fn station(dir: &Path) {
    let (bundle, _) = tiny_bundle();
    let text = "station = 's'\n[[cameras]]\nname = 'a'\nrecipe = 'r.toml'\n\
                source = { kind = 'synthetic', product = 'washer', fps = 50.0, defect_rate = 0.3 }\n\
                [outputs]\nevents = 'events.ndjson'\n[archive]\nfolder = 'images'\npasses = 1.0\nmin_free_gib = 0.0\n";
    std::fs::write(dir.join("dsad.toml"), text).expect("writes");
    std::fs::write(dir.join("r.toml"), format!("id = 'r'\nbundle = '{}'\nsteps = 1\n", bundle.display()))
        .expect("writes");
}

fn start(dir: &Path) -> Child {
    let mut command = Command::new(DSAD);
    command.args(["run", "--config", "dsad.toml"]).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("starts")
}

/// Identities of all events, in their order, after it was looked at whether the database is whole.
fn kept(dir: &Path) -> Vec<Value> {
    let state = dir.join("state");
    let db = rusqlite::Connection::open(state.join("dsad.db")).expect("opens");
    let said: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("answers");
    assert_eq!(said, "ok");
    let reader = Reader::open(&state).expect("opens");
    let mut events = Vec::new();
    let each = |_: i64, json: &str| {
        events.push(serde_json::from_str::<Value>(json).expect("an event is whole"));
        true
    };
    reader.events(&Filter::default(), each).expect("reads");
    let folder = dir.join("images");
    let whole = |images: dsad::output::store::Images| {
        let kinds = ["png", "jpg", "json"].iter();
        let contents: Vec<u8> = kinds
            .flat_map(|kind| std::fs::read(folder.join(format!("{}.{kind}", images.stem))).expect("is there"))
            .collect();
        assert_eq!(contents.len() as u64, images.bytes, "{}", images.stem);
        assert_eq!(blake3::hash(&contents).to_hex().as_str(), images.blake3, "{}", images.stem);
    };
    reader.images(whole).expect("reads");
    events
}

fn id(event: &Value) -> String {
    event["event_id"].as_str().expect("id").to_owned()
}

fn killed(times: u64) {
    let dir = tempfile::tempdir().expect("directory");
    station(dir.path());
    let mut known: Vec<Value> = Vec::new();
    for time in 0..times {
        let mut child = start(dir.path());
        let begun = Instant::now();
        // Lines that the last kill left out come first; then those of this run.
        let old: BTreeSet<String> = known.iter().map(id).collect();
        let told = || {
            let text = std::fs::read_to_string(dir.path().join("events.ndjson")).unwrap_or_default();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let last = whole.rsplit('\n').next().and_then(|line| serde_json::from_str(line).ok());
            last.is_some_and(|event: Value| !old.contains(&id(&event)))
        };
        while !told() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no event");
            std::thread::sleep(Duration::from_millis(2));
        }
        // Primes spread the moments over commits, writes of pictures and renames.
        std::thread::sleep(Duration::from_micros(time * 7_919 % 250_000));
        child.kill().expect("is killed");
        child.wait().expect("is gone");
        let now = kept(dir.path());
        assert!(
            now.len() > known.len() && now[..known.len()].iter().map(id).eq(known.iter().map(id)),
            "nothing is lost"
        );
        // What was told is kept: a line is written after its commit, and only the last may be torn.
        let text = std::fs::read_to_string(dir.path().join("events.ndjson")).expect("reads");
        let ids: BTreeSet<String> = now.iter().map(id).collect();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            assert!(ids.contains(&id(&serde_json::from_str(line).expect("a whole line"))));
        }
        known = now;
    }
    // Of each run the events have no gap: what is missing is the end.
    let mut runs: Vec<(String, u64)> = Vec::new();
    for event in &known {
        let (boot, seq) = (event["boot_id"].as_str().expect("boot").to_owned(), event["seq"].as_u64().expect("number"));
        match runs.last_mut() {
            Some((last, expected)) if *last == boot => {
                assert_eq!(seq, *expected);
                *expected += 1;
            }
            _ => {
                assert_eq!(seq, 1);
                runs.push((boot, 2));
            }
        }
    }
    assert_eq!(runs.len() as u64, times);
    // The next start tidies up.
    let config = std::fs::read_to_string(dir.path().join("dsad.toml")).expect("reads");
    std::fs::write(dir.path().join("dsad.toml"), config.replace("defect_rate = 0.3", "defect_rate = 0.3, parts = 5"))
        .expect("writes");
    let (code, _, error) = run(DSAD, &["run", "--config", "dsad.toml"], dir.path());
    assert_eq!(code, 0, "{error}");
    let events = kept(dir.path());
    let text = std::fs::read_to_string(dir.path().join("events.ndjson")).expect("reads");
    let lines: Vec<String> = text.lines().map(|line| id(&serde_json::from_str(line).expect("a whole line"))).collect();
    assert_eq!(lines, events.iter().map(id).collect::<Vec<_>>());
    let left = files(&dir.path().join("images"));
    assert!(left.iter().all(|name| !name.ends_with("partial")), "{left:?}");
    let mut indexed = 0;
    Reader::open(&dir.path().join("state")).expect("opens").images(|_| indexed += 1).expect("reads");
    assert_eq!(left.len(), 3 * indexed);
    println!("{}", json!({"killed": times, "events": events.len(), "with_pictures": indexed}));
}

#[test]
fn a_process_that_is_killed_leaves_nothing_torn() {
    killed(5);
}

#[test]
#[ignore = "takes minutes: cargo test --test main crash -- --ignored --nocapture"]
fn a_process_that_is_killed_three_hundred_times_leaves_nothing_torn() {
    killed(300);
}
