//! Drawings of inspections, made and written by a worker: frame, reconstruction and map side by side.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::inspection::detect::Detection;
use crate::inspection::event::Event;
use crate::inspection::frame::Prepared;
use crate::inspection::verdict::{Decision, Inspection, SinkError, VerdictSink};
use crate::render::encode;
use crate::render::panel::{Panel, inspection_panel};

/// Inspections that wait to be drawn, about 2 MiB each: beyond that a drawing is given up, never a verdict.
const QUEUE: usize = 8;
/// Quality of the JPEG files.
pub(super) const QUALITY: u8 = 88;

/// The sink.
pub struct ImageSink {
    queue: Sender<(PathBuf, Inspection)>,
}

/// What the worker needs; it ends when the sink is dropped.
pub struct ImageWorker {
    queue: Receiver<(PathBuf, Inspection)>,
    failed: Arc<AtomicU64>,
}

/// A sink and its worker, and a count of the drawings that could not be written.
pub fn open() -> (ImageSink, ImageWorker, Arc<AtomicU64>) {
    let (sender, receiver) = bounded(QUEUE);
    let failed = Arc::new(AtomicU64::new(0));
    let worker = ImageWorker { queue: receiver, failed: Arc::clone(&failed) };
    (ImageSink { queue: sender }, worker, failed)
}

impl VerdictSink for ImageSink {
    fn name(&self) -> &str {
        "images"
    }

    fn publish(&mut self, inspection: &Inspection, event: &Event) -> Result<(), SinkError> {
        let Some(path) = &event.image else { return Ok(()) };
        self.queue
            .try_send((PathBuf::from(path), inspection.clone()))
            .map_err(|_| SinkError(format!("{QUEUE} drawings wait already")))
    }
}

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

impl ImageWorker {
    /// Draws and writes until the sink is gone.
    pub fn run(self) {
        for (path, inspection) in self.queue.iter() {
            let Some(panel) = draw(&inspection) else { continue };
            if let Err(error) = write(&path, &panel)
                && self.failed.fetch_add(1, Ordering::Relaxed) == 0
            {
                log::error!("{}: drawings cannot be written: {error}", path.display());
            }
        }
    }
}

fn write(path: &Path, panel: &Panel) -> Result<(), Box<dyn std::error::Error>> {
    let jpeg = encode::jpeg(&panel.rgb, panel.width, panel.height, QUALITY)?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Written beside and renamed: a reader never sees half a picture.
    let partial = path.with_extension("jpg.partial");
    std::fs::write(&partial, jpeg)?;
    std::fs::rename(partial, path)?;
    Ok(())
}
