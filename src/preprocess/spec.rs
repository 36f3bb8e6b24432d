//! What a model expects of its input; travels in the bundle.

use serde::{Deserialize, Serialize};

/// How a region of any aspect comes onto the model grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Geometry {
    /// Both axes scaled on their own.
    Stretch,
    /// Aspect kept, mid grey around.
    Letterbox,
}

impl Geometry {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Geometry::Stretch => "pictures are stretched onto it",
            Geometry::Letterbox => "pictures keep their shape, with grey bars (letterbox)",
        }
    }
}

/// The range of the model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// -1 to 1.
    SymmetricOne,
    /// Less the mean of ImageNet, over its standard deviation, per channel.
    ImageNet,
}

/// Whether the host adds an edge plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SketchPlane {
    /// No.
    None,
    /// Canny edges.
    Canny,
}

/// What a model expects of its input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessSpec {
    /// Columns of the model grid, a multiple of 32.
    pub width: usize,
    /// Rows of the model grid, a multiple of 32.
    pub height: usize,
    /// How the region comes onto the grid.
    pub geometry: Geometry,
    /// Range of the values.
    pub normalisation: Normalisation,
    /// The edge plane.
    pub sketch: SketchPlane,
}

impl PreprocessSpec {
    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        [("width", self.width), ("height", self.height)]
            .into_iter()
            .find(|(_, side)| side % 32 != 0 || !(32..=2048).contains(side))
            .map(|(name, side)| format!("{name} {side} is not a multiple of 32 from 32 to 2048"))
    }
}
