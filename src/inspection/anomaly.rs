//! Anomaly maps: smoothing, pooling to a score, and regions.

use serde::{Deserialize, Serialize};

/// One number per frame, pooled from its map; higher is more anomalous.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct AnomalyScore(pub f32);

/// Anomaly value per cell of the model grid: row-major, non-negative, absolute scale.
#[derive(Debug, Clone, PartialEq)]
pub struct AnomalyMap {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` values.
    pub values: Vec<f32>,
}

/// A connected set of cells above a threshold, in cells of the model grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Left column of the bounding box.
    pub x: u32,
    /// Top row of the bounding box.
    pub y: u32,
    /// Columns of the bounding box.
    pub width: u32,
    /// Rows of the bounding box.
    pub height: u32,
    /// Cells in the region.
    pub area: u32,
    /// Largest map value in the region.
    pub peak: f32,
}
