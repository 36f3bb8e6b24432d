//! Values and gradients against burn's own operations.

pub(super) mod convolutions;

use burn::backend::Dispatch;
use burn::module::Param;
use burn::nn::conv::Conv2dConfig;
use burn::nn::{GroupNormConfig, LayerNormConfig, PaddingConfig2d};
use burn::tensor::activation::{relu, silu, softmax};
use burn::tensor::module::{conv2d, interpolate};
use burn::tensor::ops::PadMode;
use burn::tensor::{Device, Distribution, Slice, Tensor, Tolerance};

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
const EPILOGUES: [Epilogue; 4] = [Epilogue::None, Epilogue::Relu, Epilogue::Relu6, Epilogue::Silu];

fn applied(x: Tensor<4>, epilogue: Epilogue) -> Tensor<4> {
    match epilogue {
        Epilogue::None => x,
        Epilogue::Relu => relu(x),
        Epilogue::Relu6 => x.clamp(0.0, 6.0),
        Epilogue::Silu => silu(x),
    }
}

pub(super) fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
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
        // A gradient sums thousands of products: where it cancels, what is left is as wrong as the whole.
        let largest = other.iter::<f32>().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        ours.assert_approx_eq::<f32>(other, Tolerance::rel_abs(tolerance, tolerance * (largest / 10.0).max(1.0)));
    }
}

pub(super) fn depthwise_agrees(device: &Device) {
    // Also more cells in a plane than units work on it, pictures smaller than the kernel, and rows longer than all vectors of a step.
    let sizes = [
        (3, 1, 1, 1, [10, 8]),
        (5, 1, 2, 2, [10, 8]),
        (3, 2, 0, 1, [10, 8]),
        (5, 2, 1, 2, [10, 8]),
        (2, 2, 0, 0, [10, 8]),
        (3, 1, 1, 1, [20, 24]),
        (5, 1, 2, 2, [2, 1]),
        (3, 1, 1, 1, [21, 37]),
        (5, 2, 1, 2, [23, 71]),
        (3, 2, 1, 1, [9, 33]),
        (3, 3, 1, 1, [13, 40]),
    ];
    for (kernel, stride, before, after, [height, width]) in sizes {
        let window = Window { kernel, stride, before, after };
        let (input, weight) = (random([2, 4, height, width], device), random([4, 1, kernel, kernel], device));
        let row = random([4], device);
        for epilogue in EPILOGUES {
            let ours = |x, w, b| depthwise(x, w, b, window, epilogue);
            let other = |x, w, b| applied(by_taps(x, w, b, window), epilogue);
            agree(input.clone(), weight.clone(), row.clone(), [&ours, &other], TOLERANCE);
        }
        let padding = (before, after);
        let options = ConvOptions::new_with_padding([stride, stride], [padding, padding], [1, 1], 4);
        let convolved = conv2d(input.clone(), weight.clone(), Some(row.clone()), options).into_data();
        let filtered = depthwise(input, weight, row, window, Epilogue::None).into_data();
        filtered.assert_approx_eq::<f32>(&convolved, Tolerance::rel_abs(1e-4, 1e-4));
    }
}

pub(super) fn group_norm_agrees(device: &Device) {
    // Also more cells in a plane than units work on its group.
    for (batch, side) in [(3, 7), (1, 40), (1, 300), (2, 3300)] {
        let input = random([batch, 8, 5, side], device) * 3.0 + 1.0;
        let (gamma, beta) = (random([8], device), random([8], device));
        let ours = |x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>| {
            let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
            Tensor::from_dispatch(Dispatch::group_norm(x, gamma, beta, 4, 1e-3))
        };
        agree(input.clone(), gamma.clone(), beta.clone(), [&ours, &|x, g, b| by_formula(x, g, b, 4, 1e-3)], TOLERANCE);
        let mut norm = GroupNormConfig::new(4, 8).with_epsilon(1e-3).init(device);
        norm.gamma = norm.gamma.map(|g| g.map(|_| gamma.clone()));
        let theirs = norm.forward(input.clone());
        for epilogue in EPILOGUES {
            let normed = group_norm(&norm, input.clone(), epilogue).into_data();
            let theirs = applied(theirs.clone(), epilogue).into_data();
            normed.assert_approx_eq::<f32>(&theirs, Tolerance::rel_abs(1e-4, 1e-4));
        }
    }
}

pub(super) fn cell_norm_agrees(device: &Device) {
    // Fewer channels than planes of units share a cell, and more; cells that fill no plane.
    for (channels, [height, width]) in [(12, [1, 5]), (320, [7, 10]), (1280, [4, 4])] {
        let mut norm = LayerNormConfig::new(channels).with_epsilon(1e-3).init(device);
        norm.gamma = Param::from_tensor(random([channels], device));
        norm.beta = Some(Param::from_tensor(random([channels], device)));
        let input = random([2, channels, height, width], device) * 3.0 + 1.0;
        let expected = norm.forward(input.clone().permute([0, 2, 3, 1])).permute([0, 3, 1, 2]).into_data();
        let beta = norm.beta.as_ref().expect("it is made with one").val();
        let found = cell_norm(norm.gamma.val(), beta, 1e-3, input).into_data();
        found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
    }
}

pub(super) fn pointwise_agrees(device: &Device, tolerance: f32) {
    // Also more cells than are worked on at a time, and rows that fill no block.
    for (batch, channels, outputs, [height, width]) in [(2, 6, 10, [5, 7]), (1, 40, 13, [40, 50]), (3, 7, 1, [1, 3])] {
        let input = random([batch, channels, height, width], device) * 3.0;
        let (weight, row) = (random([outputs, channels, 1, 1], device), random([outputs], device));
        let convolved = |x, w, b| conv2d(x, w, Some(b), ConvOptions::new([1, 1], [0, 0], [1, 1], 1));
        for epilogue in EPILOGUES {
            let ours = |x, w, b| pointwise(x, w, b, epilogue);
            let other = |x, w, b| applied(convolved(x, w, b), epilogue);
            let (found, expected) =
                (ours(input.clone(), weight.clone(), row.clone()), other(input.clone(), weight.clone(), row.clone()));
            found.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::rel_abs(tolerance, tolerance));
            // Where sums are rounded, one of them may lie on the other side of 0, and with it the whole gradient of its cell.
            if tolerance <= TOLERANCE || epilogue == Epilogue::None {
                agree(input.clone(), weight.clone(), row.clone(), [&ours, &other], tolerance);
            }
        }
        // A bias of each picture.
        let rows = random([batch, outputs], device);
        let sum = convolved(input.clone(), weight.clone(), row * 0.0) + rows.clone().reshape([batch, outputs, 1, 1]);
        let (found, expected) =
            (pointwise(input, weight, rows, Epilogue::Relu).into_data(), applied(sum, Epilogue::Relu));
        found.assert_approx_eq::<f32>(&expected.into_data(), Tolerance::rel_abs(tolerance, tolerance));
    }
}

pub(super) fn layers_in_one_agree(device: &Device, tolerance: f32) {
    let close = |found: Tensor<4>, expected: Tensor<4>| {
        let tolerance = Tolerance::rel_abs(tolerance, tolerance);
        found.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
    };
    let mixed = |x, w, b| conv2d(x, w, Some(b), ConvOptions::new([1, 1], [0, 0], [1, 1], 1));
    // Planes in several parts, the last of them short; planes smaller than a vector; more taps than all planes take at a time; tiles
    // of every size.
    for (batch, channels, outputs, [height, width]) in [
        (2, 8, 10, [5, 7]),
        (1, 72, 33, [40, 17]),
        (3, 16, 1, [1, 3]),
        (1, 136, 40, [16, 16]),
        (1, 16, 40, [50, 56]),
        (1, 16, 40, [51, 55]),
        (1, 24, 70, [90, 92]),
    ] {
        let input = random([batch, channels, height, width], device) * 3.0 + 1.0;
        let mut norm = GroupNormConfig::new(8, channels).with_epsilon(1e-3).init(device);
        norm.gamma = norm.gamma.map(|gamma| gamma.map(|_| random([channels], device)));
        norm.beta = norm.beta.map(|beta| beta.map(|_| random([channels], device)));
        let weight = random([outputs, channels, 1, 1], device);
        let (row, rows) = (random([outputs], device), random([batch, outputs], device));
        let added = random([batch, outputs, height, width], device);
        let second = (random([channels, outputs, 1, 1], device) / (outputs as f64).sqrt(), random([channels], device));
        let kept = random([batch, channels, height, width], device);
        let plain = mixed(input.clone(), weight.clone(), row.clone());
        close(pointwise_onto(input.clone(), weight.clone(), row.clone(), added.clone()), plain + added);
        let window = Window { kernel: 3, stride: 1, before: 1, after: 1 };
        let (taps, shift) = (random([channels, 1, 3, 3], device), random([channels], device));
        let normal = norm.forward(input.clone());
        let filtered = by_taps(input.clone(), taps.clone(), shift.clone(), window);
        let behind = norm.forward(filtered);
        for epilogue in EPILOGUES {
            let expected = applied(mixed(normal.clone(), weight.clone(), row.clone()), epilogue);
            close(normed_pointwise(&norm, input.clone(), weight.clone(), row.clone(), epilogue), expected);
            let filter = (taps.clone(), shift.clone(), window);
            let expected = mixed(behind.clone(), weight.clone(), row.clone() * 0.0);
            let inner = applied(expected + rows.clone().reshape([batch, outputs, 1, 1]), epilogue);
            let expected = mixed(inner, second.0.clone(), second.1.clone()) + kept.clone();
            let first = (weight.clone(), rows.clone());
            let found = edge_block(input.clone(), filter, &norm, first, epilogue, second.clone(), kept.clone());
            close(found, expected);
        }
    }
}

pub(super) fn attention_agrees(device: &Device, tolerance: f32) {
    // Keys that fill no block, and more than all planes take at a time; heads as wide as a fragment and as registers, and some that
    // are none of both.
    for (batch, heads, head, [height, width]) in [
        (2, 3, 4, [5, 7]),
        (1, 4, 32, [14, 18]),
        (1, 2, 64, [9, 4]),
        (1, 1, 80, [3, 3]),
        (1, 2, 40, [8, 8]),
        (1, 1, 8, [19, 21]),
        (1, 1, 160, [5, 60]),
        (1, 1, 168, [3, 4]),
    ] {
        let (channels, cells) = (heads * head, height * width);
        let joined = random([batch, 3 * channels, height, width], device) * 3.0;
        let part = |k: usize| {
            let part = joined.clone().narrow(1, k * channels, channels);
            part.reshape([batch, heads, head, cells]).swap_dims(2, 3)
        };
        let products = part(0).matmul(part(1).swap_dims(2, 3)) / (head as f64).sqrt();
        let expected = softmax(products, 3).matmul(part(2)).swap_dims(2, 3).reshape([batch, channels, height, width]);
        let found = attend(joined.clone(), heads).into_data();
        found.assert_approx_eq::<f32>(&expected.into_data(), Tolerance::rel_abs(tolerance, tolerance));
        // The cells to so many tokens that they fill no block, and to one.
        for count in [77, 80, 1] {
            let tokens = random([2 * channels, count], device) * 3.0;
            let part = |k: usize| {
                let part = tokens.clone().narrow(0, k * channels, channels);
                part.reshape([1, heads, head, count]).expand([batch, heads, head, count])
            };
            let queries = joined.clone().narrow(1, 0, channels);
            let asked = queries.clone().reshape([batch, heads, head, cells]).swap_dims(2, 3);
            let products = asked.matmul(part(0)) / (head as f64).sqrt();
            let expected = softmax(products, 3).matmul(part(1).swap_dims(2, 3)).swap_dims(2, 3);
            let found = attend_to(queries, tokens, heads).into_data();
            let expected = expected.reshape([batch, channels, height, width]).into_data();
            found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(tolerance, tolerance));
        }
    }
}

/// Kernel, stride, padding, channels, outputs and sides of a convolution.
pub(super) type Convolution = (usize, usize, [usize; 2], usize, usize, [usize; 2]);

/// Also panels that reach beyond a row, more outputs than are summed side by side, padding on one side, and so many positions that
/// they are shared out in larger tiles.
pub(super) const SMALL_CONVOLUTIONS: [Convolution; 7] = [
    (3, 1, [1, 1], 5, 13, [9, 37]),
    (3, 2, [0, 1], 3, 8, [12, 70]),
    (3, 2, [1, 1], 5, 9, [11, 67]),
    (3, 2, [1, 1], 16, 40, [101, 111]),
    (7, 1, [3, 3], 2, 1, [6, 4]),
    (3, 1, [1, 1], 16, 40, [50, 56]),
    (3, 1, [1, 1], 4, 40, [81, 131]),
];

pub(super) fn convolution_agrees(device: &Device, tolerance: f32, convolutions: &[Convolution]) {
    for &(kernel, stride, padding, channels, outputs, [height, width]) in convolutions {
        let [before, after] = padding;
        // Where there are many taps, so that sums, and what is lost to rounded factors, are as large.
        let input = random([2, channels, height, width], device) * 3.0;
        let input = input / ((channels * kernel * kernel) as f64 / 144.0).max(1.0).sqrt();
        let (weight, row) = (random([outputs, channels, kernel, kernel], device), random([outputs], device));
        let config = Conv2dConfig::new([channels, outputs], [kernel, kernel]).with_stride([stride, stride]);
        let mut conv = config.with_padding(PaddingConfig2d::Explicit(before, before, after, after)).init(device);
        conv.weight = Param::from_tensor(weight.clone());
        conv.bias = Some(Param::from_tensor(row.clone()));
        let options = ConvOptions::new_with_padding([stride; 2], [(before, after); 2], [1, 1], 1);
        let convolved = conv2d(input.clone(), weight, Some(row), options);
        for epilogue in EPILOGUES {
            let (found, expected) = (convolve(&conv, input.clone(), epilogue), applied(convolved.clone(), epilogue));
            let tolerance = Tolerance::rel_abs(tolerance, tolerance);
            found.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
        }
        let added = random(convolved.dims(), device) * 3.0;
        let (found, expected) =
            (convolve_onto(&conv, input, added.clone()).into_data(), (convolved + added).into_data());
        found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(tolerance, tolerance));
    }
}

pub(super) fn moves_agree(device: &Device, tolerance: f32) {
    let close = |found: Tensor<4>, expected: Tensor<4>| {
        let tolerance = Tolerance::rel_abs(tolerance, tolerance);
        found.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
    };
    let input = random([2, 3, 8, 12], device);
    let split: Tensor<6> = input.clone().reshape([2, 3, 2, 4, 3, 4]);
    let folded = split.permute([0, 1, 3, 5, 2, 4]).reshape([2, 48, 2, 3]);
    close(space_to_depth(input.clone(), 4), folded.clone());
    close(depth_to_space(folded, 4), input.clone());
    let other = random([2, 5, 8, 12], device);
    close(join(input.clone(), other.clone()), Tensor::cat(vec![input.clone(), other], 1));
    let sized = |options: InterpolateOptions, size| interpolate(input.clone(), options.with_output_size(size));
    close(double(input.clone()), sized(InterpolateOptions::new(InterpolateMode::Nearest), [16, 24]));
    for size in [[16, 24], [5, 31], [1, 12], [8, 12]] {
        let options = InterpolateOptions::new(InterpolateMode::Bilinear).with_align_corners(true);
        close(resize(input.clone(), size[0], size[1]), sized(options, size));
        let options = InterpolateOptions::new(InterpolateMode::Bilinear).with_align_corners(false);
        close(resize_cells(input.clone(), size[0], size[1]), sized(options, size));
    }
    // Taps that see every border, and one that sees nothing else.
    for count in [1, 5, 13] {
        let taps = random([count], device);
        let apart = |dims: [usize; 4]| taps.clone().reshape(dims);
        let half = count / 2;
        let [_, _, height, width] = input.dims();
        let mirror = |x: Tensor<4>, dim: usize, size: usize| {
            let (first, last) =
                (x.clone().narrow(dim, 0, half.max(1)), x.clone().narrow(dim, size - half.max(1), half.max(1)));
            let parts =
                if half == 0 { vec![x] } else { vec![first.flip([dim as isize]), x, last.flip([dim as isize])] };
            Tensor::cat(parts, dim)
        };
        let plane = |x: Tensor<4>| {
            let [b, c, h, w] = x.dims();
            x.reshape([b * c, 1, h, w])
        };
        let options = || ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
        let across = conv2d(plane(mirror(input.clone(), 3, width)), apart([1, 1, 1, count]), None, options());
        let down = conv2d(mirror(across, 2, height), apart([1, 1, count, 1]), None, options());
        close(smooth(input.clone(), taps.clone()), down.reshape(input.dims()));
    }
}

/// Rows that fill no tile, more others than one cube meets, and rows that are one of the others but far from zero: what is left of
/// their squares is not what they are apart.
pub(super) fn rows_agree(device: &Device, tolerance: f32) {
    for (count, others, channels, far) in [(70, 13, 9, 0.0), (3, 1, 2, 0.0), (1024, 700, 152, 0.0), (40, 130, 33, 10.0)]
    {
        let others = random([others, channels], device) + far;
        let mut found = random([count, channels], device) + far;
        if far > 0.0 {
            found = found.slice_assign([0..1, 0..channels], others.clone().narrow(0, 5, 1));
        }
        let apart = found.clone().unsqueeze_dim::<3>(1) - others.clone().unsqueeze_dim::<3>(0);
        let expected = apart.square().sum_dim(2).min_dim(1).reshape([count, 1]).into_data();
        let tolerance = Tolerance::<f32>::rel_abs(1e-5, tolerance);
        nearest(found.clone(), others.clone()).into_data().assert_approx_eq(&expected, tolerance);
        let expected = found.clone().unsqueeze_dim::<3>(1) * others.clone().unsqueeze_dim::<3>(0);
        let expected = expected.sum_dim(2).reshape([count, others.dims()[0]]).into_data();
        product(found, others.transpose()).into_data().assert_approx_eq(&expected, tolerance);
    }
}

/// A value that is no number must show in the map, whatever it goes through: a kernel that makes a number of it would make a pass of a
/// fault.
pub(super) fn no_number_stays_none(device: &Device) {
    let input = Tensor::<1>::from_floats([1.0, f32::NAN, -1.0, 9.0], device).reshape([1, 1, 2, 2]);
    let (weight, bias) = (Tensor::<4>::ones([1, 1, 1, 1], device), Tensor::<1>::zeros([1], device));
    for found in [
        pointwise(input.clone(), weight.clone(), bias.clone(), Epilogue::Relu6),
        depthwise(input.clone(), weight.clone(), bias.clone(), Window::POINT, Epilogue::Relu6),
    ] {
        let found = found.into_data().try_into_vec::<f32>().expect("f32");
        assert!(found[1].is_nan(), "{found:?}");
        assert_eq!((found[0], found[2], found[3]), (1.0, 0.0, 6.0));
    }
    let zeros = Tensor::zeros_like(&input);
    let found = pointwise_onto(input.clone(), weight.clone(), bias.clone(), zeros).into_data();
    assert!(found.try_into_vec::<f32>().expect("f32")[1].is_nan());
    // Of a norm and of attention nothing is left.
    let norm = GroupNormConfig::new(1, 1).init(device);
    for found in [
        normed_pointwise(&norm, input.clone(), weight.clone(), bias.clone(), Epilogue::Relu),
        edge_block(
            input.clone(),
            (weight.clone(), bias.clone(), Window::POINT),
            &norm,
            (random([1, 1, 1, 1], device), bias.clone()),
            Epilogue::Relu,
            (weight, bias),
            Tensor::zeros_like(&input),
        ),
        attend(input.repeat_dim(1, 24), 1),
    ] {
        let found = found.into_data().try_into_vec::<f32>().expect("f32");
        assert!(found.iter().all(|value| value.is_nan()), "{found:?}");
    }
    // Of what is added last, and of what a window sees, that alone.
    let cell = |side: usize| {
        let place = Tensor::full([1; 4], f32::NAN, device);
        random([1, 1, side, side], device).slice_assign([0..1, 0..1, 1..2, 0..1], place)
    };
    let ones = || (Tensor::ones([1, 1, 1, 1], device), Tensor::zeros([1], device));
    let filter = (Tensor::ones([1, 1, 1, 1], device), Tensor::zeros([1], device), Window::POINT);
    let found = edge_block(random([1, 1, 3, 3], device), filter, &norm, ones(), Epilogue::Relu, ones(), cell(3));
    let at = |found: Tensor<4>| {
        let found = found.into_data().try_into_vec::<f32>().expect("f32");
        (0..found.len()).filter(|at| found[*at].is_nan()).collect::<Vec<_>>()
    };
    assert_eq!(at(found), [3]);
    let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
    let conv = Conv2dConfig::new([1, 1], [3, 3]).with_padding(padding).init(device);
    assert_eq!(at(convolve(&conv, cell(4), Epilogue::Relu)), [0, 1, 4, 5, 8, 9]);
    // Of values alone, in a part of the keys.
    let mut joined = random([1, 24, 5, 7], device);
    joined = joined.slice_assign([0..1, 16..24, 4..5, 0..7], Tensor::full([1, 8, 1, 7], f32::NAN, device));
    let found = attend(joined, 1).into_data().try_into_vec::<f32>().expect("f32");
    assert!(found.iter().all(|value| value.is_nan()), "{found:?}");
    // Of a cell nothing is left, of the others all; also where factors meet in shared memory.
    let broken = |channels: usize, side: usize| {
        let place = [0..1, channels / 2..channels / 2 + 1, 0..1, 1..2];
        random([1, channels, side, side], device).slice_assign(place, Tensor::full([1; 4], f32::NAN, device))
    };
    let norm = LayerNormConfig::new(16).init(device);
    let beta = norm.beta.as_ref().expect("it is made with one").val();
    let mixed = |channels: usize, outputs: usize, side: usize| {
        let (weight, bias) = (random([outputs, channels, 1, 1], device), random([outputs], device));
        pointwise(broken(channels, side), weight, bias, Epilogue::Silu)
    };
    for found in [cell_norm(norm.gamma.val(), beta, 1e-5, broken(16, 3)), mixed(16, 3, 3), mixed(512, 140, 32)] {
        let cells = found.dims()[2] * found.dims()[3];
        let found = found.into_data().try_into_vec::<f32>().expect("f32");
        assert!(found.iter().enumerate().all(|(at, value)| value.is_nan() == (at % cells == 1)), "{found:?}");
    }
    // Of a group as large as the whole device shares nothing is left, either, nor of one that holds an infinity.
    for (side, value) in [(2, f32::INFINITY), (140, f32::NAN), (140, f32::INFINITY)] {
        let plane = random([1, 1, side, side], device)
            .slice_assign([0..1, 0..1, 1..2, 1..2], Tensor::full([1; 4], value, device));
        let found = group_norm(&GroupNormConfig::new(1, 1).init(device), plane, Epilogue::None);
        let found = found.into_data().try_into_vec::<f32>().expect("f32");
        assert!(found.iter().all(|value| value.is_nan()), "{side} {value}");
    }
    let found = Tensor::<2>::ones([5, 8], device) * f32::NAN;
    for others in [3, 3000] {
        let squared =
            nearest(found.clone(), random([others, 8], device)).into_data().try_into_vec::<f32>().expect("f32");
        assert!(squared.iter().all(|value| value.is_nan()), "{squared:?}");
    }
}

#[test]
fn what_is_no_number_stays_none() {
    no_number_stays_none(&Device::flex());
}

#[test]
fn kernels_agree_with_burn() {
    let device = Device::flex();
    depthwise_agrees(&device);
    group_norm_agrees(&device);
    cell_norm_agrees(&device);
    pointwise_agrees(&device, TOLERANCE);
    layers_in_one_agree(&device, TOLERANCE);
    attention_agrees(&device, TOLERANCE);
    convolution_agrees(&device, TOLERANCE, &SMALL_CONVOLUTIONS);
    moves_agree(&device, TOLERANCE);
    // Squares of 3300 are what is left of.
    rows_agree(&device, 5e-3);
}
