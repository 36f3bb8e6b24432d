//! Convolutions of one group as products of tiles: 32 outputs at 32 positions, summed over slabs of taps in shared memory.
//!
//! A frame has hundreds of products too small to fill a GPU with tiles alone, so the taps of a slab are divided among groups
//! of units, too, and the next slab is on its way while this one is summed. Where the device has tensor cores for TF32, factors
//! are rounded to its 10 bits, as cuDNN's convolutions do unless they are told otherwise; sums are in single precision.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::planes::norm_factors;
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
/// Units of a plane, which shares a fragment of a product.
const PLANE: usize = 32;
/// Outputs and positions of a fragment, and its taps.
const FRAGMENT: usize = 16;
const DEPTH: usize = 8;
/// Room of a row of what is seen: rows begin where fragments may be loaded from, and meet different banks.
const PITCH: usize = TILE + 8;
/// Room behind a row of weights, for the same reason.
const BEHIND: usize = 4;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    window: Window,
    epilogue: Epilogue,
    /// Taps of a slab.
    slab: usize,
    bias_per_picture: bool,
    /// Whether a tensor is added to what comes out.
    adds: bool,
    /// Groups of channels of a norm before the sum; 0 without one.
    groups: usize,
    /// Room for the channels of the norm.
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
    let slab = comptime!(form.slab);
    let loads = comptime!(form.slab * TILE / UNITS);
    let share = comptime!(form.slab / GROUPS);
    let (outputs, rows, columns) = (output.shape(1), output.shape(2), output.shape(3));
    let taps = input.shape(1) * comptime!(form.window.kernel * form.window.kernel);
    let picture = CUBE_POS_Z as usize;
    let (first_cell, first_output) = (CUBE_POS_X as usize * TILE, CUBE_POS_Y as usize * TILE);
    let unit = UNIT_POS as usize;

    let mut weights = Shared::<[tf32]>::new_slice(comptime!(TILE * (form.slab + BEHIND)));
    let mut seen = Shared::<[tf32]>::new_slice(comptime!(form.slab * PITCH));
    let mut parts = Shared::<[f32]>::new_slice(comptime!(GROUPS * TILE * TILE));
    let mut factors = Shared::<[f32]>::new_slice(comptime!(form.room));
    let mut shifts = Shared::<[f32]>::new_slice(comptime!(form.room));
    let mut next_weights = Array::<f32>::new(loads);
    let mut next_seen = Array::<f32>::new(loads);
    #[unroll]
    for load in 0..loads {
        let index = load * UNITS + unit;
        let cell = first_cell + index % TILE;
        next_weights[load] = weight_at::<F>(weight, first_output + index / slab, index % slab, outputs, taps);
        next_seen[load] = seen_at::<F>(input, picture, index / TILE, cell, rows, columns, form.window);
    }
    if comptime!(form.groups > 0) {
        let plane = rows * columns;
        norm_factors::<F>(moments, gamma, beta, picture, plane, epsilon, &mut factors, &mut shifts, form.groups);
    }

    // Each plane: half of the outputs, all positions, its group's share of the taps.
    let group = unit / PLANE / 2;
    let half = unit / PLANE % 2 * FRAGMENT;
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
            weights[index / slab * comptime!(form.slab + BEHIND) + index % slab] = <tf32 as Cast>::cast_from(next_weights[load]);
            let (line, column) = (index / TILE, index % TILE);
            let mut value = next_seen[load];
            if comptime!(form.groups > 0) {
                let channel = first + line;
                if channel < taps {
                    value = value * factors[channel] + shifts[channel];
                }
            }
            seen[line * PITCH + column] = <tf32 as Cast>::cast_from(value);
        }
        sync_cube();
        first += slab;
        #[unroll]
        for load in 0..loads {
            let index = load * UNITS + unit;
            let tap = first + index % slab;
            next_weights[load] = weight_at::<F>(weight, first_output + index / slab, tap, outputs, taps);
            let (tap, cell) = (first + index / TILE, first_cell + index % TILE);
            next_seen[load] = seen_at::<F>(input, picture, tap, cell, rows, columns, form.window);
        }
        #[unroll]
        for step in 0..comptime!(form.slab / GROUPS / DEPTH) {
            let tap = group * share + step * DEPTH;
            let (from, end) = (tap * PITCH, comptime!(form.slab * PITCH));
            let a = cmma::Matrix::<tf32>::from_slice(
                cmma::MatrixIdent::A,
                FRAGMENT,
                FRAGMENT,
                DEPTH,
                cmma::MatrixLayout::RowMajor,
                weights.slice(half * comptime!(form.slab + BEHIND) + tap, comptime!(TILE * (form.slab + BEHIND))),
                comptime!((form.slab + BEHIND) as u32),
            );
            let b = cmma::Matrix::<tf32>::from_slice(
                cmma::MatrixIdent::B,
                FRAGMENT,
                FRAGMENT,
                DEPTH,
                cmma::MatrixLayout::RowMajor,
                seen.slice(from, end),
                PITCH as u32,
            );
            cmma::execute(&a, &b, &left, &left);
            let b = cmma::Matrix::<tf32>::from_slice(
                cmma::MatrixIdent::B,
                FRAGMENT,
                FRAGMENT,
                DEPTH,
                cmma::MatrixLayout::RowMajor,
                seen.slice(from + FRAGMENT, end),
                PITCH as u32,
            );
            cmma::execute(&a, &b, &right, &right);
        }
        sync_cube();
    }
    let at = (group * TILE + half) * TILE;
    let end = comptime!(GROUPS * TILE * TILE);
    cmma::store(parts.slice_mut(at, end), &left, TILE as u32, cmma::MatrixLayout::RowMajor);
    cmma::store(parts.slice_mut(at + FRAGMENT, end), &right, TILE as u32, cmma::MatrixLayout::RowMajor);
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
    let slab = if weight.shape().num_elements() / outputs <= 32 { 32 } else { 64 };
    let tiles = |length: usize| length.div_ceil(TILE) as u32;
    let form = Form {
        window,
        epilogue,
        slab,
        bias_per_picture: bias.shape().num_elements() != outputs,
        adds: around.added.is_some(),
        groups: around.norm.as_ref().map_or(0, |(_, groups, _)| *groups),
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
        CubeCount::Static(tiles(rows * columns), tiles(outputs), batch as u32),
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
