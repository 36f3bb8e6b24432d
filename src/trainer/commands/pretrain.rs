//! `trainer pretrain`: networks that know pictures in general, from procedural pictures only.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::model::profile::Profile;
use crate::trainer::backbone;
use crate::trainer::base::PART_NAMES;
use crate::trainer::config::TrainConfig;
use crate::trainer::pretrain::{PretrainRequest, pretrain};

/// Arguments of `trainer pretrain`.
#[derive(Debug, clap::Args)]
pub struct PretrainArgs {
    /// The base to make, for `trainer fit --base`; a run that was killed resumes with the same command
    #[arg(long)]
    out: PathBuf,
    /// Size of the networks: edge-small or edge
    #[arg(long, default_value = "edge-small")]
    profile: Profile,
    /// Minutes of training; rendering and the device's warm-up come on top
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// What the file holds: a part that it lacks starts from fresh weights in `fit`. All parts are trained in any case
    #[arg(long, value_delimiter = ',', value_parser = PART_NAMES, default_values = PART_NAMES)]
    parts: Vec<String>,
    /// Procedural products, 8 pictures each; all lie in memory, 0.2 MB a picture at 256x256
    #[arg(long, default_value_t = 256)]
    products: usize,
    /// Forget an unfinished run and start again
    #[arg(long)]
    fresh: bool,
    /// A changed copy of configs/train/PROFILE.toml
    #[arg(long)]
    config: Option<PathBuf>,
    /// The backbone's weights, made by `trainer backbone import`
    #[arg(long)]
    backbone: Option<PathBuf>,
    /// Train this many steps per stage instead of a number of minutes: repeatable on any machine
    #[arg(long)]
    stage_steps: Option<usize>,
    /// One JSON object: the summary
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Arguments out of range, a device or a disk that refuses.
pub fn run(args: &PretrainArgs) -> anyhow::Result<()> {
    ensure!(args.minutes > 0.0 && args.minutes.is_finite(), "--minutes {}: must be above 0", args.minutes);
    ensure!(args.stage_steps != Some(0), "--stage-steps 0: must be at least 1");
    ensure!(args.products > 0, "--products 0: must be at least 1");
    let request = PretrainRequest {
        profile: args.profile,
        config: args.config.as_deref().map_or_else(|| TrainConfig::of(args.profile), TrainConfig::read)?,
        out: args.out.clone(),
        minutes: args.minutes,
        seed: args.seed,
        fresh: args.fresh,
        backbone: backbone::path_or_default(args.backbone.as_deref())?,
        parts: args.parts.clone(),
        products: args.products,
        stage_steps: args.stage_steps,
        command: std::env::args().collect::<Vec<_>>().join(" "),
    };
    let compute = device::open_for_training(args.device)?;
    let made = pretrain(&request, &compute)?;
    if args.json {
        let summary = json!({
            "base": args.out, "bytes": made.bytes, "blake3": made.hash, "parts": args.parts, "steps": made.steps,
            "seconds": made.seconds, "losses": made.losses,
        });
        println!("{summary}");
        return Ok(());
    }
    println!("base    {}, {} bytes, {}", args.out.display(), made.bytes, args.parts.join(" "));
    println!("blake3  {}", made.hash);
    for (stage, name) in PART_NAMES.iter().enumerate() {
        println!("{name}: {} steps in {:.1} s, loss {:.4}", made.steps[stage], made.seconds[stage], made.losses[stage]);
    }
    Ok(())
}
