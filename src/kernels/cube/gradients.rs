//! The gradients on CUDA.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::norm::{GROUP_UNITS, moments, sums_of_units};
use super::{empty, per_cell, per_part, plain};
use crate::kernels::{Gradients, Window};

/// Units that share the sums of a plane.
const PLANE_UNITS: usize = 256;

/// One unit per input cell: every position of the kernel that saw it.
#[cube(launch)]
fn depthwise_input_kernel<F: Float>(
    gradient: &Tensor<F>,
    weight: &Tensor<F>,
    inner: &mut Tensor<F>,
    #[comptime] window: Window,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= inner.len() {
        terminate!();
    }
    let (rows, columns) = (gradient.shape(2), gradient.shape(3));
    let x = ABSOLUTE_POS % inner.shape(3) + window.before;
    let rest = ABSOLUTE_POS / inner.shape(3);
    let y = rest % inner.shape(2) + window.before;
    let plane = rest / inner.shape(2);
    let channel = plane % inner.shape(1);
    let mut sum = 0.0f32;
    #[unroll]
    for ky in 0..window.kernel {
        if y >= ky && (y - ky) % window.stride == 0 && (y - ky) / window.stride < rows {
            let start = (plane * rows + (y - ky) / window.stride) * columns;
            #[unroll]
            for kx in 0..window.kernel {
                if x >= kx && (x - kx) % window.stride == 0 && (x - kx) / window.stride < columns {
                    let tap = weight[(channel * window.kernel + ky) * window.kernel + kx];
                    sum += f32::cast_from(gradient[start + (x - kx) / window.stride]) * f32::cast_from(tap);
                }
            }
        }
    }
    inner[ABSOLUTE_POS] = F::cast_from(sum);
}

/// One cube per plane.
#[cube(launch)]
fn depthwise_parameters_kernel<F: Float>(
    gradient: &Tensor<F>,
    input: &Tensor<F>,
    sums: &mut Tensor<F>,
    #[comptime] window: Window,
    #[define(F)] _dtype: ElemType,
) {
    let taps = comptime!(window.kernel * window.kernel);
    let (height, width) = (input.shape(2), input.shape(3));
    let (rows, columns) = (gradient.shape(2), gradient.shape(3));
    let plane = CUBE_POS as usize;
    let cells = rows * columns;
    let mut bias = 0.0f32;
    let mut position = UNIT_POS as usize;
    while position < cells {
        bias += f32::cast_from(gradient[plane * cells + position]);
        position += CUBE_DIM as usize;
    }
    let (bias, _) = sums_of_units(bias, 0.0f32, PLANE_UNITS);
    if UNIT_POS == 0 {
        sums[plane * (taps + 1) + taps] = F::cast_from(bias);
    }
    #[unroll]
    for ky in 0..window.kernel {
        #[unroll]
        for kx in 0..window.kernel {
            let mut tap = 0.0f32;
            let mut position = UNIT_POS as usize;
            while position < cells {
                let y = position / columns * window.stride + ky;
                let x = position % columns * window.stride + kx;
                let inside =
                    y >= window.before && y < height + window.before && x >= window.before && x < width + window.before;
                if inside {
                    let seen = input[(plane * height + y - window.before) * width + x - window.before];
                    tap += f32::cast_from(gradient[plane * cells + position]) * f32::cast_from(seen);
                }
                position += CUBE_DIM as usize;
            }
            let (tap, _) = sums_of_units(tap, 0.0f32, PLANE_UNITS);
            if UNIT_POS == 0 {
                sums[plane * (taps + 1) + ky * window.kernel + kx] = F::cast_from(tap);
            }
        }
    }
}

/// One cube per picture and group.
#[cube(launch)]
fn group_norm_gradients_kernel<F: Float>(
    gradient: &Tensor<F>,
    input: &Tensor<F>,
    gamma: &Tensor<F>,
    inner: &mut Tensor<F>,
    sums: &mut Tensor<F>,
    epsilon: f32,
    #[comptime] groups: usize,
    #[define(F)] _dtype: ElemType,
) {
    let per_group = input.shape(1) / groups;
    let plane = input.shape(2) * input.shape(3);
    let count = per_group * plane;
    let part = CUBE_POS as usize;
    let (mean, factor) = moments::<F>(input, part * count, count, epsilon);
    // Sums over the group of what arrives at the normalised values, alone and times these values.
    let mut arriving = 0.0f32;
    let mut aligned = 0.0f32;
    for member in 0..per_group {
        let start = part * count + member * plane;
        let mut beta_sum = 0.0f32;
        let mut gamma_sum = 0.0f32;
        let mut index = UNIT_POS as usize;
        while index < plane {
            let value = f32::cast_from(gradient[start + index]);
            beta_sum += value;
            gamma_sum += value * (f32::cast_from(input[start + index]) - mean) * factor;
            index += CUBE_DIM as usize;
        }
        let (beta_sum, gamma_sum) = sums_of_units(beta_sum, gamma_sum, GROUP_UNITS);
        let channel = part % groups * per_group + member;
        let weight = f32::cast_from(gamma[channel]);
        arriving += weight * beta_sum;
        aligned += weight * gamma_sum;
        if UNIT_POS == 0 {
            // Beta's gradients first, then gamma's: `[2, b, c]`.
            let place = part / groups * input.shape(1) + channel;
            sums[place] = F::cast_from(beta_sum);
            sums[input.shape(0) * input.shape(1) + place] = F::cast_from(gamma_sum);
        }
    }
    arriving /= count as f32;
    aligned /= count as f32;
    let mut index = UNIT_POS as usize;
    while index < count {
        let channel = part % groups * per_group + index / plane;
        let normal = (f32::cast_from(input[part * count + index]) - mean) * factor;
        let value = f32::cast_from(gradient[part * count + index]) * f32::cast_from(gamma[channel]);
        inner[part * count + index] = F::cast_from(factor * (value - arriving - normal * aligned));
        index += CUBE_DIM as usize;
    }
}

impl Gradients for CubeBackend {
    fn depthwise_input(
        gradient: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
        height: usize,
        width: usize,
    ) -> FloatTensor<Self> {
        let [gradient, weight] = plain([gradient, weight]);
        let [batch, channels, _, _] = gradient.shape().dims();
        let inner = empty(&gradient, Shape::new([batch, channels, height, width]));
        let (count, dim) = per_cell(&inner);
        depthwise_input_kernel::launch(
            &inner.client,
            count,
            dim,
            gradient.into_tensor_arg(),
            weight.into_tensor_arg(),
            inner.clone().into_tensor_arg(),
            window,
            dtype_to_storage_type(inner.dtype),
        );
        inner
    }

    fn depthwise_parameters(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        let [gradient, input] = plain([gradient, input]);
        let [batch, channels, _, _] = gradient.shape().dims();
        let sums = empty(&gradient, Shape::new([batch, channels, window.kernel * window.kernel + 1]));
        let (count, dim) = per_part(batch * channels, PLANE_UNITS);
        depthwise_parameters_kernel::launch(
            &sums.client,
            count,
            dim,
            gradient.into_tensor_arg(),
            input.into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            window,
            dtype_to_storage_type(sums.dtype),
        );
        sums
    }

    fn group_norm_gradients(
        gradient: FloatTensor<Self>,
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [gradient, input, gamma] = plain([gradient, input, gamma]);
        let [batch, channels, _, _] = gradient.shape().dims();
        let inner = empty(&gradient, gradient.shape());
        let sums = empty(&gradient, Shape::new([2, batch, channels]));
        let (count, dim) = per_part(batch * groups, GROUP_UNITS);
        group_norm_gradients_kernel::launch(
            &inner.client,
            count,
            dim,
            gradient.into_tensor_arg(),
            input.into_tensor_arg(),
            gamma.into_tensor_arg(),
            inner.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            epsilon as f32,
            groups,
            dtype_to_storage_type(inner.dtype),
        );
        (inner, sums)
    }
}
