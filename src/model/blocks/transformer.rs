//! Stable Diffusion's transformer block: the cells attend to each other, then to a context (a text, in its origin).

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, activation::gelu, assert_shape, module::attention, ops::AttentionModuleOptions};
use serde::{Deserialize, Serialize};

use super::pointwise::mix;
use crate::kernels::{self, group_norm, linear};

/// Epsilon of the block's GroupNorm; the residual blocks around it have another.
const GROUP_EPSILON: f64 = 1e-6;
/// Epsilon of its layer norms, which is the default of both libraries.
const LAYER_EPSILON: f64 = 1e-5;
/// Inner width of the feed-forward part as a multiple of its output.
const FEED_FORWARD: usize = 4;

/// What the cells attend to besides themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextConfig {
    /// Rows of the context; Stable Diffusion's text has 77.
    pub tokens: usize,
    /// Values per row; 768 in Stable Diffusion v1.
    pub width: usize,
    /// The context never changes here, so its keys and values can be stored instead of the layers that make them: exact,
    /// and 28.0 M parameters less at full size.
    pub stored: bool,
}

/// Configuration of a [`TransformerBlock`].
#[derive(Debug, Clone)]
pub struct TransformerBlockConfig {
    /// Channels in and out.
    pub channels: usize,
    /// Heads of both attentions.
    pub heads: usize,
    /// Groups of the outer norm.
    pub groups: usize,
    /// The context.
    pub context: ContextConfig,
}

/// Attention whose keys and values come from `[b, tokens, width]`.
#[derive(Module, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

/// Attention to a context whose keys and values are stored.
#[derive(Module, Debug)]
struct StoredAttention {
    query: Linear,
    keys: Param<Tensor<2>>,
    values: Param<Tensor<2>>,
    output: Linear,
    heads: usize,
}

/// `x += self(norm(x)); x += context(norm(x)); x += feed_forward(norm(x))` on the cells, between two projections, added
/// to the input. Upstream: `SpatialTransformer` of depth 1 with one `BasicTransformerBlock` (CompVis, `ldm/modules/attention.py`).
#[derive(Module, Debug)]
pub struct TransformerBlock {
    norm: GroupNorm,
    project_in: Conv2d,
    norm1: LayerNorm,
    own: Attention,
    norm2: LayerNorm,
    context: Option<Attention>,
    stored: Option<StoredAttention>,
    norm3: LayerNorm,
    gate: Linear,
    shrink: Linear,
    project_out: Conv2d,
}

/// Splits `[b, n, heads * d]` into `[b, heads, n, d]`.
fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, count, width] = x.dims();
    x.reshape([batch, count, heads, width / heads]).swap_dims(1, 2)
}

fn attend(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, count, width] = query.dims();
    let split = |x| split(x, heads);
    let attended = attention(split(query), split(key), split(value), None, None, AttentionModuleOptions::default());
    attended.swap_dims(1, 2).reshape([batch, count, width])
}

/// What a norm makes of the values of every token.
fn normed_by(norm: &LayerNorm, x: Tensor<3>) -> Tensor<3> {
    let beta = norm.beta.as_ref().expect("layer norms are made with a shift");
    kernels::layer_norm(norm.gamma.val(), beta.val(), LAYER_EPSILON, x)
}

impl Attention {
    fn new(channels: usize, source: usize, heads: usize, device: &Device) -> Self {
        let plain = |input| LinearConfig::new(input, channels).with_bias(false).init(device);
        Self {
            query: plain(channels),
            key: plain(source),
            value: plain(source),
            output: LinearConfig::new(channels, channels).init(device),
            heads,
        }
    }

    fn forward(&self, x: Tensor<3>, source: Tensor<3>) -> Tensor<3> {
        let (key, value) = (linear(&self.key, source.clone()), linear(&self.value, source));
        linear(&self.output, attend(linear(&self.query, x), key, value, self.heads))
    }

    /// Attention of the cells of `[b, n, width]`, which are those of a picture of these sides, to each other.
    fn among(&self, x: Tensor<3>, height: usize, width: usize) -> Tensor<3> {
        let [batch, cells, channels] = x.dims();
        let parts = [&self.query, &self.key, &self.value].map(|layer| linear(layer, x.clone())).to_vec();
        let joined = Tensor::cat(parts, 2).swap_dims(1, 2).reshape([batch, 3 * channels, height, width]);
        let attended = kernels::attend(joined, self.heads).reshape([batch, channels, cells]).swap_dims(1, 2);
        linear(&self.output, attended)
    }

    /// The same for one context for ever.
    fn store(self, context: Tensor<2>) -> StoredAttention {
        let project = |layer: &Linear| {
            let rows: Tensor<3> = layer.forward(context.clone().unsqueeze_dim::<3>(0));
            Param::from_tensor(rows.squeeze_dim::<2>(0))
        };
        StoredAttention {
            keys: project(&self.key),
            values: project(&self.value),
            query: self.query,
            output: self.output,
            heads: self.heads,
        }
    }
}

impl StoredAttention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, _, _] = x.dims();
        let rows = |stored: &Param<Tensor<2>>| {
            let [tokens, width] = stored.val().dims();
            stored.val().unsqueeze_dim::<3>(0).expand([batch, tokens, width])
        };
        let (keys, values) = (rows(&self.keys), rows(&self.values));
        linear(&self.output, attend(linear(&self.query, x), keys, values, self.heads))
    }
}

impl TransformerBlockConfig {
    /// Makes the block.
    ///
    /// # Panics
    /// If `heads` does not divide `channels`.
    pub fn init(&self, device: &Device) -> TransformerBlock {
        let (channels, heads) = (self.channels, self.heads);
        assert_eq!(channels % heads, 0, "{channels} channels do not split into {heads} heads");
        let pointwise = || Conv2dConfig::new([channels, channels], [1, 1]).init(device);
        let layer_norm = || LayerNormConfig::new(channels).init(device);
        let ContextConfig { tokens, width, stored } = self.context;
        let inner = FEED_FORWARD * channels;
        TransformerBlock {
            norm: GroupNormConfig::new(self.groups, channels).with_epsilon(GROUP_EPSILON).init(device),
            project_in: pointwise(),
            norm1: layer_norm(),
            own: Attention::new(channels, channels, heads, device),
            norm2: layer_norm(),
            context: (!stored).then(|| Attention::new(channels, width, heads, device)),
            stored: stored.then(|| StoredAttention {
                query: LinearConfig::new(channels, channels).with_bias(false).init(device),
                keys: Param::from_tensor(Tensor::zeros([tokens, channels], device)),
                values: Param::from_tensor(Tensor::zeros([tokens, channels], device)),
                output: LinearConfig::new(channels, channels).init(device),
                heads,
            }),
            norm3: layer_norm(),
            gate: LinearConfig::new(channels, 2 * inner).init(device),
            shrink: LinearConfig::new(inner, channels).init(device),
            project_out: pointwise(),
        }
    }
}

impl TransformerBlock {
    /// Applies the block.
    ///
    /// # Shapes
    /// - input and output `[b, channels, h, w]`; context `[tokens, width]`, not needed where it is stored
    ///
    /// # Panics
    /// If the context is needed and missing.
    pub fn forward(&self, input: Tensor<4>, context: Option<&Tensor<2>>) -> Tensor<4> {
        assert_shape!(input, [_, self.norm.num_channels, _, _]);
        let [batch, channels, height, width] = input.dims();
        let x = mix(&self.project_in, group_norm(&self.norm, input.clone()));
        let mut x: Tensor<3> = x.reshape([batch, channels, height * width]).swap_dims(1, 2);
        let normed = normed_by(&self.norm1, x.clone());
        x = x + self.own.among(normed, height, width);
        let normed = normed_by(&self.norm2, x.clone());
        x = x + match (&self.context, &self.stored) {
            (Some(attention), _) => {
                let context = context.expect("this network attends to a context").clone();
                let [tokens, values] = context.dims();
                attention.forward(normed, context.unsqueeze_dim::<3>(0).expand([batch, tokens, values]))
            }
            (None, Some(stored)) => stored.forward(normed),
            (None, None) => unreachable!("a block has one of both"),
        };
        let both = linear(&self.gate, normed_by(&self.norm3, x.clone()));
        let inner = both.dims()[2] / 2;
        let gated = both.clone().narrow(2, 0, inner) * gelu(both.narrow(2, inner, inner));
        x = x + linear(&self.shrink, gated);
        let x = x.swap_dims(1, 2).reshape([batch, channels, height, width]);
        input + mix(&self.project_out, x)
    }

    /// Stores the keys and values of a context that never changes: the same output with fewer parameters.
    pub fn store_context(mut self, context: &Tensor<2>) -> Self {
        if let Some(attention) = self.context.take() {
            self.stored = Some(attention.store(context.clone()));
        }
        self
    }
}
