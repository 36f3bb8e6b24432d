//! The three things that are trained, one after the other: each knows its module, its loss, and nothing of the loop.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

use super::batches::Batch;
use super::config::TrainConfig;
use crate::model::autoencoder::Autoencoder;
use crate::model::features::Stages;
use crate::model::guidance::GuidanceNetwork;
use crate::model::loss::{dice, feature_distance, focal, l1};
use crate::model::network::Network;
use crate::model::refine::{Compared, RefineHead};
use crate::model::repair::{Repair, RepairNetwork};
use crate::model::sketch::soft_sketch;
use crate::model::unet::{Conditions, Denoiser, Guidance};

/// A loss of one stage. `network` is off the gradient graph, `trained` on it.
pub trait Objective {
    /// The part of the network that learns.
    type Trained: Module + Clone;

    /// Name of the stage, in logs and checkpoints.
    fn name(&self) -> &'static str;

    /// The part as it stands, off the graph.
    fn extract(&self, network: &Network) -> Self::Trained;

    /// Puts the trained part back, off the graph.
    fn install(&self, network: Network, trained: Self::Trained) -> Network;

    /// The loss of a batch, `[1]`.
    fn loss(&self, network: &Network, trained: &Self::Trained, batch: &Batch, device: &Device) -> Tensor<1>;
}

fn upload(values: &[f32], shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// The pictures of the batch on `device`: good, and as the camera sees them.
fn images(batch: &Batch, device: &Device) -> (Tensor<4>, Tensor<4>) {
    let shape = [batch.size, 3, batch.height, batch.width];
    (upload(&batch.clean, shape, device), upload(&batch.seen, shape, device))
}

/// Half of the rows and columns, at a place drawn in 0 to 1, where half is still a picture to the backbone.
fn part(image: &Tensor<4>, draw: [f64; 3]) -> Tensor<4> {
    let [_, _, height, width] = image.dims();
    let span = |length: usize, draw: f64| {
        let half = if length < 128 { length } else { length / 64 * 32 };
        let start = (draw * (length - half + 1) as f64) as usize;
        start..start + half
    };
    image.clone().slice([0..image.dims()[0], 0..3, span(height, draw[0]), span(width, draw[1])])
}

fn column(values: impl Iterator<Item = f32>, size: usize, device: &Device) -> Tensor<4> {
    upload(&values.collect::<Vec<_>>(), [size, 1, 1, 1], device)
}

/// Pictures through the latent and back. Defects must survive: what the autoencoder erases, nothing after it can see.
#[derive(Debug)]
pub struct AutoencoderObjective<'a> {
    /// Weights of the terms.
    pub config: &'a TrainConfig,
}

impl Objective for AutoencoderObjective<'_> {
    type Trained = Autoencoder;

    fn name(&self) -> &'static str {
        "autoencoder"
    }

    fn extract(&self, network: &Network) -> Autoencoder {
        network.autoencoder.clone()
    }

    fn install(&self, mut network: Network, trained: Autoencoder) -> Network {
        network.autoencoder = trained;
        network
    }

    fn loss(&self, network: &Network, trained: &Autoencoder, batch: &Batch, device: &Device) -> Tensor<1> {
        let (_, seen) = images(batch, device);
        let posterior = trained.posterior(seen.clone());
        let shape = posterior.mean.dims();
        let latent = posterior.sample(upload(&batch.noise, shape, device));
        let shown = trained.decode(latent, 1.0);
        // Features on one part of the picture at a time: they are most of this stage's work, and look locally anyway.
        let part = |image: &Tensor<4>| part(image, batch.draws[0]);
        let expected = network.features.forward(part(&seen));
        let features = network.features.forward(part(&shown));
        l1(shown, seen)
            + feature_distance(&features, &expected) * self.config.feature_weight
            + posterior.kl() * self.config.kl_weight
    }
}

/// What the second stage trains together.
#[derive(Module, Debug)]
pub struct GuidedDenoiser {
    denoiser: Denoiser,
    guidance: GuidanceNetwork,
}

/// Deviation from normal: `x_t = z0 + sqrt(1 - alpha_bar_t) d`, and the network predicts `d` (DeCo-Diff).
///
/// A synthetic defect in the *picture* gives `d = (z_seen - z0) / sqrt(1 - alpha_bar_T)`, so that at the first step, where
/// inference starts, `x_T` is exactly the latent of the defective picture, and at later steps what is left of the defect.
/// Corruption of the *latent* gives `d = m (n - k z0)` on random patches `m`, `n` noise or another picture's latent.
#[derive(Debug)]
pub struct DenoiserObjective {
    /// Whether the bundle has classes; without them every picture is of the null class.
    pub classes: bool,
}

/// Share of pictures whose class is replaced by the null class, so that a recipe without a class works too.
const CLASS_DROP: f64 = 0.2;
/// Share of pictures whose guidance is dropped: the denoiser must not lean on it alone.
const GUIDANCE_DROP: f64 = 0.15;
/// Weight of corrupted cells over the others in the loss: they are few.
const DEFECT_WEIGHT: f64 = 4.0;

impl Objective for DenoiserObjective {
    type Trained = GuidedDenoiser;

    fn name(&self) -> &'static str {
        "denoiser"
    }

    fn extract(&self, network: &Network) -> GuidedDenoiser {
        let guidance = network.guidance.clone().expect("this stage runs for profiles that the picture alone guides");
        GuidedDenoiser { denoiser: network.denoiser.clone(), guidance }
    }

    fn install(&self, mut network: Network, trained: GuidedDenoiser) -> Network {
        network.denoiser = trained.denoiser;
        network.guidance = Some(trained.guidance);
        network
    }

    fn loss(&self, network: &Network, trained: &GuidedDenoiser, batch: &Batch, device: &Device) -> Tensor<1> {
        let size = batch.size;
        let (clean, seen) = images(batch, device);
        let scale = network.latent_scale();
        let normal = network.autoencoder.encode(clean, scale);
        let observed = network.autoencoder.encode(seen.clone(), scale);
        let shape = normal.dims();
        let schedule = network.sampler().schedule();
        let last = schedule.timesteps() - 1;
        let sigma = |t: usize| (1.0 - schedule.alpha_bar(t)).sqrt();
        // Half of the pictures are at the level at which inference starts: one step is trained for directly.
        let level = |draw: f64| if draw < 0.5 { last } else { ((draw - 0.5) * 2.0 * last as f64) as usize };
        let levels: Vec<usize> = batch.draws.iter().map(|draw| level(draw[0])).collect();
        let per_picture = |value: &dyn Fn(usize) -> f64| column((0..size).map(|k| value(k) as f32), size, device);
        let noise = {
            let own = upload(&batch.noise, shape, device);
            let source: Vec<i32> = (0..size).map(|k| batch.swap[k].unwrap_or(k) as i32).collect();
            let others = normal.clone().select(0, Tensor::from_data(TensorData::new(source, [size]), device));
            let swapped = per_picture(&|k| f64::from(u8::from(batch.swap[k].is_some())));
            own.clone() + (others - own) * swapped
        };
        let mask = upload(&batch.latent_mask, [size, 1, shape[2], shape[3]], device);
        let kept = per_picture(&|k| {
            let alpha_bar = schedule.alpha_bar(levels[k]);
            (1.0 - alpha_bar.sqrt()) / (1.0 - alpha_bar).sqrt()
        });
        let by_latent = (noise - normal.clone() * kept) * mask;
        let by_picture = (observed - normal.clone()) / sigma(last);
        let which = per_picture(&|k| f64::from(u8::from(batch.latent[k])));
        let deviation = by_picture.clone() + (by_latent - by_picture) * which;
        let latent = normal + deviation.clone() * per_picture(&|k| sigma(levels[k]));
        let stages = network.features.forward(seen.clone());
        let sketch = soft_sketch(seen.clone());
        let guidance = trained.guidance.forward(seen, Some(sketch), Some(&stages));
        let keep = per_picture(&|k| f64::from(u8::from(batch.draws[k][1] >= GUIDANCE_DROP)));
        let guidance = Guidance {
            middle: guidance.middle * keep.clone(),
            skips: guidance.skips.into_iter().map(|skip| skip * keep.clone()).collect(),
        };
        let classes: Vec<i32> = (0..size)
            .map(|k| if self.classes && batch.draws[k][2] >= CLASS_DROP { batch.sets[k] as i32 + 1 } else { 0 })
            .collect();
        let class = trained.guidance.class_embedding(Tensor::from_data(TensorData::new(classes, [size]), device));
        let timesteps: Vec<f64> = levels.iter().map(|&t| t as f64).collect();
        let conditions = Conditions { class: Some(&class), context: None, guidance: Some(&guidance) };
        let predicted = trained.denoiser.forward(latent, &timesteps, &conditions);
        let weight = deviation.clone().abs().mean_dim(1).greater_elem(0.05).float() * DEFECT_WEIGHT + 1.0;
        let error = (predicted - deviation).square() * weight.clone();
        error.mean() / weight.mean()
    }
}

/// What the third stage trains together.
#[derive(Module, Debug)]
pub struct Judges {
    repair: Option<RepairNetwork>,
    refine: Option<RefineHead>,
}

/// Which features would the picture have without its synthetic defect, and where is that defect?
///
/// Both learn from the same features of the frozen backbone, most of this stage's work. The refine head sees what the
/// repair says at the time, but does not teach it.
#[derive(Debug)]
pub struct RefineObjective<'a> {
    /// The step counts.
    pub config: &'a TrainConfig,
    /// Whether the bundle has classes.
    pub classes: bool,
}

impl Objective for RefineObjective<'_> {
    type Trained = Judges;

    fn name(&self) -> &'static str {
        "refine"
    }

    fn extract(&self, network: &Network) -> Judges {
        Judges { repair: network.repair.as_ref().map(|repair| repair.network.clone()), refine: network.refine.clone() }
    }

    fn install(&self, mut network: Network, trained: Judges) -> Network {
        network.repair = network.repair.zip(trained.repair).map(|(repair, network)| Repair { network, ..repair });
        network.refine = trained.refine;
        network
    }

    fn loss(&self, network: &Network, trained: &Judges, batch: &Batch, device: &Device) -> Tensor<1> {
        let size = batch.size;
        let (clean, seen) = images(batch, device);
        let classes: Vec<usize> = (0..size)
            .map(|k| if self.classes && batch.draws[k][2] >= CLASS_DROP { batch.sets[k] + 1 } else { 0 })
            .collect();
        // All step counts are met, the small ones more often: they cost less, and the lines ask for them.
        let listed = &self.config.steps;
        let steps = listed[(batch.draws[0][0].powi(2) * listed.len() as f64) as usize % listed.len()];
        let refine = |refine: &RefineHead, latents: (Tensor<4>, Tensor<4>), features: (&Stages, &Stages)| {
            let latents = Compared { seen: &latents.0, normal: &latents.1 };
            let features = Compared { seen: features.0, normal: features.1 };
            let logits = refine.forward(seen.clone(), latents, features);
            let mask = upload(&batch.mask, [size, 1, batch.height / 4, batch.width / 4], device);
            let mask = mask.greater_elem(0.2).float();
            focal(logits.clone(), mask.clone()) * 10.0 + dice(logits, mask) * 0.5
        };
        let Some((scale, repair)) = network.repair.as_ref().map(|repair| &repair.scale).zip(trained.repair.as_ref())
        else {
            let head = trained.refine.as_ref().expect("this stage runs for networks with repair or a refine head");
            let redrawn = network.reconstruct(seen.clone(), None, &classes, steps.0, None);
            let (shown, normal) = network.redrawn_features(&redrawn);
            return refine(head, (redrawn.seen_latent, redrawn.latent), (&shown, &normal));
        };
        let both = network.features.forward(Tensor::cat(vec![clean, seen.clone()], 0));
        let good = both.clone().map(|stage| stage.narrow(0, 0, size));
        let stages = both.map(|stage| stage.narrow(0, size, size));
        let found = scale.standardise(&stages);
        let repaired = repair.forward(&found);
        let loss = feature_distance(&repaired, &scale.standardise(&good)) * 3.0;
        let Some(head) = &trained.refine else { return loss };
        let latents = network.restore(seen.clone(), None, &stages, &classes, steps.0, None);
        loss + refine(head, latents, (&found, &repaired.map(Tensor::inner)))
    }
}
