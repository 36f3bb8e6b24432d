//! The drawing of an inspection: frame, reconstruction and map side by side.

use crate::inspection::detect::Detection;
use crate::inspection::frame::Prepared;
use crate::inspection::verdict::{Decision, Inspection};
use crate::render::panel::{Panel, inspection_panel};

/// Quality of the JPEG files.
pub(super) const QUALITY: u8 = 88;

/// The drawing of an inspection; none where nothing was detected.
pub fn draw(inspection: &Inspection) -> Option<Panel> {
    let (detection, prepared) = (inspection.detection.as_ref()?, inspection.prepared.as_ref()?);
    let part = inspection.frame.trigger.as_ref().and_then(|trigger| trigger.part_id.as_deref()).unwrap_or("");
    Some(panel(prepared, detection, &inspection.decision, inspection.full_scale?, part))
}

/// The drawing of a part.
pub(super) fn panel(prepared: &Prepared, detection: &Detection, decision: &Decision, full: f32, part: &str) -> Panel {
    let threshold = decision.threshold.map_or(String::new(), |threshold| format!("/{threshold:.3}"));
    let caption = format!("{:.3}{threshold} {part}", detection.score.0);
    inspection_panel(&bytes(prepared), detection, decision, full, &caption)
}

fn bytes(prepared: &Prepared) -> Vec<u8> {
    let plane = prepared.width * prepared.height;
    let byte = |value: f32| ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
    (0..plane).flat_map(|cell| [0, 1, 2].map(|channel| byte(prepared.image[channel * plane + cell]))).collect()
}
