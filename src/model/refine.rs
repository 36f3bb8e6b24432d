//! The refine head: where is the picture not what it should be *because of a defect*?
//!
//! A small segmentation network over the picture and its difference to what a good part would show, trained on synthetic
//! defects (as in DRAEM, arXiv 2108.07610, and DiffusionAD, arXiv 2303.08730). It learns which differences are no defect.
//! It compares backbone features with the repaired ones, and the latent with the one that diffusion restored: no decoder
//! has to run for that, so training and frames are cheap.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::blocks::activation::Activation;
use super::blocks::pointwise::{mix, mix_onto};
use super::blocks::resample::{Upsample, space_to_depth};
use super::blocks::stage::{Block, BlockStyle};
use super::features::Stages;
use crate::kernels::join;

/// Configuration of a [`RefineHead`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefineConfig {
    /// Channels at strides 4, 8 and 16.
    pub channels: [usize; 3],
    /// Blocks at each stride.
    pub blocks: usize,
    /// Block kind and norms.
    pub style: BlockStyle,
}

/// Differences in, logits of "defect" at stride 4 out.
#[derive(Module, Debug)]
pub struct RefineHead {
    pixels: Conv2d,
    latents: Conv2d,
    /// Strides 4, 8 and 16.
    features: Vec<Conv2d>,
    blocks: Vec<Vec<Block>>,
    /// To strides 4 and 8.
    up: Vec<Upsample>,
    output: Conv2d,
    #[module(skip)]
    activation: Activation,
}

/// Two views of the same: what is seen, and what a good part would show.
#[derive(Debug)]
pub struct Compared<'a, T> {
    /// Of the picture.
    pub seen: &'a T,
    /// Of the part without its defect.
    pub normal: &'a T,
}

impl RefineConfig {
    /// Makes the head for a backbone with these stage channels.
    pub fn init(&self, stage_channels: [usize; 3], latent_channels: usize, device: &Device) -> RefineHead {
        let Self { channels, blocks, style } = self;
        let pointwise = |input, output| Conv2dConfig::new([input, output], [1, 1]).init(device);
        RefineHead {
            pixels: pointwise(3 * 16, channels[0]),
            latents: pointwise(2 * latent_channels, channels[1]),
            features: (0..3).map(|k| pointwise(2 * stage_channels[k], channels[k])).collect(),
            blocks: channels
                .iter()
                .map(|&width| (0..*blocks).map(|_| style.block(width, width, None, device)).collect())
                .collect(),
            up: (0..2).map(|k| style.up(channels[k + 1], channels[k], device)).collect(),
            output: pointwise(channels[0], 1),
            activation: style.activation,
        }
    }
}

impl RefineHead {
    /// Logits per cell at stride 4.
    ///
    /// # Shapes
    /// - image `[b, 3, h, w]`, latents `[b, c, h/8, w/8]`, stages at strides 4, 8 and 16
    /// - output `[b, 1, h/4, w/4]`
    pub fn forward(
        &self,
        image: Tensor<4>,
        latents: Compared<'_, Tensor<4>>,
        features: Compared<'_, Stages>,
    ) -> Tensor<4> {
        let pair = |a: &Tensor<4>, b: &Tensor<4>| join(a.clone(), (a.clone() - b.clone()).abs());
        let level = |k: usize, mut x: Tensor<4>| {
            for block in &self.blocks[k] {
                x = block.forward(x, None);
            }
            x
        };
        let stage = |k: usize| pair(&features.seen[k], &features.normal[k]);
        let x = level(2, mix(&self.features[2], stage(2)));
        let x = mix_onto(&self.features[1], stage(1), self.up[1].forward(x));
        let x = level(1, mix_onto(&self.latents, pair(latents.seen, latents.normal), x));
        let x = mix_onto(&self.features[0], stage(0), self.up[0].forward(x));
        let x = level(0, mix_onto(&self.pixels, space_to_depth(image, 4), x));
        mix(&self.output, self.activation.forward(x))
    }
}
