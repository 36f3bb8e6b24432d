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
#[cfg(feature = "cpu")]
mod simd;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, PaddingConfig2d};
use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Shape, Tensor, assert_shape};

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

impl Window {
    /// Positions on a side of `cells` cells.
    fn positions(&self, cells: usize) -> usize {
        (cells + self.before + self.after - self.kernel) / self.stride + 1
    }

    fn filtered(&self, input: &Shape) -> Shape {
        let [batch, channels, height, width] = input.dims();
        Shape::new([batch, channels, self.positions(height), self.positions(width)])
    }
}

/// What follows a sum, cell by cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bend {
    /// Nothing.
    Straight,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

impl Bend {
    fn apply<B: Backend>(self, input: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Bend::Straight => input,
            Bend::Relu => B::relu(input),
            Bend::Relu6 => B::float_clamp(input, 0.0.into(), 6.0.into()),
        }
    }
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

    /// The same, and what follows.
    #[fusion(default)]
    fn depthwise_bent(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        bend: Bend,
    ) -> FloatTensor<Self> {
        bend.apply::<Self>(Self::depthwise(input, weight, bias, window))
    }

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

    /// The channels of every cell mixed, and what follows: input `[b, c, h, w]`, weight `[o, c, 1, 1]`, bias `[o]` or one for
    /// every picture, `[b, o]`.
    ///
    /// A matrix product, whose gradients are matrix products, too: the weight gradient of a convolution is, in burn 0.22.1, a
    /// convolution with a kernel as large as the picture (burn-backend, ops/modules/conv.rs), and on CUDA its output is in
    /// another memory layout, so that whatever follows copies.
    #[fusion(default)]
    fn pointwise(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        bend: Bend,
    ) -> FloatTensor<Self> {
        let [batch, channels, height, width] = input.shape().dims();
        let outputs = weight.shape()[0];
        let weight = Self::float_reshape(weight, Shape::new([1, outputs, channels]));
        let weight = Self::float_expand(weight, Shape::new([batch, outputs, channels]));
        let input = Self::float_reshape(input, Shape::new([batch, channels, height * width]));
        let rows = bias.shape().num_elements() / outputs;
        let bias = Self::float_reshape(bias, Shape::new([rows, outputs, 1]));
        let mixed = bend.apply::<Self>(Self::float_add(Self::float_matmul(weight, input), bias));
        Self::float_reshape(mixed, Shape::new([batch, outputs, height, width]))
    }

    /// A convolution with a square kernel, and what follows: input `[b, c, h, w]`, weight `[o, c, k, k]`, bias `[o]`.
    #[fusion(default)]
    fn convolve(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        bend: Bend,
    ) -> FloatTensor<Self> {
        let padding = (window.before, window.after);
        let options = ConvOptions::new_with_padding([window.stride; 2], [padding; 2], [1, 1], 1);
        bend.apply::<Self>(Self::conv2d(input, weight, Some(bias), options))
    }

    /// Bilinear with aligned corners: `[b, c, h', w']` to `[b, c, height, width]`.
    #[fusion(default)]
    fn resize(input: FloatTensor<Self>, height: usize, width: usize) -> FloatTensor<Self> {
        let options = InterpolateOptions::new(InterpolateMode::Bilinear).with_align_corners(true);
        Self::interpolate(input, [height, width], options)
    }

    /// The least of `sizes[m] - 2 found[n] rows[m]` for every `n`: found `[n, c]`, rows `[m, c]` and sizes `[m]` to `[n, 1]`.
    #[fusion(default)]
    fn nearest(found: FloatTensor<Self>, rows: FloatTensor<Self>, sizes: FloatTensor<Self>) -> FloatTensor<Self> {
        let count = sizes.shape().num_elements();
        let products = Self::float_matmul(found, Self::float_transpose(rows));
        let sizes = Self::float_reshape(sizes, Shape::new([1, count]));
        Self::float_min_dim(Self::float_sub(sizes, Self::float_mul_scalar(products, 2.0.into())), 1)
    }

    /// Squares of `factor x factor` cells become channels: `[b, c, h, w]` to `[b, c f f, h/f, w/f]`.
    #[fusion(default)]
    fn space_to_depth(input: FloatTensor<Self>, factor: usize) -> FloatTensor<Self> {
        let [b, c, h, w] = input.shape().dims();
        let split = Self::float_reshape(input, Shape::new([b, c, h / factor, factor, w / factor, factor]));
        let moved = Self::float_permute(split, &[0, 1, 3, 5, 2, 4]);
        Self::float_reshape(moved, Shape::new([b, c * factor * factor, h / factor, w / factor]))
    }

    /// The inverse of [`Self::space_to_depth`].
    #[fusion(default)]
    fn depth_to_space(input: FloatTensor<Self>, factor: usize) -> FloatTensor<Self> {
        let [b, c, h, w] = input.shape().dims();
        let channels = c / (factor * factor);
        let split = Self::float_reshape(input, Shape::new([b, channels, factor, factor, h, w]));
        let moved = Self::float_permute(split, &[0, 1, 4, 2, 5, 3]);
        Self::float_reshape(moved, Shape::new([b, channels, h * factor, w * factor]))
    }

    /// Every cell twice on both axes: `[b, c, h, w]` to `[b, c, 2h, 2w]`.
    #[fusion(default)]
    fn double(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let [b, c, h, w] = input.shape().dims();
        let split = Self::float_reshape(input, Shape::new([b, c, h, 1, w, 1]));
        let wide = Self::float_expand(split, Shape::new([b, c, h, 2, w, 2]));
        Self::float_reshape(wide, Shape::new([b, c, 2 * h, 2 * w]))
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

/// Runs what computes on the CPU on a thread of the pool that its kernels divide their work among: from any other thread every
/// one of them would wait for the pool and be woken again. What computes on another device runs where it is called: there a
/// thread has its own stream.
pub fn pooled<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> T {
    #[cfg(feature = "cpu")]
    if *device == Device::flex() {
        return rayon::scope(|_| work());
    }
    work()
}

/// Filters every channel: `[b, c, h, w]` by weight `[c, 1, k, k]` and bias `[c]`.
pub fn depthwise(input: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, window: Window, bend: Bend) -> Tensor<4> {
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::depthwise_bent(input, weight, bias, window, bend))
}

/// Mixes the channels of every cell: `[b, c, h, w]` by weight `[o, c, 1, 1]` and bias `[o]`, or `[b, o]`.
pub fn pointwise<const D: usize>(input: Tensor<4>, weight: Tensor<4>, bias: Tensor<D>, bend: Bend) -> Tensor<4> {
    assert_shape!(weight, [_, _, 1, 1]);
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::pointwise(input, weight, bias, bend))
}

/// Applies a convolution with one group and a square kernel to `[b, c, h, w]`, and what follows.
///
/// # Panics
/// If it has no bias, or other padding on one axis than on the other.
pub fn convolve(conv: &Conv2d, input: Tensor<4>, bend: Bend) -> Tensor<4> {
    let PaddingConfig2d::Explicit(top, left, bottom, right) = conv.padding else {
        panic!("{conv:?}: no stated padding")
    };
    let square =
        (top, bottom, conv.kernel_size[0], conv.stride[0]) == (left, right, conv.kernel_size[1], conv.stride[1]);
    assert!(square && conv.groups == 1 && conv.dilation == [1, 1], "{conv:?}: not a square convolution of one group");
    let window = Window { kernel: conv.kernel_size[0], stride: conv.stride[0], before: top, after: bottom };
    let Some(bias) = &conv.bias else { panic!("convolution without bias") };
    let (weight, bias) = (conv.weight.val().into_dispatch(), bias.val().into_dispatch());
    Tensor::from_dispatch(Dispatch::convolve(input.into_dispatch(), weight, bias, window, bend))
}

/// Bilinear resize with aligned corners: `[b, c, h', w']` to `[b, c, height, width]`.
pub fn resize(input: Tensor<4>, height: usize, width: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::resize(input.into_dispatch(), height, width))
}

/// For every row of `found`, the squared distance to the nearest of `rows` less its own square: `[n, c]` and `[m, c]` to
/// `[n, 1]`.
pub fn nearest(found: Tensor<2>, rows: Tensor<2>) -> Tensor<2> {
    let sizes = rows.clone().square().sum_dim(1).squeeze_dim::<1>(1);
    let (found, rows, sizes) = (found.into_dispatch(), rows.into_dispatch(), sizes.into_dispatch());
    Tensor::from_dispatch(Dispatch::nearest(found, rows, sizes))
}

/// Moves squares of `factor x factor` cells into channels: `[b, c, h, w]` to `[b, c f f, h/f, w/f]`.
pub fn space_to_depth(input: Tensor<4>, factor: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::space_to_depth(input.into_dispatch(), factor))
}

/// The inverse of [`space_to_depth`].
pub fn depth_to_space(input: Tensor<4>, factor: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::depth_to_space(input.into_dispatch(), factor))
}

/// Repeats every cell twice on both axes: `[b, c, h, w]` to `[b, c, 2h, 2w]`.
pub fn double(input: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::double(input.into_dispatch()))
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
    use burn::module::Param;
    use burn::nn::GroupNormConfig;
    use burn::nn::conv::Conv2dConfig;
    use burn::tensor::activation::relu;
    use burn::tensor::module::{conv2d, interpolate};
    use burn::tensor::ops::PadMode;
    use burn::tensor::{Distribution, Slice, Tolerance};

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
    const BENDS: [Bend; 3] = [Bend::Straight, Bend::Relu, Bend::Relu6];

    fn bent(x: Tensor<4>, bend: Bend) -> Tensor<4> {
        match bend {
            Bend::Straight => x,
            Bend::Relu => relu(x),
            Bend::Relu6 => x.clamp(0.0, 6.0),
        }
    }

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
            for bend in BENDS {
                let ours = |x, w, b| depthwise(x, w, b, window, bend);
                let other = |x, w, b| bent(by_taps(x, w, b, window), bend);
                agree(input.clone(), weight.clone(), row.clone(), [&ours, &other], TOLERANCE);
            }
            let padding = (before, after);
            let options = ConvOptions::new_with_padding([stride, stride], [padding, padding], [1, 1], 4);
            let convolved = conv2d(input.clone(), weight.clone(), Some(row.clone()), options).into_data();
            let filtered = depthwise(input, weight, row, window, Bend::Straight).into_data();
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
        // Also more cells than are worked on at a time, and rows that fill no block.
        for (batch, channels, outputs, [height, width]) in
            [(2, 6, 10, [5, 7]), (1, 40, 13, [40, 50]), (3, 7, 1, [1, 3])]
        {
            let input = random([batch, channels, height, width], device) * 3.0;
            let (weight, row) = (random([outputs, channels, 1, 1], device), random([outputs], device));
            let convolved = |x, w, b| conv2d(x, w, Some(b), ConvOptions::new([1, 1], [0, 0], [1, 1], 1));
            for bend in BENDS {
                let ours = |x, w, b| pointwise(x, w, b, bend);
                let other = |x, w, b| bent(convolved(x, w, b), bend);
                agree(input.clone(), weight.clone(), row.clone(), [&ours, &other], tolerance);
            }
            // A bias of each picture.
            let rows = random([batch, outputs], device);
            let sum =
                convolved(input.clone(), weight.clone(), row * 0.0) + rows.clone().reshape([batch, outputs, 1, 1]);
            let (found, expected) = (pointwise(input, weight, rows, Bend::Relu).into_data(), bent(sum, Bend::Relu));
            found.assert_approx_eq::<f32>(&expected.into_data(), Tolerance::rel_abs(tolerance, tolerance));
        }
    }

    fn convolution_agrees(device: &Device, tolerance: f32) {
        // Also panels that reach beyond a row, more outputs than are summed side by side, and padding on one side.
        for (kernel, stride, padding, channels, outputs, [height, width]) in
            [(3, 1, [1, 1], 5, 13, [9, 37]), (3, 2, [0, 1], 3, 8, [12, 70]), (7, 1, [3, 3], 2, 1, [6, 4])]
        {
            let [before, after] = padding;
            let input = random([2, channels, height, width], device) * 3.0;
            let (weight, row) = (random([outputs, channels, kernel, kernel], device), random([outputs], device));
            let config = Conv2dConfig::new([channels, outputs], [kernel, kernel]).with_stride([stride, stride]);
            let mut conv = config.with_padding(PaddingConfig2d::Explicit(before, before, after, after)).init(device);
            conv.weight = Param::from_tensor(weight.clone());
            conv.bias = Some(Param::from_tensor(row.clone()));
            let options = ConvOptions::new_with_padding([stride; 2], [(before, after); 2], [1, 1], 1);
            let convolved = conv2d(input.clone(), weight, Some(row), options);
            for bend in BENDS {
                let (found, expected) = (convolve(&conv, input.clone(), bend), bent(convolved.clone(), bend));
                let tolerance = Tolerance::rel_abs(tolerance, tolerance);
                found.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
            }
        }
    }

    fn moves_agree(device: &Device, tolerance: f32) {
        let close = |found: Tensor<4>, expected: Tensor<4>| {
            let tolerance = Tolerance::rel_abs(tolerance, tolerance);
            found.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
        };
        let input = random([2, 3, 8, 12], device);
        let split: Tensor<6> = input.clone().reshape([2, 3, 2, 4, 3, 4]);
        let folded = split.permute([0, 1, 3, 5, 2, 4]).reshape([2, 48, 2, 3]);
        close(space_to_depth(input.clone(), 4), folded.clone());
        close(depth_to_space(folded, 4), input.clone());
        let sized = |options: InterpolateOptions, size| interpolate(input.clone(), options.with_output_size(size));
        close(double(input.clone()), sized(InterpolateOptions::new(InterpolateMode::Nearest), [16, 24]));
        for size in [[16, 24], [5, 31], [1, 12], [8, 12]] {
            let options = InterpolateOptions::new(InterpolateMode::Bilinear).with_align_corners(true);
            close(resize(input.clone(), size[0], size[1]), sized(options, size));
        }
        for (count, rows, channels) in [(70, 13, 9), (3, 1, 2)] {
            let (found, rows) = (random([count, channels], device), random([rows, channels], device));
            let apart = found.clone().unsqueeze_dim::<3>(1) - rows.clone().unsqueeze_dim::<3>(0);
            let expected = apart.square().sum_dim(2).min_dim(1).reshape([count, 1, 1, 1]);
            let squared = nearest(found.clone(), rows) + found.square().sum_dim(1);
            close(squared.reshape([count, 1, 1, 1]), expected);
        }
    }

    /// A value that is no number must show in the map, whatever it goes through.
    #[test]
    fn what_is_no_number_stays_none() {
        let device = Device::flex();
        let input = Tensor::<1>::from_floats([1.0, f32::NAN, -1.0, 9.0], &device).reshape([1, 1, 2, 2]);
        let (weight, bias) = (Tensor::<4>::ones([1, 1, 1, 1], &device), Tensor::<1>::zeros([1], &device));
        let window = Window { kernel: 1, stride: 1, before: 0, after: 0 };
        for found in [
            pointwise(input.clone(), weight.clone(), bias.clone(), Bend::Relu6),
            depthwise(input, weight, bias, window, Bend::Relu6),
        ] {
            let found = found.into_data().try_into_vec::<f32>().expect("f32");
            assert!(found[1].is_nan(), "{found:?}");
            assert_eq!((found[0], found[2], found[3]), (1.0, 0.0, 6.0));
        }
    }

    #[test]
    fn kernels_agree_with_burn() {
        let device = Device::flex();
        depthwise_agrees(&device);
        group_norm_agrees(&device);
        pointwise_agrees(&device, TOLERANCE);
        convolution_agrees(&device, TOLERANCE);
        moves_agree(&device, TOLERANCE);
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

        #[test]
        #[ignore = "needs an NVIDIA GPU"]
        fn convolutions_and_moves_agree_with_burn() {
            convolution_agrees(&device(), 3e-2);
            moves_agree(&device(), 3e-3);
        }
    }
}
