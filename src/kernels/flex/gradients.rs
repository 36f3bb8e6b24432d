//! The gradients on the CPU.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use pulp::Arch;
use rayon::prelude::*;

use super::{Plain, sum, tensor, total, zeros};
use crate::kernels::descent::LEAST;
use crate::kernels::{Descent, Gradients, Window};

/// Parameters that a thread takes at a time.
const PART: usize = 1 << 14;

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
        let mut inner = zeros(batch * channels * height * width);
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
        let mut sums = zeros(batch * channels * (taps + 1));
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
        let mut inner = zeros(gradient.values().len());
        let (mut betas, mut gammas) = (zeros(batch * channels), zeros(batch * channels));
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

    fn descend(
        parameters: FloatTensor<Self>,
        average: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        course: FloatTensor<Self>,
        descent: Descent,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (dtype, shape) = (parameters.dtype(), parameters.shape());
        let [gradient, course] = [gradient, course].map(Plain::new);
        let gradient = gradient.values();
        let square = |values: &[f32]| Arch::new().dispatch(|| f64::from(total(values, values, |a, b| a * b)));
        // Summed in one order, whoever was first: a run that is made again is the same.
        let norm = gradient.par_chunks(PART).map(square).collect::<Vec<_>>().into_iter().sum::<f64>().sqrt();
        // A norm that is no number stays none: the loss shows it, and the step is taken back.
        let factor = descent.clip / (norm + LEAST);
        let factor = if factor > 1.0 { 1.0 } else { factor as f32 };
        let [rate, first_factor, second_factor, decay] = std::array::from_fn(|k| course.values()[k]);
        let [first_weight, second_weight] = descent.moments.map(|weight| weight as f32);
        let (kept, epsilon) = (1.0 - rate * descent.weight_decay as f32, descent.epsilon as f32);
        // All in one pass: each is read and written once.
        let [mut parameters, mut average, mut first, mut second] =
            [parameters, average, first, second].map(|row| Plain::new(row).values().to_vec());
        let rows = parameters.par_chunks_mut(PART).zip(average.par_chunks_mut(PART));
        let moments = first.par_chunks_mut(PART).zip(second.par_chunks_mut(PART));
        rows.zip(moments).zip(gradient.par_chunks(PART)).for_each(
            |(((parameters, average), (first, second)), gradient)| {
                Arch::new().dispatch(|| {
                    let rows = parameters.iter_mut().zip(average).zip(first.iter_mut().zip(second));
                    for (((parameter, average), (first, second)), gradient) in rows.zip(gradient) {
                        let gradient = gradient * factor;
                        *first = *first * first_weight + gradient * (1.0 - first_weight);
                        *second = *second * second_weight + gradient * gradient * (1.0 - second_weight);
                        let change = *first * first_factor / ((*second * second_factor).sqrt() + epsilon);
                        *parameter = *parameter * kept - change * rate;
                        *average = *average * decay + *parameter * (1.0 - decay);
                    }
                })
            },
        );
        let [parameters, average, first, second] =
            [parameters, average, first, second].map(|row| tensor(row, shape.clone(), dtype));
        (parameters, average, first, second)
    }
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

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    total(a, b, |a, b| a * b)
}

/// Mean, and one over the standard deviation.
#[inline(always)]
fn moments(values: &[f32], epsilon: f64) -> (f32, f32) {
    let count = values.len() as f32;
    let mean = sum(values) / count;
    let variance = total(values, values, |value, _| (value - mean) * (value - mean)) / count;
    (mean, 1.0 / (variance + epsilon as f32).sqrt())
}
