//! `trainer train`: the guided denoiser learns to redraw good parts.

use anyhow::Context;
use serde_json::json;

use crate::device;
use crate::trainer::paper::config::{RunArgs, TrainFile};
use crate::trainer::paper::data::Material;
use crate::trainer::paper::diffusion::Diffusion;
use crate::trainer::paper::model;
use crate::trainer::paper::run::{best, origin, run as run_task, start};

/// Arguments of `trainer train`.
#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    #[command(flatten)]
    run: RunArgs,
    /// One JSON object: the summary
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A model or data that cannot be used, a device or a disk that refuses.
pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let file: TrainFile = args.run.read()?;
    let (config, task) = (&file.run, &file.diffusion);
    let computes = config.devices.iter().map(|&device| device::open(device)).collect::<Result<Vec<_>, _>>()?;
    let device = &computes[0].device;
    let from = origin(config)?;
    let sizes = model::read_config(&from)?;
    let spec = model::preprocess(&sizes, config.width, config.height);
    let material = Material::read(&config.data, &spec, config.hold_out)?;
    let request = json!({
        "verb": "train", "width": config.width, "height": config.height, "batch": config.batch,
        "accumulate": config.accumulate, "seed": config.seed, "hold_out": config.hold_out, "diffusion": task,
        "pictures": material.fingerprint(),
    });
    let (from, state) = start(config, request, model::fingerprint)?;
    let (sizes, network) = model::read(&from, device)?;
    let (diffusion, part) = Diffusion::new(&sizes, network, config, task, &material, &spec, device)?;
    let others: Vec<Diffusion<'_>> = computes[1..].iter().map(|other| diffusion.on(&other.device)).collect();
    let tasks: Vec<Diffusion<'_>> = std::iter::once(diffusion).chain(others).collect();
    let state = run_task(&tasks, part, &from, state, config)?;
    let (step, value) = state.best().context("the last step is validated")?;
    let model = best(&config.out)?;
    if args.json {
        println!(
            "{}",
            json!({"steps": state.step, "seconds": state.seconds, "best_step": step, "pseudo_validation": value,
                   "model": model, "losses": state.losses, "validations": state.validations})
        );
    } else {
        println!("steps        {} in {:.0} s", state.step, state.seconds);
        println!("best         step {step}, pseudo-validation {value:.4} of 1.5");
        println!("model        {}", model.display());
    }
    Ok(())
}
