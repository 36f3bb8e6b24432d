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

use super::{PLANE, Sizes, empty, filtered_at, plain};
use crate::kernels::Window;

/// Units of a cube at most.
const UNITS: usize = 256;
/// Cells of a unit where planes are large.
const MANY: usize = 4;

/// The sum of a value of every unit, in all units.
#[cube]
fn sum_of_units(value: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[f32]>::new_slice(comptime!(units / PLANE));
    let sum = plane_sum(value);
    if unit % PLANE == 0 {
        sums[unit / PLANE] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for plane in 0..comptime!(units / PLANE) {
        total += sums[plane];
    }
    total
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
    sizes: Sizes,
    #[comptime] window: Option<Window>,
    #[comptime] units: usize,
    #[comptime] each: usize,
    #[define(F)] _dtype: ElemType,
) {
    let cells = sizes.rows * sizes.columns;
    let channel = CUBE_POS_Y as usize;
    let plane = CUBE_POS_Z as usize * sizes.outputs + channel;
    let first = CUBE_POS_X as usize * comptime!(units * each);
    let mut values = Array::<f32>::new(each);
    let mut sum = 0.0f32;
    #[unroll]
    for k in 0..each {
        let cell = first + k * units + UNIT_POS as usize;
        let mut value = 0.0f32;
        if cell < cells {
            if comptime!(window.is_some()) {
                let window = comptime!(window.unwrap_or(Window::POINT));
                let (row, column) = (cell / sizes.columns, cell % sizes.columns);
                value = filtered_at::<F>(input, weight, bias, plane, channel, row, column, &sizes, window);
                output[plane * cells + cell] = F::cast_from(value);
            } else {
                value = f32::cast_from(input[plane * cells + cell]);
            }
        }
        values[k] = value;
        sum += value;
    }
    let mean = sum_of_units(sum, units) / cells_of(CUBE_POS_X as usize, cells, comptime!(units * each).runtime());
    let mut squares = 0.0f32;
    #[unroll]
    for k in 0..each {
        if first + k * units + (UNIT_POS as usize) < cells {
            let apart = values[k] - mean;
            squares += apart * apart;
        }
    }
    let squares = sum_of_units(squares, units);
    if UNIT_POS == 0 {
        let at = (plane * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * 2;
        moments[at] = mean;
        moments[at + 1] = squares;
    }
}

/// Mean, and one over the standard deviation, of the planes of a group, whose first part is `first`, where parts have `long` cells:
/// by all units of a plane.
#[cube]
pub(super) fn group_moments(
    moments: &Tensor<f32>,
    first: usize,
    planes: usize,
    cells: usize,
    epsilon: f32,
    #[comptime] long: usize,
) -> (f32, f32) {
    let parts = cells.div_ceil(long);
    let lane = UNIT_POS as usize % PLANE;
    let total = (planes * cells) as f32;
    let mut sum = 0.0f32;
    let mut part = lane;
    while part < planes * parts {
        sum += cells_of(part % parts, cells, comptime!(long).runtime()) * moments[(first + part) * 2];
        part += PLANE;
    }
    let mean = plane_sum(sum) / total;
    let mut squares = 0.0f32;
    let mut part = lane;
    while part < planes * parts {
        let apart = moments[(first + part) * 2] - mean;
        squares +=
            moments[(first + part) * 2 + 1] + cells_of(part % parts, cells, comptime!(long).runtime()) * apart * apart;
        part += PLANE;
    }
    (mean, 1.0f32 / (plane_sum(squares) / total + epsilon).sqrt())
}

/// By what the channels of a picture are multiplied, and what is added to them, so that its groups have mean 0 and variance 1
/// before `gamma` and `beta`, where parts have `long` cells. Every plane of the cube finds those of some groups.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
pub(super) fn norm_factors<F: Float>(
    moments: &Tensor<f32>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    picture: usize,
    channels: usize,
    cells: usize,
    epsilon: f32,
    factors: &mut Shared<[f32]>,
    shifts: &mut Shared<[f32]>,
    #[comptime] groups: usize,
    #[comptime] long: usize,
) {
    let per_group = channels / groups;
    let lane = UNIT_POS as usize % PLANE;
    let mut group = UNIT_POS as usize / PLANE;
    while group < groups {
        let first = (picture * channels + group * per_group) * cells.div_ceil(long);
        let (mean, factor) = group_moments(moments, first, per_group, cells, epsilon, long);
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

/// Cells of a part, where parts have so many.
#[cube]
fn cells_of(part: usize, cells: usize, long: usize) -> f32 {
    let mut count = cells - part * long;
    if count > long {
        count = long;
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
    let (units, each) = form_of(rows * columns);
    let shape = Shape::new([batch, channels, (rows * columns).div_ceil(units * each), 2]);
    empty_device_contiguous_dtype(of.client.clone(), of.device.clone(), shape, burn::tensor::DType::F32)
}

/// Cells of a part of planes of so many.
pub(super) fn part_of(cells: usize) -> usize {
    let (units, each) = form_of(cells);
    units * each
}

/// Units of a cube, and cells of each, for planes of so many cells.
fn form_of(cells: usize) -> (usize, usize) {
    (cells.min(UNITS).next_power_of_two().max(PLANE), if cells > MANY * UNITS { MANY } else { 1 })
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
    let (units, each) = form_of(rows * columns);
    let (dtype, sizes) = (dtype_to_storage_type(output.dtype), Sizes::of(&input, &output));
    moments_kernel::launch(
        &moments.client,
        CubeCount::Static((rows * columns).div_ceil(units * each) as u32, channels as u32, batch as u32),
        CubeDim::new_1d(units as u32),
        input.into_tensor_arg(),
        weight.into_tensor_arg(),
        bias.into_tensor_arg(),
        output.into_tensor_arg(),
        moments.clone().into_tensor_arg(),
        sizes,
        window,
        units,
        each,
        dtype,
    );
}
