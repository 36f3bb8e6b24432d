//! The region of a frame that is inspected, and the way between frame pixels and the model grid.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rectangle in normalised frame coordinates (0 to 1, origin top left).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Roi {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width, above 0.
    pub width: f64,
    /// Height, above 0.
    pub height: f64,
}

impl Roi {
    /// The whole frame.
    pub const FULL: Roi = Roi { x: 0.0, y: 0.0, width: 1.0, height: 1.0 };

    /// What is wrong with this rectangle, if anything.
    pub fn problem(&self) -> Option<String> {
        let inside = self.x >= 0.0
            && self.y >= 0.0
            && self.width > 0.0
            && self.height > 0.0
            && self.x + self.width <= 1.0 + 1e-9
            && self.y + self.height <= 1.0 + 1e-9;
        (!inside).then(|| {
            format!(
                "x {}, y {}, width {}, height {} does not lie inside 0 to 1",
                self.x, self.y, self.width, self.height
            )
        })
    }
}

impl Default for Roi {
    fn default() -> Self {
        Roi::FULL
    }
}

/// A rectangle in frame pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PixelBox {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// How the model grid lies on the frame: `frame = offset + grid * scale`, per axis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Transform {
    /// Frame column of the grid's left edge.
    pub offset_x: f64,
    /// Frame row of the grid's top edge.
    pub offset_y: f64,
    /// Frame pixels per grid column.
    pub scale_x: f64,
    /// Frame pixels per grid row.
    pub scale_y: f64,
}

impl Transform {
    /// A grid rectangle (cells, origin top left) in frame pixels.
    pub fn to_frame(&self, x: f64, y: f64, width: f64, height: f64) -> PixelBox {
        PixelBox {
            x: self.offset_x + x * self.scale_x,
            y: self.offset_y + y * self.scale_y,
            width: width * self.scale_x,
            height: height * self.scale_y,
        }
    }
}
