//! The map: how its components are weighed, and how good it is on a pseudo-validation.
//!
//! Both look at good pictures that training has not seen. The weights come from these alone. The pseudo-validation puts a
//! synthetic defect on each, of a family that training has not seen either, and one of a family that it has: real defects
//! lie between. The test split is never looked at.

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
/// Cells per side that one value of the pseudo-validation stands for: the maps are smooth.
const STRIDE: usize = 2;
/// Defects of either kind that the pseudo-validation looks at, at least; pictures at most.
pub const DEFECTS: (usize, usize) = (18, 72);
/// Components are divided by what this share of good pictures stay under at their worst cell.
const WORST: f64 = 0.9;
/// Smallest divisor of the refine head: one that is silent on good parts must not drown the others.
const REFINE_FLOOR: f64 = 0.05;
/// Beyond what good parts show, a higher probability counts for ever less (`docs/experiments.md`).
const REFINE_POWER: f64 = 0.7;
/// What is learnt from few good parts and synthetic defects counts for less than what good parts show themselves.
const FEATURES_SHARE: f64 = 0.3;
/// The score of a picture is the mean of this share of its cells.
const POOLING: Pooling = Pooling::TopFraction { fraction: 0.005 };

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

/// Places of some components in [`Maps::components`].
const FEATURES: usize = 0;
const REFINE: usize = 2;
const PROTOTYPES: usize = 3;

/// The components of one picture on a coarse grid.
struct Maps {
    /// Features, latent, refine, prototypes.
    components: [Vec<f32>; 4],
    defect: Option<CorruptionFamily>,
    truth: Vec<bool>,
}

/// What the synthetic defects of the pseudo-validation are drawn with: the same again for the report.
pub fn defect_rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed ^ 0x5e1e_c7ed)
}

/// Weighs the components at `steps` steps, and judges the map on synthetic defects.
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
    // Nothing is like its nearest prototype or its repaired features: up to the middle of good parts that means nothing.
    let floors = [FEATURES, PROTOTYPES].map(|k| {
        let shown = good(&maps).flat_map(|maps| maps.components[k].iter().step_by(3).copied());
        quantile(shown, 0.5).unwrap_or(0.0)
    });
    let floors = [floors[0], 0.0, 0.0, floors[1]];
    for Maps { components, .. } in &mut maps {
        for (component, floor) in components.iter_mut().zip(floors) {
            component.iter_mut().for_each(|value| *value = (*value - floor as f32).max(0.0));
        }
    }
    // The refine head judges the latents' difference, too.
    let present = [true, network.refine.is_none(), network.refine.is_some(), network.prototypes.is_some()];
    Ok(weigh(&maps, floors, present, Smoothing { width: width / STRIDE, sigma: SIGMA / STRIDE as f64 }))
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

/// How a map of the coarse grid is smoothed.
#[derive(Clone, Copy)]
struct Smoothing {
    width: usize,
    sigma: f64,
}

impl Smoothing {
    fn apply(self, values: &[f32]) -> Vec<f32> {
        gaussian_blur(values, self.width, values.len() / self.width.max(1), self.sigma)
    }
}

/// Every component that is there is divided by what good pictures show of it, and counts with a fixed share: nothing is tuned
/// to synthetic defects, which are not the ones that come. What fails in different ways is worth more together than the best
/// of it.
fn weigh(maps: &[Maps], floors: [f64; 4], present: [bool; 4], smoothing: Smoothing) -> Choice {
    let weights: [f64; 4] = std::array::from_fn(|k| {
        let worst = good(maps).map(|maps| smoothing.apply(&maps.components[k]).into_iter().fold(0.0, f32::max));
        let scale = quantile(worst, WORST).unwrap_or(1.0).max(if k == REFINE { REFINE_FLOOR } else { 1e-4 });
        let share = if k == FEATURES && present[PROTOTYPES] { FEATURES_SHARE } else { 1.0 };
        if present[k] { share / scale } else { 0.0 }
    });
    let [features, latent, refine, prototypes] = weights;
    let [features_floor, _, _, prototypes_floor] = floors;
    let refine_power = REFINE_POWER;
    let weighed = MapWeights { features, features_floor, latent, refine, refine_power, prototypes, prototypes_floor };
    let combined: Vec<AnomalyMap> = maps.iter().map(|m| combine(m, weights.map(|w| w as f32), smoothing)).collect();
    let cells = combined.iter().zip(maps).flat_map(|(map, m)| map.values.iter().copied().zip(m.truth.iter().copied()));
    let pixel_ap = Ranking::new(cells).average_precision().unwrap_or(0.0);
    let scores: Vec<f32> = combined.iter().map(|map| POOLING.pool(map).0).collect();
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
        map: MapSpec { weights: weighed, sigma: SIGMA, pooling: POOLING },
        image_auroc: against(&|_| true).unwrap_or(0.0),
        pixel_ap,
        pictures: maps.len(),
        unseen_auroc: against(&|family| CorruptionFamily::VALIDATION.contains(&family)),
        families: CorruptionFamily::VALIDATION.into_iter().chain(CorruptionFamily::TRAINING).map(row).collect(),
    }
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

/// As [`crate::model::network::Components::combine`], smoothed.
fn combine(maps: &Maps, weights: [f32; 4], smoothing: Smoothing) -> AnomalyMap {
    let cell = |i: usize| -> f32 {
        let weighed = |k: usize| maps.components[k][i] * weights[k];
        (0..4).map(|k| if k == REFINE { weighed(k).powf(REFINE_POWER as f32) } else { weighed(k) }).sum()
    };
    let values = smoothing.apply(&(0..maps.truth.len()).map(cell).collect::<Vec<f32>>());
    AnomalyMap { width: smoothing.width, height: values.len() / smoothing.width.max(1), values }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_IT_IS: Smoothing = Smoothing { width: 8, sigma: 0.0 };

    #[test]
    fn components_count_whatever_their_units() {
        let noise = |k: usize, unit: f32| -> Vec<f32> {
            (0..64).map(|i| ((i * 7 + k * 13) % 11) as f32 * 0.1 * unit).collect()
        };
        let maps: Vec<Maps> = (0..20)
            .map(|k| {
                let defect = (k % 2 == 1).then_some([CorruptionFamily::Warp, CorruptionFamily::Blob][k / 2 % 2]);
                let mut refine = vec![0.0; 64];
                let mut truth = vec![false; 64];
                if defect.is_some() {
                    refine[20..24].fill(0.9);
                    truth[20..24].fill(true);
                }
                Maps { components: [noise(k, 1.0), noise(k, 7.0), refine, noise(k, 100.0)], defect, truth }
            })
            .collect();
        let choice = weigh(&maps, [0.5, 0.0, 0.0, 2.0], [true, false, true, true], AS_IT_IS);
        let MapWeights { features, features_floor, latent, refine, refine_power, prototypes, prototypes_floor } =
            choice.map.weights;
        assert!((features - FEATURES_SHARE).abs() < 1e-6 && (prototypes - 0.01).abs() < 1e-8, "{choice:?}");
        assert_eq!((features_floor, latent, refine_power, prototypes_floor), (0.5, 0.0, 0.7, 2.0));
        // Silent on good parts, but not without bounds.
        assert!((refine - 1.0 / REFINE_FLOOR).abs() < 1e-6, "{choice:?}");
        assert_eq!((choice.pictures, choice.image_auroc), (20, 1.0));
        assert!(choice.pixel_ap > 0.999, "{choice:?}");
        assert_eq!(choice.unseen_auroc, Some(1.0));
        let row = |family| *choice.families.iter().find(|row| row.family == family).expect("every family");
        let (warp, blob, crack) =
            (row(CorruptionFamily::Warp), row(CorruptionFamily::Blob), row(CorruptionFamily::Crack));
        assert_eq!((warp.seen, warp.pictures, blob.seen, blob.pictures), (false, 5, true, 5));
        assert_eq!((warp.image_auroc, crack.pictures, crack.image_auroc), (Some(1.0), 0, None));
    }

    #[test]
    fn without_a_picture_to_look_at_the_map_still_has_weights() {
        let choice = weigh(&[], [0.0; 4], [true, false, true, true], AS_IT_IS);
        let MapWeights { features, refine, prototypes, .. } = choice.map.weights;
        assert_eq!((features, refine, prototypes), (FEATURES_SHARE, 1.0, 1.0));
        assert_eq!((choice.pictures, choice.image_auroc, choice.unseen_auroc), (0, 0.0, None));
    }
}
