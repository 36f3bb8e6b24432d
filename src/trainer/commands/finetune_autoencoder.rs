//! `trainer finetune-autoencoder`: the autoencoder learns the pictures of a data set.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::json;

use super::build_model::Sizes;
use crate::device;
use crate::preprocess::spec::{Geometry, PreprocessSpec, SketchPlane};
use crate::trainer::backbone;
use crate::trainer::paper::autoencoder::{FIRST_STAGE, Finetune, Perceptual};
use crate::trainer::paper::config::{FinetuneFile, RunArgs};
use crate::trainer::paper::data::Material;
use crate::trainer::paper::lpips::Lpips;
use crate::trainer::paper::model;
use crate::trainer::paper::run::{best, run as run_task, start};

/// Arguments of `trainer finetune-autoencoder`.
#[derive(Debug, clap::Args)]
pub struct FinetuneAutoencoderArgs {
    #[command(flatten)]
    run: RunArgs,
    /// VGG16 of torchvision, for LPIPS
    #[arg(long, requires = "lpips_heads")]
    lpips_trunk: Option<PathBuf>,
    /// The linear heads of LPIPS: vgg.pth
    #[arg(long, requires = "lpips_trunk")]
    lpips_heads: Option<PathBuf>,
    /// Other sizes than the published ones: a JSON file with `model` and `text`
    #[arg(long)]
    sizes: Option<PathBuf>,
    /// One JSON object: the summary
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A checkpoint or data that cannot be used, a device or a disk that refuses.
pub fn run(args: &FinetuneAutoencoderArgs) -> anyhow::Result<()> {
    let mut file: FinetuneFile = args.run.read()?;
    let (config, task) = (&file.run, &mut file.autoencoder);
    if let (Some(trunk), Some(heads)) = (&args.lpips_trunk, &args.lpips_heads) {
        (task.lpips_trunk, task.lpips_heads) = (trunk.clone(), heads.clone());
    }
    let [device] = config.devices[..] else {
        anyhow::bail!("run.devices names {}: the autoencoder is finetuned on one", config.devices.len());
    };
    ensure!(
        task.lpips_trunk.as_os_str().is_empty() == task.lpips_heads.as_os_str().is_empty(),
        "autoencoder.lpips_trunk and autoencoder.lpips_heads: LPIPS needs both, and without it both are empty"
    );
    let compute = device::open(device)?;
    let sizes = Sizes::read(args.sizes.as_deref())?.model.autoencoder;
    let spec = PreprocessSpec {
        width: config.width,
        height: config.height,
        geometry: Geometry::Stretch,
        normalisation: task.normalisation,
        sketch: SketchPlane::None,
        tiles: None,
    };
    let perceptual = if task.lpips_trunk.as_os_str().is_empty() {
        let path = backbone::path_or_default(None)?;
        log::warn!("no weights of LPIPS (lpips_trunk, lpips_heads): the cosine distance of {} judges", path.display());
        Perceptual::Features(Box::new(backbone::load(&path, &compute.device)?))
    } else {
        Perceptual::Lpips(Lpips::import(&task.lpips_trunk, &task.lpips_heads, &compute.device)?)
    };
    let material = Material::read(&config.data, &spec, config.hold_out)?;
    let request = json!({
        "verb": "finetune-autoencoder", "width": config.width, "height": config.height, "batch": config.batch,
        "accumulate": config.accumulate, "seed": config.seed, "hold_out": config.hold_out, "autoencoder": task,
        "sizes": sizes, "pictures": material.fingerprint(),
    });
    let (from, state) = start(config, request, model::file_fingerprint)?;
    let part = Finetune::start(&from, &sizes, &compute.device)?;
    let finetune = Finetune {
        sizes: &sizes,
        run: config,
        config: task,
        material: &material,
        spec: &spec,
        perceptual,
        device: &compute.device,
    };
    let state = run_task(&[finetune], part, &from, state, config)?;
    let (step, value) = state.best().context("the last step is validated")?;
    let autoencoder = best(&config.out)?.join(FIRST_STAGE);
    if args.json {
        println!(
            "{}",
            json!({"steps": state.step, "seconds": state.seconds, "best_step": step, "mean_absolute_error": -value,
                   "autoencoder": autoencoder, "losses": state.losses, "validations": state.validations})
        );
    } else {
        println!("steps        {} in {:.0} s", state.step, state.seconds);
        println!("best         step {step}, mean absolute error {:.5}", -value);
        println!("autoencoder  {}", autoencoder.display());
    }
    Ok(())
}
