//! Halving and doubling a feature map, and moving pixels into channels and back.

use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use super::pointwise::mix;
use crate::kernels::{Epilogue, convolve};
pub use crate::kernels::{depth_to_space, double, space_to_depth};

/// Halves both sides.
#[derive(Module, Debug)]
pub struct Downsample {
    conv: Conv2d,
    folds: bool,
}

impl Downsample {
    /// A 3x3 convolution with stride 2 and zero padding of 1 on every side: the denoiser's form.
    pub fn symmetric(input: usize, output: usize, device: &Device) -> Self {
        Self::strided(input, output, PaddingConfig2d::Explicit(1, 1, 1, 1), device)
    }

    /// The same with zero padding right and below only: the autoencoder's form. Symmetric padding there shifts the
    /// features.
    pub fn asymmetric(input: usize, output: usize, device: &Device) -> Self {
        Self::strided(input, output, PaddingConfig2d::Explicit(0, 0, 1, 1), device)
    }

    /// Blocks of 2x2 cells become channels and are mixed by a pointwise convolution: the edge profiles' form, one matrix
    /// product instead of a strided convolution.
    pub fn folding(input: usize, output: usize, device: &Device) -> Self {
        Self { conv: Conv2dConfig::new([4 * input, output], [1, 1]).init(device), folds: true }
    }

    fn strided(input: usize, output: usize, padding: PaddingConfig2d, device: &Device) -> Self {
        let conv = Conv2dConfig::new([input, output], [3, 3]).with_stride([2, 2]).with_padding(padding).init(device);
        Self { conv, folds: false }
    }

    /// `[b, input, h, w]` to `[b, output, h/2, w/2]`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        if self.folds { mix(&self.conv, space_to_depth(input, 2)) } else { convolve(&self.conv, input, Epilogue::None) }
    }
}

/// Doubles both sides, nearest.
#[derive(Module, Debug)]
pub struct Upsample {
    conv: Conv2d,
    mixes_first: bool,
}

impl Upsample {
    /// A 3x3 convolution behind the doubling: the paper's form.
    pub fn smoothing(input: usize, output: usize, device: &Device) -> Self {
        let conv =
            Conv2dConfig::new([input, output], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(device);
        Self { conv, mixes_first: false }
    }

    /// A pointwise convolution, done before the doubling on a quarter of the cells: the edge profiles' form.
    pub fn pointwise(input: usize, output: usize, device: &Device) -> Self {
        Self { conv: Conv2dConfig::new([input, output], [1, 1]).init(device), mixes_first: true }
    }

    /// `[b, input, h, w]` to `[b, output, 2h, 2w]`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        if self.mixes_first {
            double(mix(&self.conv, input))
        } else {
            convolve(&self.conv, double(input), Epilogue::None)
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, TensorData};

    use super::*;

    #[test]
    fn space_to_depth_round_trip_is_exact() {
        let x = Tensor::<4>::random([2, 3, 8, 4], Distribution::Default, &Device::flex());
        let back = depth_to_space(space_to_depth(x.clone(), 4), 4);
        back.into_data().assert_eq(&x.into_data(), true);
    }

    #[test]
    fn double_repeats_cells() {
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0]]]], &Device::flex());
        let expected = TensorData::from([[[[1.0f32, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]);
        double(x).into_data().assert_eq(&expected, true);
    }

    #[test]
    fn asymmetric_padding_reads_right_and_below() {
        // With a kernel of ones, the top left output is the sum of the top left 3x3 cells: nothing is read from above.
        let device = Device::flex();
        let mut down = Downsample::asymmetric(1, 1, &device);
        down.conv.weight = down.conv.weight.map(|w| w.zeros_like() + 1.0);
        down.conv.bias = down.conv.bias.map(|bias| bias.map(|bias| bias.zeros_like()));
        let x =
            Tensor::<1>::from_floats([1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15., 16.], &device)
                .reshape([1, 1, 4, 4]);
        let expected = TensorData::from([[[[54.0f32, 45.0], [72.0, 54.0]]]]);
        down.forward(x).into_data().assert_eq(&expected, true);
    }
}
