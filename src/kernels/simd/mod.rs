//! Inner loops of the CPU kernels, compiled for every width of vectors and chosen at run time: the release is built for any
//! x86-64 or AArch64 processor, and loops that the compiler vectorises for all of those use a quarter of a modern one.

mod attend;
mod windows;

use std::ops::Range;

use pulp::{Arch, Scalar128b, Simd, WithSimd};

pub(super) use self::attend::Attend;
pub(super) use self::windows::{Convolve, Filter};
use super::Epilogue;

/// Outputs that are summed side by side, and vectors of each: as many sums as 16 registers hold besides their operands.
const ROWS: usize = 6;
const VECTORS: usize = 2;
/// Values of the widest vector.
const WIDEST: usize = 16;

/// `a b + c`, in one rounding where the processor has that. x86-64 has it from AVX2 on; below, as on Atoms, it is a function call for
/// every value, and products take forty times as long.
#[inline(always)]
fn mul_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    if cfg!(target_arch = "x86_64") && S::F32_LANES <= 4 {
        simd.add_f32s(simd.mul_f32s(a, b), c)
    } else {
        simd.mul_add_f32s(a, b, c)
    }
}

/// Runs the kernel with the widest vectors that this processor has; every one has four values, which the compiler finds in loops.
fn dispatch<K: WithSimd>(kernel: K) -> K::Output {
    match Arch::new() {
        Arch::Scalar => kernel.with_simd(Scalar128b),
        arch => arch.dispatch(kernel),
    }
}

/// What follows each sum of a row. By comparisons, which a NaN comes through.
///
/// A row at a time and in loops: with the whole block of sums the compiler keeps them in memory while they grow (up to 1.7 times the
/// time), and a closure that an array's `map` calls is compiled for any processor (up to seven times). `std::array::from_fn` is such a
/// call, too.
#[inline(always)]
fn applied<S: Simd, const K: usize>(simd: S, mut sums: [S::f32s; K], epilogue: Epilogue) -> [S::f32s; K] {
    let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
    match epilogue {
        Epilogue::None => {}
        Epilogue::Relu => {
            for sum in &mut sums {
                *sum = simd.select_f32s(simd.less_than_f32s(*sum, zero), zero, *sum);
            }
        }
        Epilogue::Relu6 => {
            for sum in &mut sums {
                let above = simd.select_f32s(simd.less_than_f32s(*sum, zero), zero, *sum);
                *sum = simd.select_f32s(simd.less_than_f32s(six, above), six, above);
            }
        }
        Epilogue::Silu => {
            for sum in &mut sums {
                let mut lanes = [0.0; WIDEST];
                store(simd, &mut lanes, *sum);
                for lane in &mut lanes[..S::F32_LANES] {
                    *lane /= 1.0 + exp(-*lane);
                }
                *sum = load::<S>(&lanes);
            }
        }
    }
    sums
}

/// The exponential, to 2e-7 of itself, of what lies between -87 and 88; beyond, that of these. The compiler finds vectors for its steps;
/// the library's is a call for every value. A power of two, and the polynomial of Cephes' `expf` for what is left; a NaN stays one.
/// SiLU with it is off below -1e30 alone.
#[inline(always)]
fn exp(value: f32) -> f32 {
    // Added to a number, this leaves the nearest integer in its last bits.
    const ROUND: f32 = 12_582_912.0;
    let value = if value < -87.0 { -87.0 } else { value };
    let value = if value > 88.0 { 88.0 } else { value };
    let shifted = value * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    // The logarithm of two in two parts, of which the first is exact times any power.
    let rest = value - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4;
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        sum = sum * rest + factor;
    }
    sum * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()))
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

/// The same, with zeros where there are fewer values.
#[inline(always)]
fn load_some<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    if values.len() >= S::F32_LANES { load::<S>(values) } else { simd.partial_load_f32s(values) }
}

#[inline(always)]
fn store<S: Simd>(simd: S, target: &mut [f32], value: S::f32s) {
    if target.len() >= S::F32_LANES {
        S::as_mut_simd_f32s(&mut target[..S::F32_LANES]).0[0] = value;
    } else {
        simd.partial_store_f32s(target, value);
    }
}

/// `output[o][n] = epilogue(bias[o] + sum over c of weight[o][c] input[c][n])` for some columns `n`, and the same once more of that,
/// if a second layer follows.
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
    /// Weight `[p, o]` and bias `[p]` of a layer behind the epilogue, whose outputs are `output`; empty: none.
    pub second: (&'a [f32], &'a [f32]),
    /// Room for a few columns of the input, and of what the first of two layers makes of them.
    pub packed: &'a mut Vec<f32>,
    /// By what every channel is multiplied before, and what is added to it; empty: nothing.
    pub normed: &'a [(f32, f32)],
    /// What follows the sum.
    pub epilogue: Epilogue,
    /// `[o, cells of the plane]`, or `[p, cells of the plane]`, added at last; empty: nothing.
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
        dispatch(self);
    }
}

impl WithSimd for Mix<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weight, bias, input, plane, first, output, second, packed, normed, epilogue, added } = self;
        let channels = input.len() / plane;
        let columns = output.first().map_or(0, |row| row.len());
        let width = VECTORS * S::F32_LANES;
        // A panel of a few columns, all channels of it one after the other: rows of a plane lie so far apart that they push each
        // other out of the cache. What is between two layers stays in it.
        let inner = if second.1.is_empty() { 0 } else { bias.len() };
        let (packed, between) = room(packed, (channels + inner) * width).split_at_mut(channels * width);
        let mut between: Vec<&mut [f32]> = between.chunks_exact_mut(width).collect();
        for from in (0..columns).step_by(width) {
            let count = width.min(columns - from);
            let rows = input.chunks_exact(plane).map(|row| &row[first + from..][..count]);
            for (channel, (line, values)) in packed.chunks_exact_mut(width).zip(rows).enumerate() {
                gather(simd, line, values, normed.get(channel));
            }
            let (added, columns) = (added.get(first + from..).unwrap_or_default(), from..from + count);
            let panel = |line: usize| values::<S>(&packed[line * width..]);
            if between.is_empty() {
                sums(simd, weight, bias, panel, output, columns, After { epilogue, added, plane });
                continue;
            }
            sums(simd, weight, bias, panel, &mut between, 0..width, After::epilogue(epilogue));
            let panel = |line: usize| values::<S>(&*between[line]);
            sums(simd, second.0, second.1, panel, output, columns, After { epilogue: Epilogue::None, added, plane });
        }
    }
}

/// A row of a panel; what is beyond its last column is a number that nobody stores the sums of.
#[inline(always)]
fn gather<S: Simd>(simd: S, line: &mut [f32], values: &[f32], factors: Option<&(f32, f32)>) {
    for (k, target) in S::as_mut_simd_f32s(line).0.iter_mut().enumerate() {
        let value = load_some(simd, values.get(k * S::F32_LANES..).unwrap_or_default());
        *target = match factors {
            None => value,
            Some((factor, shift)) => mul_add(simd, value, simd.splat_f32s(*factor), simd.splat_f32s(*shift)),
        };
    }
}

/// The vectors at the beginning of `values`.
#[inline(always)]
fn values<S: Simd>(values: &[f32]) -> [S::f32s; VECTORS] {
    let (values, _) = S::as_simd_f32s(&values[..VECTORS * S::F32_LANES]);
    let mut found = [values[0]; VECTORS];
    found.copy_from_slice(values);
    found
}

/// The sums of all outputs over what `panel` has at each place of a row of weights, and what follows, into some columns of each.
#[inline(always)]
fn sums<S: Simd>(
    simd: S,
    weight: &[f32],
    bias: &[f32],
    panel: impl Fn(usize) -> [S::f32s; VECTORS] + Copy,
    output: &mut [&mut [f32]],
    columns: Range<usize>,
    after: After<'_>,
) {
    let places = weight.len() / bias.len();
    for (block, output) in output.chunks_mut(ROWS).enumerate() {
        let (weight, bias) = (&weight[block * ROWS * places..], &bias[block * ROWS..]);
        let (columns, after) = (columns.clone(), after.below(block * ROWS));
        match output.len() {
            ROWS => block_sums::<S, ROWS>(simd, weight, bias, panel, output, columns, after, places),
            5 => block_sums::<S, 5>(simd, weight, bias, panel, output, columns, after, places),
            4 => block_sums::<S, 4>(simd, weight, bias, panel, output, columns, after, places),
            3 => block_sums::<S, 3>(simd, weight, bias, panel, output, columns, after, places),
            2 => block_sums::<S, 2>(simd, weight, bias, panel, output, columns, after, places),
            _ => block_sums::<S, 1>(simd, weight, bias, panel, output, columns, after, places),
        }
    }
}

/// The sums of `N` rows of weights over a panel.
#[inline(always)]
fn products<S: Simd, const N: usize>(
    simd: S,
    weight: &[f32],
    first: [f32; N],
    panel: impl Fn(usize) -> [S::f32s; VECTORS],
    places: usize,
) -> [[S::f32s; VECTORS]; N] {
    let mut weights = [&weight[..0]; N];
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; N];
    for row in 0..N {
        weights[row] = &weight[row * places..][..places];
        sums[row] = [simd.splat_f32s(first[row]); VECTORS];
    }
    for (place, values) in (0..places).map(panel).enumerate() {
        for row in 0..N {
            let weight = simd.splat_f32s(weights[row][place]);
            for k in 0..VECTORS {
                sums[row][k] = mul_add(simd, weight, values[k], sums[row][k]);
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
    panel: impl Fn(usize) -> [S::f32s; VECTORS],
    output: &mut [&mut [f32]],
    columns: Range<usize>,
    after: After<'_>,
    places: usize,
) {
    let mut first = [0.0; N];
    first.copy_from_slice(&bias[..N]);
    let sums = products::<S, N>(simd, weight, first, panel, places);
    let whole = columns.len() == VECTORS * S::F32_LANES;
    for (row, (output, sums)) in output.iter_mut().zip(sums).enumerate() {
        let output = &mut output[columns.clone()];
        let mut sums = applied(simd, sums, after.epilogue);
        if !after.added.is_empty() {
            let added = &after.added[row * after.plane..][..columns.len()];
            for (k, sum) in sums.iter_mut().enumerate() {
                *sum = simd.add_f32s(*sum, load_some(simd, added.get(k * S::F32_LANES..).unwrap_or_default()));
            }
        }
        if whole {
            S::as_mut_simd_f32s(output).0.copy_from_slice(&sums);
            continue;
        }
        for (k, sum) in sums.into_iter().enumerate() {
            store(simd, output.get_mut(k * S::F32_LANES..).unwrap_or_default(), sum);
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
        dispatch(self);
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
    let width = VECTORS * S::F32_LANES;
    let sums = products::<S, N>(simd, rows, [0.0; N], |place| values::<S>(&packed[place * width..]), channels);
    let twice = simd.splat_f32s(-2.0);
    for (sums, size) in sums.iter().zip(sizes) {
        for (least, sum) in least.iter_mut().zip(sums) {
            let distance = mul_add(simd, twice, *sum, simd.splat_f32s(*size));
            *least = simd.select_f32s(simd.less_than_f32s(distance, *least), distance, *least);
        }
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Scalar, Scalar256b};

    use super::super::Window;
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * 0.7 + count as f32).sin()).collect()
    }

    /// With vectors of so many values; of more than those of NEON and AVX, what this machine has.
    fn on<K: WithSimd<Output = ()>>(width: usize, kernel: K) {
        match width {
            1 => kernel.with_simd(Scalar),
            4 => kernel.with_simd(Scalar128b),
            8 => kernel.with_simd(Scalar256b),
            _ => dispatch(kernel),
        }
    }

    fn all_widths_agree(count: usize, run: impl Fn(usize, &mut [f32])) {
        let of = |width| {
            let mut output = vec![0.0; count];
            run(width, &mut output);
            output
        };
        let expected = of(1);
        assert!(expected.iter().any(|value| *value != 0.0));
        for width in [4, 8, 16] {
            let found = of(width);
            let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{width}: {apart}");
        }
    }

    #[test]
    fn the_exponential_is_that_of_the_library() {
        for step in -8_700_000..=8_800_000 {
            let value = step as f32 * 1e-5;
            let (found, expected) = (f64::from(exp(value)), f64::from(value).exp());
            assert!((found / expected - 1.0).abs() < 2e-7, "{value}: {found} is not {expected}");
        }
        assert_eq!((exp(0.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, exp(-87.0), exp(-87.0)));
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn attention_is_the_same_whatever_the_width_of_vectors() {
        // More cells than fill the last vector, and another number of keys.
        let (channels, plane, first, count) = (3, 83, 40, 13);
        let (queries, keys, seen) = (values(channels * plane), values(channels * count), values(channels * count + 1));
        all_widths_agree(channels * plane, |width, output| {
            let mut output: Vec<&mut [f32]> = output.chunks_mut(plane).map(|row| &mut row[first..]).collect();
            let (queries, keys, packed) = (&queries[..], &keys[..], &mut Vec::new());
            on(width, Attend { queries, keys, values: &seen[1..], first, output: &mut output, packed });
        });
    }

    #[test]
    fn the_same_whatever_the_width_of_vectors() {
        let (epilogue, plane) = (Epilogue::Silu, 83);
        let (input, weight, bias) = (values(5 * plane), values(13 * 5), values(13));
        let (second, second_bias, added) = (values(3 * 13), values(3), values(13 * plane));
        let normed = [(0.5, 0.1), (2.0, -0.3), (1.0, 0.0), (0.2, 0.2), (-1.0, 0.4)];
        for (outputs, second) in [(13, (&[][..], &[][..])), (3, (&second[..], &second_bias[..]))] {
            all_widths_agree(outputs * plane, |width, output| {
                let output: &mut Vec<&mut [f32]> = &mut output.chunks_mut(plane).map(|row| &mut row[2..]).collect();
                let (packed, weight, bias) = (&mut Vec::new(), &weight[..], &bias[..]);
                let (input, normed, added, first) = (&input[..], &normed[..], &added[..], 2);
                on(width, Mix { weight, bias, input, plane, first, output, second, packed, normed, epilogue, added });
            });
        }
        let (found, rows, sizes) = (values(41 * 5), values(15 * 5), values(15));
        all_widths_agree(41, |width, output| {
            let (found, rows, sizes, packed) = (&found[..], &rows[..], &sizes[..], &mut Vec::new());
            on(width, Nearest { found, rows, sizes, output, packed });
        });
        for (kernel, stride, before, after) in [(3, 1, 1, 1), (5, 2, 1, 2), (3, 3, 0, 1)] {
            let window = Window { kernel, stride, before, after };
            for (height, width) in [(9, 7), (21, 15), (8, 80)] {
                let (lines, columns) = (window.positions(height), window.positions(width));
                let (taps, input) = (values(7 * 2 * kernel * kernel), values(2 * height * width));
                all_widths_agree(lines * columns, |lanes, output| {
                    let (weight, input, padded) = (&taps[..kernel * kernel], &input[..height * width], &mut Vec::new());
                    on(lanes, Filter { weight, bias: 0.5, input, width, output, columns, window, padded, epilogue });
                });
                all_widths_agree(7 * lines * columns, |lanes, output| {
                    let output: &mut Vec<&mut [f32]> = &mut output.chunks_mut(lines * columns).collect();
                    let (weight, bias, input) = (&taps[..], &bias[..7], &input[..]);
                    let (size, first, padded) = ((height, width), 0, &mut Vec::new());
                    let of = Convolve { weight, bias, input, size, window, first, columns, output, padded, epilogue };
                    on(lanes, of);
                });
            }
        }
    }
}
