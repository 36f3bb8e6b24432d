//! What drifts, camera by camera.

use std::collections::HashMap;

use super::health::Health;
use super::job::Job;
use crate::inspection::detect::StepChoice;
use crate::inspection::drift::{Drift, DriftMonitor};
use crate::inspection::frame::CameraId;
use crate::inspection::polygon::RoiSetId;
use crate::inspection::recipe::RecipeId;
use crate::inspection::verdict::Inspection;

/// Drift monitors by camera and recipe.
pub type Monitors = HashMap<(CameraId, RecipeId), Watched>;

/// A monitor, and what it said last; none where the thresholds keep no good parts.
pub struct Watched {
    /// The bundle,
    model_hash: String,
    /// and the ROIs whose good parts it compares with.
    rois: Option<RoiSetId>,
    monitor: Option<(DriftMonitor, Drift)>,
}

/// What drifts on the camera of an inspection; a change is logged.
pub fn watch(inspection: &Inspection, job: &Job, monitors: &mut Monitors, health: &Health) -> Drift {
    let camera = &inspection.frame.camera;
    let (Some(detection), Some(prepared)) = (&inspection.detection, &inspection.prepared) else {
        return Drift::default();
    };
    let class = job.recipe.class.as_ref();
    let entry = job.calibration.as_ref().and_then(|c| c.judging(class, job.recipe.steps, detection.roi_set()));
    let monitor = monitors.entry((camera.clone(), job.recipe.id.clone()));
    let new = || Watched {
        model_hash: inspection.model_hash.clone(),
        rois: detection.roi_set().cloned(),
        monitor: entry.and_then(DriftMonitor::new).map(|monitor| (monitor, Drift::default())),
    };
    let watched = monitor.or_insert_with(new);
    if watched.model_hash != inspection.model_hash || watched.rois.as_ref() != detection.roi_set() {
        *watched = new();
    }
    let Some((monitor, last)) = &mut watched.monitor else { return Drift::default() };
    // Scores of different step counts have different scales.
    let unit = match job.recipe.steps {
        StepChoice::Fixed(_) => 1.0,
        StepChoice::Auto => {
            let (ran, through) = (StepChoice::Fixed(detection.steps), entry.and_then(|entry| entry.rois.as_ref()));
            let entry = job.calibration.as_ref().and_then(|c| c.entry_through(class, ran, through));
            entry.map_or(1.0, |entry| entry.image_threshold)
        }
    };
    let drift = monitor.observe(detection.plain_score().0 / unit, prepared.light, detection.novelty);
    health.camera(camera).drift(monitor.levels(), drift);
    if drift != *last {
        let recipe = job.recipe.id.0.as_str();
        match drift.words().join(" and ") {
            none if none.is_empty() => log::info!(camera:%, recipe; "camera {camera}: no drift any more"),
            words => log::warn!(
                camera:%, recipe;
                "camera {camera}: the {words} drifted from the good parts behind the thresholds; look at light, lens and \
                 material before good parts are rejected"
            ),
        }
        *last = drift;
    }
    drift
}
