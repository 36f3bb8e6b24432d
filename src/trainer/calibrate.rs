//! Thresholds from held-out good pictures: for every listed step count and for `auto`, per class and for the null class.

use serde::Serialize;

use super::pictures::{Picture, prepare_file};
use crate::detector::DiffusionDetector;
use crate::inspection::calibration::{
    CALIBRATED_POINT, Calibration, CalibrationEntry, GoodPart, calibrate, smallest_alpha,
};
use crate::inspection::detect::{ClassId, Detector, Plan, StepChoice, StepPlan, Steps};
use crate::inspection::frame::Prepared;
use crate::preprocess::spec::PreprocessSpec;

/// The false-reject rate that `fit` aims at.
const ALPHA: f64 = 0.01;
/// Smallest region that counts, as a share of the model grid: 16 cells of 256x256.
const MIN_AREA: f64 = 16.0 / 65_536.0;
/// Frames per call of the detector.
const BATCH: usize = 8;

/// A calibration, and the scores behind it.
#[derive(Debug, Clone, Serialize)]
pub struct Calibrated {
    /// The thresholds.
    pub calibration: Calibration,
    /// Scores of the good pictures, per entry.
    pub scores: Vec<Vec<f32>>,
}

impl Calibrated {
    /// Prints the thresholds, one a line.
    pub fn print(&self) {
        for entry in &self.calibration.entries {
            println!(
                "class {:<12} steps {:<4}  image threshold {:.4}  false rejects {:.2} % (bound {:.2} %, {} good pictures)",
                entry.class.as_ref().map_or("(none)", |class| &class.0),
                entry.steps,
                entry.image_threshold,
                entry.alpha * 100.0,
                entry.alpha_bound * 100.0,
                entry.samples
            );
        }
    }
}

/// The false-reject rate that so many good pictures are used for without a stated one: the larger of 1 % and what they can
/// show.
pub fn default_alpha(pictures: usize) -> f64 {
    smallest_alpha(pictures).max(ALPHA)
}

/// Calibrates with the pictures of each class (one list per class, or one list without classes).
///
/// Without a stated rate it never refuses for few pictures: see [`default_alpha`].
///
/// # Errors
/// What the detector says, a score that is not finite, or too few pictures for a stated rate.
pub fn calibrate_bundle(
    detector: &mut DiffusionDetector,
    pictures: &[Vec<Picture>],
    classes: &[ClassId],
    listed: &[Steps],
    spec: &PreprocessSpec,
    stated: Option<f64>,
) -> anyhow::Result<Calibrated> {
    let min_area = ((spec.width * spec.height) as f64 * MIN_AREA).round().max(1.0) as u32;
    // A frame that is cut fills batches with its own tiles.
    let most = if spec.tiles.is_some() { 1 } else { BATCH };
    let mut calibration = Calibration { id: String::new(), entries: Vec::new() };
    let mut scores = Vec::new();
    let mut judge = |class: Option<&ClassId>, pictures: &mut dyn Iterator<Item = &Picture>, steps: StepChoice| {
        // `auto` is calibrated as the whole that it is: with the gates that the step counts before it have got.
        let steps_plan = StepPlan::new(steps, || calibration.gates(class, None, CALIBRATED_POINT));
        let plan = Plan::new(steps_plan, class.cloned());
        let mut parts = Vec::new();
        let mut batch: Vec<Prepared> = Vec::with_capacity(most);
        let mut flush = |batch: &mut Vec<Prepared>, parts: &mut Vec<GoodPart>| -> anyhow::Result<()> {
            for (detection, frame) in detector.detect(batch, &plan)?.into_iter().zip(&*batch) {
                let part = GoodPart::of(&detection, frame.light, min_area);
                parts.push(plan.gate(detection.steps).map_or(part, |gate| part.in_units_of(gate)));
            }
            batch.clear();
            Ok(())
        };
        for picture in pictures {
            // From the file again, not from the training copy: thresholds are set on what the daemon will see.
            batch.push(prepare_file(&picture.path, spec).map_err(anyhow::Error::msg)?);
            if batch.len() == most {
                flush(&mut batch, &mut parts)?;
            }
        }
        flush(&mut batch, &mut parts)?;
        let alpha = stated.unwrap_or(default_alpha(parts.len()));
        let entry = calibrate(&parts, alpha, class.cloned(), steps, min_area)?;
        calibration.entries.push(CalibrationEntry { tiles: spec.tiles, ..entry });
        scores.push(parts.iter().map(|part| part.score).collect());
        anyhow::Ok(())
    };
    for steps in StepChoice::of_listed(listed) {
        judge(None, &mut pictures.iter().flatten(), steps)?;
        for (class, pictures) in classes.iter().zip(pictures) {
            judge(Some(class), &mut pictures.iter(), steps)?;
        }
    }
    if let Some(entry) = calibration.entries.iter().find(|entry| stated.is_none() && entry.alpha > ALPHA) {
        log::warn!(
            "{} good pictures for the thresholds can show a false-reject rate of {:.1} %, not 1 %; 99 per class are needed \
             for that",
            entry.samples,
            entry.alpha * 100.0
        );
    }
    let hash = blake3::hash(&serde_json::to_vec(&calibration.entries)?).to_hex();
    calibration.id = format!("fit-{}", &hash[..12]);
    Ok(Calibrated { calibration, scores })
}
