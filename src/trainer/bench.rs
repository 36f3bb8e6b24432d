//! Times a profile's networks on this machine: starts, parts, whole frames, training steps; and the memory that they take.
//!
//! Weights are untrained, and the backbone's too: times do not depend on them. Every time is the median of single runs, each
//! waited for; the first run, in which a GPU compiles and tunes its kernels, is its own figure.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use burn::module::Module;
use serde::Serialize;

use super::augment::Augmentation;
use super::backbone;
use super::batches::{Batch, make};
use super::calibrate::Calibrated;
use super::config::TrainConfig;
use super::export::{Export, export};
use super::judge::TrainerClock;
use super::learner::Learner;
use super::objective::{AutoencoderObjective, DenoiserObjective, Objective, RefineObjective};
use super::paper::data::prepared;
use super::paper::model::{map as paper_map, preprocess};
use super::pictures::{Picture, picture_tensor};
use super::stages::Stages;
use super::start::{self, Scratch, Start};
use super::usage::{forget_peak_rss, peak_rss_mb};
use crate::bundle::manifest::{MapSpec, NumberFormat};
use crate::bundle::weights::{TensorFile, encode_module};
use crate::bundle::{Bundle, WEIGHTS};
use crate::config::device::DeviceChoice;
use crate::detector::{DetectorSpec, DiffusionDetector};
use crate::device::Compute;
use crate::inspection::anomaly::Pooling;
use crate::inspection::calibration::{Calibration, CalibrationEntry};
use crate::inspection::detect::{Detector, Plan, StepChoice, StepPlan, Steps};
use crate::model::lighten::lighten;
use crate::model::network::{MapWeights, Network, class_rows};
use crate::model::profile::{ModelConfig, Profile};
use crate::model::refine::Compared;
use crate::model::score::{feature_map, resize};
use crate::preprocess::spec::PreprocessSpec;
use crate::synthetic::procedural;

/// Runs of one thing at least, and how long it is repeated.
const RUNS: usize = 5;
const REPEAT: Duration = Duration::from_secs(1);
/// What has taken so long is not run again, however few runs there were.
const PATIENCE: Duration = Duration::from_secs(30);
/// Step counts of the frames: those that a bundle lists unless it is told otherwise.
const STEPS: [u32; 3] = [1, 2, 4];

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
    /// Of sd15, whose training is another one, frames and their parts alone are timed: no start, no training.
    pub profile: Profile,
    /// Whose networks are timed; fresh ones of the profile without one. No time depends on it, but another implementation
    /// can be given the same.
    pub bundle: Option<Bundle>,
    /// Columns and rows of the model grid.
    pub size: (usize, usize),
    /// Frames at a time, one number after the other.
    pub batches: Vec<usize>,
    /// Also a step of every stage of training.
    pub train: bool,
}

/// One thing measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Row {
    /// A time.
    Timed(Timed),
    /// Memory.
    Used(Used),
    /// A start.
    Start(Start),
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
    /// Pictures a second at that time.
    pub pictures_per_s: f64,
    /// The first run, milliseconds.
    pub first_ms: f64,
    /// Runs after the first.
    pub runs: usize,
}

/// Memory of a section of the bench, with all that earlier sections left.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Used {
    /// `memory: ` and the section.
    pub what: String,
    /// Pictures that went through at a time; none for training, whose stages have batches of their own.
    pub pictures: Option<usize>,
    /// Largest resident size of this process in the section, MB; none where the system does not tell.
    pub peak_rss_mb: Option<f64>,
    /// What burn held on the device at the end of the section, MB: it gives next to nothing back, so this is near the peak. None on
    /// the CPU.
    pub device_mb: Option<f64>,
}

/// Measures everything; `said` is called with each row as it is known.
///
/// # Errors
/// What the device says, or a start that fails.
pub fn bench(request: &BenchRequest, compute: &Compute, said: impl FnMut(&Row)) -> anyhow::Result<Vec<Row>> {
    let mut bench = Bench::new(request, compute, said)?;
    if request.profile != Profile::Sd15 {
        bench.starts()?;
    }
    for &count in &request.batches {
        bench.section("parts", Some(count), |bench| bench.parts(count))?;
        bench.section("frames", Some(count), |bench| bench.frames(count))?;
    }
    if request.train {
        bench.section("training", None, Bench::training)?;
    }
    Ok(bench.all)
}

/// Untrained networks of a profile as a bundle, with a golden picture: takes as much time and memory as a trained one.
///
/// # Errors
/// A folder that cannot be written, or that is there.
pub fn untrained(profile: Profile, size: (usize, usize), compute: &Compute, dir: &Path) -> anyhow::Result<Bundle> {
    let request = BenchRequest { profile, bundle: None, size, batches: Vec::new(), train: false };
    Bench::new(&request, compute, |_| {})?.untrained(dir)
}

struct Bench<'a, S> {
    request: &'a BenchRequest,
    compute: &'a Compute,
    model: ModelConfig,
    network: Network,
    /// The network's file.
    weights: Vec<u8>,
    map: MapSpec,
    spec: PreprocessSpec,
    picture: Vec<u8>,
    said: S,
    all: Vec<Row>,
}

impl<'a, S: FnMut(&Row)> Bench<'a, S> {
    fn new(request: &'a BenchRequest, compute: &'a Compute, said: S) -> anyhow::Result<Self> {
        let device = &compute.device;
        let paper = request.profile == Profile::Sd15;
        let (model, network, map) = match &request.bundle {
            Some(bundle) => {
                let model = bundle.manifest.model.clone();
                let network = bundle.tensors(WEIGHTS)?.load_into(model.init(device), NumberFormat::F32)?;
                (model, network, bundle.manifest.map)
            }
            None => {
                let model = ModelConfig::of(request.profile, 0);
                let network = model.init(device).materialize().valid();
                // As a bundle of it is.
                let (network, model) = if paper { lighten(network, &model) } else { (network, model) };
                (model, network, if paper { paper_map() } else { EVERYTHING })
            }
        };
        let spec = match &request.bundle {
            Some(bundle) => PreprocessSpec { tiles: None, ..bundle.manifest.preprocess.clone() },
            None => preprocess(&model, request.size.0, request.size.1),
        };
        let weights = encode_module(&network, NumberFormat::F16, Path::new("weights"))?;
        let picture = procedural::product(0).render(0, request.size.0, request.size.1);
        Ok(Self { request, compute, model, network, weights, map, spec, picture, said, all: Vec::new() })
    }

    fn say(&mut self, row: Row) {
        (self.said)(&row);
        self.all.push(row);
    }

    /// Does a section and says what memory it took.
    fn section(
        &mut self,
        what: &str,
        pictures: Option<usize>,
        work: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let told = forget_peak_rss();
        work(self)?;
        self.say(Row::Used(Used {
            what: format!("memory: {what}"),
            pictures,
            peak_rss_mb: peak_rss_mb().filter(|_| told),
            device_mb: self.compute.device.memory_pool_usage().map(|usage| usage.bytes_reserved as f64 / 1e6),
        }));
        Ok(())
    }

    /// Start to ready, cold and warm, by the bundle or by one of the untrained networks.
    fn starts(&mut self) -> anyhow::Result<()> {
        let scratch = Scratch::make("bundle")?;
        let dir = match &self.request.bundle {
            Some(bundle) => bundle.dir.clone(),
            None => self.untrained(&scratch.0.join("untrained"))?.dir,
        };
        for start in start::starts(&dir, self.compute.choice)? {
            self.say(Row::Start(start));
        }
        Ok(())
    }

    /// The untrained networks as a bundle, with a golden picture.
    fn untrained(&self, dir: &Path) -> anyhow::Result<Bundle> {
        let entry = CalibrationEntry {
            class: None,
            steps: StepChoice::Fixed(start::STEPS),
            // Nothing is judged by it, but the tolerance of the self-test follows from it.
            image_threshold: 1.0,
            region_threshold: 1.0,
            min_area: 1,
            tiles: None,
            rois: None,
            samples: 0,
            alpha: 1.0,
            alpha_bound: 1.0,
            median_score: 0.0,
            good: Vec::new(),
        };
        let calibration = Calibration { id: "untrained".into(), entries: vec![entry] };
        export(Export {
            out: dir,
            profile: self.request.profile.to_string(),
            listed: &[start::STEPS],
            seed: 0,
            command: "trainer bench".into(),
            base: None,
            licences: vec![backbone::licence()],
            notice: backbone::notice(),
            model: &self.model,
            spec: &self.spec,
            map: self.map,
            calibrated: &Calibrated { calibration, scores: Vec::new() },
            classes: &[],
            weights: self.weights.clone(),
            golden: &[Picture { path: "procedural".into(), rgb: self.picture.clone(), set: 0 }],
            fingerprint: String::new(),
            detector: &mut self.detector(NumberFormat::F32)?,
            steps: start::STEPS,
        })
    }

    fn detector(&self, format: NumberFormat) -> anyhow::Result<DiffusionDetector> {
        let device = &self.compute.device;
        let file = TensorFile::from_bytes(self.weights.clone(), Path::new("weights"))?;
        let network = file.load_into(self.model.init(device), format)?;
        let latent_channels = self.model.autoencoder.latent_channels;
        let normalisation = self.spec.normalisation;
        let spec = DetectorSpec { classes: Vec::new(), map: self.map, seed: 0, latent_channels, normalisation };
        Ok(DiffusionDetector::new(network, spec, device, format, TrainerClock::start()))
    }

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
        while times.is_empty() || (times.len() < RUNS && started.elapsed() < PATIENCE) || started.elapsed() < REPEAT {
            times.push(run()?);
        }
        times.sort_by(f64::total_cmp);
        let (ms, runs) = (times[times.len() / 2], times.len());
        let pictures_per_s = pictures as f64 / ms * 1e3;
        self.say(Row::Timed(Timed { what: what.into(), pictures, ms, pictures_per_s, first_ms, runs }));
        Ok(())
    }

    /// Every part of a frame alone.
    fn parts(&mut self, count: usize) -> anyhow::Result<()> {
        let (width, height) = self.request.size;
        // As frames of two steps use it: the first of them is timed.
        let network = self.network.clone().joined().at(0, 2);
        let image = picture_tensor(&self.picture, width, height, &self.compute.device).repeat_dim(0, count);
        let (device, rows) = (&self.compute.device, vec![0; count]);
        let classes = class_rows(&rows, device);
        let mut timed = |what: &str, work: &mut dyn FnMut()| self.time(what, count, work);
        timed("features", &mut || drop(network.features.forward(image.clone())))?;
        let stages = network.features.forward(image.clone());
        timed("encode", &mut || drop(network.autoencoder.encode(image.clone(), 1.0)))?;
        let latent = network.autoencoder.encode(image.clone(), 1.0);
        timed("guidance", &mut || drop(network.steer(image.clone(), None, &stages, classes.clone())))?;
        let steering = network.steer(image.clone(), None, &stages, classes.clone());
        let first = network.sampler().schedule().trailing(2)[0] as f64;
        timed("denoise", &mut || drop(network.denoise(latent.clone(), &vec![first; count], &steering)))?;
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
            timed("prototypes", &mut || drop(prototypes.distance(&stages, &rows, height, width)))?;
        }
        timed("feature map", &mut || drop(feature_map(&stages, &normal, height, width)))
    }

    /// Prepared frames to maps and scores, as the daemon asks for them.
    fn frames(&mut self, count: usize) -> anyhow::Result<()> {
        let prepared = vec![prepared(&self.picture, &self.spec)?; count];
        let cuda = !matches!(self.compute.choice, DeviceChoice::Cpu);
        let mut kinds = vec![(NumberFormat::F32, false, "")];
        if cuda {
            kinds.extend([(NumberFormat::F32, true, ", recorded"), (NumberFormat::F16, true, ", recorded, f16")]);
        }
        for (format, recorded, kind) in kinds {
            let mut detector = self.detector(format)?;
            if recorded {
                detector = detector.recorded();
            }
            for steps in STEPS {
                let plan = Plan::new(StepPlan::Fixed(Steps(steps)), None);
                let mut failed = None;
                self.time(&format!("frame at {steps} steps{kind}"), count, || {
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
        self.step(&AutoencoderObjective { config: config.clone() }, &batch(0), config)?;
        self.step(&DenoiserObjective { classes: false }, &batch(1), config)?;
        self.step(&RefineObjective { config: config.clone(), classes: false }, &last, config)
    }

    fn step<O: Objective>(&mut self, objective: &O, batch: &Batch, config: &TrainConfig) -> anyhow::Result<()> {
        let network = self.network.clone();
        let mut learner = Learner::new(objective, &network, config.learner(), &self.compute.device);
        self.time(&format!("training step: {}", objective.name()), batch.size, || {
            learner.step(objective.inputs(&network, batch.clone()), 1e-5);
        })
    }
}
