//! All networks as one module: a picture in, its reconstruction and the anomaly components out.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::sigmoid, assert_shape};
use serde::{Deserialize, Serialize};

use super::autoencoder::Autoencoder;
use super::control::ControlNetwork;
use super::features::{FeatureExtractor, Stages};
use super::guidance::{GuidanceNetwork, SketchOperator};
use super::profile::ModelConfig;
use super::prototypes::Prototypes;
use super::refine::{Compared, RefineHead};
use super::repair::Repair;
use super::sampler::Sampler;
use super::score::{feature_map, latent_map, resize};
use super::sketch::soft_sketch;
use super::unet::{Conditions, Denoiser, Guidance};
use crate::kernels::side_by_side;

/// Weights of the anomaly components in the map; each already divided by what good parts show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapWeights {
    /// Cosine distance of backbone features.
    pub features: f64,
    /// What good parts show of that distance in the middle: up to here it means nothing.
    #[serde(default)]
    pub features_floor: f64,
    /// Difference of latents.
    pub latent: f64,
    /// Probability of the refine head.
    pub refine: f64,
    /// The weighed probability counts to this power, so that a head which is silent on good parts does not shout the others
    /// down. Bundles of versions before it could be chosen add it as it is.
    #[serde(default = "linear")]
    pub refine_power: f64,
    /// Distance to the nearest prototype, above the floor.
    pub prototypes: f64,
    /// What good parts show of that distance in the middle: nothing is like its nearest prototype, and up to here it means
    /// nothing.
    pub prototypes_floor: f64,
}

fn linear() -> f64 {
    1.0
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
        let above = |component: &Tensor<4>, floor: f64| (component.clone() - floor).clamp_min(0.0);
        let mut map = above(&self.features, weights.features_floor) * weights.features;
        map = map + self.latent.clone() * weights.latent;
        if let Some(refine) = &self.refine {
            let weighed = refine.clone() * weights.refine;
            map = map + if weights.refine_power == 1.0 { weighed } else { weighed.powf_scalar(weights.refine_power) };
        }
        if let Some(prototypes) = &self.prototypes {
            map = map + above(prototypes, weights.prototypes_floor) * weights.prototypes;
        }
        map
    }

    /// How unlike good parts a picture is as a whole: the mean distance of its features to the prototypes, or to those of its
    /// reconstruction where there are none. `[b, 1]`
    pub fn novelty(&self) -> Tensor<2> {
        let distance = self.prototypes.as_ref().unwrap_or(&self.features);
        let batch = distance.dims()[0];
        distance.clone().mean_dims(&[2, 3]).reshape([batch, 1])
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

/// What the features of a picture say without its reconstruction.
struct Known {
    /// Features and what they would be without a defect, where there is a [`Repair`].
    compared: Option<(Stages, Stages)>,
    prototypes: Option<Tensor<4>>,
}

/// What a picture steers its reconstruction with.
#[derive(Debug, Clone)]
pub struct Steering {
    /// Control and class embedding of the network that sees the picture alone.
    guidance: Option<(Guidance, Tensor<2>)>,
    /// The picture's part of the network that sees the latent too.
    hint: Option<Tensor<4>>,
}

/// Indices of classes, as [`Network::steer`] and [`Network::restore`] take them.
pub fn class_rows(classes: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
    Tensor::from_data(TensorData::new(rows, [classes.len()]), device)
}

/// The whole model.
#[derive(Module, Debug)]
pub struct Network {
    /// Picture to latent and back.
    pub autoencoder: Autoencoder,
    /// Predicts what is not normal in a latent.
    pub denoiser: Denoiser,
    /// Steers the denoiser from the picture alone: the edge profiles.
    pub guidance: Option<GuidanceNetwork>,
    /// Steers the denoiser from the picture, the latent and the timestep: the paper's size.
    pub control: Option<ControlNetwork>,
    /// The constant that all transformer blocks attend to, `[tokens, width]`, where they do not store it.
    pub context: Option<Param<Tensor<2>>>,
    /// Predicts the backbone features of the part without its defect.
    pub repair: Option<Repair>,
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
    /// Networks of the timesteps of one step count and class ([`Self::at`]).
    #[module(skip)]
    steps: Vec<Step>,
}

/// What denoises at one timestep.
#[derive(Debug, Clone)]
struct Step {
    timestep: f64,
    denoiser: Denoiser,
    control: Option<ControlNetwork>,
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
            guidance: config
                .guidance
                .as_ref()
                .map(|guidance| guidance.init(coarsest, &skips, denoiser.embedding(), config.classes, stages, device)),
            control: config.control.as_ref().map(|control| control.init(denoiser, stages, device)),
            context: denoiser
                .context
                .as_ref()
                .filter(|context| !context.stored)
                .map(|context| Param::from_tensor(Tensor::zeros([context.tokens, context.width], device))),
            repair: config.repair.as_ref().map(|repair| repair.init(stages, device)),
            refine: config.refine.as_ref().map(|refine| refine.init(stages, denoiser.latent_channels, device)),
            prototypes: config.prototypes.as_ref().map(|p| p.init(stages, config.classes, device)),
            features: config.backbone.init(device),
            latent_scale: config.latent_scale,
            sampler: config.sampler,
            sketch: config.sketch(),
            steps: Vec::new(),
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

    /// The same network to judge with: the layers that see the same are one, once and not in every call. It is not trained any more,
    /// and stays on its device.
    pub fn joined(mut self) -> Self {
        let context = self.context.as_ref().map(Param::val);
        self.denoiser = self.denoiser.joined(context.as_ref());
        self.control = self.control.map(|control| control.joined(context.as_ref()));
        self
    }

    /// The same network for reconstructions of one class in so many steps: what follows from these alone is computed once, not per
    /// frame. It shares its weights with this one.
    ///
    /// Only [`Self::reconstruct`], [`Self::inspect`] and [`Self::restore`] with that class and step count mean anything from then on.
    pub fn at(&self, class: usize, steps: u32) -> Self {
        let mut network = self.clone();
        let device = self.devices().swap_remove(0);
        let class = self.guidance.as_ref().map(|guidance| guidance.class_embedding(class_rows(&[class], &device)));
        let step = |t| {
            let timestep = t as f64;
            let control = self.control.clone().map(|control| control.at(timestep));
            Step { timestep, denoiser: self.denoiser.clone().at(timestep, class.as_ref()), control }
        };
        network.steps = self.sampler.schedule().trailing(steps).into_iter().map(step).collect();
        network
    }

    /// What steers from a picture: once per frame, whatever the step count.
    ///
    /// # Shapes
    /// - image `[b, 3, h, w]`, canny plane `[b, 1, h, w]` where the configuration asks for it, stages of the picture;
    ///   `classes` has `b` indices, 0 is the null class
    pub fn steer(
        &self,
        image: Tensor<4>,
        canny: Option<Tensor<4>>,
        stages: &Stages,
        classes: Tensor<1, Int>,
    ) -> Steering {
        let sketch = match self.sketch {
            Some(SketchOperator::Soft) => Some(soft_sketch(image.clone())),
            Some(SketchOperator::Canny) => canny,
            None => None,
        };
        let guidance = self.guidance.as_ref().map(|network| {
            (network.forward(image.clone(), sketch.clone(), Some(stages)), network.class_embedding(classes))
        });
        let hint = self.control.as_ref().map(|network| network.hint(image, sketch, stages));
        Steering { guidance, hint }
    }

    /// One guided call of the denoiser: `[b, c, h/8, w/8]` and `b` timesteps to what the sampler asks for.
    pub fn denoise(&self, latent: Tensor<4>, timesteps: &[f64], steering: &Steering) -> Tensor<4> {
        let context = self.context.as_ref().map(Param::val);
        let mut conditions = Conditions { context: context.as_ref(), ..Conditions::default() };
        if let Some((guidance, class)) = &steering.guidance {
            conditions.guidance = Some(guidance);
            conditions.class = Some(class);
        }
        let own = self.steps.iter().find(|step| timesteps.iter().all(|t| *t == step.timestep));
        let (denoiser, control) = match own {
            Some(Step { denoiser, control, .. }) => (denoiser, control),
            None => (&self.denoiser, &self.control),
        };
        let control = control
            .as_ref()
            .zip(steering.hint.as_ref())
            .map(|(network, hint)| network.forward(latent.clone(), timesteps, context.as_ref(), hint.clone()));
        conditions.guidance = control.as_ref().or(conditions.guidance);
        denoiser.forward(latent, timesteps, &conditions)
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
        let (seen, seen_latent) = self.seen(&image, classes);
        let rows = class_rows(classes, &image.device());
        let latent = self.restored(image, canny, &seen, &seen_latent, rows, steps, noise);
        let image = self.decode(latent.clone());
        Reconstructed { seen_latent, latent, image, seen }
    }

    /// [`Self::reconstruct`] and [`Self::components`] of the same picture; what needs its features alone is done beside the
    /// reconstruction.
    ///
    /// # Shapes
    /// - as both
    pub fn inspect(
        &self,
        image: Tensor<4>,
        canny: Option<Tensor<4>>,
        classes: &[usize],
        steps: u32,
        noise: Option<Tensor<4>>,
    ) -> (Reconstructed, Components) {
        let [_, _, height, width] = image.dims();
        let (seen, seen_latent) = self.seen(&image, classes);
        let redraw = || {
            let rows = class_rows(classes, &image.device());
            let latent = self.restored(image.clone(), canny, &seen, &seen_latent, rows, steps, noise);
            (latent.clone(), self.decode(latent))
        };
        let ((latent, redrawn), known) =
            side_by_side(&image.device(), redraw, || self.known(&seen, classes, height, width));
        let reconstructed = Reconstructed { seen_latent, latent, image: redrawn, seen };
        let components = self.components_of(image, &reconstructed, known);
        (reconstructed, components)
    }

    /// Features and scaled latent of a picture.
    fn seen(&self, image: &Tensor<4>, classes: &[usize]) -> (Stages, Tensor<4>) {
        let batch = classes.len();
        assert_shape!(image, [batch, 3, _, _]);
        let encode = || self.autoencoder.encode(image.clone(), self.latent_scale);
        side_by_side(&image.device(), || self.features.forward(image.clone()), encode)
    }

    /// The latent of a picture, and the one that diffusion restored: a reconstruction that was not decoded.
    ///
    /// # Shapes
    /// - as [`Self::reconstruct`], with the stages of the picture; `b` classes as [`class_rows`] gives them; two latents `[b, c, h/8, w/8]`
    pub fn restore(
        &self,
        image: Tensor<4>,
        canny: Option<Tensor<4>>,
        stages: &Stages,
        classes: Tensor<1, Int>,
        steps: u32,
        noise: Option<Tensor<4>>,
    ) -> (Tensor<4>, Tensor<4>) {
        let seen = self.autoencoder.encode(image.clone(), self.latent_scale);
        let restored = self.restored(image, canny, stages, &seen, classes, steps, noise);
        (seen, restored)
    }

    #[expect(clippy::too_many_arguments, reason = "a picture, what is known of it, and how to redraw it")]
    fn restored(
        &self,
        image: Tensor<4>,
        canny: Option<Tensor<4>>,
        stages: &Stages,
        seen: &Tensor<4>,
        classes: Tensor<1, Int>,
        steps: u32,
        noise: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let batch = image.dims()[0];
        let steering = self.steer(image, canny, stages, classes);
        let denoise = |x, t| self.denoise(x, &vec![t as f64; batch], &steering);
        self.sampler.run(seen.clone(), noise, steps, denoise)
    }

    /// The picture of a scaled latent, `[b, c, h/8, w/8]` to `[b, 3, h, w]`.
    pub fn decode(&self, latent: Tensor<4>) -> Tensor<4> {
        self.autoencoder.decode(latent, self.latent_scale)
    }

    /// How far a picture is from what a good part would show.
    ///
    /// With a [`Repair`] that is what it makes of the picture's features, without one the features of the reconstruction
    /// ([`Self::redrawn_features`]).
    pub fn components(&self, image: Tensor<4>, classes: &[usize], reconstructed: &Reconstructed) -> Components {
        let [_, _, height, width] = image.dims();
        let known = self.known(&reconstructed.seen, classes, height, width);
        self.components_of(image, reconstructed, known)
    }

    /// What the features of a picture say alone.
    fn known(&self, seen: &Stages, classes: &[usize], height: usize, width: usize) -> Known {
        let compared = self.repair.as_ref().map(|repair| {
            let seen = repair.scale.standardise(seen);
            let normal = repair.network.forward(&seen);
            (seen, normal)
        });
        let prototypes = self.prototypes.as_ref().map(|p| p.distance(seen, classes, height, width));
        Known { compared, prototypes }
    }

    fn components_of(&self, image: Tensor<4>, reconstructed: &Reconstructed, known: Known) -> Components {
        let [_, _, height, width] = image.dims();
        let (shown, normal) = known.compared.unwrap_or_else(|| self.redrawn_features(reconstructed));
        let refine = self.refine.as_ref().map(|refine| {
            let latents = Compared { seen: &reconstructed.seen_latent, normal: &reconstructed.latent };
            let logits = refine.forward(image, latents, Compared { seen: &shown, normal: &normal });
            resize(sigmoid(logits), height, width)
        });
        Components {
            features: feature_map(&shown, &normal, height, width),
            latent: latent_map(reconstructed.seen_latent.clone(), reconstructed.latent.clone(), height, width),
            refine,
            prototypes: known.prototypes,
        }
    }

    /// Features of the picture and of its reconstruction, to be compared.
    ///
    /// Deviation correction starts from the picture's latent, so the picture is compared as the *autoencoder* shows it and
    /// the autoencoder's own error cancels; the paper's DDIM starts from noise and compares the picture itself, which saves
    /// a decode.
    pub fn redrawn_features(&self, reconstructed: &Reconstructed) -> (Stages, Stages) {
        let Reconstructed { seen_latent, image, seen, .. } = reconstructed;
        match self.sampler {
            Sampler::DeviationCorrection { .. } => {
                let shown = self.decode(seen_latent.clone());
                let batch = shown.dims()[0];
                // One pass for both pictures: half the launches.
                let both = self.features.forward(Tensor::cat(vec![shown, image.clone()], 0));
                let shown = both.clone().map(|stage| stage.narrow(0, 0, batch));
                (shown, both.map(|stage| stage.narrow(0, batch, batch)))
            }
            Sampler::Ddim { .. } => (seen.clone(), self.features.forward(image.clone())),
        }
    }
}
