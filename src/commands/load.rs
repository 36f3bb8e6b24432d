//! From bundle directories to jobs and detectors: what every judging verb begins with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};

use crate::bundle::manifest::NumberFormat;
use crate::bundle::signature::KeyList;
use crate::bundle::slots::{self, Slots};
use crate::bundle::{Bundle, station_calibration};
use crate::config::device::DeviceChoice;
use crate::config::problem::ConfigError;
use crate::config::recipe::load_recipe;
use crate::daemon::challenge::GoldenPart;
use crate::daemon::exchange::MakeDetector;
use crate::daemon::job::{Job, fits};
use crate::daemon::pipeline::MakeDetectors;
use crate::detector::{DiffusionDetector, golden};
use crate::device::{self, Compute};
use crate::inspection::audit::{Audit, Deed};
use crate::inspection::calibration::Calibration;
use crate::inspection::detect::{Detector, Plan, StepChoice};
use crate::inspection::recipe::{Recipe, RecipeId};
use crate::inspection::time::Clock;
use crate::preprocess::spec::PreprocessSpec;

/// Bundles by their directory, opened once.
#[derive(Debug, Default)]
pub struct Bundles {
    opened: Vec<Bundle>,
    index: HashMap<PathBuf, usize>,
    /// Folders of two places that bundles were found in.
    places: HashMap<usize, PathBuf>,
}

impl Bundles {
    /// Opens a bundle, or the one in force where two have a place, or finds it open.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn open(&mut self, dir: &Path, keys: &KeyList) -> anyhow::Result<usize> {
        if let Some(index) = self.index.get(dir) {
            return Ok(*index);
        }
        let index = self.insert(Bundle::open(&slots::in_force(dir)?, keys)?);
        self.index.insert(dir.to_path_buf(), index);
        if Slots::are_in(dir) {
            self.places.insert(index, dir.to_path_buf());
        }
        Ok(index)
    }

    /// Takes one that is open already.
    pub fn insert(&mut self, bundle: Bundle) -> usize {
        self.opened.push(bundle);
        self.opened.len() - 1
    }

    /// The same bundles, but loading them marks none as proven and brings none back: for what is no start of the station.
    pub fn unmarked(self) -> Self {
        Self { places: HashMap::new(), ..self }
    }

    /// The bundles' names.
    pub fn ids(&self) -> Vec<String> {
        self.opened.iter().map(|bundle| bundle.manifest.id.clone()).collect()
    }

    /// The bundle at an index.
    pub fn get(&self, index: usize) -> &Bundle {
        &self.opened[index]
    }

    /// Every recipe of a camera with its bundle.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::job`].
    pub fn jobs(
        &mut self,
        recipes: &[(Recipe, PathBuf)],
        keys: &KeyList,
        device: DeviceChoice,
        calibrations: Option<&Path>,
    ) -> anyhow::Result<Vec<Job>> {
        let job = |(recipe, dir): &(Recipe, PathBuf)| {
            let index = self.open(dir, keys)?;
            self.job(index, recipe.clone(), device, calibrations)
        };
        recipes.iter().map(job).collect()
    }

    /// The job of a recipe on one of these bundles.
    ///
    /// # Errors
    /// A step count or a class that the bundle does not know, or a ROI without a cell on its grid: such a recipe would only give
    /// faults.
    ///
    /// `calibrations` is the folder of those that were made on this station.
    pub fn job(
        &self,
        index: usize,
        recipe: Recipe,
        device: DeviceChoice,
        calibrations: Option<&Path>,
    ) -> anyhow::Result<Job> {
        let bundle = self.get(index);
        let manifest = &bundle.manifest;
        let place = bundle.dir.display();
        if let Some(class) = recipe.class.as_ref().filter(|class| !manifest.classes.contains(class)) {
            let known: Vec<&str> = manifest.classes.iter().map(|class| class.0.as_str()).collect();
            bail!("{place}: class '{}' is not known; the bundle knows: {}", class.0, known.join(", "));
        }
        if let StepChoice::Fixed(steps) = recipe.steps
            && !manifest.steps.contains(&steps)
        {
            let listed: Vec<u32> = manifest.steps.iter().map(|steps| steps.0).collect();
            bail!("{place}: steps {}: the bundle lists {listed:?}", steps.0);
        }
        let format = match device {
            DeviceChoice::Cpu => manifest.compute_dtype.cpu,
            DeviceChoice::Cuda(_) => manifest.compute_dtype.cuda,
        };
        let calibration = in_force(bundle, calibrations)?;
        let spec = PreprocessSpec { tiles: recipe.tiles.or(manifest.preprocess.tiles), ..manifest.preprocess.clone() };
        fits(&recipe, &spec).map_err(|problem| anyhow::anyhow!("{place}: {problem}"))?;
        Ok(Job {
            detector: index,
            bundle: manifest.id.clone(),
            model_hash: bundle.model_hash.clone(),
            spec,
            calibration: calibration.map(Arc::new),
            dtype: if format == NumberFormat::F16 { "f16" } else { "f32" }.into(),
            seed: manifest.seed,
            recipe_hash: recipe.hash(),
            recipe,
        })
    }

    /// The golden pictures of all bundles, for challenges.
    ///
    /// # Errors
    /// A bundle without any, or whose files have changed.
    pub fn golden_parts(&self, calibrations: Option<&Path>) -> anyhow::Result<Vec<GoldenPart>> {
        let mut parts = Vec::new();
        for (detector, bundle) in self.opened.iter().enumerate() {
            if bundle.manifest.golden.is_empty() {
                bail!("{}: has no golden picture to challenge it with; leave [challenge] out", bundle.dir.display());
            }
            let calibration = in_force(bundle, calibrations)?.map(Arc::new);
            for listed in &bundle.manifest.golden {
                let (prepared, plan, expected) = golden(bundle, listed)?;
                let (bundle, name) = (bundle.manifest.id.clone(), listed.picture.clone());
                let calibration = calibration.clone();
                parts.push(GoldenPart { detector, bundle, name, prepared, plan, expected, calibration });
            }
        }
        Ok(parts)
    }

    /// Loads a detector for every bundle, proves each with its golden pictures, and does what the recipes of these cameras will ask
    /// for once, when called: the first part must not wait for kernels and recordings to be made. Each step is told as it begins:
    /// the first start on a GPU takes a while. A bundle in one of two places is marked as proven, or the one before it comes back, and
    /// `audit` hears of that.
    pub fn detectors<'a>(
        self,
        choice: DeviceChoice,
        clock: Arc<dyn Clock>,
        cameras: impl IntoIterator<Item = &'a [Job]>,
        audit: Option<Audit>,
        told: impl Fn(&str) + Send + 'static,
    ) -> MakeDetectors {
        let asked = asked(cameras);
        Box::new(move || {
            told(&format!("opening the device {choice}"));
            let compute = device::open(choice).map_err(|error| error.to_string())?;
            let kept = || compute.kernels().map(|store| store.count());
            let before = kept();
            if let Some(before) = before {
                told(&format!(
                    "{before} kernels are kept from earlier starts; what is missing is compiled, which takes a while"
                ));
            }
            let mut detectors: Vec<Box<dyn Detector>> = Vec::with_capacity(self.opened.len());
            for (index, bundle) in self.opened.iter().enumerate() {
                let asked = asked.iter().filter(|asked| asked.detector == index);
                let made = load_proven(bundle, &compute, &clock, asked, &told);
                let Some(place) = self.places.get(&index) else {
                    detectors.push(Box::new(made?));
                    continue;
                };
                match made {
                    Ok(detector) => {
                        detectors.push(Box::new(detector));
                        prove(place);
                    }
                    Err(problem) => {
                        let deed = Deed { who: "station".into(), from: "start".into(), ..Deed::default() };
                        let back = way_back(place, &problem, audit.as_ref(), &deed);
                        return Err(back.map_or(problem.clone(), |text| format!("{problem}\n{text}; start again")));
                    }
                }
            }
            if let Some((before, after)) = before.zip(kept()) {
                log::info!("{} kernels were compiled, {after} are kept now", after.saturating_sub(before));
            }
            Ok(detectors)
        })
    }

    /// Loads the detector of the only bundle, when called, as [`detectors`](Self::detectors) does.
    pub fn detector<'a>(
        self,
        choice: DeviceChoice,
        clock: Arc<dyn Clock>,
        cameras: impl IntoIterator<Item = &'a [Job]>,
    ) -> MakeDetector {
        let asked = asked(cameras);
        Box::new(move || {
            let compute = device::open(choice).map_err(|error| error.to_string())?;
            let bundle = self.opened.first().ok_or("there is no bundle")?;
            let made = load_proven(bundle, &compute, &clock, asked.iter(), &|step| log::info!("{step}"))?;
            Ok(Box::new(made))
        })
    }
}

/// Loads a detector, proves it with its golden pictures, and does once what will be asked of it.
fn load_proven<'a>(
    bundle: &Bundle,
    compute: &Compute,
    clock: &Arc<dyn Clock>,
    asked: impl Iterator<Item = &'a Asked>,
    told: &impl Fn(&str),
) -> Result<DiffusionDetector, String> {
    let id = &bundle.manifest.id;
    told(&format!("loading the bundle '{id}'"));
    let mut detector =
        DiffusionDetector::load(bundle, compute, Arc::clone(clock)).map_err(|error| error.to_string())?;
    told(&format!("bundle '{id}': self-test, {} golden picture(s)", bundle.manifest.golden.len()));
    detector.self_test(bundle, compute.choice).map_err(|error| error.to_string())?;
    for Asked { spec, plan, recipe, cameras, .. } in asked {
        told(&format!("bundle '{id}': warming up for the recipe '{}'", recipe.0));
        detector.warm_up(bundle, spec, plan, *cameras).map_err(|error| error.to_string())?;
    }
    Ok(detector)
}

/// The bundle in force in a folder of two places has judged its golden pictures here. If that cannot be written down it judges all the same.
pub fn prove(place: &Path) {
    let proven = Slots::open(place).and_then(|mut slots| match slots.current() {
        Some((slot, false)) => slots.point(slot, true),
        _ => Ok(()),
    });
    if let Err(error) = proven {
        log::error!("{error}: the bundle is not marked as proven; give the folder to the station's user");
    }
}

/// Puts the bundle in force that was so before one that did not prove itself; says so, if it was not proven before and there is one.
pub fn way_back(place: &Path, problem: &str, audit: Option<&Audit>, deed: &Deed) -> Option<String> {
    let mut slots = Slots::open(place).ok()?;
    let (tried, false) = slots.current()? else { return None };
    let before = slots.before().ok()?;
    let of = place.display().to_string();
    let deed = Deed {
        what: "bundle".into(),
        of: of.clone(),
        old: Some(format!("place {tried}")),
        new: Some(format!("place {before}, the bundle before")),
        refused: Some(problem.to_owned()),
        ..deed.clone()
    };
    if let Some(Err(error)) = audit.map(|audit| audit(deed)) {
        log::error!("{of}: the audit trail does not know of the way back: {error}");
    }
    match slots.point(before, true) {
        Ok(()) => Some(format!("{of}: the bundle before it is in force again, in place {before}")),
        Err(error) => Some(format!("{of}: the bundle before it could not be put in force again: {error}")),
    }
}

/// A recipe and its bundle, for verbs that look at pictures without a station.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn recipe(path: &Path) -> anyhow::Result<(Recipe, PathBuf)> {
    Ok(load_recipe(path).map_err(ConfigError)?)
}

/// What is asked of a detector in the same way, and by how many cameras: so many frames may go through it together.
struct Asked {
    detector: usize,
    spec: PreprocessSpec,
    plan: Plan,
    /// The first recipe that asks for it.
    recipe: RecipeId,
    cameras: usize,
}

/// What these cameras ask for, each thing once: a camera has one recipe at a time, however many of its recipes are alike.
fn asked<'a>(cameras: impl IntoIterator<Item = &'a [Job]>) -> Vec<Asked> {
    let mut all: Vec<Asked> = Vec::new();
    for jobs in cameras {
        let mut counted = Vec::new();
        for job in jobs {
            let plan = job.plan();
            let alike = |asked: &Asked| (asked.detector, &asked.spec, &asked.plan) == (job.detector, &job.spec, &plan);
            let index = all.iter().position(alike).unwrap_or_else(|| {
                let (spec, recipe) = (job.spec.clone(), job.recipe.id.clone());
                all.push(Asked { detector: job.detector, spec, plan: job.plan(), recipe, cameras: 0 });
                all.len() - 1
            });
            if !counted.contains(&index) {
                counted.push(index);
                all[index].cameras += 1;
            }
        }
    }
    all
}

/// The keys of a folder, or none.
///
/// # Errors
/// A folder that cannot be read, or holds no key.
pub fn keys(folder: Option<&Path>) -> anyhow::Result<KeyList> {
    match folder {
        Some(folder) => Ok(KeyList::read(&[folder.to_path_buf()])?),
        None => Ok(KeyList::empty()),
    }
}

/// A random number that names this run of the process.
///
/// # Errors
/// The system has no randomness.
pub fn boot_id() -> anyhow::Result<u64> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("{error}")).context("no randomness")?;
    Ok(bytes.iter().fold(0, |id, byte| id << 8 | u64::from(*byte)))
}

/// The thresholds that judge by a bundle: its own, with those that were made on this station (under `calibrations`) in place
/// of theirs.
///
/// # Errors
/// A calibration of the station that cannot be used.
pub fn in_force(bundle: &Bundle, calibrations: Option<&Path>) -> anyhow::Result<Option<Calibration>> {
    let here = match calibrations {
        Some(folder) => station_calibration::current(folder, &bundle.model_hash)?,
        None => None,
    };
    Ok(match (&bundle.manifest.calibration, here) {
        (Some(shipped), Some(here)) => Some(shipped.replaced_by(&here.calibration)),
        (None, Some(here)) => Some(here.calibration),
        (shipped, None) => shipped.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::detect::Steps;
    use crate::preprocess::spec::{Geometry, Normalisation, SketchPlane};

    fn job(recipe: &str, steps: u32) -> Job {
        Job {
            recipe: Recipe::whole_frame(recipe, None, StepChoice::Fixed(Steps(steps))),
            recipe_hash: "0".into(),
            detector: 0,
            bundle: "b".into(),
            model_hash: "0".into(),
            spec: PreprocessSpec {
                width: 32,
                height: 32,
                geometry: Geometry::Stretch,
                normalisation: Normalisation::SymmetricOne,
                sketch: SketchPlane::None,
                tiles: None,
            },
            calibration: None,
            dtype: "f32".into(),
            seed: 0,
        }
    }

    #[test]
    fn a_camera_counts_once_however_many_of_its_recipes_are_alike() {
        let cameras = [vec![job("a", 1), job("b", 1), job("c", 2)], vec![job("d", 1)]];
        let found = asked(cameras.iter().map(|jobs| &jobs[..]));
        let found: Vec<(&str, usize)> = found.iter().map(|asked| (asked.recipe.0.as_str(), asked.cameras)).collect();
        assert_eq!(found, [("a", 2), ("c", 1)]);
    }
}
