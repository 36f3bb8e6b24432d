//! Convolutions of one group as products of tiles: so many outputs at as many positions, summed over slabs of taps in shared
//! memory.
//!
//! A frame has hundreds of products too small to fill a GPU with tiles alone: their tiles are small, and the taps of a slab are
//! divided among groups of units, too. The next slab is on its way while this one is summed. Where the device has tensor cores for TF32, factors
//! are rounded to its 10 bits, as cuDNN's convolutions do unless they are told otherwise; sums are in single precision.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::planes::{norm_factors, part_of};
use super::{empty, epilogue_of, plain};
use crate::kernels::{Epilogue, Window};

/// Units of a cube.
const UNITS: usize = 256;
/// Units of a plane, which shares a fragment of a product.
const PLANE: usize = 32;
/// Outputs and positions of a fragment, and its taps.
const FRAGMENT: usize = 16;
const DEPTH: usize = 8;
/// Room behind a row of a slab: rows begin where fragments may be loaded from, and meet different banks.
const BEHIND_WEIGHTS: usize = 4;
const BEHIND_SEEN: usize = 8;
/// Products with as many small tiles fill a GPU with large ones.
const MANY: u32 = 400;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    window: Window,
    epilogue: Epilogue,
    /// Outputs, and positions, of a cube.
    tile: usize,
    /// Taps of a slab.
    slab: usize,
    /// Groups of units that divide them.
    parts: usize,
    bias_per_picture: bool,
    /// Whether a tensor is added to what comes out.
    adds: bool,
    /// Groups of channels of a norm before the sum; 0 without one.
    groups: usize,
    /// Cells of the parts that its moments are of.
    part: usize,
    /// Room for its channels.
    room: usize,
}

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
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn convolve_kernel<F: Float>(
    input: &Tensor<F>,
    weight: &Tensor<F>,
    bias: &Tensor<F>,
    moments: &Tensor<f32>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    added: &Tensor<F>,
    output: &mut Tensor<F>,
    epsilon: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let (slab, tile) = comptime!((form.slab, form.tile));
    let (weights_pitch, seen_pitch) = comptime!((form.slab + BEHIND_WEIGHTS, form.tile + BEHIND_SEEN));
    let loads = comptime!(form.slab * form.tile / UNITS);
    let share = comptime!(form.slab / form.parts);
    let (outputs, rows, columns) = (output.shape(1), output.shape(2), output.shape(3));
    let taps = input.shape(1) * comptime!(form.window.kernel * form.window.kernel);
    let picture = CUBE_POS_Z as usize;
    let (first_cell, first_output) = (CUBE_POS_X as usize * tile, CUBE_POS_Y as usize * tile);
    let unit = UNIT_POS as usize;

    let mut weights = Shared::<[tf32]>::new_slice(comptime!(form.tile * (form.slab + BEHIND_WEIGHTS)));
    let mut seen = Shared::<[tf32]>::new_slice(comptime!(form.slab * (form.tile + BEHIND_SEEN)));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(form.parts * form.tile * form.tile));
    let mut factors = Shared::<[f32]>::new_slice(comptime!(form.room));
    let mut shifts = Shared::<[f32]>::new_slice(comptime!(form.room));
    let mut next_weights = Array::<f32>::new(loads);
    let mut next_seen = Array::<f32>::new(loads);
    #[unroll]
    for load in 0..loads {
        let index = load * UNITS + unit;
        let cell = first_cell + index % tile;
        next_weights[load] = weight_at::<F>(weight, first_output + index / slab, index % slab, outputs, taps);
        next_seen[load] = seen_at::<F>(input, picture, index / tile, cell, rows, columns, form.window);
    }
    if comptime!(form.groups > 0) {
        let plane = rows * columns;
        norm_factors::<F>(
            moments,
            gamma,
            beta,
            picture,
            plane,
            epsilon,
            &mut factors,
            &mut shifts,
            form.groups,
            form.part,
        );
    }

    // Each plane: two fragments side by side, of its group's share of the taps.
    let across = comptime!(form.tile / FRAGMENT / 2);
    let fragment = unit / PLANE % comptime!(form.tile / FRAGMENT * (form.tile / FRAGMENT / 2));
    let group = unit / PLANE / comptime!(form.tile / FRAGMENT * (form.tile / FRAGMENT / 2));
    let (row, column) = (fragment / across * FRAGMENT, fragment % across * comptime!(2 * FRAGMENT));
    let left = cmma::Matrix::<f32>::from_value(
        cmma::MatrixIdent::Accumulator,
        FRAGMENT,
        FRAGMENT,
        DEPTH,
        cmma::MatrixLayout::Undefined,
        0.0,
    );
    let right = cmma::Matrix::<f32>::from_value(
        cmma::MatrixIdent::Accumulator,
        FRAGMENT,
        FRAGMENT,
        DEPTH,
        cmma::MatrixLayout::Undefined,
        0.0,
    );
    let mut first = 0usize;
    while first < taps {
        #[unroll]
        for load in 0..loads {
            let index = load * UNITS + unit;
            weights[index / slab * weights_pitch + index % slab] = <tf32 as Cast>::cast_from(next_weights[load]);
            let mut value = next_seen[load];
            if comptime!(form.groups > 0) {
                let channel = first + index / tile;
                if channel < taps {
                    value = value * factors[channel] + shifts[channel];
                }
            }
            seen[index / tile * seen_pitch + index % tile] = <tf32 as Cast>::cast_from(value);
        }
        sync_cube();
        first += slab;
        #[unroll]
        for load in 0..loads {
            let index = load * UNITS + unit;
            let tap = first + index % slab;
            next_weights[load] = weight_at::<F>(weight, first_output + index / slab, tap, outputs, taps);
            let (tap, cell) = (first + index / tile, first_cell + index % tile);
            next_seen[load] = seen_at::<F>(input, picture, tap, cell, rows, columns, form.window);
        }
        #[unroll]
        for step in 0..comptime!(form.slab / form.parts / DEPTH) {
            let tap = group * share + step * DEPTH;
            let (from, end) = (tap * seen_pitch + column, comptime!(form.slab * (form.tile + BEHIND_SEEN)));
            let a = cmma::Matrix::<tf32>::from_slice(
                cmma::MatrixIdent::A,
                FRAGMENT,
                FRAGMENT,
                DEPTH,
                cmma::MatrixLayout::RowMajor,
                weights.slice(row * weights_pitch + tap, comptime!(form.tile * (form.slab + BEHIND_WEIGHTS))),
                comptime!((form.slab + BEHIND_WEIGHTS) as u32),
            );
            let b = cmma::Matrix::<tf32>::from_slice(
                cmma::MatrixIdent::B,
                FRAGMENT,
                FRAGMENT,
                DEPTH,
                cmma::MatrixLayout::RowMajor,
                seen.slice(from, end),
                comptime!((form.tile + BEHIND_SEEN) as u32),
            );
            cmma::execute(&a, &b, &left, &left);
            let b = cmma::Matrix::<tf32>::from_slice(
                cmma::MatrixIdent::B,
                FRAGMENT,
                FRAGMENT,
                DEPTH,
                cmma::MatrixLayout::RowMajor,
                seen.slice(from + FRAGMENT, end),
                comptime!((form.tile + BEHIND_SEEN) as u32),
            );
            cmma::execute(&a, &b, &right, &right);
        }
        sync_cube();
    }
    let at = (group * tile + row) * tile + column;
    let end = comptime!(form.parts * form.tile * form.tile);
    let pitch = comptime!(form.tile as u32);
    cmma::store(sums.slice_mut(at, end), &left, pitch, cmma::MatrixLayout::RowMajor);
    cmma::store(sums.slice_mut(at + FRAGMENT, end), &right, pitch, cmma::MatrixLayout::RowMajor);
    sync_cube();
    #[unroll]
    for load in 0..comptime!(form.tile * form.tile / UNITS) {
        let index = load * UNITS + unit;
        let (place, cell) = (first_output + index / tile, first_cell + index % tile);
        if place < outputs && cell < rows * columns {
            let mut sum = 0.0f32;
            #[unroll]
            for part in 0..form.parts {
                sum += sums[part * comptime!(form.tile * form.tile) + index];
            }
            if comptime!(form.bias_per_picture) {
                sum += f32::cast_from(bias[picture * outputs + place]);
            } else {
                sum += f32::cast_from(bias[place]);
            }
            let to = (picture * outputs + place) * rows * columns + cell;
            let mut value = epilogue_of(sum, form.epilogue);
            if comptime!(form.adds) {
                value += f32::cast_from(added[to]);
            }
            output[to] = F::cast_from(value);
        }
    }
}

/// What may come before and after the sums of [`convolve`].
#[derive(Default)]
pub(super) struct Around {
    /// Moments of the input (`planes::moments`), `gamma` and `beta` of a norm of so many groups, and its epsilon.
    pub norm: Option<([CubeTensor; 3], usize, f64)>,
    /// Added to what comes out.
    pub added: Option<CubeTensor>,
}

/// Input `[b, c, h, w]`, weight `[o, c, k, k]` and bias `[o]` or `[b, o]` to `[b, o, h', w']`. A norm only where the kernel is a
/// point.
pub(super) fn convolve(
    input: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    window: Window,
    epilogue: Epilogue,
    around: Around,
) -> CubeTensor {
    let [input, weight, bias] = plain([input, weight, bias]);
    let outputs = weight.shape()[0];
    let [batch, channels, rows, columns] = window.filtered(&input.shape()).dims();
    let output = empty(&input, Shape::new([batch, outputs, rows, columns]));
    let tiles = |tile: usize| [rows * columns, outputs].map(|length| length.div_ceil(tile) as u32);
    let many = |[across, down]: [u32; 2]| across * down * batch as u32 >= MANY;
    let taps = weight.shape().num_elements() / outputs;
    let (tile, slab, parts) = match (many(tiles(32)) && outputs > 32, taps) {
        (true, _) => (64, 32, 1),
        (false, ..=32) => (32, 32, 4),
        (false, _) => (32, 64, 4),
    };
    let [across, down] = tiles(tile);
    let form = Form {
        window,
        epilogue,
        tile,
        slab,
        parts,
        bias_per_picture: bias.shape().num_elements() != outputs,
        adds: around.added.is_some(),
        groups: around.norm.as_ref().map_or(0, |(_, groups, _)| *groups),
        part: around.norm.as_ref().map_or(1, |_| part_of(rows * columns)),
        room: around.norm.as_ref().map_or(1, |_| channels.next_multiple_of(64)),
    };
    // In the place of what a form does not read.
    let nothing = || bias.clone().into_tensor_arg();
    let epsilon = around.norm.as_ref().map_or(0.0, |(_, _, epsilon)| *epsilon);
    let [moments, gamma, beta] = match around.norm {
        Some((tensors, _, _)) => tensors.map(|tensor| tensor.into_tensor_arg()),
        None => [nothing(), nothing(), nothing()],
    };
    let added = around.added.map_or_else(nothing, |added| into_contiguous(added).into_tensor_arg());
    convolve_kernel::launch(
        &output.client,
        CubeCount::Static(across, down, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        input.into_tensor_arg(),
        weight.into_tensor_arg(),
        bias.clone().into_tensor_arg(),
        moments,
        gamma,
        beta,
        added,
        output.clone().into_tensor_arg(),
        epsilon as f32,
        form,
        dtype_to_storage_type(output.dtype),
    );
    output
}
