//! The refine head: where is the picture not its reconstruction *because of a defect*?
//!
//! A small segmentation network over the differences between both, trained on synthetic defects (as in DRAEM,
//! arXiv 2108.07610, and DiffusionAD, arXiv 2303.08730). It learns which differences are reconstruction error.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::blocks::activation::Activation;
use super::blocks::pointwise::mix;
use super::blocks::resample::{Downsample, double, space_to_depth};
use super::blocks::stage::{Block, BlockStyle};
use super::features::Stages;

/// Configuration of a [`RefineHead`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefineConfig {
    /// Channels at stride 4.
    pub fine: usize,
    /// Channels at stride 8.
    pub coarse: usize,
    /// Blocks on each of the three runs: fine, coarse, fine.
    pub blocks: usize,
    /// Block kind and norms.
    pub style: BlockStyle,
}

/// Differences in, logits of "defect" at stride 4 out.
#[derive(Module, Debug)]
pub struct RefineHead {
    pixels: Conv2d,
    fine_features: Conv2d,
    middle_features: Conv2d,
    coarse_features: Conv2d,
    fine_in: Vec<Block>,
    down: Downsample,
    coarse: Vec<Block>,
    up: Conv2d,
    fine_out: Vec<Block>,
    output: Conv2d,
    #[module(skip)]
    activation: Activation,
}

impl RefineConfig {
    /// Makes the head for a backbone with these stage channels.
    pub fn init(&self, stage_channels: [usize; 3], device: &Device) -> RefineHead {
        let pointwise = |input, output| Conv2dConfig::new([input, output], [1, 1]).init(device);
        let run = |width: usize| (0..self.blocks).map(|_| self.style.block(width, width, None, device)).collect();
        RefineHead {
            pixels: pointwise(2 * 3 * 16, self.fine),
            fine_features: pointwise(2 * stage_channels[0], self.fine),
            middle_features: pointwise(2 * stage_channels[1], self.coarse),
            coarse_features: pointwise(2 * stage_channels[2], self.coarse),
            fine_in: run(self.fine),
            down: self.style.down(self.fine, self.coarse, device),
            coarse: run(self.coarse),
            up: pointwise(self.coarse, self.fine),
            fine_out: run(self.fine),
            output: pointwise(self.fine, 1),
            activation: self.style.activation,
        }
    }
}

impl RefineHead {
    /// Logits per cell at stride 4.
    ///
    /// # Shapes
    /// - image and reconstruction `[b, 3, h, w]`, and their stages
    /// - output `[b, 1, h/4, w/4]`
    pub fn forward(
        &self,
        image: Tensor<4>,
        reconstruction: Tensor<4>,
        seen: &Stages,
        reconstructed: &Stages,
    ) -> Tensor<4> {
        let pair = |a: &Tensor<4>, b: &Tensor<4>| Tensor::cat(vec![a.clone(), (a.clone() - b.clone()).abs()], 1);
        let pixels = space_to_depth(pair(&image, &reconstruction), 4);
        let mut fine = mix(&self.pixels, pixels) + mix(&self.fine_features, pair(&seen[0], &reconstructed[0]));
        for block in &self.fine_in {
            fine = block.forward(fine, None);
        }
        let mut coarse = self.down.forward(fine.clone())
            + mix(&self.middle_features, pair(&seen[1], &reconstructed[1]))
            + double(mix(&self.coarse_features, pair(&seen[2], &reconstructed[2])));
        for block in &self.coarse {
            coarse = block.forward(coarse, None);
        }
        fine = fine + double(mix(&self.up, coarse));
        for block in &self.fine_out {
            fine = block.forward(fine, None);
        }
        mix(&self.output, self.activation.forward(fine))
    }
}
