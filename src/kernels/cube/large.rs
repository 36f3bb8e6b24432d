//! The kernel of a large convolution: tiles of outputs at positions, whose factors meet in shared memory. See `convolve`.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cmma::MmaDefinition;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

use super::tiles::{Bias, MOST, finished, view_from};
use super::{PLANE, Sizes};
use crate::kernels::{Epilogue, Window};

/// Pieces of a row of taps that a step takes, of 16 bytes each: two for each of the four units that share a row of a fragment.
const PIECES: usize = 8;
const PIECE: usize = 16;
/// Outputs, and positions, of a fragment.
const TALL: usize = 16;
const WIDE: usize = 8;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LargeForm {
    pub window: Window,
    pub ending: Ending,
    pub tile: Tile,
    /// Whether cubes share the taps of a tile: their sums are then stored as they are, for `join_parts_kernel`.
    pub divided: bool,
}

/// What follows the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ending {
    pub epilogue: Epilogue,
    pub bias: Bias,
    /// Whether a tensor is added to what comes out.
    pub adds: bool,
}

/// How the outputs and positions of a cube are divided: planes of units along both, and fragments of a plane along both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub planes: (usize, usize),
    pub fragments: (usize, usize),
}

impl Tile {
    /// Outputs of a cube.
    pub const fn tall(self) -> usize {
        self.planes.0 * self.fragments.0 * TALL
    }

    /// Positions of a cube.
    pub const fn wide(self) -> usize {
        self.planes.1 * self.fragments.1 * WIDE
    }

    /// Units of a cube.
    pub const fn units(self) -> usize {
        self.planes.0 * self.planes.1 * PLANE
    }
}

/// Taps of a step, for factors of so many bytes.
pub(super) const fn taps_of_step(bytes: usize) -> usize {
    PIECES * PIECE / bytes
}

/// Where a piece of a row lies. Rows of 128 bytes would meet the same banks: pieces are exchanged within each, so that neither
/// eight rows' same piece nor two rows' same half meet.
#[cube]
fn place_of(row: usize, piece: usize) -> usize {
    row * PIECES + (piece ^ (row % 2 * 4 + row / 2 % 4))
}

/// What a unit takes of a step: pieces of rows of `weights`, and the taps of a piece, or of more, at its position, `seen`. Where
/// these are `reach` says: from the first cell of the picture's first channel of a group of steps, after which it repeats.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn take<F: Float, E: Float, W: Size>(
    input: &Tensor<F>,
    weight: &Tensor<Vector<F, W>>,
    weights: &mut Array<Vector<E, W>>,
    seen: &mut Array<Vector<E, W>>,
    reach: &Shared<[u32]>,
    views: &Shared<[u32]>,
    first_output: usize,
    step: usize,
    picture: usize,
    place: usize,
    view: u32,
    sizes: &Sizes,
    #[comptime] form: LargeForm,
) {
    let width = W::value().comptime();
    let (units, wide) = comptime!((form.tile.units(), form.tile.wide()));
    let each = comptime!(PIECES * width);
    let area = comptime!(form.window.kernel * form.window.kernel);
    let taps = sizes.channels * area;
    let plane = sizes.height * sizes.width;
    let unit = UNIT_POS as usize;
    #[unroll]
    for k in 0..comptime!((form.tile.tall() * PIECES).div_ceil(units)) {
        let index = k * units + unit;
        // Outputs beyond the last are the last, whose sums nobody keeps.
        let row = (first_output + index / PIECES).min(sizes.outputs - 1);
        let all = weight[(row * taps + step * each) / width + index % PIECES];
        weights[k] = Vector::<E, W>::cast_from(all);
    }
    let start = (picture * sizes.channels + step / area * each) * plane;
    let tap = step % area * each;
    #[unroll]
    for k in 0..comptime!((wide * PIECES).div_ceil(units)) {
        let piece = (k * units + unit) / wide;
        let mut all = Vector::<E, W>::empty();
        #[unroll]
        for q in 0..width {
            if comptime!(form.window == Window::POINT) {
                let value = input[start + (piece % PIECES * width + q) * plane + place];
                all.insert(q, E::cast_from(value));
            } else {
                let at = tap + piece % PIECES * width + q;
                let both = views[at];
                let inside = view & both == both;
                // In the place of what lies outside the group's last cell is read.
                let from = (place as u32 + reach[at]).min((each * plane - 1) as u32);
                let value = f32::cast_from(input[start + from as usize]);
                all.insert(q, E::cast_from(select(inside, value, 0.0f32)));
            }
        }
        seen[k] = all;
    }
}

/// The taps of a piece that a register of a fragment has.
#[cube]
fn register_of<E: Float, W: Size, P: Size>(piece: Vector<E, W>, #[comptime] index: usize) -> Vector<E, P> {
    let packed = P::value().comptime();
    let mut register = Vector::<E, P>::empty();
    #[unroll]
    for k in 0..packed {
        register.insert(k, piece.extract(index * packed + k));
    }
    register
}

/// One cube per tile of a picture and share of its taps: `x` along the positions, `y` along the outputs, `z` along the pictures
/// and shares.
///
/// Fragments are those of `mma.sync`, `m16n8k8` for TF32 and `m16n8k16` for halves (PTX ISA 8.5, 9.7.14.5), as in `tiles`: which
/// taps a unit's slots are is free as long as both factors agree, so those of one piece are its slots of two products. `W` taps
/// are a piece, `P` a register.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
pub(super) fn large_kernel<F: Float, E: Float, T: Float, W: Size, P: Size, O: Size>(
    input: &Tensor<F>,
    weight: &Tensor<Vector<F, W>>,
    bias: &Tensor<F>,
    added: &Tensor<Vector<F, O>>,
    output: &mut Tensor<Vector<T, O>>,
    sizes: Sizes,
    parts: usize,
    #[comptime] form: LargeForm,
    #[define(F)] _dtype: ElemType,
    #[define(E)] _factors: ElemType,
    #[define(T)] _sums: ElemType,
) {
    let (tall, wide) = comptime!((form.tile.tall(), form.tile.wide()));
    let (rows, columns) = comptime!(form.tile.fragments);
    let units = comptime!(form.tile.units());
    let width = W::value().comptime();
    let together = O::value().comptime();
    let step = comptime!(PIECES * width);
    let positions = sizes.rows * sizes.columns;
    let steps = sizes.channels * comptime!(form.window.kernel * form.window.kernel) / step;
    let (picture, part) = (CUBE_POS_Z as usize / parts, CUBE_POS_Z as usize % parts);
    let (first, end) = (steps * part / parts, steps * (part + 1) / parts);
    let first_output = CUBE_POS_Y as usize * tall;
    let first_cell = CUBE_POS_X as usize * wide;
    let unit = UNIT_POS as usize;
    let plane = unit / PLANE;
    let (g, t) = (unit % PLANE / 4, unit % 4);

    // Positions beyond the last are the last.
    let cell = (first_cell + unit % wide).min(positions - 1);
    let mut place = cell;
    let mut view = 0u32;
    if comptime!(form.window != Window::POINT) {
        let (y, x) = (cell / sizes.columns * form.window.stride, cell % sizes.columns * form.window.stride);
        place = y * sizes.width + x;
        view = view_from(y, x, &sizes, form.window);
    }

    // A tap's place from the first one's, and the row and column of its window: the same for every group of as many channels as a
    // step has taps.
    let area = comptime!(form.window.kernel * form.window.kernel);
    let of_group = comptime!(if form.window == Window::POINT { 1 } else { PIECES * width * area });
    let mut reach = Shared::<[u32]>::new_slice(of_group);
    let mut views = Shared::<[u32]>::new_slice(of_group);
    if comptime!(form.window != Window::POINT) {
        let mut tap = unit;
        while tap < of_group {
            let (down, right) = (tap % area / form.window.kernel, tap % form.window.kernel);
            let before = form.window.before * (sizes.width + 1);
            reach[tap] = (tap / area * sizes.height * sizes.width + down * sizes.width + right) as u32 - before as u32;
            views[tap] = (1u32 << down as u32) + (1u32 << (right as u32 + comptime!(MOST as u32)));
            tap += units;
        }
        sync_cube();
    }

    let mut left = Shared::<[Vector<E, W>]>::new_slice(comptime!(2 * form.tile.tall() * PIECES));
    let mut right = Shared::<[Vector<E, W>]>::new_slice(comptime!(2 * form.tile.wide() * PIECES));
    let (of_left, of_right) = comptime!(((tall * PIECES).div_ceil(units), (wide * PIECES).div_ceil(units)));
    let mut weights = Array::<Vector<E, W>>::new(of_left);
    let mut seen = Array::<Vector<E, W>>::new(of_right);

    let product = MmaDefinition::<E, E, f32>::new(16usize, 8usize, comptime!(2 * width));
    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..comptime!(rows * columns) {
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::<f32, Const<2>>::new(0.0f32);
        sum[1] = Vector::<f32, Const<2>>::new(0.0f32);
        sums.push(sum);
    }

    let mut at = first;
    if at < end {
        take::<F, E, W>(
            input,
            weight,
            &mut weights,
            &mut seen,
            &reach,
            &views,
            first_output,
            at,
            picture,
            place,
            view,
            &sizes,
            form,
        );
    }
    let of_plane = (plane / form.tile.planes.1 * rows * TALL, plane % form.tile.planes.1 * columns * WIDE);
    let mut buffer = 0usize;
    while at < end {
        let (in_left, in_right) = (buffer * comptime!(tall * PIECES), buffer * comptime!(wide * PIECES));
        #[unroll]
        for k in 0..of_left {
            let index = k * units + unit;
            left[in_left + place_of(index / PIECES, index % PIECES)] = weights[k];
        }
        #[unroll]
        for k in 0..of_right {
            let index = k * units + unit;
            // Where there are more units than pieces.
            if comptime!(wide * PIECES < units) {
                if index < comptime!(wide * PIECES) {
                    right[in_right + place_of(index % wide, index / wide)] = seen[k];
                }
            } else {
                right[in_right + place_of(index % wide, index / wide)] = seen[k];
            }
        }
        sync_cube();
        at += 1;
        if at < end {
            take::<F, E, W>(
                input,
                weight,
                &mut weights,
                &mut seen,
                &reach,
                &views,
                first_output,
                at,
                picture,
                place,
                view,
                &sizes,
                form,
            );
        }
        #[unroll]
        for some in 0..comptime!(PIECES / 4) {
            let mut of_weights = Array::<Vector<E, W>>::new(comptime!(2 * rows));
            let mut of_seen = Array::<Vector<E, W>>::new(columns);
            #[unroll]
            for i in 0..comptime!(2 * rows) {
                let row = of_plane.0 + i * comptime!(TALL / 2) + g;
                of_weights[i] = left[in_left + place_of(row, some * 4 + t)];
            }
            #[unroll]
            for j in 0..columns {
                let row = of_plane.1 + j * WIDE + g;
                of_seen[j] = right[in_right + place_of(row, some * 4 + t)];
            }
            #[unroll]
            for pair in 0..2usize {
                #[unroll]
                for i in 0..rows {
                    let mut a = Array::<Vector<E, P>>::new(4usize);
                    a[0] = register_of::<E, W, P>(of_weights[2 * i], 2 * pair);
                    a[1] = register_of::<E, W, P>(of_weights[2 * i + 1], 2 * pair);
                    a[2] = register_of::<E, W, P>(of_weights[2 * i], 2 * pair + 1);
                    a[3] = register_of::<E, W, P>(of_weights[2 * i + 1], 2 * pair + 1);
                    #[unroll]
                    for j in 0..columns {
                        let mut b = Array::<Vector<E, P>>::new(2usize);
                        b[0] = register_of::<E, W, P>(of_seen[j], 2 * pair);
                        b[1] = register_of::<E, W, P>(of_seen[j], 2 * pair + 1);
                        product.execute_inplace(&a, &b, sums.index_mut(i * columns + j));
                    }
                }
            }
        }
        // Who is ahead fills the other half, which everybody has read.
        buffer = 1 - buffer;
    }

    #[unroll]
    for i in 0..rows {
        #[unroll]
        for half in 0..2usize {
            let place = first_output + of_plane.0 + i * TALL + half * 8 + g;
            #[unroll]
            for j in 0..columns {
                #[unroll]
                for some in 0..comptime!(2 / together) {
                    let cell = first_cell + of_plane.1 + j * WIDE + 2 * t + some * together;
                    if place < sizes.outputs && cell < positions {
                        let to = ((picture * sizes.outputs + place) * positions + cell) / together;
                        let mut all = Vector::<T, O>::empty();
                        #[unroll]
                        for k in 0..together {
                            let mut value = sums.index(i * columns + j)[half].extract(some * together + k);
                            if comptime!(!form.divided) {
                                value = finished::<F>(
                                    value,
                                    bias,
                                    picture,
                                    place,
                                    sizes.outputs,
                                    form.ending.bias,
                                    form.ending.epilogue,
                                );
                                if comptime!(form.ending.adds) {
                                    value += f32::cast_from(added[to].extract(k));
                                }
                            }
                            all.insert(k, T::cast_from(value));
                        }
                        if comptime!(form.divided) {
                            let pictures = CUBE_COUNT_Z as usize / parts;
                            output[part * (pictures * sizes.outputs * positions / together) + to] = all;
                        } else {
                            output[to] = all;
                        }
                    }
                }
            }
        }
    }
}

/// One unit per output at a position: the sums of the parts of its taps, `[parts, b, o, h, w]`, and what follows.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
pub(super) fn join_parts_kernel<F: Float>(
    sums: &Tensor<f32>,
    bias: &Tensor<F>,
    added: &Tensor<F>,
    output: &mut Tensor<F>,
    outputs: usize,
    positions: usize,
    count: usize,
    parts: usize,
    #[comptime] ending: Ending,
    #[define(F)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= count {
        terminate!();
    }
    let mut sum = 0.0f32;
    for part in 0..parts {
        sum += sums[part * count + index];
    }
    let row = index / positions;
    let (picture, place) = (row / outputs, row % outputs);
    let mut value = finished::<F>(sum, bias, picture, place, outputs, ending.bias, ending.epilogue);
    if comptime!(ending.adds) {
        value += f32::cast_from(added[index]);
    }
    output[index] = F::cast_from(value);
}
