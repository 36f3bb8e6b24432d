//! Good pictures that are unlike all the others: another product, a lens cap, a hand. They would widen what counts as
//! normal, and a threshold that they set lets defects pass.

use burn::tensor::{Device, Tensor};

use super::dataset::Skipped;
use super::pictures::{Picture, picture_tensor};
use super::select::quantile;
use crate::model::features::FeatureExtractor;

/// Pictures below which nothing can be called unusual.
const ENOUGH: usize = 10;
/// An outlier is this many robust standard deviations farther from the middle than half of the pictures,
const FAR: f32 = 8.0;
/// and at least this many times as far: where all are nearly alike, a small difference is none.
const TIMES: f32 = 5.0;
/// From the median absolute deviation to the standard deviation of a normal distribution.
const TO_DEVIATION: f32 = 1.4826;

/// Takes the outliers of one set out of its pictures, with the reason.
///
/// # Errors
/// What the device says.
pub fn remove(
    pictures: Vec<Picture>,
    features: &FeatureExtractor,
    (width, height): (usize, usize),
    device: &Device,
) -> anyhow::Result<(Vec<Picture>, Vec<Skipped>)> {
    if pictures.len() < ENOUGH {
        return Ok((pictures, Vec::new()));
    }
    let mut rows = Vec::with_capacity(pictures.len());
    for picture in &pictures {
        let [_, fine, coarse] = features.forward(picture_tensor(&picture.rgb, width, height, device));
        let mean = |stage: Tensor<4>| stage.mean_dims(&[2, 3]);
        rows.push(Tensor::cat(vec![mean(fine), mean(coarse)], 1).try_into_vec_as::<f32>()?);
    }
    let apart = distances(&rows);
    let middle = median(apart.clone());
    let spread = TO_DEVIATION * median(apart.iter().map(|d| (d - middle).abs()).collect());
    let (mut kept, mut left) = (Vec::new(), Vec::new());
    for (picture, distance) in pictures.into_iter().zip(apart) {
        if distance > middle + FAR * spread && distance > TIMES * middle {
            let reason = format!(
                "unlike the other good pictures: {:.1} times as far from their middle as half of them; if it shows a good \
                 part, give --keep-outliers",
                distance / middle.max(f32::MIN_POSITIVE)
            );
            left.push(Skipped { path: picture.path, reason });
        } else {
            kept.push(picture);
        }
    }
    Ok((kept, left))
}

/// Distance of every row from the median row, each column in units of its own spread.
fn distances(rows: &[Vec<f32>]) -> Vec<f32> {
    let columns = rows.first().map_or(0, Vec::len);
    let mut squares = vec![0.0f32; rows.len()];
    for column in 0..columns {
        let values: Vec<f32> = rows.iter().map(|row| row[column]).collect();
        let middle = median(values.clone());
        let spread = median(values.iter().map(|v| (v - middle).abs()).collect());
        for (square, value) in squares.iter_mut().zip(values) {
            *square += ((value - middle) / spread.max(1e-3)).powi(2);
        }
    }
    squares.into_iter().map(|square| (square / columns.max(1) as f32).sqrt()).collect()
}

fn median(values: Vec<f32>) -> f32 {
    quantile(values.into_iter(), 0.5).unwrap_or(0.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_far_from_the_middle_is_far() {
        let mut rows: Vec<Vec<f32>> = (0..20).map(|k| vec![k as f32 * 0.01, 1.0 - k as f32 * 0.02]).collect();
        rows.push(vec![3.0, -2.0]);
        let apart = distances(&rows);
        assert!(apart[..20].iter().all(|d| *d < 3.0), "{apart:?}");
        assert!(apart[20] > 10.0, "{apart:?}");
    }
}
