//! The three stages in a row, for one product or for pictures in general: what `fit` and `pretrain` share.

use std::path::Path;

use anyhow::{Context, ensure};
use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::Tensor;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::augment::Augmentation;
use super::base::Base;
use super::batches::BatchSpec;
use super::checkpoint::{RunDirectory, RunState};
use super::config::TrainConfig;
use super::objective::{AutoencoderObjective, DenoiserObjective, Objective, RefineObjective};
use super::pictures::{Picture, picture_tensor, spread};
use super::stage::{self, StageSettings};
use crate::device::Compute;
use crate::model::features::FeatureExtractor;
use crate::model::network::Network;
use crate::model::profile::ModelConfig;
use crate::model::repair::FeatureScale;
use crate::synthetic::corrupt::CorruptionFamily;

/// Stages of a run.
pub const STAGES: usize = 3;

/// What the stages are run with.
pub struct Stages<'a> {
    /// Sizes of the networks.
    pub model: &'a ModelConfig,
    /// How they are trained.
    pub config: &'a TrainConfig,
    /// Columns and rows of the pictures.
    pub size: (usize, usize),
    /// Minutes of training, warm-up of the device not counted.
    pub minutes: f64,
    /// A fixed number of steps per stage instead of the time budget.
    pub stage_steps: Option<usize>,
    /// Seed of everything.
    pub seed: u64,
    /// Good pictures.
    pub pictures: &'a [Picture],
    /// How those of each set are varied.
    pub augmentations: &'a [Augmentation],
    /// Where it runs.
    pub compute: &'a Compute,
}

impl Stages<'_> {
    /// Trains a network from fresh weights, or from `base`, to the end; the run in `directory` that has a `request` of the
    /// same content goes on instead. The network has no prototypes: they are no part of a run.
    ///
    /// # Errors
    /// Another request's run in the way, a base of other sizes, a device or a disk that refuses.
    pub fn run(
        &self,
        directory: &Path,
        request: Value,
        fresh: bool,
        features: FeatureExtractor,
        base: Option<&Base>,
    ) -> anyhow::Result<(Network, RunDirectory, RunState)> {
        let (run, state) = RunDirectory::open(directory, &request, fresh)?;
        let mut state = state.unwrap_or_else(|| RunState::new(request, STAGES));
        let device = &self.compute.device;
        device.seed(self.seed);
        let mut network = self.model.init(device).materialize().valid();
        network.features = features;
        network.prototypes = None;
        if let Some(saved) = run.tensors(&state) {
            let record = ModuleRecord::load(saved.join("network.bpk")).context("network.bpk")?;
            network = network.try_load_record(record).context("network.bpk")?;
            log::info!("resumes at stage {} step {}", state.stage, state.step);
        } else if let Some(base) = base {
            network = base.apply(network, self.model.classes)?;
        }
        if let Some(scale) = state.latent_scale {
            network = network.with_latent_scale(scale);
        }
        let network = self.train(network, &run, &mut state)?;
        Ok((network, run, state))
    }

    fn train(&self, mut network: Network, run: &RunDirectory, state: &mut RunState) -> anyhow::Result<Network> {
        let config = self.config;
        let classes = self.model.classes > 0;
        let shares = config.shares();
        let style = ProgressStyle::with_template("{prefix:>12} {wide_bar} {pos}/{len} {msg} [{elapsed}]")?;
        while state.stage < STAGES {
            let rate = [config.autoencoder_rate, config.denoiser_rate, config.refine_rate][state.stage];
            let batch = self.batch(state.stage);
            let most = match state.stage {
                2 => (config.refine_passes * self.pictures.len() as f64 / batch.size as f64).ceil() as usize,
                _ => usize::MAX,
            };
            let settings = StageSettings {
                index: state.stage,
                seconds: self.minutes * 60.0 * shares[state.stage],
                rate,
                learner: config.learner(),
                pictures: self.pictures,
                batches: &batch,
                steps: self.stage_steps,
                most,
                device: &self.compute.device,
            };
            let progress = ProgressBar::new(state.total.unwrap_or(0) as u64).with_style(style.clone());
            network = match state.stage {
                0 => {
                    let objective = AutoencoderObjective { config: config.clone() };
                    progress.set_prefix(objective.name());
                    let network = stage::run(&objective, network, &settings, run, state, &progress)?;
                    let scale = self.measure_scale(&network)?;
                    state.latent_scale = Some(scale);
                    network.with_latent_scale(scale)
                }
                1 => {
                    let objective = DenoiserObjective { classes };
                    progress.set_prefix(objective.name());
                    stage::run(&objective, network, &settings, run, state, &progress)?
                }
                _ if network.repair.is_some() || network.refine.is_some() => {
                    if state.step == 0
                        && let Some(repair) = &mut network.repair
                    {
                        repair.scale = self.measure_features(&network.features)?;
                    }
                    let objective = RefineObjective { config: config.clone(), classes };
                    progress.set_prefix(objective.name());
                    stage::run(&objective, network, &settings, run, state, &progress)?
                }
                _ => network,
            };
            progress.finish_and_clear();
            let loss = state.losses[state.stage].last().map_or(f64::NAN, |(_, loss)| *loss);
            log::info!("stage {} of {STAGES}: {} steps, loss {loss:.4}", state.stage + 1, state.step);
            state.stage += 1;
            state.step = 0;
            state.total = None;
            run.save(state, |path| stage::write(network.clone(), path, "network.bpk"))?;
        }
        Ok(network)
    }

    /// Mean and spread of the feature channels of some training pictures.
    fn measure_features(&self, features: &FeatureExtractor) -> anyhow::Result<FeatureScale> {
        let device = &self.compute.device;
        let mut sums: [Vec<(f64, f64)>; 3] = self.model.backbone.channels().map(|channels| vec![(0.0, 0.0); channels]);
        let mut cells = [0.0; 3];
        for picture in spread(self.pictures, 64) {
            let stages = features.forward(picture_tensor(&picture.rgb, self.size.0, self.size.1, device));
            for ((stage, sums), cells) in stages.into_iter().zip(&mut sums).zip(&mut cells) {
                let plane = stage.dims()[2] * stage.dims()[3];
                *cells += plane as f64;
                for (values, sum) in stage.try_into_vec_as::<f32>()?.chunks_exact(plane).zip(sums) {
                    sum.0 += values.iter().map(|value| f64::from(*value)).sum::<f64>();
                    sum.1 += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
                }
            }
        }
        let row = |stage: usize, of: fn(f64, f64) -> f64| {
            let values = sums[stage].iter().map(|(sum, squares)| of(sum / cells[stage], squares / cells[stage]) as f32);
            Tensor::<1>::from_floats(values.collect::<Vec<f32>>().as_slice(), device)
        };
        // A channel that never varies has nothing to say: its noise must not count.
        let factor = |mean: f64, square: f64| 1.0 / (square - mean * mean).max(1e-4).sqrt();
        Ok(FeatureScale::new(std::array::from_fn(|k| row(k, |mean, _| mean)), std::array::from_fn(|k| row(k, factor))))
    }

    /// What a batch of a stage is made of.
    pub(super) fn batch(&self, stage: usize) -> BatchSpec {
        let config = self.config;
        let (size, latent_share, defect_share) = match stage {
            0 => (config.autoencoder_batch, 0.0, 0.5),
            1 => (config.denoiser_batch, 0.3, config.defect_share),
            _ => (config.refine_batch, 0.0, config.defect_share),
        };
        BatchSpec {
            width: self.size.0,
            height: self.size.1,
            size,
            defect_share,
            families: CorruptionFamily::TRAINING.to_vec(),
            latent_share,
            latent_channels: self.model.autoencoder.latent_channels,
            seed: self.seed.wrapping_mul(0x0100_0193).wrapping_add(stage as u64),
            augmentations: self.augmentations.to_vec(),
        }
    }

    /// One over the standard deviation of the latents of some training pictures.
    fn measure_scale(&self, network: &Network) -> anyhow::Result<f64> {
        let (mut sum, mut squares, mut count) = (0.0f64, 0.0f64, 0.0f64);
        for picture in spread(self.pictures, 32) {
            let image = picture_tensor(&picture.rgb, self.size.0, self.size.1, &self.compute.device);
            for value in network.autoencoder.encode(image, 1.0).try_into_vec_as::<f32>()? {
                sum += f64::from(value);
                squares += f64::from(value).powi(2);
                count += 1.0;
            }
        }
        let deviation = (squares / count - (sum / count).powi(2)).max(0.0).sqrt();
        ensure!(
            deviation.is_finite() && deviation > 1e-6,
            "the autoencoder gives the same latent for every picture; train longer with --minutes"
        );
        Ok(1.0 / deviation)
    }
}
