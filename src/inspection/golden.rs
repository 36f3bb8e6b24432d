//! A picture whose answer is known.

use super::calibration::{CALIBRATED_POINT, Calibration};
use super::decide::decide;
use super::detect::{Detection, Plan};

/// What a detector must answer to a golden picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// The map, row by row.
    pub map: Vec<f32>,
    /// The score.
    pub score: f32,
    /// Largest allowed absolute difference, of the score and of every map value.
    pub tolerance: f32,
}

impl Expected {
    /// What is wrong with an answer, if anything.
    pub fn difference(&self, detection: &Detection) -> Option<String> {
        let Self { map, score, tolerance } = self;
        if map.len() != detection.map.values.len() {
            let cells = detection.map.values.len();
            return Some(format!("the expected map has {} cells, the map {cells}", map.len()));
        }
        let off = |a: f32, b: f32| if a.is_finite() { (a - b).abs() } else { f32::INFINITY };
        let cells: Vec<f32> = detection.map.values.iter().zip(map).map(|(a, b)| off(*a, *b)).collect();
        let (at, worst) =
            cells.iter().enumerate().fold((0, 0.0), |most, (at, off)| if *off > most.1 { (at, *off) } else { most });
        let score = off(detection.score.0, *score);
        (worst > *tolerance || score > *tolerance).then(|| {
            let (row, column) = (at / detection.map.width, at % detection.map.width);
            let (beyond, all) = (cells.iter().filter(|off| **off > *tolerance).count(), cells.len());
            format!(
                "the map differs by {worst} in row {row}, column {column}, by more than is allowed in {beyond} of {all} cells, \
                 the score by {score}, allowed is {tolerance}"
            )
        })
    }

    /// The same, and the verdict that these thresholds make of it at the calibrated point.
    pub fn verdict_difference(
        &self,
        detection: &Detection,
        plan: &Plan,
        calibration: Option<&Calibration>,
    ) -> Option<String> {
        self.difference(detection).or_else(|| {
            let mut meant = detection.clone();
            meant.map.values.clone_from(&self.map);
            meant.score.0 = self.score;
            let [found, meant] =
                [detection, &meant].map(|of| decide(of, plan, calibration, CALIBRATED_POINT).verdict.word());
            (found != meant).then(|| format!("the verdict is {found} in place of {meant}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::anomaly::{AnomalyMap, AnomalyScore};
    use super::super::calibration::CalibrationEntry;
    use super::super::detect::{Reconstruction, StepChoice, StepPlan, Steps};
    use super::*;

    fn detection(values: Vec<f32>, score: f32) -> Detection {
        Detection {
            map: AnomalyMap { width: 2, height: values.len() / 2, values },
            score: AnomalyScore(score),
            novelty: 0.0,
            reconstruction: Reconstruction { width: 2, height: 2, rgb: vec![0; 12] },
            steps: Steps(1),
            tiles: None,
            rois: None,
            infer_ms: 1.0,
        }
    }

    #[test]
    fn map_score_and_verdict_are_compared() {
        let expected = Expected { map: vec![0.1, 0.2, 0.3, 0.4], score: 0.4, tolerance: 0.01 };
        let answer = |change: f32, score: f32| detection(vec![0.1, 0.2, 0.3 + change, 0.4], score);
        assert_eq!(expected.difference(&answer(0.009, 0.391)), None);
        for wrong in [answer(0.02, 0.4), answer(0.0, 0.42), answer(f32::NAN, 0.4), answer(0.0, f32::NAN)] {
            assert!(expected.difference(&wrong).is_some_and(|words| words.contains("allowed is 0.01")));
        }
        let other_size = detection(vec![0.0; 6], 0.4);
        assert!(expected.difference(&other_size).is_some_and(|words| words.contains("4 cells, the map 6")));

        let entry = CalibrationEntry {
            class: None,
            steps: StepChoice::Fixed(Steps(1)),
            image_threshold: 0.405,
            region_threshold: 9.0,
            min_area: 1,
            tiles: None,
            rois: None,
            samples: 99,
            alpha: 0.01,
            alpha_bound: 0.03,
            median_score: 0.2,
            good: Vec::new(),
        };
        let calibration = Calibration { id: "c".into(), entries: vec![entry] };
        let plan = Plan::new(StepPlan::Fixed(Steps(1)), None);
        let verdict = |answer: &Detection| expected.verdict_difference(answer, &plan, Some(&calibration));
        assert_eq!(verdict(&answer(0.0, 0.404)), None);
        assert_eq!(verdict(&answer(0.0, 0.409)).as_deref(), Some("the verdict is fail in place of pass"));
        // Without thresholds both are faults.
        assert_eq!(expected.verdict_difference(&answer(0.0, 0.409), &plan, None), None);
    }
}
