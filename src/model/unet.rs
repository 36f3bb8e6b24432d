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
    /// Block kind and norms.
    pub style: BlockStyle,
}

/// What the guidance network adds to the denoiser at its coarsest level.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// Added to the output of the middle, `[b, c, h, w]`.
    pub middle: Tensor<4>,
    /// Added to the skips of the coarsest level, in the order in which they were made; each `[b, c, h, w]`.
    pub skips: Vec<Tensor<4>>,
}

#[derive(Module, Debug)]
struct Unit {
    block: Block,
    attention: Option<AttentionBlock>,
}

#[derive(Module, Debug)]
struct Level {
    units: Vec<Unit>,
    down: Option<Downsample>,
    up: Option<Upsample>,
}

/// Predicts the noise or the deviation in a latent.
#[derive(Module, Debug)]
pub struct Denoiser {
    time: TimestepEmbedding,
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
    fn forward(&self, input: Tensor<4>, embedding: &Tensor<2>) -> Tensor<4> {
        let x = self.block.forward(input, Some(embedding.clone()));
        match &self.attention {
            Some(attention) => attention.forward(x),
            None => x,
        }
    }
}

impl DenoiserConfig {
    /// Width of the embedding that every block gets.
    pub fn embedding(&self) -> usize {
        4 * self.channels[0]
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

    /// Makes the network; the last layer starts at zero.
    ///
    /// # Panics
    /// If [`Self::problem`] finds one.
    pub fn init(&self, device: &Device) -> Denoiser {
        if let Some(problem) = self.problem() {
            panic!("denoiser: {problem}");
        }
        let style = &self.style;
        let embedding = Some(self.embedding());
        let conv3 = |input, output| {
            Conv2dConfig::new([input, output], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        };
        let attention = |channels| {
            AttentionBlockConfig { channels, heads: self.heads, groups: style.groups, epsilon: style.epsilon }
                .init(device)
        };
        let unit = |input, output, attended: bool| Unit {
            block: style.block(input, output, embedding, device),
            attention: attended.then(|| attention(output)),
        };
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
                        unit(std::mem::replace(&mut width, output), output, self.attention[level])
                    })
                    .collect();
                let down = (level + 1 < levels).then(|| {
                    skips.push(output);
                    Downsample::symmetric(output, output, device)
                });
                Level { units, down, up: None }
            })
            .collect();
        let middle_in = unit(width, width, true);
        let middle_out = style.block(width, width, embedding, device);
        let up = (0..levels)
            .rev()
            .map(|level| {
                let output = self.channels[level];
                let units = (0..self.blocks + 1)
                    .map(|_| {
                        let skip = skips.pop().expect("one skip per block on the way up");
                        unit(std::mem::replace(&mut width, output) + skip, output, self.attention[level])
                    })
                    .collect();
                Level { units, down: None, up: (level > 0).then(|| Upsample::new(output, output, device)) }
            })
            .collect();
        let mut conv_out = conv3(first, self.latent_channels).init(device);
        conv_out.weight = conv_out.weight.map(|w| w.zeros_like());
        conv_out.bias = conv_out.bias.map(|b| b.map(|b| b.zeros_like()));
        Denoiser {
            time: TimestepEmbedding::new(first, style.activation, device),
            conv_in: conv3(self.latent_channels, first).init(device),
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

impl Denoiser {
    /// One denoising call.
    ///
    /// # Shapes
    /// - latent `[b, c, h, w]` with sides that halve once per level; `b` timesteps
    /// - class `[b, embedding]`, added to the timestep's embedding
    /// - output `[b, c, h, w]`
    ///
    /// # Panics
    /// If shapes disagree.
    pub fn forward(
        &self,
        latent: Tensor<4>,
        timesteps: &[f64],
        class: Option<Tensor<2>>,
        guidance: Option<&Guidance>,
    ) -> Tensor<4> {
        let batch = timesteps.len();
        assert_shape!(latent, [batch, _, _, _]);
        let mut embedding = self.time.forward(timesteps);
        if let Some(class) = class {
            embedding = embedding + class;
        }
        let mut x = self.conv_in.forward(latent);
        let mut skips = vec![x.clone()];
        for level in &self.down {
            for unit in &level.units {
                x = unit.forward(x, &embedding);
                skips.push(x.clone());
            }
            if let Some(down) = &level.down {
                x = down.forward(x);
                skips.push(x.clone());
            }
        }
        x = self.middle_in.forward(x, &embedding);
        x = self.middle_out.forward(x, Some(embedding.clone()));
        if let Some(guidance) = guidance {
            x = x + guidance.middle.clone();
            let first = skips.len() - guidance.skips.len();
            for (skip, added) in skips[first..].iter_mut().zip(&guidance.skips) {
                *skip = skip.clone() + added.clone();
            }
        }
        for level in &self.up {
            for unit in &level.units {
                let skip = skips.pop().expect("one skip per block on the way up");
                x = unit.forward(Tensor::cat(vec![x, skip], 1), &embedding);
            }
            if let Some(up) = &level.up {
                x = up.forward(x);
            }
        }
        self.conv_out.forward(self.activation.forward(self.norm.forward(x)))
    }
}
