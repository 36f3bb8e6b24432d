//! The denoiser: a U-Net over latents (the skeleton of Stable Diffusion's, arXiv 2112.10752).

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, assert_shape};
use serde::{Deserialize, Serialize};

use super::blocks::activation::Activation;
use super::blocks::attention::{AttentionBlock, AttentionBlockConfig};
use super::blocks::resample::{Downsample, Upsample};
use super::blocks::stage::{Block, BlockStyle};
use super::blocks::timestep::TimestepEmbedding;
use super::blocks::transformer::{ContextConfig, TransformerBlock, TransformerBlockConfig};
use crate::kernels::{Epilogue, convolve, group_norm, join};

/// Configuration of a [`Denoiser`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserConfig {
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Channels per level, finest first.
    pub channels: Vec<usize>,
    /// Blocks per level on the way down; one more on the way up.
    pub blocks: usize,
    /// Whether a level has attention, finest first.
    pub attention: Vec<bool>,
    /// Heads of every attention.
    pub heads: usize,
    /// With a context, attention is Stable Diffusion's transformer block; without one, plain attention.
    pub context: Option<ContextConfig>,
    /// Block kind and norms.
    pub style: BlockStyle,
}

/// What the guidance network adds to the denoiser.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// Added to the output of the middle, `[b, c, h, w]`.
    pub middle: Tensor<4>,
    /// Added to the last skips, in the order in which they were made; each `[b, c, h, w]`.
    pub skips: Vec<Tensor<4>>,
}

/// What a denoising call depends on besides the latent and its timestep.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions<'a> {
    /// `[b, embedding]`, added to the timestep's embedding.
    pub class: Option<&'a Tensor<2>>,
    /// `[tokens, width]`, where the network attends to a context that it does not store.
    pub context: Option<&'a Tensor<2>>,
    /// Control from the picture.
    pub guidance: Option<&'a Guidance>,
}

#[derive(Module, Debug)]
pub(super) struct Unit {
    block: Block,
    attention: Option<AttentionBlock>,
    transformer: Option<TransformerBlock>,
}

#[derive(Module, Debug)]
pub(super) struct Level {
    units: Vec<Unit>,
    down: Option<Downsample>,
    up: Option<Upsample>,
}

/// The half of a U-Net that reads a latent, up to its middle; the control network has one of its own.
pub(super) struct Reader {
    pub(super) time: TimestepEmbedding,
    pub(super) conv_in: Conv2d,
    pub(super) down: Vec<Level>,
    pub(super) middle_in: Unit,
    pub(super) middle_out: Block,
    /// Channels of the skips, in the order in which they are made.
    pub(super) skips: Vec<usize>,
}

/// A [`Reader`] in place.
pub(super) struct Reading<'a> {
    pub(super) conv_in: &'a Conv2d,
    pub(super) down: &'a [Level],
    pub(super) middle_in: &'a Unit,
    pub(super) middle_out: &'a Block,
}

/// What reading a latent gives.
pub(super) struct Read {
    pub(super) skips: Vec<Tensor<4>>,
    pub(super) middle: Tensor<4>,
    pub(super) embedding: Option<Tensor<2>>,
}

impl Reading<'_> {
    /// `added` joins the output of the first convolution. The timesteps' embedding is `[b, 4 * width]`, none where every block has
    /// one of its own.
    pub(super) fn forward(
        &self,
        latent: Tensor<4>,
        embedding: Option<Tensor<2>>,
        conditions: &Conditions<'_>,
        added: Option<Tensor<4>>,
    ) -> Read {
        let mut x = convolve(self.conv_in, latent, Epilogue::None);
        if let Some(added) = added {
            x = x + added;
        }
        let mut skips = vec![x.clone()];
        for level in self.down {
            for unit in &level.units {
                x = unit.forward(x, &embedding, conditions.context);
                skips.push(x.clone());
            }
            if let Some(down) = &level.down {
                x = down.forward(x);
                skips.push(x.clone());
            }
        }
        x = self.middle_in.forward(x, &embedding, conditions.context);
        let middle = self.middle_out.forward(x, embedding.clone());
        Read { skips, middle, embedding }
    }
}

fn embedding(timesteps: Tensor<2>, class: Option<&Tensor<2>>) -> Tensor<2> {
    match class {
        Some(class) => timesteps + class.clone(),
        None => timesteps,
    }
}

/// Predicts the noise or the deviation in a latent.
#[derive(Module, Debug)]
pub struct Denoiser {
    /// None in one for a single timestep and class.
    time: Option<TimestepEmbedding>,
    conv_in: Conv2d,
    down: Vec<Level>,
    middle_in: Unit,
    middle_out: Block,
    up: Vec<Level>,
    norm: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    activation: Activation,
}

impl Unit {
    fn forward(&self, input: Tensor<4>, embedding: &Option<Tensor<2>>, context: Option<&Tensor<2>>) -> Tensor<4> {
        let x = self.block.forward(input, embedding.clone());
        match (&self.attention, &self.transformer) {
            (Some(attention), _) => attention.forward(x),
            (None, Some(transformer)) => transformer.forward(x, context),
            (None, None) => x,
        }
    }

    pub(super) fn store_context(mut self, context: &Tensor<2>) -> Self {
        self.transformer = self.transformer.take().map(|block| block.store_context(context));
        self
    }

    /// What attends, its layers joined once.
    pub(super) fn joined(mut self, context: Option<&Tensor<2>>) -> Self {
        self.attention = self.attention.map(AttentionBlock::joined);
        self.transformer = self.transformer.map(|block| block.joined(context));
        self
    }

    pub(super) fn at(mut self, embedding: &Tensor<2>) -> Self {
        self.block = self.block.at(embedding);
        self
    }
}

impl DenoiserConfig {
    /// Width of the embedding that every block gets.
    pub fn embedding(&self) -> usize {
        4 * self.channels[0]
    }

    /// Skips from the half that reads to the half that writes.
    pub fn skips(&self) -> usize {
        self.channels.len() * (self.blocks + 1)
    }

    /// Skips of the coarsest level that guidance reaches.
    pub fn guided_skips(&self) -> usize {
        self.blocks + usize::from(self.channels.len() > 1)
    }

    /// What is wrong with the configuration, if anything.
    pub fn problem(&self) -> Option<String> {
        if self.channels.is_empty() || self.channels.len() != self.attention.len() {
            return Some("channels and attention need the same number of levels, at least 1".into());
        }
        if self.channels.iter().any(|c| c % self.style.groups != 0 || c % self.heads != 0) {
            return Some(format!(
                "channels {:?} do not split into {} groups and {} heads",
                self.channels, self.style.groups, self.heads
            ));
        }
        None
    }

    fn unit(&self, input: usize, output: usize, attended: bool, device: &Device) -> Unit {
        let style = &self.style;
        let transformer = self.context.clone().filter(|_| attended).map(|context| {
            TransformerBlockConfig { channels: output, heads: self.heads, groups: style.groups, context }.init(device)
        });
        let attention = (attended && self.context.is_none()).then(|| {
            AttentionBlockConfig { channels: output, heads: self.heads, groups: style.groups, epsilon: style.epsilon }
                .init(device)
        });
        Unit { block: style.block(input, output, Some(self.embedding()), device), attention, transformer }
    }

    /// Makes the half that reads.
    ///
    /// # Panics
    /// If [`Self::problem`] finds one.
    pub(super) fn reader(&self, device: &Device) -> Reader {
        if let Some(problem) = self.problem() {
            panic!("denoiser: {problem}");
        }
        let style = &self.style;
        let first = self.channels[0];
        let levels = self.channels.len();
        let mut skips = vec![first];
        let mut width = first;
        let down = (0..levels)
            .map(|level| {
                let output = self.channels[level];
                let units = (0..self.blocks)
                    .map(|_| {
                        skips.push(output);
                        self.unit(std::mem::replace(&mut width, output), output, self.attention[level], device)
                    })
                    .collect();
                let down = (level + 1 < levels).then(|| {
                    skips.push(output);
                    style.down(output, output, device)
                });
                Level { units, down, up: None }
            })
            .collect();
        Reader {
            time: TimestepEmbedding::new(first, style.activation, device),
            conv_in: conv3(self.latent_channels, first).init(device),
            down,
            middle_in: self.unit(width, width, true, device),
            middle_out: style.block(width, width, Some(self.embedding()), device),
            skips,
        }
    }

    /// Makes the network; the last layer starts at zero.
    ///
    /// # Panics
    /// If [`Self::problem`] finds one.
    pub fn init(&self, device: &Device) -> Denoiser {
        let Reader { time, conv_in, down, middle_in, middle_out, mut skips } = self.reader(device);
        let style = &self.style;
        let first = self.channels[0];
        let levels = self.channels.len();
        let mut width = self.channels[levels - 1];
        let up = (0..levels)
            .rev()
            .map(|level| {
                let output = self.channels[level];
                let units = (0..self.blocks + 1)
                    .map(|_| {
                        let skip = skips.pop().expect("one skip per block on the way up");
                        let input = std::mem::replace(&mut width, output) + skip;
                        self.unit(input, output, self.attention[level], device)
                    })
                    .collect();
                Level { units, down: None, up: (level > 0).then(|| style.up(output, output, device)) }
            })
            .collect();
        let mut conv_out = conv3(first, self.latent_channels).init(device);
        conv_out.weight = conv_out.weight.map(|w| w.zeros_like());
        conv_out.bias = conv_out.bias.map(|b| b.map(|b| b.zeros_like()));
        Denoiser {
            time: Some(time),
            conv_in,
            down,
            middle_in,
            middle_out,
            up,
            norm: GroupNormConfig::new(style.groups, first).with_epsilon(style.epsilon).init(device),
            conv_out,
            activation: style.activation,
        }
    }
}

fn conv3(input: usize, output: usize) -> Conv2dConfig {
    Conv2dConfig::new([input, output], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
}

impl Denoiser {
    /// One denoising call.
    ///
    /// # Shapes
    /// - latent `[b, c, h, w]` with sides that halve once per level; `b` timesteps
    /// - output `[b, c, h, w]`
    ///
    /// # Panics
    /// If shapes disagree.
    pub fn forward(&self, latent: Tensor<4>, timesteps: &[f64], conditions: &Conditions<'_>) -> Tensor<4> {
        let batch = timesteps.len();
        assert_shape!(latent, [batch, _, _, _]);
        let timesteps = self.time.as_ref().map(|time| time.forward(timesteps));
        self.forward_embedded(latent, timesteps, conditions)
    }

    /// The sinusoids of `b` timesteps, `[b, width]`: the part of [`Self::forward_of_sinusoids`] that needs no device.
    ///
    /// # Panics
    /// Of a denoiser for a single timestep.
    pub fn sinusoids(&self, timesteps: &[f64]) -> Vec<f32> {
        self.time.as_ref().expect("it is for all timesteps").sinusoids(timesteps)
    }

    /// [`Self::forward`] with the timesteps as [`Self::sinusoids`] gives them.
    ///
    /// # Panics
    /// As both.
    pub fn forward_of_sinusoids(
        &self,
        latent: Tensor<4>,
        sinusoids: Tensor<2>,
        conditions: &Conditions<'_>,
    ) -> Tensor<4> {
        let timesteps = self.time.as_ref().expect("it is for all timesteps").of_sinusoids(sinusoids);
        self.forward_embedded(latent, Some(timesteps), conditions)
    }

    fn forward_embedded(
        &self,
        latent: Tensor<4>,
        timesteps: Option<Tensor<2>>,
        conditions: &Conditions<'_>,
    ) -> Tensor<4> {
        let Self { conv_in, down, middle_in, middle_out, .. } = self;
        let reading = Reading { conv_in, down, middle_in, middle_out };
        let embedding = timesteps.map(|timesteps| embedding(timesteps, conditions.class));
        let Read { mut skips, middle: mut x, embedding } = reading.forward(latent, embedding, conditions, None);
        if let Some(guidance) = conditions.guidance {
            x = x + guidance.middle.clone();
            let first = skips.len() - guidance.skips.len();
            for (skip, added) in skips[first..].iter_mut().zip(&guidance.skips) {
                *skip = skip.clone() + added.clone();
            }
        }
        for level in &self.up {
            for unit in &level.units {
                let skip = skips.pop().expect("one skip per block on the way up");
                x = unit.forward(join(x, skip), &embedding, conditions.context);
            }
            if let Some(up) = &level.up {
                x = up.forward(x);
            }
        }
        convolve(&self.conv_out, group_norm(&self.norm, x, self.activation.epilogue()), Epilogue::None)
    }

    /// Excludes the half that reads from training: it stays what it was trained to be.
    pub fn freeze_reading(mut self) -> Self {
        self.time = self.time.map(Module::freeze);
        self.conv_in = self.conv_in.freeze();
        self.down = self.down.freeze();
        self.middle_in = self.middle_in.freeze();
        self.middle_out = self.middle_out.freeze();
        self
    }

    /// The same network for one context, whose layers of what attends are joined once: it is not trained any more.
    pub(super) fn joined(mut self, context: Option<&Tensor<2>>) -> Self {
        let joined = |levels: Vec<Level>| levels.into_iter().map(|level| level.joined(context)).collect();
        self.down = joined(self.down);
        self.middle_in = self.middle_in.joined(context);
        self.up = joined(self.up);
        self
    }

    /// The same network for one timestep and one class, `[1, embedding]`: what follows from these alone is computed once.
    ///
    /// Neither has any effect on what it predicts from then on, and it is not trained any more.
    pub(super) fn at(mut self, timestep: f64, class: Option<&Tensor<2>>) -> Self {
        let Some(time) = self.time.take() else { return self };
        let embedding = embedding(time.forward(&[timestep]), class);
        let at = |levels: Vec<Level>| levels.into_iter().map(|level| level.at(&embedding)).collect();
        self.down = at(self.down);
        self.middle_in = self.middle_in.at(&embedding);
        self.middle_out = self.middle_out.at(&embedding);
        self.up = at(self.up);
        self
    }

    /// Stores what every attention needs of a context that never changes.
    pub fn store_context(mut self, context: &Tensor<2>) -> Self {
        let store = |levels: Vec<Level>| levels.into_iter().map(|level| level.store_context(context)).collect();
        self.down = store(self.down);
        self.middle_in = self.middle_in.store_context(context);
        self.up = store(self.up);
        self
    }
}

impl Level {
    pub(super) fn joined(mut self, context: Option<&Tensor<2>>) -> Self {
        self.units = self.units.into_iter().map(|unit| unit.joined(context)).collect();
        self
    }

    pub(super) fn at(mut self, embedding: &Tensor<2>) -> Self {
        self.units = self.units.into_iter().map(|unit| unit.at(embedding)).collect();
        self
    }

    pub(super) fn store_context(mut self, context: &Tensor<2>) -> Self {
        self.units = self.units.into_iter().map(|unit| unit.store_context(context)).collect();
        self
    }
}
