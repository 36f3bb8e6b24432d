//! What a model expects of its input; travels in the bundle.

use serde::{Deserialize, Serialize};

use crate::inspection::tiles::TileGrid;

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
    /// How a frame is cut into tiles of the model grid; absent: the frame is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<TileGrid>,
}

impl PreprocessSpec {
    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        if let Some(problem) = self.tiles.and_then(|tiles| tiles.problem()) {
            return Some(format!("tiles: {problem}"));
        }
        [("width", self.width), ("height", self.height)]
            .into_iter()
            .find(|(_, side)| side % 32 != 0 || !(32..=2048).contains(side))
            .map(|(name, side)| format!("{name} {side} is not a multiple of 32 from 32 to 2048"))
    }

    /// Columns and rows that a frame is resized to: the model grid, or the canvas of all tiles.
    pub fn canvas(&self) -> (usize, usize) {
        self.tiles.map_or((self.width, self.height), |tiles| tiles.canvas(self.width, self.height))
    }

    /// The same for pictures that are one tile already.
    pub fn of_a_tile(&self) -> Self {
        Self { tiles: None, ..self.clone() }
    }
}
