//! Moments of planes, and depthwise convolutions that find those of their output on the way: a norm behind them needs no pass of
//! its own.
//!
//! Every part of a plane has a mean and a sum of squared deviations from it; those of a group follow from its parts (Chan, Golub
//! and LeVeque, 1979) without the cancellation of sums of squares.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::{empty, filtered_at, plain};
use crate::kernels::Window;

/// Cells of a part, one a unit.
const PART: usize = 256;
/// Units of a plane of units.
const PLANE: usize = 32;

/// Mean of the values of the cube's first `count` units, and the sum of their squared deviations, in all units.
#[cube]
fn moments_of(value: f32, count: usize, #[comptime] units: usize) -> (f32, f32) {
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[f32]>::new_slice(comptime!(units / PLANE));
    let mut squares = Shared::<[f32]>::new_slice(comptime!(units / PLANE));
    let mut own = 0.0f32;
    if unit < count {
        own = value;
    }
    let sum = plane_sum(own);
    if unit % PLANE == 0 {
        sums[unit / PLANE] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for plane in 0..comptime!(units / PLANE) {
        total += sums[plane];
    }
    let mean = total / count as f32;
    let mut deviation = 0.0f32;
    if unit < count {
        deviation = value - mean;
    }
    let square = plane_sum(deviation * deviation);
    if unit % PLANE == 0 {
        squares[unit / PLANE] = square;
    }
    sync_cube();
    let mut all = 0.0f32;
    #[unroll]
    for plane in 0..comptime!(units / PLANE) {
        all += squares[plane];
    }
    (mean, all)
}

/// One cube per part of a plane: `x` along the parts, `y` along the channels, `z` along the pictures. With a window the plane is
/// filtered first.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn moments_kernel<F: Float>(
    input: &Tensor<F>,
    weight: &Tensor<F>,
    bias: &Tensor<F>,
    output: &mut Tensor<F>,
    moments: &mut Tensor<f32>,
    #[comptime] window: Option<Window>,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let cells = output.shape(2) * output.shape(3);
    let plane = CUBE_POS_Z as usize * output.shape(1) + CUBE_POS_Y as usize;
    let first = CUBE_POS_X as usize * PART;
    let cell = first + UNIT_POS as usize;
    let mut count = cells - first;
    if count > PART {
        count = PART;
    }
    let mut value = 0.0f32;
    if cell < cells {
        if comptime!(window.is_some()) {
            let window = comptime!(window.unwrap_or(Window::POINT));
            let (row, column) = (cell / output.shape(3), cell % output.shape(3));
            value = filtered_at::<F>(input, weight, bias, plane, CUBE_POS_Y as usize, row, column, window);
            output[plane * cells + cell] = F::cast_from(value);
        } else {
            value = f32::cast_from(input[plane * cells + cell]);
        }
    }
    let (mean, squares) = moments_of(value, count, units);
    if UNIT_POS == 0 {
        let at = (plane * moments.shape(2) + CUBE_POS_X as usize) * 2;
        moments[at] = mean;
        moments[at + 1] = squares;
    }
}

/// By what the channels of a picture are multiplied, and what is added to them, so that its groups have mean 0 and variance 1
/// before `gamma` and `beta`. Every plane of the cube finds those of some groups.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
pub(super) fn norm_factors<F: Float>(
    moments: &Tensor<f32>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    picture: usize,
    cells: usize,
    epsilon: f32,
    factors: &mut Shared<[f32]>,
    shifts: &mut Shared<[f32]>,
    #[comptime] groups: usize,
) {
    let (channels, parts) = (moments.shape(1), moments.shape(2));
    let per_group = channels / groups;
    let lane = UNIT_POS as usize % PLANE;
    let total = (per_group * cells) as f32;
    let mut group = UNIT_POS as usize / PLANE;
    while group < groups {
        let first = (picture * channels + group * per_group) * parts;
        let mut sum = 0.0f32;
        let mut part = lane;
        while part < per_group * parts {
            sum += cells_of(part % parts, cells) * moments[(first + part) * 2];
            part += PLANE;
        }
        let mean = plane_sum(sum) / total;
        let mut squares = 0.0f32;
        let mut part = lane;
        while part < per_group * parts {
            let apart = moments[(first + part) * 2] - mean;
            squares += moments[(first + part) * 2 + 1] + cells_of(part % parts, cells) * apart * apart;
            part += PLANE;
        }
        let factor = 1.0f32 / (plane_sum(squares) / total + epsilon).sqrt();
        let mut channel = group * per_group + lane;
        while channel < (group + 1) * per_group {
            let scaled = factor * f32::cast_from(gamma[channel]);
            factors[channel] = scaled;
            shifts[channel] = f32::cast_from(beta[channel]) - mean * scaled;
            channel += PLANE;
        }
        group += CUBE_DIM as usize / PLANE;
    }
    sync_cube();
}

/// Cells of a part.
#[cube]
fn cells_of(part: usize, cells: usize) -> f32 {
    let mut count = cells - part * PART;
    if count > PART {
        count = PART;
    }
    count as f32
}

/// Mean and sum of squared deviations of every part of every plane of `[b, c, h, w]`: `[b, c, parts, 2]`.
pub(super) fn moments(input: &CubeTensor) -> CubeTensor {
    let ([picture, output], moments) = ([input.clone(), input.clone()], empty_moments(input));
    launch(picture.clone(), picture.clone(), picture, output, &moments, None);
    moments
}

/// A depthwise convolution: what comes out of it, and its moments.
pub(super) fn filtered(
    input: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    window: Window,
) -> (CubeTensor, CubeTensor) {
    let [input, weight, bias] = plain([input, weight, bias]);
    let output = empty(&input, window.filtered(&input.shape()));
    let moments = empty_moments(&output);
    launch(input, weight, bias, output.clone(), &moments, Some(window));
    (output, moments)
}

fn empty_moments(of: &CubeTensor) -> CubeTensor {
    let [batch, channels, rows, columns] = of.shape().dims();
    let shape = Shape::new([batch, channels, (rows * columns).div_ceil(PART), 2]);
    empty_device_contiguous_dtype(of.client.clone(), of.device.clone(), shape, burn::tensor::DType::F32)
}

fn launch(
    input: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    output: CubeTensor,
    moments: &CubeTensor,
    window: Option<Window>,
) {
    let [batch, channels, rows, columns] = output.shape().dims();
    let units = (rows * columns).min(PART).next_power_of_two().max(PLANE);
    let dtype = dtype_to_storage_type(output.dtype);
    moments_kernel::launch(
        &moments.client,
        CubeCount::Static((rows * columns).div_ceil(PART) as u32, channels as u32, batch as u32),
        CubeDim::new_1d(units as u32),
        input.into_tensor_arg(),
        weight.into_tensor_arg(),
        bias.into_tensor_arg(),
        output.into_tensor_arg(),
        moments.clone().into_tensor_arg(),
        window,
        units,
        dtype,
    );
}
