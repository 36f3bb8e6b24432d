//! Thresholds from good parts alone, at a stated false-reject rate.
//!
//! Split conformal: of n held-out good parts the k-th smallest value with k = ceil((n + 1)(1 - alpha)) is exceeded
//! by a new good part with probability at most alpha, whatever the distribution (recipe: held-out normals only).
//! Image score and region level are calibrated *jointly*, on max(score / t_image, level / t_region), so that the
//! stated rate is that of both rules together.

use serde::{Deserialize, Serialize};

use super::detect::{ClassId, Steps};

/// Thresholds for one class at one step count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationEntry {
    /// The class; absent is the null class.
    pub class: Option<ClassId>,
    /// The step count.
    pub steps: Steps,
    /// Fail above this anomaly score.
    pub image_threshold: f32,
    /// Fail if a region of at least `min_area` cells lies above this map value.
    pub region_threshold: f32,
    /// Smallest region that counts, in cells of the model grid.
    pub min_area: u32,
    /// Good parts used.
    pub samples: u32,
    /// The stated false-reject rate.
    pub alpha: f64,
    /// 95 % upper confidence bound of the rate over repeated calibrations with `samples` parts.
    pub alpha_bound: f64,
    /// Median anomaly score of the good parts.
    pub median_score: f32,
}

/// All thresholds of a bundle or a station.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Identity, named by every event that it judged.
    pub id: String,
    /// One per class and step count.
    pub entries: Vec<CalibrationEntry>,
}

impl Calibration {
    /// The entry for a class and step count; no fallback from a named class to the null class.
    pub fn entry(&self, class: Option<&ClassId>, steps: Steps) -> Option<&CalibrationEntry> {
        self.entries.iter().find(|e| e.class.as_ref() == class && e.steps == steps)
    }
}

/// What one good part measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GoodPart {
    /// Its anomaly score.
    pub score: f32,
    /// Its region level (`AnomalyMap::region_level`).
    pub level: f32,
}
