//! Operations that the networks repeat, through burn's extension API: on the CPU in Rust, on CUDA as CubeCL kernels, all but
//! moves of cells and what follows the gradients; gradients of depthwise convolutions and group norms likewise, the others from burn's
//! operations.
//!
//! burn 0.22.1 has no good form of them for training: the weight gradient of a depthwise convolution is one convolution per
//! channel (burn-backend, ops/modules/conv.rs), and a group norm is many launches each way.

#[cfg(feature = "train")]
mod backward;
#[cfg(feature = "cuda")]
mod cube;
mod descent;
#[cfg(feature = "cpu")]
mod flex;
mod operations;
#[cfg(feature = "cpu")]
mod simd;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Slice, TensorMetadata, backend_extension};
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Shape};

pub use self::descent::Descent;
pub use self::operations::{
    attend, attend_to, cell_norm, convolve, convolve_onto, depth_to_space, depthwise, descend, double, edge_block,
    group_norm, instance_norm, join, nearest, normed_pointwise, pointwise, pointwise_onto, product, resize,
    resize_cells, smooth, space_to_depth,
};

/// How the kernel of a convolution moves over the cells, the same on both axes.
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
    /// Every cell alone.
    pub const POINT: Self = Self { kernel: 1, stride: 1, before: 0, after: 0 };

    /// Positions on a side of `cells` cells.
    fn positions(&self, cells: usize) -> usize {
        (cells + self.before + self.after - self.kernel) / self.stride + 1
    }

    fn filtered(&self, input: &Shape) -> Shape {
        let [_, channels, _, _] = input.dims::<4>();
        self.convolved(input, channels)
    }

    fn convolved(&self, input: &Shape, outputs: usize) -> Shape {
        let [batch, _, height, width] = input.dims();
        Shape::new([batch, outputs, self.positions(height), self.positions(width)])
    }
}

/// What follows a sum, cell by cell, in the same pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `x / (1 + exp(-x))`.
    Silu,
}

impl Epilogue {
    fn apply<B: Backend>(self, input: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Epilogue::None => input,
            Epilogue::Relu => B::relu(input),
            Epilogue::Relu6 => B::float_clamp(input, 0.0.into(), 6.0.into()),
            Epilogue::Silu => B::float_mul(input.clone(), B::sigmoid(input)),
        }
    }
}

/// How the channels of a picture are normed, and what follows the norm or the sum behind it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Groups of channels, each with a mean and a variance of its own.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
    /// What follows.
    pub epilogue: Epilogue,
}

/// Both at once on the cores of a CPU, where what one of them does on a single core leaves room for the other; one after the other
/// anywhere else, where a thread has its own stream.
pub fn side_by_side<A: Send, B: Send>(
    device: &Device,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    #[cfg(feature = "cpu")]
    if *device == Device::flex() {
        return rayon::join(first, second);
    }
    #[cfg(not(feature = "cpu"))]
    let _ = device;
    (first(), second())
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
    #[fusion(dtype = input, shape = window.filtered(input))]
    fn depthwise_with(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        epilogue.apply::<Self>(Self::depthwise(input, weight, bias, window))
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

    /// The same, and what follows.
    #[fusion(dtype = input, shape = input)]
    fn group_norm_with(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        norm.epilogue.apply::<Self>(Self::group_norm(input, gamma, beta, norm.groups, norm.epsilon))
    }

    /// Mean 0 and variance 1 over the channels of every cell, then a factor and a shift per channel: input `[b, c, h, w]`, the
    /// others `[c]`.
    #[fusion(dtype = input, shape = input)]
    fn cell_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let row = Shape::new([1, gamma.shape().num_elements(), 1, 1]);
        let apart = Self::float_sub(input.clone(), Self::float_mean_dim(input, 1));
        let variance = Self::float_mean_dim(Self::float_mul(apart.clone(), apart.clone()), 1);
        let deviation = Self::float_sqrt(Self::float_add_scalar(variance, epsilon.into()));
        let scaled = Self::float_mul(Self::float_div(apart, deviation), Self::float_reshape(gamma, row.clone()));
        Self::float_add(scaled, Self::float_reshape(beta, row))
    }

    /// The channels of every cell mixed, and what follows: input `[b, c, h, w]`, weight `[o, c, 1, 1]`, bias `[o]` or one for
    /// every picture, `[b, o]`.
    ///
    /// A matrix product, whose gradients are matrix products, too: the weight gradient of a convolution is, in burn 0.22.1, a
    /// convolution with a kernel as large as the picture (burn-backend, ops/modules/conv.rs), and on CUDA its output is in
    /// another memory layout, so that whatever follows copies.
    #[fusion(dtype = input, shape = Window::POINT.convolved(input, weight[0]))]
    fn pointwise(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        let [batch, channels, height, width] = input.shape().dims();
        let outputs = weight.shape()[0];
        let weight = Self::float_reshape(weight, Shape::new([1, outputs, channels]));
        let weight = Self::float_expand(weight, Shape::new([batch, outputs, channels]));
        let input = Self::float_reshape(input, Shape::new([batch, channels, height * width]));
        let rows = bias.shape().num_elements() / outputs;
        let bias = Self::float_reshape(bias, Shape::new([rows, outputs, 1]));
        let mixed = epilogue.apply::<Self>(Self::float_add(Self::float_matmul(weight, input), bias));
        Self::float_reshape(mixed, Shape::new([batch, outputs, height, width]))
    }

    /// [`Self::pointwise`], and a picture of its shape added to what comes out.
    #[fusion(dtype = input, shape = added)]
    fn pointwise_onto(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        added: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(added, Self::pointwise(input, weight, bias, Epilogue::None))
    }

    /// [`Self::pointwise`] of what [`Self::group_norm`] makes of the input.
    #[fusion(dtype = input, shape = Window::POINT.convolved(input, weight[0]))]
    fn normed_pointwise(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let normal = Self::group_norm(input, gamma, beta, norm.groups, norm.epsilon);
        Self::pointwise(normal, weight, bias, norm.epilogue)
    }

    /// [`Self::depthwise`] by `filter`, then [`Self::normed_pointwise`], then [`Self::pointwise_onto`] of that: a whole edge block.
    /// Weights are `[o, c, 1, 1]` and `[p, o, 1, 1]`, `added` is `[b, p, h, w]`.
    #[fusion(dtype = input, shape = added)]
    #[allow(clippy::too_many_arguments, reason = "four layers, whose arguments a macro takes one by one")]
    fn edge_block(
        input: FloatTensor<Self>,
        filter: FloatTensor<Self>,
        filter_bias: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        second: FloatTensor<Self>,
        second_bias: FloatTensor<Self>,
        added: FloatTensor<Self>,
        window: Window,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let filtered = Self::depthwise(input, filter, filter_bias, window);
        let inner = Self::normed_pointwise(filtered, gamma, beta, weight, bias, norm);
        Self::pointwise_onto(inner, second, second_bias, added)
    }

    /// Attention among the cells of a picture: queries, keys and values of all heads, `[b, 3 c, h, w]`, to `[b, c, h, w]`.
    #[fusion(dtype = joined, shape = {
        let [batch, channels, height, width] = joined.dims();
        Shape::new([batch, channels / 3, height, width])
    })]
    fn attend(joined: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        by_parts::<Self>(joined, heads)
    }

    /// Attention of the cells of a picture to tokens that are the same for every picture: queries of all heads `[b, c, h, w]`,
    /// keys and behind them values `[2 c, n]`, to `[b, c, h, w]`.
    #[fusion(dtype = queries, shape = queries)]
    fn attend_to(queries: FloatTensor<Self>, tokens: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        to_tokens::<Self>(queries, tokens, heads)
    }

    /// A convolution with a square kernel, and what follows: input `[b, c, h, w]`, weight `[o, c, k, k]`, bias `[o]`.
    #[fusion(dtype = input, shape = window.convolved(input, weight[0]))]
    fn convolve(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        let padding = (window.before, window.after);
        let options = ConvOptions::new_with_padding([window.stride; 2], [padding; 2], [1, 1], 1);
        epilogue.apply::<Self>(Self::conv2d(input, weight, Some(bias), options))
    }

    /// [`Self::convolve`], and a picture of its shape added to what comes out.
    #[fusion(dtype = input, shape = added)]
    fn convolve_onto(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        added: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        Self::float_add(added, Self::convolve(input, weight, bias, window, Epilogue::None))
    }

    /// The channels of both: `[b, c, h, w]` and `[b, d, h, w]` to `[b, c + d, h, w]`.
    #[fusion(dtype = first, shape = {
        let [batch, channels, height, width] = first.dims();
        Shape::new([batch, channels + second[1], height, width])
    })]
    fn join(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_cat(vec![first, second], 1)
    }

    /// Every plane weighed by an odd number of taps around each cell, across and down; borders are mirrored
    /// (`c b a | a b c | c b a`), and planes are no narrower than half of the taps: `[b, c, h, w]` by `[k]`.
    #[fusion(dtype = input, shape = input)]
    fn smooth(input: FloatTensor<Self>, taps: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, channels, height, width] = input.shape().dims();
        let count = taps.shape().num_elements();
        let mirrored = |input: FloatTensor<Self>, dim: usize, size: usize, taps: FloatTensor<Self>, shape| {
            let first = Self::float_flip(Self::float_slice(input.clone(), &along(dim, 0..count / 2)), &[dim]);
            let last = Self::float_flip(Self::float_slice(input.clone(), &along(dim, size - count / 2..size)), &[dim]);
            let whole = Self::float_cat(vec![first, input, last], dim);
            let planes = Self::float_reshape(whole, shape);
            let (padding, weight) = ([(0, 0); 2], if dim == 2 { [1, 1, count, 1] } else { [1, 1, 1, count] });
            let options = ConvOptions::new_with_padding([1, 1], padding, [1, 1], 1);
            Self::conv2d(planes, Self::float_reshape(taps, Shape::new(weight)), None, options)
        };
        let wide = Shape::new([batch * channels, 1, height, width + 2 * (count / 2)]);
        let across = mirrored(input, 3, width, taps.clone(), wide);
        let tall = Shape::new([batch * channels, 1, height + 2 * (count / 2), width]);
        let down = mirrored(across, 2, height, taps, tall);
        Self::float_reshape(down, Shape::new([batch, channels, height, width]))
    }

    /// Bilinear, with the centres of the corner cells aligned (`align_corners`) or else their outer corners: `[b, c, h', w']` to
    /// `[b, c, height, width]`.
    #[fusion(dtype = input, shape = {
        let [batch, channels, _, _] = input.dims();
        Shape::new([batch, channels, *height, *width])
    })]
    fn resize(input: FloatTensor<Self>, height: usize, width: usize, align_corners: bool) -> FloatTensor<Self> {
        let options = InterpolateOptions::new(InterpolateMode::Bilinear).with_align_corners(align_corners);
        Self::interpolate(input, [height, width], options)
    }

    /// The squared distance of every row of `found` `[n, c]` to the nearest of `rows` `[m, c]`, `[n, 1]`.
    #[fusion(dtype = found, shape = Shape::new([found[0], 1]))]
    fn nearest(found: FloatTensor<Self>, rows: FloatTensor<Self>) -> FloatTensor<Self> {
        // |a - b|^2 = |a|^2 + |b|^2 - 2 a b
        let square = |x: &FloatTensor<Self>| Self::float_sum_dim(Self::float_mul(x.clone(), x.clone()), 1);
        let (own, sizes) = (square(&found), Self::float_transpose(square(&rows)));
        let products = Self::float_matmul(found, Self::float_transpose(rows));
        let least = Self::float_min_dim(Self::float_sub(sizes, Self::float_mul_scalar(products, 2.0.into())), 1);
        Self::float_clamp_min(Self::float_add(own, least), 0.0.into())
    }

    /// The product of matrices `[n, c]` and `[c, m]`, whose factors are not rounded.
    #[fusion(dtype = found, shape = Shape::new([found[0], factor[1]]))]
    fn product(found: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(found, factor)
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

/// These places of one of four axes.
fn along(dim: usize, places: std::ops::Range<usize>) -> [Slice; 4] {
    std::array::from_fn(|axis| if axis == dim { Slice::from(places.clone()) } else { Slice::full() })
}

/// [`Kernels::attend`] by burn's attention.
fn by_parts<B: Backend>(joined: FloatTensor<B>, heads: usize) -> FloatTensor<B> {
    let [batch, channels, height, width] = joined.shape().dims();
    let (channels, cells) = (channels / 3, height * width);
    let part = |index: usize| {
        let slices = [Slice::full(), Slice::from(index * channels..(index + 1) * channels)];
        let part = B::float_slice(joined.clone(), &slices);
        B::float_swap_dims(B::float_reshape(part, Shape::new([batch, heads, channels / heads, cells])), 2, 3)
    };
    let attended = B::attention(part(0), part(1), part(2), None, None, AttentionModuleOptions::default());
    B::float_reshape(B::float_swap_dims(attended, 2, 3), Shape::new([batch, channels, height, width]))
}

/// [`Kernels::attend_to`] by burn's attention.
fn to_tokens<B: Backend>(queries: FloatTensor<B>, tokens: FloatTensor<B>, heads: usize) -> FloatTensor<B> {
    let ([batch, channels, height, width], [_, count]) = (queries.shape().dims(), tokens.shape().dims::<2>());
    let (head, cells) = (channels / heads, height * width);
    let part = |index: usize| {
        let slices = [Slice::from(index * channels..(index + 1) * channels), Slice::full()];
        let part = B::float_slice(tokens.clone(), &slices);
        let part = B::float_swap_dims(B::float_reshape(part, Shape::new([1, heads, head, count])), 2, 3);
        B::float_expand(part, Shape::new([batch, heads, count, head]))
    };
    let queries = B::float_swap_dims(B::float_reshape(queries, Shape::new([batch, heads, head, cells])), 2, 3);
    let attended = B::attention(queries, part(0), part(1), None, None, AttentionModuleOptions::default());
    B::float_reshape(B::float_swap_dims(attended, 2, 3), Shape::new([batch, channels, height, width]))
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

    /// One step of AdamW on parameters, their average, first and second moments, `[1, 1, 1, n]` each: these anew. `course` `[4, 1, 1,
    /// 1]` is the rate, what corrects either moment for its beginning at zero, and the weight of the average so far.
    #[fusion(default)]
    #[allow(clippy::too_many_arguments, reason = "a macro takes tensors one by one")]
    fn descend(
        parameters: FloatTensor<Self>,
        average: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        course: FloatTensor<Self>,
        descent: Descent,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        descent::by_parts::<Self>((parameters, average, first, second), gradient, course, descent)
    }
}

#[cfg(test)]
mod tests;

#[cfg(all(test, feature = "cuda"))]
mod on_cuda;
