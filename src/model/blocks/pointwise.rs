//! Pointwise (1x1) convolution: the channels of every cell are mixed, cells stay apart.

use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;

use crate::kernels::{Epilogue, pointwise, pointwise_onto};

/// Applies a 1x1 convolution: `[b, input, h, w]` to `[b, output, h, w]`.
///
/// # Panics
/// If the convolution has a larger kernel or no bias, or the channels differ.
pub fn mix(conv: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    mix_with(conv, input, Epilogue::None)
}

/// The same, and what follows.
///
/// # Panics
/// As [`mix`].
pub fn mix_with(conv: &Conv2d, input: Tensor<4>, epilogue: Epilogue) -> Tensor<4> {
    pointwise(input, conv.weight.val(), bias(conv), epilogue)
}

/// The same, and `added` `[b, output, h, w]` to it.
///
/// # Panics
/// As [`mix`].
pub fn mix_onto(conv: &Conv2d, input: Tensor<4>, added: Tensor<4>) -> Tensor<4> {
    pointwise_onto(input, conv.weight.val(), bias(conv), added)
}

/// Weight and bias of such a convolution, where they are made of others.
#[derive(Debug, Clone)]
pub(super) struct Mix {
    /// `[output, input, 1, 1]`
    pub(super) weight: Tensor<4>,
    /// `[output]`
    pub(super) bias: Tensor<1>,
}

impl Mix {
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        pointwise(x, self.weight.clone(), self.bias.clone(), Epilogue::None)
    }

    pub(super) fn onto(&self, x: Tensor<4>, added: Tensor<4>) -> Tensor<4> {
        pointwise_onto(x, self.weight.clone(), self.bias.clone(), added)
    }
}

/// The bias of a convolution that has one.
pub(super) fn bias(conv: &Conv2d) -> Tensor<1> {
    let Some(bias) = &conv.bias else { panic!("pointwise convolution without bias") };
    bias.val()
}
