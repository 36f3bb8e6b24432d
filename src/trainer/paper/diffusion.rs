//! Training the guided denoiser: mean squared error of the predicted noise (Ho et al., arXiv 2006.11239), as DiAD's
//! released code does it.
//!
//! The denoiser's reading half stays what Stable Diffusion learned; its writing half and the whole control network learn.
//! Pictures are not augmented, so latents and backbone features are computed once.

use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use rand::RngExt;

use super::config::{DiffusionConfig, RunConfig};
use super::data::{Material, Purpose, generator, images, normal, order, prepared, stack, upload};
use super::model;
use super::run::Task;
use super::validate::{detector, validate};
use crate::model::autoencoder::posterior::Posterior;
use crate::model::control::ControlNetwork;
use crate::model::features::Stages;
use crate::model::guidance::SketchOperator;
use crate::model::loss::mse;
use crate::model::network::Network;
use crate::model::profile::ModelConfig;
use crate::model::sketch::soft_sketch;
use crate::model::unet::{Conditions, Denoiser};
use crate::preprocess::spec::PreprocessSpec;

const GIB: f64 = (1u64 << 30) as f64;

/// What learns.
#[derive(Module, Debug)]
pub struct Learner {
    /// Its reading half is frozen.
    pub denoiser: Denoiser,
    /// All of it learns.
    pub control: ControlNetwork,
}

/// What a pass is computed from, all on the device.
pub struct Batch {
    /// Scaled latents of the pictures, `[b, c, h/8, w/8]`.
    pub latent: Tensor<4>,
    /// The noise that is to be predicted, of the same shape.
    pub noise: Tensor<4>,
    /// One timestep per picture.
    pub timesteps: Vec<usize>,
    /// The pictures, `[b, 3, h, w]`.
    pub image: Tensor<4>,
    /// Their sketch, where the network wants one.
    pub sketch: Option<Tensor<4>>,
    /// Their features.
    pub stages: Stages,
}

/// What is computed once per picture.
struct Cached {
    moments: [Vec<f32>; 2],
    /// Features at strides 8 and 16, where there is room for them.
    stages: Option<[Vec<f32>; 2]>,
}

/// The task of `trainer train`.
pub struct Diffusion<'a> {
    sizes: &'a ModelConfig,
    run: &'a RunConfig,
    config: &'a DiffusionConfig,
    material: &'a Material,
    spec: &'a PreprocessSpec,
    device: Device,
    /// Everything that does not learn.
    frozen: Network,
    cached: Arc<Vec<Cached>>,
}

impl<'a> Diffusion<'a> {
    /// Takes a model apart into what learns and what does not, and computes latents and features of all pictures.
    ///
    /// # Errors
    /// A model without control network, or what the device says.
    pub fn new(
        sizes: &'a ModelConfig,
        network: Network,
        run: &'a RunConfig,
        config: &'a DiffusionConfig,
        material: &'a Material,
        spec: &'a PreprocessSpec,
        device: &Device,
    ) -> anyhow::Result<(Self, Learner)> {
        let Some(control) = network.control.clone() else {
            anyhow::bail!("the model has no control network; make it with `trainer build-model`");
        };
        let learner = Learner { denoiser: network.denoiser.clone().freeze_reading(), control };
        // A shell whose learning parts are never made, so that they take no memory twice.
        let mut frozen = sizes.init(device);
        frozen.autoencoder = network.autoencoder;
        frozen.context = network.context;
        frozen.features = network.features;
        let device = device.clone();
        let mut task = Self { sizes, run, config, material, spec, device, frozen, cached: Arc::default() };
        task.cached = Arc::new(task.cache()?);
        Ok((task, learner))
    }

    /// The same task on another device; what was computed once is shared.
    pub fn on(&self, device: &Device) -> Self {
        let mut frozen = self.sizes.init(device);
        frozen.autoencoder = self.frozen.autoencoder.clone().to_device(device);
        frozen.context = self.frozen.context.clone().map(|context| context.to_device(device));
        frozen.features = self.frozen.features.clone().to_device(device);
        Self { device: device.clone(), frozen, cached: Arc::clone(&self.cached), ..*self }
    }

    fn cache(&self) -> anyhow::Result<Vec<Cached>> {
        let pictures = &self.material.train;
        let [_, fine, coarse] = self.sizes.backbone.channels();
        let cells = self.spec.width * self.spec.height;
        let per_picture = 4 * (fine * cells / 64 + coarse * cells / 256);
        let room = (per_picture * pictures.len()) as f64 <= self.config.feature_cache_gib * GIB;
        log::info!(
            "latents{} of {} pictures are computed once",
            if room { " and features" } else { ", but for lack of room no features," },
            pictures.len()
        );
        let read = |tensor: Tensor<4>| tensor.try_into_vec_as::<f32>();
        let mut cached = Vec::with_capacity(pictures.len());
        for picture in pictures {
            let image = images(std::iter::once(&picture.rgb[..]), self.spec, &self.device)?;
            let Posterior { mean, log_variance } = self.frozen.autoencoder.posterior(image.clone());
            let moments = [read(mean)?, read(log_variance)?];
            let stages = match room {
                true => {
                    let [_, fine, coarse] = self.frozen.features.forward(image);
                    Some([read(fine)?, read(coarse)?])
                }
                false => None,
            };
            cached.push(Cached { moments, stages });
        }
        Ok(cached)
    }

    fn batch(&self, pass: usize) -> anyhow::Result<Batch> {
        let pictures = &self.material.train;
        let chosen = order(pictures.len(), self.run.batch, pass, self.run.seed);
        let count = chosen.len();
        let (width, height) = (self.spec.width, self.spec.height);
        let prepared = chosen.iter().map(|&index| prepared(&pictures[index].rgb, self.spec));
        let prepared = prepared.collect::<anyhow::Result<Vec<_>>>()?;
        let image = stack(&prepared, self.spec, &self.device);
        let gathered = |part: &dyn Fn(&Cached) -> &[f32], shape: [usize; 4]| {
            upload(chosen.iter().flat_map(|&index| part(&self.cached[index]).to_vec()).collect(), shape, &self.device)
        };
        let mut rng = generator(self.run.seed, pass, Purpose::Pass);
        let shape = [count, self.sizes.autoencoder.latent_channels, height / 8, width / 8];
        let posterior = Posterior {
            mean: gathered(&|cached| &cached.moments[0], shape),
            log_variance: gathered(&|cached| &cached.moments[1], shape),
        };
        let latent = posterior.sample(normal(&mut rng, shape, &self.device)) * self.frozen.latent_scale();
        let noise = normal(&mut rng, shape, &self.device);
        let last = self.frozen.sampler().schedule().timesteps();
        let timesteps = (0..count).map(|_| rng.random_range(0..last)).collect();
        let kept: Vec<f32> =
            (0..count).map(|_| f32::from(u8::from(rng.random::<f64>() >= self.config.sketch_drop))).collect();
        // Canny edges are made on the host, where the daemon makes them too.
        let sketch = match self.sizes.sketch() {
            None => None,
            Some(SketchOperator::Soft) => Some(soft_sketch(image.clone())),
            Some(SketchOperator::Canny) => {
                let planes = prepared.into_iter().flat_map(|picture| picture.sketch.unwrap_or_default()).collect();
                Some(upload(planes, [count, 1, height, width], &self.device))
            }
        };
        let sketch = sketch.map(|sketch| sketch * upload(kept, [count, 1, 1, 1], &self.device));
        let [_, fine, coarse] = self.sizes.backbone.channels();
        let stages = if chosen.iter().all(|&index| self.cached[index].stages.is_some()) {
            let stage = |k: usize, shape| {
                gathered(&|cached| cached.stages.as_ref().map_or(&[][..], |stages| &stages[k]), shape)
            };
            let fine = stage(0, [count, fine, height / 8, width / 8]);
            let coarse = stage(1, [count, coarse, height / 16, width / 16]);
            // No guided network looks at stride 4.
            [Tensor::zeros([count, 1, 1, 1], &self.device), fine, coarse]
        } else {
            self.frozen.features.forward(image.clone())
        };
        Ok(Batch { latent, noise, timesteps, image, sketch, stages })
    }

    /// The model as it stands, off the graph.
    pub fn assemble(&self, learner: Learner) -> Network {
        let mut network = self.frozen.clone();
        network.denoiser = learner.denoiser;
        network.control = Some(learner.control);
        network
    }
}

/// `mean (eps - eps_hat(sqrt(a_t) z + sqrt(1 - a_t) eps, t))^2` of a batch, `[1]`; `model` gives the schedule.
pub fn objective(learner: &Learner, context: Option<&Tensor<2>>, model: &Network, batch: Batch) -> Tensor<1> {
    let Batch { latent, noise, timesteps, image, sketch, stages } = batch;
    let schedule = model.sampler().schedule();
    let device = latent.device();
    let per_picture = |value: &dyn Fn(f64) -> f64| {
        let values = timesteps.iter().map(|&t| value(schedule.alpha_bar(t)) as f32).collect();
        upload(values, [timesteps.len(), 1, 1, 1], &device)
    };
    let noisy = latent * per_picture(&f64::sqrt) + noise.clone() * per_picture(&|bar| (1.0 - bar).sqrt());
    let timesteps: Vec<f64> = timesteps.iter().map(|&t| t as f64).collect();
    let hint = learner.control.hint(image, sketch, &stages);
    let guidance = learner.control.forward(noisy.clone(), &timesteps, context, hint);
    let conditions = Conditions { class: None, context, guidance: Some(&guidance) };
    mse(learner.denoiser.forward(noisy, &timesteps, &conditions), noise)
}

impl Task for Diffusion<'_> {
    type Trained = Learner;

    fn name(&self) -> &'static str {
        "denoiser"
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn optimizer(&self) -> ModuleOptimizer {
        AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(self.config.weight_decay as f32).init()
    }

    fn loss(&self, learner: &Learner, pass: usize) -> anyhow::Result<Tensor<1>> {
        let context = self.frozen.context.as_ref().map(|context| context.val());
        Ok(objective(learner, context.as_ref(), &self.frozen, self.batch(pass)?))
    }

    fn validate(&self, learner: Learner) -> anyhow::Result<f64> {
        let network = self.assemble(learner);
        let mut detector = detector(network, self.sizes, self.spec, self.run.seed, &self.device);
        let DiffusionConfig { validation_pictures: most, validation_steps: steps, .. } = *self.config;
        validate(&mut detector, &self.material.select, most, steps, self.run.seed, self.spec)
    }

    fn write(&self, learner: Learner, directory: &Path) -> anyhow::Result<()> {
        model::write(&self.assemble(learner), self.sizes, directory)
    }
}
