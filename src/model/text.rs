//! CLIP's text encoder (Radford et al., arXiv 2103.00020, ViT-L/14): run once, on an empty text, for the constant context
//! that Stable Diffusion's transformer blocks attend to.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{
    Device, Int, Tensor, TensorData, activation::sigmoid, module::attention, ops::AttentionModuleOptions,
};
use serde::{Deserialize, Serialize};

/// Configuration of a [`TextEncoder`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderConfig {
    /// Known tokens.
    pub vocabulary: usize,
    /// Longest text in tokens.
    pub length: usize,
    /// Channels.
    pub width: usize,
    /// Heads of every attention.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
}

impl TextEncoderConfig {
    /// The encoder of Stable Diffusion v1: 123,060,480 parameters.
    pub fn clip() -> Self {
        Self { vocabulary: 49_408, length: 77, width: 768, heads: 12, layers: 12 }
    }
}

#[derive(Module, Debug)]
struct TextLayer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    expand: Linear,
    shrink: Linear,
    heads: usize,
}

/// Tokens to one row of features each.
#[derive(Module, Debug)]
pub struct TextEncoder {
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<TextLayer>,
    norm: LayerNorm,
}

/// The approximation of GELU that CLIP was trained with.
fn quick_gelu(x: Tensor<3>) -> Tensor<3> {
    x.clone() * sigmoid(x * 1.702)
}

impl TextLayer {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, count, width] = x.dims();
        let split = |x: Tensor<3>| x.reshape([batch, count, self.heads, width / self.heads]).swap_dims(1, 2);
        let normed = self.norm1.forward(x.clone());
        let [query, key, value] =
            [&self.query, &self.key, &self.value].map(|layer| split(layer.forward(normed.clone())));
        let causal = AttentionModuleOptions { is_causal: true, ..AttentionModuleOptions::default() };
        let attended = attention(query, key, value, None, None, causal);
        let x = x + self.output.forward(attended.swap_dims(1, 2).reshape([batch, count, width]));
        let inner = quick_gelu(self.expand.forward(self.norm2.forward(x.clone())));
        x + self.shrink.forward(inner)
    }
}

impl TextEncoderConfig {
    /// Makes the encoder.
    pub fn init(&self, device: &Device) -> TextEncoder {
        let linear = |input, output| LinearConfig::new(input, output).init(device);
        let norm = || LayerNormConfig::new(self.width).init(device);
        let square = || linear(self.width, self.width);
        let layer = |_| TextLayer {
            norm1: norm(),
            query: square(),
            key: square(),
            value: square(),
            output: square(),
            norm2: norm(),
            expand: linear(self.width, 4 * self.width),
            shrink: linear(4 * self.width, self.width),
            heads: self.heads,
        };
        TextEncoder {
            tokens: EmbeddingConfig::new(self.vocabulary, self.width).init(device),
            positions: EmbeddingConfig::new(self.length, self.width).init(device),
            layers: (0..self.layers).map(layer).collect(),
            norm: norm(),
        }
    }
}

impl TextEncoder {
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Features of a text, `[tokens, width]`.
    pub fn forward(&self, tokens: &[i32]) -> Tensor<2> {
        let device = self.tokens.weight.val().device();
        let count = tokens.len();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(tokens.to_vec(), [1, count]), &device);
        let positions = self.positions.weight.val().narrow(0, 0, count).unsqueeze_dim::<3>(0);
        let x = self.tokens.forward(ids) + positions;
        let x = self.layers.iter().fold(x, |x, layer| layer.forward(x));
        self.norm.forward(x).squeeze_dim::<2>(0)
    }

    /// Features of the empty text, padded to the longest.
    pub fn empty(&self) -> Tensor<2> {
        let [vocabulary, _] = self.tokens.weight.val().dims();
        let [length, _] = self.positions.weight.val().dims();
        // The last two tokens begin and end a text, 49,406 and 49,407; CLIP pads with the end.
        let mut tokens = vec![vocabulary as i32 - 1; length];
        tokens[0] = vocabulary as i32 - 2;
        self.forward(&tokens)
    }
}
