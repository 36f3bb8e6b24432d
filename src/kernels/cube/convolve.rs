//! Convolutions of one group as products of tiles: 32 outputs at 32 positions, summed over slabs of taps in shared memory.
//!
//! A frame has hundreds of products too small to fill a GPU with tiles alone, so the taps of a slab are divided among groups
//! of units, too, and the next slab is on its way while this one is summed. Sums and products are in single precision.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{empty, epilogue_of, plain};
use crate::kernels::{Epilogue, Window};

/// Outputs, and positions, of a cube.
const TILE: usize = 32;
/// Outputs, and positions, of a unit.
const SIDE: usize = 4;
/// Groups that divide the taps of a slab.
const GROUPS: usize = 4;
/// Units of a row of a group.
const ROW: usize = TILE / SIDE;
const UNITS: usize = GROUPS * ROW * ROW;

/// The weight of a tap; 0 beyond the last.
#[cube]
fn weight_at<F: Float>(weight: &Tensor<F>, place: usize, tap: usize, outputs: usize, taps: usize) -> f32 {
    let mut value = 0.0f32;
    if place < outputs && tap < taps {
        value = f32::cast_from(weight[place * taps + tap]);
    }
    value
}

/// What a tap sees at a position; 0 beyond the picture, and beyond the last tap and position.
#[cube]
fn seen_at<F: Float>(
    input: &Tensor<F>,
    picture: usize,
    tap: usize,
    cell: usize,
    rows: usize,
    columns: usize,
    #[comptime] window: Window,
) -> f32 {
    let area = comptime!(window.kernel * window.kernel);
    let (channels, height, width) = (input.shape(1), input.shape(2), input.shape(3));
    let mut value = 0.0f32;
    if cell < rows * columns && tap < channels * area {
        if comptime!(window == Window::POINT) {
            value = f32::cast_from(input[(picture * channels + tap) * rows * columns + cell]);
        } else {
            let y = cell / columns * window.stride + tap % area / window.kernel;
            let x = cell % columns * window.stride + tap % window.kernel;
            let inside =
                y >= window.before && y < height + window.before && x >= window.before && x < width + window.before;
            if inside {
                let plane = picture * channels + tap / area;
                value = f32::cast_from(input[(plane * height + y - window.before) * width + x - window.before]);
            }
        }
    }
    value
}

/// One cube per tile of a picture: `x` along the positions, `y` along the outputs, `z` along the pictures.
#[cube(launch)]
fn convolve_kernel<F: Float>(
    input: &Tensor<F>,
    weight: &Tensor<F>,
    bias: &Tensor<F>,
    output: &mut Tensor<F>,
    #[comptime] window: Window,
    #[comptime] epilogue: Epilogue,
    #[comptime] slab: usize,
    #[comptime] bias_per_picture: bool,
    #[define(F)] _dtype: ElemType,
) {
    // One more, so that units which write a column of weights meet different banks.
    let pitch = comptime!(TILE + 1);
    let loads = comptime!(slab * TILE / UNITS);
    let share = comptime!(slab / GROUPS);
    let (outputs, rows, columns) = (output.shape(1), output.shape(2), output.shape(3));
    let taps = input.shape(1) * comptime!(window.kernel * window.kernel);
    let picture = CUBE_POS_Z as usize;
    let (first_cell, first_output) = (CUBE_POS_X as usize * TILE, CUBE_POS_Y as usize * TILE);
    let unit = UNIT_POS as usize;
    let group = unit / (ROW * ROW);
    let row = unit % (ROW * ROW) / ROW * SIDE;
    let column = unit % ROW * SIDE;

    let mut weights = Shared::<[f32]>::new_slice(comptime!(slab * (TILE + 1)));
    let mut seen = Shared::<[f32]>::new_slice(comptime!(slab * TILE));
    let mut parts = Shared::<[f32]>::new_slice(comptime!(GROUPS * TILE * TILE));
    let mut sums = Array::<f32>::new(comptime!(SIDE * SIDE));
    #[unroll]
    for k in 0..comptime!(SIDE * SIDE) {
        sums[k] = 0.0f32;
    }
    let mut next_weights = Array::<f32>::new(loads);
    let mut next_seen = Array::<f32>::new(loads);
    #[unroll]
    for load in 0..loads {
        let index = load * UNITS + unit;
        next_weights[load] = weight_at::<F>(weight, first_output + index / slab, index % slab, outputs, taps);
        next_seen[load] = seen_at::<F>(input, picture, index / TILE, first_cell + index % TILE, rows, columns, window);
    }
    let mut first = 0usize;
    while first < taps {
        #[unroll]
        for load in 0..loads {
            let index = load * UNITS + unit;
            weights[index % slab * pitch + index / slab] = next_weights[load];
            seen[index] = next_seen[load];
        }
        sync_cube();
        first += slab;
        #[unroll]
        for load in 0..loads {
            let index = load * UNITS + unit;
            let tap = first + index % slab;
            next_weights[load] = weight_at::<F>(weight, first_output + index / slab, tap, outputs, taps);
            let tap = first + index / TILE;
            next_seen[load] = seen_at::<F>(input, picture, tap, first_cell + index % TILE, rows, columns, window);
        }
        #[unroll]
        for step in 0..share {
            let tap = group * share + step;
            #[unroll]
            for i in 0..SIDE {
                let factor = weights[tap * pitch + row + i];
                #[unroll]
                for j in 0..SIDE {
                    sums[i * SIDE + j] = sums[i * SIDE + j] + factor * seen[tap * TILE + column + j];
                }
            }
        }
        sync_cube();
    }
    #[unroll]
    for i in 0..SIDE {
        #[unroll]
        for j in 0..SIDE {
            parts[(group * TILE + row + i) * TILE + column + j] = sums[i * SIDE + j];
        }
    }
    sync_cube();
    #[unroll]
    for load in 0..comptime!(TILE * TILE / UNITS) {
        let index = load * UNITS + unit;
        let (place, cell) = (first_output + index / TILE, first_cell + index % TILE);
        if place < outputs && cell < rows * columns {
            let mut sum = 0.0f32;
            #[unroll]
            for part in 0..GROUPS {
                sum += parts[part * comptime!(TILE * TILE) + index];
            }
            if comptime!(bias_per_picture) {
                sum += f32::cast_from(bias[picture * outputs + place]);
            } else {
                sum += f32::cast_from(bias[place]);
            }
            output[(picture * outputs + place) * rows * columns + cell] = F::cast_from(epilogue_of(sum, epilogue));
        }
    }
}

/// Input `[b, c, h, w]`, weight `[o, c, k, k]` and bias `[o]` or `[b, o]` to `[b, o, h', w']`.
pub(super) fn convolve(
    input: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    window: Window,
    epilogue: Epilogue,
) -> CubeTensor {
    let [input, weight, bias] = plain([input, weight, bias]);
    let outputs = weight.shape()[0];
    let [batch, _, rows, columns] = window.filtered(&input.shape()).dims();
    let output = empty(&input, Shape::new([batch, outputs, rows, columns]));
    let slab = match weight.shape().num_elements() / outputs {
        ..=16 => 16,
        ..=32 => 32,
        _ => 64,
    };
    let tiles = |length: usize| length.div_ceil(TILE) as u32;
    let bias_per_picture = bias.shape().num_elements() != outputs;
    convolve_kernel::launch(
        &output.client,
        CubeCount::Static(tiles(rows * columns), tiles(outputs), batch as u32),
        CubeDim::new_1d(UNITS as u32),
        input.into_tensor_arg(),
        weight.into_tensor_arg(),
        bias.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        window,
        epilogue,
        slab,
        bias_per_picture,
        dtype_to_storage_type(output.dtype),
    );
    output
}
