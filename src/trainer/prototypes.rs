//! Choosing the prototypes: patches of good training pictures that cover all the others.

use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

use super::augment::Augmentation;
use super::metric::Spread;
use super::pictures::{Picture, picture_tensor};
use crate::model::network::Network;
use crate::model::prototypes::{Metric, PrototypesConfig};

/// Patches per class that the prototypes are chosen from, at most.
const MAX_PATCHES: usize = 20_000;

/// Chooses prototypes of each class (one set is one class) from good pictures and, where these are few, from one varied copy
/// of each, so that they cover small changes of light, focus and pose: `[max(classes, 1), per_class, channels]`, and by what
/// their distances are measured.
///
/// # Errors
/// What the device says.
#[allow(clippy::too_many_arguments)]
pub fn choose_prototypes(
    network: &Network,
    config: &PrototypesConfig,
    pictures: &[Picture],
    augmentations: &[Augmentation],
    classes: usize,
    (width, height): (usize, usize),
    seed: u64,
    device: &Device,
) -> anyhow::Result<(Tensor<3>, Option<Metric>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x0070_726f_746f);
    let (mut chosen, mut channels) = (Vec::new(), 0);
    let (mut centers, mut factors) = (Vec::new(), Vec::new());
    for class in 0..classes.max(1) {
        let own: Vec<&Picture> = pictures.iter().filter(|p| classes == 0 || p.set == class).collect();
        let mut rows: Vec<f32> = Vec::new();
        for picture in &own {
            // What the picture leaves of its share goes to the copy. Many pictures leave nothing: they show their own spread,
            // and more of it would hide defects.
            let mut left = MAX_PATCHES.div_ceil(own.len());
            let copy = augmentations[picture.set].apply(&picture.rgb, width, height, &mut rng);
            for rgb in [&picture.rgb, &copy] {
                if left == 0 {
                    break;
                }
                let image = picture_tensor(rgb, width, height, device);
                let found = config.patches(&network.features.forward(image));
                let cells = found.dims()[1];
                channels = found.dims()[2];
                let found = found.try_into_vec_as::<f32>()?;
                let share = left.min(cells);
                left -= share;
                for cell in sample(&mut rng, cells, share) {
                    rows.extend_from_slice(&found[cell * channels..][..channels]);
                }
            }
        }
        if config.metric {
            let spread = Spread::of(&rows, channels, own.len());
            rows = spread.project(&rows);
            centers.extend(spread.center);
            factors.extend(spread.factor);
        }
        for index in cover(&rows, channels, config.per_class) {
            chosen.extend_from_slice(&rows[index * channels..][..channels]);
        }
    }
    let upload = |values, rows| {
        let shape = [classes.max(1), rows, channels];
        Tensor::<3>::from_data(TensorData::new(values, shape), device)
    };
    let metric = config.metric.then(|| Metric::new(upload(centers, 1), upload(factors, channels)));
    Ok((upload(chosen, config.per_class), metric))
}

/// Indices of `count` rows that cover all: each next one is the farthest from those before it (k-center greedy, as in
/// PatchCore). With fewer rows than that they repeat.
///
/// On the host, so that the same pictures give the same prototypes on every device.
fn cover(rows: &[f32], channels: usize, count: usize) -> Vec<usize> {
    let mut distance = vec![f32::INFINITY; rows.len() / channels.max(1)];
    let mut chosen = vec![0usize];
    while chosen.len() < count.min(distance.len()) {
        let last = &rows[chosen[chosen.len() - 1] * channels..][..channels];
        let mut farthest = (0, -1.0f32);
        for (index, (row, nearest)) in rows.chunks_exact(channels).zip(&mut distance).enumerate() {
            let apart: f32 = row.iter().zip(last).map(|(a, b)| (a - b) * (a - b)).sum();
            *nearest = nearest.min(apart);
            if *nearest > farthest.1 {
                farthest = (index, *nearest);
            }
        }
        chosen.push(farthest.0);
    }
    (0..count).map(|k| chosen[k % chosen.len()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cover_takes_the_far_ones_first() {
        let rows = [0.0, 0.1, 10.0, 5.0, 0.2];
        assert_eq!(cover(&rows, 1, 3), [0, 2, 3]);
        assert_eq!(cover(&rows, 1, 7), [0, 2, 3, 4, 1, 0, 2]);
    }
}
