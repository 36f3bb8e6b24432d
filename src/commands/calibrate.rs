//! `dsad calibrate`: thresholds from good parts of this station, false rejects among them. They lie beside the bundle,
//! which stays signed as it is, and can be taken back.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::load::{self, Bundles, in_force, keys};
use crate::bundle::station_calibration::{self, current};
use crate::camera::replay::{Replay, pictures};
use crate::config::device::DeviceChoice;
use crate::inspection::calibration::{CALIBRATED_POINT, Calibration, CalibrationEntry, GoodPart, calibrate};
use crate::inspection::detect::{ClassId, Detector, Plan, StepChoice, StepPlan};
use crate::inspection::frame::{CameraId, FrameSource, Prepared};
use crate::inspection::recipe::Recipe;
use crate::inspection::roi::Roi;
use crate::inspection::tiles::TileGrid;
use crate::inspection::time::{Clock, rfc3339};
use crate::platform::clock::SystemClock;
use crate::preprocess::prepare_for;
use crate::preprocess::spec::PreprocessSpec;

/// Arguments of `dsad calibrate`.
#[derive(Debug, clap::Args)]
pub struct CalibrateArgs {
    /// Pictures of good parts, or folders of them; those that the bundle was calibrated with are kept beside them
    #[arg(required_unless_present = "revert")]
    good: Vec<PathBuf>,
    /// The bundle
    #[arg(long, required_unless_present = "recipe")]
    bundle: Option<PathBuf>,
    /// The recipe that thresholds are for, with its bundle, class, part of the frame, ROIs and tiles
    #[arg(long, conflicts_with_all = ["bundle", "class", "roi", "tiles"])]
    recipe: Option<PathBuf>,
    /// Folder of the station's calibrations: `calibrations` of dsad.toml
    #[arg(long)]
    calibrations: PathBuf,
    /// The false-reject rate to aim at
    #[arg(long, default_value_t = 0.01)]
    alpha: f64,
    /// Leave the good parts behind the present thresholds away: this station shows other pictures
    #[arg(long)]
    alone: bool,
    /// Step counts to calibrate, and auto; default all that the bundle has
    #[arg(long, value_delimiter = ',')]
    steps: Vec<StepChoice>,
    /// Product kind of a multi-class bundle; default is the null class
    #[arg(long)]
    class: Option<String>,
    /// Region of the frame as the recipe has it: x,y,width,height in shares of the frame
    #[arg(long, value_delimiter = ',')]
    roi: Vec<f64>,
    /// How the recipe cuts parts, as 8x8,20; default as the bundle says
    #[arg(long)]
    tiles: Option<TileGrid>,
    /// Take the calibration in force back
    #[arg(long, conflicts_with = "good")]
    revert: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Folder of public keys; with it, an unsigned bundle is refused
    #[arg(long)]
    keys: Option<PathBuf>,
    /// One JSON object a line: one per threshold, the summary last
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A bundle or a picture that cannot be used, or too few good parts for the rate.
pub fn run(args: &CalibrateArgs) -> anyhow::Result<ExitCode> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mut bundles = Bundles::default();
    let written = args.recipe.as_deref().map(load::recipe).transpose()?;
    let dir = written.as_ref().map(|(_, bundle)| bundle).or(args.bundle.as_ref()).context("--bundle is needed")?;
    let index = bundles.open(dir, &keys(args.keys.as_deref())?)?;
    let hash = bundles.get(index).model_hash.clone();
    if args.revert {
        let Some(version) = station_calibration::revert(&args.calibrations, &hash)? else {
            bail!("{}: no calibration of this bundle is in force there", args.calibrations.display());
        };
        let now =
            current(&args.calibrations, &hash)?.map_or("the bundle's".into(), |c| format!("version {}", c.version));
        println!("version {version} is taken back; in force is {now}");
        return Ok(ExitCode::SUCCESS);
    }
    let manifest = bundles.get(index).manifest.clone();
    let recipe = match written {
        Some((recipe, _)) => recipe,
        None => of_flags(args)?,
    };
    let (class, rois) = (recipe.class.as_ref(), recipe.rois.id());
    let rois = rois.as_ref();
    ensure!(
        class.is_none_or(|class| manifest.classes.contains(class)),
        "class: the bundle knows {:?}",
        manifest.classes.iter().map(|class| class.0.as_str()).collect::<Vec<_>>()
    );
    let known = StepChoice::of_listed(&manifest.steps);
    let mut listed = if args.steps.is_empty() { known.clone() } else { args.steps.clone() };
    if let Some(unknown) = listed.iter().find(|steps| !known.contains(steps)) {
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        bail!("--steps {unknown}: the bundle has {}", known.join(", "));
    }
    // Last: it stands on the thresholds of the others.
    listed.sort_by_key(|&steps| steps == StepChoice::Auto);
    let before = in_force(bundles.get(index), Some(&args.calibrations))?;
    let mut files = Vec::new();
    for path in &args.good {
        files.extend(pictures(path).map_err(anyhow::Error::msg)?);
    }
    let spec = PreprocessSpec { tiles: recipe.tiles.or(manifest.preprocess.tiles), ..manifest.preprocess.clone() };
    // One at a time, and again for every step count: a frame that is cut into tiles takes tens of megabytes.
    let read = |file: &PathBuf| -> anyhow::Result<Prepared> {
        let camera = CameraId("file".into());
        let mut replay = Replay::open(camera, file, None, Arc::clone(&clock)).map_err(anyhow::Error::msg)?;
        // Every one was named as a good part: one that cannot be read is an error, not one less.
        let frame = replay.next_frame().map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        prepare_for(&recipe, &frame, &spec).with_context(|| file.display().to_string())
    };
    let mut detectors = bundles.detectors(args.device, Arc::clone(&clock), [], None, |step| log::debug!("{step}"))()
        .map_err(anyhow::Error::msg)?;
    let detector = detectors[index].as_mut();
    let mut made = Calibration { id: String::new(), entries: Vec::new() };
    for steps in listed {
        let old = before.as_ref().and_then(|calibration| calibration.judging(class, steps, rois));
        // Scores of frames that were cut otherwise, or looked at through other ROIs, are of another kind.
        let like = old.filter(|old| old.tiles == spec.tiles && old.rois.as_ref() == rois);
        let min_area = match (old, before.as_ref().and_then(|c| c.entries.first())) {
            (Some(entry), _) | (None, Some(entry)) => entry.min_area,
            (None, None) => bail!("the bundle has no calibration at all; make one with `trainer calibrate`"),
        };
        // With the gates as they will be in force: what was just calibrated, and what stays.
        let in_force = before.as_ref().map_or_else(|| made.clone(), |before| before.replaced_by(&made));
        let gates = |calibration: &Calibration| calibration.gates_through(class, rois, CALIBRATED_POINT);
        let plan = StepPlan::new(steps, || gates(&in_force));
        ensure!(
            plan != StepPlan::Auto(Vec::new()),
            "--steps auto: no step count is calibrated with these ROIs; leave --steps away, or name them too"
        );
        let mut parts = judge(detector, files.iter().map(read), &Plan::new(plan, class.cloned()), min_area)?;
        if !args.alone {
            let (old, new) = (before.as_ref().map(gates).unwrap_or_default(), gates(&in_force));
            let known = like.iter().flat_map(|entry| &entry.good);
            parts.extend(known.map(|part| match steps {
                StepChoice::Fixed(_) => *part,
                StepChoice::Auto => part.regauged(&old, &new),
            }));
        }
        let entry = calibrate(&parts, args.alpha, class.cloned(), steps, min_area)?;
        let entry = CalibrationEntry { tiles: spec.tiles, rois: rois.cloned(), ..entry };
        say(&entry, old, args.json)?;
        made.entries.push(entry);
    }
    // A version holds everything that is in force here: what other recipes were calibrated with stays.
    let here = current(&args.calibrations, &hash)?.map(|here| here.calibration.entries).unwrap_or_default();
    let others = here.into_iter().filter(|entry| (entry.class.as_ref(), entry.rois.as_ref()) != (class, rois));
    made.entries.extend(others);
    let digest = blake3::hash(&serde_json::to_vec(&made.entries)?).to_hex();
    let calibration = Calibration { id: format!("station-{}", &digest[..12]), ..made };
    let names = files.iter().map(|file| file.display().to_string()).collect();
    let path = station_calibration::write(&args.calibrations, &hash, calibration, names, rfc3339(clock.wall_nanos()))?;
    if args.json {
        println!("{}", json!({"calibration": path, "pictures": files.len()}));
    } else {
        println!("{} pictures; in force from the next start: {}", files.len(), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The recipe that the flags describe.
fn of_flags(args: &CalibrateArgs) -> anyhow::Result<Recipe> {
    let roi = match args.roi[..] {
        [] => Roi::FULL,
        [x, y, width, height] => Roi { x, y, width, height },
        _ => bail!("--roi: four numbers are needed, x,y,width,height"),
    };
    if let Some(problem) = roi.problem() {
        bail!("--roi: {problem}");
    }
    let class = args.class.clone().map(ClassId);
    Ok(Recipe { roi, tiles: args.tiles, ..Recipe::whole_frame("calibrate", class, StepChoice::Auto) })
}

fn judge(
    detector: &mut dyn Detector,
    frames: impl Iterator<Item = anyhow::Result<Prepared>>,
    plan: &Plan,
    min_area: u32,
) -> anyhow::Result<Vec<GoodPart>> {
    let mut parts = Vec::new();
    for frame in frames {
        let frame = frame?;
        for detection in detector.detect(std::slice::from_ref(&frame), plan)? {
            let part = GoodPart::of(&detection, frame.light, min_area);
            parts.push(plan.gate(detection.steps).map_or(part, |gate| part.in_units_of(gate)));
        }
    }
    Ok(parts)
}

fn say(entry: &CalibrationEntry, old: Option<&CalibrationEntry>, json: bool) -> anyhow::Result<()> {
    let CalibrationEntry { steps, image_threshold, region_threshold, samples, alpha, alpha_bound, .. } = entry;
    if json {
        println!(
            "{}",
            json!({"class": entry.class, "steps": steps, "image_threshold": image_threshold,
                   "region_threshold": region_threshold, "samples": samples, "alpha": alpha, "alpha_bound": alpha_bound,
                   "before": old.map(|old| old.image_threshold)})
        );
    } else {
        println!(
            "steps {:<4}  image threshold {image_threshold:.4} (was {})  {:.2} % false rejects (bound {:.2} %, {samples} good \
             parts)",
            steps,
            old.map_or("none".into(), |old| format!("{:.4}", old.image_threshold)),
            alpha * 100.0,
            alpha_bound * 100.0
        );
    }
    Ok(())
}
