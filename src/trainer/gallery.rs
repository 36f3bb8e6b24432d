//! Five pictures for every judged one: `NAME-input`, `-reconstruction` (through the autoencoder alone), `-samples` (redrawn
//! by guided diffusion), `-features` (how far the features of both are apart) and `-heatmap`.

use std::path::Path;

use anyhow::Context;

use super::dataset::Set;
use super::evaluate::Judged;
use super::judge::Rules;
use super::pictures::prepare_file;
use crate::detector::{DiffusionDetector, Explanation};
use crate::preprocess::to_rgb;
use crate::render::encode::{png, png_grey};
use crate::render::heat::overlay;

/// The map value that gets the hottest colour, in units of the largest on a good picture: good parts stay cool.
const HOTTEST: f32 = 2.0;

/// Writes the pictures of a set under `folder/SET/KIND/`.
///
/// # Errors
/// What the detector or the disk says.
pub fn write(
    set: &Set,
    judged: &[Judged],
    rules: Rules<'_>,
    detector: &DiffusionDetector,
    folder: &Path,
) -> anyhow::Result<()> {
    let plan = rules.plan(set);
    let largest = |good: bool| {
        let values = judged.iter().filter(|j| !(good && j.defective)).map(|j| j.map.max());
        values.reduce(f32::max)
    };
    let full = HOTTEST * largest(true).or_else(|| largest(false)).unwrap_or(1.0).max(f32::MIN_POSITIVE);
    for item in judged {
        let prepared = prepare_file(&item.path, rules.preprocess).map_err(anyhow::Error::msg)?;
        let (width, height) = (prepared.width, prepared.height);
        let Explanation { autoencoded, reconstruction, differences } = detector.explain(&prepared, &plan)?;
        let input = to_rgb(&prepared.image, rules.preprocess.normalisation);
        let top = differences.max().max(full);
        let grey: Vec<u8> = differences.values.iter().map(|value| (value / top * 255.0) as u8).collect();
        let kind = item.path.parent().and_then(Path::file_name).unwrap_or_default();
        let stem = item.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let place = folder.join(&set.name).join(kind);
        std::fs::create_dir_all(&place).with_context(|| format!("{}: cannot be made", place.display()))?;
        for (name, bytes) in [
            ("input", png(&input, width, height)?),
            ("reconstruction", png(&autoencoded, width, height)?),
            ("samples", png(&reconstruction, width, height)?),
            ("features", png_grey(&grey, width, height)?),
            ("heatmap", png(&overlay(&input, &item.map, full), width, height)?),
        ] {
            let path = place.join(format!("{stem}-{name}.png"));
            std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
