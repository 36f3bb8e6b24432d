//! `trainer export`: a trained model of the paper's size becomes a bundle.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::inspection::detect::Steps;
use crate::trainer::paper::config::{GridArgs, parse_device};
use crate::trainer::paper::export::{ExportRequest, export};

/// Arguments of `trainer export`.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// A run of `trainer train` (its best checkpoint is taken), one checkpoint, or a model of `trainer build-model`
    #[arg(long, alias = "resume_path")]
    resume_path: PathBuf,
    /// The data set that it was trained on: the held-out good pictures set the thresholds
    #[arg(long)]
    data: PathBuf,
    /// The bundle's directory to make
    #[arg(long)]
    out: PathBuf,
    /// Denoising steps that the bundle lists and calibrates
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 10])]
    steps: Vec<u32>,
    #[command(flatten)]
    grid: GridArgs,
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
/// A model or data that cannot be used, a device or a disk that refuses.
pub fn run(args: &ExportArgs) -> anyhow::Result<()> {
    ensure!(args.steps.iter().all(|steps| (1..=1000).contains(steps)), "--steps: every count must be 1 to 1000");
    let compute = device::open(args.device)?;
    let listed: Vec<Steps> = args.steps.iter().map(|&steps| Steps(steps)).collect();
    let request = ExportRequest {
        from: &args.resume_path,
        data: &args.data,
        out: &args.out,
        listed: &listed,
        grid: args.grid.asked(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
    };
    let (bundle, calibrated) = export(&request, &compute)?;
    if args.json {
        let entries = &calibrated.calibration.entries;
        println!("{}", json!({"bundle": bundle.dir, "model_hash": bundle.model_hash, "calibration": entries}));
        return Ok(());
    }
    println!("bundle  {}", bundle.dir.display());
    calibrated.print();
    Ok(())
}
