//! The cameras of a station: where frames come from, what makes them be inspected, and by which recipes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::file::{CameraFile, SourceFile, TriggerFile};
use super::gpio::GpioInput;
use super::problem::{Problem, did_you_mean};
use super::recipe::load_recipe;
use crate::inspection::layout::FourCc;
use crate::inspection::recipe::Recipe;
use crate::inspection::trigger::{Asked, TriggerMode};
use crate::synthetic::Product;

/// Pixels per side of synthetic parts.
const SYNTHETIC_SIZE: u32 = 256;

/// A synthetic product line.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticLine {
    /// The product.
    pub product: Product,
    /// Seed of all parts.
    pub seed: u64,
    /// Parts per second; absent is as fast as they are taken.
    pub fps: Option<f64>,
    /// Share of defective parts, 0 to 1.
    pub defect_rate: f64,
    /// Parts until the line ends; absent is never.
    pub parts: Option<u64>,
    /// Pixels per side.
    pub size: u32,
}

/// Where a camera's frames come from.
#[derive(Debug, Clone, PartialEq)]
pub enum CameraKind {
    /// Pictures of a folder.
    Replay {
        /// The folder.
        folder: PathBuf,
        /// Frames per second; absent is as fast as they are judged.
        fps: Option<f64>,
    },
    /// The procedural product line.
    Synthetic(SyntheticLine),
    /// A camera by V4L2.
    V4l2(V4l2Settings),
    /// A webcam by `nokhwa`.
    Nokhwa(NokhwaSettings),
}

/// A camera by V4L2.
#[derive(Debug, Clone, PartialEq)]
pub struct V4l2Settings {
    /// Its path.
    pub device: PathBuf,
    /// FOURCC; absent is what the camera has, or the first that is read.
    pub format: Option<FourCc>,
    /// Columns and rows; absent is what the camera has.
    pub size: Option<[u32; 2]>,
    /// Pictures a second; absent is what the camera has.
    pub fps: Option<f64>,
    /// Controls by name.
    pub controls: BTreeMap<String, i64>,
    /// Seconds without a picture after which the camera is opened anew; 0 is never.
    pub silence_s: f64,
}

/// A webcam by `nokhwa`.
#[derive(Debug, Clone, PartialEq)]
pub struct NokhwaSettings {
    /// Its number.
    pub index: u32,
    /// FOURCC; absent is the cheapest that the camera offers.
    pub format: Option<FourCc>,
    /// Columns and rows; absent is the first that the camera offers.
    pub size: Option<[u32; 2]>,
    /// Pictures a second; absent is the highest rate.
    pub fps: Option<u32>,
    /// Seconds without a picture after which the camera is lost.
    pub silence_s: f64,
}

/// What `nokhwa` calls by its name on every system.
const NOKHWA_FORMATS: [&[u8; 4]; 5] = [b"YUYV", b"MJPG", b"NV12", b"RGB3", b"BGR3"];

/// A camera and the recipe for its frames.
#[derive(Debug, Clone, PartialEq)]
pub struct CameraSettings {
    /// Name, in every event.
    pub name: String,
    /// Where frames come from.
    pub kind: CameraKind,
    /// The recipes that it knows, each with the path of its bundle; the first one judges.
    pub recipes: Vec<(Recipe, PathBuf)>,
    /// What makes its frames be inspected.
    pub mode: TriggerMode,
    /// The line whose edges are triggers, for a camera that is asked.
    pub trigger_line: Option<GpioInput>,
}

impl CameraSettings {
    /// Whether frames come at their own rate. Only then may one be lost; a source without a rate waits.
    pub fn paced(&self) -> bool {
        match &self.kind {
            CameraKind::Replay { fps, .. } => fps.is_some(),
            CameraKind::Synthetic(line) => line.fps.is_some(),
            CameraKind::V4l2(_) | CameraKind::Nokhwa(_) => true,
        }
    }
}

/// A camera as it is meant; `index` is its place in the station's file.
///
/// # Errors
/// Everything that is wrong with it and its recipes.
pub(super) fn resolve(
    camera: &CameraFile,
    base: &Path,
    path: &Path,
    index: usize,
) -> Result<CameraSettings, Vec<Problem>> {
    let (mut problems, mut problems_of_recipes) = (Vec::new(), Vec::new());
    let key = |name: &str| format!("cameras[{index}].{name}");
    let mut problem = |key: String, message: String| problems.push(Problem { file: path.to_path_buf(), key, message });
    let fps = match &camera.source {
        SourceFile::Replay { fps, .. }
        | SourceFile::Synthetic { fps, .. }
        | SourceFile::V4l2 { fps, .. }
        | SourceFile::Nokhwa { fps, .. } => *fps,
    };
    if fps.is_some_and(|fps| !(fps > 0.0 && fps <= 1000.0)) {
        problem(key("source.fps"), format!("{}: must be above 0 and at most 1000", fps.unwrap_or_default()));
    }
    let kind = match &camera.source {
        SourceFile::Replay { folder, fps } => Some(CameraKind::Replay { folder: base.join(folder), fps: *fps }),
        SourceFile::V4l2 { device, format, size, fps, controls, silence_s } => {
            if !(0.0..=3600.0).contains(silence_s) {
                problem(key("source.silence_s"), format!("{silence_s}: must be 0 (never) to 3600"));
            }
            if size.is_some_and(|size| size.contains(&0)) {
                problem(key("source.size"), "must be columns and rows, as [1280, 1024]".into());
            }
            Some(CameraKind::V4l2(V4l2Settings {
                device: base.join(device),
                format: *format,
                size: *size,
                fps: *fps,
                controls: controls.clone(),
                silence_s: *silence_s,
            }))
        }
        SourceFile::Nokhwa { index, format, size, fps, silence_s } => {
            if !(1.0..=3600.0).contains(silence_s) {
                let why = "nokhwa has no time-out of its own, and a webcam no trigger";
                problem(key("source.silence_s"), format!("{silence_s}: must be 1 to 3600; {why}"));
            }
            if size.is_some_and(|size| size.contains(&0)) {
                problem(key("source.size"), "must be columns and rows, as [640, 480]".into());
            }
            if let Some(format) = format.filter(|format| !NOKHWA_FORMATS.contains(&&format.0)) {
                let names = NOKHWA_FORMATS.map(|code| FourCc(*code).to_string()).join(", ");
                let remedy = "kind = \"v4l2\" reads it";
                problem(key("source.format"), format!("nokhwa does not read {format}, only {names}; {remedy}"));
            }
            if fps.is_some_and(|fps| fps.fract() != 0.0) {
                problem(key("source.fps"), format!("{}: nokhwa knows whole rates only", fps.unwrap_or_default()));
            }
            Some(CameraKind::Nokhwa(NokhwaSettings {
                index: *index,
                format: *format,
                size: *size,
                fps: fps.map(|fps| fps as u32),
                silence_s: *silence_s,
            }))
        }
        SourceFile::Synthetic { product, seed, fps, defect_rate, parts } => {
            if !(0.0..=1.0).contains(defect_rate) {
                problem(key("source.defect_rate"), format!("{defect_rate}: must be 0 to 1"));
            }
            let known = Product::ALL.into_iter().find(|known| known.name() == product);
            if known.is_none() {
                let names = Product::ALL.map(Product::name);
                let hint = did_you_mean(product, names.into_iter());
                problem(key("source.product"), format!("'{product}' is none of {}{hint}", names.join(", ")));
            }
            known.map(|product| {
                CameraKind::Synthetic(SyntheticLine {
                    product,
                    seed: *seed,
                    fps: *fps,
                    defect_rate: *defect_rate,
                    parts: *parts,
                    size: SYNTHETIC_SIZE,
                })
            })
        }
    };
    let mode = trigger(&camera.trigger, &mut |name, message| problem(key(name), message));
    let trigger_line = camera.trigger.input().cloned();
    let mut recipes: Vec<(Recipe, PathBuf)> = Vec::new();
    for file in [&camera.recipe].into_iter().chain(&camera.more_recipes) {
        match load_recipe(&base.join(file)) {
            Ok((recipe, _)) if recipes.iter().any(|(known, _)| known.id == recipe.id) => {
                let message = format!("'{}' is the id of two recipes of this camera", recipe.id.0);
                problem(key("more_recipes"), message);
            }
            Ok((recipe, _)) if !recipe.controls.is_empty() && !matches!(kind, Some(CameraKind::V4l2(_)) | None) => {
                problem(key("recipe"), format!("'{}' sets controls, and this camera has none", recipe.id.0));
            }
            Ok(recipe) => recipes.push(recipe),
            Err(found) => problems_of_recipes.extend(found),
        }
    }
    problems.extend(problems_of_recipes);
    if let Some(CameraKind::V4l2(source)) = &kind {
        // One that only some products set would stay as it was for the others.
        let names = recipes.iter().flat_map(|(recipe, _)| recipe.controls.keys());
        let names: BTreeSet<&String> = names.filter(|name| !source.controls.contains_key(*name)).collect();
        for name in names {
            if let Some((recipe, _)) = recipes.iter().find(|(recipe, _)| !recipe.controls.contains_key(name)) {
                let remedy =
                    format!("recipe '{}' does not set '{name}', which another does; set it there or here", recipe.id.0);
                problems.push(Problem { file: path.to_path_buf(), key: key("source.controls"), message: remedy });
            }
        }
    }
    for (recipe, _) in &recipes {
        let id = &recipe.id.0;
        if mode.is_triggered() && recipe.line.fail_if.of > 1 {
            let why = "a camera with triggers gives one frame a part";
            problems.push(Problem {
                file: path.to_path_buf(),
                key: key("recipe"),
                message: format!("'{id}' has fail_if over several frames, and {why}"),
            });
        }
        if let (TriggerMode::Asked(asked), Some(deadline)) = (mode, recipe.deadline_ms)
            && deadline.saturating_mul(1_000_000) <= asked.delay_nanos
        {
            let message =
                format!("'{id}' has its deadline before the part is there: deadline_ms counts from the trigger");
            problems.push(Problem { file: path.to_path_buf(), key: key("recipe"), message });
        }
    }
    if matches!(kind, Some(CameraKind::Nokhwa(_)))
        && matches!(camera.trigger, TriggerFile::Line | TriggerFile::Gpio { .. })
    {
        let message = "nokhwa tells no time of a frame, and is not meant for a line; take kind = \"v4l2\"".to_owned();
        problems.push(Problem { file: path.to_path_buf(), key: key("trigger"), message });
    }
    match kind {
        Some(kind) if problems.is_empty() => {
            Ok(CameraSettings { name: camera.name.clone(), kind, recipes, mode, trigger_line })
        }
        _ => Err(problems),
    }
}

/// What makes frames be inspected.
fn trigger(file: &TriggerFile, problem: &mut impl FnMut(&str, String)) -> TriggerMode {
    let mut nanos = |key: &str, millis: f64, most: f64| {
        if !(0.0..=most).contains(&millis) {
            problem(key, format!("{millis}: must be 0 to {most}"));
        }
        (millis * 1e6) as u64
    };
    match file {
        TriggerFile::Free => TriggerMode::Free,
        TriggerFile::Line => TriggerMode::Line,
        TriggerFile::Network { delay_ms, debounce_ms, wait_ms } => TriggerMode::Asked(Asked {
            delay_nanos: nanos("trigger.delay_ms", *delay_ms, 60_000.0),
            debounce_nanos: nanos("trigger.debounce_ms", *debounce_ms, 10_000.0),
            patience_nanos: nanos("trigger.wait_ms", *wait_ms, 60_000.0),
        }),
        // The kernel debounces the line.
        TriggerFile::Gpio { delay_ms, wait_ms, .. } => TriggerMode::Asked(Asked {
            delay_nanos: nanos("trigger.delay_ms", *delay_ms, 60_000.0),
            debounce_nanos: 0,
            patience_nanos: nanos("trigger.wait_ms", *wait_ms, 60_000.0),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::station::{Station, load};
    use super::*;

    const CAMERA: &str = "name = 'top'\nrecipe = 'a.toml'\n";
    const V4L2: &str = "source = { kind = 'v4l2', device = '/dev/video0' }\n";
    const RECIPE: &str = "bundle = 'b'\nsteps = 2\n";

    fn station(camera: &str, recipes: [&str; 2]) -> Result<Station, String> {
        let dir = tempfile::tempdir().expect("directory");
        for (name, text) in ["a", "b"].into_iter().zip(recipes) {
            std::fs::write(dir.path().join(format!("{name}.toml")), format!("id = '{name}'\n{RECIPE}{text}"))
                .expect("writes");
        }
        let text = format!("station = 's'\n[[cameras]]\n{CAMERA}{camera}[outputs]\nevents = 'e'\n");
        std::fs::write(dir.path().join("dsad.toml"), text).expect("writes");
        load(&dir.path().join("dsad.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn triggers_and_more_recipes_are_read() {
        let more = "more_recipes = ['b.toml']\ntrigger = { kind = 'network', delay_ms = 1.5 }\n";
        let line = "deadline_ms = 80\nhold_after = 3\non_fault = 'hold'\n";
        let station = station(&format!("{V4L2}{more}"), [line, ""]).expect("valid");
        let camera = &station.cameras[0];
        let asked = Asked { delay_nanos: 1_500_000, debounce_nanos: 0, patience_nanos: 500_000_000 };
        assert_eq!(camera.mode, TriggerMode::Asked(asked));
        let ids: Vec<&str> = camera.recipes.iter().map(|(recipe, _)| recipe.id.0.as_str()).collect();
        assert_eq!((ids, camera.recipes[0].0.deadline_ms), (vec!["a", "b"], Some(80)));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_key() {
        let more = format!("{V4L2}more_recipes = ['b.toml']\n");
        let cases = [
            (format!("{V4L2}more_recipes = ['a.toml']\n"), ["", ""], "cameras[0].more_recipes: 'a'"),
            (format!("{V4L2}trigger = {{ kind = 'network', wait_ms = -1.0 }}\n"), ["", ""], "trigger.wait_ms: -1"),
            (format!("{V4L2}trigger = {{ kind = 'netwrok' }}\n"), ["", ""], "did you mean 'network'"),
            (more.clone(), ["controls = { gain = 1 }\n", ""], "recipe 'b' does not set 'gain'"),
            (more, ["fail_if = { n = 3, of = 2 }\n", "deadline_ms = 0\n"], "fail_if: n = 3, of = 2"),
            (
                format!("{V4L2}trigger = {{ kind = 'line' }}\n"),
                ["fail_if = { n = 2, of = 3 }\n", ""],
                "one frame a part",
            ),
            (
                format!("{V4L2}trigger = {{ kind = 'network', delay_ms = 90.0 }}\n"),
                ["deadline_ms = 80\n", ""],
                "before the part is there",
            ),
            ("source = { kind = 'nokhwa' }\ntrigger = { kind = 'line' }\n".into(), ["", ""], "not meant for a line"),
            (
                "source = { kind = 'synthetic', product = 'washer' }\n".into(),
                ["controls = { gain = 1 }\n", ""],
                "has none",
            ),
        ];
        for (camera, recipes, words) in cases {
            let error = station(&camera, recipes).expect_err("refused");
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
