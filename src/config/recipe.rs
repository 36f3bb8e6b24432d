//! A recipe as it is meant.

use std::path::{Path, PathBuf};

use super::file::RecipeFile;
use super::problem::{Problem, read};
use crate::inspection::detect::ClassId;
use crate::inspection::line::LineRules;
use crate::inspection::polygon::Rois;
use crate::inspection::recipe::{Recipe, RecipeId};

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
    if file.number == Some(0) {
        problem("number", "0: must be 1 to 65535; leave it out for none".into());
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
    let rois = Rois::new(file.rois, &file.roi).unwrap_or_else(|found| {
        found.into_iter().for_each(|roi| problem(&roi.key, roi.message));
        Rois::default()
    });
    if !problems.is_empty() {
        return Err(problems);
    }
    let recipe = Recipe {
        id: RecipeId(file.id),
        number: file.number,
        roi: file.roi,
        rois,
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
