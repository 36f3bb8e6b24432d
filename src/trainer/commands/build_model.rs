//! `trainer build-model`: a model of the paper's size from public checkpoints.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::model::profile::{ModelConfig, Profile};
use crate::model::text::TextEncoderConfig;
use crate::trainer::import::build::{Sources, build, write_model};
use crate::trainer::import::release::write_diad;

/// Arguments of `trainer build-model`.
#[derive(Debug, clap::Args)]
pub struct BuildModelArgs {
    /// Stable Diffusion v1.5: v1-5-pruned as .ckpt or .safetensors, a DiAD checkpoint, or a directory of diffusers
    #[arg(long)]
    stable_diffusion: PathBuf,
    /// The autoencoder, if it is not Stable Diffusion's own: kl-f8, or a fine-tuned first stage
    #[arg(long)]
    first_stage: Option<PathBuf>,
    /// ResNet50 of timm (resnet50.a1_in1k) or torchvision
    #[arg(long)]
    backbone: PathBuf,
    /// DiAD's control network in place of DSAD's guided network
    #[arg(long)]
    diad_compat: bool,
    /// The directory to make: model.json and weights.safetensors
    #[arg(long)]
    out: PathBuf,
    /// Also write this file in DiAD's key layout, for PyTorch
    #[arg(long, requires = "diad_compat", value_name = "FILE.safetensors")]
    diad_layout: Option<PathBuf>,
    /// One JSON object a line: a row per part with every parameter's name, the summary last
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A checkpoint that cannot be read or does not fit, or a disk that refuses.
pub fn run(args: &BuildModelArgs) -> anyhow::Result<()> {
    ensure!(!args.out.exists(), "{}: exists already; choose another --out, or remove it", args.out.display());
    let mut config = ModelConfig::of(Profile::Sd15, 0);
    if args.diad_compat {
        config = config.diad_compat();
    }
    let sources = Sources {
        stable_diffusion: args.stable_diffusion.clone(),
        first_stage: args.first_stage.clone(),
        backbone: args.backbone.clone(),
    };
    let compute = device::open(DeviceChoice::Cpu)?;
    let built = build(&config, &TextEncoderConfig::clip(), &sources, &compute.device)?;
    write_model(&built.network, &config, &args.out)?;
    if let Some(path) = &args.diad_layout {
        write_diad(&built, &config, path)?;
    }
    for part in &built.parts {
        if args.json {
            println!("{}", serde_json::to_string(part)?);
        } else {
            let (matched, kept) = (part.report.matched.len(), part.report.kept.len());
            println!("{:<12} {matched:>4} from {}, {kept} fresh", part.part, part.file.display());
        }
    }
    if args.json {
        println!("{}", json!({ "out": args.out, "not_interpreted": built.others }));
    } else {
        for other in &built.others {
            println!("not interpreted: {other}");
        }
        println!("model        {}", args.out.display());
    }
    Ok(())
}
