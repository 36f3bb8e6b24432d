//! What a window of more than a cell sees: convolutions over all channels, and filters of each channel alone.

use pulp::{Simd, WithSimd};

use super::super::{Epilogue, Window};
use super::{After, VECTORS, applied, dispatch, load, mul_add, store, sums, values};

/// A plane with zeros around it, as a window sees it. Columns that are `stride` apart lie side by side, one phase after the other,
/// so that every load is of neighbours; with room behind, so that the last vector may reach beyond the border.
struct Bordered {
    window: Window,
    /// Lines that the positions see.
    lines: usize,
    /// Values of a phase of a line.
    phase: usize,
}

impl Bordered {
    /// For so many rows and columns of positions.
    fn new<S: Simd>(window: Window, rows: usize, columns: usize) -> Self {
        let Window { kernel, stride, .. } = window;
        let phase = columns.next_multiple_of(VECTORS * S::F32_LANES) + kernel.div_ceil(stride);
        Self { window, lines: (rows - 1) * stride + kernel, phase }
    }

    fn line(&self) -> usize {
        self.window.stride * self.phase
    }

    fn len(&self) -> usize {
        self.lines * self.line()
    }

    /// Where what the first column of a row of positions sees begins.
    fn row(&self, row: usize) -> usize {
        row * self.window.stride * self.line()
    }

    /// Where, from there, the cells of so many channels' kernels are.
    fn places(&self, channels: usize) -> Vec<usize> {
        let Window { kernel, stride, .. } = self.window;
        let across: Vec<usize> = (0..kernel).map(|kx| kx % stride * self.phase + kx / stride).collect();
        let mut places = Vec::with_capacity(channels * kernel * kernel);
        for channel in 0..channels {
            for ky in 0..kernel {
                places.extend(across.iter().map(|across| channel * self.len() + ky * self.line() + across));
            }
        }
        places
    }

    /// Room for so many planes, with zeros where their borders are. Only planes and windows of one shape share it: borders are taken
    /// as the last of them left them.
    fn room<'a>(&self, padded: &'a mut Vec<f32>, planes: usize) -> &'a mut [f32] {
        if padded.len() != planes * self.len() {
            padded.clear();
            padded.resize(planes * self.len(), 0.0);
        }
        padded
    }

    /// The lines from `first` on, counted with the border.
    fn fill(&self, padded: &mut [f32], plane: &[f32], width: usize, first: usize) {
        let Window { stride, before, .. } = self.window;
        for offset in 0..stride {
            // The first place whose column lies on the plane, that column, and how many follow.
            let begin = before.saturating_sub(offset).div_ceil(stride);
            let column = begin * stride + offset - before;
            let count = width.saturating_sub(column).div_ceil(stride).min(self.phase - begin);
            let from = offset * self.phase + begin;
            for (row, line) in (first..).zip(padded.chunks_exact_mut(self.line())) {
                let target = &mut line[from..from + count];
                match row.checked_sub(before).and_then(|row| plane.get(row * width..(row + 1) * width)) {
                    None => target.fill(0.0),
                    Some(values) => take(target, &values[column.min(width)..], stride),
                }
            }
        }
    }
}

/// Every `stride`th of the values.
#[inline(always)]
fn take(target: &mut [f32], values: &[f32], stride: usize) {
    match stride {
        1 => target.copy_from_slice(&values[..target.len()]),
        2 => {
            let pairs = values.chunks_exact(2);
            if let ([last], Some(target)) = (pairs.remainder(), target.get_mut(values.len() / 2)) {
                *target = *last;
            }
            target.iter_mut().zip(pairs).for_each(|(target, pair)| *target = pair[0]);
        }
        _ => target.iter_mut().zip(values.iter().step_by(stride)).for_each(|(target, value)| *target = *value),
    }
}

/// Rows of the output of a convolution, all channels.
pub(in super::super) struct Convolve<'a> {
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
    /// Room for the input with its border, which only bands of one convolution share.
    pub padded: &'a mut Vec<f32>,
    /// What follows the sum.
    pub epilogue: Epilogue,
}

impl Convolve<'_> {
    /// Computes the rows.
    pub(in super::super) fn run(self) {
        dispatch(self);
    }
}

impl WithSimd for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weight, bias, input, size: (height, width), window, first, columns, output, padded, epilogue } =
            self;
        let rows = output.first().map_or(0, |rows| rows.len() / columns);
        let bordered = Bordered::new::<S>(window, rows, columns);
        let padded = bordered.room(padded, input.len() / (height * width));
        for (padded, plane) in padded.chunks_exact_mut(bordered.len()).zip(input.chunks_exact(height * width)) {
            bordered.fill(padded, plane, width, first * window.stride);
        }
        let places = bordered.places(input.len() / (height * width));
        for row in 0..rows {
            for from in (0..columns).step_by(VECTORS * S::F32_LANES) {
                let seen = &padded[bordered.row(row) + from..];
                let panel = |place: usize| values::<S>(&seen[places[place]..]);
                let end = columns.min(from + VECTORS * S::F32_LANES);
                let columns = row * columns + from..row * columns + end;
                sums(simd, weight, bias, panel, output, columns, After::epilogue(epilogue));
            }
        }
    }
}

/// One channel's plane filtered by its kernel.
pub(in super::super) struct Filter<'a> {
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
    pub(in super::super) fn run(self) {
        dispatch(self);
    }
}

impl WithSimd for Filter<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weight, bias, input, width, output, columns, window, padded, epilogue } = self;
        let rows = output.len() / columns;
        // With lines for the last rows that are worked on at a time.
        let bordered = Bordered::new::<S>(window, rows.next_multiple_of(8), columns);
        let padded = bordered.room(padded, 1);
        bordered.fill(padded, input, width, 0);
        let taps: Vec<(usize, f32)> = bordered.places(1).into_iter().zip(weight.iter().copied()).collect();
        let plane = Plane { padded, pitch: bordered.row(1), output, columns, bias, taps: &taps, epilogue };
        // Where a row is but a vector, twice as many rows at a time.
        if columns <= S::F32_LANES { plane.filter::<S, 8, 1>(simd) } else { plane.filter::<S, 4, 2>(simd) }
    }
}

/// A plane with its border, and what to make of it.
struct Plane<'a> {
    padded: &'a [f32],
    /// From what a row of positions sees to what the next one does.
    pitch: usize,
    output: &'a mut [f32],
    columns: usize,
    bias: f32,
    /// Where the cells of the kernel are, and their weights.
    taps: &'a [(usize, f32)],
    epilogue: Epilogue,
}

impl Plane<'_> {
    /// So many rows and vectors of each at a time: as many sums as hide how long one takes, sharing their weights.
    #[inline(always)]
    fn filter<S: Simd, const DOWN: usize, const ACROSS: usize>(self, simd: S) {
        let Self { padded, pitch, output, columns, bias, taps, epilogue } = self;
        let width = ACROSS * S::F32_LANES;
        for (band, output) in output.chunks_mut(DOWN * columns).enumerate() {
            for from in (0..columns).step_by(width) {
                let seen = &padded[band * DOWN * pitch + from..];
                let mut sums = [[simd.splat_f32s(bias); ACROSS]; DOWN];
                for (place, weight) in taps {
                    let (weight, seen) = (simd.splat_f32s(*weight), &seen[*place..]);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let values = &seen[row * pitch..][..width];
                        for (k, sum) in sums.iter_mut().enumerate() {
                            *sum = mul_add(simd, weight, load::<S>(&values[k * S::F32_LANES..]), *sum);
                        }
                    }
                }
                for sums in &mut sums {
                    *sums = applied(simd, *sums, epilogue);
                }
                for (output, sums) in output.chunks_exact_mut(columns).zip(sums) {
                    for (k, sum) in sums.into_iter().enumerate() {
                        store(simd, output.get_mut(from + k * S::F32_LANES..).unwrap_or_default(), sum);
                    }
                }
            }
        }
    }
}
