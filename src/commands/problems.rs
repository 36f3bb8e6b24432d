//! Everything for which a configuration is refused, at once: `dsad run` ends with the first, or stays up in safe mode and tells all.

use std::path::Path;

use super::load::{Bundles, keys};
use crate::bundle::WEIGHTS;
use crate::camera::replay;
use crate::config::camera::CameraKind;
use crate::config::station::{Station, load};

/// A station that can be run, or what is wrong with it.
///
/// # Errors
/// Every problem of the files, or if they are in order every problem of keys, bundles, recipes and folders of pictures.
pub fn examine(config: &Path) -> Result<Station, Vec<String>> {
    let station = load(config).map_err(|error| error.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let problems = of_contents(&station);
    if problems.is_empty() { Ok(station) } else { Err(problems) }
}

/// What is wrong with what the files name.
fn of_contents(station: &Station) -> Vec<String> {
    let keys = match keys(station.keys.as_deref()) {
        Ok(keys) => keys,
        Err(error) => return vec![format!("{error:#}")],
    };
    let mut problems = Vec::new();
    let mut bundles = Bundles::default();
    for camera in &station.cameras {
        if let CameraKind::Replay { folder, .. } = &camera.kind {
            problems.extend(replay::pictures(folder).err());
        }
        for (recipe, dir) in &camera.recipes {
            let job = bundles.open(dir, &keys).and_then(|index| {
                bundles.get(index).tensors(WEIGHTS)?;
                bundles.job(index, recipe.clone(), station.device, station.calibrations.as_deref())
            });
            problems.extend(job.err().map(|error| format!("{error:#}")));
        }
    }
    if station.challenge_min.is_some() && problems.is_empty() {
        let golden = bundles.golden_parts(station.calibrations.as_deref());
        problems.extend(golden.err().map(|error| format!("{error:#}")));
    }
    let mut seen = std::collections::HashSet::new();
    problems.retain(|problem| seen.insert(problem.clone()));
    problems
}
