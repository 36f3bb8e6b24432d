//! Self-attention over the cells of a feature map.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor, assert_shape, module::attention, ops::AttentionModuleOptions};

use super::pointwise::mix;
use crate::kernels::group_norm;

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
        let [batch, channels, height, width] = input.dims();
        let tokens =
            |x: Tensor<4>| x.reshape([batch, self.heads, channels / self.heads, height * width]).swap_dims(2, 3);
        let x = group_norm(&self.norm, input.clone());
        let query = tokens(mix(&self.query, x.clone()));
        let key = tokens(mix(&self.key, x.clone()));
        let value = tokens(mix(&self.value, x));
        let attended = attention(query, key, value, None, None, AttentionModuleOptions::default());
        let attended = attended.swap_dims(2, 3).reshape([batch, channels, height, width]);
        input + mix(&self.output, attended)
    }
}
