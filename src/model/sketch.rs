//! The `soft` sketch: edges of a picture as a differentiable function of it.
//!
//! `K = tanh(m / (3 mean(m) + 1e-3))`, where `m` is the Sobel magnitude of the Gaussian-smoothed grey picture. Four fixed
//! filters, no sorting, no thresholds: it can be part of a captured graph. The `canny` sketch comes from the host.

use burn::tensor::ops::PadMode;
use burn::tensor::{Device, Tensor, TensorData, assert_shape};

use crate::kernels::{Epilogue, Window, depthwise};

/// Edges in 0 to 1.
///
/// # Shapes
/// - image `[b, 3, h, w]` in -1 to 1
/// - output `[b, 1, h, w]`
pub fn soft_sketch(image: Tensor<4>) -> Tensor<4> {
    assert_shape!(image, [_, 3, _, _]);
    let device = image.device();
    let dtype = image.dtype();
    let luma = Tensor::<1>::from_floats([0.299, 0.587, 0.114], &device).cast(dtype).reshape([1, 3, 1, 1]);
    // Grey in 0 to 1, whatever the range of the picture: the constants of the formula are made for it.
    let grey = (image * luma).sum_dim(1) * 0.5 + 0.5;
    let filter = |x: Tensor<4>, taps: Vec<f32>, side: usize| {
        let kernel = Tensor::<4>::from_data(TensorData::new(taps, [1, 1, side, side]), &device).cast(dtype);
        let window = Window { kernel: side, stride: 1, before: 0, after: 0 };
        let padded = x.pad([(side / 2, side / 2); 2], PadMode::Edge);
        depthwise(padded, kernel, Tensor::zeros([1], (&device, dtype)), window, Epilogue::None)
    };
    let gauss = gaussian_taps();
    let square = gauss.iter().flat_map(|down| gauss.iter().map(move |across| down * across)).collect();
    let smooth = filter(grey, square, gauss.len());
    let gx = filter(smooth.clone(), vec![-1.0, 0.0, 1.0, -2.0, 0.0, 2.0, -1.0, 0.0, 1.0], 3);
    let gy = filter(smooth, vec![-1.0, -2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 2.0, 1.0], 3);
    let magnitude = (gx.square() + gy.square() + 1e-8).sqrt();
    let mean = magnitude.clone().mean_dim(3).mean_dim(2);
    (magnitude / (mean * 3.0 + 1e-3)).tanh()
}

/// Seven taps of a Gaussian with sigma 1.
fn gaussian_taps() -> Vec<f32> {
    let weights: Vec<f64> = (-3i32..=3).map(|i| (-0.5 * f64::from(i * i)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / sum) as f32).collect()
}

/// A picture without edges, `[b, 1, h, w]` of zeros: what dropping the sketch means.
pub fn blank_sketch(batch: usize, height: usize, width: usize, device: &Device) -> Tensor<4> {
    Tensor::zeros([batch, 1, height, width], device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_an_edge_and_a_plane_is_not() {
        let device = Device::flex();
        let dark = Tensor::<4>::full([1, 3, 32, 16], -0.8, &device);
        let light = Tensor::<4>::full([1, 3, 32, 16], 0.8, &device);
        let sketch = soft_sketch(Tensor::cat(vec![dark, light], 3));
        let row = sketch.slice([0..1, 0..1, 16..17, 0..32]).into_data().try_into_vec::<f32>().expect("f32");
        assert!(row[15] > 0.9 && row[16] > 0.9, "edge {row:?}");
        assert!(row[2] < 0.01 && row[29] < 0.01, "plane {row:?}");
    }
}
