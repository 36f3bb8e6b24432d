//! Inner loops of the CPU kernels, compiled for every width of vectors and chosen at run time: the release is built for any
//! x86-64 or AArch64 processor, and loops that the compiler vectorises for all of those use a quarter of a modern one.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{Epilogue, Window};

/// Outputs that are summed side by side, and vectors of each: as many sums as 16 registers hold besides their operands.
const ROWS: usize = 6;
const VECTORS: usize = 2;

#[inline(always)]
fn applied<S: Simd>(simd: S, value: S::f32s, epilogue: Epilogue) -> S::f32s {
    // By comparisons, which a NaN comes through.
    let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
    let above = |value| simd.select_f32s(simd.less_than_f32s(value, zero), zero, value);
    match epilogue {
        Epilogue::None => value,
        Epilogue::Relu => above(value),
        Epilogue::Relu6 => {
            let value = above(value);
            simd.select_f32s(simd.less_than_f32s(six, value), six, value)
        }
        Epilogue::Silu => {
            let mut lanes = [0.0; 16];
            store(simd, &mut lanes, value);
            for lane in &mut lanes[..S::F32_LANES] {
                *lane /= 1.0 + (-*lane).exp();
            }
            load::<S>(&lanes)
        }
    }
}

/// So many values, whatever they are.
fn room(values: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if values.len() < count {
        values.resize(count, 0.0);
    }
    &mut values[..count]
}

/// The vector at the beginning of `values`.
#[inline(always)]
fn load<S: Simd>(values: &[f32]) -> S::f32s {
    S::as_simd_f32s(&values[..S::F32_LANES]).0[0]
}

#[inline(always)]
fn store<S: Simd>(simd: S, target: &mut [f32], value: S::f32s) {
    if target.len() >= S::F32_LANES {
        S::as_mut_simd_f32s(&mut target[..S::F32_LANES]).0[0] = value;
    } else {
        simd.partial_store_f32s(target, value);
    }
}

/// `output[o][n] = epilogue(bias[o] + sum over c of weight[o][c] input[c][n])` for some columns `n`.
pub(super) struct Mix<'a> {
    /// `[o, c]`
    pub weight: &'a [f32],
    /// `[o]`
    pub bias: &'a [f32],
    /// `[c, columns of the whole plane]`
    pub input: &'a [f32],
    /// Cells of the plane.
    pub plane: usize,
    /// First column.
    pub first: usize,
    /// These columns of every output.
    pub output: &'a mut [&'a mut [f32]],
    /// Room for the columns of the input.
    pub packed: &'a mut Vec<f32>,
    /// By what every channel is multiplied before, and what is added to it; empty: nothing.
    pub normed: &'a [(f32, f32)],
    /// What follows the sum.
    pub epilogue: Epilogue,
    /// `[o, cells of the plane]`, added after that; empty: nothing.
    pub added: &'a [f32],
}

/// What comes after a sum.
#[derive(Clone, Copy)]
struct After<'a> {
    epilogue: Epilogue,
    /// Added to the outputs, from the first of these columns on; rows lie a plane apart. Empty: nothing.
    added: &'a [f32],
    plane: usize,
}

impl<'a> After<'a> {
    fn epilogue(epilogue: Epilogue) -> Self {
        Self { epilogue, added: &[], plane: 0 }
    }

    /// The same for the outputs from `row` on.
    fn below(self, row: usize) -> Self {
        Self { added: self.added.get(row * self.plane..).unwrap_or_default(), ..self }
    }
}

impl Mix<'_> {
    /// Computes the columns.
    pub(super) fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Mix<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weight, bias, input, plane, first, output, packed, normed, epilogue, added } = self;
        let channels = input.len() / plane;
        let columns = output.first().map_or(0, |row| row.len());
        let width = VECTORS * S::F32_LANES;
        // Panels of a few columns, all channels of one after the other: rows of a plane lie so far apart that they push each
        // other out of the cache.
        let panels = columns.div_ceil(width);
        // What is left of others beyond the last column is in sums that nobody stores.
        let packed = room(packed, panels * channels * width);
        for (channel, row) in input.chunks_exact(plane).enumerate() {
            let factors = normed.get(channel);
            for (panel, values) in row[first..first + columns].chunks(width).enumerate() {
                let target = &mut packed[(panel * channels + channel) * width..][..values.len()];
                match factors {
                    Some((factor, shift)) => {
                        target.iter_mut().zip(values).for_each(|(target, value)| *target = value * factor + shift);
                    }
                    None => target.copy_from_slice(values),
                }
            }
        }
        let after = After { epilogue, added: added.get(first..).unwrap_or_default(), plane };
        sums(simd, weight, bias, packed, output, 0..columns, after);
    }
}

/// The sums of all outputs with packed panels, and what follows, into some columns of each.
#[inline(always)]
fn sums<S: Simd>(
    simd: S,
    weight: &[f32],
    bias: &[f32],
    packed: &[f32],
    output: &mut [&mut [f32]],
    columns: Range<usize>,
    after: After<'_>,
) {
    let channels = weight.len() / bias.len();
    for (block, output) in output.chunks_mut(ROWS).enumerate() {
        let (weight, bias) = (&weight[block * ROWS * channels..], &bias[block * ROWS..]);
        let (columns, after) = (columns.clone(), after.below(block * ROWS));
        match output.len() {
            ROWS => block_sums::<S, ROWS>(simd, weight, bias, packed, channels, output, columns, after),
            5 => block_sums::<S, 5>(simd, weight, bias, packed, channels, output, columns, after),
            4 => block_sums::<S, 4>(simd, weight, bias, packed, channels, output, columns, after),
            3 => block_sums::<S, 3>(simd, weight, bias, packed, channels, output, columns, after),
            2 => block_sums::<S, 2>(simd, weight, bias, packed, channels, output, columns, after),
            _ => block_sums::<S, 1>(simd, weight, bias, packed, channels, output, columns, after),
        }
    }
}

/// The sums of `N` rows of weights with a panel of columns.
#[inline(always)]
fn products<S: Simd, const N: usize>(
    simd: S,
    weight: &[f32],
    first: [f32; N],
    panel: &[f32],
    channels: usize,
) -> [[S::f32s; VECTORS]; N] {
    let weights: [&[f32]; N] = std::array::from_fn(|row| &weight[row * channels..][..channels]);
    let mut sums: [[S::f32s; VECTORS]; N] = std::array::from_fn(|row| [simd.splat_f32s(first[row]); VECTORS]);
    for (channel, values) in panel.chunks_exact(VECTORS * S::F32_LANES).enumerate() {
        let (values, _) = S::as_simd_f32s(values);
        let values: [S::f32s; VECTORS] = std::array::from_fn(|k| values[k]);
        for row in 0..N {
            let weight = simd.splat_f32s(weights[row][channel]);
            for k in 0..VECTORS {
                sums[row][k] = simd.mul_add_f32s(weight, values[k], sums[row][k]);
            }
        }
    }
    sums
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one inner loop, written once for every number of rows")]
fn block_sums<S: Simd, const N: usize>(
    simd: S,
    weight: &[f32],
    bias: &[f32],
    packed: &[f32],
    channels: usize,
    output: &mut [&mut [f32]],
    columns: Range<usize>,
    after: After<'_>,
) {
    let width = VECTORS * S::F32_LANES;
    let bias = std::array::from_fn(|row| bias[row]);
    for (panel, values) in packed.chunks_exact(channels * width).enumerate() {
        let sums = products::<S, N>(simd, weight, bias, values, channels);
        for (row, (output, sums)) in output.iter_mut().zip(sums).enumerate() {
            let output = &mut output[columns.clone()];
            for (k, sum) in sums.into_iter().enumerate() {
                let at = panel * width + k * S::F32_LANES;
                let target = output.get_mut(at..).unwrap_or_default();
                let mut value = applied(simd, sum, after.epilogue);
                if !after.added.is_empty() && !target.is_empty() {
                    let added = &after.added[row * after.plane + at..];
                    value = simd.add_f32s(value, simd.partial_load_f32s(&added[..target.len().min(S::F32_LANES)]));
                }
                store(simd, target, value);
            }
        }
    }
}

/// Rows of the output of a convolution, all channels.
pub(super) struct Convolve<'a> {
    /// `[o, c, k, k]`
    pub weight: &'a [f32],
    /// `[o]`
    pub bias: &'a [f32],
    /// `[c, height, width]`
    pub input: &'a [f32],
    /// Rows and columns of the input.
    pub size: (usize, usize),
    /// How the kernel moves.
    pub window: Window,
    /// First row of the output.
    pub first: usize,
    /// Columns of the output.
    pub columns: usize,
    /// These rows of every output.
    pub output: &'a mut [&'a mut [f32]],
    /// Room for what the kernel sees.
    pub packed: &'a mut Vec<f32>,
    /// What follows the sum.
    pub epilogue: Epilogue,
}

impl Convolve<'_> {
    /// Computes the rows.
    pub(super) fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weight, bias, input, size: (height, width), window, first, columns, output, packed, epilogue } =
            self;
        let Window { kernel, stride, before, .. } = window;
        let panel = VECTORS * S::F32_LANES;
        let values = weight.len() / bias.len();
        let rows = output.first().map_or(0, |rows| rows.len() / columns);
        for row in 0..rows {
            for from in (0..columns).step_by(panel) {
                let count = panel.min(columns - from);
                let packed = room(packed, values * panel);
                for (line, packed) in packed.chunks_exact_mut(panel).enumerate() {
                    let (channel, ky, kx) = (line / (kernel * kernel), line / kernel % kernel, line % kernel);
                    let Some(seen) = ((first + row) * stride + ky).checked_sub(before).filter(|y| *y < height) else {
                        packed.fill(0.0);
                        continue;
                    };
                    let seen = &input[(channel * height + seen) * width..][..width];
                    // Positions whose column lies on the input.
                    let begin = before.saturating_sub(kx).div_ceil(stride).clamp(from, from + count);
                    let end = (width + before).saturating_sub(kx).div_ceil(stride).clamp(begin, from + count);
                    packed[..begin - from].fill(0.0);
                    packed[end - from..].fill(0.0);
                    if begin == end {
                        continue;
                    }
                    let (packed, seen) = (&mut packed[begin - from..end - from], &seen[begin * stride + kx - before..]);
                    if stride == 1 {
                        packed.copy_from_slice(&seen[..end - begin]);
                    } else {
                        packed.iter_mut().zip(seen.iter().step_by(stride)).for_each(|(packed, seen)| *packed = *seen);
                    }
                }
                let at = row * columns + from;
                sums(simd, weight, bias, packed, output, at..at + count, After::epilogue(epilogue));
            }
        }
    }
}

/// `output[n] = min over m of sizes[m] - 2 found[n] rows[m]`: with the size of a row its square, the squared distance to the
/// nearest row, less the square of `found[n]`. Infinite if none is less.
pub(super) struct Nearest<'a> {
    /// `[n, c]`
    pub found: &'a [f32],
    /// `[m, c]`
    pub rows: &'a [f32],
    /// `[m]`
    pub sizes: &'a [f32],
    /// `[n]`
    pub output: &'a mut [f32],
    /// Room for what is found, channel by channel.
    pub packed: &'a mut Vec<f32>,
}

impl Nearest<'_> {
    /// Finds the nearest.
    pub(super) fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Nearest<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { found, rows, sizes, output, packed } = self;
        let (channels, width) = (rows.len() / sizes.len(), VECTORS * S::F32_LANES);
        let whole = sizes.len() / ROWS * ROWS;
        for (output, found) in output.chunks_mut(width).zip(found.chunks(width * channels)) {
            let packed = room(packed, width * channels);
            for (place, values) in found.chunks_exact(channels).enumerate() {
                for (line, value) in packed.chunks_exact_mut(width).zip(values) {
                    line[place] = *value;
                }
            }
            let mut least = [simd.splat_f32s(f32::INFINITY); VECTORS];
            for first in (0..whole).step_by(ROWS) {
                nearer::<S, ROWS>(simd, &rows[first * channels..], &sizes[first..], packed, channels, &mut least);
            }
            for first in whole..sizes.len() {
                nearer::<S, 1>(simd, &rows[first * channels..], &sizes[first..], packed, channels, &mut least);
            }
            for (k, least) in least.into_iter().enumerate() {
                store(simd, output.get_mut(k * S::F32_LANES..).unwrap_or_default(), least);
            }
        }
    }
}

#[inline(always)]
fn nearer<S: Simd, const N: usize>(
    simd: S,
    rows: &[f32],
    sizes: &[f32],
    packed: &[f32],
    channels: usize,
    least: &mut [S::f32s; VECTORS],
) {
    let sums = products::<S, N>(simd, rows, [0.0; N], packed, channels);
    let twice = simd.splat_f32s(-2.0);
    for (sums, size) in sums.iter().zip(sizes) {
        for (least, sum) in least.iter_mut().zip(sums) {
            let distance = simd.mul_add_f32s(twice, *sum, simd.splat_f32s(*size));
            *least = simd.select_f32s(simd.less_than_f32s(distance, *least), distance, *least);
        }
    }
}

/// One channel's plane filtered by its kernel.
pub(super) struct Filter<'a> {
    /// `[k, k]`
    pub weight: &'a [f32],
    /// Added to every cell.
    pub bias: f32,
    /// `[height, width]`
    pub input: &'a [f32],
    /// Columns of the input.
    pub width: usize,
    /// `[rows, columns]`
    pub output: &'a mut [f32],
    /// Columns of the output.
    pub columns: usize,
    /// How the kernel moves.
    pub window: Window,
    /// Room for the input with its border, which only planes and kernels of the same shape share.
    pub padded: &'a mut Vec<f32>,
    /// What follows the sum.
    pub epilogue: Epilogue,
}

impl Filter<'_> {
    /// Computes the plane.
    pub(super) fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Filter<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weight, bias, input, width, output, columns, window, padded, epilogue } = self;
        let Window { kernel, stride, before, .. } = window;
        let rows = output.len() / columns;
        // Columns that are `stride` apart lie side by side, one phase after the other, so that every load is of neighbours;
        // with room behind, so that the last vector may reach beyond the border.
        let phase = columns + kernel.div_ceil(stride) + VECTORS * S::F32_LANES;
        let line = stride * phase;
        // Planes of one shape leave each other's borders as they are.
        if padded.len() != (rows * stride + kernel) * line {
            padded.clear();
            padded.resize((rows * stride + kernel) * line, 0.0);
        }
        for (row, values) in input.chunks_exact(width).enumerate() {
            let Some(line) = padded.chunks_exact_mut(line).nth(row + before) else { break };
            if stride == 1 {
                let count = width.min(phase - before);
                line[before..][..count].copy_from_slice(&values[..count]);
            } else {
                for (column, value) in values.iter().enumerate() {
                    let column = column + before;
                    if column / stride < phase {
                        line[column % stride * phase + column / stride] = *value;
                    }
                }
            }
        }
        let place = |(tap, weight): (usize, &f32)| {
            let (ky, kx) = (tap / kernel, tap % kernel);
            (ky * line + kx % stride * phase + kx / stride, *weight)
        };
        let taps: Vec<(usize, f32)> = weight.iter().enumerate().map(place).collect();
        for (row, output) in output.chunks_exact_mut(columns).enumerate() {
            let lines = &padded[row * stride * line..];
            let mut at = 0;
            while at < columns {
                let mut sums = [simd.splat_f32s(bias); VECTORS];
                for (place, weight) in &taps {
                    let values = &lines[place + at..][..VECTORS * S::F32_LANES];
                    let weight = simd.splat_f32s(*weight);
                    for (k, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.mul_add_f32s(weight, load::<S>(&values[k * S::F32_LANES..]), *sum);
                    }
                }
                for (k, sum) in sums.into_iter().enumerate() {
                    let target = output.get_mut(at + k * S::F32_LANES..).unwrap_or_default();
                    store(simd, target, applied(simd, sum, epilogue));
                }
                at += VECTORS * S::F32_LANES;
            }
        }
    }
}
