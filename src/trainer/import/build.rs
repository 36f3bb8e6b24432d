//! The training start of a paper-sized model: its parts from public checkpoints, the rest fresh.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use burn::tensor::Device;
use serde::Serialize;

use super::checkpoint::Checkpoint;
use super::fill::{Report, fill};
use super::keys::{self, Table};
use crate::model::autoencoder::{Autoencoder, AutoencoderConfig};
use crate::model::control::ControlForm;
use crate::model::features::FeatureExtractor;
use crate::model::network::Network;
use crate::model::profile::ModelConfig;
use crate::model::text::{TextEncoder, TextEncoderConfig};

/// Where CompVis' checkpoints keep the denoiser, the control network, the autoencoder and the text encoder.
pub(super) const DENOISER: &str = "model.diffusion_model.";
pub(super) const CONTROL: &str = "control_model.";
pub(super) const AUTOENCODER: &str = "first_stage_model.";
pub(super) const TEXT: &str = "cond_stage_model.transformer.text_model.";
/// What a control network has besides the copy of the denoiser's reading half.
const OWN_CONTROL: [&str; 7] = ["hint", "hint_out", "fusion", "zeros", "zero_middle", "multi_scale", "spatial_fusion"];

/// The files that a model is built from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Stable Diffusion v1.5: a CompVis file, a DiAD file, or a directory in diffusers' layout.
    pub stable_diffusion: PathBuf,
    /// Another autoencoder than Stable Diffusion's own: kl-f8, or a fine-tuned first stage.
    pub first_stage: Option<PathBuf>,
    /// ResNet50.
    pub backbone: PathBuf,
}

/// What became of one part.
#[derive(Debug, Clone, Serialize)]
pub struct PartReport {
    /// `denoiser`, `control`, `autoencoder`, `text` or `features`.
    pub part: &'static str,
    /// The file.
    pub file: PathBuf,
    /// Its parameters.
    #[serde(flatten)]
    pub report: Report,
}

/// A built model, and an account of every parameter.
#[derive(Debug)]
pub struct Built {
    /// The network.
    pub network: Network,
    /// The text encoder that made the context; the network does not need it any more.
    pub text: TextEncoder,
    /// One report per part.
    pub parts: Vec<PartReport>,
    /// Objects of the files that are not tensors; they were not interpreted.
    pub others: Vec<String>,
}

/// Builds the network of `config`, which has a control network, a context and a ResNet50. `text` is the encoder that the
/// constant context is made with.
///
/// # Errors
/// A file that cannot be read, and anything unexpected in it: parameters that are missing, tensors that nothing uses,
/// other shapes.
pub fn build(
    config: &ModelConfig,
    text: &TextEncoderConfig,
    sources: &Sources,
    device: &Device,
) -> anyhow::Result<Built> {
    let mut parts = Vec::new();
    let mut network = config.init(device);
    let unet = &config.denoiser;
    let directory = sources.stable_diffusion.is_dir();
    let inside = |part: &str| match directory {
        false => Ok(sources.stable_diffusion.clone()),
        true => diffusers_file(&sources.stable_diffusion, part),
    };
    let main = Checkpoint::open(&inside("unet")?)?;
    let compvis = main.has(&format!("{DENOISER}input_blocks.0.0.weight"));
    let mut take = |part: &'static str, file: &Checkpoint, report: Report| -> anyhow::Result<()> {
        ensure!(
            report.missing.is_empty(),
            "{}: the {part} lacks {} of {} parameters: {}",
            file.path().display(),
            report.missing.len(),
            report.missing.len() + report.matched.len(),
            list(&report.missing)
        );
        parts.push(PartReport { part, file: file.path().to_path_buf(), report });
        Ok(())
    };

    let table = if compvis { keys::ldm_denoiser(unet, DENOISER) } else { keys::diffusers_denoiser(unet) };
    let (denoiser, report) = fill(network.denoiser, &table, &[], &main, device)?;
    take("denoiser", &main, report)?;
    network.denoiser = denoiser;

    if let (Some(control), Some(form)) = (network.control.take(), config.control.as_ref().map(|c| &c.form)) {
        // A DiAD file brings a trained one; otherwise it starts as a copy of the denoiser's reading half.
        let trained = main.has(&format!("{CONTROL}time_embed.0.weight"));
        let released = matches!(form, ControlForm::Diad { .. });
        ensure!(
            !trained || released,
            "{}: holds DiAD's control network; build it with --diad-compat",
            main.path().display()
        );
        let (table, fresh): (Table, &[&str]) = match (trained, compvis) {
            (true, _) => (keys::diad_control(unet, CONTROL), &[]),
            (false, true) => (keys::diad_control(unet, DENOISER), &OWN_CONTROL),
            (false, false) => (keys::diffusers_denoiser(unet), &OWN_CONTROL),
        };
        let (control, report) = fill(control, &table, fresh, &main, device)?;
        take("control", &main, report)?;
        network.control = Some(control);
    }

    let separate = match (&sources.first_stage, directory) {
        (Some(path), _) => Some(Checkpoint::open(path)?),
        (None, true) => Some(Checkpoint::open(&inside("vae")?)?),
        (None, false) => None,
    };
    let file = separate.as_ref().unwrap_or(&main);
    let table = autoencoder_table(&config.autoencoder, file);
    let (filled, report) = fill(network.autoencoder, &table, &[], file, device)?;
    take("autoencoder", file, report)?;
    network.autoencoder = filled;

    let separate_text = if directory { Some(Checkpoint::open(&inside("text_encoder")?)?) } else { None };
    let file = separate_text.as_ref().unwrap_or(&main);
    let table = keys::text_encoder(text.layers, if directory { "text_model." } else { TEXT });
    let (encoder, report) = fill(text.init(device), &table, &[], file, device)?;
    take("text", file, report)?;
    network.context = network.context.map(|context| context.map(|_| encoder.empty()));

    let backbone = Checkpoint::open(&sources.backbone)?;
    let FeatureExtractor::Resnet50(features) = network.features else {
        anyhow::bail!("the model's backbone is not ResNet50");
    };
    let (features, report) = fill(features, &keys::resnet50(), &[], &backbone, device)?;
    take("features", &backbone, report)?;
    network.features = FeatureExtractor::Resnet50(features);

    // Of the main file the autoencoder may have been replaced.
    let mut skips = keys::SKIPS.to_vec();
    if sources.first_stage.is_some() {
        skips.push(AUTOENCODER);
    }
    skips.push(".position_ids");
    let files = [(Some(&main), &skips[..]), (separate.as_ref(), &skips), (separate_text.as_ref(), &skips)];
    let mut others = Vec::new();
    for (file, skips) in files.into_iter().chain([(Some(&backbone), &keys::RESNET_SKIPS[..])]) {
        let Some(file) = file else { continue };
        let unused = file.unused(skips);
        ensure!(
            unused.is_empty(),
            "{}: {} tensors that no part of the model uses: {}",
            file.path().display(),
            unused.len(),
            list(&unused)
        );
        others.extend(file.others().iter().cloned());
    }
    Ok(Built { network, text: encoder, parts, others })
}

/// What the layers of an autoencoder are called in a file of any layout.
fn autoencoder_table(config: &AutoencoderConfig, file: &Checkpoint) -> Table {
    if file.has(&format!("{AUTOENCODER}encoder.conv_in.weight")) {
        keys::ldm_autoencoder(config, AUTOENCODER)
    } else if file.has("encoder.mid.block_1.conv1.weight") {
        keys::ldm_autoencoder(config, "")
    } else {
        keys::diffusers_autoencoder(config)
    }
}

/// Reads an autoencoder alone: kl-f8, a fine-tuned first stage, diffusers' `vae`, or the one inside a Stable Diffusion file.
///
/// # Errors
/// A file that cannot be read, parameters that are missing, and tensors of an autoencoder that nothing uses.
pub fn read_autoencoder(path: &Path, config: &AutoencoderConfig, device: &Device) -> anyhow::Result<Autoencoder> {
    let file = Checkpoint::open(path)?;
    let (autoencoder, report) = fill(config.init(device), &autoencoder_table(config, &file), &[], &file, device)?;
    ensure!(!report.matched.is_empty(), "{}: holds no autoencoder of a known layout", path.display());
    ensure!(
        report.missing.is_empty(),
        "{}: the autoencoder lacks {} of {} parameters: {}",
        path.display(),
        report.missing.len(),
        report.missing.len() + report.matched.len(),
        list(&report.missing)
    );
    // Whatever else a Stable Diffusion file holds is not asked for.
    let unused = file.unused(&[&keys::SKIPS[..], &[DENOISER, CONTROL]].concat());
    ensure!(unused.is_empty(), "{}: tensors that nothing uses: {}", path.display(), list(&unused));
    Ok(autoencoder)
}

/// The weights of one part in diffusers' layout.
fn diffusers_file(root: &Path, part: &str) -> anyhow::Result<PathBuf> {
    let names = [
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
        "diffusion_pytorch_model.bin",
        "pytorch_model.bin",
    ];
    let found = names.iter().map(|name| root.join(part).join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{}: no {part}/ with {}", root.display(), names.join(" or ")))
}

/// The first few names of many.
fn list(names: &[String]) -> String {
    let mut shown = names.iter().take(6).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 6 {
        shown += ", ...";
    }
    shown
}
