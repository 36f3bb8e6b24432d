//! Parts that both guided networks fuse their views with.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, activation::sigmoid};

use super::blocks::activation::Activation;
use super::blocks::pointwise::mix;
use super::blocks::stage::BlockStyle;
use super::features::Stages;
use crate::kernels::{Epilogue, convolve, group_norm, join, resize_cells};

/// Projections of the backbone's stages at strides 8 and 16.
#[derive(Module, Debug)]
pub(super) struct SemanticBranch {
    fine: Conv2d,
    coarse: Conv2d,
    norm: GroupNorm,
    #[module(skip)]
    activation: Activation,
}

impl SemanticBranch {
    /// Each stage is projected to `width` channels.
    pub(super) fn new(stage_channels: [usize; 3], width: usize, style: &BlockStyle, device: &Device) -> Self {
        let pointwise = |input| Conv2dConfig::new([input, width], [1, 1]).init(device);
        Self {
            fine: pointwise(stage_channels[1]),
            coarse: pointwise(stage_channels[2]),
            norm: GroupNormConfig::new(style.groups, 2 * width).init(device),
            activation: style.activation,
        }
    }

    pub(super) fn forward(&self, stages: &Stages) -> Tensor<4> {
        let [_, _, height, width] = stages[1].dims();
        // Doubling before the projection is the same as after it (both are linear), and the frozen features need no
        // gradient: bilinear resizing has none on CUDA.
        let coarse = mix(&self.coarse, resize_cells(stages[2].clone(), height, width));
        let joined = join(mix(&self.fine, stages[1].clone()), coarse);
        group_norm(&self.norm, joined, self.activation.epilogue())
    }
}

/// Channel and spatial gates on the mixed views: `V = U + U g_c g_s`.
#[derive(Module, Debug)]
pub(super) struct Gates {
    squeeze: Linear,
    excite: Linear,
    spatial: Conv2d,
    #[module(skip)]
    activation: Activation,
}

impl Gates {
    pub(super) fn new(width: usize, activation: Activation, device: &Device) -> Self {
        Self {
            squeeze: LinearConfig::new(width, width / 4).init(device),
            excite: LinearConfig::new(width / 4, width).init(device),
            spatial: Conv2dConfig::new([2, 1], [7, 7]).with_padding(PaddingConfig2d::Explicit(3, 3, 3, 3)).init(device),
            activation,
        }
    }

    pub(super) fn forward(&self, mixed: Tensor<4>) -> Tensor<4> {
        let [batch, channels, _, _] = mixed.dims();
        let mean: Tensor<2> = mixed.clone().mean_dims(&[2, 3]).reshape([batch, channels]);
        let channel = sigmoid(self.excite.forward(self.activation.forward(self.squeeze.forward(mean))));
        let summary = Tensor::cat(vec![mixed.clone().mean_dim(1), mixed.clone().max_dim(1)], 1);
        let spatial = sigmoid(convolve(&self.spatial, summary, Epilogue::None));
        mixed.clone() + mixed * channel.reshape([batch, channels, 1, 1]) * spatial
    }
}
