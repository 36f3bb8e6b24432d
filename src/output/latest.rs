//! The last inspection of each camera, for whoever wants to see it: drawn when it is asked for.

use std::collections::HashMap;
use std::mem::take;
use std::sync::{Arc, Mutex, PoisonError};

use super::drawing::{QUALITY, panel};
use crate::inspection::anomaly::AnomalyMap;
use crate::inspection::detect::{Detection, Reconstruction};
use crate::inspection::event::Envelope;
use crate::inspection::frame::{CameraId, Prepared};
use crate::inspection::verdict::{Decision, Inspection, SinkError, VerdictSink};
use crate::render::encode;

/// What a drawing needs.
#[derive(Debug, Clone)]
struct Seen {
    prepared: Arc<Prepared>,
    detection: Detection,
    decision: Decision,
    full_scale: f32,
    part: String,
}

type Slots = Arc<HashMap<CameraId, Mutex<Option<Seen>>>>;

/// Keeps the last picture of each camera. A new one is copied over the one before it, so that nothing is allocated.
pub struct LatestSink {
    slots: Slots,
}

/// Draws what is kept.
#[derive(Clone)]
pub struct Latest {
    slots: Slots,
}

/// A sink for these cameras, and what draws from it.
pub fn open(cameras: impl Iterator<Item = CameraId>) -> (LatestSink, Latest) {
    let slots: Slots = Arc::new(cameras.map(|camera| (camera, Mutex::default())).collect());
    (LatestSink { slots: Arc::clone(&slots) }, Latest { slots })
}

impl VerdictSink for LatestSink {
    fn name(&self) -> &str {
        "latest"
    }

    fn publish(&mut self, inspection: &Inspection, _: &Envelope) -> Result<(), SinkError> {
        let (Some(detection), Some(prepared), Some(full_scale)) =
            (&inspection.detection, &inspection.prepared, inspection.full_scale)
        else {
            return Ok(());
        };
        let Some(slot) = self.slots.get(&inspection.frame.camera) else { return Ok(()) };
        // Somebody copies it out: the next part is another chance to be seen.
        let Ok(mut slot) = slot.try_lock() else { return Ok(()) };
        let part = inspection.frame.trigger.as_ref().and_then(|trigger| trigger.part_id.as_deref()).unwrap_or("");
        match &mut *slot {
            Some(seen) => {
                seen.prepared.clone_from(prepared);
                copy(&mut seen.detection, detection);
                let mut regions = take(&mut seen.decision.regions);
                regions.clone_from(&inspection.decision.regions);
                let Decision { verdict, rule, threshold, .. } = inspection.decision;
                seen.decision = Decision { verdict, rule, threshold, regions };
                seen.full_scale = full_scale;
                seen.part.clear();
                seen.part.push_str(part);
            }
            None => {
                let (prepared, detection) = (Arc::clone(prepared), detection.clone());
                let (decision, part) = (inspection.decision.clone(), part.to_owned());
                *slot = Some(Seen { prepared, detection, decision, full_scale, part });
            }
        }
        Ok(())
    }
}

/// As `clone_from`, in the same buffers.
fn copy(to: &mut Detection, from: &Detection) {
    let (mut values, mut rgb) = (take(&mut to.map.values), take(&mut to.reconstruction.rgb));
    values.clone_from(&from.map.values);
    rgb.clone_from(&from.reconstruction.rgb);
    let Detection { map, score, novelty, reconstruction, steps, tiles, rois, infer_ms } = from;
    *to = Detection {
        map: AnomalyMap { width: map.width, height: map.height, values },
        reconstruction: Reconstruction { width: reconstruction.width, height: reconstruction.height, rgb },
        score: *score,
        novelty: *novelty,
        steps: *steps,
        tiles: *tiles,
        rois: rois.clone(),
        infer_ms: *infer_ms,
    };
}

impl Latest {
    /// The drawing of what was last inspected on a camera, as JPEG; nothing where there is no such camera or picture.
    pub fn jpeg(&self, camera: &str) -> Option<Vec<u8>> {
        let slot = self.slots.iter().find(|(id, _)| &*id.0 == camera)?.1;
        // Copied out, so that the slot is free while it is drawn.
        let seen = slot.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let drawn = panel(&seen.prepared, &seen.detection, &seen.decision, seen.full_scale, &seen.part);
        match encode::jpeg(&drawn.rgb, drawn.width, drawn.height, QUALITY) {
            Ok(jpeg) => Some(jpeg),
            Err(error) => {
                log::error!("{camera}: no picture: {error}");
                None
            }
        }
    }
}
