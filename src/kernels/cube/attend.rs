//! Attention of the cells of a picture to each other, or to tokens, as one kernel on tensor cores: the rows of weights are never
//! stored, the largest product of a query and its sums are carried along the keys (Milakov and Gimelshein, arXiv 1805.02867; Dao et
//! al., arXiv 2205.14135).
//! Factors are rounded to the 10 bits of TF32, sums are in single precision.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cmma::MmaDefinition;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{PLANE, empty, plain};
use crate::kernels::{by_parts, to_tokens};

/// The planes of a cube, which divide the keys among them.
const PLANES: usize = 8;
/// Queries of a cube.
const QUERIES: usize = 16;
/// Keys that a plane takes at a time: four of each unit.
const KEYS: usize = 32;
/// Values of a head that fragments divide, and at most: a unit keeps a part of its queries and sums in registers.
const EIGHT: usize = 8;
const HEAD: usize = 160;
/// Less than any product, and what is as far below that again.
const LOWEST: f32 = -1e30;
const BEYOND: f32 = -3e38;

/// The largest value of the four units that share a row.
#[cube]
fn largest_of_four(value: f32) -> f32 {
    let mut largest = value;
    #[unroll]
    for step in 0..2u32 {
        let other = plane_shuffle_xor(largest, comptime!(1 << step));
        // What is no number is not larger, and shows in the sums.
        if other > largest {
            largest = other;
        }
    }
    largest
}

/// Four values of a row from `at` on; in the place of what lies beyond its last cell, cells before that.
#[cube]
fn four<F: Float, S: Size>(keys: &Tensor<Vector<F, S>>, row: usize, at: usize, cells: usize) -> Array<f32> {
    let width = S::value().comptime();
    let mut values = Array::<f32>::new(4usize);
    if comptime!(width == 4) {
        let from = at.min(cells - 4);
        let all = keys[(row * cells + from) / 4];
        #[unroll]
        for j in 0..4usize {
            values[j] = f32::cast_from(all.extract(j));
        }
    } else {
        #[unroll]
        for j in 0..4usize {
            let from = (at + j).min(cells - 1);
            values[j] = f32::cast_from(keys[row * cells + from].extract(0usize));
        }
    }
    values
}

/// Where the rows of queries, keys and values lie.
#[derive(CubeLaunch, CubeType)]
struct Rows {
    /// Channels of all heads.
    channels: usize,
    /// Queries, and rows of them from one picture to the next.
    queries: usize,
    query_rows: usize,
    /// Keys, rows of them and of values from one picture to the next, and the row of the first of each.
    keys: usize,
    key_rows: usize,
    first_key: usize,
    first_value: usize,
}

/// One cube per head and `QUERIES` queries: `x` along the queries, `y` along the heads, `z` along the pictures.
///
/// Fragments as in `tiles`: of a product a unit has rows `g` and `g + 8`, which are queries, and columns `2 t` and `2 t + 1`.
/// Column `q` of product `j` is key `4 q + j`, so that a unit's keys are four in a row; the weights of these are then the left
/// factor of the sums, as they are.
#[cube(launch)]
fn attend_kernel<F: Float, S: Size>(
    queries: &Tensor<F>,
    tokens: &Tensor<Vector<F, S>>,
    output: &mut Tensor<F>,
    rows: Rows,
    scale: f32,
    #[comptime] parts: usize,
    #[define(F)] _dtype: ElemType,
) {
    let head = comptime!(parts * EIGHT);
    let (channels, cells, count) = (rows.channels, rows.queries, rows.keys);
    let picture = CUBE_POS_Z as usize;
    let place = CUBE_POS_Y as usize * head;
    let first_row = picture * rows.query_rows + place;
    let keys = picture * rows.key_rows + rows.first_key + place;
    let values = picture * rows.key_rows + rows.first_value + place;
    let unit = UNIT_POS as usize;
    let plane = unit / PLANE;
    let (g, t) = (unit % PLANE / 4, unit % 4);
    let first_query = CUBE_POS_X as usize * QUERIES;
    let product = MmaDefinition::<tf32, tf32, f32>::new(16usize, 8usize, 8usize);

    let mut asked = Sequence::<Array<Vector<tf32, Const<1>>>>::new();
    let mut found = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for part in 0..parts {
        let mut a = Array::<Vector<tf32, Const<1>>>::new(4usize);
        #[unroll]
        for k in 0..4usize {
            let query = (first_query + g + k % 2 * EIGHT).min(cells - 1);
            let value = f32::cast_from(queries[(first_row + part * EIGHT + t + k / 2 * 4) * cells + query]);
            a[k] = Vector::<tf32, Const<1>>::new(<tf32 as Cast>::cast_from(value * scale));
        }
        asked.push(a);
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::<f32, Const<2>>::new(0.0f32);
        sum[1] = Vector::<f32, Const<2>>::new(0.0f32);
        found.push(sum);
    }
    let mut largest = Array::<f32>::new(2usize);
    let mut total = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        largest[half] = f32::new(LOWEST);
        total[half] = 0.0f32;
    }

    let mut first = plane * KEYS;
    while first < count {
        let mut products = Sequence::<Array<Vector<f32, Const<2>>>>::new();
        #[unroll]
        for _ in 0..4usize {
            let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
            sum[0] = Vector::<f32, Const<2>>::new(0.0f32);
            sum[1] = Vector::<f32, Const<2>>::new(0.0f32);
            products.push(sum);
        }
        #[unroll]
        for part in 0..parts {
            let low = four::<F, S>(tokens, keys + part * EIGHT + t, first + 4 * g, count);
            let high = four::<F, S>(tokens, keys + part * EIGHT + t + 4, first + 4 * g, count);
            #[unroll]
            for j in 0..4usize {
                let mut b = Array::<Vector<tf32, Const<1>>>::new(2usize);
                b[0] = Vector::<tf32, Const<1>>::new(<tf32 as Cast>::cast_from(low[j]));
                b[1] = Vector::<tf32, Const<1>>::new(<tf32 as Cast>::cast_from(high[j]));
                product.execute_inplace(asked.index(part), &b, products.index_mut(j));
            }
        }
        let mut weights = Array::<f32>::new(16usize);
        #[unroll]
        for half in 0..2usize {
            let mut above = largest[half];
            #[unroll]
            for j in 0..4usize {
                #[unroll]
                for c in 0..2usize {
                    let mut value = products.index(j)[half].extract(c);
                    if first + 4 * (2 * t + c) + j >= count {
                        // So far below that it weighs nothing where no product is a number above `LOWEST`, either: 0 by 0 is no number.
                        value = f32::new(BEYOND);
                    }
                    if value > above {
                        above = value;
                    }
                    weights[half * 8 + j * 2 + c] = value;
                }
            }
            let above = largest_of_four(above);
            let fade = (largest[half] - above).exp();
            largest[half] = above;
            let mut sum = total[half] * fade;
            #[unroll]
            for k in 0..8usize {
                let weight = (weights[half * 8 + k] - above).exp();
                weights[half * 8 + k] = weight;
                sum += weight;
            }
            total[half] = sum;
            #[unroll]
            for part in 0..parts {
                let faded = found.index(part)[half] * Vector::<f32, Const<2>>::new(fade);
                found.index_mut(part)[half] = faded;
            }
        }
        let mut given = Sequence::<Array<Vector<tf32, Const<1>>>>::new();
        #[unroll]
        for j in 0..4usize {
            let mut a = Array::<Vector<tf32, Const<1>>>::new(4usize);
            #[unroll]
            for k in 0..4usize {
                let weight = weights[k % 2 * 8 + j * 2 + k / 2];
                a[k] = Vector::<tf32, Const<1>>::new(<tf32 as Cast>::cast_from(weight));
            }
            given.push(a);
        }
        #[unroll]
        for part in 0..parts {
            let low = four::<F, S>(tokens, values + part * EIGHT + g, first + 8 * t, count);
            let high = four::<F, S>(tokens, values + part * EIGHT + g, first + 8 * t + 4, count);
            #[unroll]
            for j in 0..4usize {
                let mut b = Array::<Vector<tf32, Const<1>>>::new(2usize);
                b[0] = Vector::<tf32, Const<1>>::new(<tf32 as Cast>::cast_from(low[j]));
                b[1] = Vector::<tf32, Const<1>>::new(<tf32 as Cast>::cast_from(high[j]));
                product.execute_inplace(given.index(j), &b, found.index_mut(part));
            }
        }
        first += comptime!(PLANES * KEYS);
    }

    // Planes are joined: each sum weighs as its plane's largest product says.
    let pitch = comptime!(head + 1);
    let mut tops = Shared::<[f32]>::new_slice(comptime!(PLANES * QUERIES));
    let mut totals = Shared::<[f32]>::new_slice(comptime!(PLANES * QUERIES));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(PLANES * QUERIES * (head + 1)));
    #[unroll]
    for half in 0..2usize {
        let row = plane * QUERIES + half * EIGHT + g;
        let mut sum = total[half];
        #[unroll]
        for step in 0..2u32 {
            sum += plane_shuffle_xor(sum, comptime!(1 << step));
        }
        if t == 0 {
            tops[row] = largest[half];
            totals[row] = sum;
        }
        #[unroll]
        for part in 0..parts {
            let pair = found.index(part)[half];
            sums[row * pitch + part * EIGHT + 2 * t] = pair.extract(0usize);
            sums[row * pitch + part * EIGHT + 2 * t + 1] = pair.extract(1usize);
        }
    }
    sync_cube();
    let row = unit % QUERIES;
    let mut above = f32::new(LOWEST);
    #[unroll]
    for part in 0..PLANES {
        let top = tops[part * QUERIES + row];
        if top > above {
            above = top;
        }
    }
    let mut shares = Array::<f32>::new(PLANES);
    let mut sum = 0.0f32;
    #[unroll]
    for part in 0..PLANES {
        let share = (tops[part * QUERIES + row] - above).exp();
        sum += share * totals[part * QUERIES + row];
        shares[part] = share;
    }
    let mut k = unit / QUERIES;
    while k < head {
        let mut value = 0.0f32;
        #[unroll]
        for part in 0..PLANES {
            value += shares[part] * sums[(part * QUERIES + row) * pitch + k];
        }
        let query = first_query + row;
        if query < cells {
            output[(picture * channels + place + k) * cells + query] = F::cast_from(value / sum);
        }
        k += comptime!(PLANES * PLANE / QUERIES);
    }
}

/// Whether heads of so many values can be done.
fn fits(head: usize) -> bool {
    head <= HEAD && head.is_multiple_of(EIGHT)
}

/// Queries, keys and values of all heads, `[b, 3 c, h, w]`, to `[b, c, h, w]`.
pub(super) fn attend(joined: CubeTensor, heads: usize) -> CubeTensor {
    let [batch, channels, height, width] = joined.shape().dims();
    let (channels, cells) = (channels / 3, height * width);
    if !fits(channels / heads) {
        return by_parts::<CubeBackend>(joined, heads);
    }
    let [joined] = plain([joined]);
    let output = empty(&joined, Shape::new([batch, channels, height, width]));
    let rows = RowsLaunch::new(channels, cells, 3 * channels, cells, 3 * channels, channels, 2 * channels);
    launch(joined.clone(), joined, &output, rows, heads, cells);
    output
}

/// Queries of all heads, `[b, c, h, w]`, and keys and behind them values of tokens, `[2 c, n]`, to `[b, c, h, w]`.
pub(super) fn attend_to(queries: CubeTensor, tokens: CubeTensor, heads: usize) -> CubeTensor {
    let ([_, channels, height, width], [_, count]) = (queries.shape().dims(), tokens.shape().dims::<2>());
    if !fits(channels / heads) {
        return to_tokens::<CubeBackend>(queries, tokens, heads);
    }
    let [queries, tokens] = plain([queries, tokens]);
    let output = empty(&queries, queries.shape());
    let rows = RowsLaunch::new(channels, height * width, channels, count, 0, 0, channels);
    launch(queries, tokens, &output, rows, heads, count);
    output
}

fn launch(queries: CubeTensor, tokens: CubeTensor, output: &CubeTensor, rows: RowsLaunch, heads: usize, keys: usize) {
    let [batch, channels, height, width] = output.shape().dims();
    let head = channels / heads;
    attend_kernel::launch(
        &output.client,
        CubeCount::Static((height * width).div_ceil(QUERIES) as u32, heads as u32, batch as u32),
        CubeDim::new_1d((PLANES * PLANE) as u32),
        if keys.is_multiple_of(4) { 4 } else { 1 },
        queries.into_tensor_arg(),
        tokens.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        rows,
        1.0 / (head as f32).sqrt(),
        head / EIGHT,
        dtype_to_storage_type(output.dtype),
    );
}
