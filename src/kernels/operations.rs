//! The operations as the networks call them: on tensors of any device.

use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::module::Param;
use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, InstanceNorm, PaddingConfig2d};
use burn::tensor::{Tensor, assert_shape};

use super::{Descent, Epilogue, Gradients, Kernels, Norm, Window};

/// Filters every channel: `[b, c, h, w]` by weight `[c, 1, k, k]` and bias `[c]`.
pub fn depthwise(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    window: Window,
    epilogue: Epilogue,
) -> Tensor<4> {
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::depthwise_with(input, weight, bias, window, epilogue))
}

/// Mixes the channels of every cell: `[b, c, h, w]` by weight `[o, c, 1, 1]` and bias `[o]`, or `[b, o]`.
pub fn pointwise<const D: usize>(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<D>,
    epilogue: Epilogue,
) -> Tensor<4> {
    assert_shape!(weight, [_, _, 1, 1]);
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::pointwise(input, weight, bias, epilogue))
}

/// [`pointwise`] with one bias for all pictures, and `added` `[b, o, h, w]` to what comes out.
///
/// # Panics
/// If `added` has another shape.
pub fn pointwise_onto(input: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, added: Tensor<4>) -> Tensor<4> {
    let ([batch, _, height, width], [outputs, ..]) = (input.dims(), weight.dims());
    assert_shape!(added, [batch, outputs, height, width]);
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::pointwise_onto(input, weight, bias, added.into_dispatch()))
}

/// [`pointwise`] of what a group norm makes of the input.
///
/// # Panics
/// As [`group_norm`].
pub fn normed_pointwise(
    norm: &GroupNorm,
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    epilogue: Epilogue,
) -> Tensor<4> {
    let (gamma, beta) = (parameter(norm, &norm.gamma), parameter(norm, &norm.beta));
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    let norm = Norm { groups: norm.num_groups, epsilon: norm.epsilon, epilogue };
    Tensor::from_dispatch(Dispatch::normed_pointwise(input, gamma, beta, weight, bias, norm))
}

/// A pointwise layer: weight `[o, c, 1, 1]` and bias, `[o]` or one for every picture, `[b, o]`.
pub type Layer<const D: usize> = (Tensor<4>, Tensor<D>);

/// The input filtered channel by channel, then [`normed_pointwise`], then [`pointwise_onto`] of that.
///
/// # Panics
/// As both, and if the second layer has not as many inputs as the first has outputs.
pub fn edge_block<const D: usize>(
    input: Tensor<4>,
    (taps, filter_bias, window): (Tensor<4>, Tensor<1>, Window),
    norm: &GroupNorm,
    (weight, bias): Layer<D>,
    epilogue: Epilogue,
    (second, second_bias): Layer<1>,
    added: Tensor<4>,
) -> Tensor<4> {
    let ([batch, _, height, width], [inner, ..]) = (window.filtered(&input.shape()).dims(), weight.dims());
    let [outputs, ..] = second.dims();
    assert_shape!(second, [outputs, inner, 1, 1]);
    assert_shape!(added, [batch, outputs, height, width]);
    let (gamma, beta) = (parameter(norm, &norm.gamma), parameter(norm, &norm.beta));
    let norm = Norm { groups: norm.num_groups, epsilon: norm.epsilon, epilogue };
    Tensor::from_dispatch(Dispatch::edge_block(
        input.into_dispatch(),
        taps.into_dispatch(),
        filter_bias.into_dispatch(),
        gamma,
        beta,
        weight.into_dispatch(),
        bias.into_dispatch(),
        second.into_dispatch(),
        second_bias.into_dispatch(),
        added.into_dispatch(),
        window,
        norm,
    ))
}

/// Attention among the cells of a picture: queries, keys and values of all heads, `[b, 3 c, h, w]`, to `[b, c, h, w]`.
///
/// # Panics
/// If the channels do not split.
pub fn attend(joined: Tensor<4>, heads: usize) -> Tensor<4> {
    let [_, channels, _, _] = joined.dims();
    assert_eq!(
        channels % (3 * heads),
        0,
        "{channels} channels do not split into queries, keys and values of {heads} heads"
    );
    Tensor::from_dispatch(Dispatch::attend(joined.into_dispatch(), heads))
}

/// Attention of the cells of a picture to tokens that are the same for every picture: queries of all heads `[b, c, h, w]`, keys and
/// behind them values `[2 c, n]`, to `[b, c, h, w]`.
///
/// # Panics
/// If the channels do not split, or differ, or there are no tokens.
pub fn attend_to(queries: Tensor<4>, tokens: Tensor<2>, heads: usize) -> Tensor<4> {
    let [_, channels, _, _] = queries.dims();
    assert_eq!(channels % heads, 0, "{channels} channels do not split into {heads} heads");
    assert_shape!(tokens, [2 * channels, _]);
    assert_ne!(tokens.dims()[1], 0, "no tokens to attend to");
    Tensor::from_dispatch(Dispatch::attend_to(queries.into_dispatch(), tokens.into_dispatch(), heads))
}

/// Applies a convolution with one group and a square kernel to `[b, c, h, w]`, and what follows. Without a bias, zeros are added.
///
/// # Panics
/// If its padding is not stated, or kernel, stride or padding are others on one axis than on the other, or it has groups or a
/// dilation.
pub fn convolve(conv: &Conv2d, input: Tensor<4>, epilogue: Epilogue) -> Tensor<4> {
    let (weight, bias, window) = square(conv);
    Tensor::from_dispatch(Dispatch::convolve(input.into_dispatch(), weight, bias, window, epilogue))
}

/// The same, and `added` of the output's shape to what comes out.
///
/// # Panics
/// As [`convolve`], and if `added` has another shape.
pub fn convolve_onto(conv: &Conv2d, input: Tensor<4>, added: Tensor<4>) -> Tensor<4> {
    let (weight, bias, window) = square(conv);
    let [batch, _, height, width] = input.dims();
    let outputs = conv.weight.dims()[0];
    assert_shape!(added, [batch, outputs, window.positions(height), window.positions(width)]);
    Tensor::from_dispatch(Dispatch::convolve_onto(input.into_dispatch(), weight, bias, added.into_dispatch(), window))
}

fn square(conv: &Conv2d) -> (FloatTensor<Dispatch>, FloatTensor<Dispatch>, Window) {
    let PaddingConfig2d::Explicit(top, left, bottom, right) = conv.padding else {
        panic!("{conv:?}: no stated padding")
    };
    let square =
        (top, bottom, conv.kernel_size[0], conv.stride[0]) == (left, right, conv.kernel_size[1], conv.stride[1]);
    assert!(square && conv.groups == 1 && conv.dilation == [1, 1], "{conv:?}: not a square convolution of one group");
    let window = Window { kernel: conv.kernel_size[0], stride: conv.stride[0], before: top, after: bottom };
    let weight = conv.weight.val();
    let zeros = || Tensor::zeros([weight.dims()[0]], (&weight.device(), weight.dtype()));
    let bias = conv.bias.as_ref().map_or_else(zeros, Param::val);
    (weight.into_dispatch(), bias.into_dispatch(), window)
}

/// The channels of both: `[b, c, h, w]` and `[b, d, h, w]` to `[b, c + d, h, w]`.
pub fn join(first: Tensor<4>, second: Tensor<4>) -> Tensor<4> {
    let ([batch, _, height, width], second_dims) = (first.dims(), second.dims());
    assert_eq!(
        [batch, height, width],
        [second_dims[0], second_dims[2], second_dims[3]],
        "pictures of different shapes"
    );
    Tensor::from_dispatch(Dispatch::join(first.into_dispatch(), second.into_dispatch()))
}

/// Every plane of `[b, c, h, w]` weighed by the taps `[k]` around each cell, across and down, with mirrored borders.
///
/// # Panics
/// If the taps are an even number, or reach beyond a mirrored plane.
pub fn smooth(input: Tensor<4>, taps: Tensor<1>) -> Tensor<4> {
    let ([_, _, height, width], [count]) = (input.dims(), taps.dims());
    assert!(count % 2 == 1 && count / 2 <= height.min(width), "{count} taps on {height}x{width}");
    Tensor::from_dispatch(Dispatch::smooth(input.into_dispatch(), taps.into_dispatch()))
}

/// Bilinear resize with aligned corners, as the published scoring does it: `[b, c, h', w']` to `[b, c, height, width]`.
pub fn resize(input: Tensor<4>, height: usize, width: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::resize(input.into_dispatch(), height, width, true))
}

/// Bilinear resize with the outer corners of the cells aligned, and not their centres (`align_corners=False`): `[b, c, h', w']` to
/// `[b, c, height, width]`.
pub fn resize_cells(input: Tensor<4>, height: usize, width: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::resize(input.into_dispatch(), height, width, false))
}

/// The squared distance of every row of `found` to the nearest of `rows`: `[n, c]` and `[m, c]` to `[n, 1]`.
pub fn nearest(found: Tensor<2>, rows: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::nearest(found.into_dispatch(), rows.into_dispatch()))
}

/// A product of matrices whose factors are not rounded, as those of burn may be on a GPU: `[n, c]` and `[c, m]` to `[n, m]`.
pub fn product(found: Tensor<2>, factor: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::product(found.into_dispatch(), factor.into_dispatch()))
}

/// Moves squares of `factor x factor` cells into channels: `[b, c, h, w]` to `[b, c f f, h/f, w/f]`.
///
/// # Panics
/// If `factor` does not divide the sides.
pub fn space_to_depth(input: Tensor<4>, factor: usize) -> Tensor<4> {
    if factor == 1 {
        return input;
    }
    let [_, _, h, w] = input.dims();
    assert!(h % factor == 0 && w % factor == 0, "{h}x{w} does not split into blocks of {factor}");
    Tensor::from_dispatch(Dispatch::space_to_depth(input.into_dispatch(), factor))
}

/// The inverse of [`space_to_depth`]: `[b, c f f, h, w]` to `[b, c, h f, w f]`.
///
/// # Panics
/// If the channels do not split.
pub fn depth_to_space(input: Tensor<4>, factor: usize) -> Tensor<4> {
    if factor == 1 {
        return input;
    }
    let [_, c, _, _] = input.dims();
    assert_eq!(c % (factor * factor), 0, "{c} channels do not split into blocks of {factor}");
    Tensor::from_dispatch(Dispatch::depth_to_space(input.into_dispatch(), factor))
}

/// Repeats every cell twice on both axes: `[b, c, h, w]` to `[b, c, 2h, 2w]`.
pub fn double(input: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::double(input.into_dispatch()))
}

/// Applies a group norm to `[b, c, h, w]`, and what follows.
///
/// # Panics
/// If the norm has no factor and shift.
pub fn group_norm(norm: &GroupNorm, input: Tensor<4>, epilogue: Epilogue) -> Tensor<4> {
    let (gamma, beta) = (parameter(norm, &norm.gamma), parameter(norm, &norm.beta));
    let norm = Norm { groups: norm.num_groups, epsilon: norm.epsilon, epilogue };
    Tensor::from_dispatch(Dispatch::group_norm_with(input.into_dispatch(), gamma, beta, norm))
}

/// Applies a norm of every channel alone, without factor and shift, to `[b, c, h, w]`, and what follows.
///
/// # Panics
/// If the norm has a factor and a shift.
pub fn instance_norm(norm: &InstanceNorm, input: Tensor<4>, epilogue: Epilogue) -> Tensor<4> {
    assert!(norm.gamma.is_none() && norm.beta.is_none(), "instance norm of {} channels: a factor", norm.num_channels);
    let kind = (&input.device(), input.dtype());
    let (ones, zeros) = (Tensor::<1>::ones([norm.num_channels], kind), Tensor::<1>::zeros([norm.num_channels], kind));
    let norm = Norm { groups: norm.num_channels, epsilon: norm.epsilon, epilogue };
    let (input, ones, zeros) = (input.into_dispatch(), ones.into_dispatch(), zeros.into_dispatch());
    Tensor::from_dispatch(Dispatch::group_norm_with(input, ones, zeros, norm))
}

/// Applies a norm with factor, shift and `epsilon` over the channels of every cell of `[b, c, h, w]`.
///
/// # Panics
/// If the factors are not as many as the channels.
pub fn cell_norm(gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64, input: Tensor<4>) -> Tensor<4> {
    let [_, channels, _, _] = input.dims();
    assert_shape!(gamma, [channels]);
    assert_shape!(beta, [channels]);
    let (input, gamma, beta) = (input.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    Tensor::from_dispatch(Dispatch::cell_norm(input, gamma, beta, epsilon))
}

/// One step of AdamW on parameters, their average, first and second moments, `[1, 1, 1, n]` each. `course` `[4, 1, 1, 1]` is the rate,
/// what corrects either moment for its beginning at zero, and the weight of the average so far.
///
/// # Panics
/// If shapes disagree.
pub fn descend(rows: [Tensor<4>; 4], gradient: Tensor<4>, course: Tensor<4>, descent: Descent) -> [Tensor<4>; 4] {
    let [_, _, _, count] = gradient.dims();
    assert!(rows.iter().all(|row| row.dims() == [1, 1, 1, count]), "rows of other lengths than the gradient");
    assert_shape!(course, [4, 1, 1, 1]);
    let [parameters, average, first, second] = rows.map(Tensor::into_dispatch);
    let (gradient, course) = (gradient.into_dispatch(), course.into_dispatch());
    let (parameters, average, first, second) =
        Dispatch::descend(parameters, average, first, second, gradient, course, descent);
    [parameters, average, first, second].map(Tensor::from_dispatch)
}

fn parameter(norm: &GroupNorm, value: &Option<Param<Tensor<1>>>) -> FloatTensor<Dispatch> {
    match value {
        Some(value) => value.val().into_dispatch(),
        None => panic!("group norm of {} channels: no factor and shift", norm.num_channels),
    }
}
