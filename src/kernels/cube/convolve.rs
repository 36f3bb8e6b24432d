//! Convolutions of one group as products of tiles: so many outputs at as many positions, summed over the taps.
//!
//! Most of a frame's products are too small to fill a GPU: their time is that of one way through memory, so every plane of
//! units takes its share of the taps from where they are, straight into the fragments of its tensor cores, and only the sums meet
//! in shared memory. Products with many tiles have a plane for each, and their factors meet in the first cache (`tiles`). Those of
//! the paper's size would read them far too often that way: their factors meet in shared memory, and where there are few tiles,
//! cubes share the taps of each (`large`). Factors of single precision are rounded to the 10 bits of TF32, as cuDNN's convolutions
//! do unless they are told otherwise; halves stay what they are in `large` and become TF32 in `tiles`; sums are in single precision.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::large::{Ending, LargeForm, Tile, join_parts_kernel, large_kernel, taps_of_step};
use super::planes::part_of;
use super::tiles::{APART, Bias, Form, MOST, STEP, UNITS, convolve_kernel};
use super::{Sizes, empty, per_cell, plain};
use crate::kernels::{Epilogue, Window};

/// Tiles that a GPU has use for. With as many small ones, larger ones read less.
const MANY: u32 = 500;
/// Taps from which on a plane alone would take long.
const LONG: usize = 512;
/// Products of two numbers from which on factors pay for their way through shared memory.
const LARGE: usize = 1 << 26;
/// Positions up to which a tile of few does.
const FEW: usize = 32;
/// Side of a window whose taps have room in shared memory, on every NVIDIA GPU with tensor cores.
const WIDEST: usize = 7;
/// Cubes that a GPU has use for, and steps that one takes at least.
const CUBES: usize = 300;
const SHARE: usize = 4;

/// What may come before and after the sums of [`convolve`].
#[derive(Default)]
pub(super) struct Around {
    /// Moments of the input (`planes::moments`), `gamma` and `beta` of a norm of so many groups, and its epsilon.
    pub norm: Option<([CubeTensor; 3], usize, f64)>,
    /// Added to what comes out.
    pub added: Option<CubeTensor>,
}

/// Input `[b, c, h, w]`, weight `[o, c, k, k]` and bias `[o]` or `[b, o]` to `[b, o, h', w']`. A norm only where the kernel is a
/// point.
///
/// # Panics
/// If the kernel's side is above 16, or there is a norm before one that is no point.
pub(super) fn convolve(
    input: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    window: Window,
    epilogue: Epilogue,
    around: Around,
) -> CubeTensor {
    assert!(window.kernel <= MOST, "{window:?}: a kernel has {MOST} rows at most");
    assert!(around.norm.is_none() || window == Window::POINT, "{window:?}: a norm is of channels, not of taps");
    let [input, weight, bias] = plain([input, weight, bias]);
    let outputs = weight.shape()[0];
    let [batch, channels, rows, columns] = window.filtered(&input.shape()).dims();
    let output = empty(&input, Shape::new([batch, outputs, rows, columns]));
    let positions = rows * columns;
    let taps = weight.shape().num_elements() / outputs;
    let has = match bias.shape().num_elements() {
        count if count == outputs => Bias::Output,
        _ => Bias::OutputOfPicture,
    };
    if around.norm.is_none()
        && let Some(split) = split_of([batch, outputs, positions], channels, window.kernel, input.dtype)
    {
        large(input, weight, bias, around.added, &output, window, epilogue, has, split);
        return output;
    }
    let cubes = |block: usize, (down, across): (usize, usize)| {
        [positions.div_ceil(block * across) as u32, outputs.div_ceil(block * down) as u32]
    };
    let many = |block, tiles| cubes(block, (1, 1)).iter().product::<u32>() * batch as u32 >= tiles;
    let (block, divided) = match (many(16, MANY), many(32, if taps < LONG { MANY } else { 4 * MANY })) {
        (false, _) => (16, true),
        (_, false) => (32, true),
        _ => (32, false),
    };
    let together = |length: usize, wanted: usize| if length.is_multiple_of(wanted) { wanted } else { 1 };
    let per = block / APART;
    let sight = if window == Window::POINT { together(positions, per) } else { 1 };
    let at_once = if block == 16 { 1 } else { together(positions, per) };
    let form = Form {
        window,
        epilogue,
        block,
        divided,
        bias: has,
        adds: around.added.is_some(),
        groups: around.norm.as_ref().map_or(0, |(_, groups, _)| *groups),
        part: around.norm.as_ref().map_or(1, |_| part_of(positions)),
        room: around.norm.as_ref().map_or(1, |_| channels.next_multiple_of(64)),
        whole: taps.is_multiple_of(STEP),
    };
    // In the place of what a form does not read.
    let nothing = || bias.clone().into_tensor_arg();
    let epsilon = around.norm.as_ref().map_or(0.0, |(_, _, epsilon)| *epsilon);
    let [moments, gamma, beta] = match around.norm {
        Some((tensors, _, _)) => tensors.map(|tensor| tensor.into_tensor_arg()),
        None => [nothing(), nothing(), nothing()],
    };
    let sizes = Sizes::of(&input, &output);
    let added = around.added.map_or_else(nothing, |added| into_contiguous(added).into_tensor_arg());
    let [across, down] = cubes(block, Form::blocks(divided));
    convolve_kernel::launch(
        &output.client,
        CubeCount::Static(across, down, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        together(taps, 4),
        sight,
        at_once,
        input.into_tensor_arg(),
        weight.into_tensor_arg(),
        bias.clone().into_tensor_arg(),
        moments,
        gamma,
        beta,
        added,
        output.clone().into_tensor_arg(),
        sizes,
        epsilon as f32,
        form,
        dtype_to_storage_type(output.dtype),
    );
    output
}

/// The tile of a cube of `large`, and how many cubes share its taps; none where `tiles` must, or does better.
fn split_of(
    [batch, outputs, positions]: [usize; 3],
    channels: usize,
    kernel: usize,
    dtype: DType,
) -> Option<(Tile, usize)> {
    let (step, taps) = (taps_of_step(dtype.size()), channels * kernel * kernel);
    if !matches!(dtype, DType::F32 | DType::F16)
        || !channels.is_multiple_of(step)
        || kernel > WIDEST
        || batch * outputs * positions * taps < LARGE
    {
        return None;
    }
    let tile = if positions <= FEW {
        Tile { planes: (8, 1), fragments: (1, 2) }
    } else {
        Tile { planes: (4, 2), fragments: (2, 4) }
    };
    let cubes = batch * outputs.div_ceil(tile.tall()) * positions.div_ceil(tile.wide());
    Some((tile, (CUBES / cubes).clamp(1, (taps / step / SHARE).max(1))))
}

/// [`convolve`] by `large`.
#[expect(clippy::too_many_arguments, reason = "all of a convolution")]
fn large(
    input: CubeTensor,
    weight: CubeTensor,
    bias: CubeTensor,
    added: Option<CubeTensor>,
    output: &CubeTensor,
    window: Window,
    epilogue: Epilogue,
    has: Bias,
    (tile, parts): (Tile, usize),
) {
    let [batch, outputs, rows, columns] = output.shape().dims();
    let positions = rows * columns;
    let ending = Ending { epilogue, bias: has, adds: added.is_some() };
    let form = LargeForm { window, ending, tile, divided: parts > 1 };
    // In the place of what is not added.
    let added = added.map_or_else(|| bias.clone(), into_contiguous);
    let dtype = dtype_to_storage_type(output.dtype);
    let (factors, packed) = match output.dtype {
        DType::F16 => (dtype, 2),
        _ => (ElemType::Float(FloatKind::TF32), 1),
    };
    let sums = (parts > 1).then(|| {
        let shape = Shape::new([parts * batch, outputs, rows, columns]);
        empty_device_contiguous_dtype(output.client.clone(), output.device.clone(), shape, DType::F32)
    });
    let to = sums.as_ref().unwrap_or(output);
    let count = CubeCount::Static(
        positions.div_ceil(tile.wide()) as u32,
        outputs.div_ceil(tile.tall()) as u32,
        (batch * parts) as u32,
    );
    large_kernel::launch(
        &output.client,
        count,
        CubeDim::new_1d(tile.units() as u32),
        16 / output.dtype.size(),
        packed,
        if positions.is_multiple_of(2) { 2 } else { 1 },
        input.clone().into_tensor_arg(),
        weight.into_tensor_arg(),
        bias.clone().into_tensor_arg(),
        added.clone().into_tensor_arg(),
        to.clone().into_tensor_arg(),
        Sizes::of(&input, output),
        parts,
        form,
        dtype,
        factors,
        dtype_to_storage_type(to.dtype),
    );
    if let Some(sums) = sums {
        let (cubes, dim) = per_cell(output);
        join_parts_kernel::launch(
            &output.client,
            cubes,
            dim,
            sums.into_tensor_arg(),
            bias.into_tensor_arg(),
            added.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            outputs,
            positions,
            batch * outputs * positions,
            parts,
            ending,
            dtype,
        );
    }
}
