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
///
/// With ROIs only what they include counts, and a ROI's own threshold multiplies both thresholds inside: regions are looked
/// for in the weighed map, and the score was pooled from it (`inspection::mask`). A value that is not finite is a fault
/// wherever it lies.
pub fn decide(detection: &Detection, plan: &Plan, calibration: Option<&Calibration>, sensitivity: f64) -> Decision {
    let fault = |reason| Decision { verdict: Verdict::Fault(reason), rule: None, threshold: None, regions: Vec::new() };
    let whole = detection.rois.as_ref().is_none_or(|counted| counted.mask.fits(&detection.map));
    if !(detection.score.0.is_finite() && detection.map.is_finite() && whole) || detection.map.values.is_empty() {
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
    let regions = detection.regions(region_threshold, limits.min_area);
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
    use std::sync::Arc;

    use super::super::anomaly::{AnomalyMap, AnomalyScore, Pooling, Region};
    use super::super::calibration::CalibrationEntry;
    use super::super::detect::{ClassId, Counted, Reconstruction, StepChoice, StepPlan, Steps};
    use super::super::mask::Placement;
    use super::super::polygon::{PolygonRoi, RoiMode, Rois};
    use super::super::roi::{Roi, Transform};
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
            rois: None,
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
            rois: None,
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

    const GRID: (usize, usize) = (8, 4);

    fn roi(name: &str, mode: RoiMode, [left, top, right, bottom]: [f64; 4]) -> PolygonRoi {
        let (w, h) = (GRID.0 as f64, GRID.1 as f64);
        let corners = [[left, top], [right, top], [right, bottom], [left, bottom]];
        let polygon = corners.map(|[x, y]| [x / w, y / h]).to_vec();
        PolygonRoi { name: name.into(), polygon, mode, threshold: None, min_area: None }
    }

    /// Decides on a map of 8x4 cells, a frame pixel each, whose score is the mean of its two highest cells that count.
    fn decide_with(list: Vec<PolygonRoi>, hot: &[(usize, f32)]) -> Decision {
        let mut values = vec![0.1; GRID.0 * GRID.1];
        hot.iter().for_each(|(cell, value)| values[*cell] = *value);
        let map = AnomalyMap { width: GRID.0, height: GRID.1, values };
        let rois = Rois::new(list, &Roi::FULL).expect("valid");
        let placement = Placement { frame: (8, 4), ..Placement::of_crop(&Roi::FULL, GRID) };
        let transform = Transform { scale_x: 1.0, scale_y: 1.0, ..placement.transform };
        let mask = rois.mask(&Placement { transform, ..placement }).expect("valid").expect("has ROIs");
        let pool = |map: &AnomalyMap| Pooling::TopFraction { fraction: 2.0 / 32.0 }.pool(map);
        let counted = Counted { plain_score: pool(&mask.masked(&map)), mask: Arc::clone(&mask) };
        let mut seen = detection(vec![0.1; 8], 0.0);
        seen.score = pool(&mask.weighed(&map));
        (seen.map, seen.rois) = (map, Some(counted));
        let plan = Plan::new(StepPlan::Fixed(Steps(2)), None);
        decide(&seen, &plan, Some(&calibration()), 0.5)
    }

    #[test]
    fn only_what_is_included_and_not_excluded_counts_in_regions_and_score() {
        use RoiMode::{Exclude, Include};
        let (left, hole) = ([0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0]);
        let patch = |cell: usize| [(cell, 9.0), (cell + 1, 9.0)];
        let verdict = |list: &[PolygonRoi], cell| decide_with(list.to_vec(), &patch(cell)).verdict;
        let included = [roi("left", Include, left)];
        assert_eq!((verdict(&included, 0), verdict(&included, 4)), (Verdict::Fail, Verdict::Pass));
        let excluded = [roi("hole", Exclude, hole)];
        assert_eq!((verdict(&excluded, 0), verdict(&excluded, 4)), (Verdict::Pass, Verdict::Fail));
        // Whatever the order, what is excluded stays out.
        let both = [roi("hole", Exclude, hole), roi("left", Include, left)];
        assert_eq!([0, 2, 4].map(|cell| verdict(&both, cell)), [Verdict::Pass, Verdict::Fail, Verdict::Pass]);
        // Two cells make a region; of a patch that is cut through only one is left.
        let cut = decide_with(both.to_vec(), &[(1, 2.5), (2, 2.5)]);
        assert!(cut.regions.is_empty() && cut.rule == Some(FailRule::ImageScore), "{cut:?}");
    }

    #[test]
    fn a_threshold_of_its_own_moves_both_rules_inside_and_nothing_outside() {
        let dull = PolygonRoi { threshold: Some(4.0), ..roi("dull", RoiMode::Include, [0.0, 0.0, 4.0, 4.0]) };
        let rest = roi("rest", RoiMode::Include, [0.0, 0.0, 8.0, 4.0]);
        let list = vec![rest.clone(), dull.clone()];
        let at = |cell: usize, value: f32| decide_with(list.clone(), &[(cell, value), (cell + 1, value)]);
        // Thresholds are 1 for the score, 2 for regions; inside they are 4 and 8.
        assert_eq!(at(0, 3.9).verdict, Verdict::Pass);
        let fails = at(0, 8.5);
        assert_eq!((fails.verdict, fails.threshold), (Verdict::Fail, Some(1.0)));
        let Region { peak, roi, area, .. } = fails.regions[0];
        assert_eq!((peak, roi, area), (8.5, Some(2), 2), "the map's own value, and the ROI that is listed last");
        assert_eq!((at(4, 3.0).rule, at(4, 3.0).regions[0].roi), (Some(FailRule::ImageScore), Some(1)));
        let sharp = PolygonRoi { threshold: Some(0.25), ..dull };
        assert_eq!(decide_with(vec![rest, sharp], &[(0, 0.6), (1, 0.6)]).rule, Some(FailRule::ImageScore));
    }

    #[test]
    fn a_region_is_as_large_as_the_least_of_its_rois_asks_for_and_never_less_than_calibrated() {
        let coarse = PolygonRoi { min_area: Some(3.5), ..roi("coarse", RoiMode::Include, [0.0, 0.0, 4.0, 4.0]) };
        let fine = PolygonRoi { min_area: Some(0.5), ..roi("fine", RoiMode::Include, [4.0, 0.0, 8.0, 4.0]) };
        let regions = |hot: &[usize]| {
            let hot: Vec<_> = hot.iter().zip([2.2, 2.1, 2.1, 2.1]).map(|(cell, value)| (*cell, value)).collect();
            let decision = decide_with(vec![coarse.clone(), fine.clone()], &hot);
            decision.regions.iter().map(|region| (region.area, region.roi)).collect::<Vec<_>>()
        };
        assert_eq!(regions(&[0, 1, 2]), []);
        assert_eq!(regions(&[0, 1, 2, 8]), [(4, Some(1))]);
        assert_eq!(regions(&[4]), [], "the calibration asks for 2");
        assert_eq!(regions(&[4, 5]), [(2, Some(2))]);
        assert_eq!(regions(&[3, 4]), [(2, Some(1))], "across both: the least area, the name of the highest cell");
    }

    #[test]
    fn what_is_not_finite_is_a_fault_even_where_nothing_counts() {
        let hole = vec![roi("hole", RoiMode::Exclude, [0.0, 0.0, 2.0, 2.0])];
        for value in [f32::NAN, f32::INFINITY] {
            let decision = decide_with(hole.clone(), &[(0, value)]);
            assert_eq!(decision.verdict, Verdict::Fault(FaultReason::DetectorFault));
        }
        let mut small = detection(vec![0.1; 8], 0.1);
        let rois = Rois::new(hole, &Roi::FULL).expect("valid");
        let mask = rois.mask(&Placement::of_crop(&Roi::FULL, GRID)).expect("valid").expect("has ROIs");
        small.rois = Some(Counted { mask, plain_score: AnomalyScore(0.1) });
        let plan = Plan::new(StepPlan::Fixed(Steps(2)), None);
        let decision = decide(&small, &plan, Some(&calibration()), 0.5);
        assert_eq!(decision.verdict, Verdict::Fault(FaultReason::DetectorFault), "a mask for another grid");
    }

    #[test]
    fn rois_that_include_everything_change_nothing() {
        let all = roi("all", RoiMode::Include, [0.0, 0.0, 8.0, 4.0]);
        let hot = [(3, 2.5), (4, 2.7), (20, 2.1), (31, 0.4)];
        let decision = decide_with(vec![all], &hot);
        let mut plain = detection(vec![0.1; 32], 2.6);
        (plain.map.width, plain.map.height) = GRID;
        hot.iter().for_each(|(cell, value)| plain.map.values[*cell] = *value);
        let plan = Plan::new(StepPlan::Fixed(Steps(2)), None);
        let whole = decide(&plain, &plan, Some(&calibration()), 0.5);
        let bare = |region: &Region| Region { roi: None, ..*region };
        assert_eq!(decision.regions.iter().map(bare).collect::<Vec<_>>(), whole.regions);
        assert_eq!((decision.verdict, decision.rule), (whole.verdict, whole.rule));
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
