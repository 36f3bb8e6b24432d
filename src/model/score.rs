//! Anomaly components: how far a picture is from its reconstruction.

use burn::tensor::{Tensor, assert_shape};

use super::features::Stages;
pub use crate::kernels::resize;

/// `1 - cos` of two feature maps over their channels: `[b, c, h, w]` twice to `[b, 1, h, w]` in 0 to 2.
///
/// The product of the norms is bounded below by 1e-8, so two empty vectors are 1 apart.
pub fn cosine_distance(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    let [_, channels, height, width] = a.dims();
    assert_shape!(b, [_, channels, height, width]);
    let norm = |x: Tensor<4>| x.square().sum_dim(1).sqrt();
    let product = (a.clone() * b.clone()).sum_dim(1);
    let norms = (norm(a) * norm(b)).clamp_min(1e-8);
    (product / norms).neg() + 1.0
}

/// Cosine distances of the stages at strides 4, 8 and 16, each resized to `[b, 1, h, w]` and summed.
pub fn feature_map(seen: &Stages, reconstructed: &Stages, height: usize, width: usize) -> Tensor<4> {
    seen.iter()
        .zip(reconstructed)
        .map(|(a, b)| resize(cosine_distance(a.clone(), b.clone()), height, width))
        .reduce(|sum, map| sum + map)
        .expect("three stages")
}

/// Mean absolute difference of two latents over their channels, resized: `[b, 1, h, w]`.
pub fn latent_map(seen: Tensor<4>, reconstructed: Tensor<4>, height: usize, width: usize) -> Tensor<4> {
    resize((seen - reconstructed).abs().mean_dim(1), height, width)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, TensorData, Tolerance};

    use super::*;

    #[test]
    fn equal_features_are_no_distance_and_orthogonal_ones_are_one() {
        let device = Device::flex();
        let a = Tensor::<1>::from_floats([1.0, 0.0, 2.0, 0.0], &device).reshape([1, 2, 1, 2]);
        let b = Tensor::<1>::from_floats([3.0, 0.0, 6.0, 5.0], &device).reshape([1, 2, 1, 2]);
        let distance = cosine_distance(a, b).into_data();
        distance.assert_approx_eq::<f32>(&TensorData::from([[[[0.0f32, 1.0]]]]), Tolerance::absolute(1e-6));
    }

    #[test]
    fn a_picture_compared_with_itself_has_an_empty_map() {
        let device = Device::flex();
        let stage = |c, s| Tensor::<4>::random([1, c, s, s], Distribution::Uniform(0.1, 1.0), &device);
        let stages = [stage(3, 8), stage(4, 4), stage(5, 2)];
        let map = feature_map(&stages, &stages, 32, 32);
        assert_eq!(map.dims(), [1, 1, 32, 32]);
        assert!(map.abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn resize_aligns_corners() {
        let device = Device::flex();
        let map = Tensor::<1>::from_floats([0.0, 1.0], &device).reshape([1, 1, 1, 2]);
        let wide = resize(map, 1, 5).into_data();
        wide.assert_approx_eq::<f32>(
            &TensorData::from([[[[0.0f32, 0.25, 0.5, 0.75, 1.0]]]]),
            Tolerance::absolute(1e-6),
        );
    }
}
