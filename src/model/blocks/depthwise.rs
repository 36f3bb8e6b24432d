//! Depthwise convolution: every channel is filtered by its own small kernel.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor, assert_shape};

use crate::kernels::{Epilogue, Window, depthwise};

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
        self.forward_with(input, Epilogue::None)
    }

    /// The same, and what follows.
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn forward_with(&self, input: Tensor<4>, epilogue: Epilogue) -> Tensor<4> {
        let (weight, bias, window) = self.filter();
        assert_shape!(input, [_, weight.dims()[0], _, _]);
        depthwise(input, weight, bias, window, epilogue)
    }

    /// Weight, bias, and how the kernel moves.
    pub(super) fn filter(&self) -> (Tensor<4>, Tensor<1>, Window) {
        let weight = self.weight.val();
        let [before, after] = self.padding;
        let window = Window { kernel: weight.dims()[2], stride: self.stride, before, after };
        (weight, self.bias.val(), window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averaging_kernel_averages() {
        let device = Device::flex();
        let mut layer = DepthwiseConfig { channels: 1, kernel: 2, stride: 2, padding: (0, 0) }.init(&device);
        layer.weight = layer.weight.map(|w| w.zeros_like() + 0.25);
        let x = Tensor::<4>::from_floats([[[[1.0, 3.0], [5.0, 7.0]]]], &device);
        assert_eq!(layer.forward(x).into_scalar::<f32>(), 4.0);
    }
}
