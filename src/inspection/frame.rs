//! Frames as a camera gives them, and the seam that a camera implements.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::mask::RoiMask;
use super::roi::Transform;
use super::tiles::TileGrid;
use super::time::Timestamp;

/// Number of a frame, consecutive per camera: a gap means a lost frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FrameId(pub u64);

/// Name of a camera in the station's configuration, shared by its frames.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct CameraId(pub Arc<str>);

impl From<String> for CameraId {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<CameraId> for String {
    fn from(camera: CameraId) -> Self {
        camera.0.as_ref().into()
    }
}

impl fmt::Display for CameraId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Layout of the bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelFormat {
    /// 3 bytes per pixel: red, green, blue.
    Rgb8,
    /// 1 byte per pixel.
    Gray8,
    /// 2 bytes per pixel, little endian, of which the low `bits` carry the value (10, 12 or 16).
    Gray16 {
        /// Significant bits of a sample.
        bits: u8,
    },
    /// 6 bytes per pixel, little endian red, green, blue.
    Rgb16,
}

impl PixelFormat {
    /// Bytes that one pixel takes.
    pub fn bytes_per_pixel(self) -> usize {
        match self {
            PixelFormat::Gray8 => 1,
            PixelFormat::Gray16 { .. } => 2,
            PixelFormat::Rgb8 => 3,
            PixelFormat::Rgb16 => 6,
        }
    }
}

/// Why a frame was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerInfo {
    /// What triggered: `"gpio"`, `"http"`, `"tcp"`, `"line"`; of sources that make their parts themselves `"file"`, `"synthetic"`.
    pub source: String,
    /// Identity of the part, carried through to the event.
    pub part_id: Option<String>,
    /// When the trigger arrived.
    pub at: Timestamp,
}

/// Pixels of a frame, shared without copying. Those of a [`FramePool`](super::pool::FramePool) go back to it with their last
/// holder.
#[derive(Clone, PartialEq, Eq)]
pub struct FrameBuf(pub(super) Arc<Vec<u8>>);

impl From<Vec<u8>> for FrameBuf {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(bytes))
    }
}

impl Deref for FrameBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FrameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameBuf({} bytes)", self.len())
    }
}

/// Everything about a frame but its pixels: what an inspection keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameMeta {
    /// Consecutive number per camera.
    pub id: FrameId,
    /// The camera that took it.
    pub camera: CameraId,
    /// When its first byte was there.
    pub captured_at: Timestamp,
    /// The driver's own counter.
    pub sequence: u64,
    /// What made it be taken.
    pub trigger: Option<TriggerInfo>,
    /// Columns, 0 if the frame never came.
    pub width: u32,
    /// Rows, 0 if the frame never came.
    pub height: u32,
}

impl FrameMeta {
    /// Of a picture that no camera took: a file, or a golden picture.
    pub fn of_picture(name: &str, width: u32, height: u32) -> Self {
        Self {
            id: FrameId(0),
            camera: CameraId(name.into()),
            captured_at: Timestamp::default(),
            sequence: 0,
            trigger: None,
            width,
            height,
        }
    }
}

/// One image from a camera.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Identity, origin and size.
    pub meta: FrameMeta,
    /// Layout of `pixels`.
    pub format: PixelFormat,
    /// `height * width * bytes_per_pixel` bytes, row-major without padding.
    pub pixels: FrameBuf,
}

/// Model input on the host; made only by `preprocess::prepare`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Columns of the model grid, or of the canvas of all tiles.
    pub width: usize,
    /// Rows of the same.
    pub height: usize,
    /// How it is cut, and columns and rows of a tile; absent: it is as large as the model grid.
    pub tiles: Option<(TileGrid, (usize, usize))>,
    /// `[3, height, width]`, planar RGB, in the range that the bundle's `PreprocessSpec` states.
    /// Shared, so that it can be filled again when nobody looks at it any more.
    pub image: Arc<Vec<f32>>,
    /// `[height, width]` edges in 0 or 1, where the bundle uses the `canny` sketch.
    pub sketch: Option<Vec<f32>>,
    /// Mean brightness of the picture before it was normalised, 0 to 1.
    pub light: f32,
    /// From the model grid back to frame pixels.
    pub transform: Transform,
    /// The cells that show the picture; around them are the bars of a letterbox.
    pub inside: Rectangle,
    /// What counts of its map; absent without ROIs: all of it.
    pub rois: Option<Arc<RoiMask>>,
}

/// Some columns and rows of the model grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rectangle {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Why a source gave no frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceError {
    /// No frame within the bounded wait; try again.
    Timeout,
    /// A frame was due and could not be used. Its id is spent: it ends as `Fault(CameraFault)`.
    Damaged {
        /// What is known of the frame; width and height are 0.
        meta: Box<FrameMeta>,
        /// What is wrong, for the log and the event.
        reason: String,
    },
    /// The camera is gone; `next_frame` may be called again to reopen it.
    Lost {
        /// What is wrong.
        reason: String,
    },
    /// There will be no more frames (a finite replay).
    Ended,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceError::Timeout => f.write_str("no frame in time"),
            SourceError::Damaged { reason, .. } => write!(f, "damaged frame: {reason}"),
            SourceError::Lost { reason } => write!(f, "camera lost: {reason}"),
            SourceError::Ended => f.write_str("no more frames"),
        }
    }
}

impl std::error::Error for SourceError {}

/// A camera. `next_frame` blocks, but never longer than a bounded wait.
pub trait FrameSource: Send {
    /// The next frame, in order.
    fn next_frame(&mut self) -> Result<Frame, SourceError>;

    /// Sets these controls, beside those of the source's own settings; what has none ignores them. Frames that are captured at or
    /// after the time that is returned show them.
    fn set_controls(&mut self, controls: &BTreeMap<String, i64>) -> Timestamp {
        let _ = controls;
        Timestamp(0)
    }
}
