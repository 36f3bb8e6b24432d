//! Depthwise convolution: every channel is filtered by its own small kernel.

use burn::module::{Initializer, Module, Param};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Slice, Tensor, assert_shape, module::conv2d, ops::PadMode};

/// Configuration of a [`Depthwise`] convolution.
#[derive(Debug, Clone)]
pub struct DepthwiseConfig {
    /// Channels in and out.
    pub channels: usize,
    /// Kernel side.
    pub kernel: usize,
    /// Stride on both axes.
    pub stride: usize,
    /// Zero padding before and after, on both axes.
    pub padding: (usize, usize),
}

impl DepthwiseConfig {
    /// A kernel of odd side `kernel` that keeps the size.
    pub fn same(channels: usize, kernel: usize) -> Self {
        Self { channels, kernel, stride: 1, padding: (kernel / 2, kernel / 2) }
    }

    /// Makes the layer with uniform weights in `+-1/kernel` and zero bias.
    pub fn init(&self, device: &Device) -> Depthwise {
        assert!(self.channels > 0 && self.kernel > 0 && self.stride > 0, "sizes of {self:?} must be positive");
        let bound = 1.0 / self.kernel as f64;
        Depthwise {
            weight: Initializer::Uniform { min: -bound, max: bound }
                .init([self.channels, 1, self.kernel, self.kernel], device),
            bias: Initializer::Zeros.init([self.channels], device),
            stride: self.stride,
            padding: [self.padding.0, self.padding.1],
        }
    }
}

/// `y[c] = w[c] * x[c] + b[c]`, one kernel per channel.
#[derive(Module, Debug)]
pub struct Depthwise {
    /// `[channels, 1, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    stride: usize,
    padding: [usize; 2],
}

impl Depthwise {
    /// Filters every channel.
    ///
    /// # Shapes
    /// - input `[b, channels, h, w]`
    /// - output `[b, channels, h', w']` with `h' = (h + padding - kernel) / stride + 1`
    ///
    /// # Panics
    /// If the channels differ.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [channels, _, _, _] = weight.dims();
        assert_shape!(input, [_, channels, _, _]);
        if input.device().is_autodiff() { self.by_taps(input, weight) } else { self.by_convolution(input, weight) }
    }

    fn by_convolution(&self, input: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
        let channels = weight.dims()[0];
        let [before, after] = self.padding;
        let options = ConvOptions::new_with_padding(
            [self.stride, self.stride],
            [(before, after), (before, after)],
            [1, 1],
            channels,
        );
        conv2d(input, weight, Some(self.bias.val()), options)
    }

    /// A sum over the taps of the kernel, for training: burn 0.22.1 computes the weight gradient of a grouped
    /// convolution with one convolution per group (burn-backend, ops/modules/conv.rs), that is one launch per channel.
    fn by_taps(&self, input: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
        let [channels, _, kernel, _] = weight.dims();
        let [before, after] = self.padding;
        let padded = input.pad([(before, after), (before, after)], PadMode::Constant(0.0));
        let [_, _, height, width] = padded.dims();
        let rows = (height - kernel) / self.stride + 1;
        let columns = (width - kernel) / self.stride + 1;
        let span = |start: usize, count: usize| {
            Slice::new(start as isize, Some((start + (count - 1) * self.stride + 1) as isize), self.stride as isize)
        };
        let mut sum = self.bias.val().reshape([1, channels, 1, 1]);
        for row in 0..kernel {
            for column in 0..kernel {
                let tap = weight.clone().slice([0..channels, 0..1, row..row + 1, column..column + 1]);
                let window =
                    padded.clone().slice([Slice::full(), Slice::full(), span(row, rows), span(column, columns)]);
                sum = sum + window * tap.reshape([1, channels, 1, 1]);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tolerance};

    use super::*;

    fn check(config: DepthwiseConfig) {
        let device = Device::flex();
        let layer = config.init(&device);
        let x = Tensor::random([2, config.channels, 8, 8], Distribution::Uniform(-1.0, 1.0), &device);
        let by_convolution = layer.by_convolution(x.clone(), layer.weight.val()).into_data();
        let by_taps = layer.by_taps(x, layer.weight.val()).into_data();
        by_taps.assert_approx_eq::<f32>(&by_convolution, Tolerance::rel_abs(1e-5, 1e-5));
    }

    #[test]
    fn both_ways_agree() {
        check(DepthwiseConfig::same(4, 3));
        check(DepthwiseConfig::same(3, 5));
        check(DepthwiseConfig { channels: 4, kernel: 3, stride: 2, padding: (0, 1) });
        check(DepthwiseConfig { channels: 2, kernel: 5, stride: 2, padding: (1, 2) });
    }

    #[test]
    fn averaging_kernel_averages() {
        let device = Device::flex();
        let mut layer = DepthwiseConfig { channels: 1, kernel: 2, stride: 2, padding: (0, 0) }.init(&device);
        layer.weight = layer.weight.map(|w| w.zeros_like() + 0.25);
        let x = Tensor::<4>::from_floats([[[[1.0, 3.0], [5.0, 7.0]]]], &device);
        assert_eq!(layer.forward(x).into_scalar::<f32>(), 4.0);
    }
}
