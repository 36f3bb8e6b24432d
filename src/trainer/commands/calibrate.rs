//! `trainer calibrate`: the bundle again with other thresholds, for a stated false-reject rate.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use serde_json::json;

use super::test::cut;
use crate::bundle::Bundle;
use crate::bundle::signature::KeyList;
use crate::config::device::DeviceChoice;
use crate::detector::DiffusionDetector;
use crate::device;
use crate::inspection::detect::ClassId;
use crate::inspection::tiles::TileGrid;
use crate::preprocess::spec::{Normalisation, PreprocessSpec};
use crate::trainer::calibrate::calibrate_bundle;
use crate::trainer::dataset::discover::discover;
use crate::trainer::dataset::survey::survey_and_clean;
use crate::trainer::judge::TrainerClock;
use crate::trainer::paper::config::parse_device;
use crate::trainer::pictures::{Picture, load};

/// Arguments of `trainer calibrate`.
#[derive(Debug, clap::Args)]
pub struct CalibrateArgs {
    /// The bundle
    #[arg(long)]
    bundle: PathBuf,
    /// Good pictures that it was not trained on: a set (its train/good), a folder of sets, or a flat folder
    #[arg(long)]
    data: PathBuf,
    /// The bundle's directory to make; it is not signed
    #[arg(long)]
    out: PathBuf,
    /// The false-reject rate to aim at; refused where the good pictures are too few to show it
    #[arg(long, default_value_t = 0.01)]
    alpha: f64,
    /// Cut pictures otherwise than the bundle says, as 8x8,20
    #[arg(long)]
    tiles: Option<TileGrid>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: DeviceChoice,
    /// One JSON object: the summary
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A bundle or data that cannot be used, or too few pictures for the rate.
pub fn run(args: &CalibrateArgs) -> anyhow::Result<()> {
    ensure!(args.alpha > 0.0 && args.alpha < 1.0, "--alpha {}: must lie between 0 and 1", args.alpha);
    let bundle = Bundle::open(&args.bundle, &KeyList::empty())?;
    let compute = device::open(args.device)?;
    let mut detector = DiffusionDetector::load(&bundle, &compute, TrainerClock::start())?;
    detector.self_test(&bundle, args.device)?;
    let mut manifest = bundle.manifest.clone();
    let mut found = discover(&args.data)?;
    manifest.preprocess = cut(manifest.preprocess, args.tiles);
    let grid = PreprocessSpec { normalisation: Normalisation::SymmetricOne, ..manifest.preprocess.of_a_tile() };
    let mut pictures: Vec<Vec<Picture>> = vec![Vec::new(); manifest.classes.len().max(1)];
    for set in &mut found.sets {
        survey_and_clean(set, &mut found.skipped);
        let class = manifest.classes.iter().position(|class| *class == ClassId(set.name.clone()));
        let index = match (manifest.classes.is_empty(), class) {
            (true, _) => 0,
            (false, Some(index)) => index,
            (false, None) => bail!(
                "{}: the bundle has no class of this name; it knows {:?}",
                set.name,
                manifest.classes.iter().map(|class| class.0.as_str()).collect::<Vec<_>>()
            ),
        };
        pictures[index].extend(load(&set.train, index, &grid, &mut found.skipped));
    }
    for skipped in &found.skipped {
        log::warn!("left out: {}: {}", skipped.path.display(), skipped.reason);
    }
    let classes = manifest.classes.clone();
    let calibrated =
        calibrate_bundle(&mut detector, &pictures, &classes, &manifest.steps, &manifest.preprocess, Some(args.alpha))?;
    if !args.json {
        calibrated.print();
    }
    manifest.calibration = Some(calibrated.calibration);
    if let Some(id) = args.out.file_name() {
        manifest.id = id.to_string_lossy().into_owned();
    }
    manifest.provenance.command = std::env::args().collect::<Vec<_>>().join(" ");
    let names: Vec<String> = manifest.files.keys().cloned().collect();
    let files = names.into_iter().map(|name| Ok((name.clone(), bundle.read(&name)?)));
    let files = files.collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let made = Bundle::create(&args.out, manifest, &files, false)?;
    if args.json {
        let entries = made.manifest.calibration.as_ref().map(|calibration| &calibration.entries);
        println!("{}", json!({"bundle": made.dir, "model_hash": made.model_hash, "calibration": entries}));
    } else {
        println!("bundle  {}", made.dir.display());
    }
    Ok(())
}
