//! Verdicts on their way to connections: a ring that the publish stage writes and never waits for.
//!
//! A connection that does not keep up is told how many it missed; nothing else happens to it, or to the line.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::inspection::command::LONGEST;
use crate::inspection::event::{Envelope, EventId};
use crate::inspection::frame::CameraId;
use crate::inspection::verdict::{Inspection, SinkError, VerdictSink};

/// Verdicts that are kept for connections: two seconds of a hundred parts a second.
const KEPT: usize = 256;

/// The ring.
pub struct Board {
    ring: Mutex<Ring>,
    told: watch::Sender<u64>,
}

struct Ring {
    /// How many were ever written.
    written: u64,
    /// Written over and over, so that nothing is allocated for a verdict.
    entries: Vec<Entry>,
}

/// A verdict as a line tells it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The camera.
    pub camera: CameraId,
    /// Number of the inspection on it.
    pub frame_id: u64,
    part_id: String,
    verdict: &'static str,
    reason: &'static str,
    score: Option<f32>,
    event_id: EventId,
}

impl Entry {
    /// The line, with its end.
    pub fn line(&self) -> String {
        let part = if self.part_id.contains(char::is_whitespace) {
            format!("\"{}\"", self.part_id.replace('"', "'"))
        } else {
            self.part_id.clone()
        };
        let score = self.score.map_or(String::new(), |score| score.to_string());
        format!(
            "verdict camera={} frame_id={} part_id={part} verdict={} reason={} score={score} event_id={}\n",
            self.camera, self.frame_id, self.verdict, self.reason, self.event_id
        )
    }
}

impl Default for Board {
    fn default() -> Self {
        let blank = || Entry {
            camera: CameraId("".into()),
            frame_id: 0,
            part_id: String::with_capacity(LONGEST),
            verdict: "",
            reason: "",
            score: None,
            event_id: EventId::default(),
        };
        let entries = std::iter::repeat_with(blank).take(KEPT).collect();
        Self { ring: Mutex::new(Ring { written: 0, entries }), told: watch::Sender::new(0) }
    }
}

impl Board {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sink that writes the ring.
pub struct BoardSink(pub Arc<Board>);

impl VerdictSink for BoardSink {
    fn name(&self) -> &str {
        "tcp"
    }

    fn publish(&mut self, inspection: &Inspection, envelope: &Envelope) -> Result<(), SinkError> {
        let mut ring = self.0.ring();
        let place = (ring.written % KEPT as u64) as usize;
        let entry = &mut ring.entries[place];
        entry.camera.clone_from(&inspection.frame.camera);
        entry.frame_id = inspection.frame.id.0;
        entry.part_id.clear();
        if let Some(part) = inspection.frame.trigger.as_ref().and_then(|trigger| trigger.part_id.as_deref()) {
            entry.part_id.push_str(part);
        }
        entry.verdict = inspection.decision.verdict.word();
        entry.reason = inspection.decision.reason().unwrap_or_default();
        entry.score =
            inspection.detection.as_ref().map(|detection| detection.score.0).filter(|score| score.is_finite());
        entry.event_id = envelope.event_id;
        ring.written += 1;
        let written = ring.written;
        drop(ring);
        self.0.told.send_replace(written);
        Ok(())
    }
}

/// A connection's place in the ring.
pub struct Follower {
    board: Arc<Board>,
    told: watch::Receiver<u64>,
    seen: u64,
}

impl Follower {
    /// From the next verdict on.
    pub fn new(board: &Arc<Board>) -> Self {
        let told = board.told.subscribe();
        let seen = board.ring().written;
        Self { board: Arc::clone(board), told, seen }
    }

    /// Skips what was told so far.
    pub fn catch_up(&mut self) {
        self.seen = self.board.ring().written;
    }

    /// Waits until there is something new.
    pub async fn changed(&mut self) {
        if self.told.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What is new and wanted, and how many were written over before they were looked at.
    pub fn take(&mut self, mut wanted: impl FnMut(&Entry) -> bool) -> (Vec<Entry>, u64) {
        self.told.mark_unchanged();
        let ring = self.board.ring();
        let first = self.seen.max(ring.written.saturating_sub(KEPT as u64));
        let missed = first - self.seen;
        self.seen = ring.written;
        let entries = (first..ring.written).map(|number| &ring.entries[(number % KEPT as u64) as usize]);
        (entries.filter(|entry| wanted(entry)).cloned().collect(), missed)
    }
}
