//! Attention among the cells of a picture as one kernel: the row of a query is never stored, its largest product and its sums are
//! carried along the keys (Milakov and Gimelshein, arXiv 1805.02867).

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{empty, plain};
use crate::kernels::by_parts;

/// Queries of a cube.
const QUERIES: usize = 16;
/// Units that divide the keys of each among them.
const SHARES: usize = 16;
/// Keys that are in shared memory at a time.
const KEYS: usize = 64;
/// Of these a unit's.
const OWN: usize = KEYS / SHARES;
/// Values of a vector.
const WIDE: usize = 4;
/// Values of a head at most: they stay in registers.
const HEAD: usize = 64;
/// Cells at most: beyond them tensor cores pay for the rows that they store.
const CELLS: usize = 2048;

/// One cube per head and `QUERIES` queries: `x` along the queries, `y` along the heads, `z` along the pictures.
#[cube(launch)]
fn attend_kernel<F: Float>(
    joined: &Tensor<F>,
    output: &mut Tensor<F>,
    scale: f32,
    #[comptime] wide: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (channels, cells) = (output.shape(1), output.shape(2) * output.shape(3));
    let picture = CUBE_POS_Z as usize;
    let head = CUBE_POS_Y as usize * comptime!(WIDE * wide);
    let queries = (picture * 3 * channels + head) * cells;
    let keys = queries + channels * cells;
    let values = keys + channels * cells;
    let unit = UNIT_POS as usize;
    let (share, lane) = (unit / QUERIES, unit % QUERIES);
    let query = CUBE_POS_X as usize * QUERIES + lane;

    let mut asked = Array::<Vector<f32, Const<4>>>::new(wide);
    let mut found = Array::<Vector<f32, Const<4>>>::new(wide);
    #[unroll]
    for k in 0..wide {
        let mut four = Vector::<f32, Const<4>>::empty();
        #[unroll]
        for j in 0..WIDE {
            let mut value = 0.0f32;
            if query < cells {
                value = f32::cast_from(joined[queries + (k * WIDE + j) * cells + query]) * scale;
            }
            four.insert(j, value);
        }
        asked[k] = four;
        found[k] = Vector::<f32, Const<4>>::new(0.0f32);
    }
    let mut largest = f32::new(-1e30);
    let mut total = 0.0f32;

    let mut shared_keys = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(KEYS * wide));
    let mut shared_values = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(KEYS * wide));
    let mut first = 0usize;
    while first < cells {
        sync_cube();
        let mut index = unit;
        while index < comptime!(KEYS * wide) {
            let (k, key) = (index / KEYS, first + index % KEYS);
            let mut of_key = Vector::<f32, Const<4>>::new(0.0f32);
            let mut of_value = Vector::<f32, Const<4>>::new(0.0f32);
            if key < cells {
                #[unroll]
                for j in 0..WIDE {
                    let at = (k * WIDE + j) * cells + key;
                    of_key.insert(j, f32::cast_from(joined[keys + at]));
                    of_value.insert(j, f32::cast_from(joined[values + at]));
                }
            }
            shared_keys[index % KEYS * wide + k] = of_key;
            shared_values[index % KEYS * wide + k] = of_value;
            index += comptime!(QUERIES * SHARES);
        }
        sync_cube();
        // All products of a block first: their powers do not wait for each other.
        let mut products = Array::<f32>::new(OWN);
        let mut above = largest;
        #[unroll]
        for step in 0..OWN {
            let key = share * OWN + step;
            let mut product = f32::new(-1e30);
            if first + key < cells {
                let mut four = Vector::<f32, Const<4>>::new(0.0f32);
                #[unroll]
                for k in 0..wide {
                    four += asked[k] * shared_keys[key * wide + k];
                }
                product = four.extract(0usize) + four.extract(1usize) + four.extract(2usize) + four.extract(3usize);
            }
            products[step] = product;
            // What is no number is not larger, and shows in the sums.
            if product > above {
                above = product;
            }
        }
        let fade = (largest - above).exp();
        total *= fade;
        let faded = Vector::<f32, Const<4>>::new(fade);
        #[unroll]
        for k in 0..wide {
            found[k] *= faded;
        }
        #[unroll]
        for step in 0..OWN {
            let weight = (products[step] - above).exp();
            total += weight;
            let weight = Vector::<f32, Const<4>>::new(weight);
            #[unroll]
            for k in 0..wide {
                found[k] += shared_values[(share * OWN + step) * wide + k] * weight;
            }
        }
        largest = above;
        first += KEYS;
    }

    // Shares are joined in pairs, until the first unit of a query has all.
    let mut tops = Shared::<[f32]>::new_slice(comptime!(SHARES * QUERIES / 2));
    let mut totals = Shared::<[f32]>::new_slice(comptime!(SHARES * QUERIES / 2));
    let mut sums = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(SHARES * QUERIES / 2 * wide));
    let mut half = comptime!(SHARES / 2).runtime();
    while half > 0 {
        sync_cube();
        if share >= half && share < 2 * half {
            let at = (share - half) * QUERIES + lane;
            tops[at] = largest;
            totals[at] = total;
            #[unroll]
            for k in 0..wide {
                sums[at * wide + k] = found[k];
            }
        }
        sync_cube();
        if share < half {
            let at = share * QUERIES + lane;
            let mut above = largest;
            if tops[at] > largest {
                above = tops[at];
            }
            let (own, other) = ((largest - above).exp(), (tops[at] - above).exp());
            total = total * own + totals[at] * other;
            let (own, other) = (Vector::<f32, Const<4>>::new(own), Vector::<f32, Const<4>>::new(other));
            #[unroll]
            for k in 0..wide {
                found[k] = found[k] * own + sums[at * wide + k] * other;
            }
            largest = above;
        }
        half /= 2;
    }
    if share == 0 && query < cells {
        #[unroll]
        for k in 0..wide {
            let four = found[k] / Vector::<f32, Const<4>>::new(total);
            #[unroll]
            for j in 0..WIDE {
                let at = (picture * channels + head + k * WIDE + j) * cells + query;
                output[at] = F::cast_from(four.extract(j));
            }
        }
    }
}

/// Queries, keys and values of all heads, `[b, 3 c, h, w]`, to `[b, c, h, w]`.
pub(super) fn attend(joined: CubeTensor, heads: usize) -> CubeTensor {
    let [batch, channels, height, width] = joined.shape().dims();
    let (channels, cells) = (channels / 3, height * width);
    let head = channels / heads;
    if head > HEAD || !head.is_multiple_of(WIDE) || cells > CELLS {
        return by_parts::<CubeBackend>(joined, heads);
    }
    let [joined] = plain([joined]);
    let output = empty(&joined, Shape::new([batch, channels, height, width]));
    attend_kernel::launch(
        &output.client,
        CubeCount::Static(cells.div_ceil(QUERIES) as u32, heads as u32, batch as u32),
        CubeDim::new_1d((QUERIES * SHARES) as u32),
        joined.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        1.0 / (head as f32).sqrt(),
        head / WIDE,
        dtype_to_storage_type(output.dtype),
    );
    output
}
