//! Golden parts, judged again and again while the station runs: a detector that begins to answer otherwise is found before parts are
//! let through by it.

use std::sync::Arc;
use std::time::Duration;

use super::health::Health;
use crate::inspection::audit::{Audit, Deed};
use crate::inspection::calibration::Calibration;
use crate::inspection::detect::{Detector, Plan};
use crate::inspection::frame::Prepared;
use crate::inspection::golden::Expected;
use crate::inspection::time::{Clock, Timestamp};

/// Longest time from a challenge that failed to the next.
const AGAIN: Duration = Duration::from_secs(60);

/// A picture of a bundle whose answer is known.
pub struct GoldenPart {
    /// Which of the detectors must answer.
    pub detector: usize,
    /// Identity of the bundle.
    pub bundle: String,
    /// The picture.
    pub name: String,
    /// Its model input.
    pub prepared: Prepared,
    /// What the detector is asked for.
    pub plan: Plan,
    /// What it must answer.
    pub expected: Expected,
    /// The thresholds that make a verdict of it.
    pub calibration: Option<Arc<Calibration>>,
}

/// A challenge of all golden parts at a time, part by part between frames. It is no inspection.
pub struct Challenge {
    parts: Vec<GoldenPart>,
    every: Duration,
    audit: Audit,
    /// When the next one begins.
    due: Timestamp,
    /// Which part is next,
    next: usize,
    /// and what was wrong with those before it.
    wrong: Vec<String>,
}

impl Challenge {
    /// The first one comes `every` after the start, at which every golden part was judged.
    pub fn new(parts: Vec<GoldenPart>, every: Duration, audit: Audit, clock: &dyn Clock) -> Self {
        let mut challenge = Self { parts, every, audit, due: Timestamp(0), next: 0, wrong: Vec::new() };
        challenge.due = later(clock.now(), every);
        challenge
    }

    /// Judges one golden part, if it is time: when no frame waits, or, once it is late, between two frames.
    pub fn step(&mut self, waiting: bool, detectors: &mut [Box<dyn Detector>], clock: &dyn Clock, health: &Health) {
        let (now, late) = (clock.now(), later(self.due, self.every / 10));
        if now < self.due || (waiting && now < late) {
            return;
        }
        if let Some(part) = self.parts.get(self.next) {
            if let Some(wrong) = part.wrong(detectors) {
                self.wrong.push(format!("golden part '{}' of bundle '{}': {wrong}", part.name, part.bundle));
            }
            self.next += 1;
        }
        if self.next >= self.parts.len() {
            self.end(clock.now(), health);
        }
    }

    /// More of them, of a detector that came.
    pub(super) fn add(&mut self, parts: impl Iterator<Item = GoldenPart>) {
        self.parts.extend(parts);
    }

    /// No more of those of a detector that goes.
    pub(super) fn remove(&mut self, detector: usize) {
        self.parts.retain(|part| part.detector != detector);
        // One of the others may be judged twice.
        self.next = 0;
    }

    /// All of them were judged.
    fn end(&mut self, now: Timestamp, health: &Health) {
        let failed = (!self.wrong.is_empty()).then(|| std::mem::take(&mut self.wrong).join("; "));
        let again = failed.as_ref().map_or(self.every, |_| self.every.min(AGAIN));
        (self.next, self.due) = (0, later(now, again));
        let deed = Deed {
            who: "station".into(),
            from: "schedule".into(),
            what: "challenge".into(),
            of: format!("{} golden part(s)", self.parts.len()),
            refused: failed.clone(),
            ..Deed::default()
        };
        if let Err(error) = (self.audit)(deed) {
            log::error!("the audit trail does not know of a challenge: {error}");
        }
        let before = health.challenged(failed.clone());
        match (failed, before) {
            (Some(wrong), _) => log::error!("challenge failed: {wrong}; the station is not ready until one passes"),
            (None, Some(_)) => log::info!("challenge passed: the station may be ready again"),
            (None, None) => log::debug!("challenge passed"),
        }
    }
}

impl GoldenPart {
    /// What is wrong with the answer that is given now, if anything.
    fn wrong(&self, detectors: &mut [Box<dyn Detector>]) -> Option<String> {
        let Some(detector) = detectors.get_mut(self.detector) else { return Some("there is no detector".into()) };
        let found = match detector.detect(std::slice::from_ref(&self.prepared), &self.plan) {
            Ok(found) => found,
            Err(error) => return Some(error.0),
        };
        let [detection] = &found[..] else { return Some(format!("{} answers", found.len())) };
        self.expected.verdict_difference(detection, &self.plan, self.calibration.as_deref())
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp(time.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
}
