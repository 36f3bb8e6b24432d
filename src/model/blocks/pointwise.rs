//! Pointwise (1x1) convolution: the channels of every cell are mixed, cells stay apart.

use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;

use crate::kernels::pointwise;

/// Applies a 1x1 convolution: `[b, input, h, w]` to `[b, output, h, w]`.
///
/// # Panics
/// If the convolution has a larger kernel or no bias, or the channels differ.
pub fn mix(conv: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    let Some(bias) = &conv.bias else { panic!("pointwise convolution without bias") };
    pointwise(input, conv.weight.val(), bias.val())
}
