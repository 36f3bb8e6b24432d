//! An exchange of bundles where memory holds one: the old one goes first, and comes back where the new one is no good.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dsad::bundle::signature::KeyList;
use dsad::bundle::slots::{Slot, Slots};
use dsad::commands::load::Bundles;
use dsad::commands::swap::Swaps;
use dsad::config::station::load;
use dsad::daemon::pipeline::{Camera, Ending, Parts, run};
use dsad::daemon::upkeep::{Aside, Running};
use dsad::inspection::audit::{Audit, Deed};
use dsad::inspection::frame::CameraId;
use dsad::inspection::station_state::State;
use dsad::inspection::time::Clock;
use dsad::inspection::verdict::{FaultReason, Inspection, Verdict};
use dsad::platform::clock::SystemClock;

use crate::slots::{Numbered, Thirty, renamed, station, wrong};
use crate::support::{self, RecordingSink};

/// What became of a station that was told to take another bundle.
struct Came {
    said: Result<(), String>,
    deeds: Vec<Deed>,
    state: State,
    /// The slot in force, and whether it is proven.
    current: Option<(Slot, bool)>,
    inspections: Vec<Inspection>,
    /// Hashes of the bundle before and of the one that came.
    hashes: [String; 2],
    /// How many inspections there were when it was over.
    after: usize,
}

/// What happens to the files of the bundle that judges.
#[derive(Clone, Copy, PartialEq)]
enum Old {
    Stays,
    /// It is gone before anybody looks for it.
    IsGone,
    /// It changes once it was looked through.
    Changes,
}

/// Lets a station judge by one bundle, take `next` where no memory is free, and judge on.
fn exchanged(dir: &Path, next: &Path, old: Old) -> Came {
    let first = renamed(dir, "first");
    station(dir, "");
    let (place, none) = (dir.join("slots"), KeyList::empty());
    let install = move |from: &Path| {
        let mut slots = Slots::open(&place).expect("opens");
        let staged = slots.stage(from, &KeyList::empty()).expect("copies");
        slots.install(staged).expect("installs").1.model_hash
    };
    let mut hashes = [install(&first), String::new()];
    Slots::open(&dir.join("slots")).expect("opens").point(Slot::A, true).expect("proves");
    let station = load(&dir.join("dsad.toml")).unwrap_or_else(|error| panic!("{error}"));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let (recipe, named) = station.cameras[0].recipes[0].clone();
    let mut bundles = Bundles::default();
    let index = bundles.open(&named, &none).expect("opens");
    let job = bundles.job(index, recipe, station.device, None).expect("fits");
    let jobs = [std::slice::from_ref(&job)];
    let detectors = bundles.detectors(station.device, Arc::clone(&clock), jobs, None, |_| {});
    let end = Arc::new(AtomicBool::new(false));
    let source = Thirty { next: 0, clock: Arc::clone(&clock), end: Arc::clone(&end) };
    let camera = Camera::free(CameraId("a".into()), Box::new(source), true, job);

    let sink = RecordingSink::default();
    let deeds: Arc<Mutex<Vec<Deed>>> = Arc::default();
    let noted = Arc::clone(&deeds);
    let lies = dir.join("slots/a");
    let audit: Audit = Arc::new(move |deed| {
        // The last thing before it is let go.
        if old == Old::Changes && deed.refused.is_none() {
            std::fs::write(lies.join("golden/0.map.safetensors"), "nothing").expect("writes");
        }
        noted.lock().expect("deeds").push(deed);
        Ok(())
    });
    let mut swaps = Swaps::new(none, audit, Arc::default());
    let lies = dir.join("slots/a");
    swaps.available = Box::new(move || {
        if old == Old::IsGone {
            std::fs::remove_dir_all(&lies).expect("removes");
        }
        Some(0)
    });
    let state = support::state(Arc::clone(&clock));
    let seen = Arc::clone(&sink.0);
    let came = Arc::new(Mutex::new(None));
    let (tell, standing, next) = (Arc::clone(&came), Arc::clone(&state), next.to_path_buf());
    let upkeep = move |running: &Running| {
        let count = || seen.lock().expect("sink").len();
        if tell.lock().expect("came").is_some() || count() < 5 {
            return;
        }
        let hash = install(&next);
        let deed = Deed { who: "somebody".into(), from: "test".into(), ..Deed::default() };
        let said = swaps.take(&deed, &station, running);
        let (after, begun) = (count(), Instant::now());
        // What was taken up before the exchange is told after it. Where nothing is judged any more a while must do.
        let judged = || said.is_err() || seen.lock().expect("sink").iter().any(|told| told.model_hash == hash);
        let enough = || count() >= after + 12 && judged();
        while !enough() && begun.elapsed() < Duration::from_secs(if said.is_ok() { 60 } else { 5 }) {
            std::thread::sleep(Duration::from_millis(20));
        }
        *tell.lock().expect("came") = Some((said, hash, after, standing.now()));
        end.store(true, Ordering::Relaxed);
    };
    let ending = run(Parts {
        sinks: vec![Box::new(sink.clone())],
        detectors,
        state,
        aside: Aside { upkeep: Some(Box::new(upkeep)), ..Aside::default() },
        ..support::station(vec![camera], Numbered(0), clock)
    });
    let Ending::Drained(counts) = ending else { panic!("{ending:?}") };
    let (said, hash, after, state) = came.lock().expect("came").take().expect("it was tried");
    hashes[1] = hash;
    let inspections = sink.0.lock().expect("sink").clone();
    assert_eq!(inspections.len() as u64, counts.frames_in, "one inspection a frame");
    let current = Slots::open(&dir.join("slots")).expect("opens").current();
    let deeds = deeds.lock().expect("deeds").clone();
    Came { said, deeds, state, current, inspections, hashes, after }
}

/// Every inspection names one of the bundles, in this order, and what was not judged is an overrun.
fn of_bundles(came: &Came, order: &[&String], faults: &[FaultReason]) {
    let mut models: Vec<&String> = came.inspections.iter().map(|inspection| &inspection.model_hash).collect();
    models.dedup();
    assert_eq!(models, order);
    for inspection in &came.inspections {
        match inspection.decision.verdict {
            Verdict::Fault(reason) => assert!(faults.contains(&reason), "{reason:?}: {:?}", inspection.fault),
            _ => assert!(inspection.detection.is_some()),
        }
    }
    assert!(came.inspections.is_sorted_by_key(|inspection| inspection.frame.id), "none is told twice");
}

#[test]
fn where_memory_is_short_the_old_bundle_goes_first() {
    let home = tempfile::tempdir().expect("directory");
    let second = renamed(home.path(), "second");
    let came = exchanged(home.path(), &second, Old::Stays);
    assert_eq!((&came.said, came.current), (&Ok(()), Some((Slot::B, true))));
    of_bundles(&came, &[&came.hashes[0], &came.hashes[1]], &[FaultReason::Overrun]);
    assert!(came.inspections[came.after..].iter().any(|inspection| inspection.detection.is_some()), "it judges");
    let told = came.deeds.iter().map(|deed| (deed.old.as_ref(), deed.new.as_ref(), deed.refused.is_some()));
    assert_eq!(told.collect::<Vec<_>>(), [(Some(&came.hashes[0]), Some(&came.hashes[1]), false)]);
    assert_eq!(came.state, State::ContinuousExecution);
}

#[test]
fn where_the_new_one_is_no_good_the_old_one_is_loaded_again() {
    let home = tempfile::tempdir().expect("directory");
    let wrong = wrong(home.path());
    let came = exchanged(home.path(), &wrong, Old::Stays);
    let said = came.said.as_ref().expect_err("refused");
    assert!(said.contains("golden") && said.contains("judges again") && said.contains("in force again"), "{said}");
    assert_eq!((came.current, came.state), (Some((Slot::A, true)), State::ContinuousExecution));
    of_bundles(&came, &[&came.hashes[0]], &[FaultReason::Overrun]);
    assert!(came.inspections[came.after..].iter().any(|inspection| inspection.detection.is_some()), "it judges on");
    let refused: Vec<bool> = came.deeds.iter().map(|deed| deed.refused.is_some()).collect();
    assert_eq!(refused, [false, true], "the way back is on record: {:?}", came.deeds);
}

#[test]
fn where_neither_can_be_loaded_nothing_passes_any_more() {
    let home = tempfile::tempdir().expect("directory");
    let wrong = wrong(home.path());
    let came = exchanged(home.path(), &wrong, Old::Changes);
    let said = came.said.as_ref().expect_err("refused");
    assert!(said.contains("nor could"), "{said}");
    assert_eq!(came.state, State::Error);
    of_bundles(&came, &[&came.hashes[0]], &[FaultReason::Overrun, FaultReason::DetectorFault]);
    let judged = |inspection: &&Inspection| inspection.detection.is_some();
    assert_eq!(came.inspections[came.after..].iter().find(judged).map(|inspection| inspection.frame.id), None);
    assert!(came.deeds.iter().any(|deed| deed.refused.as_ref().is_some_and(|why| why.contains("nor could"))));
}

#[test]
fn a_bundle_that_could_not_come_back_is_not_let_go() {
    let home = tempfile::tempdir().expect("directory");
    let second = renamed(home.path(), "second");
    let came = exchanged(home.path(), &second, Old::IsGone);
    let said = came.said.as_ref().expect_err("refused");
    assert!(said.contains("no way back") && said.contains("restart the station"), "{said}");
    // A restart takes it.
    assert_eq!((came.current, came.state), (Some((Slot::B, false)), State::ContinuousExecution));
    of_bundles(&came, &[&came.hashes[0]], &[FaultReason::Overrun]);
    assert!(came.inspections[came.after..].iter().any(|inspection| inspection.detection.is_some()), "it judges on");
    assert!(came.deeds.is_empty(), "nothing happened: {:?}", came.deeds);
}
