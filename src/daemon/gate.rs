//! Where what is owed begins: one per camera. What it lets in is owed at once, and what is aborted leaves nothing behind it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::Sender;

use super::health::Health;
use super::ledger::{Notice, Owed};
use super::state::{Admission, StationState, TRIGGER_LINE};
use crate::inspection::frame::CameraId;
use crate::inspection::station_state::FaultKind;
use crate::inspection::trigger::{RefusalCode, Refused};
use crate::inspection::verdict::{FaultReason, Inspection, Verdict};

/// The gate of a camera.
pub struct Gate {
    camera: CameraId,
    /// Whether every frame is inspected that comes by itself.
    free: bool,
    /// There while anything is let in. Held while it is: what is aborted afterwards was owed before.
    notices: Mutex<Option<Sender<Notice>>>,
    /// Whether the station was told that the camera is gone.
    gone: AtomicBool,
    station: Arc<StationState>,
    health: Arc<Health>,
}

impl Gate {
    /// A gate that is closed.
    pub fn new(camera: CameraId, free: bool, station: Arc<StationState>, health: Arc<Health>) -> Self {
        Self { camera, free, notices: Mutex::new(None), gone: AtomicBool::new(false), station, health }
    }

    /// From now on things are let in, and owed to `notices`.
    pub fn open(&self, notices: Sender<Notice>) {
        *self.notices() = Some(notices);
    }

    /// Lets nothing in any more.
    pub fn close(&self) {
        *self.notices() = None;
    }

    /// Lets something in that is owed from now on; whether it is inspected, or answered already.
    ///
    /// # Errors
    /// It is let in by nobody, and counted.
    pub fn admit(&self, owed: impl FnOnce() -> Owed) -> Result<Admission, Refused> {
        let notices = self.notices();
        let health = self.health.camera(&self.camera);
        let admission = match notices.as_ref() {
            Some(_) => self.station.admit(&self.camera.0, self.free),
            None => Err(Refused::new(RefusalCode::NotReady, "nothing is inspected now; /readyz says why")),
        };
        let count = |refused: &Refused| {
            if self.free {
                health.idle();
            } else {
                health.refused_trigger();
            }
            log::debug!("camera {}: {refused}", self.camera);
        };
        let admission = admission.inspect_err(count)?;
        let owed = owed();
        let id = owed.meta.id;
        let sent = notices.as_ref().is_some_and(|notices| notices.send(Notice::Owed(owed)).is_ok());
        if !sent {
            self.station.left(self.free);
            return Err(Refused::new(RefusalCode::NotReady, "the station is ending"));
        }
        health.owed();
        if let Admission::Answered(reason, text) = &admission {
            self.tell(
                &notices,
                Notice::Failed { camera: self.camera.clone(), id, reason: *reason, text: text.clone() },
            );
        }
        Ok(admission)
    }

    /// What was let in and is not judged yet will not be.
    pub fn abort(&self, reason: FaultReason, text: &str) {
        let notices = self.notices();
        self.tell(&notices, Notice::Aborted { camera: self.camera.clone(), reason, text: text.to_owned() });
    }

    /// Says that the camera is gone, or its trigger line, until it is back.
    pub fn lost(&self, text: &str) {
        self.gone.store(true, Ordering::Relaxed);
        self.station.fault(FaultKind::Camera, &self.camera.0, text);
    }

    /// Says that it is there.
    pub fn back(&self) {
        if self.gone.load(Ordering::Relaxed) && self.gone.swap(false, Ordering::Relaxed) {
            self.station.clear(FaultKind::Camera, &self.camera.0);
        }
    }

    /// Says that the line is gone that triggers the camera, until it is back.
    pub fn line_lost(&self, text: &str) {
        self.station.fault(FaultKind::Camera, &format!("{}{TRIGGER_LINE}", self.camera), text);
    }

    /// Says that it is there.
    pub fn line_back(&self) {
        self.station.clear(FaultKind::Camera, &format!("{}{TRIGGER_LINE}", self.camera));
    }

    /// Whether a source that waits is to give a frame: one that would be let in, or that shows that the camera is back.
    pub fn wants(&self) -> bool {
        !self.free || self.gone.load(Ordering::Relaxed) || self.station.judges_free()
    }

    fn tell(&self, notices: &MutexGuard<'_, Option<Sender<Notice>>>, notice: Notice) {
        if let Some(notices) = notices.as_ref() {
            // Whoever publishes is there as long as anything is let in.
            let _ = notices.send(notice);
        }
    }

    fn notices(&self) -> MutexGuard<'_, Option<Sender<Notice>>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the station that the detector is broken.
pub struct Breaks {
    /// The station.
    pub station: Arc<StationState>,
    /// The gates of all cameras.
    pub gates: Vec<Arc<Gate>>,
    /// The counters.
    pub health: Arc<Health>,
}

impl Breaks {
    /// Whether the detector broke on this one, and how: it gave nothing at all. A value that is no number is the fault of its frame
    /// alone.
    pub fn look(&self, inspection: &Inspection) -> Option<String> {
        let failed = inspection.decision.verdict == Verdict::Fault(FaultReason::DetectorFault);
        if !failed || inspection.detection.is_some() {
            return None;
        }
        let text = inspection.fault.as_deref().unwrap_or("it gave nothing");
        let new = self.station.fault(FaultKind::Detector, &inspection.bundle, text);
        new.then(|| format!("the detector failed before the frame was judged: {text}"))
    }

    /// Whatever is owed will not be judged.
    pub fn give_up(&self, text: &str) {
        self.gates.iter().for_each(|gate| gate.abort(FaultReason::DetectorFault, text));
    }
}
