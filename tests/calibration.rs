//! The false-reject rate that a calibration states, on parts that it has not seen.

use dsad::bundle::Bundle;
use dsad::bundle::signature::KeyList;
use dsad::config::device::DeviceChoice;
use dsad::detector::{DiffusionDetector, prepare_picture};
use dsad::device;
use dsad::inspection::calibration::{GoodPart, calibrate};
use dsad::inspection::detect::{Detector, Plan, StepChoice, StepPlan, Steps};
use dsad::render::encode;
use dsad::synthetic::{Product, good_part};
use dsad::trainer::judge::TrainerClock;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::support::tiny_bundle;

/// Good parts, and how many of them calibrate: with these `fit` aims at 1 %.
const PARTS: u64 = 600;
const CALIBRATE: usize = 99;

#[test]
fn the_rate_of_new_good_parts_stays_under_the_bound() {
    let bundle = Bundle::open(&tiny_bundle().0, &KeyList::empty()).expect("opens");
    let spec = bundle.manifest.preprocess.clone();
    let compute = device::open(DeviceChoice::Cpu).expect("device");
    let mut detector = DiffusionDetector::load(&bundle, &compute, TrainerClock::start()).expect("loads");
    let plan = Plan::new(StepPlan::Fixed(Steps(1)), None);
    let size = u32::try_from(spec.width).expect("small");
    let mut parts: Vec<GoodPart> = (0..PARTS)
        .map(|seed| {
            let part = good_part(Product::Washer, 77_000 + seed, size);
            let png = encode::png(&part.rgb, spec.width, spec.height).expect("encodes");
            let prepared = prepare_picture(&png, &spec).expect("prepares");
            let found = detector.detect(std::slice::from_ref(&prepared), &plan).expect("detects");
            GoodPart::of(&found[0], prepared.light, 4)
        })
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    for alpha in [0.01, 0.05] {
        let mut within = 0;
        let mut mean = 0.0;
        for _ in 0..20 {
            parts.shuffle(&mut rng);
            let (held, new) = parts.split_at(CALIBRATE);
            let entry = calibrate(held, alpha, None, StepChoice::Fixed(Steps(1)), 4).expect("enough");
            let rejected =
                new.iter().filter(|p| p.score > entry.image_threshold || p.level > entry.region_threshold).count();
            let rate = rejected as f64 / new.len() as f64;
            within += usize::from(rate <= entry.alpha_bound);
            mean += rate / 20.0;
        }
        println!("alpha {alpha}: mean rate {mean:.4}, {within} of 20 splits under the bound");
        assert!(within >= 19, "alpha {alpha}: {within} of 20 under the bound, mean rate {mean}");
        assert!((0.2 * alpha..2.0 * alpha).contains(&mean), "alpha {alpha}: mean rate {mean}");
    }
}
