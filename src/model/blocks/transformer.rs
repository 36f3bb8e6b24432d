//! Stable Diffusion's transformer block: the cells attend to each other, then to a context (a text, in its origin).

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, activation::gelu, assert_shape};
use serde::{Deserialize, Serialize};

use super::pointwise::{Mix, mix, mix_onto};
use crate::kernels::{Epilogue, attend, attend_to, cell_norm, group_norm};

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

/// Attention whose keys and values come from a context `[tokens, width]`, or from the cells themselves.
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
    #[module(skip)]
    joined: Option<Joined>,
}

/// The layers of tokens as mixes of a cell's channels, those that see the same as one: tokens then stay where they are in a picture.
#[derive(Debug, Clone)]
struct Joined {
    /// Queries, keys and values of the cells.
    own: Mix,
    own_output: Mix,
    /// What asks the context.
    query: Mix,
    /// Its keys and behind them its values, `[2 c, tokens]`.
    context: Tensor<2>,
    output: Mix,
    gate: Mix,
    shrink: Mix,
}

/// Layers with the same input as one mix. What has no bias gets zeros.
fn mix_of<const N: usize>(layers: [&Linear; N]) -> Mix {
    let weights = layers.map(|layer| layer.weight.val());
    let biases = layers.iter().zip(&weights).map(|(layer, weight)| match &layer.bias {
        Some(bias) => bias.val(),
        None => Tensor::zeros([weight.dims()[1]], (&weight.device(), weight.dtype())),
    });
    let bias = Tensor::cat(biases.collect(), 0);
    let weight = transposed(Tensor::cat(weights.to_vec(), 1));
    let [outputs, inputs] = weight.dims();
    Mix { weight: weight.reshape([outputs, inputs, 1, 1]), bias }
}

/// In row-major order: a view would be copied by every kernel that reads it.
fn transposed(x: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = x.dims();
    x.transpose().reshape([rows * columns]).reshape([columns, rows])
}

/// What a norm makes of the channels of every cell.
fn normed_by(norm: &LayerNorm, x: Tensor<4>) -> Tensor<4> {
    let beta = norm.beta.as_ref().expect("layer norms are made with a shift");
    cell_norm(norm.gamma.val(), beta.val(), LAYER_EPSILON, x)
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

    /// Keys and values of a context, `[tokens, channels]` each.
    fn known(&self, context: &Tensor<2>) -> [Tensor<2>; 2] {
        [&self.key, &self.value].map(|layer| layer.forward(context.clone()))
    }

    /// The same for one context for ever.
    fn store(self, context: &Tensor<2>) -> StoredAttention {
        let [keys, values] = self.known(context).map(Param::from_tensor);
        StoredAttention { keys, values, query: self.query, output: self.output }
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
        let convolution = || Conv2dConfig::new([channels, channels], [1, 1]).init(device);
        let layer_norm = || LayerNormConfig::new(channels).init(device);
        let ContextConfig { tokens, width, stored } = self.context;
        let inner = FEED_FORWARD * channels;
        TransformerBlock {
            norm: GroupNormConfig::new(self.groups, channels).with_epsilon(GROUP_EPSILON).init(device),
            project_in: convolution(),
            norm1: layer_norm(),
            own: Attention::new(channels, channels, heads, device),
            norm2: layer_norm(),
            context: (!stored).then(|| Attention::new(channels, width, heads, device)),
            stored: stored.then(|| StoredAttention {
                query: LinearConfig::new(channels, channels).with_bias(false).init(device),
                keys: Param::from_tensor(Tensor::zeros([tokens, channels], device)),
                values: Param::from_tensor(Tensor::zeros([tokens, channels], device)),
                output: LinearConfig::new(channels, channels).init(device),
            }),
            norm3: layer_norm(),
            gate: LinearConfig::new(channels, 2 * inner).init(device),
            shrink: LinearConfig::new(inner, channels).init(device),
            project_out: convolution(),
            joined: None,
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
        let Joined { own, own_output, query, context, output, gate, shrink } = match &self.joined {
            Some(joined) => joined.clone(),
            None => self.join(context),
        };
        let heads = self.own.heads;
        let x = mix(&self.project_in, group_norm(&self.norm, input.clone(), Epilogue::None));
        let attended = attend(own.forward(normed_by(&self.norm1, x.clone())), heads);
        let x = own_output.onto(attended, x);
        let attended = attend_to(query.forward(normed_by(&self.norm2, x.clone())), context, heads);
        let x = output.onto(attended, x);
        let both = gate.forward(normed_by(&self.norm3, x.clone()));
        let inner = both.dims()[1] / 2;
        let gated = both.clone().narrow(1, 0, inner) * gelu(both.narrow(1, inner, inner));
        mix_onto(&self.project_out, shrink.onto(gated, x), input)
    }

    fn join(&self, context: Option<&Tensor<2>>) -> Joined {
        let (query, output, [keys, values]) = match (&self.context, &self.stored) {
            (Some(attention), _) => {
                let context = context.expect("this network attends to a context");
                (&attention.query, &attention.output, attention.known(context))
            }
            (None, Some(stored)) => (&stored.query, &stored.output, [stored.keys.val(), stored.values.val()]),
            (None, None) => unreachable!("a block has one of both"),
        };
        Joined {
            own: mix_of([&self.own.query, &self.own.key, &self.own.value]),
            own_output: mix_of([&self.own.output]),
            query: mix_of([query]),
            context: transposed(Tensor::cat(vec![keys, values], 1)),
            output: mix_of([output]),
            gate: mix_of([&self.gate]),
            shrink: mix_of([&self.shrink]),
        }
    }

    /// The same block for one context, whose layers are joined once: it is not trained any more.
    pub(in crate::model) fn joined(mut self, context: Option<&Tensor<2>>) -> Self {
        self.joined = Some(self.join(context));
        self
    }

    /// Stores the keys and values of a context that never changes: the same output with fewer parameters.
    pub fn store_context(mut self, context: &Tensor<2>) -> Self {
        if let Some(attention) = self.context.take() {
            self.stored = Some(attention.store(context));
        }
        self
    }
}
