//! The edge block: depthwise filtering, then two pointwise convolutions (ConvNeXt, arXiv 2201.03545, in shape).
//!
//! On a CPU pointwise and depthwise convolutions are the operations at which burn is level with or ahead of its peers.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, assert_shape};

use super::activation::Activation;
use super::depthwise::{Depthwise, DepthwiseConfig};
use super::pointwise::{bias, mix, mix_with};
use crate::kernels::{group_norm, pointwise};

/// Configuration of an [`EdgeBlock`].
#[derive(Debug, Clone)]
pub struct EdgeBlockConfig {
    /// Channels in.
    pub input: usize,
    /// Channels out.
    pub output: usize,
    /// Width of the embedding that shifts the inner channels, if there is one.
    pub embedding: Option<usize>,
    /// Groups of the norm.
    pub groups: usize,
    /// Inner channels as a multiple of `output`.
    pub expansion: usize,
    /// Non-linearity.
    pub activation: Activation,
}

/// `y = skip(x) + W2 act(W1 norm(dw(x)) + e)`.
#[derive(Module, Debug)]
pub struct EdgeBlock {
    depthwise: Depthwise,
    norm: GroupNorm,
    expand: Conv2d,
    embedding: Option<Linear>,
    project: Conv2d,
    shortcut: Option<Conv2d>,
    #[module(skip)]
    activation: Activation,
}

impl EdgeBlockConfig {
    /// Makes the block.
    pub fn init(&self, device: &Device) -> EdgeBlock {
        let inner = self.output * self.expansion;
        EdgeBlock {
            depthwise: DepthwiseConfig::same(self.input, 3).init(device),
            norm: GroupNormConfig::new(self.groups, self.input).init(device),
            expand: Conv2dConfig::new([self.input, inner], [1, 1]).init(device),
            embedding: self.embedding.map(|width| LinearConfig::new(width, inner).init(device)),
            project: Conv2dConfig::new([inner, self.output], [1, 1]).init(device),
            shortcut: (self.input != self.output)
                .then(|| Conv2dConfig::new([self.input, self.output], [1, 1]).init(device)),
            activation: self.activation,
        }
    }
}

impl EdgeBlock {
    /// Applies the block.
    ///
    /// # Shapes
    /// - input `[b, input, h, w]`, embedding `[b, embedding]`
    /// - output `[b, output, h, w]`
    ///
    /// # Panics
    /// If an embedding is given to a block without one, or the other way round.
    pub fn forward(&self, input: Tensor<4>, embedding: Option<Tensor<2>>) -> Tensor<4> {
        let [batch, channels, _, _] = input.dims();
        let x = group_norm(&self.norm, self.depthwise.forward(input.clone()));
        let x = match (&self.embedding, embedding) {
            (Some(linear), Some(embedding)) => {
                assert_shape!(embedding, [batch, _]);
                let shift = linear.forward(self.activation.forward(embedding));
                let shift = shift + bias(&self.expand).unsqueeze();
                self.activation.after(|epilogue| pointwise(x, self.expand.weight.val(), shift, epilogue))
            }
            (None, None) => self.activation.after(|epilogue| mix_with(&self.expand, x, epilogue)),
            _ => panic!("edge block of {channels} channels: embedding and configuration disagree"),
        };
        let x = mix(&self.project, x);
        x + match &self.shortcut {
            Some(shortcut) => mix(shortcut, input),
            None => input,
        }
    }
}
