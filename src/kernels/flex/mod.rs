//! The operations on the CPU: how they are divided into tasks. The inner loops of sums are in `simd`; the others are plain
//! loops over rows, which the compiler vectorises for the processor that `Arch` finds.

mod gradients;

use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{DType, Flex, FloatDType, TensorData, TensorMetadata};
use burn::tensor::Shape;
use pulp::Arch;
use rayon::prelude::*;

use super::simd::{Attend, Convolve, Filter, Mix, Nearest};
use super::{Epilogue, Kernels, Norm, Window};

/// Sums that are carried side by side, for the compiler to keep in vector registers.
const LANES: usize = 16;

/// Cells that a thread takes at a time of those that attend: of every head it turns the keys once.
const COLUMNS: usize = 256;

/// Products below which a second thread costs more than it gains.
const SMALL: usize = 1 << 20;

/// Values that a thread takes at least of what is moved, scaled or filtered.
const VALUES: usize = 1 << 13;

impl Kernels for Flex {
    fn depthwise(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        Self::depthwise_with(input, weight, bias, window, Epilogue::None)
    }

    fn depthwise_with(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        let (dtype, shape) = (input.dtype(), window.filtered(&input.shape()));
        let (output, _) = filtered(input, weight, bias, window, epilogue, |_| ());
        tensor(output, shape, dtype)
    }

    fn group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let (dtype, shape) = (input.dtype(), input.shape());
        let [_, _, height, width] = shape.dims();
        let (input, plane) = (Plain::new(input), height * width);
        let moments = moments_of_planes(&input, plane);
        let normed = norm_factors(&moments, plane, [gamma, beta], groups, epsilon);
        let mut output = zeros(input.values().len());
        let planes = output.par_chunks_mut(plane).zip(input.values().par_chunks(plane)).zip(&normed);
        planes.with_min_len(VALUES.div_ceil(plane)).for_each(|((output, input), (factor, shift))| {
            Arch::new().dispatch(|| {
                for (output, input) in output.iter_mut().zip(input) {
                    *output = input * factor + shift;
                }
            });
        });
        tensor(output, shape, dtype)
    }

    fn pointwise(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        let (dtype, shape) = (input.dtype(), input.shape());
        mixed(Plain::new(input).values(), &shape, dtype, &[], [weight, bias], None, (epilogue, &[]))
    }

    fn pointwise_onto(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        added: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (dtype, shape) = (input.dtype(), input.shape());
        let added = Plain::new(added);
        let after = (Epilogue::None, added.values());
        mixed(Plain::new(input).values(), &shape, dtype, &[], [weight, bias], None, after)
    }

    fn normed_pointwise(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let (dtype, shape) = (input.dtype(), input.shape());
        let [_, _, height, width] = shape.dims();
        let (input, plane) = (Plain::new(input), height * width);
        let moments = moments_of_planes(&input, plane);
        let normed = norm_factors(&moments, plane, [gamma, beta], norm.groups, norm.epsilon);
        mixed(input.values(), &shape, dtype, &normed, [weight, bias], None, (norm.epilogue, &[]))
    }

    fn edge_block(
        input: FloatTensor<Self>,
        filter: FloatTensor<Self>,
        filter_bias: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        second: FloatTensor<Self>,
        second_bias: FloatTensor<Self>,
        added: FloatTensor<Self>,
        window: Window,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let (dtype, shape) = (input.dtype(), window.filtered(&input.shape()));
        let [_, _, height, width] = shape.dims();
        let (behind, planes) = filtered(input, filter, filter_bias, window, Epilogue::None, plane_moments);
        let normed = norm_factors(&planes, height * width, [gamma, beta], norm.groups, norm.epsilon);
        let (added, second) = (Plain::new(added), Some([second, second_bias]));
        mixed(&behind, &shape, dtype, &normed, [weight, bias], second, (norm.epilogue, added.values()))
    }

    fn attend(joined: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        let (dtype, [batch, channels, height, width]) = (joined.dtype(), joined.shape().dims());
        let (channels, cells, joined) = (channels / 3, height * width, Plain::new(joined));
        let pictures = joined.values().chunks_exact(3 * channels * cells);
        let parts = pictures.map(|picture| {
            let (queries, rest) = picture.split_at(channels * cells);
            let (keys, values) = rest.split_at(channels * cells);
            [queries, keys, values]
        });
        attention(parts, heads, dtype, Shape::new([batch, channels, height, width]))
    }

    fn attend_to(queries: FloatTensor<Self>, tokens: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        let (dtype, shape) = (queries.dtype(), queries.shape());
        let (queries, tokens) = (Plain::new(queries), Plain::new(tokens));
        let (keys, values) = tokens.values().split_at(tokens.values().len() / 2);
        let pictures = queries.values().chunks_exact(shape[1] * shape[2] * shape[3]);
        attention(pictures.map(|queries| [queries, keys, values]), heads, dtype, shape)
    }

    fn convolve(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, height, width] = input.shape().dims();
        let (outputs, size) = (weight.shape()[0], (height, width));
        let [_, _, rows, columns] = window.filtered(&input.shape()).dims();
        let (input, weight, bias) = (Plain::new(input), Plain::new(weight), Plain::new(bias));
        let (weight, bias) = (weight.values(), bias.values());
        let tall = match weight.len() * rows * columns {
            ..SMALL => rows,
            _ => rows.div_ceil(4 * rayon::current_num_threads()),
        };
        let mut output = zeros(batch * outputs * rows * columns);
        let pictures =
            output.chunks_mut(outputs * rows * columns).zip(input.values().chunks(channels * height * width));
        for (output, input) in pictures {
            let parts = bands(output, rows * columns, tall * columns);
            parts.into_par_iter().enumerate().for_each_init(Vec::new, |padded, (part, mut output)| {
                let (first, output) = (part * tall, &mut output[..]);
                Convolve { weight, bias, input, size, window, first, columns, output, padded, epilogue }.run();
            });
        }
        tensor(output, Shape::new([batch, outputs, rows, columns]), dtype)
    }

    fn join(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = first.dtype();
        let [batch, firsts, height, width] = first.shape().dims();
        let channels = firsts + second.shape()[1];
        let (first, second, plane) = (Plain::new(first), Plain::new(second), height * width);
        let mut output = zeros(batch * channels * plane);
        let planes = output.par_chunks_mut(plane).with_min_len(VALUES.div_ceil(plane));
        planes.enumerate().for_each(|(index, output)| {
            let (picture, channel) = (index / channels, index % channels);
            let (from, place) = match channel.checked_sub(firsts) {
                None => (first.values(), picture * firsts + channel),
                Some(channel) => (second.values(), picture * (channels - firsts) + channel),
            };
            output.copy_from_slice(&from[place * plane..][..plane]);
        });
        tensor(output, Shape::new([batch, channels, height, width]), dtype)
    }

    fn resize(input: FloatTensor<Self>, height: usize, width: usize, align_corners: bool) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, rows, columns] = input.shape().dims();
        let input = Plain::new(input);
        // The two cells that a position lies between, and how far it is from the first.
        let places = |cells: usize, positions: usize| -> Vec<(usize, usize, f32)> {
            let (apart, first) = match align_corners {
                true if positions > 1 => ((cells - 1) as f64 / (positions - 1) as f64, 0.0),
                true => (0.0, 0.0),
                false => (cells as f64 / positions as f64, 0.5 * (cells as f64 / positions as f64 - 1.0)),
            };
            let place = |position: usize| {
                let exact = (first + position as f64 * apart).max(0.0);
                let low = (exact as usize).min(cells - 1);
                (low, (low + 1).min(cells - 1), (exact - low as f64) as f32)
            };
            (0..positions).map(place).collect()
        };
        let (down, across) = (places(rows, height), places(columns, width));
        let mut output = zeros(batch * channels * height * width);
        let planes = output.chunks_mut(height * width).zip(input.values().chunks(rows * columns));
        for (output, input) in planes {
            output.par_chunks_mut(width).zip(&down).with_min_len(VALUES.div_ceil(width)).for_each_init(
                || vec![0.0; columns],
                |line, (output, (low, high, part))| {
                    let (low, high) = (&input[low * columns..][..columns], &input[high * columns..][..columns]);
                    for (line, (low, high)) in line.iter_mut().zip(low.iter().zip(high)) {
                        *line = low + (high - low) * part;
                    }
                    for (output, (low, high, part)) in output.iter_mut().zip(&across) {
                        *output = line[*low] + (line[*high] - line[*low]) * part;
                    }
                },
            );
        }
        tensor(output, Shape::new([batch, channels, height, width]), dtype)
    }

    fn nearest(found: FloatTensor<Self>, rows: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = found.dtype();
        let [count, channels] = found.shape().dims();
        let (found, rows) = (Plain::new(found), Plain::new(rows));
        let square = |row: &[f32]| total(row, row, |a, b| a * b);
        let sizes: Vec<f32> = rows.values().chunks(channels).map(square).collect();
        let mut output = zeros(count);
        let parts = output.par_chunks_mut(4 * LANES).zip(found.values().par_chunks(4 * LANES * channels));
        parts.for_each_init(Vec::new, |packed, (output, found)| {
            Nearest { found, rows: rows.values(), sizes: &sizes, output, packed }.run();
            for (least, row) in output.iter_mut().zip(found.chunks(channels)) {
                // By a comparison, which a NaN comes through.
                let squared = *least + square(row);
                *least = if squared < 0.0 { 0.0 } else { squared };
            }
        });
        tensor(output, Shape::new([count, 1]), dtype)
    }

    fn space_to_depth(input: FloatTensor<Self>, factor: usize) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, height, width] = input.shape().dims();
        let (rows, columns) = (height / factor, width / factor);
        let input = Plain::new(input);
        let mut output = zeros(input.values().len());
        // A block of planes per plane of the input, one for each place in a square.
        let planes = output.par_chunks_mut(height * width).zip(input.values().par_chunks(height * width));
        planes.with_min_len(VALUES.div_ceil(height * width)).for_each(|(output, input)| {
            for (place, output) in output.chunks_mut(rows * columns).enumerate() {
                let lines = input.chunks(width).skip(place / factor).step_by(factor);
                for (output, input) in output.chunks_mut(columns).zip(lines) {
                    let input = input[place % factor..].iter().step_by(factor);
                    output.iter_mut().zip(input).for_each(|(output, input)| *output = *input);
                }
            }
        });
        tensor(output, Shape::new([batch, channels * factor * factor, rows, columns]), dtype)
    }

    fn depth_to_space(input: FloatTensor<Self>, factor: usize) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, rows, columns] = input.shape().dims();
        let (height, width) = (rows * factor, columns * factor);
        let input = Plain::new(input);
        let mut output = zeros(input.values().len());
        let planes = output.par_chunks_mut(height * width).zip(input.values().par_chunks(height * width));
        planes.with_min_len(VALUES.div_ceil(height * width)).for_each(|(output, input)| {
            for (place, input) in input.chunks(rows * columns).enumerate() {
                let lines = output.chunks_mut(width).skip(place / factor).step_by(factor);
                for (output, input) in lines.zip(input.chunks(columns)) {
                    let output = output[place % factor..].iter_mut().step_by(factor);
                    output.zip(input).for_each(|(output, input)| *output = *input);
                }
            }
        });
        tensor(output, Shape::new([batch, channels / (factor * factor), height, width]), dtype)
    }

    fn double(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, height, width] = input.shape().dims();
        let input = Plain::new(input);
        let mut output = zeros(4 * input.values().len());
        let lines = output.par_chunks_mut(4 * width).zip(input.values().par_chunks(width));
        lines.with_min_len(VALUES.div_ceil(width)).for_each(|(output, input)| {
            let (first, second) = output.split_at_mut(2 * width);
            Arch::new().dispatch(|| {
                for (pair, value) in first.chunks_exact_mut(2).zip(input) {
                    pair.fill(*value);
                }
            });
            second.copy_from_slice(first);
        });
        tensor(output, Shape::new([batch, channels, 2 * height, 2 * width]), dtype)
    }
}

/// So many zeros, on all threads where they are many: one that fills a large output leaves the others waiting.
fn zeros(count: usize) -> Vec<f32> {
    if count < SMALL / 16 {
        return vec![0.0; count];
    }
    let mut values = Vec::new();
    values.par_extend(rayon::iter::repeat_n(0.0, count));
    values
}

/// A depthwise convolution, and what `of` finds in every plane of its output.
fn filtered<T: Send>(
    input: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    window: Window,
    epilogue: Epilogue,
    of: impl Fn(&[f32]) -> T + Sync,
) -> (Vec<f32>, Vec<T>) {
    let [batch, channels, rows, columns] = window.filtered(&input.shape()).dims();
    let [_, _, height, width] = input.shape().dims();
    let (input, weight, bias) = (Plain::new(input), Plain::new(weight), Plain::new(bias));
    let taps = window.kernel * window.kernel;
    let mut output = zeros(batch * channels * rows * columns);
    let planes = output.par_chunks_mut(rows * columns).zip(input.values().par_chunks(height * width));
    let least = VALUES.div_ceil(rows * columns);
    let found = planes.enumerate().with_min_len(least).map_init(Vec::new, |padded, (index, (output, input))| {
        let channel = index % channels;
        let weight = &weight.values()[channel * taps..][..taps];
        let bias = bias.values()[channel];
        Filter { weight, bias, input, width, output: &mut *output, columns, window, padded, epilogue }.run();
        of(output)
    });
    let found = found.collect();
    (output, found)
}

/// The channels of `[b, c, h, w]` mixed, after each is multiplied and added to by its pair of `normed`, one for every plane, and
/// what follows: weight `[o, c, 1, 1]` and bias `[o]` or `[b, o]`, the epilogue, a second weight `[p, o, 1, 1]` and bias `[p]`, if
/// there is one, and what is added at last, if anything.
fn mixed(
    input: &[f32],
    shape: &Shape,
    dtype: DType,
    normed: &[(f32, f32)],
    [weight, bias]: [FlexTensor; 2],
    second: Option<[FlexTensor; 2]>,
    (epilogue, added): (Epilogue, &[f32]),
) -> FlexTensor {
    let [batch, channels, height, width] = shape.dims();
    let inner = weight.shape()[0];
    let (weight, bias) = (Plain::new(weight), Plain::new(bias));
    let second = second.map(|layer| layer.map(Plain::new));
    let second = second.as_ref().map_or((&[][..], &[][..]), |[weight, bias]| (weight.values(), bias.values()));
    let outputs = if second.1.is_empty() { inner } else { second.1.len() };
    let (weight, plane) = (weight.values(), height * width);
    // A few for every thread: one that comes late takes fewer of them.
    let parts = match (weight.len() + second.0.len()) * plane {
        ..SMALL => 1,
        _ => 2 * rayon::current_num_threads(),
    };
    let columns = plane.div_ceil(parts).next_multiple_of(2 * LANES);
    let mut output = zeros(batch * outputs * plane);
    let pictures = output.chunks_mut(outputs * plane).zip(input.chunks(channels * plane));
    for (picture, (output, input)) in pictures.enumerate() {
        let bias = match bias.values().len() == inner {
            true => bias.values(),
            false => &bias.values()[picture * inner..][..inner],
        };
        let normed = normed.get(picture * channels..(picture + 1) * channels).unwrap_or_default();
        let added = added.get(picture * outputs * plane..).unwrap_or_default();
        let parts = bands(output, plane, columns);
        parts.into_par_iter().enumerate().for_each_init(Vec::new, |packed, (part, mut output)| {
            let (first, output) = (part * columns, &mut output[..]);
            Mix { weight, bias, input, plane, first, output, second, packed, normed, epilogue, added }.run();
        });
    }
    tensor(output, Shape::new([batch, outputs, height, width]), dtype)
}

/// What the cells of `[b, c, h, w]` see, from queries, keys and values of every picture, `[c, n]` each.
fn attention<'a>(
    pictures: impl Iterator<Item = [&'a [f32]; 3]>,
    heads: usize,
    dtype: DType,
    shape: Shape,
) -> FlexTensor {
    let [_, channels, height, width] = shape.dims();
    let (head, plane) = (channels / heads, height * width);
    let mut output = zeros(shape.num_elements());
    let mut parts = Vec::new();
    for (output, picture) in output.chunks_mut(channels * plane).zip(pictures) {
        for (index, output) in output.chunks_mut(head * plane).enumerate() {
            let of_head = picture.map(|values| &values[values.len() / heads * index..][..values.len() / heads]);
            let bands = bands(output, plane, COLUMNS).into_iter().enumerate();
            parts.extend(bands.map(|(part, output)| (of_head, part * COLUMNS, output)));
        }
    }
    parts.into_par_iter().for_each_init(Vec::new, |packed, ([queries, keys, values], first, mut output)| {
        Attend { queries, keys, values, first, output: &mut output, packed }.run();
    });
    tensor(output, shape, dtype)
}

fn moments_of_planes(input: &Plain, plane: usize) -> Vec<(f32, f32)> {
    let planes = input.values().par_chunks(plane).with_min_len(VALUES.div_ceil(plane));
    planes.map(plane_moments).collect()
}

/// Mean of a plane, and the sum of squared deviations from it.
fn plane_moments(plane: &[f32]) -> (f32, f32) {
    Arch::new().dispatch(|| {
        let mean = sum(plane) / plane.len() as f32;
        (mean, total(plane, plane, |value, _| (value - mean) * (value - mean)))
    })
}

/// By what every channel of every picture is multiplied, and what is added to it, so that its group has mean 0 and variance 1
/// before `gamma` and `beta`: from the moments of all planes of so many cells.
fn norm_factors(
    planes: &[(f32, f32)],
    cells: usize,
    [gamma, beta]: [FlexTensor; 2],
    groups: usize,
    epsilon: f64,
) -> Vec<(f32, f32)> {
    let (gamma, beta) = (Plain::new(gamma), Plain::new(beta));
    let per_group = gamma.values().len() / groups;
    let group = |(index, planes): (usize, &[(f32, f32)])| {
        let first = index % groups * per_group;
        let mean = planes.iter().map(|(mean, _)| mean).sum::<f32>() / per_group as f32;
        let apart = |(of, squares): &(f32, f32)| squares + cells as f32 * (of - mean) * (of - mean);
        let variance = planes.iter().map(apart).sum::<f32>() / (per_group * cells) as f32;
        let factor = 1.0 / (variance + epsilon as f32).sqrt();
        let channels = gamma.values()[first..][..per_group].iter().zip(&beta.values()[first..]);
        channels.map(move |(gamma, beta)| (factor * gamma, beta - mean * factor * gamma)).collect::<Vec<_>>()
    };
    planes.chunks(per_group).enumerate().flat_map(group).collect()
}

/// The planes of `values` cut into bands of so many cells: for every band, its cells of each plane.
fn bands(values: &mut [f32], plane: usize, cells: usize) -> Vec<Vec<&mut [f32]>> {
    let mut planes: Vec<_> = values.chunks_mut(plane).map(|plane| plane.chunks_mut(cells)).collect();
    (0..plane.div_ceil(cells)).map(|_| planes.iter_mut().filter_map(Iterator::next).collect()).collect()
}

/// Values of a tensor in row-major order, single precision.
struct Plain(FlexTensor);

impl Plain {
    fn new(tensor: FlexTensor) -> Self {
        let tensor = if tensor.dtype() == DType::F32 { tensor } else { Flex::float_cast(tensor, FloatDType::F32) };
        Self(tensor.to_contiguous())
    }

    fn values(&self) -> &[f32] {
        self.0.as_slice().expect("contiguous and single precision")
    }
}

fn tensor(values: Vec<f32>, shape: Shape, dtype: DType) -> FlexTensor {
    let tensor = FlexTensor::from_data(TensorData::new(values, shape));
    if dtype == DType::F32 { tensor } else { Flex::float_cast(tensor, dtype.into()) }
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    total(values, values, |value, _| value)
}

/// The sum of a term of every pair of values.
#[inline(always)]
fn total(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| term(*a, *b)).sum();
    for (a, b) in a.zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(*a, *b);
        }
    }
    lanes.iter().sum::<f32>() + rest
}
