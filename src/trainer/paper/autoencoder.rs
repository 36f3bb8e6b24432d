//! Finetuning the autoencoder on good pictures: L1, a perceptual distance, and a small KL term.
//!
//! As DiAD's released code with its discriminator inactive (it starts after step 50,001, its authors stopped at 25,000).

use std::path::{Path, PathBuf};

use burn::optim::{AdamConfig, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::config::{FinetuneConfig, RunConfig};
use super::data::{Material, Purpose, generator, images, normal, order};
use super::lpips::Lpips;
use super::run::Task;
use crate::model::autoencoder::{Autoencoder, AutoencoderConfig};
use crate::model::features::resnet::{DEVIATION, MEAN};
use crate::model::features::{FeatureExtractor, Stages};
use crate::model::loss::l1;
use crate::model::score::cosine_distance;
use crate::preprocess::spec::{Normalisation, PreprocessSpec};
use crate::synthetic::corrupt::{CorruptionFamily, corrupt};
use crate::trainer::import::build::read_autoencoder;
use crate::trainer::import::release::write_autoencoder;
use crate::trainer::pictures::spread;

/// The file in a checkpoint: CompVis' names, so that `build-model --first-stage` reads it.
pub const FIRST_STAGE: &str = "first_stage.safetensors";

/// What judges how alike two pictures look.
pub enum Perceptual {
    /// With published weights.
    Lpips(Lpips),
    /// Without them: the cosine distance of the frozen feature extractor, which sees pictures in -1 to 1.
    Features(Box<FeatureExtractor>),
}

/// The task of `trainer finetune-autoencoder`.
pub struct Finetune<'a> {
    /// Sizes of the autoencoder.
    pub sizes: &'a AutoencoderConfig,
    /// Batch, seed and grid.
    pub run: &'a RunConfig,
    /// Weights of the loss.
    pub config: &'a FinetuneConfig,
    /// The pictures.
    pub material: &'a Material,
    /// How they come to the autoencoder.
    pub spec: &'a PreprocessSpec,
    /// The perceptual term.
    pub perceptual: Perceptual,
    /// Device without the gradient graph.
    pub device: &'a Device,
}

impl Finetune<'_> {
    /// The autoencoder of a checkpoint directory, or of a published file.
    ///
    /// # Errors
    /// A file that cannot be read or does not fit.
    pub fn start(from: &Path, sizes: &AutoencoderConfig, device: &Device) -> anyhow::Result<Autoencoder> {
        let inside = from.join(FIRST_STAGE);
        let path: PathBuf = if inside.is_file() { inside } else { from.to_path_buf() };
        read_autoencoder(&path, sizes, device)
    }

    /// `(|x - y| + w d(x, y))` summed over a picture, mean over the batch, and the KL term: `[1]`.
    pub fn objective(&self, trained: &Autoencoder, image: Tensor<4>, noise: Tensor<4>) -> Tensor<1> {
        let [_, channels, height, width] = image.dims();
        let posterior = trained.posterior(image.clone());
        let shown = trained.decode(posterior.sample(noise), 1.0);
        let distance = match &self.perceptual {
            Perceptual::Lpips(lpips) => lpips.forward(image.clone(), shown.clone()).mean(),
            Perceptual::Features(features) => {
                let seen = features.forward(self.symmetric(image.clone()));
                cosine(&seen, &features.forward(self.symmetric(shown.clone())))
            }
        };
        let values = (channels * height * width) as f64;
        (l1(shown, image) + distance * self.config.perceptual_weight) * values + posterior.kl() * self.config.kl_weight
    }

    /// Model input in -1 to 1, whatever the autoencoder sees.
    fn symmetric(&self, image: Tensor<4>) -> Tensor<4> {
        match self.config.normalisation {
            Normalisation::SymmetricOne => image,
            Normalisation::ImageNet => {
                let device = image.device();
                let row = |values: [f64; 3]| Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]);
                (image * row(DEVIATION) + row(MEAN)) * 2.0 - 1.0
            }
        }
    }
}

/// Sum of the stages' mean cosine distances.
fn cosine(a: &Stages, b: &Stages) -> Tensor<1> {
    let distances = a.iter().zip(b).map(|(a, b)| cosine_distance(a.clone(), b.clone()).mean());
    distances.reduce(|sum, distance| sum + distance).expect("three stages")
}

impl Task for Finetune<'_> {
    type Trained = Autoencoder;

    fn name(&self) -> &'static str {
        "autoencoder"
    }

    fn device(&self) -> &Device {
        self.device
    }

    fn optimizer(&self) -> ModuleOptimizer {
        AdamConfig::new().with_beta_1(0.5).with_beta_2(0.9).with_epsilon(1e-8).init()
    }

    fn loss(&self, trained: &Autoencoder, pass: usize) -> anyhow::Result<Tensor<1>> {
        let pictures = &self.material.train;
        let chosen = order(pictures.len(), self.run.batch, pass, self.run.seed);
        let image = images(chosen.iter().map(|&index| &pictures[index].rgb[..]), self.spec, self.device)?;
        let shape = [chosen.len(), self.sizes.latent_channels, self.spec.height / 8, self.spec.width / 8];
        let noise = normal(&mut generator(self.run.seed, pass, Purpose::Pass), shape, self.device);
        Ok(self.objective(trained, image, noise))
    }

    /// Less the mean absolute error over held-out pictures, each as it is and with a synthetic defect: what the autoencoder
    /// erases, nothing after it can see.
    fn validate(&self, trained: Autoencoder) -> anyhow::Result<f64> {
        let (mut sum, mut count) = (0.0, 0);
        let mut rng = ChaCha8Rng::seed_from_u64(self.run.seed);
        for (index, picture) in spread(&self.material.select, self.config.validation_pictures).enumerate() {
            let families = &CorruptionFamily::VALIDATION;
            let family = families[index % families.len()];
            let spoilt = corrupt(&picture.rgb, self.spec.width, self.spec.height, None, family, &mut rng);
            for rgb in [&picture.rgb, &spoilt.rgb] {
                let image = images(std::iter::once(&rgb[..]), self.spec, self.device)?;
                let shown = trained.decode(trained.posterior(image.clone()).mean, 1.0);
                sum += f64::from(l1(shown, image).try_into_scalar::<f32>()?);
                count += 1;
            }
        }
        Ok(-sum / f64::from(count))
    }

    fn write(&self, trained: Autoencoder, directory: &Path) -> anyhow::Result<()> {
        write_autoencoder(&trained, self.sizes, &directory.join(FIRST_STAGE))
    }
}
