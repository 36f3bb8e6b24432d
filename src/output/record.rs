//! One event per inspection, made once: every sink tells the same.

use std::path::PathBuf;
use std::sync::Arc;

use super::envelope::Envelopes;
use crate::config::change::Setting;
use crate::config::file::ImagesOf;
use crate::inspection::event::Event;
use crate::inspection::verdict::{Inspection, Verdict};

/// Which inspections are drawn, and where to.
#[derive(Debug, Clone)]
pub struct Drawings {
    /// Folder of the drawings.
    pub folder: PathBuf,
    /// Of which verdicts.
    pub of: Arc<Setting<ImagesOf>>,
}

impl Drawings {
    /// Where the drawing of an inspection goes, if it gets one. The event's id makes the name unique over restarts.
    fn path(&self, inspection: &Inspection, event_id: &str) -> Option<PathBuf> {
        let verdict = inspection.decision.verdict;
        let wanted = match verdict {
            Verdict::Fail => true,
            Verdict::Pass => self.of.get() == ImagesOf::All,
            // Nothing was detected: there is nothing to draw.
            Verdict::Fault(_) => false,
        };
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let camera: String = inspection.frame.camera.0.chars().map(safe).collect();
        wanted.then(|| self.folder.join(format!("{camera}-{event_id}-{}.jpg", verdict.word())))
    }
}

/// Makes the events of a process.
pub struct Recorder {
    envelopes: Envelopes,
    drawings: Option<Drawings>,
}

impl Recorder {
    /// Events with these envelopes; with `drawings`, they name the file of their drawing.
    pub fn new(envelopes: Envelopes, drawings: Option<Drawings>) -> Self {
        Self { envelopes, drawings }
    }

    /// The event of an inspection.
    pub fn record(&mut self, inspection: &Inspection) -> Event {
        let envelope = self.envelopes.make();
        let path = self.drawings.as_ref().and_then(|drawings| drawings.path(inspection, &envelope.event_id));
        Event::new(inspection, envelope, path.map(|path| path.display().to_string()))
    }
}
