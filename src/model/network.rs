//! All networks as one module: a picture in, its reconstruction and the anomaly components out.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData, activation::sigmoid, assert_shape};
use serde::{Deserialize, Serialize};

use super::autoencoder::Autoencoder;
use super::features::{FeatureExtractor, Stages};
use super::guidance::{GuidanceNetwork, SketchOperator};
use super::profile::ModelConfig;
use super::prototypes::Prototypes;
use super::refine::RefineHead;
use super::sampler::Sampler;
use super::score::{feature_map, latent_map, resize};
use super::sketch::soft_sketch;
use super::unet::{Denoiser, Guidance};

/// Weights of the anomaly components in the map; each already divided by what good parts show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapWeights {
    /// Cosine distance of backbone features.
    pub features: f64,
    /// Difference of latents.
    pub latent: f64,
    /// Probability of the refine head.
    pub refine: f64,
    /// Distance to the nearest prototype.
    pub prototypes: f64,
}

/// Anomaly components of a batch, `[b, 1, h, w]` each, not smoothed.
#[derive(Debug, Clone)]
pub struct Components {
    /// Sum of three cosine distances, 0 to 6.
    pub features: Tensor<4>,
    /// Mean absolute latent difference.
    pub latent: Tensor<4>,
    /// Probability of a defect, where there is a refine head.
    pub refine: Option<Tensor<4>>,
    /// Distance of backbone features to the nearest prototype, where there are prototypes.
    pub prototypes: Option<Tensor<4>>,
}

impl Components {
    /// The weighted sum: the anomaly map before smoothing, `[b, 1, h, w]`.
    pub fn combine(&self, weights: &MapWeights) -> Tensor<4> {
        let map = self.features.clone() * weights.features + self.latent.clone() * weights.latent;
        [(&self.refine, weights.refine), (&self.prototypes, weights.prototypes)]
            .into_iter()
            .filter_map(|(component, weight)| Some(component.clone()? * weight))
            .fold(map, |map, component| map + component)
    }
}

/// A reconstruction and everything that scoring needs.
#[derive(Debug, Clone)]
pub struct Reconstructed {
    /// The latent of the picture, scaled.
    pub seen_latent: Tensor<4>,
    /// The latent after the steps, scaled.
    pub latent: Tensor<4>,
    /// The defect-free picture, `[b, 3, h, w]`.
    pub image: Tensor<4>,
    /// Features of the picture itself.
    pub seen: Stages,
}

/// The whole model.
#[derive(Module, Debug)]
pub struct Network {
    /// Picture to latent and back.
    pub autoencoder: Autoencoder,
    /// Predicts what is not normal in a latent.
    pub denoiser: Denoiser,
    /// Steers the denoiser.
    pub guidance: GuidanceNetwork,
    /// Judges differences.
    pub refine: Option<RefineHead>,
    /// Typical patches of good parts.
    pub prototypes: Option<Prototypes>,
    /// Frozen.
    pub features: FeatureExtractor,
    latent_scale: f64,
    #[module(skip)]
    sampler: Sampler,
    #[module(skip)]
    sketch: Option<SketchOperator>,
}

impl Network {
    /// Makes all networks with fresh weights.
    ///
    /// # Panics
    /// If the configuration has a problem.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        if let Some(problem) = config.problem() {
            panic!("model: {problem}");
        }
        let denoiser = &config.denoiser;
        let coarsest = denoiser.channels[denoiser.channels.len() - 1];
        let stages = config.backbone.channels();
        // The coarsest level's skips are its blocks and, before them, the downsampling that entered it: that one has the
        // channels of the level above.
        let mut skips = vec![coarsest; denoiser.guided_skips()];
        if denoiser.channels.len() > 1 {
            skips[0] = denoiser.channels[denoiser.channels.len() - 2];
        }
        Self {
            autoencoder: config.autoencoder.init(device),
            denoiser: denoiser.init(device),
            guidance: config.guidance.init(coarsest, &skips, denoiser.embedding(), config.classes, stages, device),
            refine: config.refine.as_ref().map(|refine| refine.init(stages, device)),
            prototypes: config.prototypes.as_ref().map(|p| p.init(stages, config.classes, device)),
            features: config.backbone.init(device),
            latent_scale: config.latent_scale,
            sampler: config.sampler,
            sketch: config.guidance.sketch,
        }
    }

    /// The factor that every latent carries.
    pub fn latent_scale(&self) -> f64 {
        self.latent_scale
    }

    /// Sets the factor once it has been measured on the training pictures.
    pub fn with_latent_scale(mut self, latent_scale: f64) -> Self {
        self.latent_scale = latent_scale;
        self
    }

    /// The sampler that this network is trained for.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Control for the denoiser from a picture: once per frame, whatever the step count.
    ///
    /// # Shapes
    /// - image `[b, 3, h, w]`, canny plane `[b, 1, h, w]` where the configuration asks for it, stages of the picture
    pub fn guide(&self, image: Tensor<4>, canny: Option<Tensor<4>>, stages: &Stages) -> Guidance {
        let sketch = match self.sketch {
            Some(SketchOperator::Soft) => Some(soft_sketch(image.clone())),
            Some(SketchOperator::Canny) => canny,
            None => None,
        };
        self.guidance.forward(image, sketch, Some(stages))
    }

    /// Indices of classes (0 is the null class) as embeddings `[b, embedding]`.
    pub fn class_embedding(&self, classes: &[usize], device: &Device) -> Tensor<2> {
        let rows: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [classes.len()]), device);
        self.guidance.class_embedding(rows)
    }

    /// The guided reconstruction.
    ///
    /// # Shapes
    /// - image `[b, 3, h, w]` in -1 to 1; `classes` has `b` indices, 0 is the null class
    /// - noise `[b, c, h/8, w/8]` where the sampler needs it
    pub fn reconstruct(
        &self,
        image: Tensor<4>,
        canny: Option<Tensor<4>>,
        classes: &[usize],
        steps: u32,
        noise: Option<Tensor<4>>,
    ) -> Reconstructed {
        let batch = classes.len();
        assert_shape!(image, [batch, 3, _, _]);
        let seen = self.features.forward(image.clone());
        let guidance = self.guide(image.clone(), canny, &seen);
        let class = self.class_embedding(classes, &image.device());
        let seen_latent = self.autoencoder.encode(image, self.latent_scale);
        let latent = self.sampler.run(seen_latent.clone(), noise, steps, |x, t| {
            let timesteps = vec![t as f64; batch];
            self.denoiser.forward(x, &timesteps, Some(class.clone()), Some(&guidance))
        });
        let image = self.autoencoder.decode(latent.clone(), self.latent_scale);
        Reconstructed { seen_latent, latent, image, seen }
    }

    /// How far a picture is from its reconstruction.
    ///
    /// The picture is compared as the *autoencoder* shows it, so that the autoencoder's own error cancels; the refine
    /// head sees the picture itself, because a small defect may be lost in the latent.
    pub fn components(&self, image: Tensor<4>, classes: &[usize], reconstructed: &Reconstructed) -> Components {
        let [batch, _, height, width] = image.dims();
        let shown = self.autoencoder.decode(reconstructed.seen_latent.clone(), self.latent_scale);
        // One pass for both pictures: half the launches.
        let both = self.features.forward(Tensor::cat(vec![shown, reconstructed.image.clone()], 0));
        let shown = both.clone().map(|stage| stage.narrow(0, 0, batch));
        let redrawn = both.map(|stage| stage.narrow(0, batch, batch));
        let refine = self.refine.as_ref().map(|refine| {
            let logits = refine.forward(image, reconstructed.image.clone(), &reconstructed.seen, &redrawn);
            resize(sigmoid(logits), height, width)
        });
        Components {
            features: feature_map(&shown, &redrawn, height, width),
            latent: latent_map(reconstructed.seen_latent.clone(), reconstructed.latent.clone(), height, width),
            refine,
            prototypes: self.prototypes.as_ref().map(|p| p.distance(&reconstructed.seen, classes, height, width)),
        }
    }
}
