//! Self-attention over the cells of a feature map.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor, assert_shape};

use super::pointwise::{Mix, bias, mix_onto};
use crate::kernels::{Epilogue, attend, normed_pointwise};

/// Configuration of an [`AttentionBlock`].
#[derive(Debug, Clone)]
pub struct AttentionBlockConfig {
    /// Channels in and out.
    pub channels: usize,
    /// Heads; 1 in the autoencoder.
    pub heads: usize,
    /// Groups of the norm.
    pub groups: usize,
    /// Epsilon of the norm.
    pub epsilon: f64,
}

/// `y = x + W_o softmax(q k^T / sqrt(d)) v` over the `h * w` cells.
#[derive(Module, Debug)]
pub struct AttentionBlock {
    norm: GroupNorm,
    query: Conv2d,
    key: Conv2d,
    value: Conv2d,
    output: Conv2d,
    heads: usize,
    /// The convolutions for queries, keys and values as one.
    #[module(skip)]
    joined: Option<Mix>,
}

impl AttentionBlockConfig {
    /// Makes the block.
    ///
    /// # Panics
    /// If `heads` does not divide `channels`.
    pub fn init(&self, device: &Device) -> AttentionBlock {
        assert_eq!(self.channels % self.heads, 0, "{} channels do not split into {} heads", self.channels, self.heads);
        let pointwise = || Conv2dConfig::new([self.channels, self.channels], [1, 1]).init(device);
        AttentionBlock {
            norm: GroupNormConfig::new(self.groups, self.channels).with_epsilon(self.epsilon).init(device),
            query: pointwise(),
            key: pointwise(),
            value: pointwise(),
            output: pointwise(),
            heads: self.heads,
            joined: None,
        }
    }
}

impl AttentionBlock {
    /// Applies the block.
    ///
    /// # Shapes
    /// - input and output `[b, channels, h, w]`
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        assert_shape!(input, [_, self.norm.num_channels, _, _]);
        let Mix { weight, bias } = match &self.joined {
            Some(joined) => joined.clone(),
            None => self.join(),
        };
        let joined = normed_pointwise(&self.norm, input.clone(), weight, bias, Epilogue::None);
        let attended = attend(joined, self.heads);
        mix_onto(&self.output, attended, input)
    }

    fn join(&self) -> Mix {
        let parts = [&self.query, &self.key, &self.value];
        let weights = parts.map(|part| part.weight.val()).to_vec();
        Mix { weight: Tensor::cat(weights, 0), bias: Tensor::cat(parts.map(bias).to_vec(), 0) }
    }

    /// The same block, whose parts are joined once: it is not trained any more.
    pub(in crate::model) fn joined(mut self) -> Self {
        self.joined = Some(self.join());
        self
    }
}
