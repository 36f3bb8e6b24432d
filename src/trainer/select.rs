//! Choices by pseudo-validation on good pictures that training has not seen: each with a synthetic defect of a family that
//! training has not seen either, and with one of a family that it has. Unseen families alone would ask for components
//! that training cannot reach, seen ones alone for the refine head and nothing else; real defects lie between. The test
//! split is never looked at.

use burn::tensor::{Device, FloatDType, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::pictures::{Picture, picture_tensor, with_and_without_defects};
use crate::bundle::manifest::MapSpec;
use crate::inspection::anomaly::{AnomalyMap, Pooling, gaussian_blur};
use crate::inspection::metrics::Ranking;
use crate::model::network::{MapWeights, Network};

/// Smoothing of the map, in cells of the model grid.
const SIGMA: f64 = 2.5;
/// Cells per side that one value of the search stands for: the maps are smooth.
const STRIDE: usize = 2;
/// Pictures that the search uses at most.
const MAX_PICTURES: usize = 72;
/// Components are divided by what this share of good pictures stay under at their worst cell.
const WORST: f64 = 0.9;
/// A refine head that is silent on good parts must not be scaled to infinity.
const REFINE_FLOOR: f64 = 0.002;

/// What was chosen, and how good it was on the pseudo-validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Choice {
    /// Weights, smoothing and pooling.
    pub map: MapSpec,
    /// Image AUROC on the synthetic defects.
    pub image_auroc: f64,
    /// Pixel AP on them.
    pub pixel_ap: f64,
    /// Pictures judged.
    pub pictures: usize,
}

/// The components of one picture on the coarse search grid.
struct Maps {
    components: [Vec<f32>; 4],
    defective: bool,
    truth: Vec<bool>,
}

/// Chooses the weights of the components and the pooling of the score at `steps` steps.
///
/// # Errors
/// What the device says.
pub fn choose(
    network: &Network,
    pictures: &[Picture],
    classes: bool,
    (width, height): (usize, usize),
    steps: u32,
    seed: u64,
    device: &Device,
) -> anyhow::Result<Choice> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5e1e_c7ed);
    let (mut maps, blank) = (Vec::new(), vec![0u8; width * height]);
    with_and_without_defects(pictures, MAX_PICTURES, (width, height), &mut rng, |picture, rgb, mask| {
        let class = if classes { picture.set + 1 } else { 0 };
        let components = components(network, rgb, class, (width, height), steps, device)?;
        maps.push(Maps {
            components,
            defective: mask.is_some(),
            truth: thin(mask.unwrap_or(&blank), width, |m| *m > 127),
        });
        Ok(())
    })?;
    let floor =
        quantile(good(&maps).flat_map(|maps| maps.components[3].iter().step_by(3).copied()), 0.5).unwrap_or(0.0);
    for Maps { components, .. } in &mut maps {
        components[3].iter_mut().for_each(|value| *value = (*value - floor as f32).max(0.0));
        for component in components {
            *component = gaussian_blur(component, width / STRIDE, height / STRIDE, SIGMA / STRIDE as f64);
        }
    }
    Ok(search(&maps, width / STRIDE, floor))
}

fn thin<T, U>(values: &[T], width: usize, take: impl Fn(&T) -> U) -> Vec<U> {
    values.chunks_exact(width).step_by(STRIDE).flat_map(|row| row.iter().step_by(STRIDE).map(&take)).collect()
}

fn components(
    network: &Network,
    rgb: &[u8],
    class: usize,
    (width, height): (usize, usize),
    steps: u32,
    device: &Device,
) -> anyhow::Result<[Vec<f32>; 4]> {
    let plane = width * height;
    let image = picture_tensor(rgb, width, height, device);
    let redrawn = network.reconstruct(image.clone(), None, &[class], steps, None);
    let parts = network.components(image, &[class], &redrawn);
    let or_nothing = |component: Option<Tensor<4>>| component.unwrap_or_else(|| parts.latent.zeros_like());
    let (refine, prototypes) = (or_nothing(parts.refine), or_nothing(parts.prototypes));
    let read = Tensor::cat(vec![parts.features, parts.latent.clone(), refine, prototypes], 1).cast(FloatDType::F32);
    let values = read.try_into_vec_as::<f32>()?;
    let mut planes = values.chunks_exact(plane).map(|values| thin(values, width, |v| *v));
    Ok(std::array::from_fn(|_| planes.next().unwrap_or_default()))
}

/// Tries a small grid of weights, each on components that are divided by what good pictures show.
fn search(maps: &[Maps], width: usize, floor: f64) -> Choice {
    let scales: [f64; 4] = std::array::from_fn(|k| {
        let worst = good(maps).map(|maps| maps.components[k].iter().copied().fold(0.0, f32::max));
        quantile(worst, WORST).unwrap_or(1.0).max(if k == 2 { REFINE_FLOOR } else { 1e-4 })
    });
    let map_weights = |[features, latent, refine, prototypes]: [f64; 4]| MapWeights {
        features,
        latent,
        refine,
        prototypes,
        prototypes_floor: floor,
    };
    let labels: Vec<bool> = maps.iter().map(|m| m.defective).collect();
    let truth: Vec<bool> = maps.iter().flat_map(|m| m.truth.iter().copied()).collect();
    let mut best: Option<(f64, Choice)> = None;
    for shares in grid() {
        let weights: [f32; 4] = std::array::from_fn(|k| (shares[k] / scales[k]) as f32);
        let combined: Vec<AnomalyMap> = maps.iter().map(|m| combine(m, weights, width)).collect();
        let cells = combined.iter().flat_map(|map| map.values.iter().copied());
        let pixel_ap = Ranking::new(cells.zip(truth.iter().copied())).average_precision().unwrap_or(0.0);
        for fraction in [0.0003, 0.001, 0.005] {
            let pooling = Pooling::TopFraction { fraction };
            let scores = combined.iter().map(|map| pooling.pool(map).0);
            let image_auroc = Ranking::new(scores.zip(labels.iter().copied())).auroc().unwrap_or(0.0);
            let value = image_auroc + 0.5 * pixel_ap;
            if best.as_ref().is_none_or(|(so_far, _)| value > *so_far) {
                let map = MapSpec { weights: map_weights(weights.map(f64::from)), sigma: SIGMA, pooling };
                best = Some((value, Choice { map, image_auroc, pixel_ap, pictures: maps.len() }));
            }
        }
    }
    // Without a picture to choose on, the components that need no choice.
    best.map_or(
        Choice {
            map: MapSpec {
                weights: map_weights([1.0 / scales[0], 0.0, 1.0 / scales[2], 1.0 / scales[3]]),
                sigma: SIGMA,
                pooling: Pooling::TopFraction { fraction: 0.001 },
            },
            image_auroc: 0.0,
            pixel_ap: 0.0,
            pictures: 0,
        },
        |(_, choice)| choice,
    )
}

fn good(maps: &[Maps]) -> impl Iterator<Item = &Maps> {
    maps.iter().filter(|maps| !maps.defective)
}

/// The value that this share of the others stay under.
pub(super) fn quantile(values: impl Iterator<Item = f32>, level: f64) -> Option<f64> {
    let mut values: Vec<f32> = values.collect();
    let rank = (values.len() as f64 * level) as usize;
    (!values.is_empty()).then(|| f64::from(*values.select_nth_unstable_by(rank, f32::total_cmp).1))
}

/// Every combination of component weights that is tried.
fn grid() -> impl Iterator<Item = [f64; 4]> {
    let shares = [&[0.0, 1.0][..], &[0.0, 0.5], &[0.0, 0.3, 1.0, 3.0], &[0.0, 0.5, 1.0]];
    let count: usize = shares.iter().map(|values| values.len()).product();
    (1..count).map(move |mut index| {
        shares.map(|values| {
            let value = values[index % values.len()];
            index /= values.len();
            value
        })
    })
}

fn combine(maps: &Maps, weights: [f32; 4], width: usize) -> AnomalyMap {
    let values: Vec<f32> = (0..maps.truth.len())
        .map(|i| maps.components.iter().zip(weights).map(|(component, weight)| component[i] * weight).sum())
        .collect();
    AnomalyMap { width, height: values.len() / width.max(1), values }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_component_that_tells_defects_apart_is_chosen() {
        let maps: Vec<Maps> = (0..20)
            .map(|k| {
                let defective = k % 2 == 1;
                let noise: Vec<f32> = (0..64).map(|i| ((i * 7 + k * 13) % 11) as f32 * 0.1).collect();
                let mut refine = vec![0.01f32; 64];
                let mut truth = vec![false; 64];
                if defective {
                    refine[20..24].fill(0.9);
                    truth[20..24].fill(true);
                }
                Maps { components: [noise.clone(), noise.clone(), refine, noise], defective, truth }
            })
            .collect();
        let choice = search(&maps, 8, 0.0);
        assert_eq!((choice.image_auroc, choice.pixel_ap), (1.0, 1.0));
        assert!(choice.map.weights.refine > choice.map.weights.features);
    }
}
