//! Pictures of a run, what is held out of them, and which picture a step sees.

use std::path::Path;

use anyhow::ensure;
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::inspection::frame::{Frame, FrameBuf, FrameMeta, PixelFormat, Prepared};
use crate::inspection::roi::Roi;
use crate::preprocess::prepare;
use crate::preprocess::spec::{Normalisation, PreprocessSpec};
use crate::trainer::dataset::discover::discover;
use crate::trainer::dataset::survey::survey_and_clean;
use crate::trainer::pictures::{Picture, load};

/// Good pictures of all sets, divided.
#[derive(Debug)]
pub struct Material {
    /// For the networks.
    pub train: Vec<Picture>,
    /// Never trained on: for the choice of a checkpoint.
    pub select: Vec<Picture>,
    /// Never trained on nor chosen with: for thresholds.
    pub calibrate: Vec<Picture>,
    /// Names of the sets.
    pub sets: Vec<String>,
}

impl Material {
    /// Reads the good pictures under `data` and holds a share of every set out. What is wrong with the data is logged
    /// before training starts.
    ///
    /// Which pictures these are depends on their pixels alone, so that the autoencoder and the denoiser, whatever their
    /// seeds, hold out the same.
    ///
    /// # Errors
    /// No data set, or a set with less than three usable pictures.
    pub fn read(data: &Path, spec: &PreprocessSpec, hold_out: f64) -> anyhow::Result<Self> {
        let mut found = discover(data)?;
        let mut material = Self { train: vec![], select: vec![], calibrate: vec![], sets: vec![] };
        // Pictures are kept as bytes, in the range of bytes.
        let spec = PreprocessSpec { normalisation: Normalisation::SymmetricOne, ..spec.clone() };
        let mut skipped = found.skipped;
        for (index, set) in found.sets.iter_mut().enumerate() {
            survey_and_clean(set, &mut skipped);
            let pictures = load(&set.train, index, &spec, &mut skipped);
            ensure!(
                pictures.len() >= 3,
                "{}: {} usable good pictures of {}; at least 3 are needed, one to train on, one to choose with, one for the \
                 thresholds",
                set.name,
                pictures.len(),
                set.train.len()
            );
            let [train, select, calibrate] = divide(pictures, hold_out);
            material.train.extend(train);
            material.select.extend(select);
            material.calibrate.extend(calibrate);
            material.sets.push(set.name.clone());
        }
        for skipped in &skipped {
            log::warn!("left out: {}: {}", skipped.path.display(), skipped.reason);
        }
        log::info!(
            "{} good pictures to train on, {} to choose with, {} for the thresholds",
            material.train.len(),
            material.select.len(),
            material.calibrate.len()
        );
        Ok(material)
    }

    /// blake3 over all pixels, in order: what a run must find again to go on.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for picture in self.train.iter().chain(&self.select).chain(&self.calibrate) {
            hasher.update(&picture.rgb);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Divides the pictures of one set by the hash of their pixels: for training, choice (a quarter of what is held out) and
/// thresholds, at least one each.
fn divide(mut pictures: Vec<Picture>, hold_out: f64) -> [Vec<Picture>; 3] {
    pictures.sort_by_cached_key(|picture| *blake3::hash(&picture.rgb).as_bytes());
    let held = ((pictures.len() as f64 * hold_out).round() as usize).clamp(2, pictures.len() - 1);
    let mut select = pictures.split_off(pictures.len() - held);
    let calibrate = select.split_off((held / 4).max(1));
    [pictures, select, calibrate]
}

/// Which of `count` pictures pass number `pass` sees: every epoch has another order, and no picture is left out. It depends
/// on the seed and the pass alone, so a run that goes on sees what it would have seen.
pub fn order(count: usize, batch: usize, pass: usize, seed: u64) -> Vec<usize> {
    let first = pass * batch;
    let mut epoch = usize::MAX;
    let mut shuffled = Vec::new();
    (first..first + batch)
        .map(|position| {
            if position / count != epoch {
                epoch = position / count;
                shuffled = (0..count).collect::<Vec<_>>();
                shuffled.shuffle(&mut generator(seed, epoch, Purpose::Order));
            }
            shuffled[position % count]
        })
        .collect()
}

/// What random numbers are for: each purpose has its own.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    /// The order of an epoch.
    Order,
    /// Everything that a pass draws.
    Pass,
}

/// Random numbers of a pass or an epoch.
pub fn generator(seed: u64, index: usize, purpose: Purpose) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    rng.set_stream(purpose as u64);
    rng
}

/// Standard normal numbers.
pub fn normal(rng: &mut ChaCha8Rng, shape: [usize; 4], device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| StandardNormal.sample(rng)).collect();
    upload(values, shape, device)
}

/// Values on a device.
pub fn upload(values: Vec<f32>, shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A picture as the daemon would see it.
///
/// # Errors
/// What `prepare` says.
pub fn prepared(rgb: &[u8], spec: &PreprocessSpec) -> anyhow::Result<Prepared> {
    let meta = FrameMeta::of_picture("picture", spec.width as u32, spec.height as u32);
    let frame = Frame { meta, format: PixelFormat::Rgb8, pixels: FrameBuf::from(rgb.to_vec()) };
    Ok(prepare(&frame, &Roi::FULL, spec)?)
}

/// Pictures as model input `[b, 3, h, w]`.
///
/// # Errors
/// What `prepare` says.
pub fn images<'a>(
    pictures: impl Iterator<Item = &'a [u8]>,
    spec: &PreprocessSpec,
    device: &Device,
) -> anyhow::Result<Tensor<4>> {
    let prepared = pictures.map(|rgb| prepared(rgb, spec)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(stack(&prepared, spec, device))
}

/// Prepared pictures as model input `[b, 3, h, w]`.
pub fn stack(prepared: &[Prepared], spec: &PreprocessSpec, device: &Device) -> Tensor<4> {
    let values = prepared.iter().flat_map(|picture| picture.image.iter().copied()).collect();
    upload(values, [prepared.len(), 3, spec.height, spec.width], device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_picture_once_and_the_next_another_order() {
        let epoch = |e: usize| (0..5).flat_map(|pass| order(10, 2, e * 5 + pass, 3)).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(1));
        let sorted = |mut order: Vec<usize>| {
            order.sort_unstable();
            order
        };
        assert_eq!(sorted(first.clone()), (0..10).collect::<Vec<_>>());
        assert_eq!(sorted(second.clone()), (0..10).collect::<Vec<_>>());
        assert_ne!(first, second);
        // A batch that is larger than an epoch runs on into the next.
        assert_eq!(order(3, 7, 0, 1).len(), 7);
    }

    #[test]
    fn the_parts_share_no_picture_and_no_seed_moves_them() {
        for n in [3u8, 4, 50] {
            let pictures = |order: &mut dyn Iterator<Item = u8>| {
                order.map(|i| Picture { path: i.to_string().into(), rgb: vec![i], set: 0 }).collect()
            };
            let [train, select, calibrate] = divide(pictures(&mut (0..n)), 0.1);
            assert_eq!(train.len() + select.len() + calibrate.len(), usize::from(n));
            assert!(!train.is_empty() && !select.is_empty() && !calibrate.is_empty());
            let again = divide(pictures(&mut (0..n).rev()), 0.1);
            let paths = |part: &[Picture]| part.iter().map(|p| p.path.clone()).collect::<Vec<_>>();
            assert_eq!(paths(&again[2]), paths(&calibrate), "the order of the files does not matter");
        }
    }
}
