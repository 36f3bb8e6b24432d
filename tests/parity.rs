//! The map that `trainer test` measures is the map that the daemon judges by, bit for bit, and the verdict is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dsad::bundle::Bundle;
use dsad::bundle::signature::KeyList;
use dsad::camera::replay::{Replay, pictures};
use dsad::commands::load::Bundles;
use dsad::config::device::DeviceChoice;
use dsad::daemon::pipeline::{self, Camera, Ending, Parts};
use dsad::detector::{DiffusionDetector, prepare_picture};
use dsad::device;
use dsad::inspection::detect::{ClassId, Detector, Gate, Plan, StepChoice, StepPlan, Steps};
use dsad::inspection::frame::CameraId;
use dsad::inspection::recipe::Recipe;
use dsad::inspection::verdict::Verdict;
use dsad::trainer::dataset::discover::discover;
use dsad::trainer::evaluate::{Judged, Protocol};
use dsad::trainer::judge::{Rules, TrainerClock, judge};
use serde_json::{Value, json};

use crate::cli::lines;
use crate::support::{DSAD, RecordingSink, TRAINER, run, station_of, tiny_bundle};

/// Judges every test picture of washers in `parts` as the trainer does and as the daemon does; how many there were.
fn judged_alike(parts: &Path) -> usize {
    let (dir, _) = tiny_bundle();
    let steps = StepChoice::Fixed(Steps(2));

    // The trainer's way: what `trainer test` computes its table from.
    let bundle = Bundle::open(dir, &KeyList::empty()).expect("opens");
    let compute = device::open(DeviceChoice::Cpu).expect("device");
    let mut detector = DiffusionDetector::load(&bundle, &compute, TrainerClock::start()).expect("loads");
    let set = discover(&parts.join("washer")).expect("set").sets.remove(0);
    let rules = Rules {
        preprocess: &bundle.manifest.preprocess,
        classes: &bundle.manifest.classes,
        calibration: bundle.manifest.calibration.as_ref(),
        steps,
        protocol: Protocol::Default,
    };
    let measured: BTreeMap<PathBuf, Judged> =
        judge(&set, rules, &mut detector).expect("judges").into_iter().map(|part| (part.path.clone(), part)).collect();
    assert_eq!(measured.len(), set.test.len());

    // The daemon's way: the replay camera through all four stages, a folder at a time.
    let folders: BTreeSet<&Path> = measured.keys().map(|path| path.parent().expect("folder")).collect();
    let mut compared = 0;
    for folder in folders {
        let clock = TrainerClock::start();
        let camera = CameraId("replay".into());
        let mut bundles = Bundles::default();
        let index = bundles.open(dir, &KeyList::empty()).expect("opens");
        let class = ClassId(set.name.clone());
        let known = bundle.manifest.classes.contains(&class);
        let recipe = Recipe::whole_frame("parity", known.then_some(class), steps);
        let job = bundles.job(index, recipe, DeviceChoice::Cpu, None).expect("job");
        let sink = RecordingSink::default();
        let detectors =
            bundles.detectors(DeviceChoice::Cpu, Arc::clone(&clock), [std::slice::from_ref(&job)], None, |_| {});
        let source = Replay::open(camera.clone(), folder, None, Arc::clone(&clock)).expect("folder");
        let ending = pipeline::run(Parts {
            sinks: vec![Box::new(sink.clone())],
            shutdown: Duration::from_secs(60),
            ..station_of(vec![Camera::free(camera, Box::new(source), false, job)], detectors, clock)
        });
        assert!(matches!(ending, Ending::Drained(_)), "{ending:?}");

        let judged = sink.0.lock().expect("sink");
        let order = pictures(folder).expect("pictures");
        assert_eq!(judged.len(), order.len());
        for (inspection, path) in judged.iter().zip(&order) {
            let detection = inspection.detection.as_ref().expect("judged");
            let measured = &measured[path];
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert!(detection.map.values.iter().any(|value| *value > 0.0), "an empty map proves nothing");
            assert_eq!(bits(&detection.map.values), bits(&measured.map.values), "{}", path.display());
            assert_eq!(detection.score.0.to_bits(), measured.score.to_bits());
            let rejected = match inspection.decision.verdict {
                Verdict::Pass => Some(false),
                Verdict::Fail => Some(true),
                Verdict::Fault(_) => None,
            };
            assert_eq!(rejected, measured.rejected, "{}", path.display());
            compared += 1;
        }
    }
    assert_eq!(compared, measured.len());
    compared
}

#[test]
fn trainer_and_daemon_make_the_same_map() {
    assert_eq!(judged_alike(&tiny_bundle().1), 10);
}

#[test]
#[ignore = "takes minutes: cargo test --test main parity -- --ignored --nocapture"]
fn trainer_and_daemon_make_the_same_map_of_five_hundred_parts() {
    let home = tempfile::tempdir().expect("directory");
    let synth =
        ["synth", "--count", "1", "--test-good", "250", "--test-defective", "250", "--size", "64", "--out", "parts"];
    let (code, _, error) = run(TRAINER, &synth, home.path());
    assert_eq!(code, 0, "{error}");
    println!("{}", json!({"compared": judged_alike(&home.path().join("parts"))}));
}

#[test]
fn a_frame_that_is_close_gets_more_steps_while_its_deadline_allows() {
    let bundle = Bundle::open(&tiny_bundle().0, &KeyList::empty()).expect("opens");
    let compute = device::open(DeviceChoice::Cpu).expect("device");
    let clock = TrainerClock::start();
    let mut detector = DiffusionDetector::load(&bundle, &compute, Arc::clone(&clock)).expect("loads");
    let picture = bundle.read(&bundle.manifest.golden[0].picture).expect("a golden picture");
    let spec = &bundle.manifest.preprocess;
    let prepared = prepare_picture(&picture, spec).expect("prepares");
    let fixed = |steps: u32| Plan::new(StepPlan::Fixed(Steps(steps)), None);
    // So that both step counts have been timed.
    let scores = [1, 2]
        .map(|steps| detector.detect(std::slice::from_ref(&prepared), &fixed(steps)).expect("detects")[0].score.0);
    // Thresholds in the middle of what it measures: whatever runs is close to them.
    let gate = |steps: u32, score: f32| Gate {
        steps: Steps(steps),
        image_threshold: score,
        region_threshold: f32::MAX,
        min_area: 4,
    };
    let gates = vec![gate(1, scores[0]), gate(2, scores[1])];
    let mut ran = |until: Option<u64>| {
        let until = until.map(|millis| clock.now().plus_millis(millis));
        let plan = Plan { until, ..Plan::new(StepPlan::Auto(gates.clone()), None) };
        detector.detect(std::slice::from_ref(&prepared), &plan).expect("detects")[0].steps.0
    };
    assert_eq!((ran(None), ran(Some(60_000)), ran(Some(0))), (2, 2, 1));
}

#[test]
fn auto_judges_as_the_step_count_at_which_it_stopped() {
    let (dir, parts) = tiny_bundle();
    let mut folders: Vec<String> = std::fs::read_dir(parts.join("washer/test"))
        .expect("folders")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| std::fs::read_dir(path).is_ok_and(|mut found| found.next().is_some()))
        .map(|path| path.display().to_string())
        .collect();
    folders.sort();
    let run_with = |steps: &str| {
        let args = ["inspect", "--bundle", dir.to_str().expect("path"), "--json", "--steps", steps];
        let args: Vec<&str> = args.into_iter().chain(folders.iter().map(String::as_str)).collect();
        let (_, out, error) = run(DSAD, &args, parts);
        let mut events = lines(&out);
        assert_eq!(events.pop().expect("a summary")["fault"], 0, "{error}");
        events
    };
    let (one, two, auto) = (run_with("1"), run_with("2"), run_with("auto"));
    assert!(!auto.is_empty());
    for (index, event) in auto.iter().enumerate() {
        let fixed = match event["steps"].as_u64().expect("a number") {
            1 => &one[index],
            2 => &two[index],
            other => panic!("{other} steps were not listed"),
        };
        assert_eq!(event["camera"], fixed["camera"]);
        assert_eq!(event["score"], fixed["score"], "the same map, whatever led to it");
        assert_ne!(event["threshold"], Value::Null, "auto has thresholds of its own");
    }
}
