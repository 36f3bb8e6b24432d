//! The three things that are trained, one after the other: each knows its module, its loss, and nothing of the loop.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};

use super::batches::Batch;
use super::config::TrainConfig;
use crate::model::autoencoder::Autoencoder;
use crate::model::features::Stages;
use crate::model::guidance::GuidanceNetwork;
use crate::model::loss::{dice, feature_distance, focal, l1};
use crate::model::network::{Network, Reconstructed};
use crate::model::refine::{Compared, RefineHead};
use crate::model::repair::{Repair, RepairNetwork};
use crate::model::sketch::soft_sketch;
use crate::model::unet::{Conditions, Denoiser, Guidance};

/// What a step's loss follows from, besides the networks.
#[derive(Debug)]
pub struct Inputs {
    /// Steps of the reconstruction, where the stage has one: another number is another computation.
    pub steps: u32,
    /// A batch as the device gets it, in the order in which [`Objective::loss`] takes it apart; whole numbers are floats, too.
    pub arrays: Vec<TensorData>,
}

/// A loss of one stage. `network` is off the gradient graph, `trained` on it.
pub trait Objective: Clone + Send + 'static {
    /// The part of the network that learns.
    type Trained: Module + Clone + Send + 'static;

    /// Name of the stage, in logs and checkpoints.
    fn name(&self) -> &'static str;

    /// The part as it stands, off the graph.
    fn extract(&self, network: &Network) -> Self::Trained;

    /// Puts the trained part back, off the graph.
    fn install(&self, network: Network, trained: Self::Trained) -> Network;

    /// What the loss of a batch follows from. All that is drawn is decided here: a step may be recorded once and replayed.
    fn inputs(&self, network: &Network, batch: Batch) -> Inputs;

    /// The loss of the arrays of [`Self::inputs`] on the device, `[1]`.
    fn loss(&self, network: &Network, trained: &Self::Trained, inputs: &[Tensor<4>], steps: u32) -> Tensor<1>;
}

/// Good pictures, or what the camera sees.
fn images(values: Vec<f32>, [size, height, width]: [usize; 3]) -> TensorData {
    TensorData::new(values, [size, 3, height, width])
}

fn column(values: impl Iterator<Item = f64>) -> TensorData {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    let size = values.len();
    TensorData::new(values, [size, 1, 1, 1])
}

/// The numbers of a [`column`] as indices.
fn indices(column: &Tensor<4>) -> Tensor<1, Int> {
    let [size, ..] = column.dims();
    column.clone().reshape([size]).int()
}

/// Half of the rows, or columns, from a place drawn in 0 to 1, where half is still a picture to the backbone.
fn span(length: usize, draw: f64) -> TensorData {
    let half = if length < 128 { length } else { length / 64 * 32 };
    let start = (draw * (length - half + 1) as f64) as usize;
    column((start..start + half).map(|place| place as f64))
}

/// Pictures through the latent and back. Defects must survive: what the autoencoder erases, nothing after it can see.
#[derive(Debug, Clone)]
pub struct AutoencoderObjective {
    /// Weights of the terms.
    pub config: TrainConfig,
}

impl Objective for AutoencoderObjective {
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

    fn inputs(&self, _: &Network, batch: Batch) -> Inputs {
        let shape = [batch.size, batch.height, batch.width];
        let (latent, [rows, columns, _]) = (batch.latent_shape(), batch.draws[0]);
        let arrays = vec![
            images(batch.seen, shape),
            TensorData::new(batch.noise, latent),
            span(batch.height, rows),
            span(batch.width, columns),
        ];
        Inputs { steps: 0, arrays }
    }

    fn loss(&self, network: &Network, trained: &Autoencoder, inputs: &[Tensor<4>], _: u32) -> Tensor<1> {
        let [seen, noise, rows, columns] = take(inputs);
        let posterior = trained.posterior(seen.clone());
        let shown = trained.decode(posterior.sample(noise), 1.0);
        // Features on one part of the picture at a time: they are most of this stage's work, and look locally anyway.
        let part = |image: &Tensor<4>| image.clone().select(2, indices(&rows)).select(3, indices(&columns));
        let expected = network.features.forward(part(&seen));
        let features = network.features.forward(part(&shown));
        l1(shown, seen)
            + feature_distance(&features, &expected) * self.config.feature_weight
            + posterior.kl() * self.config.kl_weight
    }
}

fn take<const N: usize>(inputs: &[Tensor<4>]) -> [Tensor<4>; N] {
    inputs.to_vec().try_into().expect("as many arrays as the objective made")
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
#[derive(Debug, Clone)]
pub struct DenoiserObjective {
    /// Whether the bundle has classes; without them every picture is of the null class.
    pub classes: bool,
}

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

    fn inputs(&self, network: &Network, batch: Batch) -> Inputs {
        let size = batch.size;
        let shape = [size, batch.height, batch.width];
        let latent = batch.latent_shape();
        let schedule = network.sampler().schedule();
        let last = schedule.timesteps() - 1;
        // Half of the pictures are at the level at which inference starts: one step is trained for directly.
        let level = |draw: f64| if draw < 0.5 { last } else { ((draw - 0.5) * 2.0 * last as f64) as usize };
        let levels: Vec<usize> = batch.draws.iter().map(|draw| level(draw[0])).collect();
        let timesteps: Vec<f64> = levels.iter().map(|&t| t as f64).collect();
        let per_picture = |value: &dyn Fn(usize) -> f64| column((0..size).map(value));
        let flag = |of: &dyn Fn(usize) -> bool| column((0..size).map(|k| f64::from(u8::from(of(k)))));
        let sinusoids = network.denoiser.sinusoids(&timesteps);
        let width = sinusoids.len() / size;
        let arrays = vec![
            per_picture(&|k| batch.swap[k].unwrap_or(k) as f64),
            flag(&|k| batch.swap[k].is_some()),
            flag(&|k| batch.latent[k]),
            per_picture(&|k| {
                let alpha_bar = schedule.alpha_bar(levels[k]);
                (1.0 - alpha_bar.sqrt()) / (1.0 - alpha_bar).sqrt()
            }),
            per_picture(&|k| (1.0 - schedule.alpha_bar(levels[k])).sqrt()),
            flag(&|k| batch.draws[k][1] >= GUIDANCE_DROP),
            column(batch.classes(self.classes)),
            TensorData::new(sinusoids, [size, width, 1, 1]),
            images(batch.clean, shape),
            images(batch.seen, shape),
            TensorData::new(batch.noise, latent),
            TensorData::new(batch.latent_mask, [size, 1, latent[2], latent[3]]),
        ];
        Inputs { steps: 0, arrays }
    }

    fn loss(&self, network: &Network, trained: &GuidedDenoiser, inputs: &[Tensor<4>], _: u32) -> Tensor<1> {
        let [source, swapped, which, kept, sigma, keep, classes, sinusoids, clean, seen, noise, mask] = take(inputs);
        let scale = network.latent_scale();
        let normal = network.autoencoder.encode(clean, scale);
        let observed = network.autoencoder.encode(seen.clone(), scale);
        let schedule = network.sampler().schedule();
        let last_sigma = (1.0 - schedule.alpha_bar(schedule.timesteps() - 1)).sqrt();
        let others = normal.clone().select(0, indices(&source));
        let noise = noise.clone() + (others - noise) * swapped;
        let by_latent = (noise - normal.clone() * kept) * mask;
        let by_picture = (observed - normal.clone()) / last_sigma;
        let deviation = by_picture.clone() + (by_latent - by_picture) * which;
        let latent = normal + deviation.clone() * sigma;
        let stages = network.features.forward(seen.clone());
        let sketch = soft_sketch(seen.clone());
        let guidance = trained.guidance.forward(seen, Some(sketch), Some(&stages));
        let guidance = Guidance {
            middle: guidance.middle * keep.clone(),
            skips: guidance.skips.into_iter().map(|skip| skip * keep.clone()).collect(),
        };
        let class = trained.guidance.class_embedding(indices(&classes));
        let conditions = Conditions { class: Some(&class), context: None, guidance: Some(&guidance) };
        let predicted = trained.denoiser.forward_of_sinusoids(latent, sinusoids.flatten(1, 3), &conditions);
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
#[derive(Debug, Clone)]
pub struct RefineObjective {
    /// The step counts.
    pub config: TrainConfig,
    /// Whether the bundle has classes.
    pub classes: bool,
}

impl Objective for RefineObjective {
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

    fn inputs(&self, _: &Network, batch: Batch) -> Inputs {
        let shape = [batch.size, batch.height, batch.width];
        // All step counts are met, the small ones more often: they cost less, and the lines ask for them.
        let listed = &self.config.steps;
        let steps = listed[(batch.draws[0][0].powi(2) * listed.len() as f64) as usize % listed.len()];
        let arrays = vec![
            column(batch.classes(self.classes)),
            TensorData::new(batch.mask, [batch.size, 1, batch.height / 4, batch.width / 4]),
            images(batch.clean, shape),
            images(batch.seen, shape),
        ];
        Inputs { steps: steps.0, arrays }
    }

    fn loss(&self, network: &Network, trained: &Judges, inputs: &[Tensor<4>], steps: u32) -> Tensor<1> {
        let [classes, mask, clean, seen] = take(inputs);
        let (size, classes) = (clean.dims()[0], indices(&classes));
        let refine = |refine: &RefineHead, latents: (&Tensor<4>, &Tensor<4>), features: (&Stages, &Stages)| {
            let latents = Compared { seen: latents.0, normal: latents.1 };
            let features = Compared { seen: features.0, normal: features.1 };
            let logits = refine.forward(seen.clone(), latents, features);
            let mask = mask.greater_elem(0.2).float();
            focal(logits.clone(), mask.clone()) * 10.0 + dice(logits, mask) * 0.5
        };
        let Some((scale, repair)) = network.repair.as_ref().map(|repair| &repair.scale).zip(trained.repair.as_ref())
        else {
            let head = trained.refine.as_ref().expect("this stage runs for networks with repair or a refine head");
            let stages = network.features.forward(seen.clone());
            let (seen_latent, latent) = network.restore(seen.clone(), None, &stages, classes, steps, None);
            let image = network.decode(latent.clone());
            let redrawn = Reconstructed { seen_latent, latent, image, seen: stages };
            let (shown, normal) = network.redrawn_features(&redrawn);
            return refine(head, (&redrawn.seen_latent, &redrawn.latent), (&shown, &normal));
        };
        let both = network.features.forward(Tensor::cat(vec![clean, seen.clone()], 0));
        let good = both.clone().map(|stage| stage.narrow(0, 0, size));
        let stages = both.map(|stage| stage.narrow(0, size, size));
        let found = scale.standardise(&stages);
        let repaired = repair.forward(&found);
        let loss = feature_distance(&repaired, &scale.standardise(&good)) * 3.0;
        let Some(head) = &trained.refine else { return loss };
        let (seen_latent, latent) = network.restore(seen.clone(), None, &stages, classes, steps, None);
        loss + refine(head, (&seen_latent, &latent), (&found, &repaired.map(Tensor::inner)))
    }
}
