//! From what the networks answer to a detection: a smoothed map, a score, the reconstruction as bytes.
//!
//! The host does that on a CPU, and for tiles, which are blended first. On a GPU a whole frame is smoothed and packed where it is:
//! the host would take a quarter of the frame's time for it, and twice as much has to come back.

use std::sync::Arc;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

use super::DetectorSpec;
use crate::inspection::anomaly::{AnomalyMap, gaussian_blur, gaussian_taps};
use crate::inspection::detect::{Counted, Detection, Reconstruction, Steps};
use crate::inspection::frame::Prepared;
use crate::kernels::smooth;
use crate::model::network::{Components, Reconstructed};
use crate::preprocess::spec::Normalisation;
use crate::preprocess::{DEVIATION, MEAN, to_rgb};

/// What a row of the networks' answer holds, one per picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    /// The map, the three planes of the reconstruction, the novelty.
    Raw,
    /// The smoothed map, the reconstruction with a pixel in a number, the novelty.
    Finished,
}

/// Makes the parts of a row.
type Rows = Box<dyn Fn(Reconstructed, Components) -> Vec<Tensor<2>> + Send>;

/// All planes of a picture in a row.
pub(super) fn flat(planes: Tensor<4>) -> Tensor<2> {
    planes.flatten(1, 3)
}

impl Answer {
    /// What a GPU answers to such a frame.
    pub(super) fn of_a_gpu(frame: &Prepared, spec: &DetectorSpec) -> Self {
        let reach = gaussian_taps(spec.map.sigma).len() / 2;
        if frame.tiles.is_some() || reach > frame.width.min(frame.height) { Answer::Raw } else { Answer::Finished }
    }

    /// How it is made of what the networks find.
    pub(super) fn rows(self, spec: &DetectorSpec, device: &Device) -> Rows {
        let weights = spec.map.weights;
        match self {
            Answer::Raw => Box::new(move |reconstructed, components| {
                vec![flat(components.combine(&weights)), flat(reconstructed.image), components.novelty()]
            }),
            Answer::Finished => {
                let (taps, normalisation) = (gaussian_taps(spec.map.sigma), spec.normalisation);
                let count = taps.len();
                let taps = Tensor::<1>::from_data(TensorData::new(taps, [count]), (device, DType::F32));
                Box::new(move |reconstructed, components| {
                    let map = smooth(components.combine(&weights).cast(FloatDType::F32), taps.clone());
                    let packed = packed(reconstructed.image.cast(FloatDType::F32), normalisation);
                    vec![flat(map), flat(packed), components.novelty().cast(FloatDType::F32)]
                })
            }
        }
    }

    /// Pools one frame's map on the host, in f32, and turns its reconstruction into bytes. `row` is of the frame, or blended from
    /// its tiles, with the novelty of each of its cells.
    pub(super) fn detection(
        self,
        frame: &Prepared,
        row: &[f32],
        spec: &DetectorSpec,
        steps: Steps,
        infer_ms: f64,
    ) -> Detection {
        let (width, height) = (frame.width, frame.height);
        let plane = width * height;
        let (map, rest) = row.split_at(plane);
        let (mut values, rgb, novelty) = match self {
            Answer::Raw => {
                let (reconstruction, novelty) = rest.split_at(3 * plane);
                let values = gaussian_blur(map, width, height, spec.map.sigma);
                (values, to_rgb(reconstruction, spec.normalisation), novelty)
            }
            Answer::Finished => {
                let (pixels, novelty) = rest.split_at(plane);
                (map.to_vec(), unpacked(pixels), novelty)
            }
        };
        // Cosine distances are never negative, but for rounding.
        values.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
        let map = AnomalyMap { width, height, values };
        let tile = frame.tiles.map_or(plane, |(_, tile)| tile.0 * tile.1);
        let pool = |map: &AnomalyMap| spec.map.pooling.pool_tiles(map, tile);
        let (score, rois) = match &frame.rois {
            None => (pool(&map), None),
            Some(mask) => {
                let plain_score = pool(&mask.masked(&map));
                let score = if mask.has_thresholds() { pool(&mask.weighed(&map)) } else { plain_score };
                (score, Some(Counted { mask: Arc::clone(mask), plain_score }))
            }
        };
        let novelty = novelty.iter().sum::<f32>() / novelty.len() as f32;
        let tiles = frame.tiles.map(|(grid, _)| grid);
        let reconstruction = Reconstruction { width, height, rgb };
        Detection { map, score, novelty, reconstruction, steps, tiles, rois, infer_ms }
    }
}

/// The bytes of a pixel as one number, which single precision holds exactly: `[b, 3, h, w]` to `[b, 1, h, w]`.
fn packed(image: Tensor<4>, normalisation: Normalisation) -> Tensor<4> {
    let byte = |channel: usize| {
        let plane = image.clone().narrow(1, channel, 1);
        let value = match normalisation {
            Normalisation::SymmetricOne => (plane + 1.0) * 127.5,
            Normalisation::ImageNet => (plane * DEVIATION[channel] + MEAN[channel]) * 255.0,
        };
        (value + 0.5).clamp(0.0, 255.0).floor()
    };
    byte(0) + byte(1) * 256.0 + byte(2) * 65_536.0
}

fn unpacked(pixels: &[f32]) -> Vec<u8> {
    let mut rgb = vec![0; 3 * pixels.len()];
    for (rgb, pixel) in rgb.chunks_exact_mut(3).zip(pixels) {
        let [red, green, blue, _] = (*pixel as u32).to_le_bytes();
        rgb.copy_from_slice(&[red, green, blue]);
    }
    rgb
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    #[test]
    fn a_gpu_smooths_and_packs_as_the_host_does() {
        let device = Device::flex();
        let (width, height) = (24, 17);
        let picture = Tensor::<4>::random([2, 3, height, width], Distribution::Uniform(-1.3, 1.3), &device);
        for normalisation in [Normalisation::SymmetricOne, Normalisation::ImageNet] {
            let pixels = packed(picture.clone(), normalisation).into_data().try_into_vec::<f32>().expect("f32");
            let planes = picture.clone().into_data().try_into_vec::<f32>().expect("f32");
            let expected: Vec<u8> =
                planes.chunks_exact(3 * width * height).flat_map(|planes| to_rgb(planes, normalisation)).collect();
            assert_eq!(unpacked(&pixels), expected);
        }
        for sigma in [0.0, 1.0, 2.5] {
            let taps = gaussian_taps(sigma);
            let count = taps.len();
            let taps = Tensor::<1>::from_data(TensorData::new(taps, [count]), &device);
            let found = smooth(picture.clone(), taps).into_data().try_into_vec::<f32>().expect("f32");
            let planes = picture.clone().into_data().try_into_vec::<f32>().expect("f32");
            for (found, plane) in found.chunks_exact(width * height).zip(planes.chunks_exact(width * height)) {
                let expected = gaussian_blur(plane, width, height, sigma);
                assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
            }
        }
    }
}
