//! Bilinear resizing.

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{Sizes, empty, per_cell, plain};

/// Where the positions of an axis lie among its cells: the first, and how far they are apart.
#[derive(CubeLaunch, CubeType)]
struct Places {
    first: f32,
    apart: f32,
}

impl Places {
    fn of(cells: usize, positions: usize, align_corners: bool) -> PlacesLaunch {
        let (first, apart) = match align_corners {
            true if positions > 1 => (0.0, (cells - 1) as f64 / (positions - 1) as f64),
            true => (0.0, 0.0),
            false => (0.5 * (cells as f64 / positions as f64 - 1.0), cells as f64 / positions as f64),
        };
        PlacesLaunch::new(first as f32, apart as f32)
    }
}

/// The two cells that a position lies between, and how far it is from the first.
#[cube]
fn between(position: usize, places: &Places, cells: usize) -> (usize, usize, f32) {
    let exact = (places.first + position as f32 * places.apart).max(0.0f32);
    let low = (exact as usize).min(cells - 1);
    (low, (low + 1).min(cells - 1), exact - low as f32)
}

/// One unit per output cell.
#[cube(launch)]
fn resize_kernel<F: Float>(
    input: &Tensor<F>,
    output: &mut Tensor<F>,
    down: Places,
    across: Places,
    sizes: Sizes,
    cells: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= cells {
        terminate!();
    }
    let column = ABSOLUTE_POS % sizes.columns;
    let row = ABSOLUTE_POS / sizes.columns % sizes.rows;
    let plane = ABSOLUTE_POS / sizes.columns / sizes.rows * sizes.height * sizes.width;
    let (upper, lower, below) = between(row, &down, sizes.height);
    let (left, right, beside) = between(column, &across, sizes.width);
    let (upper, lower) = (plane + upper * sizes.width, plane + lower * sizes.width);
    let first = f32::cast_from(input[upper + left]);
    let first = first + (f32::cast_from(input[lower + left]) - first) * below;
    let second = f32::cast_from(input[upper + right]);
    let second = second + (f32::cast_from(input[lower + right]) - second) * below;
    output[ABSOLUTE_POS] = F::cast_from(first + (second - first) * beside);
}

/// `[b, c, h', w']` to `[b, c, height, width]`, as [`crate::kernels::Kernels::resize`] says.
pub(super) fn resize(input: CubeTensor, height: usize, width: usize, align_corners: bool) -> CubeTensor {
    let [input] = plain([input]);
    let [batch, channels, rows, columns] = input.shape().dims();
    let output = empty(&input, Shape::new([batch, channels, height, width]));
    let (cubes, dim) = per_cell(&output);
    let sizes = Sizes::of(&input, &output);
    resize_kernel::launch(
        &output.client,
        cubes,
        dim,
        input.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        Places::of(rows, height, align_corners),
        Places::of(columns, width, align_corners),
        sizes,
        batch * channels * height * width,
        dtype_to_storage_type(output.dtype),
    );
    output
}
