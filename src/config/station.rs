//! A station as it is meant: validated, with paths resolved against the files that name them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::device::DeviceChoice;
use super::file::{CameraFile, ImagesOf, RecipeFile, SourceFile, StationFile, TriggerFile};
use super::gpio::{self, GpioInput, GpioOutput};
use crate::inspection::detect::ClassId;
use crate::inspection::layout::FourCc;
use crate::inspection::line::LineRules;
use crate::inspection::recipe::{Recipe, RecipeId};
use crate::inspection::trigger::{Asked, TriggerMode};
use crate::synthetic::Product;

/// Pixels per side of synthetic parts.
const SYNTHETIC_SIZE: u32 = 256;

/// One thing that is wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The key, or nothing where the file as a whole is wrong.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.key.is_empty() { "" } else { ": " };
        write!(f, "{}{separator}{}: {}", self.file.display(), self.key, self.message)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

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
            CameraKind::V4l2(_) => true,
        }
    }
}

/// Where inspections go.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSettings {
    /// The file of events.
    pub events: PathBuf,
    /// Size at which it is rotated, bytes.
    pub events_max_bytes: u64,
    /// Folder for drawings.
    pub images: Option<PathBuf>,
    /// Which inspections are drawn.
    pub images_of: ImagesOf,
    /// Lines that tell verdicts to the machine.
    pub gpio: Vec<GpioOutput>,
}

/// A validated station.
#[derive(Debug, Clone, PartialEq)]
pub struct Station {
    /// Name of the station.
    pub name: String,
    /// Name of the line.
    pub line: String,
    /// Where networks run.
    pub device: DeviceChoice,
    /// Folder of public keys.
    pub keys: Option<PathBuf>,
    /// Folder of calibrations that were made here.
    pub calibrations: Option<PathBuf>,
    /// Milliseconds that a stop may take.
    pub shutdown_timeout_ms: u64,
    /// The cameras, at least one.
    pub cameras: Vec<CameraSettings>,
    /// The outputs.
    pub outputs: OutputSettings,
    /// Where the HTTP service listens; absent is no service.
    pub http: Option<SocketAddr>,
    /// Where commands are taken by TCP; absent is nowhere.
    pub tcp: Option<SocketAddr>,
}

/// Reads a station with its recipes.
///
/// # Errors
/// Everything that is wrong, at once as far as the files can be read.
pub fn load(path: &Path) -> Result<Station, ConfigError> {
    let file: StationFile = read(path).map_err(|problem| ConfigError(vec![problem]))?;
    let base = path.parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    let mut problem = |key: String, message: String| {
        problems.push(Problem { file: path.to_path_buf(), key, message });
    };
    if file.station.is_empty() {
        problem("station".into(), "is empty; give the station a name".into());
    }
    if file.cameras.is_empty() {
        problem("cameras".into(), "is empty; add at least one [[cameras]]".into());
    }
    let mut names = BTreeSet::new();
    for (index, camera) in file.cameras.iter().enumerate() {
        if !names.insert(camera.name.as_str()) {
            problem(format!("cameras[{index}].name"), format!("'{}' is used twice", camera.name));
        }
    }
    if !(1..=4096).contains(&file.outputs.events_max_mib) {
        problem("outputs.events_max_mib".into(), format!("{}: must be 1 to 4096", file.outputs.events_max_mib));
    }
    let mut address = |key: &str, text: &str| match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let remedy = "is no address with a port, such as 127.0.0.1:8080 or, for the whole network, 0.0.0.0:8080";
            problem(key.into(), format!("'{text}' {remedy}"));
            None
        }
    };
    let http = file.http.as_ref().and_then(|http| address("http.listen", &http.listen));
    let tcp = file.tcp.as_ref().and_then(|tcp| address("tcp.listen", &tcp.listen));
    if file.tcp.is_some() && tcp == http && tcp.is_some() {
        problem("tcp.listen".into(), "is the address of [http] already; take another port".into());
    }
    for (key, message) in gpio::problems(&file) {
        problem(key, message);
    }
    let mut cameras = Vec::new();
    for (index, camera) in file.cameras.iter().enumerate() {
        match resolve(camera, base, path, index) {
            Ok(settings) => cameras.push(settings),
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    Ok(Station {
        name: file.station,
        line: file.line,
        device: file.device,
        keys: file.keys.map(|keys| base.join(keys)),
        calibrations: file.calibrations.map(|folder| base.join(folder)),
        shutdown_timeout_ms: file.shutdown_timeout_ms,
        cameras,
        outputs: OutputSettings {
            events: base.join(file.outputs.events),
            events_max_bytes: file.outputs.events_max_mib << 20,
            images: file.outputs.images.map(|images| base.join(images)),
            images_of: file.outputs.images_of,
            gpio: file.outputs.gpio,
        },
        http,
        tcp,
    })
}

fn resolve(camera: &CameraFile, base: &Path, path: &Path, index: usize) -> Result<CameraSettings, Vec<Problem>> {
    let (mut problems, mut problems_of_recipes) = (Vec::new(), Vec::new());
    let key = |name: &str| format!("cameras[{index}].{name}");
    let mut problem = |key: String, message: String| problems.push(Problem { file: path.to_path_buf(), key, message });
    let fps = match &camera.source {
        SourceFile::Replay { fps, .. } | SourceFile::Synthetic { fps, .. } | SourceFile::V4l2 { fps, .. } => *fps,
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

/// Reads a recipe: itself, and the path of its bundle.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_recipe(path: &Path) -> Result<(Recipe, PathBuf), Vec<Problem>> {
    let file: RecipeFile = read(path).map_err(|problem| vec![problem])?;
    let base = path.parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    let mut problem = |key: &str, message: String| {
        problems.push(Problem { file: path.to_path_buf(), key: key.into(), message });
    };
    if file.id.is_empty() {
        problem("id", "is empty; give the recipe a name".into());
    }
    if !(0.0..=1.0).contains(&file.sensitivity) {
        problem("sensitivity", format!("{}: must be 0 to 1; 0.5 is the calibrated point", file.sensitivity));
    }
    if let Some(message) = file.roi.problem() {
        problem("roi", message);
    }
    if let Some(message) = file.tiles.and_then(|tiles| tiles.problem()) {
        problem("tiles", message);
    }
    if file.deadline_ms.is_some_and(|deadline| !(1..=600_000).contains(&deadline)) {
        let message = format!("{}: must be 1 to 600000; leave it out for never", file.deadline_ms.unwrap_or_default());
        problem("deadline_ms", message);
    }
    let line = LineRules {
        fail_if: file.fail_if.unwrap_or(LineRules::default().fail_if),
        hold_after: file.hold_after,
        on_fault: file.on_fault,
    };
    if let Some((key, message)) = line.problem() {
        problem(key, message);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let recipe = Recipe {
        id: RecipeId(file.id),
        roi: file.roi,
        class: file.class.map(ClassId),
        steps: file.steps,
        sensitivity: file.sensitivity,
        tiles: file.tiles,
        deadline_ms: file.deadline_ms,
        line,
        controls: file.controls,
    };
    Ok((recipe, base.join(file.bundle)))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    let problem = |message: String| Problem { file: path.to_path_buf(), key: String::new(), message };
    let text = std::fs::read_to_string(path)
        .map_err(|error| problem(format!("cannot be read: {error}; check the path and its permissions")))?;
    toml::from_str(&text).map_err(|error| {
        let message = error.to_string();
        let hint = unknown_key(error.message()).unwrap_or_default();
        problem(format!("{}{hint}", message.trim_end()))
    })
}

/// A suggestion for serde's "unknown field `x`, expected one of `a`, `b`".
fn unknown_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next().filter(|_| message.starts_with("unknown"))?;
    Some(did_you_mean(wrong, quoted))
}

/// ` (did you mean 'x'?)`, or nothing if no known word is close.
pub fn did_you_mean<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> String {
    let best = known.map(|word| (strsim::damerau_levenshtein(wrong, word), word)).min();
    match best {
        Some((distance, word)) if distance <= 1 + wrong.len() / 3 => format!(" (did you mean '{word}'?)"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATION: &str = r#"
        station = "one"
        [[cameras]]
        name = "top"
        recipe = "r.toml"
        source = { kind = "synthetic", product = "washer" }
        [outputs]
        events = "events.ndjson"
    "#;
    const RECIPE: &str = "id = 'r'\nbundle = 'b'\nsteps = 2\n";

    fn load_texts(station: &str, recipe: &str) -> Result<Station, ConfigError> {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("r.toml"), recipe).expect("writes");
        let path = dir.path().join("dsad.toml");
        std::fs::write(&path, station).expect("writes");
        load(&path)
    }

    #[test]
    fn paths_are_relative_to_their_file() {
        let station = load_texts(STATION, RECIPE).expect("valid");
        assert!(station.cameras[0].recipes[0].1.is_absolute() && station.cameras[0].recipes[0].1.ends_with("b"));
        assert!(!station.cameras[0].paced());
    }

    #[test]
    fn a_misspelt_key_is_refused_with_a_suggestion() {
        let error = load_texts(&STATION.replace("events =", "evnts ="), RECIPE).expect_err("refused").to_string();
        assert!(error.contains("did you mean 'events'") && error.contains("dsad.toml"), "{error}");
        let error = load_texts(STATION, &RECIPE.replace("steps", "stps")).expect_err("refused").to_string();
        assert!(error.contains("did you mean 'steps'") && error.contains("r.toml"), "{error}");
        let error = load_texts(&STATION.replace("washer", "wascher"), RECIPE).expect_err("refused").to_string();
        assert!(error.contains("did you mean 'washer'"), "{error}");
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let station = format!("{STATION}[http]\nlisten = 'localhost'");
        let station = station.replace("\"one\"", "\"\"").replace("\"washer\"", "\"washer\", defect_rate = 2.0");
        let recipe = RECIPE.replace("'r'", "''").replace("steps = 2", "steps = 2\nsensitivity = 3.0");
        let ConfigError(problems) = load_texts(&station, &recipe).expect_err("refused");
        let keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["station", "http.listen", "cameras[0].source.defect_rate", "id", "sensitivity"]);
    }
}
