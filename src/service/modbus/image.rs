//! What registers tell of the last verdict of each camera: written by the publish stage, which never waits for anybody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::inspection::event::Envelope;
use crate::inspection::frame::CameraId;
use crate::inspection::verdict::{FailRule, FaultReason, Inspection, SinkError, Verdict, VerdictSink};

/// The last verdict of a camera, and counts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Slot {
    /// Grows by one with each verdict, over 65535 to 1; 0 before the first.
    pub number: u16,
    /// Which of them the controller has seen.
    pub acknowledged: u16,
    /// 1 pass, 2 fail, 3 fault.
    pub verdict: u16,
    /// Number of the reason.
    pub reason: u16,
    /// The score; 0 where there is none.
    pub score: f32,
    /// The part's identity, where it is a number.
    pub part: u32,
    /// Number of the inspection on its camera.
    pub frame: u32,
    /// Passes, fails and faults.
    pub counts: [u32; 3],
    /// Verdicts that were written over before the controller had seen them.
    pub overwritten: u32,
    /// What came of the last trigger by coil.
    pub trigger: u16,
}

impl Slot {
    /// Whether the controller has not seen the last verdict.
    pub fn is_done(&self) -> bool {
        self.number != self.acknowledged
    }

    fn write(&mut self, inspection: &Inspection) {
        if self.is_done() {
            self.overwritten = self.overwritten.wrapping_add(1);
        }
        let decision = &inspection.decision;
        self.verdict = match decision.verdict {
            Verdict::Pass => 1,
            Verdict::Fail => 2,
            Verdict::Fault(_) => 3,
        };
        self.reason = reason(decision.verdict, decision.rule);
        let score = inspection.detection.as_ref().map(|detection| detection.score.0);
        self.score = score.filter(|score| score.is_finite()).unwrap_or_default();
        let part = inspection.frame.trigger.as_ref().and_then(|trigger| trigger.part_id.as_deref());
        self.part = part.and_then(|part| part.parse().ok()).unwrap_or_default();
        self.frame = inspection.frame.id.0 as u32;
        let count = &mut self.counts[usize::from(self.verdict) - 1];
        *count = count.wrapping_add(1);
        self.number = self.number.checked_add(1).unwrap_or(1);
    }
}

/// Numbers of reasons.
fn reason(verdict: Verdict, rule: Option<FailRule>) -> u16 {
    match (verdict, rule) {
        (Verdict::Pass, _) => 0,
        (Verdict::Fault(FaultReason::Overrun), _) => 1,
        (Verdict::Fault(FaultReason::CameraFault), _) => 2,
        (Verdict::Fault(FaultReason::DetectorFault), _) => 3,
        (Verdict::Fault(FaultReason::Uncalibrated), _) => 4,
        (Verdict::Fail, Some(FailRule::ImageScore) | None) => 5,
        (Verdict::Fail, Some(FailRule::Region)) => 6,
    }
}

/// The last verdicts of all cameras, in the order of the configuration.
pub struct Image {
    slots: Vec<(CameraId, Mutex<Slot>)>,
}

impl Image {
    /// Nothing has been judged on these cameras yet.
    pub fn new(cameras: &[CameraId]) -> Self {
        Self { slots: cameras.iter().map(|camera| (camera.clone(), Mutex::default())).collect() }
    }

    /// The cameras.
    pub fn cameras(&self) -> impl Iterator<Item = &CameraId> {
        self.slots.iter().map(|(camera, _)| camera)
    }

    /// What is known of a camera, by its place.
    pub fn slot(&self, place: usize) -> Option<Slot> {
        Some(*lock(&self.slots.get(place)?.1))
    }

    /// The controller has seen this verdict of a camera.
    pub fn acknowledge(&self, place: usize, number: u16) {
        if let Some((_, slot)) = self.slots.get(place) {
            lock(slot).acknowledged = number;
        }
    }

    /// What came of a trigger by coil.
    pub fn triggered(&self, place: usize, code: u16) {
        if let Some((_, slot)) = self.slots.get(place) {
            lock(slot).trigger = code;
        }
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sink that writes the image.
pub struct ImageSink(pub Arc<Image>);

impl VerdictSink for ImageSink {
    fn name(&self) -> &str {
        "modbus"
    }

    fn publish(&mut self, inspection: &Inspection, _: &Envelope) -> Result<(), SinkError> {
        if let Some((_, slot)) = self.0.slots.iter().find(|(camera, _)| *camera == inspection.frame.camera) {
            lock(slot).write(inspection);
        }
        Ok(())
    }
}
