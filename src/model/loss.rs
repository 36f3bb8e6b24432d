//! What training minimises: pure functions of tensors.

use burn::tensor::{Tensor, activation::log_sigmoid};

use super::features::Stages;
use super::score::cosine_distance;

/// Mean absolute difference, `[1]`.
pub fn l1(a: Tensor<4>, b: Tensor<4>) -> Tensor<1> {
    (a - b).abs().mean()
}

/// Mean squared difference, `[1]`.
pub fn mse(a: Tensor<4>, b: Tensor<4>) -> Tensor<1> {
    (a - b).square().mean()
}

/// Mean cosine distance over three stages, `[1]`: what the anomaly map will measure, so what a reconstruction must keep.
pub fn feature_distance(a: &Stages, b: &Stages) -> Tensor<1> {
    a.iter()
        .zip(b)
        .map(|(a, b)| cosine_distance(a.clone(), b.clone()).mean())
        .reduce(|sum, term| sum + term)
        .expect("three stages")
        / 3.0
}

/// Focal loss (arXiv 1708.02002, gamma 2) of logits against a mask of 0 and 1, mean over cells, `[1]`.
///
/// Defects are few cells: without the focal weight the good ones drown them.
pub fn focal(logits: Tensor<4>, mask: Tensor<4>) -> Tensor<1> {
    let inverse = mask.clone().neg() + 1.0;
    let log_hit = log_sigmoid(logits.clone()) * mask.clone() + log_sigmoid(logits.neg()) * inverse;
    let miss = log_hit.clone().exp().neg() + 1.0;
    (miss.square() * log_hit).neg().mean()
}

/// Dice loss (arXiv 1606.04797) of logits against a mask, per picture, mean over the batch, `[1]`.
pub fn dice(logits: Tensor<4>, mask: Tensor<4>) -> Tensor<1> {
    let probability = burn::tensor::activation::sigmoid(logits);
    let sum = |x: Tensor<4>| x.sum_dim(3).sum_dim(2).sum_dim(1);
    let overlap = sum(probability.clone() * mask.clone());
    let total = sum(probability) + sum(mask);
    ((overlap * 2.0 + 1.0) / (total + 1.0)).neg().mean() + 1.0
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn column(values: &[f32]) -> Tensor<4> {
        Tensor::<1>::from_floats(values, &Device::flex()).reshape([1, 1, 1, values.len()])
    }

    #[test]
    fn focal_of_an_undecided_cell_is_a_quarter_of_its_cross_entropy() {
        let loss = focal(column(&[0.0]), column(&[1.0])).into_scalar::<f32>();
        assert!((loss - 0.25 * 2f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn dice_is_zero_for_a_perfect_mask_and_high_for_its_opposite() {
        let mask = column(&[1.0, 1.0, 0.0, 0.0]);
        let logits = column(&[40.0, 40.0, -40.0, -40.0]);
        assert!(dice(logits.clone(), mask.clone()).into_scalar::<f32>() < 1e-6);
        assert!(dice(logits.neg(), mask).into_scalar::<f32>() > 0.7);
    }

    #[test]
    fn distances_of_equal_tensors_vanish() {
        let x = column(&[1.0, -2.0]);
        assert_eq!(l1(x.clone(), x.clone()).into_scalar::<f32>(), 0.0);
        assert_eq!(mse(x.clone(), x * -1.0).into_scalar::<f32>(), 10.0);
    }
}
