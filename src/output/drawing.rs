//! The drawing of an inspection: frame, reconstruction and map side by side.

use crate::inspection::frame::Prepared;
use crate::inspection::verdict::Inspection;
use crate::render::panel::{Panel, inspection_panel};

/// The drawing of an inspection; none where nothing was detected.
pub fn draw(inspection: &Inspection) -> Option<Panel> {
    let (detection, prepared) = (inspection.detection.as_ref()?, inspection.prepared.as_ref()?);
    let threshold = inspection.decision.threshold.map_or(String::new(), |threshold| format!("/{threshold:.3}"));
    let part = inspection.frame.trigger.as_ref().and_then(|trigger| trigger.part_id.as_deref()).unwrap_or("");
    let caption = format!("{:.3}{threshold} {part}", detection.score.0);
    Some(inspection_panel(&bytes(prepared), detection, &inspection.decision, inspection.full_scale?, &caption))
}

fn bytes(prepared: &Prepared) -> Vec<u8> {
    let plane = prepared.width * prepared.height;
    let byte = |value: f32| ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
    (0..plane).flat_map(|cell| [0, 1, 2].map(|channel| byte(prepared.image[channel * plane + cell]))).collect()
}
