//! The edge block: depthwise filtering, then two pointwise convolutions (ConvNeXt, arXiv 2201.03545, in shape).
//!
//! On a CPU pointwise and depthwise convolutions are the operations at which burn is level with or ahead of its peers.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, assert_shape};

use super::activation::Activation;
use super::depthwise::{Depthwise, DepthwiseConfig};
use super::pointwise::{bias, mix};
use crate::kernels::edge_block;

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
        let Self { depthwise, norm, expand, project, activation, .. } = self;
        let shift = match (&self.embedding, embedding) {
            (Some(_), Some(embedding)) => {
                assert_shape!(embedding, [batch, _]);
                self.shift(embedding)
            }
            (None, None) => bias(expand).unsqueeze(),
            _ => panic!("edge block of {channels} channels: embedding and configuration disagree"),
        };
        let kept = match &self.shortcut {
            Some(shortcut) => mix(shortcut, input.clone()),
            None => input.clone(),
        };
        let (filter, weight, epilogue) = (depthwise.filter(), expand.weight.val(), activation.epilogue());
        let second = (project.weight.val(), bias(project));
        match shift.dims()[0] {
            1 => edge_block(input, filter, norm, (weight, shift.squeeze_dim::<1>(0)), epilogue, second, kept),
            _ => edge_block(input, filter, norm, (weight, shift), epilogue, second, kept),
        }
    }

    /// What the inner channels are shifted by, `[b, embedding]` to `[b, inner]`.
    fn shift(&self, embedding: Tensor<2>) -> Tensor<2> {
        let Some(linear) = &self.embedding else { panic!("edge block without embedding") };
        linear.forward(self.activation.forward(embedding)) + bias(&self.expand).unsqueeze()
    }

    /// The same block for one embedding, `[1, embedding]`, which it does not get any more.
    pub(in crate::model) fn at(mut self, embedding: &Tensor<2>) -> Self {
        if self.embedding.is_some() {
            let shift = self.shift(embedding.clone());
            self.expand.bias = Some(Param::from_tensor(shift.squeeze_dim::<1>(0)));
            self.embedding = None;
        }
        self
    }
}
