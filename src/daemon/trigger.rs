//! The way in of triggers: each that is accepted is numbered and owed at once, whatever the camera does, and waits for its frame.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::gate::Gate;
use super::health::Health;
use super::job::Recipes;
use super::ledger::{Notice, Owed};
use super::state::Admission;
use crate::inspection::frame::{CameraId, FrameId, FrameMeta, TriggerInfo};
use crate::inspection::time::Timestamp;
use crate::inspection::trigger::{Asked, EdgeError, EdgeSource, RefusalCode, Refused};
use crate::inspection::verdict::FaultReason;

/// Triggers of a camera that wait for their frames: more is a line that runs away.
const WAITING: usize = 64;
/// Edges that are answered one by one when a line counted more than it gave.
const MISSED: u64 = 10_000;

/// A trigger that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// Number of its inspection.
    pub id: FrameId,
    /// What triggered.
    pub info: TriggerInfo,
    /// Which of the camera's recipes judges it.
    pub recipe: usize,
    /// Its frame is the first at or after this.
    pub from: Timestamp,
    /// After this no frame is waited for.
    pub until: Timestamp,
}

/// The triggers of one camera.
pub struct Inlet {
    camera: CameraId,
    asked: Asked,
    recipes: Arc<Recipes>,
    books: Mutex<Books>,
    queue: Sender<Awaited>,
    waiting: Receiver<Awaited>,
    gate: Arc<Gate>,
    health: Arc<Health>,
}

struct Books {
    next: u64,
    last: Option<Timestamp>,
    /// There while triggers are accepted.
    notices: Option<Sender<Notice>>,
}

impl Inlet {
    /// Accepts nothing yet.
    pub fn new(camera: CameraId, asked: Asked, recipes: Arc<Recipes>, gate: Arc<Gate>, health: Arc<Health>) -> Self {
        let (queue, waiting) = bounded(WAITING);
        let books = Mutex::new(Books { next: 0, last: None, notices: None });
        Self { camera, asked, recipes, books, queue, waiting, gate, health }
    }

    /// From now on triggers are accepted, and owed to `notices`.
    pub fn open(&self, notices: Sender<Notice>) {
        self.books().notices = Some(notices);
    }

    /// Accepts no more, and gives back those that wait.
    pub fn close(&self) -> impl Iterator<Item = Awaited> + '_ {
        self.books().notices = None;
        self.waiting.try_iter()
    }

    /// The next one that was accepted.
    pub fn accepted(&self) -> Option<Awaited> {
        self.waiting.try_recv().ok()
    }

    /// Takes a trigger: from here on it ends as exactly one inspection, of the number that is returned.
    ///
    /// # Errors
    /// It is refused, and counted: the station is not ready, or the contact bounces.
    pub fn accept(&self, source: &str, part_id: Option<String>, at: Timestamp) -> Result<FrameId, Refused> {
        let mut books = self.books();
        if books.last.is_some_and(|last| at.0.abs_diff(last.0) < self.asked.debounce_nanos) {
            self.health.camera(&self.camera).refused_trigger();
            return Err(Refused::new(RefusalCode::Bounced, "it came within the debounce time of the last trigger"));
        }
        let (awaited, admission) = self.owe(&mut books, source, part_id, at)?;
        books.last = Some(at);
        let id = awaited.id;
        if admission != Admission::Inspected {
            return Ok(id);
        }
        if let Err(error) = self.queue.try_send(awaited) {
            let text = format!("{WAITING} triggers wait for their frames already");
            self.fail(&books, error.into_inner().id, text);
        }
        Ok(id)
    }

    /// Answers for edges that a line counted and gave nobody: each is a part that no frame was taken of.
    pub fn missed(&self, source: &str, count: u64, at: Timestamp) {
        let mut books = self.books();
        if count > MISSED {
            log::error!(camera:% = self.camera; "camera {}: {count} edges were missed, of which {MISSED} are answered for", self.camera);
        }
        for _ in 0..count.min(MISSED) {
            let Ok((awaited, admission)) = self.owe(&mut books, source, None, at) else { return };
            if admission == Admission::Inspected {
                self.fail(&books, awaited.id, "the trigger line gave its edges faster than they were read".into());
            }
        }
    }

    fn owe(
        &self,
        books: &mut Books,
        source: &str,
        part_id: Option<String>,
        at: Timestamp,
    ) -> Result<(Awaited, Admission), Refused> {
        let info = TriggerInfo { source: source.to_owned(), part_id, at };
        let recipe = self.recipes.at(at);
        let from = Timestamp(at.0.saturating_add(self.asked.delay_nanos));
        let until = Timestamp(from.0.saturating_add(self.asked.patience_nanos));
        let awaited = Awaited { id: FrameId(books.next), info, recipe, from, until };
        let meta = FrameMeta {
            id: awaited.id,
            camera: self.camera.clone(),
            captured_at: at,
            sequence: 0,
            trigger: Some(awaited.info.clone()),
            width: 0,
            height: 0,
        };
        let due = self.recipes.get(recipe).due(&meta);
        let admission = self.gate.admit(|| Owed { meta, recipe, free: false, due })?;
        books.next += 1;
        Ok((awaited, admission))
    }

    fn fail(&self, books: &Books, id: FrameId, text: String) {
        if let Some(notices) = &books.notices {
            let camera = self.camera.clone();
            // Whoever publishes is there as long as triggers are accepted.
            let _ = notices.send(Notice::Failed { camera, id, reason: FaultReason::Overrun, text });
        }
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds the frames of triggers.
#[derive(Debug, Default)]
pub struct Pairing {
    waiting: VecDeque<Awaited>,
}

/// What a frame came to.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Paired {
    /// The trigger whose part it shows.
    pub of: Option<Awaited>,
    /// Triggers before that one: their parts went by without a frame of their own.
    pub passed: Vec<Awaited>,
    /// Triggers that had waited too long when the frame was taken.
    pub expired: Vec<Awaited>,
}

impl Pairing {
    /// Another trigger waits.
    pub fn add(&mut self, awaited: Awaited) {
        self.waiting.push_back(awaited);
    }

    /// A frame shows the part of the last trigger before it. One frame for two parts would be a verdict of the wrong part for one
    /// of them.
    pub fn frame(&mut self, captured_at: Timestamp) -> Paired {
        let expired = self.expired(captured_at);
        let ready = self.waiting.iter().take_while(|awaited| awaited.from <= captured_at).count();
        let mut passed: Vec<Awaited> = self.waiting.drain(..ready).collect();
        let of = passed.pop();
        Paired { of, passed, expired }
    }

    /// Whether another trigger may wait: beyond that the inlet fills, and answers for the rest itself.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < WAITING
    }

    /// Whether a frame that is taken now would be of a part.
    pub fn wants(&self, now: Timestamp) -> bool {
        self.waiting.front().is_some_and(|awaited| awaited.from <= now)
    }

    /// Those for which no frame came.
    pub fn expired(&mut self, now: Timestamp) -> Vec<Awaited> {
        let count = self.waiting.iter().take_while(|awaited| awaited.until < now).count();
        self.waiting.drain(..count).collect()
    }

    /// All that wait.
    pub fn rest(&mut self) -> Vec<Awaited> {
        self.waiting.drain(..).collect()
    }
}

/// Hands the edges of a line on as triggers, until `stop` is set.
pub fn edges(mut line: Box<dyn EdgeSource>, inlet: &Inlet, stop: &AtomicBool) {
    let mut gone: Option<String> = None;
    while !stop.load(Ordering::Relaxed) {
        let edge = match line.next_edge() {
            Ok(edge) => edge,
            Err(EdgeError::Timeout) => {
                // A line that can be waited for is there.
                back(&mut gone, inlet);
                continue;
            }
            Err(EdgeError::Lost { reason }) => {
                if gone.as_ref() != Some(&reason) {
                    log::error!(camera:% = inlet.camera; "trigger line of camera {} lost: {reason}; it is tried again", inlet.camera);
                }
                inlet.health.camera(&inlet.camera).trigger_lost(true);
                inlet.gate.line_lost(&reason);
                gone = Some(reason);
                std::thread::sleep(super::stages::IDLE);
                continue;
            }
        };
        back(&mut gone, inlet);
        inlet.missed(line.name(), edge.missed, edge.at);
        if let Err(refused) = inlet.accept(line.name(), None, edge.at) {
            log::debug!("camera {}: an edge is no trigger: {refused}", inlet.camera);
        }
    }
}

fn back(gone: &mut Option<String>, inlet: &Inlet) {
    if gone.take().is_some() {
        log::info!(camera:% = inlet.camera; "the trigger line of camera {} is back", inlet.camera);
        inlet.health.camera(&inlet.camera).trigger_lost(false);
        inlet.gate.line_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awaited(id: u64, from: u64) -> Awaited {
        let info = TriggerInfo { source: "test".into(), part_id: None, at: Timestamp(from) };
        Awaited { id: FrameId(id), info, recipe: 0, from: Timestamp(from), until: Timestamp(from + 100) }
    }

    fn ids(of: &[Awaited]) -> Vec<u64> {
        of.iter().map(|awaited| awaited.id.0).collect()
    }

    #[test]
    fn a_frame_is_of_the_last_trigger_before_it() {
        let mut pairing = Pairing::default();
        [(0, 10), (1, 20), (2, 30)].into_iter().for_each(|(id, from)| pairing.add(awaited(id, from)));
        assert_eq!(pairing.frame(Timestamp(9)), Paired::default());
        let Paired { of, passed, .. } = pairing.frame(Timestamp(20));
        assert_eq!((of.map(|of| of.id.0), ids(&passed)), (Some(1), vec![0]));
        let Paired { of, passed, .. } = pairing.frame(Timestamp(31));
        assert_eq!((of.map(|of| of.id.0), ids(&passed)), (Some(2), vec![]));
        assert_eq!(pairing.frame(Timestamp(99)), Paired::default());
    }

    #[test]
    fn a_trigger_waits_only_so_long() {
        let mut pairing = Pairing::default();
        [(0, 10), (1, 50)].into_iter().for_each(|(id, from)| pairing.add(awaited(id, from)));
        assert!(pairing.expired(Timestamp(110)).is_empty());
        assert_eq!(ids(&pairing.expired(Timestamp(111))), [0]);
        // A frame that comes after that is of no part of it.
        let Paired { of, expired, .. } = pairing.frame(Timestamp(151));
        assert_eq!((of, ids(&expired)), (None, vec![1]));
        pairing.add(awaited(2, 200));
        assert_eq!(ids(&pairing.rest()), [2]);
    }
}
