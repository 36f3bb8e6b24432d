//! The operations on CUDA. Sums are in single precision, whatever the tensors are.

mod attend;
mod convolve;
mod gradients;
mod large;
mod norm;
mod planes;
mod resize;
mod rows;
mod tiles;

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::{calculate_cube_count_elemwise, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use self::convolve::{Around, convolve};
use super::{Epilogue, Kernels, Norm, Window};

/// Units of a plane, which run together on every NVIDIA GPU.
const PLANE: usize = 32;

/// Channels and sides of what goes in and of what comes out. A kernel knows them before it begins: the shape of a tensor is one
/// more way to memory, and everything waits for it.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    channels: usize,
    height: usize,
    width: usize,
    outputs: usize,
    rows: usize,
    columns: usize,
}

impl Sizes {
    fn of(input: &CubeTensor, output: &CubeTensor) -> SizesLaunch {
        let [_, channels, height, width] = input.shape().dims();
        let [_, outputs, rows, columns] = output.shape().dims();
        SizesLaunch::new(channels, height, width, outputs, rows, columns)
    }
}

/// What follows a sum.
#[cube]
fn epilogue_of(sum: f32, #[comptime] epilogue: Epilogue) -> f32 {
    let mut value = sum;
    // By comparisons, which a NaN comes through: `max` of CUDA would make 0 of it, and a broken frame would pass.
    if comptime!(matches!(epilogue, Epilogue::Relu | Epilogue::Relu6)) {
        if value < 0.0f32 {
            value = 0.0f32;
        }
    }
    if comptime!(epilogue == Epilogue::Relu6) {
        if value > 6.0f32 {
            value = 6.0f32;
        }
    }
    if comptime!(epilogue == Epilogue::Silu) {
        value /= 1.0f32 + (-value).exp();
    }
    value
}

/// What the kernel of a channel makes of the cells around a position.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn filtered_at<F: Float>(
    input: &Tensor<F>,
    weight: &Tensor<F>,
    bias: &Tensor<F>,
    plane: usize,
    channel: usize,
    row: usize,
    column: usize,
    sizes: &Sizes,
    #[comptime] window: Window,
) -> f32 {
    let taps = comptime!(window.kernel * window.kernel);
    let cells = sizes.height * sizes.width;
    // All are asked for before the first is waited for; in the place of what lies outside the plane's last cell is read.
    let mut values = Array::<f32>::new(taps);
    #[unroll]
    for ky in 0..window.kernel {
        let y = row * window.stride + ky;
        #[unroll]
        for kx in 0..window.kernel {
            let x = column * window.stride + kx;
            let inside = y >= window.before
                && y < sizes.height + window.before
                && x >= window.before
                && x < sizes.width + window.before;
            let at = (y * sizes.width + x - window.before * (sizes.width + 1)).min(cells - 1);
            let value = f32::cast_from(input[plane * cells + at]);
            values[ky * window.kernel + kx] = select(inside, value, 0.0f32);
        }
    }
    let mut sum = f32::cast_from(bias[channel]);
    #[unroll]
    for tap in 0..taps {
        sum += values[tap] * f32::cast_from(weight[channel * taps + tap]);
    }
    sum
}

/// One unit per output cell.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its interface")]
fn depthwise_kernel<F: Float>(
    input: &Tensor<F>,
    weight: &Tensor<F>,
    bias: &Tensor<F>,
    output: &mut Tensor<F>,
    sizes: Sizes,
    planes: usize,
    #[comptime] window: Window,
    #[comptime] epilogue: Epilogue,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= planes * sizes.rows * sizes.columns {
        terminate!();
    }
    let column = ABSOLUTE_POS % sizes.columns;
    let rest = ABSOLUTE_POS / sizes.columns;
    let row = rest % sizes.rows;
    let plane = rest / sizes.rows;
    let channel = plane % sizes.channels;
    let sum = filtered_at::<F>(input, weight, bias, plane, channel, row, column, &sizes, window);
    output[ABSOLUTE_POS] = F::cast_from(epilogue_of(sum, epilogue));
}

/// One unit per output cell.
#[cube(launch)]
fn join_kernel<F: Float>(first: &Tensor<F>, second: &Tensor<F>, output: &mut Tensor<F>, #[define(F)] _dtype: ElemType) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let plane = output.shape(2) * output.shape(3);
    let (firsts, seconds) = (first.shape(1) * plane, second.shape(1) * plane);
    let (picture, place) = (ABSOLUTE_POS / (firsts + seconds), ABSOLUTE_POS % (firsts + seconds));
    if place < firsts {
        output[ABSOLUTE_POS] = first[picture * firsts + place];
    } else {
        output[ABSOLUTE_POS] = second[picture * seconds + place - firsts];
    }
}

/// One unit per output cell: weighed along its column, or its row.
#[cube(launch)]
fn smooth_kernel<F: Float>(
    input: &Tensor<F>,
    taps: &Tensor<F>,
    output: &mut Tensor<F>,
    #[comptime] down: bool,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let (height, width) = (input.shape(2), input.shape(3));
    let column = ABSOLUTE_POS % width;
    let row = ABSOLUTE_POS / width % height;
    let plane = ABSOLUTE_POS / width / height * height * width;
    let (mut place, mut size) = (column, width);
    if comptime!(down) {
        place = row;
        size = height;
    }
    let radius = taps.shape(0) / 2;
    let mut sum = 0.0f32;
    for k in 0..taps.shape(0) {
        // Ahead by a side, so that it is not negative.
        let ahead = place + size + k - radius;
        let mut seen = ahead - size;
        if ahead < size {
            seen = size - 1 - ahead;
        }
        if ahead >= 2 * size {
            seen = 3 * size - 1 - ahead;
        }
        let mut at = plane + row * width + seen;
        if comptime!(down) {
            at = plane + seen * width + column;
        }
        sum += f32::cast_from(taps[k]) * f32::cast_from(input[at]);
    }
    output[ABSOLUTE_POS] = F::cast_from(sum);
}

/// Memory for an output, in row-major order: the default pads rows.
fn empty(like: &CubeTensor, shape: Shape) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, like.dtype)
}

/// In row-major order, as the kernels index them. All are of one type already, as burn's own operations ask.
fn plain<const N: usize>(tensors: [CubeTensor; N]) -> [CubeTensor; N] {
    tensors.map(into_contiguous)
}

fn per_cell(output: &CubeTensor) -> (CubeCount, CubeDim) {
    let cells = output.shape().num_elements();
    let dim = CubeDim::new(&output.client, cells);
    (calculate_cube_count_elemwise(&output.client, cells, dim), dim)
}

fn per_part(parts: usize, units: usize) -> (CubeCount, CubeDim) {
    (CubeCount::Static(parts as u32, 1, 1), CubeDim::new_1d(units as u32))
}

impl Kernels for CubeBackend {
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
        let [input, weight, bias] = plain([input, weight, bias]);
        let output = empty(&input, window.filtered(&input.shape()));
        let (count, dim) = per_cell(&output);
        let (sizes, [batch, channels, ..]) = (Sizes::of(&input, &output), output.shape().dims::<4>());
        depthwise_kernel::launch(
            &output.client,
            count,
            dim,
            input.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            sizes,
            batch * channels,
            window,
            epilogue,
            dtype_to_storage_type(output.dtype),
        );
        output
    }

    fn group_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        Self::group_norm_with(input, gamma, beta, Norm { groups, epsilon, epilogue: Epilogue::None })
    }

    fn group_norm_with(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        norm::group_norm(plain([input, gamma, beta]), norm)
    }

    fn cell_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        norm::cell_norm(plain([input, gamma, beta]), epsilon)
    }

    fn pointwise(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        convolve(input, weight, bias, Window::POINT, epilogue, Around::default())
    }

    fn pointwise_onto(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        added: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let around = Around { added: Some(added), ..Around::default() };
        convolve(input, weight, bias, Window::POINT, Epilogue::None, around)
    }

    fn normed_pointwise(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let [input, gamma, beta] = plain([input, gamma, beta]);
        let moments = planes::moments(&input);
        let around = Around { norm: Some(([moments, gamma, beta], norm.groups, norm.epsilon)), ..Around::default() };
        convolve(input, weight, bias, Window::POINT, norm.epilogue, around)
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
        let [gamma, beta] = plain([gamma, beta]);
        let (filtered, moments) = planes::filtered(input, filter, filter_bias, window);
        let around = Around { norm: Some(([moments, gamma, beta], norm.groups, norm.epsilon)), ..Around::default() };
        let inner = convolve(filtered, weight, bias, Window::POINT, norm.epilogue, around);
        Self::pointwise_onto(inner, second, second_bias, added)
    }

    fn attend(joined: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        attend::attend(joined, heads)
    }

    fn attend_to(queries: FloatTensor<Self>, tokens: FloatTensor<Self>, heads: usize) -> FloatTensor<Self> {
        attend::attend_to(queries, tokens, heads)
    }

    fn convolve(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        window: Window,
        epilogue: Epilogue,
    ) -> FloatTensor<Self> {
        convolve(input, weight, bias, window, epilogue, Around::default())
    }

    fn convolve_onto(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        added: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        let around = Around { added: Some(added), ..Around::default() };
        convolve(input, weight, bias, window, Epilogue::None, around)
    }

    fn join(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        let [first, second] = plain([first, second]);
        let [batch, channels, height, width] = first.shape().dims();
        let output = empty(&first, Shape::new([batch, channels + second.shape()[1], height, width]));
        let (count, dim) = per_cell(&output);
        let (first, second) = (first.into_tensor_arg(), second.into_tensor_arg());
        let dtype = dtype_to_storage_type(output.dtype);
        join_kernel::launch(&output.client, count, dim, first, second, output.clone().into_tensor_arg(), dtype);
        output
    }

    fn smooth(input: FloatTensor<Self>, taps: FloatTensor<Self>) -> FloatTensor<Self> {
        let [mut seen, taps] = plain([input, taps]);
        for down in [false, true] {
            let output = empty(&seen, seen.shape());
            let (count, dim) = per_cell(&output);
            let dtype = dtype_to_storage_type(output.dtype);
            let (from, to) = (seen.into_tensor_arg(), output.clone().into_tensor_arg());
            smooth_kernel::launch(&output.client, count, dim, from, taps.clone().into_tensor_arg(), to, down, dtype);
            seen = output;
        }
        seen
    }

    fn resize(input: FloatTensor<Self>, height: usize, width: usize, align_corners: bool) -> FloatTensor<Self> {
        resize::resize(input, height, width, align_corners)
    }

    fn nearest(found: FloatTensor<Self>, rows: FloatTensor<Self>) -> FloatTensor<Self> {
        rows::nearest(found, rows)
    }

    fn product(found: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        rows::product(found, factor)
    }
}
