//! `trainer fit`: from a folder of good pictures to a calibrated bundle, in one command.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::model::profile::Profile;
use crate::trainer::backbone;
use crate::trainer::base::{default_path, place};
use crate::trainer::config::TrainConfig;
use crate::trainer::dataset::discover::discover;
use crate::trainer::dataset::survey::survey_and_clean;
use crate::trainer::fit::{FitRequest, fit};

/// Arguments of `trainer fit`.
#[derive(Debug, clap::Args)]
pub struct FitArgs {
    /// A set (it has train/good), a folder of sets, or a flat folder of good pictures
    #[arg(long)]
    data: PathBuf,
    /// The bundle's directory to make; a run that was killed resumes with the same command
    #[arg(long)]
    out: PathBuf,
    /// Size of the networks: edge-small (CPU) or edge (CUDA)
    #[arg(long, default_value = "edge-small")]
    profile: Profile,
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
    /// One JSON object a line; the last is the summary
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
    let mut found = discover(&args.data)?;
    let config = args.config.as_deref().map_or_else(|| TrainConfig::of(args.profile), TrainConfig::read)?;
    let request = FitRequest {
        profile: args.profile,
        config,
        out: args.out.clone(),
        minutes: args.minutes,
        seed: args.seed,
        fresh: args.fresh,
        keep_outliers: args.keep_outliers,
        backbone: backbone::path_or_default(args.backbone.as_deref())?,
        base: base(args),
        stage_steps: args.stage_steps,
        command: std::env::args().collect::<Vec<_>>().join(" "),
    };
    let compute = device::open(args.device)?;
    let mut remarks = Vec::new();
    for set in &mut found.sets {
        remarks.extend(survey_and_clean(set, &mut found.skipped).remarks());
    }
    log::info!(
        "{} on {}x{} pixels (stretched), steps {:?}, {:.1} minutes on {}",
        args.profile,
        request.config.width,
        request.config.height,
        request.config.steps.iter().map(|steps| steps.0).collect::<Vec<_>>(),
        args.minutes,
        args.device
    );
    let result = fit(&found.sets, found.skipped, &remarks, &request, &compute)?;
    let summary = json!({
        "bundle": result.bundle.dir, "report": result.report, "model_hash": result.bundle.model_hash,
        "seconds": result.seconds, "pseudo_image_auroc": result.choice.image_auroc,
        "pseudo_pixel_ap": result.choice.pixel_ap, "calibration": result.calibrated.calibration.entries,
    });
    if args.json {
        println!("{summary}");
    } else {
        println!("bundle  {}", result.bundle.dir.display());
        println!("report  {}", result.report.display());
        println!(
            "pseudo-validation: image AUROC {:.4}, pixel AP {:.4}",
            result.choice.image_auroc, result.choice.pixel_ap
        );
        result.calibrated.print();
    }
    Ok(())
}

/// The file to start from: the one that was asked for, the one that ships, or none.
fn base(args: &FitArgs) -> Option<PathBuf> {
    match &args.base {
        Some(path) if path.as_os_str() == "none" => None,
        Some(path) => Some(path.clone()),
        None => {
            let shipped = default_path(args.profile);
            if shipped.is_none() {
                log::warn!("{} not found: training starts from nothing, and takes longer", place(args.profile));
            }
            shipped
        }
    }
}
