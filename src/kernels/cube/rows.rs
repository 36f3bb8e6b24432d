//! Products and distances of rows with nothing rounded. burn's own products may round their factors to 10 bits, or not, as tuning
//! went at this start: the distance to a prototype, a small difference of large squares, would be another one at every start.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{empty, per_cell, plain};

/// Rows of a cube, and of what they meet at a time.
const ROWS: usize = 32;
const OTHERS: usize = 64;
/// Channels at a time.
const DEPTH: usize = 16;
/// Units of a cube: each has two rows and four of the others.
const UNITS: usize = 256;
const SIDE: usize = 16;
/// Cubes from which on rows are not met in parts any more: a GPU has enough to do.
const ENOUGH: usize = 512;

/// How many there are.
#[derive(CubeLaunch, CubeType)]
struct Counts {
    rows: usize,
    others: usize,
    channels: usize,
}

/// What two rows from `first` on make of four others from `other` on, each `SIDE` further: squared distances where `apart`, else
/// products. Others are rows of channels where `apart`, else columns. Beyond the last row, and the last other, these are met again.
#[cube]
fn meet<F: Float>(
    rows: &Tensor<F>,
    others: &Tensor<F>,
    sums: &mut Array<f32>,
    first: usize,
    other: usize,
    counts: &Counts,
    #[comptime] apart: bool,
) {
    let mut left = Shared::<[f32]>::new_slice(comptime!(DEPTH * (ROWS + 1)));
    let mut right = Shared::<[f32]>::new_slice(comptime!(DEPTH * (OTHERS + 1)));
    let unit = UNIT_POS as usize;
    let (row, column) = (unit / SIDE * 2, unit % SIDE);
    #[unroll]
    for k in 0..8usize {
        sums[k] = 0.0f32;
    }
    let mut channel = 0usize;
    while channel < counts.channels {
        sync_cube();
        #[unroll]
        for k in 0..comptime!(ROWS * DEPTH / UNITS) {
            let place = unit + k * UNITS;
            let (at, depth) = (place / DEPTH, place % DEPTH);
            let from = (first + at).min(counts.rows - 1) * counts.channels;
            let value = f32::cast_from(rows[from + (channel + depth).min(counts.channels - 1)]);
            left[depth * (ROWS + 1) + at] = select(channel + depth < counts.channels, value, 0.0f32);
        }
        #[unroll]
        for k in 0..comptime!(OTHERS * DEPTH / UNITS) {
            let place = unit + k * UNITS;
            // Neighbours in memory are read by neighbours.
            let mut at = place % OTHERS;
            let mut depth = place / OTHERS;
            if comptime!(apart) {
                at = place / DEPTH;
                depth = place % DEPTH;
            }
            let (met, seen) = ((other + at).min(counts.others - 1), (channel + depth).min(counts.channels - 1));
            let mut from = seen * counts.others + met;
            if comptime!(apart) {
                from = met * counts.channels + seen;
            }
            let value = f32::cast_from(others[from]);
            right[depth * (OTHERS + 1) + at] = select(channel + depth < counts.channels, value, 0.0f32);
        }
        sync_cube();
        #[unroll]
        for depth in 0..DEPTH {
            #[unroll]
            for i in 0..2usize {
                let value = left[depth * (ROWS + 1) + row + i];
                #[unroll]
                for j in 0..4usize {
                    let met = right[depth * (OTHERS + 1) + column + j * SIDE];
                    if comptime!(apart) {
                        let difference = value - met;
                        sums[i * 4 + j] += difference * difference;
                    } else {
                        sums[i * 4 + j] += value * met;
                    }
                }
            }
        }
        channel += comptime!(DEPTH);
    }
}

/// One cube per `ROWS` rows and part of the others: `x` along the rows, `y` along the parts, each of `tiles` times `OTHERS`. The
/// least distance of a row to each part, `[n, parts]`.
#[cube(launch)]
fn nearest_kernel<F: Float>(
    rows: &Tensor<F>,
    others: &Tensor<F>,
    least: &mut Tensor<F>,
    counts: Counts,
    tiles: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize;
    let first = CUBE_POS_X as usize * ROWS;
    let start = CUBE_POS_Y as usize * tiles * OTHERS;
    let mut sums = Array::<f32>::new(8usize);
    let mut found = Array::<f32>::new(2usize);
    for tile in 0..tiles {
        meet::<F>(rows, others, &mut sums, first, start + tile * OTHERS, &counts, true);
        #[unroll]
        for i in 0..2usize {
            if tile == 0 {
                found[i] = sums[i * 4];
            }
            // By comparisons: of a row that is no number nothing is less, and it stays none.
            #[unroll]
            for j in 0..4usize {
                if sums[i * 4 + j] < found[i] {
                    found[i] = sums[i * 4 + j];
                }
            }
        }
    }
    #[unroll]
    for i in 0..2usize {
        let mut value = found[i];
        #[unroll]
        for step in 0..4u32 {
            let other = plane_shuffle_xor(value, comptime!(1 << step));
            if other < value {
                value = other;
            }
        }
        let row = first + unit / SIDE * 2 + i;
        if unit % SIDE == 0 && row < counts.rows {
            least[row * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize] = F::cast_from(value);
        }
    }
}

/// One unit per row.
#[cube(launch)]
fn least_kernel<F: Float>(
    parts: &Tensor<F>,
    least: &mut Tensor<F>,
    rows: usize,
    #[comptime] count: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= rows {
        terminate!();
    }
    let mut value = parts[ABSOLUTE_POS * count];
    for part in 1..count {
        let other = parts[ABSOLUTE_POS * count + part];
        if other < value {
            value = other;
        }
    }
    least[ABSOLUTE_POS] = value;
}

/// One cube per `ROWS` rows and `OTHERS` columns: `x` along the rows, `y` along the columns.
#[cube(launch)]
fn product_kernel<F: Float>(
    rows: &Tensor<F>,
    others: &Tensor<F>,
    output: &mut Tensor<F>,
    counts: Counts,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize;
    let (first, other) = (CUBE_POS_X as usize * ROWS, CUBE_POS_Y as usize * OTHERS);
    let mut sums = Array::<f32>::new(8usize);
    meet::<F>(rows, others, &mut sums, first, other, &counts, false);
    #[unroll]
    for i in 0..2usize {
        #[unroll]
        for j in 0..4usize {
            let (row, column) = (first + unit / SIDE * 2 + i, other + unit % SIDE + j * SIDE);
            if row < counts.rows && column < counts.others {
                output[row * counts.others + column] = F::cast_from(sums[i * 4 + j]);
            }
        }
    }
}

/// The squared distance of every row `[n, c]` to the nearest of others `[m, c]`, `[n, 1]`.
pub(super) fn nearest(rows: CubeTensor, others: CubeTensor) -> CubeTensor {
    let [rows, others] = plain([rows, others]);
    let ([count, channels], [met, _]) = (rows.shape().dims(), others.shape().dims::<2>());
    let (cubes, tiles) = (count.div_ceil(ROWS), met.div_ceil(OTHERS));
    let each = tiles.div_ceil((ENOUGH / cubes).clamp(1, tiles));
    let parts = tiles.div_ceil(each);
    let of_parts = empty(&rows, Shape::new([count, parts]));
    let dtype = dtype_to_storage_type(rows.dtype);
    nearest_kernel::launch(
        &rows.client,
        CubeCount::Static(cubes as u32, parts as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        rows.clone().into_tensor_arg(),
        others.into_tensor_arg(),
        of_parts.clone().into_tensor_arg(),
        CountsLaunch::new(count, met, channels),
        each,
        dtype,
    );
    if parts == 1 {
        return of_parts;
    }
    let least = empty(&rows, Shape::new([count, 1]));
    let (cubes, dim) = per_cell(&least);
    let (of_parts, to) = (of_parts.into_tensor_arg(), least.clone().into_tensor_arg());
    least_kernel::launch(&least.client, cubes, dim, of_parts, to, count, parts, dtype);
    least
}

/// Rows `[n, c]` by columns `[c, m]`, `[n, m]`.
pub(super) fn product(rows: CubeTensor, columns: CubeTensor) -> CubeTensor {
    let [rows, columns] = plain([rows, columns]);
    let ([count, channels], [_, met]) = (rows.shape().dims(), columns.shape().dims::<2>());
    let output = empty(&rows, Shape::new([count, met]));
    product_kernel::launch(
        &output.client,
        CubeCount::Static(count.div_ceil(ROWS) as u32, met.div_ceil(OTHERS) as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        rows.into_tensor_arg(),
        columns.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        CountsLaunch::new(count, met, channels),
        dtype_to_storage_type(output.dtype),
    );
    output
}
