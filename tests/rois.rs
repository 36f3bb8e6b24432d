//! ROIs from the recipe file to the event: what does not count, and that the rest is judged as ever.

use std::path::{Path, PathBuf};
use std::time::Instant;

use dsad::bundle::Bundle;
use dsad::bundle::signature::KeyList;
use dsad::config::device::DeviceChoice;
use dsad::config::recipe::load_recipe;
use dsad::detector::DiffusionDetector;
use dsad::device;
use dsad::inspection::anomaly::{AnomalyMap, Pooling};
use dsad::inspection::detect::{Detector, Plan, StepPlan, Steps};
use dsad::inspection::frame::{Frame, FrameBuf, FrameMeta, PixelFormat};
use dsad::inspection::mask::Placement;
use dsad::inspection::polygon::{PolygonRoi, RoiMode, Rois};
use dsad::inspection::recipe::Recipe;
use dsad::inspection::roi::Roi;
use dsad::inspection::tiles::TileGrid;
use dsad::preprocess::prepare_for;
use dsad::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use dsad::synthetic::{Product, good_part};
use dsad::trainer::judge::TrainerClock;
use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::cli::lines;
use crate::support::{DSAD, run};

const SIDE: u32 = 256;
/// On the ring of the washer, left and right of its hole.
const LEFT: (u32, u32) = (50, 120);
const RIGHT: (u32, u32) = (190, 120);
/// A polygon around the left spot, with room for the smoothing of the map.
const AROUND_LEFT: &str = "polygon = [[0.02, 0.25], [0.43, 0.25], [0.43, 0.75], [0.02, 0.75]]";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/bundles/demo")
}

/// A good washer, with a dark spot where one is asked for.
fn washer(seed: u64, spot: Option<(u32, u32)>) -> RgbImage {
    let part = good_part(Product::Washer, seed, SIDE);
    let mut picture = RgbImage::from_raw(SIDE, SIDE, part.rgb).expect("fits");
    if let Some((left, top)) = spot {
        (0..14).for_each(|y| (0..14).for_each(|x| picture.put_pixel(left + x, top + y, Rgb([25, 20, 20]))));
    }
    picture
}

fn write_recipe(dir: &Path, name: &str, more: &str) -> String {
    let bundle = demo();
    let text = format!("id = '{name}'\nbundle = '{}'\nclass = 'washer'\n{more}\n", bundle.display());
    std::fs::write(dir.join(name), text).expect("writes");
    name.to_owned()
}

/// Events of the pictures of a folder by a recipe, in the order of their names.
fn inspect(dir: &Path, recipe: &str, more: &[&str]) -> Vec<Value> {
    let args = ["inspect", "--recipe", recipe, "--json", "parts"];
    let (_, out, error) = run(DSAD, &[&args[..], more].concat(), dir);
    let mut events = lines(&out);
    let summary = events.pop().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(summary["fault"], 0, "{error}");
    events
}

fn verdicts(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["verdict"].as_str().expect("a word")).collect()
}

#[test]
fn a_defect_passes_where_it_is_excluded_and_fails_elsewhere() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    std::fs::create_dir(dir.join("parts")).unwrap();
    for (name, spot) in [("a-good", None), ("b-left", Some(LEFT)), ("c-right", Some(RIGHT))] {
        washer(77, spot).save(dir.join(format!("parts/{name}.png"))).unwrap();
    }
    let plain = write_recipe(dir, "plain.toml", "steps = 2");
    let hole = format!("[[rois]]\nname = 'label'\nmode = 'exclude'\n{AROUND_LEFT}");
    let excluded = write_recipe(dir, "excluded.toml", &format!("steps = 2\n{hole}"));
    let before = inspect(dir, &plain, &[]);
    assert_eq!(verdicts(&before), ["pass", "fail", "fail"], "{before:?}");
    let after = inspect(dir, &excluded, &["--out", "drawn"]);
    assert_eq!(verdicts(&after), ["pass", "pass", "fail"], "{after:?}");
    assert!(dir.join("drawn/b-left-pass.jpg").is_file());
    // The spot on the right is what it was; without ROIs that include there is no name to give.
    assert_eq!((&after[2]["score"], &after[2]["recipe_id"]), (&before[2]["score"], &"excluded.toml".into()));
    let keys = |event: &Value| event["regions"][0].as_object().expect("a region").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&before[2]), ["bbox", "area", "peak"], "events without ROIs keep their shape");
    assert_eq!(keys(&after[2]), ["bbox", "area", "peak", "area_px"]);

    // An included part, and in it one that asks for much more.
    let whole = "[[rois]]\nname = 'part'\npolygon = [[0, 0], [1, 0], [1, 1], [0, 1]]";
    let dull = format!("[[rois]]\nname = 'dull'\nthreshold = 10\n{AROUND_LEFT}");
    // The spot is twenty times the threshold: the ROI's factor and the recipe's sensitivity are multiplied.
    let named = write_recipe(dir, "named.toml", &format!("steps = 2\nsensitivity = 0.0\n{whole}\n{dull}"));
    let events = inspect(dir, &named, &[]);
    assert_eq!(verdicts(&events), ["pass", "pass", "fail"], "{events:?}");
    let tenth = 0.1 * before[1]["score"].as_f64().expect("a number");
    let score = events[1]["score"].as_f64().expect("a number");
    assert!(score < 1.05 * tenth && score > 0.95 * tenth, "{score} of {tenth}");
    let region = &events[2]["regions"][0];
    assert_eq!(region["roi"], "part");
    assert_eq!(region["area_px"].as_f64(), region["area"].as_f64(), "a cell is a pixel here");

    // `auto` looks at what counts too: the excluded spot needs no more steps than the good part.
    let auto = write_recipe(dir, "auto.toml", &format!("steps = 'auto'\n{hole}"));
    let events = inspect(dir, &auto, &[]);
    assert_eq!(verdicts(&events), ["pass", "pass", "fail"]);
    assert_eq!(events[1]["steps"], events[0]["steps"]);
}

#[test]
fn the_map_is_the_same_whatever_counts_of_it() {
    let home = tempfile::tempdir().unwrap();
    let more = format!("steps = 2\n[[rois]]\nname = 'label'\nmode = 'exclude'\n{AROUND_LEFT}");
    let file = write_recipe(home.path(), "r.toml", &more);
    let (recipe, dir) = load_recipe(&home.path().join(file)).unwrap();
    let bundle = Bundle::open(&dir, &KeyList::empty()).unwrap();
    let compute = device::open(DeviceChoice::Cpu).unwrap();
    let mut detector = DiffusionDetector::load(&bundle, &compute, TrainerClock::start()).unwrap();
    let picture = washer(77, Some(LEFT));
    let frame = Frame {
        meta: FrameMeta::of_picture("a", SIDE, SIDE),
        format: PixelFormat::Rgb8,
        pixels: FrameBuf::from(picture.into_raw()),
    };
    let plan = Plan::new(StepPlan::Fixed(Steps(1)), recipe.class.clone());
    let spec = &bundle.manifest.preprocess;
    let masked = prepare_for(&recipe, &frame, spec).unwrap();
    let plain = prepare_for(&Recipe { rois: Rois::default(), ..recipe }, &frame, spec).unwrap();
    let mut detect = |prepared| detector.detect(&[prepared], &plan).unwrap().remove(0);
    let (masked, plain) = (detect(masked), detect(plain));
    let bits = |map: &AnomalyMap| map.values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert!(plain.map.max() > 0.0 && bits(&masked.map) == bits(&plain.map));
    assert!(masked.score < plain.score && masked.plain_score() == masked.score);
}

#[test]
fn thresholds_through_rois_hold_for_those_alone() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    std::fs::create_dir_all(dir.join("parts")).unwrap();
    washer(77, None).save(dir.join("parts/a.png")).unwrap();
    for seed in 0..4 {
        std::fs::create_dir_all(dir.join("good")).unwrap();
        washer(900 + seed, None).save(dir.join(format!("good/{seed}.png"))).unwrap();
    }
    let roi = |shape: &str| format!("steps = 1\n[[rois]]\nname = 'hub'\n{shape}");
    let hub = write_recipe(dir, "hub.toml", &roi("polygon = [[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]]"));
    let other = write_recipe(dir, "other.toml", &roi(AROUND_LEFT));
    let plain = write_recipe(dir, "plain.toml", "steps = 1");
    let calibrate = |recipe: &str, more: &[&str]| {
        let args = ["calibrate", "--recipe", recipe, "--calibrations", "here", "--alpha", "0.2", "--json", "good"];
        run(DSAD, &[&args[..], more].concat(), dir)
    };
    let (code, _, error) = calibrate(&hub, &["--steps", "auto"]);
    assert!(code == 3 && error.contains("no step count is calibrated with these ROIs"), "{code}: {error}");
    let threshold = |recipe: &str| inspect(dir, recipe, &["--calibrations", "here"])[0]["threshold"].as_f64();
    let shipped = [&hub, &other, &plain].map(|recipe| threshold(recipe));
    assert!(shipped[0].is_some() && shipped[1..] == [shipped[0]; 2], "{shipped:?}");
    let (code, out, error) = calibrate(&hub, &["--steps", "1"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(lines(&out)[0]["samples"], 4, "scores of whole pictures are not added");
    let now = [&hub, &other, &plain].map(|recipe| threshold(recipe));
    assert!(now[0] != shipped[0] && now[1..] == shipped[1..], "{now:?}");
    // Another recipe's thresholds leave these as they are.
    assert_eq!(calibrate(&other, &["--steps", "1"]).0, 0);
    let then = [&hub, &other, &plain].map(|recipe| threshold(recipe));
    assert!(then[0] == now[0] && then[1] != shipped[1] && then[2] == shipped[2], "{then:?}");
}

#[test]
fn rois_that_mean_nothing_are_refused_before_the_line_runs() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let station = "station = 's'\n[[cameras]]\nname = 'a'\nrecipe = 'r.toml'\nsource = { kind = 'synthetic', product = 'washer' }\n[outputs]\nevents = 'e'\n";
    std::fs::write(dir.join("dsad.toml"), station).unwrap();
    for (polygon, words) in [
        ("[[10, 10], [90, 10], [90, 90]]", "rois[0].polygon: ROI 'r' has the corner [10, 10] outside of the frame"),
        ("[[0.1, 0.1], [0.9, 0.9], [0.9, 0.1], [0.1, 0.9]]", "crosses itself"),
        // Some cells of a grid of 2048, and none of 256.
        ("[[0.5002, 0.5002], [0.5014, 0.5002], [0.5014, 0.5014], [0.5002, 0.5014]]", "has 256x256 cells"),
    ] {
        write_recipe(dir, "r.toml", &format!("steps = 2\n[[rois]]\nname = 'r'\npolygon = {polygon}"));
        let (code, _, error) = run(DSAD, &["check", "--config", "dsad.toml"], dir);
        assert!(code == 3 && error.contains(words), "{polygon}: {code}: {error}");
    }
    write_recipe(dir, "r.toml", "steps = 2\n[[rois]]\nname = 'r'\npolygons = []");
    let (code, _, error) = run(DSAD, &["check", "--config", "dsad.toml"], dir);
    assert!(code == 3 && error.contains("did you mean 'polygon'"), "{code}: {error}");
}

fn roi(name: &str, mode: RoiMode, polygon: &[[f64; 2]]) -> PolygonRoi {
    PolygonRoi { name: name.into(), polygon: polygon.to_vec(), mode, threshold: None, min_area: None }
}

fn recipe(roi: Roi, list: Vec<PolygonRoi>) -> Recipe {
    let rois = Rois::new(list, &roi).unwrap();
    Recipe { roi, rois, ..Recipe::whole_frame("r", None, "1".parse().unwrap()) }
}

/// A frame of 200x100 pixels, black with a white box from 60 to 120 and from 30 to 70.
fn boxed() -> Frame {
    let inside = |cell: usize| (60..120).contains(&(cell % 200)) && (30..70).contains(&(cell / 200));
    let pixels: Vec<u8> = (0..200 * 100).map(|cell| if inside(cell) { 255 } else { 0 }).collect();
    let meta = FrameMeta::of_picture("a", 200, 100);
    Frame { meta, format: PixelFormat::Gray8, pixels: FrameBuf::from(pixels) }
}

fn spec(geometry: Geometry, tiles: Option<TileGrid>) -> PreprocessSpec {
    let (normalisation, sketch) = (Normalisation::SymmetricOne, SketchPlane::None);
    PreprocessSpec { width: 64, height: 64, geometry, normalisation, sketch, tiles }
}

#[test]
fn a_polygon_lies_on_the_pixels_that_it_names_however_the_frame_comes_to_the_grid() {
    let polygon = [[0.3, 0.3], [0.6, 0.3], [0.6, 0.7], [0.3, 0.7]];
    let grid = TileGrid { columns: 2, rows: 3, overlap_percent: 20 };
    let crop = Roi { x: 0.1, y: 0.15, width: 0.7, height: 0.7 };
    for geometry in [Geometry::Stretch, Geometry::Letterbox] {
        for tiles in [None, Some(grid)] {
            for part in [Roi::FULL, crop] {
                let spec = spec(geometry, tiles);
                let recipe = recipe(part, vec![roi("box", RoiMode::Include, &polygon)]);
                let prepared = prepare_for(&recipe, &boxed(), &spec).unwrap();
                let mask = prepared.rois.as_ref().expect("has ROIs");
                let (mut bright, inside) = (0, prepared.inside);
                for (cell, owner) in mask.owners().iter().enumerate() {
                    let (x, y) = (cell % prepared.width, cell / prepared.width);
                    let shown = (inside.left..inside.left + inside.width).contains(&x)
                        && (inside.top..inside.top + inside.height).contains(&y);
                    let value = prepared.image[cell];
                    let what = format!("{geometry:?}, {tiles:?}, {part:?}: cell {x},{y} is {value}");
                    match value {
                        _ if !shown => assert_eq!(*owner, 0, "a bar: {what}"),
                        value if value > 0.1 => assert_eq!(*owner, 1, "{what}"),
                        // The innermost cell of a corner shows a quarter of the white.
                        value if value < -0.6 => assert_eq!(*owner, 0, "{what}"),
                        _ => (),
                    }
                    bright += usize::from(shown && value > 0.1);
                }
                assert!(bright > 100, "{geometry:?}, {tiles:?}: {bright}");
            }
        }
    }
}

#[test]
fn a_polygon_that_only_the_frame_shows_to_be_too_small_is_a_fault_with_words() {
    // A hundredth of the frame: half a cell of a letterbox of 64 cells for the height of 100 of 200 pixels.
    let low = roi("slit", RoiMode::Include, &[[0.1, 0.5], [0.9, 0.5], [0.9, 0.501], [0.1, 0.501]]);
    let error = prepare_for(&recipe(Roi::FULL, vec![low]), &boxed(), &spec(Geometry::Letterbox, None)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("'slit'") && text.contains("covers no cell"), "{text}");
}

/// `cargo test cost_of_rois -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn cost_of_rois() {
    for (width, height) in [(288, 224), (1600, 1600)] {
        let polygon: Vec<[f64; 2]> = (0..24)
            .map(|k| std::f64::consts::TAU * f64::from(k) / 24.0)
            .map(|angle| [0.5 + 0.45 * angle.cos(), 0.5 + 0.45 * angle.sin()])
            .collect();
        let list = vec![
            roi("part", RoiMode::Include, &polygon),
            PolygonRoi {
                threshold: Some(2.0),
                ..roi("dull", RoiMode::Include, &[[0.2, 0.4], [0.4, 0.4], [0.4, 0.6], [0.2, 0.6]])
            },
            roi("hole", RoiMode::Exclude, &[[0.6, 0.4], [0.8, 0.4], [0.8, 0.6], [0.6, 0.6]]),
        ];
        let rois = Rois::new(list, &Roi::FULL).unwrap();
        let values = (0..width * height).map(|cell| ((cell * 7919) % 1000) as f32 * 1e-3).collect();
        let map = AnomalyMap { width, height, values };
        let pooling = Pooling::TopFraction { fraction: 0.005 };
        let time = |what: &str, work: &mut dyn FnMut()| {
            let started = Instant::now();
            (0..20).for_each(|_| work());
            println!("{width}x{height} {what:<32} {:.3} ms", started.elapsed().as_secs_f64() * 1e3 / 20.0);
        };
        let placement = Placement::of_crop(&Roi::FULL, (width, height));
        let mask = rois.mask(&placement).unwrap().unwrap();
        time("mask anew", &mut || drop(rois.clone().mask(&placement)));
        time("mask again", &mut || drop(rois.mask(&placement)));
        time("score, no ROIs", &mut || {
            std::hint::black_box(pooling.pool(&map));
        });
        time("score, masked and weighed", &mut || {
            std::hint::black_box((pooling.pool(&mask.masked(&map)), pooling.pool(&mask.weighed(&map))));
        });
        time("regions, no ROIs", &mut || drop(map.regions(0.9995)));
        time("regions, ROIs", &mut || drop(mask.regions(&map, 0.9995, 16)));
    }
}
