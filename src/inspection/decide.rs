//! From a detection to a verdict: the only place where a verdict on pixels is made.

use super::calibration::{Calibration, threshold_scale};
use super::detect::{Detection, Plan};
use super::verdict::{Decision, FailRule, FaultReason, Verdict};

/// Judges a detection: Fail if the score is above the image threshold, or a region of at least the minimum area lies
/// above the region threshold.
///
/// `sensitivity` is 0 to 1; 0.5 is the calibrated point, and thresholds are scaled by `4^(0.5 - sensitivity)`: half at 1,
/// double at 0. Without a calibration for the plan's class and steps the verdict is `Fault(Uncalibrated)`; a map or score
/// that is not finite is `Fault(DetectorFault)`; thresholds that are not finite are no calibration. None is ever a Pass.
pub fn decide(detection: &Detection, plan: &Plan, calibration: Option<&Calibration>, sensitivity: f64) -> Decision {
    let fault = |reason| Decision { verdict: Verdict::Fault(reason), rule: None, threshold: None, regions: Vec::new() };
    if !(detection.score.0.is_finite() && detection.map.is_finite()) || detection.map.values.is_empty() {
        return fault(FaultReason::DetectorFault);
    }
    let Some(limits) = calibration.and_then(|calibration| calibration.limits(plan, detection)) else {
        return fault(FaultReason::Uncalibrated);
    };
    let scale = threshold_scale(sensitivity);
    let threshold = limits.image_threshold * scale;
    let region_threshold = limits.region_threshold * scale;
    // Nothing compares as above NaN: without this a sensitivity of NaN would pass every part.
    if !(threshold.is_finite() && region_threshold.is_finite()) {
        return fault(FaultReason::Uncalibrated);
    }
    let mut regions = detection.map.regions(region_threshold);
    regions.retain(|region| region.area >= limits.min_area);
    let rule = if detection.score.0 > threshold {
        Some(FailRule::ImageScore)
    } else {
        (!regions.is_empty()).then_some(FailRule::Region)
    };
    let verdict = if rule.is_some() { Verdict::Fail } else { Verdict::Pass };
    Decision { verdict, rule, threshold: Some(threshold), regions }
}

#[cfg(test)]
mod tests {
    use super::super::anomaly::{AnomalyMap, AnomalyScore};
    use super::super::calibration::CalibrationEntry;
    use super::super::detect::{ClassId, Reconstruction, StepChoice, StepPlan, Steps};
    use super::*;

    fn detection(values: Vec<f32>, score: f32) -> Detection {
        let map = AnomalyMap { width: 4, height: values.len() / 4, values };
        let reconstruction = Reconstruction { width: 4, height: 2, rgb: vec![0; 24] };
        Detection {
            map,
            score: AnomalyScore(score),
            novelty: 0.0,
            reconstruction,
            steps: Steps(2),
            tiles: None,
            infer_ms: 1.0,
        }
    }

    fn calibration() -> Calibration {
        let entry = CalibrationEntry {
            class: None,
            steps: StepChoice::Fixed(Steps(2)),
            image_threshold: 1.0,
            region_threshold: 2.0,
            min_area: 2,
            tiles: None,
            samples: 99,
            alpha: 0.01,
            alpha_bound: 0.03,
            median_score: 0.5,
            good: Vec::new(),
        };
        Calibration { id: "test".into(), entries: vec![entry] }
    }

    fn verdict(values: [f32; 8], score: f32, sensitivity: f64) -> (Verdict, Option<FailRule>) {
        let plan = Plan::new(StepPlan::Fixed(Steps(2)), None);
        let decision = decide(&detection(values.to_vec(), score), &plan, Some(&calibration()), sensitivity);
        (decision.verdict, decision.rule)
    }

    #[test]
    fn both_rules_reject_and_a_small_region_does_not() {
        let quiet = [0.1; 8];
        let mut speck = quiet;
        speck[2] = 9.0;
        let mut patch = speck;
        patch[3] = 2.5;
        assert_eq!(verdict(quiet, 0.9, 0.5), (Verdict::Pass, None));
        assert_eq!(verdict(quiet, 1.1, 0.5), (Verdict::Fail, Some(FailRule::ImageScore)));
        assert_eq!(verdict(speck, 0.9, 0.5), (Verdict::Pass, None));
        assert_eq!(verdict(patch, 0.9, 0.5), (Verdict::Fail, Some(FailRule::Region)));
    }

    #[test]
    fn sensitivity_moves_both_thresholds_by_up_to_two() {
        assert_eq!(verdict([0.1; 8], 0.6, 1.0).0, Verdict::Fail);
        assert_eq!(verdict([0.1; 8], 1.9, 0.0).0, Verdict::Pass);
    }

    #[test]
    fn what_is_not_finite_or_not_calibrated_never_passes() {
        let plan = Plan::new(StepPlan::Fixed(Steps(2)), None);
        let mut broken = detection(vec![0.1; 8], 0.1);
        broken.map.values[5] = f32::NAN;
        let fault = |detection: &Detection, plan: &Plan, calibration: Option<&Calibration>| {
            decide(detection, plan, calibration, 0.5).verdict
        };
        let calibration = calibration();
        let good = detection(vec![0.1; 8], 0.1);
        assert_eq!(fault(&broken, &plan, Some(&calibration)), Verdict::Fault(FaultReason::DetectorFault));
        let infinite = detection(vec![0.1; 8], f32::INFINITY);
        assert_eq!(fault(&infinite, &plan, Some(&calibration)), Verdict::Fault(FaultReason::DetectorFault));
        assert_eq!(verdict([9.0; 8], 9.0, f64::NAN).0, Verdict::Fault(FaultReason::Uncalibrated));
        assert_eq!(fault(&good, &plan, None), Verdict::Fault(FaultReason::Uncalibrated));
        let other = Plan { class: Some(ClassId("x".into())), ..plan.clone() };
        assert_eq!(fault(&good, &other, Some(&calibration)), Verdict::Fault(FaultReason::Uncalibrated));
        let mut four = good.clone();
        four.steps = Steps(4);
        assert_eq!(fault(&four, &plan, Some(&calibration)), Verdict::Fault(FaultReason::Uncalibrated));
    }
}
