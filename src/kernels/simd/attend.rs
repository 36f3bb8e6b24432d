//! Attention: the softmax of products of queries and keys, times the values.

use pulp::{Simd, WithSimd};

use super::super::Epilogue;
use super::{After, VECTORS, WIDEST, dispatch, exp, gather, room, sums, values};

/// What some cells of a picture see, one head.
pub(in super::super) struct Attend<'a> {
    /// `[c, cells of the whole plane]`
    pub queries: &'a [f32],
    /// `[c, n]`
    pub keys: &'a [f32],
    /// `[c, n]`
    pub values: &'a [f32],
    /// First column.
    pub first: usize,
    /// These columns of every output, `c` of them, at least one.
    pub output: &'a mut [&'a mut [f32]],
    /// Room for what is between.
    pub packed: &'a mut Vec<f32>,
}

impl Attend<'_> {
    /// Computes the columns.
    pub(in super::super) fn run(self) {
        dispatch(self);
    }
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { queries, keys, values: seen, first, output, packed } = self;
        let (channels, columns) = (output.len(), output[0].len());
        let (plane, count) = (queries.len() / channels, keys.len() / channels);
        let width = VECTORS * S::F32_LANES;
        let packed = room(packed, (channels + count) * width + count * channels + count.max(channels));
        let (packed, rest) = packed.split_at_mut(channels * width);
        let (products, rest) = rest.split_at_mut(count * width);
        let (turned, no_bias) = rest.split_at_mut(count * channels);
        no_bias.fill(0.0);
        let scale = 1.0 / (channels as f32).sqrt();
        for (channel, keys) in keys.chunks_exact(count).enumerate() {
            for (turned, key) in turned.chunks_exact_mut(channels).zip(keys) {
                turned[channel] = key * scale;
            }
        }
        let mut products: Vec<&mut [f32]> = products.chunks_exact_mut(width).collect();
        let after = After::epilogue(Epilogue::None);
        for from in (0..columns).step_by(width) {
            let cells = width.min(columns - from);
            for (line, row) in packed.chunks_exact_mut(width).zip(queries.chunks_exact(plane)) {
                gather(simd, line, &row[first + from..][..cells], None);
            }
            let panel = |line: usize| values::<S>(&packed[line * width..]);
            sums(simd, turned, &no_bias[..count], panel, &mut products, 0..width, after);
            let mut shares = [0.0; WIDEST * VECTORS];
            exponentials(&mut products, &mut shares[..width]);
            let panel = |line: usize| values::<S>(&*products[line]);
            sums(simd, seen, &no_bias[..channels], panel, output, from..from + cells, after);
            for output in output.iter_mut() {
                for (value, share) in output[from..from + cells].iter_mut().zip(&shares) {
                    *value *= share;
                }
            }
        }
    }
}

/// Every column's products become their exponentials, of which the largest is 1. Its share is what they are to be multiplied by, so that
/// their sum is 1. A NaN stays one.
#[inline(always)]
fn exponentials(products: &mut [&mut [f32]], shares: &mut [f32]) {
    let mut most = [f32::NEG_INFINITY; WIDEST * VECTORS];
    shares.fill(0.0);
    for row in products.iter() {
        for (most, product) in most.iter_mut().zip(&**row) {
            *most = if *most < *product { *product } else { *most };
        }
    }
    for row in products {
        for ((product, most), sum) in row.iter_mut().zip(&most).zip(&mut *shares) {
            *product = exp(*product - most);
            *sum += *product;
        }
    }
    for share in shares {
        *share = 1.0 / *share;
    }
}
