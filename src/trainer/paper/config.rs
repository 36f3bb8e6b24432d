//! What a run is asked for: a TOML file with every key, and the command line over it.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::device::DeviceChoice;
use crate::preprocess::spec::Normalisation;

/// What both tasks are run with; section `[run]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// A set, a folder of sets, or a flat folder of good pictures; empty: named on the command line.
    pub data: PathBuf,
    /// What the run starts from, or a checkpoint that it goes on from; empty: named on the command line.
    pub resume_path: PathBuf,
    /// Folder of the checkpoints.
    pub out: PathBuf,
    /// Where it runs.
    pub devices: Vec<DeviceChoice>,
    /// Columns of the model grid.
    pub width: usize,
    /// Rows of the model grid.
    pub height: usize,
    /// Pictures per forward and backward pass.
    pub batch: usize,
    /// Passes per optimiser step.
    pub accumulate: usize,
    /// Learning rate, constant.
    pub learning_rate: f64,
    /// Optimiser steps.
    pub steps: usize,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Share of the good pictures of every set that training never sees.
    pub hold_out: f64,
    /// Steps between two checkpoints.
    pub checkpoint_every: usize,
    /// Newest checkpoints that are kept besides the best.
    pub keep: usize,
    /// Steps between two validations.
    pub validate_every: usize,
    /// Compute parts of the forward pass twice instead of keeping them for the backward pass.
    pub gradient_checkpointing: bool,
}

/// `trainer train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainFile {
    /// Section `[run]`.
    pub run: RunConfig,
    /// Section `[diffusion]`.
    pub diffusion: DiffusionConfig,
}

/// What the guided denoiser is trained with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// Share of the pictures whose sketch is left away, so that the network does not lean on it on textures.
    pub sketch_drop: f64,
    /// Host memory that backbone features of the training pictures may take; without room they are computed per step.
    pub feature_cache_gib: f64,
    /// Denoising steps of a validation.
    pub validation_steps: u32,
    /// Held-out pictures that a validation uses at most.
    pub validation_pictures: usize,
}

/// `trainer finetune-autoencoder`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneFile {
    /// Section `[run]`.
    pub run: RunConfig,
    /// Section `[autoencoder]`.
    pub autoencoder: FinetuneConfig,
}

/// What the autoencoder is finetuned with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Range of the pictures that the autoencoder sees.
    pub normalisation: Normalisation,
    /// Weight of the KL term.
    pub kl_weight: f64,
    /// Weight of the perceptual term beside L1.
    pub perceptual_weight: f64,
    /// VGG16 as torchvision publishes it, for LPIPS; empty: the feature extractor takes its place.
    pub lpips_trunk: PathBuf,
    /// The linear heads of LPIPS (`vgg.pth`).
    pub lpips_heads: PathBuf,
    /// Held-out pictures that a validation uses at most.
    pub validation_pictures: usize,
}

/// A configuration file of one of the two verbs.
pub trait ConfigFile: DeserializeOwned {
    /// The file that ships.
    const SHIPPED: &'static str;
    /// Its place in the source tree.
    const PLACE: &'static str;

    /// The section that both have.
    fn run(&self) -> &RunConfig;

    /// The same, to be changed by the command line.
    fn run_mut(&mut self) -> &mut RunConfig;

    /// Whether the other section is in order.
    ///
    /// # Errors
    /// A value out of range.
    fn check(&self) -> anyhow::Result<()>;
}

/// A value that must be finite and lie in a range.
fn within(name: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> anyhow::Result<()> {
    ensure!(range.contains(&value), "{name} = {value}: must be {} to {}", range.start(), range.end());
    Ok(())
}

impl ConfigFile for TrainFile {
    const SHIPPED: &'static str = include_str!("../../../configs/train/train.toml");
    const PLACE: &'static str = "configs/train/train.toml";

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn run_mut(&mut self) -> &mut RunConfig {
        &mut self.run
    }

    fn check(&self) -> anyhow::Result<()> {
        let DiffusionConfig { weight_decay, sketch_drop, feature_cache_gib, validation_steps, validation_pictures } =
            self.diffusion;
        within("diffusion.weight_decay", weight_decay, 0.0..=1.0)?;
        within("diffusion.sketch_drop", sketch_drop, 0.0..=1.0)?;
        within("diffusion.feature_cache_gib", feature_cache_gib, 0.0..=1e6)?;
        within("diffusion.validation_steps", f64::from(validation_steps), 1.0..=1000.0)?;
        within("diffusion.validation_pictures", validation_pictures as f64, 1.0..=1e6)
    }
}

impl ConfigFile for FinetuneFile {
    const SHIPPED: &'static str = include_str!("../../../configs/train/finetune-autoencoder.toml");
    const PLACE: &'static str = "configs/train/finetune-autoencoder.toml";

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn run_mut(&mut self) -> &mut RunConfig {
        &mut self.run
    }

    fn check(&self) -> anyhow::Result<()> {
        let FinetuneConfig { kl_weight, perceptual_weight, validation_pictures, .. } = self.autoencoder;
        within("autoencoder.kl_weight", kl_weight, 0.0..=1e3)?;
        within("autoencoder.perceptual_weight", perceptual_weight, 0.0..=1e3)?;
        within("autoencoder.validation_pictures", validation_pictures as f64, 1.0..=1e6)
    }
}

/// What the command line may change of a configuration file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RunArgs {
    /// A changed copy of the configuration that ships
    #[arg(long)]
    config: Option<PathBuf>,
    /// A set (it has train/good), a folder of sets, or a flat folder of good pictures
    #[arg(long)]
    data: Option<PathBuf>,
    /// What to start from, or a checkpoint of a run to go on from
    #[arg(long, alias = "resume_path")]
    resume_path: Option<PathBuf>,
    /// Folder of the checkpoints; a run that was killed goes on with the same command
    #[arg(long)]
    out: Option<PathBuf>,
    /// cpu, cuda, or the numbers of GPUs that share the passes of a step: 0,1
    #[arg(long, value_delimiter = ',', value_parser = parse_device)]
    devices: Option<Vec<DeviceChoice>>,
    /// Columns of the model grid
    #[arg(long)]
    width: Option<usize>,
    /// Rows of the model grid
    #[arg(long)]
    height: Option<usize>,
    /// Pictures per pass
    #[arg(long)]
    batch: Option<usize>,
    /// Passes per optimiser step
    #[arg(long)]
    accumulate: Option<usize>,
    /// Learning rate
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Optimiser steps
    #[arg(long)]
    steps: Option<usize>,
    /// Seed of everything that is drawn
    #[arg(long)]
    seed: Option<u64>,
}

/// A device by name, or a GPU by its number.
///
/// # Errors
/// A text that is neither.
pub fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    text.parse().map_or_else(|_| text.parse(), |index| Ok(DeviceChoice::Cuda(index)))
}

/// The model grid on the command line.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct GridArgs {
    /// Columns of the model grid, for a model that was not trained here
    #[arg(long, requires = "height")]
    width: Option<usize>,
    /// Rows of the model grid, for a model that was not trained here
    #[arg(long, requires = "width")]
    height: Option<usize>,
}

impl GridArgs {
    /// Columns and rows, if they are asked for.
    pub fn asked(self) -> Option<(usize, usize)> {
        self.width.zip(self.height)
    }
}

impl RunArgs {
    /// The configuration: the file that is named or ships, with the command line over it.
    ///
    /// # Errors
    /// An unreadable file, an unknown or missing key, or a value out of range.
    pub fn read<F: ConfigFile>(&self) -> anyhow::Result<F> {
        let text = match &self.config {
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?
            }
            None => F::SHIPPED.to_owned(),
        };
        let place = || self.config.as_deref().unwrap_or(Path::new(F::PLACE)).display().to_string();
        let mut file: F = toml::from_str(&text).with_context(place)?;
        let run = file.run_mut();
        fn set<T: Clone>(place: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                place.clone_from(value);
            }
        }
        set(&mut run.data, self.data.as_ref());
        set(&mut run.resume_path, self.resume_path.as_ref());
        set(&mut run.out, self.out.as_ref());
        set(&mut run.devices, self.devices.as_ref());
        set(&mut run.width, self.width.as_ref());
        set(&mut run.height, self.height.as_ref());
        set(&mut run.batch, self.batch.as_ref());
        set(&mut run.accumulate, self.accumulate.as_ref());
        set(&mut run.learning_rate, self.learning_rate.as_ref());
        set(&mut run.steps, self.steps.as_ref());
        set(&mut run.seed, self.seed.as_ref());
        file.run().check().with_context(place)?;
        file.check().with_context(place)?;
        Ok(file)
    }
}

impl RunConfig {
    fn check(&self) -> anyhow::Result<()> {
        for (name, path) in [("data", &self.data), ("resume_path", &self.resume_path), ("out", &self.out)] {
            let flag = name.replace('_', "-");
            ensure!(!path.as_os_str().is_empty(), "run.{name} is empty: write it there, or give --{flag}");
        }
        for (name, side) in [("width", self.width), ("height", self.height)] {
            ensure!(
                side.is_multiple_of(32) && (32..=2048).contains(&side),
                "run.{name} = {side}: must be a multiple of 32 from 32 to 2048"
            );
        }
        for (name, count) in [
            ("batch", self.batch),
            ("accumulate", self.accumulate),
            ("steps", self.steps),
            ("checkpoint_every", self.checkpoint_every),
            ("keep", self.keep),
            ("validate_every", self.validate_every),
        ] {
            ensure!(count > 0, "run.{name} = 0: must be at least 1");
        }
        ensure!(
            self.learning_rate > 0.0 && self.learning_rate < 1.0,
            "run.learning_rate = {}: must lie between 0 and 1",
            self.learning_rate
        );
        ensure!(
            self.hold_out > 0.0 && self.hold_out < 1.0,
            "run.hold_out = {}: must lie between 0 and 1",
            self.hold_out
        );
        ensure!(!self.devices.is_empty(), "run.devices is empty: name cpu or cuda");
        ensure!(
            self.devices.len() <= self.accumulate,
            "run.accumulate = {} with {} devices: every device needs a pass of its own per step",
            self.accumulate,
            self.devices.len()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(run: RunArgs) -> RunArgs {
        let some = |text: &str| Some(PathBuf::from(text));
        RunArgs { data: some("d"), resume_path: some("r"), out: some("o"), ..run }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let run = args(RunArgs { batch: Some(3), devices: Some(vec![DeviceChoice::Cpu]), ..RunArgs::default() });
        let file: TrainFile = run.read().expect("reads");
        assert_eq!((file.run.batch, file.run.accumulate), (3, 4));
        assert_eq!(file.run.devices, [DeviceChoice::Cpu]);
        args(RunArgs::default()).read::<FinetuneFile>().expect("reads");
    }

    #[test]
    fn mistakes_are_named() {
        let error = |run: RunArgs| format!("{:#}", run.read::<TrainFile>().expect_err("refused"));
        assert!(error(RunArgs::default()).contains("run.data is empty: write it there, or give --data"));
        assert!(error(args(RunArgs { width: Some(100), ..RunArgs::default() })).contains("run.width = 100"));
        assert!(error(args(RunArgs { steps: Some(0), ..RunArgs::default() })).contains("run.steps = 0"));
    }

    #[test]
    fn a_number_is_a_gpu() {
        assert_eq!(parse_device("1"), Ok(DeviceChoice::Cuda(1)));
        assert_eq!(parse_device("cpu"), Ok(DeviceChoice::Cpu));
        assert!(parse_device("tpu").is_err());
    }
}
