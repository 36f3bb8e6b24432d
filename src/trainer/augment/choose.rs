//! The ranges of a set: what its good pictures show, at least [`Augmentation::LEAST`], at most [`Augmentation::MOST`].

use burn::tensor::Device;

use super::{Augmentation, pose, resample, symmetry};
use crate::model::features::FeatureExtractor;
use crate::trainer::appearance::{Appearance, Spread};
use crate::trainer::pictures::{Picture, spread};

/// Pictures whose light and focus are measured, at most.
const MEASURED: usize = 240;
/// Pictures that are blurred to see how sharpness falls.
const BLURRED: usize = 5;
/// A part that moves by more than this of the shorter side leaves the picture.
const MOST_SHIFT: f64 = 0.05;

/// Chooses how the good pictures of one set are varied.
///
/// - Light: half of the spread of their brightness, and of what is left of it when contrast explains the rest.
/// - Focus: the blur that takes a usual picture to the least sharp ones.
/// - Pose: how far the same edges lie apart; turns to both sides where parts lie at any angle.
/// - Flips: where a flipped picture is as near to the others as it was before.
///
/// # Errors
/// What the device says.
pub fn choose(
    pictures: &[Picture],
    features: &FeatureExtractor,
    (width, height): (usize, usize),
    device: &Device,
) -> anyhow::Result<Augmentation> {
    let (gain, offset, blur) = light_and_focus(pictures, width, height).unwrap_or_default();
    let pose = pose::spread(pictures, (width, height));
    let shown = symmetry::shown(pictures, features, (width, height), device)?;
    let (least, most) = (Augmentation::LEAST, Augmentation::MOST);
    let most_shift = most.shift.min(MOST_SHIFT * width.min(height) as f64).max(least.shift);
    let within = |value: f64, least: f64, most: f64| (value.clamp(least, most) * 1e3).round() / 1e3;
    Ok(Augmentation {
        gain: within(gain, least.gain, most.gain),
        offset: within(offset, least.offset, most.offset),
        blur: within(blur, least.blur, most.blur),
        shift: within(pose.map_or(0.0, |pose| pose.shift), least.shift, most_shift),
        rotation: if shown.any_angle {
            symmetry::ANGLE
        } else {
            within(pose.map_or(0.0, |pose| pose.rotation), least.rotation, most.rotation)
        },
        scale: within(pose.map_or(0.0, |pose| pose.scale), least.scale, most.scale),
        symmetry: shown.symmetry,
    })
}

fn light_and_focus(pictures: &[Picture], width: usize, height: usize) -> Option<(f64, f64, f64)> {
    let measured: Vec<(&Picture, Appearance)> =
        spread(pictures, MEASURED).map(|picture| (picture, Appearance::of_rgb(&picture.rgb, width))).collect();
    let over = |of: fn(&Appearance) -> f32| Spread::of(measured.iter().map(move |(_, looks)| of(looks)));
    let (light, contrast, sharpness) = (over(|l| l.light)?, over(|l| l.contrast)?, over(|l| l.sharpness)?);
    let gain = 0.5 * light.ratio().ln();
    // A gain changes brightness and contrast alike; what it leaves was added.
    let added = measured.iter().map(|(_, looks)| {
        let by_gain = light.median * f64::from(looks.contrast) / contrast.median.max(1e-6);
        (f64::from(looks.light) - by_gain) as f32
    });
    let offset = 255.0 * Spread::of(added)?.half_width();
    let mut usual = measured;
    let from_median = |looks: &Appearance| (f64::from(looks.sharpness) - sharpness.median).abs();
    usual.sort_by(|a, b| from_median(&a.1).total_cmp(&from_median(&b.1)));
    let target = sharpness.low / sharpness.median.max(1e-9);
    // The first blur of a fine row that takes off as much.
    let left = |sigma: f64| {
        let shares = usual.iter().take(BLURRED).map(|(picture, looks)| {
            let blurred = resample::blurred(&picture.rgb, width, height, sigma);
            f64::from(Appearance::of_rgb(&blurred, width).sharpness) / f64::from(looks.sharpness).max(1e-9)
        });
        shares.sum::<f64>() / usual.len().clamp(1, BLURRED) as f64
    };
    let sigmas = (0..).map(|k| Augmentation::LEAST.blur + 0.1 * f64::from(k));
    let blur = sigmas.take_while(|sigma| *sigma <= Augmentation::MOST.blur).find(|sigma| left(*sigma) <= target);
    Some((gain, offset, blur.unwrap_or(Augmentation::MOST.blur)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Symmetry;
    use super::super::resample::{Pose, posed};
    use super::super::symmetry::Turn;
    use super::*;
    use crate::synthetic::{Product, good_part};
    use crate::trainer::backbone;

    const SIDE: usize = 128;

    fn part(product: Product, seed: u64) -> Vec<u8> {
        good_part(product, seed, SIDE as u32).rgb
    }

    fn chosen(rgb: impl Iterator<Item = Vec<u8>>) -> Augmentation {
        let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/backbone/efficientnet_lite0.f16.safetensors");
        let device = Device::flex();
        let features = backbone::load(&weights, &device).expect("ships");
        let pictures: Vec<Picture> = rgb.map(|rgb| Picture { path: "x".into(), rgb, set: 0 }).collect();
        let found = choose(&pictures, &features, (SIDE, SIDE), &device).expect("chooses");
        println!("{found}");
        found
    }

    /// The same board under a light of `share`.
    fn lit(rgb: &[u8], share: f64) -> Vec<u8> {
        rgb.iter().map(|v| (f64::from(*v) * share).round().min(255.0) as u8).collect()
    }

    #[test]
    fn a_constant_set_gets_the_least_of_everything() {
        let board = part(Product::Board, 1);
        assert_eq!(chosen((0..20).map(|_| board.clone())), Augmentation::LEAST);
    }

    #[test]
    fn a_light_that_spreads_gets_a_wider_gain_and_nothing_else() {
        let board = lit(&part(Product::Board, 1), 0.8);
        let found = chosen((0..20).map(|k| lit(&board, 0.8 + 0.4 * f64::from(k) / 19.0)));
        assert!((0.14..0.22).contains(&found.gain), "{found}");
        assert_eq!((found.shift, found.rotation), (1.5, 1.0), "{found}");
        assert!(found.blur <= 0.4, "{found}");
    }

    #[test]
    fn pictures_out_of_focus_get_a_wider_blur() {
        let found = chosen((0..30).map(|k| {
            let board = part(Product::Board, 1);
            if k % 5 == 0 { resample::blurred(&board, SIDE, SIDE, 0.8) } else { board }
        }));
        assert!((0.6..=1.1).contains(&found.blur), "{found}");
    }

    #[test]
    fn boards_keep_their_side_and_their_small_pose() {
        let found = chosen((0..24).map(|seed| part(Product::Board, seed)));
        assert_eq!(found.symmetry, Symmetry::NONE, "{found}");
        assert!(found.rotation < 8.0, "{found}");
    }

    #[test]
    fn washers_at_any_angle_are_turned_and_flipped() {
        let found = chosen((0..40).map(|seed| {
            let angle = seed as f64 * 2.4;
            posed(
                &part(Product::Washer, seed),
                SIDE,
                SIDE,
                &Pose { turn: Turn::NONE, angle, scale: 1.0, dx: 0.0, dy: 0.0 },
            )
        }));
        assert_eq!(found.symmetry, Symmetry::ALL, "{found}");
        assert_eq!(found.rotation, symmetry::ANGLE, "{found}");
    }
}
