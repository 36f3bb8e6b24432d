//! What differs between the configuration that runs and the one that is written, and what of it a running station takes.
//!
//! What judges or acts is taken from the next part on; what was opened, loaded or proved at the start needs a restart. A key that
//! is not listed here needs one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::Value;

use super::record::ArchiveFile;
use super::station::Station;
use crate::inspection::recipe::Recipe;

/// Keys of `dsad.toml` that a running station takes.
const LIVE: [&str; 6] =
    ["archive.days", "archive.max_gib", "archive.min_free_gib", "archive.near", "archive.passes", "log"];
/// Keys of a recipe that it takes,
const LIVE_OF_RECIPE: [&str; 3] = ["hold_after", "on_fault", "sensitivity"];
/// those that it takes where the cameras of the recipe stay as they are, by which they were checked,
const LIVE_WITH_CAMERA: [&str; 3] = ["controls", "deadline_ms", "fail_if"];
/// and the one that it takes where nothing moves that polygons lie on.
const LIVE_WITH_GEOMETRY: &str = "rois";
/// What polygons lie on.
const GEOMETRY: [&str; 3] = ["bundle", "roi", "tiles"];
/// Parts of the names of keys whose values nobody may read.
const SECRETS: [&str; 3] = ["password", "secret", "token"];

/// A value that may change while the station runs; whoever acts by it looks each time.
#[derive(Debug, Default)]
pub struct Setting<T>(Mutex<T>);

impl<T: Copy> Setting<T> {
    /// As it is now.
    pub fn get(&self) -> T {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on.
    pub fn set(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<T> From<T> for Setting<T> {
    fn from(value: T) -> Self {
        Self(Mutex::new(value))
    }
}

/// One key that is written otherwise than it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub file: PathBuf,
    /// The key.
    pub key: String,
    /// What runs; nothing where there is nothing.
    pub old: Option<String>,
    /// What is written.
    pub new: Option<String>,
    /// Whether a running station takes it.
    pub live: bool,
}

/// What differs between the station that runs and the one that is written, file by file and key by key.
pub fn changes(running: &Station, written: &Station) -> Vec<Change> {
    let mut found = differences(&running.path, &tree(&running.file), &tree(&written.file));
    found.iter_mut().for_each(|change| change.live = LIVE.contains(&change.key.as_str()));
    let (old, new) = (recipes(running), recipes(written));
    // Those that only one of them names came or went with a key of the station.
    for (file, old) in &old {
        let Some(new) = new.get(file) else { continue };
        let mut of_recipe = differences(file, &old.tree(), &new.tree());
        let heads: BTreeSet<String> = of_recipe.iter().map(|change| head(&change.key).to_owned()).collect();
        let moved = GEOMETRY.iter().any(|key| heads.contains(*key));
        let same_cameras = same_cameras(running, written, file);
        for change in &mut of_recipe {
            let head = head(&change.key);
            change.live = LIVE_OF_RECIPE.contains(&head)
                || LIVE_WITH_CAMERA.contains(&head) && same_cameras
                || head == LIVE_WITH_GEOMETRY && !moved;
        }
        found.extend(of_recipe);
    }
    found
}

/// Takes into `running` what is live of `changes`, as it is in `written`.
pub fn adopt(running: &mut Station, written: &Station, changes: &[Change]) {
    let new = recipes(written);
    for change in changes.iter().filter(|change| change.live) {
        if change.file == running.path {
            match head(&change.key) {
                "archive" => take_limits(running, written),
                "log" => (running.log, running.file.log) = (written.log, written.file.log),
                _ => {}
            }
            continue;
        }
        let Some(Written { recipe: from, .. }) = new.get(&change.file) else { continue };
        let files = recipe_files(running);
        let all = running.cameras.iter_mut().flat_map(|camera| &mut camera.recipes);
        for ((recipe, _), file) in all.zip(files.into_iter().flatten()) {
            if file == change.file {
                take(recipe, from, head(&change.key));
            }
        }
    }
}

fn take_limits(running: &mut Station, written: &Station) {
    if let (Some(runs), Some(is)) = (&mut running.archive, &written.archive) {
        runs.limits = is.limits;
    }
    if let (Some(runs), Some(is)) = (&mut running.file.archive, &written.file.archive) {
        *runs = ArchiveFile { folder: runs.folder.clone(), ..is.clone() };
    }
}

fn take(recipe: &mut Recipe, from: &Recipe, key: &str) {
    match key {
        "controls" => recipe.controls = from.controls.clone(),
        "deadline_ms" => recipe.deadline_ms = from.deadline_ms,
        "fail_if" => recipe.line.fail_if = from.line.fail_if,
        "hold_after" => recipe.line.hold_after = from.line.hold_after,
        "on_fault" => recipe.line.on_fault = from.line.on_fault,
        "rois" => recipe.rois = from.rois.clone(),
        "sensitivity" => recipe.sensitivity = from.sensitivity,
        _ => {}
    }
}

/// A recipe with its bundle.
struct Written<'a> {
    recipe: &'a Recipe,
    bundle: &'a Path,
}

impl Written<'_> {
    fn tree(&self) -> Value {
        let mut tree = tree(self.recipe);
        tree["bundle"] = self.bundle.display().to_string().into();
        tree
    }
}

/// The recipes of a station by their files.
fn recipes(station: &Station) -> BTreeMap<PathBuf, Written<'_>> {
    let all = station.cameras.iter().flat_map(|camera| &camera.recipes);
    let of = |(recipe, bundle)| Written { recipe, bundle };
    recipe_files(station)
        .into_iter()
        .flatten()
        .zip(all.map(|(recipe, bundle)| of((recipe, bundle.as_path()))))
        .collect()
}

/// The files of every camera's recipes, in order.
fn recipe_files(station: &Station) -> Vec<Vec<PathBuf>> {
    let base = station.path.parent().unwrap_or(Path::new(""));
    let of = |camera: &super::file::CameraFile| {
        [&camera.recipe].into_iter().chain(&camera.more_recipes).map(|file| base.join(file)).collect()
    };
    station.file.cameras.iter().map(of).collect()
}

/// Whether the cameras that know the recipe of a file are written as they run.
fn same_cameras(running: &Station, written: &Station, file: &Path) -> bool {
    let of = |station: &Station| -> Vec<Value> {
        let cameras = station.file.cameras.iter().zip(recipe_files(station));
        cameras.filter(|(_, files)| files.iter().any(|known| known == file)).map(|(camera, _)| tree(camera)).collect()
    };
    of(running) == of(written)
}

fn tree(of: &impl Serialize) -> Value {
    // Texts, numbers and maps with texts as keys are always JSON.
    serde_json::to_value(of).unwrap_or_default()
}

/// The first part of a key.
fn head(key: &str) -> &str {
    key.split(['.', '[']).next().unwrap_or_default()
}

fn differences(file: &Path, old: &Value, new: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare(String::new(), Some(old), Some(new), &mut |key, old, new| {
        // The name of a file is none.
        let is_secret = |last: &str| !last.ends_with("_file") && SECRETS.iter().any(|word| last.contains(word));
        // An address of a webhook often is one.
        let secret = key == "webhook.url" || key.rsplit('.').next().is_some_and(is_secret);
        let text = |value: Option<&Value>| value.map(|value| if secret { "***".into() } else { value.to_string() });
        found.push(Change { file: file.to_path_buf(), key, old: text(old), new: text(new), live: false });
    });
    found
}

/// Tells every key whose value differs. Lists of tables are compared one by one, other lists as a whole.
fn compare(
    key: String,
    old: Option<&Value>,
    new: Option<&Value>,
    told: &mut impl FnMut(String, Option<&Value>, Option<&Value>),
) {
    let there = |value: Option<&Value>| value.is_some_and(|value| !value.is_null());
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                compare(below, old.get(name), new.get(name), told);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new)))
            if old.iter().chain(new).all(Value::is_object) && !(old.is_empty() && new.is_empty()) =>
        {
            for index in 0..old.len().max(new.len()) {
                compare(format!("{key}[{index}]"), old.get(index), new.get(index), told);
            }
        }
        _ if !there(old) && !there(new) => {}
        _ if old == new => {}
        _ => told(key, old.filter(|value| !value.is_null()), new.filter(|value| !value.is_null())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::station::load;
    use super::*;

    const STATION: &str = "station = 's'\n[[cameras]]\nname = 'top'\nrecipe = 'a.toml'\nmore_recipes = ['b.toml']\n\
        source = { kind = 'v4l2', device = '/dev/video0', controls = { gain = 1 } }\n\
        trigger = { kind = 'network' }\n[outputs]\nevents = 'e'\n[archive]\nfolder = 'f'\n";
    const RECIPE: &str = "bundle = 'b'\nsteps = 2\nroi = { x = 0.0, y = 0.0, width = 1.0, height = 1.0 }\n";

    fn station(dir: &Path, station: &str, [a, b]: [&str; 2]) -> Station {
        for (name, text) in [("a", a), ("b", b)] {
            std::fs::write(dir.join(format!("{name}.toml")), format!("id = '{name}'\n{text}")).expect("writes");
        }
        std::fs::write(dir.join("dsad.toml"), station).expect("writes");
        load(&dir.join("dsad.toml")).expect("valid")
    }

    /// Every change as `key: old -> new`, with a star where it is live.
    fn words(changes: &[Change]) -> Vec<String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let star = |live: bool| if live { " *" } else { "" };
        let word = |c: &Change| {
            let file = c.file.file_stem().expect("a name").to_string_lossy();
            format!("{file}: {}: {} -> {}{}", c.key, text(&c.old), text(&c.new), star(c.live))
        };
        changes.iter().map(word).collect()
    }

    #[test]
    fn what_judges_or_acts_is_taken_and_the_rest_waits() {
        let dir = tempfile::tempdir().expect("directory");
        let mut running = station(dir.path(), STATION, [RECIPE, RECIPE]);
        let polygon = "rois = [{ name = 'r', polygon = [[0, 0], [1, 0], [1, 1]] }]\n";
        let line = "sensitivity = 0.7\ndeadline_ms = 90\nhold_after = 2\non_fault = 'hold'\ncontrols = { gain = 3 }\n";
        let a = format!("{line}{polygon}{}", RECIPE.replace("steps = 2", "steps = 4"));
        let text = format!(
            "log = 'debug'\n{}",
            STATION.replace("'e'", "'g'").replace("'f'", "'f'\npasses = 1.0\nmax_gib = 3.0")
        );
        let written = station(dir.path(), &text, [&a, RECIPE]);
        let found = changes(&running, &written);
        let expected = [
            "dsad: archive.max_gib: 20.0 -> 3.0 *",
            "dsad: archive.passes: 0.01 -> 1.0 *",
            "dsad: log: \"info\" -> \"debug\" *",
            "dsad: outputs.events: \"e\" -> \"g\"",
            "a: controls.gain: - -> 3 *",
            "a: deadline_ms: - -> 90 *",
            "a: hold_after: - -> 2 *",
            "a: on_fault: \"reject\" -> \"hold\" *",
            "a: rois[0]: - -> {\"name\":\"r\",\"polygon\":[[0.0,0.0],[1.0,0.0],[1.0,1.0]],\"mode\":\"include\",\
             \"threshold\":null,\"min_area\":null} *",
            "a: sensitivity: 0.5 -> 0.7 *",
            "a: steps: 2 -> 4",
        ];
        assert_eq!(words(&found), expected);
        adopt(&mut running, &written, &found);
        // What was taken is no difference any more; what waits still is.
        let rest = changes(&running, &written);
        assert_eq!(words(&rest), [expected[3], expected[10]]);
        assert_eq!(running.archive.as_ref().expect("there").limits.passes, 1.0);
        let (recipe, _) = &running.cameras[0].recipes[0];
        assert_eq!((recipe.sensitivity, recipe.deadline_ms, recipe.rois.id().is_some()), (0.7, Some(90), true));
        assert_eq!(recipe.steps.to_string(), "2");
        assert_eq!(running.cameras[0].recipes[1].0.sensitivity, 0.5, "another file");
        assert!(changes(&written, &written).is_empty());
    }

    #[test]
    fn what_was_checked_together_is_taken_together() {
        let dir = tempfile::tempdir().expect("directory");
        let running = station(dir.path(), STATION, [RECIPE, RECIPE]);
        let moved = RECIPE.replace("width = 1.0", "width = 0.5");
        let polygon = "rois = [{ name = 'r', polygon = [[0, 0], [0.4, 0], [0.4, 1]] }]\n";
        let written = station(dir.path(), STATION, [&format!("{polygon}{moved}"), RECIPE]);
        let live: Vec<(String, bool)> = changes(&running, &written).into_iter().map(|c| (c.key, c.live)).collect();
        assert_eq!(live, [("roi.width".to_owned(), false), ("rois[0]".to_owned(), false)]);
        let other = STATION.replace("video0", "video1").replace("'b.toml'", "'b.toml', 'b2.toml'");
        std::fs::write(dir.path().join("b2.toml"), format!("id = 'b2'\n{RECIPE}")).expect("writes");
        let late = format!("sensitivity = 0.9\ndeadline_ms = 9\n{RECIPE}");
        let written = station(dir.path(), &other, [&late, RECIPE]);
        let live: Vec<(String, bool)> = changes(&running, &written).into_iter().map(|c| (c.key, c.live)).collect();
        let keys = [
            ("cameras[0].more_recipes", false),
            ("cameras[0].source.device", false),
            ("deadline_ms", false),
            ("sensitivity", true),
        ];
        assert_eq!(live, keys.map(|(key, live)| (key.to_owned(), live)));
    }

    #[test]
    fn nobody_reads_a_secret() {
        let mqtt = |text: &str| serde_json::json!({"mqtt": {"password": text, "password_file": text}});
        let found = differences(Path::new("f"), &mqtt("a"), &mqtt("b"));
        assert_eq!(words(&found), ["f: mqtt.password: *** -> ***", "f: mqtt.password_file: \"a\" -> \"b\""]);
    }
}
