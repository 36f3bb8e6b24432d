//! The kernel of a convolution: tiles of outputs at positions, in the fragments of tensor cores. See `convolve`.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cmma::MmaDefinition;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

use super::planes::norm_factors;
use super::{PLANE, Sizes, epilogue_of};
use crate::kernels::{Epilogue, Window};

/// Units of a cube, and its planes.
pub(super) const UNITS: usize = 256;
const PLANES: usize = UNITS / PLANE;
/// Taps that a plane takes at a time: four of each unit, for two products of fragments.
pub(super) const STEP: usize = 16;
/// Rows, and columns, of a fragment that units of a plane differ in.
pub(super) const APART: usize = 8;
/// Room behind a row of sums, so that rows meet different banks.
const BEHIND: usize = 8;
/// Rows, and columns, of a window at most.
pub(super) const MOST: usize = 16;

/// What has a number of its own in the bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Bias {
    Output,
    OutputOfPicture,
}

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub window: Window,
    pub epilogue: Epilogue,
    /// Outputs, and positions, of a plane: 16 or 32.
    pub block: usize,
    /// Whether the planes of a cube divide the taps of one block, else every plane has a block: two along the outputs.
    pub divided: bool,
    pub bias: Bias,
    /// Whether a tensor is added to what comes out.
    pub adds: bool,
    /// Groups of channels of a norm before the sum; 0 without one.
    pub groups: usize,
    /// Cells of the parts that its moments are of.
    pub part: usize,
    /// Room for its channels.
    pub room: usize,
    /// Whether the taps fill the last step.
    pub whole: bool,
}

impl Form {
    /// Blocks of a cube along the outputs, and along the positions.
    pub const fn blocks(divided: bool) -> (usize, usize) {
        if divided { (1, 1) } else { (2, PLANES / 2) }
    }
}

/// What a unit takes of a step: `weights` of four taps for each of its outputs, and what these taps see at each of its positions,
/// `seen`. `places` are those of the positions' first taps in a padded plane, `views` say which of their taps lie inside. Outputs
/// beyond the last are the last, whose sums nobody keeps.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn take<F: Float, W: Size, S: Size>(
    input: &Tensor<Vector<F, S>>,
    weight: &Tensor<Vector<F, W>>,
    weights: &mut Array<f32>,
    seen: &mut Array<f32>,
    places: &Array<usize>,
    views: &Array<u32>,
    picture: usize,
    first_output: usize,
    first_tap: usize,
    sizes: &Sizes,
    #[comptime] form: Form,
) {
    let per = comptime!(form.block / APART);
    let area = comptime!(form.window.kernel * form.window.kernel);
    let taps = sizes.channels * area;
    let width = W::value().comptime();
    let sight = S::value().comptime();
    #[unroll]
    for m in 0..per {
        let row = (first_output + m * APART).min(sizes.outputs - 1);
        if comptime!(width == 4) {
            // Taps that a step has and the convolution has not are not read; what is here in their place counts for nothing.
            let mut tap = first_tap;
            if comptime!(!form.whole) {
                tap = tap.min(taps - 4);
            }
            let four = weight[(row * taps + tap) / 4];
            #[unroll]
            for q in 0..4usize {
                weights[m * 4 + q] = f32::cast_from(four.extract(q));
            }
        } else {
            #[unroll]
            for q in 0..4usize {
                let tap = (first_tap + q).min(taps - 1);
                weights[m * 4 + q] = f32::cast_from(weight[row * taps + tap].extract(0usize));
            }
        }
    }
    let line = sizes.width;
    let plane = sizes.height * line;
    #[unroll]
    for q in 0..4usize {
        let mut tap = first_tap + q;
        if comptime!(!form.whole) {
            tap = tap.min(taps - 1);
        }
        if comptime!(form.window != Window::POINT) {
            let (start, of_window) = ((picture * sizes.channels + tap / area) * plane, tap % area);
            let (down, right) = (of_window / form.window.kernel, of_window % form.window.kernel);
            let apart = down * line + right;
            let both = (1u32 << down as u32) + (1u32 << (right as u32 + MOST as u32));
            #[unroll]
            for j in 0..per {
                let inside = views[j] & both == both;
                // In the place of what lies outside the plane's last cell is read.
                let at = (places[j] + apart - form.window.before * (line + 1)).min(plane - 1);
                let value = f32::cast_from(input[start + at].extract(0usize));
                seen[q * per + j] = select(inside, value, 0.0f32);
            }
        } else {
            let start = (picture * taps + tap) * plane;
            if comptime!(sight == 1) {
                #[unroll]
                for j in 0..per {
                    seen[q * per + j] = f32::cast_from(input[start + places[j]].extract(0usize));
                }
            } else {
                let all = input[(start + places[0]) / sight];
                #[unroll]
                for j in 0..per {
                    seen[q * per + j] = f32::cast_from(all.extract(j));
                }
            }
        }
    }
}

/// A bit for every row, and behind them for every column, of the window at row `y` and column `x` of a padded plane that lies inside.
#[cube]
pub(super) fn view_from(y: usize, x: usize, sizes: &Sizes, #[comptime] window: Window) -> u32 {
    let mut view = 0u32;
    #[unroll]
    for tap in 0..window.kernel {
        if y + tap >= window.before && y + tap < sizes.height + window.before {
            view += comptime!(1u32 << tap);
        }
        if x + tap >= window.before && x + tap < sizes.width + window.before {
            view += comptime!(1u32 << (tap + MOST));
        }
    }
    view
}

/// What comes out for a sum.
#[cube]
pub(super) fn finished<F: Float>(
    sum: f32,
    bias: &Tensor<F>,
    picture: usize,
    place: usize,
    outputs: usize,
    #[comptime] has: Bias,
    #[comptime] epilogue: Epilogue,
) -> f32 {
    let mut at = place;
    if comptime!(has == Bias::OutputOfPicture) {
        at += picture * outputs;
    }
    epilogue_of(sum + f32::cast_from(bias[at]), epilogue)
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
pub(super) fn convolve_kernel<F: Float, W: Size, S: Size, O: Size>(
    input: &Tensor<Vector<F, S>>,
    weight: &Tensor<Vector<F, W>>,
    bias: &Tensor<F>,
    moments: &Tensor<f32>,
    gamma: &Tensor<F>,
    beta: &Tensor<F>,
    added: &Tensor<Vector<F, O>>,
    output: &mut Tensor<Vector<F, O>>,
    sizes: Sizes,
    epsilon: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let (per, block) = comptime!((form.block / APART, form.block));
    let (down, across) = comptime!(Form::blocks(form.divided));
    let sight = S::value().comptime();
    let together = O::value().comptime();
    let (outputs, columns) = (sizes.outputs, sizes.columns);
    let positions = sizes.rows * columns;
    let taps = sizes.channels * comptime!(form.window.kernel * form.window.kernel);
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

    let mut places = Array::<usize>::new(per);
    let mut views = Array::<u32>::new(per);
    #[unroll]
    for j in 0..per {
        let mut cell = first_cell + g * per + j;
        // Those beyond the last are the last; all of a unit together, where they are read together.
        if comptime!(sight == 1) {
            cell = cell.min(positions - 1);
        } else {
            cell = cell.min(positions - per + j);
        }
        places[j] = cell;
        if comptime!(form.window != Window::POINT) {
            let (y, x) = (cell / columns * form.window.stride, cell % columns * form.window.stride);
            places[j] = y * sizes.width + x;
            views[j] = view_from(y, x, &sizes, form.window);
        }
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
            &places,
            &views,
            picture,
            row,
            step * STEP + tap,
            &sizes,
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
            sizes.channels,
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
                &places,
                &views,
                picture,
                row,
                step * STEP + tap,
                &sizes,
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
                    let mut value = finished::<F>(sum, bias, picture, place, outputs, form.bias, form.epilogue);
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
                                let mut value =
                                    finished::<F>(sum, bias, picture, place, outputs, form.bias, form.epilogue);
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
