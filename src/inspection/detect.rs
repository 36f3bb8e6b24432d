//! The seam between pixels and decisions: a detector answers with a map and a score, never with a verdict.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::anomaly::{AnomalyMap, AnomalyScore};
use super::frame::Prepared;

/// Denoising steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Steps(pub u32);

/// Name of a product kind that a multi-class bundle knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClassId(pub String);

/// How a batch is to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Steps to run.
    pub steps: Steps,
    /// The product kind; `None` is the null class.
    pub class: Option<ClassId>,
}

/// The defect-free picture that the model proposes, on the model grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconstruction {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes RGB.
    pub rgb: Vec<u8>,
}

/// What a detector found in one frame. No decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// Anomaly value per cell of the model grid, absolute scale.
    pub map: AnomalyMap,
    /// One number pooled from the map.
    pub score: AnomalyScore,
    /// The proposed defect-free picture.
    pub reconstruction: Reconstruction,
    /// Steps actually run.
    pub steps: Steps,
    /// Milliseconds from upload to read-back for the batch that this frame was part of.
    pub infer_ms: f64,
}

/// Why a detector could not answer. Becomes `Fault(DetectorFault)`, never a low score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetectorError(pub String);

impl fmt::Display for DetectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DetectorError {}

/// Judges prepared frames.
pub trait Detector: Send {
    /// One detection per input, in the same order.
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError>;
}
