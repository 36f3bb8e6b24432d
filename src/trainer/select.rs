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
use crate::synthetic::corrupt::CorruptionFamily;

/// Smoothing of the map, in cells of the model grid.
const SIGMA: f64 = 2.5;
/// Cells per side that one value of the search stands for: the maps are smooth.
const STRIDE: usize = 2;
/// Defects of either kind that the search looks at, at least; pictures at most.
pub const DEFECTS: (usize, usize) = (18, 72);
/// Components are divided by what this share of good pictures stay under at their worst cell.
const WORST: f64 = 0.9;
/// Choices that are this near the best one, of 1.5, count as equally good: a few dozen synthetic defects tell no finer, and
/// they are what the refine head was trained on. Of these the one that leans least on trained components is taken.
const MARGIN: f64 = 0.03;
/// A refine head that is silent on good parts must not be scaled to infinity.
const REFINE_FLOOR: f64 = 0.002;

/// What was chosen, and how good it was on the pseudo-validation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// Weights, smoothing and pooling.
    pub map: MapSpec,
    /// Image AUROC on the synthetic defects.
    pub image_auroc: f64,
    /// Pixel AP on them.
    pub pixel_ap: f64,
    /// Pictures judged.
    pub pictures: usize,
    /// Image AUROC on the synthetic defects of families that training has not seen alone: the figure to look at.
    pub unseen_auroc: Option<f64>,
    /// Image AUROC per family, those first that training has not seen.
    pub families: Vec<FamilyRow>,
}

/// How well the defects of one family are told from good pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FamilyRow {
    /// Which.
    pub family: CorruptionFamily,
    /// Whether training has seen it.
    pub seen: bool,
    /// Pictures with such a defect.
    pub pictures: usize,
    /// Image AUROC.
    pub image_auroc: Option<f64>,
}

/// The components of one picture on the coarse search grid.
struct Maps {
    components: [Vec<f32>; 4],
    defect: Option<CorruptionFamily>,
    truth: Vec<bool>,
}

/// What the synthetic defects of the pseudo-validation are drawn with: the same again for the report.
pub fn defect_rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed ^ 0x5e1e_c7ed)
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
    let mut rng = defect_rng(seed);
    let (mut maps, blank) = (Vec::new(), vec![0u8; width * height]);
    with_and_without_defects(pictures, DEFECTS, (width, height), &mut rng, |picture, rgb, defect| {
        let class = if classes { picture.set + 1 } else { 0 };
        let components = components(network, rgb, class, (width, height), steps, device)?;
        maps.push(Maps {
            components,
            defect: defect.map(|defect| defect.family),
            truth: thin(defect.map_or(&blank, |defect| defect.mask), width, |m| *m > 127),
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
    let present = [true, true, network.refine.is_some(), network.prototypes.is_some()];
    Ok(search(&maps, width / STRIDE, floor, present))
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

/// Tries a small grid of weights of the components that are present, each divided by what good pictures show.
fn search(maps: &[Maps], width: usize, floor: f64, present: [bool; 4]) -> Choice {
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
    let labels: Vec<bool> = maps.iter().map(|m| m.defect.is_some()).collect();
    let truth: Vec<bool> = maps.iter().flat_map(|m| m.truth.iter().copied()).collect();
    let mut tried: Vec<(f64, f64, Found)> = Vec::new();
    let possible = |shares: &[f64; 4]| shares.iter().zip(present).all(|(share, present)| present || *share == 0.0);
    for shares in grid().filter(possible) {
        let weights: [f32; 4] = std::array::from_fn(|k| (shares[k] / scales[k]) as f32);
        let combined: Vec<AnomalyMap> = maps.iter().map(|m| combine(m, weights, width)).collect();
        let cells = combined.iter().flat_map(|map| map.values.iter().copied());
        let pixel_ap = Ranking::new(cells.zip(truth.iter().copied())).average_precision().unwrap_or(0.0);
        for fraction in [0.0003, 0.001, 0.005] {
            let pooling = Pooling::TopFraction { fraction };
            let scores: Vec<f32> = combined.iter().map(|map| pooling.pool(map).0).collect();
            let ranking = Ranking::new(scores.iter().copied().zip(labels.iter().copied()));
            let image_auroc = ranking.auroc().unwrap_or(0.0);
            let value = image_auroc + 0.5 * pixel_ap;
            let [features, latent, refine, prototypes] = shares;
            let leaning = (features + latent + refine) / prototypes;
            log::debug!("shares {shares:?}, top {fraction}: image AUROC {image_auroc:.4}, pixel AP {pixel_ap:.4}");
            let map = MapSpec { weights: map_weights(weights.map(f64::from)), sigma: SIGMA, pooling };
            tried.push((value, leaning, Found { map, image_auroc, pixel_ap, scores }));
        }
    }
    // Without a picture to choose on, the components that need no choice.
    let best = tried.iter().map(|(value, ..)| *value).fold(0.0, f64::max);
    tried.retain(|(value, ..)| *value >= best - MARGIN);
    tried.sort_by(|a, b| a.1.total_cmp(&b.1).then(b.0.total_cmp(&a.0)));
    let found =
        tried.into_iter().next().filter(|_| !maps.is_empty()).map(|(.., found)| found).unwrap_or_else(|| Found {
            map: MapSpec {
                weights: map_weights([1.0 / scales[0], 0.0, 1.0 / scales[2], 1.0 / scales[3]]),
                sigma: SIGMA,
                pooling: Pooling::TopFraction { fraction: 0.001 },
            },
            image_auroc: 0.0,
            pixel_ap: 0.0,
            scores: Vec::new(),
        });
    let Found { map, image_auroc, pixel_ap, scores } = found;
    // Good pictures against those defects that count.
    let against = |counts: &dyn Fn(CorruptionFamily) -> bool| {
        let scored = maps.iter().zip(&scores).filter(|(maps, _)| maps.defect.is_none_or(counts));
        Ranking::new(scored.map(|(maps, score)| (*score, maps.defect.is_some()))).auroc()
    };
    let row = |family: CorruptionFamily| FamilyRow {
        family,
        seen: CorruptionFamily::TRAINING.contains(&family),
        pictures: maps.iter().filter(|maps| maps.defect == Some(family)).count(),
        image_auroc: against(&|other| other == family),
    };
    Choice {
        map,
        image_auroc,
        pixel_ap,
        pictures: maps.len(),
        unseen_auroc: against(&|family| CorruptionFamily::VALIDATION.contains(&family)),
        families: CorruptionFamily::VALIDATION.into_iter().chain(CorruptionFamily::TRAINING).map(row).collect(),
    }
}

/// The best weights so far.
struct Found {
    map: MapSpec,
    image_auroc: f64,
    pixel_ap: f64,
    scores: Vec<f32>,
}

fn good(maps: &[Maps]) -> impl Iterator<Item = &Maps> {
    maps.iter().filter(|maps| maps.defect.is_none())
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
                let defect = (k % 2 == 1).then_some([CorruptionFamily::Warp, CorruptionFamily::Blob][k / 2 % 2]);
                let noise: Vec<f32> = (0..64).map(|i| ((i * 7 + k * 13) % 11) as f32 * 0.1).collect();
                let mut refine = vec![0.01f32; 64];
                let mut truth = vec![false; 64];
                if defect.is_some() {
                    refine[20..24].fill(0.9);
                    truth[20..24].fill(true);
                }
                Maps { components: [noise.clone(), noise.clone(), refine, noise], defect, truth }
            })
            .collect();
        let choice = search(&maps, 8, 0.0, [true; 4]);
        assert!(choice.image_auroc + 0.5 * choice.pixel_ap >= 1.5 - MARGIN, "{choice:?}");
        assert!(choice.map.weights.refine > choice.map.weights.features);
        assert_eq!(choice.pictures, 20);
        assert!(choice.unseen_auroc.is_some_and(|auroc| auroc > 0.97), "{choice:?}");
        let row = |family| *choice.families.iter().find(|row| row.family == family).expect("every family");
        let (warp, blob, crack) =
            (row(CorruptionFamily::Warp), row(CorruptionFamily::Blob), row(CorruptionFamily::Crack));
        assert_eq!((warp.seen, warp.pictures, blob.seen, blob.pictures), (false, 5, true, 5));
        assert!([warp, blob].iter().all(|row| row.image_auroc.is_some_and(|auroc| auroc > 0.97)), "{choice:?}");
        assert_eq!((crack.pictures, crack.image_auroc), (0, None));
    }

    #[test]
    fn what_tells_as_well_without_trained_components_does_without_them() {
        let maps: Vec<Maps> = (0..20)
            .map(|k| {
                let defect = (k % 2 == 1).then_some(CorruptionFamily::Warp);
                let mut truth = vec![false; 64];
                let mut telling = vec![0.01f32; 64];
                if defect.is_some() {
                    truth[20..24].fill(true);
                    telling[20..24].fill(0.9);
                }
                Maps { components: [vec![0.1; 64], vec![0.1; 64], telling.clone(), telling], defect, truth }
            })
            .collect();
        let choice = search(&maps, 8, 0.0, [true; 4]);
        assert_eq!((choice.image_auroc, choice.pixel_ap), (1.0, 1.0));
        let MapWeights { features, latent, refine, prototypes, .. } = choice.map.weights;
        assert_eq!((features, latent, refine), (0.0, 0.0, 0.0));
        assert!(prototypes > 0.0);
        // Where there are no prototypes, what is there decides.
        let choice = search(&maps, 8, 0.0, [true, true, true, false]);
        let MapWeights { refine, prototypes, .. } = choice.map.weights;
        assert!(refine > 0.0 && prototypes == 0.0, "{choice:?}");
        assert_eq!(choice.image_auroc, 1.0);
    }
}
