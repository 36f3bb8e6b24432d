//! Convolutions of one group as products of tiles: so many outputs at as many positions, summed over the taps.
//!
//! A frame has hundreds of products too small to fill a GPU: their time is that of one way through memory, so every plane of
//! units takes its share of the taps from where they are, straight into the fragments of its tensor cores, and only the sums meet
//! in shared memory. Products with many tiles have a plane for each, and their factors meet in the first cache. Factors are
//! rounded to the 10 bits of TF32, as cuDNN's convolutions do unless they are told otherwise; sums are in single precision.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cmma::MmaDefinition;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::planes::{norm_factors, part_of};
use super::{empty, epilogue_of, plain};
use crate::kernels::{Epilogue, Window};

/// Units of a cube, of one of its planes, and its planes.
const UNITS: usize = 256;
const PLANE: usize = 32;
const PLANES: usize = UNITS / PLANE;
/// Taps that a plane takes at a time: four of each unit, for two products of fragments.
const STEP: usize = 16;
/// Rows, and columns, of a fragment that units of a plane differ in.
const APART: usize = 8;
/// Room behind a row of sums, so that rows meet different banks.
const BEHIND: usize = 8;
/// Tiles that a GPU has use for. With as many small ones, larger ones read less.
const MANY: u32 = 500;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    window: Window,
    epilogue: Epilogue,
    /// Outputs, and positions, of a plane: 16 or 32.
    block: usize,
    /// Whether the planes of a cube divide the taps of one block, else every plane has a block: two along the outputs.
    divided: bool,
    bias_per_picture: bool,
    /// Whether a tensor is added to what comes out.
    adds: bool,
    /// Groups of channels of a norm before the sum; 0 without one.
    groups: usize,
    /// Cells of the parts that its moments are of.
    part: usize,
    /// Room for its channels.
    room: usize,
    /// Whether the taps fill the last step.
    whole: bool,
}

impl Form {
    /// Blocks of a cube along the outputs, and along the positions.
    const fn blocks(divided: bool) -> (usize, usize) {
        if divided { (1, 1) } else { (2, PLANES / 2) }
    }
}

/// What a unit takes of a step: `weights` of four taps for each of its outputs, and what these taps see at each of its positions,
/// `seen`. Places beyond the last are those of the last, whose sums nobody keeps.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn take<F: Float, W: Size, S: Size>(
    input: &Tensor<Vector<F, S>>,
    weight: &Tensor<Vector<F, W>>,
    weights: &mut Array<f32>,
    seen: &mut Array<f32>,
    cells: &Array<usize>,
    picture: usize,
    first_output: usize,
    outputs: usize,
    columns: usize,
    positions: usize,
    first_tap: usize,
    #[comptime] form: Form,
) {
    let per = comptime!(form.block / APART);
    let area = comptime!(form.window.kernel * form.window.kernel);
    let taps = input.shape(1) * area;
    let width = W::value().comptime();
    let sight = S::value().comptime();
    #[unroll]
    for m in 0..per {
        let mut row = first_output + m * APART;
        if row >= outputs {
            row = outputs - 1;
        }
        if comptime!(width == 4) {
            let four = weight[(row * taps + first_tap) / 4];
            #[unroll]
            for q in 0..4usize {
                weights[m * 4 + q] = f32::cast_from(four.extract(q));
            }
        } else {
            #[unroll]
            for q in 0..4usize {
                weights[m * 4 + q] = f32::cast_from(weight[row * taps + first_tap + q].extract(0usize));
            }
        }
    }
    let (height, line) = (input.shape(2), input.shape(3));
    #[unroll]
    for q in 0..4usize {
        let mut tap = first_tap + q;
        if comptime!(!form.whole) {
            if tap >= taps {
                tap = taps - 1;
            }
        }
        if comptime!(form.window != Window::POINT) {
            let plane = (picture * input.shape(1) + tap / area) * height;
            let (down, right) = (tap % area / form.window.kernel, tap % form.window.kernel);
            #[unroll]
            for j in 0..per {
                let y = cells[j] / columns * form.window.stride + down;
                let x = cells[j] % columns * form.window.stride + right;
                let inside = y >= form.window.before
                    && y < height + form.window.before
                    && x >= form.window.before
                    && x < line + form.window.before;
                let mut value = 0.0f32;
                if inside {
                    let at = (plane + y - form.window.before) * line + x - form.window.before;
                    value = f32::cast_from(input[at].extract(0usize));
                }
                seen[q * per + j] = value;
            }
        } else {
            let plane = (picture * taps + tap) * positions;
            if comptime!(sight == 1) {
                #[unroll]
                for j in 0..per {
                    seen[q * per + j] = f32::cast_from(input[plane + cells[j]].extract(0usize));
                }
            } else {
                let all = input[(plane + cells[0]) / sight];
                #[unroll]
                for j in 0..per {
                    seen[q * per + j] = f32::cast_from(all.extract(j));
                }
            }
        }
    }
}

/// What comes out for a sum.
#[cube]
fn finished<F: Float>(sum: f32, bias: &Tensor<F>, picture: usize, place: usize, #[comptime] form: Form) -> f32 {
    let mut at = place;
    if comptime!(form.bias_per_picture) {
        at += picture * bias.shape(1);
    }
    epilogue_of(sum + f32::cast_from(bias[at]), form.epilogue)
}

/// One cube per so many blocks of a picture: `x` along the positions, `y` along the outputs, `z` along the pictures.
///
/// Fragments are those of `mma.sync.m16n8k8` for TF32 (PTX ISA 8.5, 9.7.14.5.5), `g` a quarter of a unit's place in its plane
/// and `t` the rest: a unit has rows `g` and `g + 8` of the weights, column `g` of what is seen, and rows `g` and `g + 8` of the
/// sums at columns `2 t` and `2 t + 1`. Of the taps it has slots `t` and `t + 4` of each product: which taps these are is free, as
/// long as both factors agree, so a unit's are four in a row. So are its positions: column `q` of fragment `j` is position
/// `q per + j`.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn convolve_kernel<F: Float, W: Size, S: Size, O: Size>(
    input: &Tensor<Vector<F, S>>,
    weight: &Tensor<Vector<F, W>>,
    bias: &Tensor<F>,
    moments: &Tensor<f32>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    added: &Tensor<Vector<F, O>>,
    output: &mut Tensor<Vector<F, O>>,
    epsilon: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let (per, block) = comptime!((form.block / APART, form.block));
    let (down, across) = comptime!(Form::blocks(form.divided));
    let sight = S::value().comptime();
    let together = O::value().comptime();
    let (outputs, rows, columns) = (output.shape(1), output.shape(2), output.shape(3));
    let positions = rows * columns;
    let taps = input.shape(1) * comptime!(form.window.kernel * form.window.kernel);
    let picture = CUBE_POS_Z as usize;
    let unit = UNIT_POS as usize;
    let plane = unit / PLANE;
    let (g, t) = (unit % PLANE / 4, unit % 4);
    let mut place = plane;
    let mut step = 0usize;
    let mut stride = 1usize;
    if comptime!(form.divided) {
        place = 0;
        step = plane;
        stride = comptime!(PLANES).runtime();
    }
    let first_output = (CUBE_POS_Y as usize * down + place % down) * block;
    let first_cell = (CUBE_POS_X as usize * across + place / down) * block;

    let mut cells = Array::<usize>::new(per);
    #[unroll]
    for j in 0..per {
        let mut cell = first_cell + g * per + j;
        // All of a unit together, where they are read together: planes are then as many times as long.
        let last = positions - per + j;
        if comptime!(sight == 1) {
            if cell >= positions {
                cell = positions - 1;
            }
        } else if cell > last {
            cell = last;
        }
        cells[j] = cell;
    }
    let mut weights = Array::<f32>::new(comptime!(4 * per));
    let mut seen = Array::<f32>::new(comptime!(4 * per));
    let (row, tap) = (first_output + g, 4 * t);
    if step * STEP < taps {
        take::<F, W, S>(
            input,
            weight,
            &mut weights,
            &mut seen,
            &cells,
            picture,
            row,
            outputs,
            columns,
            positions,
            step * STEP + tap,
            form,
        );
    }
    let mut factors = Shared::<[f32]>::new_slice(comptime!(form.room));
    let mut shifts = Shared::<[f32]>::new_slice(comptime!(form.room));
    if comptime!(form.groups > 0) {
        norm_factors::<F>(
            moments,
            gamma,
            beta,
            picture,
            positions,
            epsilon,
            &mut factors,
            &mut shifts,
            form.groups,
            form.part,
        );
    }

    let product = MmaDefinition::<tf32, tf32, f32>::new(16usize, 8usize, 8usize);
    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..comptime!(per / 2 * per) {
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::<f32, Const<2>>::new(0.0f32);
        sum[1] = Vector::<f32, Const<2>>::new(0.0f32);
        sums.push(sum);
    }
    while step * STEP < taps {
        let first = step * STEP + tap;
        let mut left = Array::<Vector<tf32, Const<1>>>::new(comptime!(4 * per));
        let mut right = Array::<Vector<tf32, Const<1>>>::new(comptime!(4 * per));
        #[unroll]
        for q in 0..4usize {
            #[unroll]
            for m in 0..per {
                let mut of_weight = weights[m * 4 + q];
                let mut of_seen = seen[q * per + m];
                if comptime!(form.groups > 0) {
                    of_seen = of_seen * factors[first + q] + shifts[first + q];
                }
                if comptime!(!form.whole) {
                    if first + q >= taps {
                        of_weight = 0.0f32;
                        of_seen = 0.0f32;
                    }
                }
                left[m * 4 + q] = Vector::<tf32, Const<1>>::new(<tf32 as Cast>::cast_from(of_weight));
                right[q * per + m] = Vector::<tf32, Const<1>>::new(<tf32 as Cast>::cast_from(of_seen));
            }
        }
        step += stride;
        if step * STEP < taps {
            take::<F, W, S>(
                input,
                weight,
                &mut weights,
                &mut seen,
                &cells,
                picture,
                row,
                outputs,
                columns,
                positions,
                step * STEP + tap,
                form,
            );
        }
        #[unroll]
        for pair in 0..2usize {
            #[unroll]
            for i in 0..comptime!(per / 2) {
                let mut a = Array::<Vector<tf32, Const<1>>>::new(4usize);
                a[0] = left[2 * i * 4 + 2 * pair];
                a[1] = left[(2 * i + 1) * 4 + 2 * pair];
                a[2] = left[2 * i * 4 + 2 * pair + 1];
                a[3] = left[(2 * i + 1) * 4 + 2 * pair + 1];
                #[unroll]
                for j in 0..per {
                    let mut b = Array::<Vector<tf32, Const<1>>>::new(2usize);
                    b[0] = right[2 * pair * per + j];
                    b[1] = right[(2 * pair + 1) * per + j];
                    product.execute_inplace(&a, &b, sums.index_mut(i * per + j));
                }
            }
        }
    }

    if comptime!(form.divided) {
        let pitch = comptime!(block + BEHIND);
        let mut shared = Shared::<[f32]>::new_slice(comptime!(PLANES * block * (block + BEHIND)));
        #[unroll]
        for i in 0..comptime!(per / 2) {
            #[unroll]
            for j in 0..per {
                #[unroll]
                for half in 0..2usize {
                    let pair = sums.index(i * per + j)[half];
                    let at = (plane * block + 16 * i + 8 * half + g) * pitch + j * APART + 2 * t;
                    shared[at] = pair.extract(0usize);
                    shared[at + 1] = pair.extract(1usize);
                }
            }
        }
        sync_cube();
        #[unroll]
        for load in 0..comptime!(block * block / UNITS / together) {
            let index = (load * UNITS + unit) * together;
            let (row, column) = (index / block, index % block);
            let (place, cell) = (first_output + row, first_cell + column);
            if place < outputs && cell < positions {
                let to = ((picture * outputs + place) * positions + cell) / together;
                let mut all = Vector::<F, O>::empty();
                #[unroll]
                for k in 0..together {
                    let at = row * pitch + (column + k) % per * APART + (column + k) / per;
                    let mut sum = 0.0f32;
                    #[unroll]
                    for part in 0..PLANES {
                        sum += shared[part * comptime!(block * (block + BEHIND)) + at];
                    }
                    let mut value = finished::<F>(sum, bias, picture, place, form);
                    if comptime!(form.adds) {
                        value += f32::cast_from(added[to].extract(k));
                    }
                    all.insert(k, F::cast_from(value));
                }
                output[to] = all;
            }
        }
    } else {
        #[unroll]
        for i in 0..comptime!(per / 2) {
            #[unroll]
            for half in 0..2usize {
                let place = first_output + 16 * i + 8 * half + g;
                #[unroll]
                for c in 0..2usize {
                    #[unroll]
                    for some in 0..comptime!(per / together) {
                        let cell = first_cell + (2 * t + c) * per + some * together;
                        if place < outputs && cell < positions {
                            let to = ((picture * outputs + place) * positions + cell) / together;
                            let mut all = Vector::<F, O>::empty();
                            #[unroll]
                            for k in 0..together {
                                let sum = sums.index(i * per + some * together + k)[half].extract(c);
                                let mut value = finished::<F>(sum, bias, picture, place, form);
                                if comptime!(form.adds) {
                                    value += f32::cast_from(added[to].extract(k));
                                }
                                all.insert(k, F::cast_from(value));
                            }
                            output[to] = all;
                        }
                    }
                }
            }
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
    let positions = rows * columns;
    let taps = weight.shape().num_elements() / outputs;
    let cubes = |block: usize, (down, across): (usize, usize)| {
        [positions.div_ceil(block * across) as u32, outputs.div_ceil(block * down) as u32]
    };
    let many = |block| cubes(block, (1, 1)).iter().product::<u32>() * batch as u32 >= MANY;
    let (block, divided) = match (many(16), many(32)) {
        (false, _) => (16, true),
        (_, false) => (32, true),
        _ => (32, false),
    };
    let together = |length: usize, wanted: usize| if length.is_multiple_of(wanted) { wanted } else { 1 };
    let per = block / APART;
    let sight = if window == Window::POINT { together(positions, per) } else { 1 };
    let at_once = if divided && block == 16 { 1 } else { together(positions, per) };
    let form = Form {
        window,
        epilogue,
        block,
        divided,
        bias_per_picture: bias.shape().num_elements() != outputs,
        adds: around.added.is_some(),
        groups: around.norm.as_ref().map_or(0, |(_, groups, _)| *groups),
        part: around.norm.as_ref().map_or(1, |_| part_of(positions)),
        room: around.norm.as_ref().map_or(1, |_| channels.next_multiple_of(64)),
        whole: taps.is_multiple_of(STEP),
    };
    // In the place of what a form does not read.
    let nothing = || bias.clone().into_tensor_arg();
    let epsilon = around.norm.as_ref().map_or(0.0, |(_, _, epsilon)| *epsilon);
    let [moments, gamma, beta] = match around.norm {
        Some((tensors, _, _)) => tensors.map(|tensor| tensor.into_tensor_arg()),
        None => [nothing(), nothing(), nothing()],
    };
    let added = around.added.map_or_else(nothing, |added| into_contiguous(added).into_tensor_arg());
    let [across, down] = cubes(block, Form::blocks(divided));
    convolve_kernel::launch(
        &output.client,
        CubeCount::Static(across, down, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        together(taps, 4),
        sight,
        at_once,
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
