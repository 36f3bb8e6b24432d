//! `trainer build-model`: a model of the paper's size from public checkpoints.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::model::features::Backbone;
use crate::model::features::resnet::PixelRange;
use crate::model::profile::{ModelConfig, Profile};
use crate::model::text::TextEncoderConfig;
use crate::trainer::import::build::{Sources, build};
use crate::trainer::import::release::write_diad;
use crate::trainer::paper::model;

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
    /// Range of the pictures that the autoencoder was finetuned with
    #[arg(long, value_enum, default_value_t)]
    normalisation: PictureRange,
    /// Other sizes than the published ones: a JSON file with `model` and `text`
    #[arg(long)]
    sizes: Option<PathBuf>,
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

/// Range of the pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum PictureRange {
    /// -1 to 1
    #[default]
    SymmetricOne,
    /// Less ImageNet's mean, by its deviation, as the paper's code
    ImageNet,
}

/// Sizes of a model and of the text encoder that makes its context.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// The model.
    pub model: ModelConfig,
    /// The text encoder.
    pub text: TextEncoderConfig,
}

impl Sizes {
    /// The sizes in a file, or the published ones.
    ///
    /// # Errors
    /// A file that cannot be read, or sizes that contradict each other.
    pub fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self { model: ModelConfig::of(Profile::Sd15, 0), text: TextEncoderConfig::clip() });
        };
        let text = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let sizes: Self = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        if let Some(problem) = sizes.model.problem() {
            anyhow::bail!("{}: {problem}", path.display());
        }
        Ok(sizes)
    }
}

/// Runs the verb.
///
/// # Errors
/// A checkpoint that cannot be read or does not fit, or a disk that refuses.
pub fn run(args: &BuildModelArgs) -> anyhow::Result<()> {
    ensure!(!args.out.exists(), "{}: exists already; choose another --out, or remove it", args.out.display());
    let Sizes { model: mut config, text } = Sizes::read(args.sizes.as_deref())?;
    if args.diad_compat {
        config = config.diad_compat();
    }
    if args.normalisation == PictureRange::ImageNet {
        config.backbone = Backbone::Resnet50 { range: PixelRange::ImageNet };
    }
    let sources = Sources {
        stable_diffusion: args.stable_diffusion.clone(),
        first_stage: args.first_stage.clone(),
        backbone: args.backbone.clone(),
    };
    let compute = device::open(DeviceChoice::Cpu)?;
    let built = build(&config, &text, &sources, &compute.device)?;
    model::publish(&args.out, |directory| model::write(&built.network, &config, directory))?;
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
