//! Training pictures in memory, on the model grid, and what is held out of them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

use crate::detector::prepare_picture;
use crate::inspection::frame::Prepared;
use crate::inspection::tiles::crop;
use crate::preprocess::spec::PreprocessSpec;
use crate::preprocess::to_rgb;
use crate::synthetic::corrupt::{CorruptionFamily, corrupt};
use crate::trainer::dataset::Skipped;

/// One good picture: `height * width * 3` bytes RGB on the model grid.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Where it came from.
    pub path: PathBuf,
    /// Its pixels.
    pub rgb: Vec<u8>,
    /// Index of its set.
    pub set: usize,
}

/// Reads a picture file as model input, whole frame: the way of `trainer` and of `dsad inspect`.
///
/// # Errors
/// An unreadable file, or one that is not a picture; the message has no path.
pub fn prepare_file(path: &Path, spec: &PreprocessSpec) -> Result<Prepared, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    prepare_picture(&bytes, spec)
}

/// Interleaved bytes on the model grid as model input `[1, 3, height, width]` in -1 to 1.
pub fn picture_tensor(rgb: &[u8], width: usize, height: usize, device: &Device) -> Tensor<4> {
    let plane = width * height;
    let planar: Vec<f32> = (0..3 * plane).map(|i| f32::from(rgb[i % plane * 3 + i / plane]) / 127.5 - 1.0).collect();
    Tensor::from_data(TensorData::new(planar, [1, 3, height, width]), device)
}

/// Loads every readable picture; the others are listed.
pub fn load(paths: &[PathBuf], set: usize, spec: &PreprocessSpec, skipped: &mut Vec<Skipped>) -> Vec<Picture> {
    let mut pictures = Vec::with_capacity(paths.len());
    for path in paths {
        match prepare_file(path, spec) {
            Ok(prepared) => {
                pictures.push(Picture { path: path.clone(), rgb: to_rgb(&prepared.image, spec.normalisation), set })
            }
            Err(reason) => skipped.push(Skipped { path: path.clone(), reason }),
        }
    }
    pictures
}

/// Random tiles of a set's pictures: what the model sees of parts that are larger than it. At most 2,000 of a set, so
/// that they fit into memory; a file is read whole, one at a time.
///
/// # Errors
/// A file that could be read before and cannot now.
pub fn tiles(pictures: &[Picture], spec: &PreprocessSpec, rng: &mut ChaCha8Rng) -> anyhow::Result<Vec<Picture>> {
    let Some(grid) = spec.tiles else { return Ok(pictures.to_vec()) };
    let tile = (spec.width, spec.height);
    let places = grid.places(tile.0, tile.1);
    let each = (MOST_TILES / pictures.len().max(1)).clamp(1, places.len());
    let mut cut = Vec::with_capacity(each * pictures.len());
    for Picture { path, set, .. } in pictures {
        let prepared =
            prepare_file(path, spec).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())?;
        for index in sample(rng, places.len(), each) {
            let planes = crop(&prepared.image, spec.canvas(), places[index], tile);
            cut.push(Picture { path: path.clone(), rgb: to_rgb(&planes, spec.normalisation), set: *set });
        }
    }
    Ok(cut)
}

/// Tiles of one set that are trained on at most: 400 MB of 256x256.
const MOST_TILES: usize = 2_000;

/// Every `n`-th picture, so that at most `most` of them remain.
pub fn spread(pictures: &[Picture], most: usize) -> impl Iterator<Item = &Picture> {
    pictures.iter().step_by(pictures.len().div_ceil(most.max(1)).max(1))
}

/// A synthetic defect in a picture.
#[derive(Debug, Clone, Copy)]
pub struct Spoilt<'a> {
    /// Its family.
    pub family: CorruptionFamily,
    /// 255 where it shows.
    pub mask: &'a [u8],
}

/// Pseudo-validation: at most `most` good pictures, each as it is and with one synthetic defect of a family that `fit` does
/// not train on and one of a family that it does; few pictures get more defects, until there are `least` of either kind.
///
/// # Errors
/// What `judge` says.
pub fn with_and_without_defects(
    pictures: &[Picture],
    (least, most): (usize, usize),
    (width, height): (usize, usize),
    rng: &mut ChaCha8Rng,
    mut judge: impl FnMut(&Picture, &[u8], Option<Spoilt<'_>>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let chosen: Vec<&Picture> = spread(pictures, most).collect();
    let rounds = least.div_ceil(chosen.len().max(1)).max(1);
    for (index, &picture) in std::iter::repeat_n(&chosen, rounds).flatten().enumerate() {
        let other = &pictures[(index * 7 + 1) % pictures.len()].rgb;
        if index < chosen.len() {
            judge(picture, &picture.rgb, None)?;
        }
        for families in [&CorruptionFamily::VALIDATION[..], &CorruptionFamily::TRAINING] {
            let family = families[index % families.len()];
            let spoilt = corrupt(&picture.rgb, width, height, Some(other), family, rng);
            judge(picture, &spoilt.rgb, Some(Spoilt { family, mask: &spoilt.mask }))?;
        }
    }
    Ok(())
}

/// How the good pictures of one set are divided. The three parts share no picture.
#[derive(Debug, Clone)]
pub struct Split {
    /// For the networks.
    pub train: Vec<Picture>,
    /// For choices by pseudo-validation.
    pub select: Vec<Picture>,
    /// For the thresholds.
    pub calibrate: Vec<Picture>,
}

/// Pictures held out for the thresholds, of `n`: `max(20 %, min(99, n / 3))`, at least 1 of two or more.
pub fn calibration_count(n: usize) -> usize {
    (n / 5).max(99.min(n / 3)).max(usize::from(n > 1))
}

/// Divides the pictures of one set by a seeded shuffle.
pub fn split(mut pictures: Vec<Picture>, seed: u64) -> Split {
    pictures.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let held = calibration_count(pictures.len());
    let select = (pictures.len() / 10).clamp(usize::from(pictures.len() > 2), 48);
    let calibrate = pictures.split_off(pictures.len() - held);
    let chosen = pictures.split_off(pictures.len().saturating_sub(select).max(1.min(pictures.len())));
    Split { train: pictures, select: chosen, calibrate }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_share_no_picture_and_lose_none() {
        for n in [1usize, 2, 3, 5, 31, 200, 900] {
            let pictures = (0..n).map(|i| Picture { path: i.to_string().into(), rgb: vec![], set: 0 }).collect();
            let parts = split(pictures, 7);
            let mut names: Vec<_> =
                [&parts.train, &parts.select, &parts.calibrate].into_iter().flatten().map(|p| p.path.clone()).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), n, "n = {n}");
            assert!(!parts.train.is_empty());
        }
    }

    #[test]
    fn few_pictures_get_defects_enough_and_each_is_judged_once_as_it_is() {
        let picture = |k: u8| Picture { path: "x".into(), rgb: vec![90 + k; 64 * 64 * 3], set: 0 };
        for (count, least, good, spoilt) in [(3u8, 20, 3, 42), (30, 12, 15, 30), (2, 1, 2, 4)] {
            let pictures: Vec<Picture> = (0..count).map(picture).collect();
            let mut seen = [0; 2];
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            with_and_without_defects(&pictures, (least, 20), (64, 64), &mut rng, |_, _, defect| {
                seen[usize::from(defect.is_some())] += 1;
                assert!(defect.is_none_or(|defect| defect.mask.contains(&255)));
                Ok(())
            })
            .expect("judges");
            assert_eq!(seen, [good, spoilt]);
        }
    }

    #[test]
    fn the_hold_out_follows_the_recipe() {
        assert_eq!(calibration_count(31), 10);
        assert_eq!(calibration_count(209), 69);
        assert_eq!(calibration_count(300), 99);
        assert_eq!(calibration_count(1_000), 200);
    }
}
