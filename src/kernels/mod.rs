//! Operations that the edge blocks repeat, with their gradients, through burn's extension API: on the CPU in plain Rust, on
//! CUDA as CubeCL kernels.
//!
//! burn 0.22.1 has no good form of them for training: the weight gradient of a depthwise convolution is one convolution per
//! channel (burn-backend, ops/modules/conv.rs), and a group norm is many launches each way.

#[cfg(feature = "train")]
mod backward;
#[cfg(feature = "cuda")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::nn::GroupNorm;
use burn::tensor::{Shape, Tensor, assert_shape};

/// How the kernel of a depthwise convolution moves over the cells, the same on both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Side of the kernel.
    pub kernel: usize,
    /// Cells between two positions.
    pub stride: usize,
    /// Zero padding before the first cell.
    pub before: usize,
    /// Zero padding after the last cell.
    pub after: usize,
}

/// The operations.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cuda"),
    Fusion: cfg(feature = "cuda"),
    Autodiff: cfg(feature = "train")
)]
pub trait Kernels: Backend {
    /// Every channel filtered by its own kernel: input `[b, c, h, w]`, weight `[c, 1, k, k]`, bias `[c]`.
    #[fusion(dtype = input, shape = window.filtered(input))]
    fn depthwise(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self>;

    /// Mean 0 and variance 1 over groups of channels, then a factor and a shift per channel: input `[b, c, h, w]`, the others
    /// `[c]`.
    #[fusion(dtype = input, shape = input)]
    fn group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self>;

    /// The channels of every cell mixed: input `[b, c, h, w]`, weight `[o, c, 1, 1]`, bias `[o]`.
    ///
    /// A matrix product, whose gradients are matrix products, too: the weight gradient of a convolution is, in burn 0.22.1, a
    /// convolution with a kernel as large as the picture (burn-backend, ops/modules/conv.rs), and on CUDA its output is in
    /// another memory layout, so that whatever follows copies.
    #[fusion(default)]
    fn pointwise(input: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, channels, height, width] = input.shape().dims();
        let outputs = weight.shape()[0];
        let weight = Self::float_reshape(weight, Shape::new([1, outputs, channels]));
        let weight = Self::float_expand(weight, Shape::new([batch, outputs, channels]));
        let input = Self::float_reshape(input, Shape::new([batch, channels, height * width]));
        let bias = Self::float_reshape(bias, Shape::new([1, outputs, 1]));
        let mixed = Self::float_add(Self::float_matmul(weight, input), bias);
        Self::float_reshape(mixed, Shape::new([batch, outputs, height, width]))
    }
}

/// What the gradients of [`Kernels`] are made of.
#[backend_extension(Flex: cfg(feature = "cpu"), Cube: cfg(feature = "cuda"), Fusion: cfg(feature = "cuda"))]
pub trait Gradients: Backend {
    /// Gradient of the input of [`Kernels::depthwise`], `[b, c, height, width]`.
    #[fusion(dtype = gradient, shape = {
        let [batch, channels, _, _] = gradient.dims();
        Shape::new([batch, channels, *height, *width])
    })]
    fn depthwise_input(
        gradient: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
        height: usize,
        width: usize,
    ) -> FloatTensor<Self>;

    /// Gradients of weight and bias of [`Kernels::depthwise`] per picture, `[b, c, k k + 1]`: the bias is last.
    #[fusion(dtype = gradient, shape = {
        let [batch, channels, _, _] = gradient.dims();
        Shape::new([batch, channels, window.kernel * window.kernel + 1])
    })]
    fn depthwise_parameters(gradient: FloatTensor<Self>, input: FloatTensor<Self>, window: Window)
    -> FloatTensor<Self>;

    /// Gradient of the input of [`Kernels::group_norm`], and those of beta and gamma per picture, `[2, b, c]`.
    #[fusion(meta = |gradient, _, _, _, _| {
        let [batch, channels, _, _] = gradient.shape.dims();
        let mut sums = gradient.clone();
        sums.shape = Shape::new([2, batch, channels]);
        (gradient.clone(), sums)
    })]
    fn group_norm_gradients(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Filters every channel: `[b, c, h, w]` by weight `[c, 1, k, k]` and bias `[c]`.
pub fn depthwise(input: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, window: Window) -> Tensor<4> {
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::depthwise(input, weight, bias, window))
}

/// Mixes the channels of every cell: `[b, c, h, w]` by weight `[o, c, 1, 1]` and bias `[o]`.
pub fn pointwise(input: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    assert_shape!(weight, [_, _, 1, 1]);
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::pointwise(input, weight, bias))
}

/// Applies a group norm to `[b, c, h, w]`.
///
/// # Panics
/// If the norm has no factor and shift.
pub fn group_norm(norm: &GroupNorm, input: Tensor<4>) -> Tensor<4> {
    let parameter = |value: &Option<burn::module::Param<Tensor<1>>>| match value {
        Some(value) => value.val().into_dispatch(),
        None => panic!("group norm of {} channels: no factor and shift", norm.num_channels),
    };
    let (gamma, beta) = (parameter(&norm.gamma), parameter(&norm.beta));
    Tensor::from_dispatch(Dispatch::group_norm(input.into_dispatch(), gamma, beta, norm.num_groups, norm.epsilon))
}

#[cfg(test)]
mod tests {
    use burn::nn::GroupNormConfig;
    use burn::tensor::module::conv2d;
    use burn::tensor::ops::{ConvOptions, PadMode};
    use burn::tensor::{Device, Distribution, Slice, Tolerance};

    use super::*;

    /// A sum over the taps of the kernel, whose gradients burn derives.
    fn by_taps(input: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, window: Window) -> Tensor<4> {
        let [channels, _, kernel, _] = weight.dims();
        let padding = (window.before, window.after);
        let padded = input.pad([padding, padding], PadMode::Constant(0.0));
        let [_, _, height, width] = padded.dims();
        let span = |start: usize, cells: usize| {
            let count = (cells - kernel) / window.stride + 1;
            let end = start + (count - 1) * window.stride + 1;
            Slice::new(start as isize, Some(end as isize), window.stride as isize)
        };
        let mut sum = bias.reshape([1, channels, 1, 1]);
        for row in 0..kernel {
            for column in 0..kernel {
                let tap = weight.clone().slice([0..channels, 0..1, row..row + 1, column..column + 1]);
                let seen = [Slice::full(), Slice::full(), span(row, height), span(column, width)];
                sum = sum + padded.clone().slice(seen) * tap.reshape([1, channels, 1, 1]);
            }
        }
        sum
    }

    fn by_formula(input: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, groups: usize, epsilon: f64) -> Tensor<4> {
        let [batch, channels, height, width] = input.dims();
        let grouped = input.reshape([batch, groups, channels / groups * height * width]);
        let centered = grouped.clone() - grouped.mean_dim(2);
        let variance = centered.clone().square().mean_dim(2);
        let normal = (centered / (variance + epsilon).sqrt()).reshape([batch, channels, height, width]);
        normal * gamma.reshape([1, channels, 1, 1]) + beta.reshape([1, channels, 1, 1])
    }

    const TOLERANCE: f32 = 1e-4;

    fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), device)
    }

    /// Outputs and gradients of two ways to compute the same from `[b, c, h, w]`, a weight and a row of `c`.
    fn agree<const D: usize>(
        input: Tensor<4>,
        weight: Tensor<D>,
        row: Tensor<1>,
        ways: [&dyn Fn(Tensor<4>, Tensor<D>, Tensor<1>) -> Tensor<4>; 2],
        tolerance: f32,
    ) {
        let device = input.device();
        let results = ways.map(|way| {
            let (x, w, r) = (
                input.clone().autodiff().require_grad(),
                weight.clone().autodiff().require_grad(),
                row.clone().autodiff().require_grad(),
            );
            let output = way(x.clone(), w.clone(), r.clone());
            // Not a plain sum: that has no gradient behind a norm.
            let target = (Tensor::arange(0..output.shape().num_elements() as i64, &device).float() * 0.37).sin();
            let loss = (output.clone() * target.reshape(output.dims()).autodiff()).sum();
            let gradients = loss.backward();
            [
                output.inner().into_data(),
                x.grad(&gradients).expect("of the input").into_data(),
                w.grad(&gradients).expect("of the weight").into_data(),
                r.grad(&gradients).expect("of the row").into_data(),
            ]
        });
        for (ours, other) in results[0].iter().zip(&results[1]) {
            ours.assert_approx_eq::<f32>(other, Tolerance::rel_abs(tolerance, tolerance));
        }
    }

    fn depthwise_agrees(device: &Device) {
        // Also more cells in a plane than units work on it, and pictures smaller than the kernel.
        let sizes = [
            (3, 1, 1, 1, [10, 8]),
            (5, 1, 2, 2, [10, 8]),
            (3, 2, 0, 1, [10, 8]),
            (5, 2, 1, 2, [10, 8]),
            (2, 2, 0, 0, [10, 8]),
            (3, 1, 1, 1, [20, 24]),
            (5, 1, 2, 2, [2, 1]),
        ];
        for (kernel, stride, before, after, [height, width]) in sizes {
            let window = Window { kernel, stride, before, after };
            let (input, weight) = (random([2, 4, height, width], device), random([4, 1, kernel, kernel], device));
            let row = random([4], device);
            let ours = |x, w, b| depthwise(x, w, b, window);
            agree(input.clone(), weight.clone(), row.clone(), [&ours, &|x, w, b| by_taps(x, w, b, window)], TOLERANCE);
            let padding = (before, after);
            let options = ConvOptions::new_with_padding([stride, stride], [padding, padding], [1, 1], 4);
            let convolved = conv2d(input.clone(), weight.clone(), Some(row.clone()), options).into_data();
            let filtered = depthwise(input, weight, row, window).into_data();
            filtered.assert_approx_eq::<f32>(&convolved, Tolerance::rel_abs(1e-4, 1e-4));
        }
    }

    fn group_norm_agrees(device: &Device) {
        // Also more cells in a plane than units work on its group.
        for (batch, side) in [(3, 7), (1, 40), (1, 300)] {
            let input = random([batch, 8, 5, side], device) * 3.0 + 1.0;
            let (gamma, beta) = (random([8], device), random([8], device));
            let ours = |x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>| {
                let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
                Tensor::from_dispatch(Dispatch::group_norm(x, gamma, beta, 4, 1e-3))
            };
            agree(
                input.clone(),
                gamma.clone(),
                beta.clone(),
                [&ours, &|x, g, b| by_formula(x, g, b, 4, 1e-3)],
                TOLERANCE,
            );
            let mut norm = GroupNormConfig::new(4, 8).with_epsilon(1e-3).init(device);
            norm.gamma = norm.gamma.map(|g| g.map(|_| gamma.clone()));
            let theirs = norm.forward(input.clone()).into_data();
            let normed = group_norm(&norm, input).into_data();
            normed.assert_approx_eq::<f32>(&theirs, Tolerance::rel_abs(1e-4, 1e-4));
        }
    }

    fn pointwise_agrees(device: &Device, tolerance: f32) {
        let (input, weight, row) = (random([2, 6, 5, 7], device), random([10, 6, 1, 1], device), random([10], device));
        let ours = |x, w, b| pointwise(x, w, b);
        let other = |x, w, b| conv2d(x, w, Some(b), ConvOptions::new([1, 1], [0, 0], [1, 1], 1));
        agree(input, weight, row, [&ours, &other], tolerance);
    }

    #[test]
    fn kernels_agree_with_burn() {
        let device = Device::flex();
        depthwise_agrees(&device);
        group_norm_agrees(&device);
        pointwise_agrees(&device, TOLERANCE);
    }

    #[cfg(feature = "cuda")]
    mod on_cuda {
        use super::*;

        fn device() -> Device {
            Device::new(burn_cuda::CudaDevice::new(0))
        }

        #[test]
        #[ignore = "needs an NVIDIA GPU"]
        fn depthwise_agrees_with_burn() {
            depthwise_agrees(&device());
        }

        #[test]
        #[ignore = "needs an NVIDIA GPU"]
        fn group_norm_agrees_with_burn() {
            group_norm_agrees(&device());
        }

        #[test]
        #[ignore = "needs an NVIDIA GPU"]
        fn pointwise_agrees_with_burn() {
            // Matrix products are made of numbers with 10 bits there.
            pointwise_agrees(&device(), 3e-3);
        }
    }
}
