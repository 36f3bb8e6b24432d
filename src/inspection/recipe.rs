//! What an operator chooses for one product.

use serde::{Deserialize, Serialize};

use super::detect::{ClassId, StepChoice};
use super::polygon::Rois;
use super::roi::Roi;
use super::tiles::TileGrid;

/// Name of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecipeId(pub String);

/// One product, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Name, carried to the event.
    pub id: RecipeId,
    /// The inspected part of the frame.
    pub roi: Roi,
    /// What counts of it.
    pub rois: Rois,
    /// The product kind inside a multi-class bundle; `None` is the null class.
    pub class: Option<ClassId>,
    /// Denoising steps; the bundle must list and calibrate them.
    pub steps: StepChoice,
    /// How the part is cut; `None` is as the bundle says.
    pub tiles: Option<TileGrid>,
    /// 0 to 1, 0.5 is the calibrated point; higher rejects more.
    pub sensitivity: f64,
}
