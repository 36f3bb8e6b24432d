//! Pointwise (1x1) convolution: the channels of every cell are mixed, cells stay apart.

use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;

/// Applies a 1x1 convolution: `[b, input, h, w]` to `[b, output, h, w]`.
///
/// Where its weights are trained it is a matrix product, whose gradients are matrix products too: the weight gradient of a
/// convolution is, in burn 0.22.1, a convolution with a kernel as large as the picture (burn-backend,
/// ops/modules/conv.rs).
///
/// # Panics
/// If the convolution has a larger kernel, or the channels differ.
pub fn mix(conv: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    if conv.weight.val().device().is_autodiff() { by_product(conv, input) } else { conv.forward(input) }
}

fn by_product(conv: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    let weight = conv.weight.val();
    let [batch, channels, height, width] = input.dims();
    let [output, _, _, _] = weight.dims();
    let weight: Tensor<3> = weight.reshape([1, output, channels]).expand([batch, output, channels]);
    let mixed = weight.matmul(input.reshape([batch, channels, height * width]));
    let mixed = mixed.reshape([batch, output, height, width]);
    match &conv.bias {
        Some(bias) => mixed + bias.val().reshape([1, output, 1, 1]),
        None => mixed,
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::{Device, Distribution, Tolerance};

    use super::*;

    #[test]
    fn both_ways_agree() {
        let device = Device::flex();
        let conv = Conv2dConfig::new([6, 10], [1, 1]).init(&device);
        let x = Tensor::<4>::random([2, 6, 5, 7], Distribution::Uniform(-1.0, 1.0), &device);
        let convolved = mix(&conv, x.clone()).into_data();
        by_product(&conv, x).into_data().assert_approx_eq::<f32>(&convolved, Tolerance::rel_abs(1e-5, 1e-5));
    }
}
