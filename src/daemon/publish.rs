//! The last stage: keeps the books of what is owed, decides what the line does, and tells every sink, in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::health::Health;
use super::job::{Recipes, faulty};
use super::ledger::{Ledger, Notice, Outcome, Owed};
use super::stages::IDLE;
use crate::inspection::event::Event;
use crate::inspection::frame::CameraId;
use crate::inspection::line::LineState;
use crate::inspection::time::Clock;
use crate::inspection::verdict::{FaultReason, Inspection, SinkError, VerdictSink};

/// Makes the event of an inspection.
pub type Record = Box<dyn FnMut(&Inspection) -> Event + Send>;

/// The stage.
pub struct Publish {
    record: Record,
    sinks: Vec<Sink>,
    cameras: HashMap<CameraId, Line>,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
}

/// A sink, and whether its last error was told.
struct Sink {
    sink: Box<dyn VerdictSink>,
    told: bool,
}

/// What the line knows of a camera.
struct Line {
    recipes: Arc<Recipes>,
    /// By which recipe the last verdict was made, and the verdicts before it.
    state: (usize, LineState),
}

impl Publish {
    /// A stage that makes events by `record` and tells them to `sinks`.
    pub fn new(
        record: Record,
        sinks: Vec<Box<dyn VerdictSink>>,
        recipes: &HashMap<CameraId, Arc<Recipes>>,
        clock: Arc<dyn Clock>,
        health: Arc<Health>,
    ) -> Self {
        let line = |recipes: &Arc<Recipes>| Line { recipes: Arc::clone(recipes), state: (0, LineState::default()) };
        Self {
            record,
            sinks: sinks.into_iter().map(|sink| Sink { sink, told: false }).collect(),
            cameras: recipes.iter().map(|(camera, recipes)| (camera.clone(), line(recipes))).collect(),
            clock,
            health,
        }
    }

    /// Publishes until nobody is left who could notice anything.
    pub fn run(mut self, notices: &Receiver<Notice>) {
        let mut ledger = Ledger::default();
        loop {
            self.health.beat(3);
            let now = self.clock.now();
            let due = ledger.next_due().map_or(IDLE, |due| Duration::from_nanos(due.0.saturating_sub(now.0)));
            let mut open = true;
            match notices.recv_timeout(due.min(IDLE)) {
                Ok(notice) => ledger.take(notice, self.clock.now()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    ledger.close("the station stopped before the frame was judged");
                    open = false;
                }
            }
            while let Some(outcome) = ledger.next(self.clock.now()) {
                match outcome {
                    Outcome::Judged(owed, inspection) => drop(self.publish(&owed, *inspection)),
                    Outcome::Failed { owed, reason, text } => drop(self.fail(owed, reason, text)),
                    Outcome::Overdue(owed) => {
                        let (camera, id) = (owed.meta.camera.clone(), owed.meta.id);
                        let text = "the deadline passed before the verdict".to_owned();
                        if let Some(event) = self.fail(owed, FaultReason::Overrun, text) {
                            ledger.remember(&camera, id, event);
                        }
                    }
                    Outcome::Late(inspection, mut event) => {
                        self.health.camera(&inspection.frame.camera).late();
                        event.amend(&inspection);
                        self.tell(inspection.frame.id.0, |sink| sink.amend(&event));
                    }
                }
            }
            if !open {
                return;
            }
        }
    }

    /// A frame that was not judged.
    fn fail(&mut self, owed: Owed, reason: FaultReason, text: String) -> Option<Event> {
        let line = self.cameras.get(&owed.meta.camera)?;
        let job = line.recipes.get(owed.recipe);
        let inspection = faulty(owed.meta.clone(), &job, reason, text, self.clock.as_ref());
        self.publish(&owed, inspection)
    }

    fn publish(&mut self, owed: &Owed, mut inspection: Inspection) -> Option<Event> {
        let line = self.cameras.get_mut(&owed.meta.camera)?;
        if line.state.0 != owed.recipe {
            let id = |recipe: usize| line.recipes.get(recipe).recipe.id.clone();
            // Another product: what was said of the last one counts no more. One whose recipe was changed is the same.
            let state = if id(line.state.0) == id(owed.recipe) { line.state.1 } else { LineState::default() };
            line.state = (owed.recipe, state);
        }
        let (verdict, triggered) = (inspection.decision.verdict, inspection.frame.trigger.is_some());
        let rules = line.recipes.get(owed.recipe).recipe.line;
        inspection.actuation = line.state.1.next(&rules, verdict, triggered);
        self.health.count(&inspection);
        let event = (self.record)(&inspection);
        self.tell(inspection.frame.id.0, |sink| sink.publish(&inspection, &event));
        Some(event)
    }

    /// Tells every sink; one that refuses does not stop the others.
    fn tell(&mut self, frame: u64, mut tell: impl FnMut(&mut dyn VerdictSink) -> Result<(), SinkError>) {
        for (number, Sink { sink, told }) in self.sinks.iter_mut().enumerate() {
            match tell(sink.as_mut()) {
                Ok(()) => *told = false,
                Err(error) => {
                    self.health.refused(number);
                    if !std::mem::replace(told, true) {
                        log::error!("{}: frame {frame} not taken: {error}", sink.name());
                    }
                }
            }
        }
    }
}
