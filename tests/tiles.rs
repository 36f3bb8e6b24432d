//! Parts that are larger than the model's input: cut into tiles, judged as one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use dsad::bundle::Bundle;
use dsad::bundle::signature::KeyList;
use dsad::config::device::DeviceChoice;
use dsad::detector::{DiffusionDetector, prepare_picture};
use dsad::device;
use dsad::inspection::anomaly::gaussian_blur;
use dsad::inspection::detect::{Detector, Plan, StepPlan, Steps};
use dsad::inspection::frame::Prepared;
use dsad::inspection::tiles::{Blend, TileGrid, crop};
use dsad::preprocess::spec::PreprocessSpec;
use dsad::synthetic::noise::Noise;
use dsad::trainer::judge::TrainerClock;
use image::{GrayImage, Luma};
use serde_json::Value;

use crate::cli::lines;
use crate::support::{DSAD, TRAINER, run, tiny_bundle};

/// Sides of a defect in pixels.
const SPOT: u32 = 8;

/// A rolled surface with fine grain, `side x side` pixels, and a dark spot at `spot`.
fn surface(side: u32, seed: u32, spot: Option<(u32, u32)>) -> GrayImage {
    let (grain, shade) = (Noise::new(seed), Noise::new(seed + 7_919));
    GrayImage::from_fn(side, side, |x, y| {
        let (u, v) = (x as f32, y as f32);
        let level = 135.0 + 22.0 * grain.fractal(0.08 * u, 0.3 * v, 2) + 6.0 * shade.value(0.004 * u, 0.004 * v);
        let inside = spot.is_some_and(|(left, top)| (left..left + SPOT).contains(&x) && (top..top + SPOT).contains(&y));
        Luma([(level * if inside { 0.35 } else { 1.0 }) as u8])
    })
}

fn save(folder: &Path, name: &str, picture: &GrayImage) -> PathBuf {
    std::fs::create_dir_all(folder).expect("folder");
    let path = folder.join(name);
    picture.save(&path).expect("saves");
    path
}

/// Fits on good parts of `side x side` pixels with and without tiles of `tile x tile` cells, and inspects parts with one
/// spot each, and good ones.
fn spots_are_found(side: u32, tile: u32, grid: &str, good_parts: u32, spots: &[(u32, u32)]) {
    let home = tempfile::tempdir().expect("directory");
    let dir = home.path();
    for seed in 0..good_parts {
        save(&dir.join("set/train/good"), &format!("{seed:02}.png"), &surface(side, seed, None));
    }
    for (seed, spot) in (1_000..).zip(spots) {
        save(&dir.join("spots"), &format!("{seed}.png"), &surface(side, seed, Some(*spot)));
        save(&dir.join("good"), &format!("{seed}.png"), &surface(side, seed + 1_000, None));
    }
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train/edge-small.toml"));
    let text = text.expect("ships").replace("grid = 65536", &format!("grid = [{tile}, {tile}]"));
    std::fs::write(dir.join("small.toml"), text.replace("steps = [1, 2, 4]", "steps = [1]")).expect("writes");
    let fit = |out: &str, more: &[&str]| {
        let args = ["fit", "--data", "set", "--config", "small.toml", "--stage-steps", "3", "--out", out];
        let started = Instant::now();
        let (code, _, error) = run(TRAINER, &[&args[..], more].concat(), dir);
        assert_eq!(code, 0, "{error}");
        println!("{out}: fit in {:.1} s", started.elapsed().as_secs_f64());
    };
    let inspect = |bundle: &str, folder: &str| {
        let (_, out, error) = run(DSAD, &["inspect", "--bundle", bundle, "--json", folder], dir);
        let mut events = lines(&out);
        assert_eq!(events.pop().expect("a summary")["fault"], 0, "{error}");
        assert_eq!(events.len(), spots.len());
        for event in &events {
            println!(
                "{bundle} {folder}: {} score {} of {}, {} regions, {} ms",
                event["verdict"],
                event["score"],
                event["threshold"],
                event["regions"].as_array().map_or(0, Vec::len),
                event["latency_ms"]["infer"]
            );
        }
        events
    };
    // Whether the strongest region of an event (the first) lies around the spot: its middle within a cell of the features (8 cells of the grid,
    // about 9 pixels), or, where the frame's border cuts it off, at that border.
    let around = |event: &Value, spot: &(u32, u32)| {
        let regions = event["regions"].as_array().expect("regions");
        let along = |low: &str, length: &str, spot: u32| {
            let read = |key: &str| regions[0]["bbox"][key].as_f64().expect("a number");
            let (low, high, spot) = (read(low), read(low) + read(length), f64::from(spot));
            let inside = low <= spot && high >= spot + f64::from(SPOT);
            inside
                && (low < 1.0
                    || high > f64::from(side - 1)
                    || (0.5 * (low + high - f64::from(SPOT)) - spot).abs() < 9.0)
        };
        !regions.is_empty() && along("x", "width", spot.0) && along("y", "height", spot.1)
    };
    fit("cut", &["--tiles", grid]);
    let score = |event: &Value| event["score"].as_f64().expect("a number");
    let (bad, good) = (inspect("cut", "spots"), inspect("cut", "good"));
    for (event, spot) in bad.iter().zip(spots) {
        assert_eq!(event["verdict"], "fail", "{spot:?}: {event}");
        assert!(around(event, spot), "{spot:?}: {event}");
    }
    // Few calibrated parts state a rate of a tenth or more: one of these may be rejected, and none is like a spot.
    assert!(good.iter().filter(|event| event["verdict"] != "pass").count() <= 1);
    let worst = good.iter().map(score).fold(0.0, f64::max);
    assert!(bad.iter().all(|event| score(event) > 2.0 * worst), "{worst}");
    // The same pictures at the size of one tile: a spot is a cell or two, and stands out far less.
    fit("whole", &[]);
    let above = |event: &Value| score(event) / event["threshold"].as_f64().expect("a number");
    let weakest = |events: &[Value]| events.iter().map(above).fold(f64::INFINITY, f64::min);
    let (cut, whole) = (weakest(&bad), weakest(&inspect("whole", "spots")));
    assert!(cut > 3.0 * whole, "the weakest is {cut} of its threshold with tiles, {whole} without");
}

#[test]
fn a_spot_of_eight_pixels_is_found_in_a_part_of_four_by_four_tiles() {
    // Inside a tile, across two, across four, and at the border.
    spots_are_found(512, 128, "4x4,20", 30, &[(60, 70), (124, 300), (126, 126), (503, 250)]);
}

#[test]
#[ignore = "minutes: 64 tiles of 256x256 a part"]
fn a_spot_of_eight_pixels_is_found_in_2048x2048() {
    spots_are_found(2048, 256, "8x8,20", 12, &[(266, 266), (2039, 1000)]);
}

fn detector(dir: &Path) -> (Bundle, DiffusionDetector) {
    let bundle = Bundle::open(dir, &KeyList::empty()).expect("opens");
    let compute = device::open(DeviceChoice::Cpu).expect("device");
    let detector = DiffusionDetector::load(&bundle, &compute, TrainerClock::start()).expect("loads");
    (bundle, detector)
}

fn prepared(picture: &Path, spec: &PreprocessSpec) -> Prepared {
    prepare_picture(&std::fs::read(picture).expect("reads"), spec).expect("a picture")
}

#[test]
fn tiles_in_batches_are_as_each_alone() {
    let (dir, _) = tiny_bundle();
    let (bundle, mut detector) = detector(dir);
    let home = tempfile::tempdir().expect("directory");
    let picture = save(home.path(), "a.png", &surface(200, 3, Some((90, 40))));
    // More than one batch, and a last one that is not full.
    let grid = TileGrid { columns: 4, rows: 3, overlap_percent: 30 };
    let spec = PreprocessSpec { tiles: Some(grid), ..bundle.manifest.preprocess.clone() };
    let frame = prepared(&picture, &spec);
    let plan = Plan::new(StepPlan::Fixed(Steps(2)), None);
    let found = detector.detect(&[frame.clone(), frame.clone()], &plan).expect("judges");
    assert_eq!(found[0].map, found[1].map);
    assert_eq!(found[0].tiles, Some(grid));
    let (canvas, tile) = ((frame.width, frame.height), (spec.width, spec.height));
    let mut blend = Blend::new(grid, tile, 1);
    for place in grid.places(tile.0, tile.1) {
        let image = std::sync::Arc::new(crop(&frame.image, canvas, place, tile));
        let alone = Prepared { width: tile.0, height: tile.1, tiles: None, image, ..frame.clone() };
        blend.add(place, &detector.explain(&alone, &plan).expect("judges").differences.values);
    }
    let expected = gaussian_blur(&blend.finish(), canvas.0, canvas.1, bundle.manifest.map.sigma);
    let most = expected.iter().copied().fold(0.0, f32::max);
    let worst = found[0].map.values.iter().zip(&expected).map(|(a, b)| (a - b.max(0.0)).abs()).fold(0.0, f32::max);
    assert!(most > 0.0 && worst < 1e-4 * most, "{worst} of {most}");
    let size = (found[0].reconstruction.width, found[0].reconstruction.height);
    assert_eq!((size, found[0].reconstruction.rgb.len()), (canvas, 3 * canvas.0 * canvas.1));
}

#[test]
fn thresholds_hold_for_one_way_of_cutting() {
    let (bundle, parts) = tiny_bundle();
    let home = tempfile::tempdir().expect("directory");
    let (bundle, good) = (bundle.to_str().expect("path"), parts.join("washer/train/good"));
    let good = good.to_str().expect("path");
    let inspect = |more: &[&str]| {
        let args = ["inspect", "--bundle", bundle, "--json", good];
        let (code, out, error) = run(DSAD, &[&args[..], more].concat(), home.path());
        (code, lines(&out).first().unwrap_or_else(|| panic!("{error}")).clone())
    };
    let (code, event) = inspect(&["--tiles", "2x2"]);
    assert_eq!((code, &event["verdict"]), (3, &"fault".into()), "{event}");
    let said = event.to_string();
    assert!(said.contains("uncalibrated") && said.contains("dsad calibrate --tiles 2x2,20"), "{said}");
    let args = ["calibrate", "--bundle", bundle, "--calibrations", "here", "--alpha", "0.1", "--tiles", "2x2", good];
    let (code, _, error) = run(DSAD, &args, home.path());
    assert_eq!(code, 0, "{error}");
    let (code, event) = inspect(&["--tiles", "2x2", "--calibrations", "here"]);
    assert!(code <= 1 && event["threshold"].is_number(), "{event}");
    // Whole frames have other scores, and so have frames that are cut a little otherwise.
    for other in [&["--calibrations", "here"][..], &["--calibrations", "here", "--tiles", "2x2,30"]] {
        assert_eq!(inspect(other).1["verdict"], "fault", "{other:?}");
    }
    let (code, _, error) = run(DSAD, &["inspect", "--bundle", bundle, "--tiles", "50x50", good], home.path());
    assert!(code != 0 && error.contains("at most 400"), "{error}");
}
