//! Times a profile's networks on this machine: parts, whole frames, training steps.
//!
//! Weights are untrained, and the backbone's too: times do not depend on them. Every time is the median of single runs, each
//! waited for; the first run, in which a GPU compiles and tunes its kernels, is its own figure.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use burn::module::Module;
use burn::optim::{AdamWConfig, ModuleOptimizer};
use serde::Serialize;

use super::augment::Augmentation;
use super::batches::{Batch, make};
use super::config::TrainConfig;
use super::ema::Ema;
use super::judge::TrainerClock;
use super::objective::{AutoencoderObjective, DenoiserObjective, Objective, RefineObjective};
use super::paper::data::prepared;
use super::pictures::{Picture, picture_tensor};
use super::stage::descend;
use super::stages::Stages;
use crate::bundle::manifest::{MapSpec, NumberFormat};
use crate::bundle::weights::{TensorFile, encode_module};
use crate::bundle::{Bundle, WEIGHTS};
use crate::config::device::DeviceChoice;
use crate::detector::{DetectorSpec, DiffusionDetector};
use crate::device::Compute;
use crate::inspection::anomaly::Pooling;
use crate::inspection::detect::{Detector, Plan, StepPlan, Steps};
use crate::model::network::{MapWeights, Network};
use crate::model::profile::{ModelConfig, Profile};
use crate::model::refine::Compared;
use crate::model::score::{feature_map, resize};
use crate::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use crate::synthetic::procedural;

/// Runs of one thing at least, and how long it is repeated.
const RUNS: usize = 5;
const REPEAT: Duration = Duration::from_secs(1);
/// Step counts of the frames.
const STEPS: [u32; 4] = [1, 2, 4, 8];

/// A map in which every part counts.
const EVERYTHING: MapSpec = MapSpec {
    weights: MapWeights {
        features: 1.0,
        features_floor: 0.0,
        latent: 1.0,
        refine: 1.0,
        refine_power: 1.0,
        prototypes: 1.0,
        prototypes_floor: 0.0,
    },
    sigma: 2.5,
    pooling: Pooling::TopFraction { fraction: 0.005 },
};

/// What is timed.
#[derive(Debug)]
pub struct BenchRequest {
    /// edge or edge-small.
    pub profile: Profile,
    /// Whose networks are timed; fresh ones of the profile without one. No time depends on it, but another implementation
    /// can be given the same.
    pub bundle: Option<Bundle>,
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
pub fn bench(request: &BenchRequest, compute: &Compute, said: impl FnMut(&Timed)) -> anyhow::Result<Vec<Timed>> {
    let device = &compute.device;
    let (model, network, map) = match &request.bundle {
        Some(bundle) => {
            let model = bundle.manifest.model.clone();
            let network = bundle.tensors(WEIGHTS)?.load_into(model.init(device), NumberFormat::F32)?;
            (model, network, bundle.manifest.map)
        }
        None => {
            let model = ModelConfig::of(request.profile, 0);
            let network = model.init(device).materialize().valid();
            (model, network, EVERYTHING)
        }
    };
    let picture = procedural::product(0).render(0, request.size.0, request.size.1);
    let mut bench = Bench { request, compute, model, network, map, picture, said, all: Vec::new() };
    bench.parts()?;
    bench.frames()?;
    if request.train {
        bench.training()?;
    }
    Ok(bench.all)
}

struct Bench<'a, S> {
    request: &'a BenchRequest,
    compute: &'a Compute,
    model: ModelConfig,
    network: Network,
    map: MapSpec,
    picture: Vec<u8>,
    said: S,
    all: Vec<Timed>,
}

impl<S: FnMut(&Timed)> Bench<'_, S> {
    fn time(&mut self, what: &str, pictures: usize, mut work: impl FnMut()) -> anyhow::Result<()> {
        let mut run = || -> anyhow::Result<f64> {
            let started = Instant::now();
            work();
            self.compute.device.sync().context("device")?;
            Ok(started.elapsed().as_secs_f64() * 1e3)
        };
        let first_ms = run()?;
        let started = Instant::now();
        let mut times = Vec::new();
        while times.len() < RUNS || started.elapsed() < REPEAT {
            times.push(run()?);
        }
        times.sort_by(f64::total_cmp);
        let timed = Timed { what: what.into(), pictures, ms: times[times.len() / 2], first_ms, runs: times.len() };
        (self.said)(&timed);
        self.all.push(timed);
        Ok(())
    }

    /// Every part of a frame alone.
    fn parts(&mut self) -> anyhow::Result<()> {
        let (width, height) = self.request.size;
        let count = self.request.batch;
        let network = self.network.clone();
        let image = picture_tensor(&self.picture, width, height, &self.compute.device).repeat_dim(0, count);
        let classes = vec![0; count];
        let mut timed = |what: &str, work: &mut dyn FnMut()| self.time(what, count, work);
        timed("features", &mut || drop(network.features.forward(image.clone())))?;
        let stages = network.features.forward(image.clone());
        timed("encode", &mut || drop(network.autoencoder.encode(image.clone(), 1.0)))?;
        let latent = network.autoencoder.encode(image.clone(), 1.0);
        timed("guidance", &mut || drop(network.steer(image.clone(), None, &stages, &classes)))?;
        let steering = network.steer(image.clone(), None, &stages, &classes);
        timed("denoise", &mut || drop(network.denoise(latent.clone(), &vec![9.0; count], &steering)))?;
        timed("decode", &mut || drop(network.decode(latent.clone())))?;
        let mut normal = stages.clone();
        if let Some(repair) = &network.repair {
            let repaired = || repair.network.forward(&repair.scale.standardise(&stages));
            timed("repair", &mut || drop(repaired()))?;
            normal = repaired();
        }
        if let Some(refine) = &network.refine {
            let logits = || {
                let latents = Compared { seen: &latent, normal: &latent };
                refine.forward(image.clone(), latents, Compared { seen: &stages, normal: &normal })
            };
            timed("refine", &mut || drop(resize(logits(), height, width)))?;
        }
        if let Some(prototypes) = &network.prototypes {
            timed("prototypes", &mut || drop(prototypes.distance(&stages, &classes, height, width)))?;
        }
        timed("feature map", &mut || drop(feature_map(&stages, &normal, height, width)))
    }

    /// Prepared frames to maps and scores, as the daemon asks for them.
    fn frames(&mut self) -> anyhow::Result<()> {
        let (width, height) = self.request.size;
        let (geometry, normalisation) = (Geometry::Stretch, Normalisation::SymmetricOne);
        let spec = PreprocessSpec { width, height, geometry, normalisation, sketch: SketchPlane::None, tiles: None };
        let prepared = vec![prepared(&self.picture, &spec)?; self.request.batch];
        let latent_channels = self.model.autoencoder.latent_channels;
        let spec = DetectorSpec { classes: Vec::new(), map: self.map, seed: 0, latent_channels, normalisation };
        let cuda = !matches!(self.compute.choice, DeviceChoice::Cpu);
        let mut kinds = vec![(NumberFormat::F32, false, "")];
        if cuda {
            kinds.extend([(NumberFormat::F32, true, ", recorded"), (NumberFormat::F16, true, ", recorded, f16")]);
        }
        let weights = encode_module(&self.network, NumberFormat::F16, Path::new("weights"))?;
        for (format, recorded, kind) in kinds {
            let file = TensorFile::from_bytes(weights.clone(), Path::new("weights"))?;
            let device = &self.compute.device;
            let network = file.load_into(self.model.init(device), format)?;
            let mut detector = DiffusionDetector::new(network, spec.clone(), device, format, TrainerClock::start());
            if recorded {
                detector = detector.recorded();
            }
            for steps in STEPS {
                let plan = Plan { steps: StepPlan::Fixed(Steps(steps)), class: None };
                let mut failed = None;
                self.time(&format!("frame at {steps} steps{kind}"), prepared.len(), || {
                    failed = failed.take().or(detector.detect(&prepared, &plan).err());
                })?;
                failed.map_or(Ok(()), Err)?;
            }
        }
        Ok(())
    }

    /// A step of every stage, as `fit` makes it with a batch of its size; and making such a batch on one core.
    fn training(&mut self) -> anyhow::Result<()> {
        let config = &TrainConfig::of(self.request.profile)?;
        let pictures = [Picture { path: "procedural".into(), rgb: self.picture.clone(), set: 0 }];
        let model = self.model.clone();
        let stages = Stages {
            model: &model,
            config,
            size: self.request.size,
            minutes: 0.0,
            stage_steps: None,
            seed: 0,
            pictures: &pictures,
            augmentations: &[Augmentation::LEAST],
            compute: self.compute,
        };
        let batch = |stage: usize| make(&pictures, &stages.batch(stage), 0);
        let last = batch(2);
        self.time("making a batch", last.size, || drop(batch(2)))?;
        self.step(&AutoencoderObjective { config }, &batch(0), config)?;
        self.step(&DenoiserObjective { classes: false }, &batch(1), config)?;
        self.step(&RefineObjective { config, classes: false }, &last, config)
    }

    fn step<O: Objective>(&mut self, objective: &O, batch: &Batch, config: &TrainConfig) -> anyhow::Result<()> {
        let (network, device) = (self.network.clone(), &self.compute.device);
        let trained = objective.extract(&network).to_device(&device.clone().autodiff()).train();
        let mut ema = Ema::new(&trained, config.ema_decay);
        let mut trained = Some(trained);
        let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_weight_decay(config.weight_decay as f32).init();
        self.time(&format!("training step: {}", objective.name()), batch.size, || {
            if let Some(part) = trained.take() {
                let loss = objective.loss(&network, &part, batch, device);
                let part = descend(&loss, part, &mut optimizer, 1e-5);
                ema.update(&part, 1);
                trained = Some(part);
            }
        })
    }
}
