//! The paper's residual block: two 3x3 convolutions behind GroupNorm and SiLU (network of LDM, arXiv 2112.10752).

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};

use super::activation::Activation;
use super::pointwise::{bias, mix};
use crate::kernels::{Epilogue, convolve, convolve_onto, group_norm};

/// Configuration of a [`ResidualBlock`].
#[derive(Debug, Clone)]
pub struct ResidualBlockConfig {
    /// Channels in.
    pub input: usize,
    /// Channels out.
    pub output: usize,
    /// Width of the embedding that shifts the inner channels, if there is one.
    pub embedding: Option<usize>,
    /// Groups of the norms.
    pub groups: usize,
    /// Epsilon of the norms: 1e-6 in the autoencoder, 1e-5 in the denoiser.
    pub epsilon: f64,
    /// Non-linearity.
    pub activation: Activation,
}

/// `y = skip(x) + conv(act(norm(conv(act(norm(x))) + e)))`.
#[derive(Module, Debug)]
pub struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    embedding: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
    #[module(skip)]
    activation: Activation,
}

impl ResidualBlockConfig {
    /// Makes the block.
    pub fn init(&self, device: &Device) -> ResidualBlock {
        let norm = |channels| GroupNormConfig::new(self.groups, channels).with_epsilon(self.epsilon).init(device);
        let conv = |input| {
            Conv2dConfig::new([input, self.output], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device)
        };
        ResidualBlock {
            norm1: norm(self.input),
            conv1: conv(self.input),
            embedding: self.embedding.map(|width| LinearConfig::new(width, self.output).init(device)),
            norm2: norm(self.output),
            conv2: conv(self.output),
            shortcut: (self.input != self.output)
                .then(|| Conv2dConfig::new([self.input, self.output], [1, 1]).init(device)),
            activation: self.activation,
        }
    }
}

impl ResidualBlock {
    /// Applies the block.
    ///
    /// # Shapes
    /// - input `[b, input, h, w]`, embedding `[b, embedding]`
    /// - output `[b, output, h, w]`
    ///
    /// # Panics
    /// If an embedding is given to a block without one, or the other way round.
    pub fn forward(&self, input: Tensor<4>, embedding: Option<Tensor<2>>) -> Tensor<4> {
        let channels = input.dims()[1];
        let act = |norm, x| group_norm(norm, x, self.activation.epilogue());
        let mut x = convolve(&self.conv1, act(&self.norm1, input.clone()), Epilogue::None);
        match (&self.embedding, embedding) {
            (Some(_), Some(embedding)) => {
                let shift = self.shift(embedding);
                let [batch, inner] = shift.dims();
                x = x + shift.reshape([batch, inner, 1, 1]);
            }
            (None, None) => {}
            _ => panic!("residual block of {channels} channels: embedding and configuration disagree"),
        }
        let kept = match &self.shortcut {
            Some(shortcut) => mix(shortcut, input),
            None => input,
        };
        convolve_onto(&self.conv2, act(&self.norm2, x), kept)
    }

    /// What the inner channels are shifted by, `[b, embedding]` to `[b, inner]`.
    fn shift(&self, embedding: Tensor<2>) -> Tensor<2> {
        let Some(linear) = &self.embedding else { panic!("residual block without embedding") };
        linear.forward(self.activation.forward(embedding))
    }

    /// The same block for one embedding, `[1, embedding]`, which it does not get any more.
    pub(in crate::model) fn at(mut self, embedding: &Tensor<2>) -> Self {
        if self.embedding.is_some() {
            let shift = self.shift(embedding.clone()).squeeze_dim::<1>(0);
            self.conv1.bias = Some(Param::from_tensor(bias(&self.conv1) + shift));
            self.embedding = None;
        }
        self
    }
}
