//! The operations on the CPU: how they are divided into tasks. The inner loops of sums are in `simd`; the others are plain
//! loops over rows, which the compiler vectorises for the processor that `Arch` finds.

use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{DType, Flex, FloatDType, TensorData, TensorMetadata};
use burn::tensor::Shape;
use pulp::Arch;
use rayon::prelude::*;

use super::simd::{Convolve, Filter, Mix, Nearest};
use super::{Epilogue, Gradients, Kernels, Window};

/// Sums that are carried side by side, for the compiler to keep in vector registers.
const LANES: usize = 16;

/// Values of the input of a pointwise convolution that are worked on at a time: they stay in the second cache.
const COLUMNS: usize = 1 << 16;

/// Products below which a second thread costs more than it gains.
const SMALL: usize = 1 << 20;

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
        let [_, channels, rows, columns] = shape.dims();
        let [_, _, height, width] = input.shape().dims();
        let (input, weight, bias) = (Plain::new(input), Plain::new(weight), Plain::new(bias));
        let taps = window.kernel * window.kernel;
        let mut output = vec![0.0; shape.num_elements()];
        let planes = output.par_chunks_mut(rows * columns).zip(input.values().par_chunks(height * width));
        let least = SMALL.div_ceil(taps * rows * columns);
        planes.enumerate().with_min_len(least).for_each_init(Vec::new, |padded, (index, (output, input))| {
            let channel = index % channels;
            let weight = &weight.values()[channel * taps..][..taps];
            let bias = bias.values()[channel];
            Filter { weight, bias, input, width, output, columns, window, padded, epilogue }.run();
        });
        tensor(output, shape, dtype)
    }

    fn group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [_, channels, height, width] = input.shape().dims();
        let (input, gamma, beta) = (Plain::new(input), Plain::new(gamma), Plain::new(beta));
        let (plane, per_group) = (height * width, channels / groups);
        let mut output = vec![0.0; input.values().len()];
        let parts = output.par_chunks_mut(per_group * plane).zip(input.values().par_chunks(per_group * plane));
        // Eight passes or so over every value.
        let least = SMALL.div_ceil(8 * per_group * plane);
        parts.enumerate().with_min_len(least).for_each(|(index, (output, input))| {
            Arch::new().dispatch(|| {
                let (mean, factor) = moments(input, epsilon);
                let planes = output.chunks_mut(plane).zip(input.chunks(plane));
                for (channel, (output, input)) in planes.enumerate() {
                    let channel = index % groups * per_group + channel;
                    let factor = factor * gamma.values()[channel];
                    let shift = beta.values()[channel] - mean * factor;
                    for (output, input) in output.iter_mut().zip(input) {
                        *output = input * factor + shift;
                    }
                }
            });
        });
        tensor(output, input.0.shape(), dtype)
    }

    fn pointwise(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, height, width] = input.shape().dims();
        let outputs = weight.shape()[0];
        let (input, weight, bias) = (Plain::new(input), Plain::new(weight), Plain::new(bias));
        let (weight, plane) = (weight.values(), height * width);
        // As many columns at a time as stay in the cache with all their channels, and a multiple of the threads.
        let parts = match channels * outputs * plane {
            ..SMALL => 1,
            _ => (channels * plane).div_ceil(COLUMNS).next_multiple_of(rayon::current_num_threads()),
        };
        let columns = plane.div_ceil(parts).next_multiple_of(2 * LANES);
        let mut output = vec![0.0; batch * outputs * plane];
        let pictures = output.chunks_mut(outputs * plane).zip(input.values().chunks(channels * plane));
        for (picture, (output, input)) in pictures.enumerate() {
            let bias = if bias.values().len() == outputs {
                bias.values()
            } else {
                &bias.values()[picture * outputs..][..outputs]
            };
            let parts = bands(output, plane, columns);
            parts.into_par_iter().enumerate().for_each_init(Vec::new, |packed, (part, mut output)| {
                let (first, output) = (part * columns, &mut output[..]);
                Mix { weight, bias, input, plane, first, output, packed, epilogue }.run();
            });
        }
        tensor(output, Shape::new([batch, outputs, height, width]), dtype)
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
        let mut output = vec![0.0; batch * outputs * rows * columns];
        let pictures =
            output.chunks_mut(outputs * rows * columns).zip(input.values().chunks(channels * height * width));
        for (output, input) in pictures {
            let parts = bands(output, rows * columns, tall * columns);
            parts.into_par_iter().enumerate().for_each_init(Vec::new, |packed, (part, mut output)| {
                let (first, output) = (part * tall, &mut output[..]);
                Convolve { weight, bias, input, size, window, first, columns, output, packed, epilogue }.run();
            });
        }
        tensor(output, Shape::new([batch, outputs, rows, columns]), dtype)
    }

    fn resize(input: FloatTensor<Self>, height: usize, width: usize) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, rows, columns] = input.shape().dims();
        let input = Plain::new(input);
        // The two cells that a position lies between, and how far it is from the first.
        let places = |cells: usize, positions: usize| -> Vec<(usize, usize, f32)> {
            let ratio = if positions > 1 { (cells - 1) as f64 / (positions - 1) as f64 } else { 0.0 };
            let place = |position: usize| {
                let exact = position as f64 * ratio;
                let low = (exact as usize).min(cells - 1);
                (low, (low + 1).min(cells - 1), (exact - low as f64) as f32)
            };
            (0..positions).map(place).collect()
        };
        let (down, across) = (places(rows, height), places(columns, width));
        let mut output = vec![0.0; batch * channels * height * width];
        let planes = output.chunks_mut(height * width).zip(input.values().chunks(rows * columns));
        for (output, input) in planes {
            output.par_chunks_mut(width).zip(&down).with_min_len(SMALL.div_ceil(8 * width)).for_each_init(
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

    fn nearest(found: FloatTensor<Self>, rows: FloatTensor<Self>, sizes: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = found.dtype();
        let [count, channels] = found.shape().dims();
        let (found, rows, sizes) = (Plain::new(found), Plain::new(rows), Plain::new(sizes));
        let mut output = vec![0.0; count];
        let parts = output.par_chunks_mut(4 * LANES).zip(found.values().par_chunks(4 * LANES * channels));
        parts.for_each_init(Vec::new, |packed, (output, found)| {
            Nearest { found, rows: rows.values(), sizes: sizes.values(), output, packed }.run();
        });
        tensor(output, Shape::new([count, 1]), dtype)
    }

    fn space_to_depth(input: FloatTensor<Self>, factor: usize) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, height, width] = input.shape().dims();
        let (rows, columns) = (height / factor, width / factor);
        let input = Plain::new(input);
        let mut output = vec![0.0; input.values().len()];
        // A block of planes per plane of the input, one for each place in a square.
        for (output, input) in output.chunks_mut(height * width).zip(input.values().chunks(height * width)) {
            for (place, output) in output.chunks_mut(rows * columns).enumerate() {
                let lines = input.chunks(width).skip(place / factor).step_by(factor);
                for (output, input) in output.chunks_mut(columns).zip(lines) {
                    let input = input[place % factor..].iter().step_by(factor);
                    output.iter_mut().zip(input).for_each(|(output, input)| *output = *input);
                }
            }
        }
        tensor(output, Shape::new([batch, channels * factor * factor, rows, columns]), dtype)
    }

    fn depth_to_space(input: FloatTensor<Self>, factor: usize) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, rows, columns] = input.shape().dims();
        let (height, width) = (rows * factor, columns * factor);
        let input = Plain::new(input);
        let mut output = vec![0.0; input.values().len()];
        for (output, input) in output.chunks_mut(height * width).zip(input.values().chunks(height * width)) {
            for (place, input) in input.chunks(rows * columns).enumerate() {
                let lines = output.chunks_mut(width).skip(place / factor).step_by(factor);
                for (output, input) in lines.zip(input.chunks(columns)) {
                    let output = output[place % factor..].iter_mut().step_by(factor);
                    output.zip(input).for_each(|(output, input)| *output = *input);
                }
            }
        }
        tensor(output, Shape::new([batch, channels / (factor * factor), height, width]), dtype)
    }

    fn double(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = input.dtype();
        let [batch, channels, height, width] = input.shape().dims();
        let input = Plain::new(input);
        let mut output = vec![0.0; 4 * input.values().len()];
        for (output, input) in output.chunks_mut(4 * width).zip(input.values().chunks(width)) {
            let (first, second) = output.split_at_mut(2 * width);
            first.chunks_mut(2).zip(input).for_each(|(pair, value)| pair.fill(*value));
            second.copy_from_slice(first);
        }
        tensor(output, Shape::new([batch, channels, 2 * height, 2 * width]), dtype)
    }
}

impl Gradients for Flex {
    fn depthwise_input(
        gradient: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
        height: usize,
        width: usize,
    ) -> FloatTensor<Self> {
        let dtype = gradient.dtype();
        let [batch, channels, rows, columns] = gradient.shape().dims();
        let (gradient, weight) = (Plain::new(gradient), Plain::new(weight));
        let taps = window.kernel * window.kernel;
        let mut inner = vec![0.0; batch * channels * height * width];
        let planes = inner.par_chunks_mut(height * width).zip(gradient.values().par_chunks(rows * columns));
        planes.enumerate().for_each(|(index, (inner, gradient))| {
            Arch::new().dispatch(|| {
                let weight = &weight.values()[index % channels * taps..][..taps];
                for (row, ky, seen) in window.overlapping_rows(rows, height) {
                    let gradient = &gradient[row * columns..][..columns];
                    let inner = &mut inner[seen * width..][..width];
                    for kx in 0..window.kernel {
                        let (positions, start) = window.overlap(columns, width, kx);
                        let (weight, gradient) = (weight[ky * window.kernel + kx], &gradient[positions]);
                        let add = |(inner, gradient): (&mut f32, &f32)| *inner += weight * gradient;
                        if window.stride == 1 {
                            inner[start..].iter_mut().zip(gradient).for_each(add);
                        } else {
                            inner[start..].iter_mut().step_by(window.stride).zip(gradient).for_each(add);
                        }
                    }
                }
            })
        });
        tensor(inner, Shape::new([batch, channels, height, width]), dtype)
    }

    fn depthwise_parameters(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        let dtype = gradient.dtype();
        let [batch, channels, rows, columns] = gradient.shape().dims();
        let [_, _, height, width] = input.shape().dims();
        let (gradient, input) = (Plain::new(gradient), Plain::new(input));
        let taps = window.kernel * window.kernel;
        let mut sums = vec![0.0; batch * channels * (taps + 1)];
        let planes = gradient.values().par_chunks(rows * columns).zip(input.values().par_chunks(height * width));
        sums.par_chunks_mut(taps + 1).zip(planes).for_each(|(sums, (gradient, input))| {
            Arch::new().dispatch(|| {
                for (row, ky, seen) in window.overlapping_rows(rows, height) {
                    let gradient = &gradient[row * columns..][..columns];
                    let input = &input[seen * width..][..width];
                    for kx in 0..window.kernel {
                        let (positions, start) = window.overlap(columns, width, kx);
                        let gradient = &gradient[positions];
                        sums[ky * window.kernel + kx] += if window.stride == 1 {
                            dot(gradient, &input[start..][..gradient.len()])
                        } else {
                            let input = input[start..].iter().step_by(window.stride);
                            gradient.iter().zip(input).map(|(a, b)| a * b).sum()
                        };
                    }
                }
                sums[taps] = sum(gradient);
            })
        });
        tensor(sums, Shape::new([batch, channels, taps + 1]), dtype)
    }

    fn group_norm_gradients(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let dtype = gradient.dtype();
        let shape = gradient.shape();
        let [batch, channels, height, width] = shape.dims();
        let (gradient, input, gamma) = (Plain::new(gradient), Plain::new(input), Plain::new(gamma));
        let (plane, per_group) = (height * width, channels / groups);
        let part = per_group * plane;
        let mut inner = vec![0.0; gradient.values().len()];
        let (mut betas, mut gammas) = (vec![0.0; batch * channels], vec![0.0; batch * channels]);
        let parameters = betas.par_chunks_mut(per_group).zip(gammas.par_chunks_mut(per_group));
        let seen = gradient.values().par_chunks(part).zip(input.values().par_chunks(part));
        let parts = inner.par_chunks_mut(part).zip(seen).zip(parameters);
        parts.enumerate().for_each(|(index, ((inner, (gradient, input)), (betas, gammas)))| {
            Arch::new().dispatch(|| {
                let (mean, factor) = moments(input, epsilon);
                let gamma = &gamma.values()[index % groups * per_group..][..per_group];
                // Sums over the group of what arrives at the normalised values, alone and times these values.
                let (mut arriving, mut aligned) = (0.0, 0.0);
                for (channel, (gradient, input)) in gradient.chunks(plane).zip(input.chunks(plane)).enumerate() {
                    betas[channel] = sum(gradient);
                    gammas[channel] = (dot(gradient, input) - mean * betas[channel]) * factor;
                    arriving += gamma[channel] * betas[channel];
                    aligned += gamma[channel] * gammas[channel];
                }
                let (arriving, aligned) = (arriving / part as f32, aligned / part as f32);
                let slope = -factor * factor * aligned;
                let shift = -factor * arriving - slope * mean;
                let planes = inner.chunks_mut(plane).zip(gradient.chunks(plane).zip(input.chunks(plane)));
                for ((inner, (gradient, input)), gamma) in planes.zip(gamma) {
                    let factor = factor * gamma;
                    for (inner, (gradient, input)) in inner.iter_mut().zip(gradient.iter().zip(input)) {
                        *inner = factor * gradient + slope * input + shift;
                    }
                }
            })
        });
        betas.extend(gammas);
        (tensor(inner, shape, dtype), tensor(betas, Shape::new([2, batch, channels]), dtype))
    }
}

/// The planes of `values` cut into bands of so many cells: for every band, its cells of each plane.
fn bands(values: &mut [f32], plane: usize, cells: usize) -> Vec<Vec<&mut [f32]>> {
    let mut planes: Vec<_> = values.chunks_mut(plane).map(|plane| plane.chunks_mut(cells)).collect();
    (0..plane.div_ceil(cells)).map(|_| planes.iter_mut().filter_map(Iterator::next).collect()).collect()
}

impl Window {
    /// Every position of the kernel and row of it that lies on the input: position, kernel row, input row.
    fn overlapping_rows(self, positions: usize, cells: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..positions).flat_map(move |row| {
            (0..self.kernel).filter_map(move |ky| {
                let seen = (row * self.stride + ky).checked_sub(self.before).filter(|seen| *seen < cells)?;
                Some((row, ky, seen))
            })
        })
    }

    /// The positions for which a column of the kernel lies on the input, and the first input column.
    fn overlap(self, positions: usize, cells: usize, kx: usize) -> (std::ops::Range<usize>, usize) {
        let first = self.before.saturating_sub(kx).div_ceil(self.stride);
        let end = (cells + self.before).saturating_sub(kx).div_ceil(self.stride).min(positions);
        let start = (first * self.stride + kx).saturating_sub(self.before);
        // A picture narrower than the kernel has none.
        (first.min(end)..end, start.min(cells))
    }
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

/// Mean, and one over the standard deviation.
#[inline(always)]
fn moments(values: &[f32], epsilon: f64) -> (f32, f32) {
    let count = values.len() as f32;
    let mean = sum(values) / count;
    let variance = total(values, values, |value, _| (value - mean) * (value - mean)) / count;
    (mean, 1.0 / (variance + epsilon as f32).sqrt())
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    total(values, values, |value, _| value)
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    total(a, b, |a, b| a * b)
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
