//! The procedural product line as a camera. The truth about every part travels as its part id.

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::rate::Rate;
use crate::config::camera::SyntheticLine;
use crate::inspection::frame::{
    CameraId, Frame, FrameBuf, FrameId, FrameMeta, FrameSource, PixelFormat, SourceError, TriggerInfo,
};
use crate::inspection::time::Clock;
use crate::synthetic::{DefectFamily, Product, defective_part, good_part};

/// A camera over a [`SyntheticLine`].
pub struct SyntheticCamera {
    camera: CameraId,
    line: SyntheticLine,
    rng: ChaCha8Rng,
    next: u64,
    rate: Rate,
    clock: Arc<dyn Clock>,
}

/// The part id of the `index`-th part: what it is, and what is wrong with it (`good`, or the defect family).
pub fn part_id(product: Product, index: u64, defect: Option<DefectFamily>) -> String {
    format!("{}/{index}/{}", product.name(), defect.map_or("good", DefectFamily::name))
}

impl SyntheticCamera {
    /// A camera that starts with the first part.
    pub fn new(camera: CameraId, line: SyntheticLine, clock: Arc<dyn Clock>) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(line.seed);
        let rate = Rate::new(line.fps, Arc::clone(&clock));
        Self { camera, line, rng, next: 0, rate, clock }
    }
}

impl FrameSource for SyntheticCamera {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        if self.line.parts.is_some_and(|parts| self.next >= parts) {
            return Err(SourceError::Ended);
        }
        self.rate.wait()?;
        let index = self.next;
        self.next += 1;
        let seed: u64 = self.rng.random();
        let family = DefectFamily::ALL[self.rng.random_range(0..DefectFamily::ALL.len())];
        let defect = self.rng.random_bool(self.line.defect_rate).then_some(family);
        let (product, size) = (self.line.product, self.line.size);
        let part = match defect {
            Some(family) => defective_part(product, family, seed, size),
            None => good_part(product, seed, size),
        };
        let captured_at = self.clock.now();
        let trigger =
            TriggerInfo { source: "synthetic".into(), part_id: Some(part_id(product, index, defect)), at: captured_at };
        let meta = FrameMeta {
            id: FrameId(index),
            camera: self.camera.clone(),
            captured_at,
            sequence: index,
            trigger: Some(trigger),
            width: part.width,
            height: part.height,
        };
        Ok(Frame { meta, format: PixelFormat::Rgb8, pixels: FrameBuf::from(part.rgb) })
    }
}
