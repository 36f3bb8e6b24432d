//! How well a model tells held-out good pictures from the same with synthetic defects, by the daemon's own detector. The
//! test split is never looked at.

use anyhow::Context;
use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::data::prepared;
use super::model;
use crate::bundle::manifest::NumberFormat;
use crate::detector::{DetectorSpec, DiffusionDetector};
use crate::inspection::detect::{Detector, Plan, StepPlan, Steps};
use crate::inspection::metrics::Ranking;
use crate::model::network::Network;
use crate::model::profile::ModelConfig;
use crate::preprocess::spec::PreprocessSpec;
use crate::trainer::judge::TrainerClock;
use crate::trainer::pictures::{Picture, with_and_without_defects};

/// Every so many cells one counts for the pixel metric: the maps are smooth.
const STRIDE: usize = 4;

/// The paper's detector around a model.
pub fn detector(
    network: Network,
    config: &ModelConfig,
    spec: &PreprocessSpec,
    seed: u64,
    device: &Device,
) -> DiffusionDetector {
    let detector = DetectorSpec {
        classes: Vec::new(),
        map: model::map(),
        seed,
        latent_channels: config.autoencoder.latent_channels,
        normalisation: spec.normalisation,
    };
    DiffusionDetector::new(network, detector, device, NumberFormat::F32, TrainerClock::start())
}

/// Image AUROC and half the pixel AP over at most `most` pictures, each as it is and with defects of two families (training
/// sees none at all): 0 to 1.5.
///
/// # Errors
/// What the detector says.
pub fn validate(
    detector: &mut DiffusionDetector,
    pictures: &[Picture],
    most: usize,
    steps: u32,
    seed: u64,
    spec: &PreprocessSpec,
) -> anyhow::Result<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let plan = Plan::new(StepPlan::Fixed(Steps(steps)), None);
    let (mut scores, mut cells) = (Vec::new(), Vec::new());
    with_and_without_defects(pictures, (0, most), (spec.width, spec.height), &mut rng, |_, rgb, defect| {
        let detection = detector.detect(&[prepared(rgb, spec)?], &plan)?.pop().context("one detection per frame")?;
        scores.push((detection.score.0, defect.is_some()));
        let truth = |cell: usize| defect.is_some_and(|defect| defect.mask[cell] > 127);
        let values = detection.map.values.iter().enumerate().step_by(STRIDE);
        cells.extend(values.map(|(cell, value)| (*value, truth(cell))));
        Ok(())
    })?;
    let auroc = Ranking::new(scores.into_iter()).auroc().unwrap_or(0.0);
    let precision = Ranking::new(cells.into_iter()).average_precision().unwrap_or(0.0);
    Ok(auroc + 0.5 * precision)
}
