//! Norms alone: of groups of channels, of the channels of a cell.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::planes::{self, group_moments, part_of};
use super::{PLANE, empty, epilogue_of, per_part};
use crate::kernels::{Epilogue, Norm};

/// Units that share the sums of a group of planes: with one picture there are few groups, each large.
pub(super) const GROUP_UNITS: usize = 1024;
/// Values of a group from which on it pays to find its moments in parts, by units of the whole GPU.
const LARGE: usize = 16384;
/// Units of a cube, and cells of each.
const UNITS: usize = 256;
const EACH: usize = 8;

/// The sums of two values of every unit of the cube, in all of them.
#[cube]
pub(super) fn sums_of_units(first: f32, second: f32, #[comptime] units: usize) -> (f32, f32) {
    let mut firsts = Shared::<[f32]>::new_slice(units);
    let mut seconds = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    sync_cube();
    firsts[unit] = first;
    seconds[unit] = second;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let (other_first, other_second) = (firsts[unit + half], seconds[unit + half]);
            firsts[unit] = firsts[unit] + other_first;
            seconds[unit] = seconds[unit] + other_second;
        }
        sync_cube();
        half /= 2;
    }
    (firsts[0], seconds[0])
}

/// Mean, and one over the standard deviation, of `count` values: one pass, about the first of them.
#[cube]
pub(super) fn moments<F: Float>(values: &Tensor<F>, start: usize, count: usize, epsilon: f32) -> (f32, f32) {
    let about = f32::cast_from(values[start]);
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    let mut index = UNIT_POS as usize;
    while index < count {
        let deviation = f32::cast_from(values[start + index]) - about;
        sum += deviation;
        squares += deviation * deviation;
        index += CUBE_DIM as usize;
    }
    let (sum, squares) = sums_of_units(sum, squares, GROUP_UNITS);
    let offset = sum / count as f32;
    let mut variance = squares / count as f32 - offset * offset;
    // By a comparison, which a NaN comes through.
    if variance < 0.0f32 {
        variance = 0.0f32;
    }
    (about + offset, 1.0f32 / (variance + epsilon).sqrt())
}

/// One cube per picture and group.
#[cube(launch)]
fn group_norm_kernel<F: Float>(
    input: &Tensor<F>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    output: &mut Tensor<F>,
    epsilon: f32,
    #[comptime] groups: usize,
    #[comptime] epilogue: Epilogue,
    #[define(F)] _dtype: ElemType,
) {
    let per_group = input.shape(1) / groups;
    let plane = input.shape(2) * input.shape(3);
    let count = per_group * plane;
    let part = CUBE_POS as usize;
    let (mean, factor) = moments::<F>(input, part * count, count, epsilon);
    let mut index = UNIT_POS as usize;
    while index < count {
        let channel = part % groups * per_group + index / plane;
        let normal = (f32::cast_from(input[part * count + index]) - mean) * factor;
        let value = normal * f32::cast_from(gamma[channel]) + f32::cast_from(beta[channel]);
        output[part * count + index] = F::cast_from(epilogue_of(value, epilogue));
        index += CUBE_DIM as usize;
    }
}

/// One cube per part of a plane, whose group's moments each of its planes of units joins for itself: `x` along the parts, `y` along
/// the channels, `z` along the pictures.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn normed_kernel<F: Float>(
    input: &Tensor<F>,
    moments: &Tensor<f32>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    output: &mut Tensor<F>,
    channels: usize,
    cells: usize,
    epsilon: f32,
    #[comptime] groups: usize,
    #[comptime] part: usize,
    #[comptime] epilogue: Epilogue,
    #[define(F)] _dtype: ElemType,
) {
    let channel = CUBE_POS_Y as usize;
    let plane = CUBE_POS_Z as usize * channels + channel;
    let per_group = channels / groups;
    let first = (plane - channel % per_group) * cells.div_ceil(part);
    let (mean, factor) = group_moments(moments, first, per_group, cells, epsilon, part);
    let scaled = factor * f32::cast_from(gamma[channel]);
    let shift = f32::cast_from(beta[channel]) - mean * scaled;
    #[unroll]
    for k in 0..EACH {
        let cell = (CUBE_POS_X as usize * EACH + k) * UNITS + UNIT_POS as usize;
        if cell < cells {
            let at = plane * cells + cell;
            output[at] = F::cast_from(epilogue_of(f32::cast_from(input[at]) * scaled + shift, epilogue));
        }
    }
}

/// Mean 0 and variance 1 over groups of channels, and what follows: `[b, c, h, w]`, and `gamma` and `beta` `[c]`.
pub(super) fn group_norm([input, gamma, beta]: [CubeTensor; 3], norm: Norm) -> CubeTensor {
    let Norm { groups, epsilon, epilogue } = norm;
    let [batch, channels, rows, columns] = input.shape().dims();
    let cells = rows * columns;
    let output = empty(&input, input.shape());
    let dtype = dtype_to_storage_type(output.dtype);
    if channels / groups * cells < LARGE {
        let (count, dim) = per_part(batch * groups, GROUP_UNITS);
        group_norm_kernel::launch(
            &output.client,
            count,
            dim,
            input.into_tensor_arg(),
            gamma.into_tensor_arg(),
            beta.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            epsilon as f32,
            groups,
            epilogue,
            dtype,
        );
        return output;
    }
    let moments = planes::moments(&input);
    normed_kernel::launch(
        &output.client,
        CubeCount::Static(cells.div_ceil(UNITS * EACH) as u32, channels as u32, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        input.into_tensor_arg(),
        moments.into_tensor_arg(),
        gamma.into_tensor_arg(),
        beta.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        channels,
        cells,
        epsilon as f32,
        groups,
        part_of(cells),
        epilogue,
        dtype,
    );
    output
}

/// Cells of a cube that norms cells, and units that share the channels of each.
const CELLS: usize = 8;
const SHARES: usize = 128;

/// The sum of a value of the units that share a cell, in all of them. `sums` has room for a value of every plane and cell.
#[cube]
fn sum_of_cell(value: f32, sums: &mut Shared<[f32]>) -> f32 {
    let planes = comptime!(CELLS * SHARES / PLANE);
    let (plane, cell) = (UNIT_POS as usize / PLANE, UNIT_POS as usize % CELLS);
    let mut sum = value;
    let mut apart = comptime!(CELLS as u32).runtime();
    while apart < comptime!(PLANE as u32) {
        sum += plane_shuffle_xor(sum, apart);
        apart *= 2;
    }
    if UNIT_POS as usize % PLANE < CELLS {
        sums[plane * CELLS + cell] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for other in 0..planes {
        total += sums[other * CELLS + cell];
    }
    sync_cube();
    total
}

/// One cube per `CELLS` cells: `x` along the cells, `y` along the pictures. A unit keeps its `each` channels.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn cell_norm_kernel<F: Float>(
    input: &Tensor<F>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    output: &mut Tensor<F>,
    channels: usize,
    cells: usize,
    epsilon: f32,
    #[comptime] each: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (share, cell) = (UNIT_POS as usize / CELLS, CUBE_POS_X as usize * CELLS + UNIT_POS as usize % CELLS);
    // In the place of a cell beyond the last the last is read; it is not written.
    let start = CUBE_POS_Y as usize * channels * cells + cell.min(cells - 1);
    let mut values = Array::<f32>::new(each);
    let mut sum = 0.0f32;
    #[unroll]
    for k in 0..each {
        let channel = share + k * SHARES;
        values[k] = f32::cast_from(input[start + channel.min(channels - 1) * cells]);
        if channel < channels {
            sum += values[k];
        }
    }
    let mut sums = Shared::<[f32]>::new_slice(comptime!(CELLS * SHARES / PLANE * CELLS));
    let mean = sum_of_cell(sum, &mut sums) / channels as f32;
    let mut squares = 0.0f32;
    #[unroll]
    for k in 0..each {
        values[k] -= mean;
        if share + k * SHARES < channels {
            squares += values[k] * values[k];
        }
    }
    let factor = 1.0f32 / (sum_of_cell(squares, &mut sums) / channels as f32 + epsilon).sqrt();
    #[unroll]
    for k in 0..each {
        let channel = share + k * SHARES;
        if channel < channels && cell < cells {
            let value = values[k] * factor * f32::cast_from(gamma[channel]) + f32::cast_from(beta[channel]);
            output[start + channel * cells] = F::cast_from(value);
        }
    }
}

/// Mean 0 and variance 1 over the channels of every cell: `[b, c, h, w]`, and `gamma` and `beta` `[c]`.
pub(super) fn cell_norm([input, gamma, beta]: [CubeTensor; 3], epsilon: f64) -> CubeTensor {
    let [batch, channels, rows, columns] = input.shape().dims();
    let cells = rows * columns;
    let output = empty(&input, input.shape());
    cell_norm_kernel::launch(
        &output.client,
        CubeCount::Static(cells.div_ceil(CELLS) as u32, batch as u32, 1),
        CubeDim::new_1d((CELLS * SHARES) as u32),
        input.into_tensor_arg(),
        gamma.into_tensor_arg(),
        beta.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        channels,
        cells,
        epsilon as f32,
        channels.div_ceil(SHARES),
        dtype_to_storage_type(output.dtype),
    );
    output
}
