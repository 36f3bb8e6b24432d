//! `trainer fit`: from a folder of good pictures to a calibrated bundle, in one command.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::inspection::tiles::TileGrid;
use crate::model::profile::Profile;
use crate::trainer::backbone;
use crate::trainer::base::{default_path, place};
use crate::trainer::config::TrainConfig;
use crate::trainer::dataset::discover::discover;
use crate::trainer::fit::{FitRequest, fit};
use crate::trainer::setup::prepare;

/// Arguments of `trainer fit`.
#[derive(Debug, clap::Args)]
pub struct FitArgs {
    /// A set (it has train/good), a folder of sets, or a flat folder of good pictures
    #[arg(long)]
    data: PathBuf,
    /// Only this set of a folder of sets, by name; may be given several times
    #[arg(long = "set")]
    sets: Vec<String>,
    /// The bundle's directory to make; a run that was killed resumes with the same command
    #[arg(long, required_unless_present = "survey")]
    out: Option<PathBuf>,
    /// Size of the networks: edge-small or edge; by default edge-small on the CPU and edge on CUDA
    #[arg(long)]
    profile: Option<Profile>,
    /// Minutes of training; loading, calibration and the device's warm-up come on top
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Forget an unfinished run and start again
    #[arg(long)]
    fresh: bool,
    /// Train on good pictures that are unlike all the others, too
    #[arg(long)]
    keep_outliers: bool,
    /// Cut parts that are larger than the model's input into tiles: columns x rows, overlap in percent, as 8x8,20
    #[arg(long)]
    tiles: Option<TileGrid>,
    /// A changed copy of configs/train/PROFILE.toml
    #[arg(long)]
    config: Option<PathBuf>,
    /// The backbone's weights, made by `trainer backbone import`
    #[arg(long)]
    backbone: Option<PathBuf>,
    /// Networks to start from, made by `trainer pretrain`; `none` for fresh weights [default: configs/base/PROFILE.safetensors]
    #[arg(long)]
    base: Option<PathBuf>,
    /// Train this many steps per stage instead of a number of minutes: repeatable on any machine
    #[arg(long)]
    stage_steps: Option<usize>,
    /// Look at the data, show what would be chosen, and stop
    #[arg(long)]
    survey: bool,
    /// One JSON object a line: first the data and what was chosen, last the summary
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// No usable data, a device or a disk that refuses.
pub fn run(args: &FitArgs) -> anyhow::Result<()> {
    ensure!(args.minutes > 0.0 && args.minutes.is_finite(), "--minutes {}: must be above 0", args.minutes);
    ensure!(args.stage_steps != Some(0), "--stage-steps 0: must be at least 1");
    let found = discover(&args.data)?.only(&args.sets)?;
    let profile = args.profile.unwrap_or(match args.device {
        DeviceChoice::Cpu => Profile::EdgeSmall,
        DeviceChoice::Cuda(_) => Profile::Edge,
    });
    let config = args.config.as_deref().map_or_else(|| TrainConfig::of(profile), TrainConfig::read)?;
    let request = FitRequest {
        profile,
        config,
        out: args.out.clone().unwrap_or_default(),
        minutes: args.minutes,
        seed: args.seed,
        fresh: args.fresh,
        keep_outliers: args.keep_outliers,
        tiles: args.tiles,
        backbone: backbone::path_or_default(args.backbone.as_deref())?,
        base: base(args, profile),
        stage_steps: args.stage_steps,
        command: std::env::args().collect::<Vec<_>>().join(" "),
    };
    let compute = device::open_for_training(args.device)?;
    let setup = prepare(found, &request, &compute)?;
    if args.json {
        println!("{}", setup.json());
    } else {
        print!("{}", setup.chosen);
    }
    if args.survey {
        return Ok(());
    }
    let result = fit(&setup, &request, &compute)?;
    let summary = json!({
        "bundle": result.bundle.dir, "report": result.report, "model_hash": result.bundle.model_hash,
        "seconds": result.seconds, "total_seconds": result.total_seconds, "pseudo_image_auroc": result.choice.image_auroc,
        "pseudo_pixel_ap": result.choice.pixel_ap, "pseudo_unseen_auroc": result.choice.unseen_auroc,
        "pseudo_families": result.choice.families, "calibration": result.calibrated.calibration.entries,
    });
    if args.json {
        println!("{summary}");
    } else {
        println!("bundle  {}", result.bundle.dir.display());
        println!("report  {}", result.report.display());
        println!(
            "pseudo-validation: image AUROC {:.4} on unseen families, {:.4} on all; pixel AP {:.4}",
            result.choice.unseen_auroc.unwrap_or(f64::NAN),
            result.choice.image_auroc,
            result.choice.pixel_ap
        );
        result.calibrated.print();
    }
    Ok(())
}

/// The file to start from: the one that was asked for, the one that ships, or none.
fn base(args: &FitArgs, profile: Profile) -> Option<PathBuf> {
    match &args.base {
        Some(path) if path.as_os_str() == "none" => None,
        Some(path) => Some(path.clone()),
        None => {
            let shipped = default_path(profile);
            if shipped.is_none() {
                log::warn!("{} not found: training starts from nothing, and takes longer", place(profile));
            }
            shipped
        }
    }
}
