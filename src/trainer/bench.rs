//! Times a profile's networks on this machine: parts, whole frames, training steps.
//!
//! Weights are untrained, and the backbone's too: times do not depend on them. Every time is the median of single runs, each
//! waited for; the first run, in which a GPU compiles and tunes its kernels, is its own figure.

use std::time::{Duration, Instant};

use anyhow::Context;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use serde::Serialize;

use super::augment::Augmentation;
use super::batches::{Batch, BatchSpec, make};
use super::config::TrainConfig;
use super::judge::TrainerClock;
use super::objective::{AutoencoderObjective, DenoiserObjective, Objective, RefineObjective};
use super::paper::data::prepared;
use super::pictures::{Picture, picture_tensor};
use crate::bundle::manifest::{MapSpec, NumberFormat};
use crate::detector::{DetectorSpec, DiffusionDetector};
use crate::device::Compute;
use crate::inspection::anomaly::Pooling;
use crate::inspection::detect::{Detector, Plan, StepPlan, Steps};
use crate::model::network::{MapWeights, Network};
use crate::model::profile::{ModelConfig, Profile};
use crate::model::score::{feature_map, resize};
use crate::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use crate::synthetic::corrupt::CorruptionFamily;
use crate::synthetic::procedural;

/// Runs of one thing at least, and how long it is repeated.
const RUNS: usize = 5;
const REPEAT: Duration = Duration::from_secs(1);
/// Step counts of the frames.
const STEPS: [u32; 4] = [1, 2, 4, 8];

/// What is timed.
#[derive(Debug, Clone)]
pub struct BenchRequest {
    /// edge or edge-small.
    pub profile: Profile,
    /// Columns and rows of the model grid.
    pub size: (usize, usize),
    /// Frames at a time.
    pub batch: usize,
    /// Also a step of every stage of training.
    pub train: bool,
}

/// One time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timed {
    /// A part of the network, `frame at N steps`, or a step of a stage of training.
    pub what: String,
    /// Pictures that went through at a time.
    pub pictures: usize,
    /// Median, milliseconds.
    pub ms: f64,
    /// The first run, milliseconds.
    pub first_ms: f64,
    /// Runs after the first.
    pub runs: usize,
}

/// Times everything; `said` is called with each time as it is known.
///
/// # Errors
/// What the device says.
pub fn bench(request: &BenchRequest, compute: &Compute, mut said: impl FnMut(&Timed)) -> anyhow::Result<Vec<Timed>> {
    let model = ModelConfig::of(request.profile, 0);
    let network = model.init(&compute.device).materialize().valid();
    let picture = procedural::product(0).render(0, request.size.0, request.size.1);
    let mut all = Vec::new();
    let mut note = |timed: anyhow::Result<Timed>| -> anyhow::Result<()> {
        let timed = timed?;
        said(&timed);
        all.push(timed);
        Ok(())
    };
    parts(request, &network, &picture, compute, &mut note)?;
    frames(request, &model, network.clone(), &picture, compute, &mut note)?;
    if request.train {
        training(request, &model, &network, &picture, compute, &mut note)?;
    }
    Ok(all)
}

type Note<'a> = dyn FnMut(anyhow::Result<Timed>) -> anyhow::Result<()> + 'a;

fn time(what: &str, pictures: usize, compute: &Compute, mut work: impl FnMut()) -> anyhow::Result<Timed> {
    let mut run = || -> anyhow::Result<f64> {
        let started = Instant::now();
        work();
        compute.device.sync().context("device")?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let first_ms = run()?;
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < RUNS || started.elapsed() < REPEAT {
        times.push(run()?);
    }
    times.sort_by(f64::total_cmp);
    Ok(Timed { what: what.into(), pictures, ms: times[times.len() / 2], first_ms, runs: times.len() })
}

/// Every part of a frame alone.
fn parts(
    request: &BenchRequest,
    network: &Network,
    picture: &[u8],
    compute: &Compute,
    note: &mut Note<'_>,
) -> anyhow::Result<()> {
    let (width, height) = request.size;
    let count = request.batch;
    let image = picture_tensor(picture, width, height, &compute.device).repeat_dim(0, count);
    let classes = vec![0; count];
    let mut timed = |what: &str, work: &mut dyn FnMut()| note(time(what, count, compute, work));
    timed("features", &mut || drop(network.features.forward(image.clone())))?;
    let stages = network.features.forward(image.clone());
    timed("encode", &mut || drop(network.autoencoder.encode(image.clone(), 1.0)))?;
    let latent = network.autoencoder.encode(image.clone(), 1.0);
    timed("guidance", &mut || drop(network.steer(image.clone(), None, &stages, &classes)))?;
    let steering = network.steer(image.clone(), None, &stages, &classes);
    timed("denoise", &mut || drop(network.denoise(latent.clone(), &vec![9.0; count], &steering)))?;
    timed("decode", &mut || drop(network.decode(latent.clone())))?;
    if let Some(refine) = &network.refine {
        let logits = || refine.forward(image.clone(), image.clone(), &stages, &stages);
        timed("refine", &mut || drop(resize(logits(), height, width)))?;
    }
    if let Some(prototypes) = &network.prototypes {
        timed("prototypes", &mut || drop(prototypes.distance(&stages, &classes, height, width)))?;
    }
    timed("feature map", &mut || drop(feature_map(&stages, &stages, height, width)))
}

/// Prepared frames to maps and scores, as the daemon asks for them.
fn frames(
    request: &BenchRequest,
    model: &ModelConfig,
    network: Network,
    picture: &[u8],
    compute: &Compute,
    note: &mut Note<'_>,
) -> anyhow::Result<()> {
    let (width, height) = request.size;
    let (geometry, normalisation) = (Geometry::Stretch, Normalisation::SymmetricOne);
    let spec = PreprocessSpec { width, height, geometry, normalisation, sketch: SketchPlane::None, tiles: None };
    let prepared = vec![prepared(picture, &spec)?; request.batch];
    let weights = MapWeights { features: 1.0, latent: 1.0, refine: 1.0, prototypes: 1.0, prototypes_floor: 0.0 };
    let map = MapSpec { weights, sigma: 2.5, pooling: Pooling::TopFraction { fraction: 0.005 } };
    let latent_channels = model.autoencoder.latent_channels;
    let spec = DetectorSpec { classes: Vec::new(), map, seed: 0, latent_channels, normalisation };
    let clock = TrainerClock::start();
    let mut detector = DiffusionDetector::new(network, spec, &compute.device, NumberFormat::F32, clock);
    for steps in STEPS {
        let plan = Plan { steps: StepPlan::Fixed(Steps(steps)), class: None };
        let mut failed = None;
        let timed = time(&format!("frame at {steps} steps"), request.batch, compute, || {
            failed = failed.take().or(detector.detect(&prepared, &plan).err());
        });
        failed.map_or(Ok(()), Err)?;
        note(timed)?;
    }
    Ok(())
}

/// A step of every stage, with the batch that `fit` takes: making it on one core, and what the device does with it.
fn training(
    request: &BenchRequest,
    model: &ModelConfig,
    network: &Network,
    picture: &[u8],
    compute: &Compute,
    note: &mut Note<'_>,
) -> anyhow::Result<()> {
    let config = &TrainConfig::of(request.profile)?;
    let pictures = [Picture { path: "procedural".into(), rgb: picture.to_vec(), set: 0 }];
    let batch = |size: usize, latent_share: f64| {
        let spec = BatchSpec {
            width: request.size.0,
            height: request.size.1,
            size,
            defect_share: config.defect_share,
            families: CorruptionFamily::TRAINING.to_vec(),
            latent_share,
            latent_channels: model.autoencoder.latent_channels,
            seed: 0,
            augmentations: vec![Augmentation::LEAST],
        };
        make(&pictures, &spec, 0)
    };
    let size = config.refine_batch;
    note(time("making a batch", size, compute, || drop(batch(size, 0.0))))?;
    let (autoencoder, denoiser) = (config.autoencoder_batch, config.denoiser_batch);
    note(step(&AutoencoderObjective { config }, network, &batch(autoencoder, 0.0), compute))?;
    note(step(&DenoiserObjective { classes: false }, network, &batch(denoiser, 0.3), compute))?;
    note(step(&RefineObjective { config, classes: false }, network, &batch(size, 0.0), compute))
}

fn step<O: Objective>(objective: &O, network: &Network, batch: &Batch, compute: &Compute) -> anyhow::Result<Timed> {
    let device = &compute.device;
    let mut trained = Some(objective.extract(network).to_device(&device.clone().autodiff()).train());
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().init();
    time(&format!("training step: {}", objective.name()), batch.size, compute, || {
        if let Some(part) = trained.take() {
            let loss = objective.loss(network, &part, batch, device);
            let gradients = GradientsParams::from_grads(loss.backward(), &part);
            trained = Some(optimizer.step(1e-5, part, gradients));
        }
    })
}
