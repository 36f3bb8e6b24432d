//! Cameras.

pub mod nokhwa;
mod rate;
pub mod replay;
pub mod synthetic;
pub mod unpack;
pub mod v4l2;

use std::sync::Arc;

use crate::config::camera::{CameraKind, CameraSettings};
use crate::inspection::frame::{CameraId, FrameSource};
use crate::inspection::time::Clock;

/// Opens a configured camera.
///
/// # Errors
/// A folder that cannot be read, or holds no picture.
pub fn open(settings: &CameraSettings, clock: Arc<dyn Clock>) -> Result<Box<dyn FrameSource>, String> {
    let camera = CameraId(settings.name.as_str().into());
    Ok(match &settings.kind {
        CameraKind::Replay { folder, fps } => Box::new(replay::Replay::open(camera, folder, *fps, clock)?),
        CameraKind::V4l2(settings) => Box::new(v4l2::V4l2Camera::new(camera, settings.clone(), clock)),
        CameraKind::Nokhwa(settings) => Box::new(nokhwa::NokhwaCamera::new(camera, settings.clone(), clock)),
        CameraKind::Synthetic(line) => Box::new(synthetic::SyntheticCamera::new(camera, line.clone(), clock)),
    })
}
