//! The last stage: keeps the books of what is owed, decides what the line does, tells every sink, in order, and hands the inspection to
//! the record.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::health::Health;
use super::job::{Recipes, faulty};
use super::ledger::{Ledger, Notice, Outcome, Owed};
use super::stages::IDLE;
use super::state::StationState;
use crate::inspection::event::Envelope;
use crate::inspection::frame::CameraId;
use crate::inspection::line::LineState;
use crate::inspection::time::Clock;
use crate::inspection::verdict::{FaultReason, Inspection, Record, SinkError, VerdictSink};

/// Makes the envelope of an inspection.
pub type Envelopes = Box<dyn FnMut() -> Envelope + Send>;

/// Name of the record among those who are told.
pub const RECORD: &str = "record";

/// The stage.
pub struct Publish {
    envelopes: Envelopes,
    sinks: Vec<Told<dyn VerdictSink>>,
    record: Told<dyn Record>,
    cameras: HashMap<CameraId, Line>,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    station: Arc<StationState>,
}

/// Whom the stage tells, and whether the last error was told.
struct Told<T: ?Sized> {
    to: Box<T>,
    told: bool,
}

/// What the line knows of a camera.
struct Line {
    recipes: Arc<Recipes>,
    /// By which recipe the last verdict was made, and the verdicts before it.
    state: (usize, LineState),
}

impl Publish {
    /// A stage that tells inspections to `sinks` and then hands them to `record`.
    pub fn new(
        envelopes: Envelopes,
        sinks: Vec<Box<dyn VerdictSink>>,
        record: Box<dyn Record>,
        recipes: &HashMap<CameraId, Arc<Recipes>>,
        clock: Arc<dyn Clock>,
        health: Arc<Health>,
        station: Arc<StationState>,
    ) -> Self {
        let line = |recipes: &Arc<Recipes>| Line { recipes: Arc::clone(recipes), state: (0, LineState::default()) };
        Self {
            envelopes,
            sinks: sinks.into_iter().map(|to| Told { to, told: false }).collect(),
            record: Told { to: record, told: false },
            cameras: recipes.iter().map(|(camera, recipes)| (camera.clone(), line(recipes))).collect(),
            clock,
            health,
            station,
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
                    Outcome::Judged(owed, inspection) => drop(self.publish(&owed, inspection)),
                    Outcome::Failed { owed, reason, text } => drop(self.fail(owed, reason, text)),
                    Outcome::Overdue(owed) => {
                        let (camera, id) = (owed.meta.camera.clone(), owed.meta.id);
                        let text = "the deadline passed before the verdict".to_owned();
                        if let Some(envelope) = self.fail(owed, FaultReason::Overrun, text) {
                            ledger.remember(&camera, id, envelope);
                        }
                    }
                    Outcome::Late(inspection, envelope) => {
                        let frame = inspection.frame.id.0;
                        self.health.camera(&inspection.frame.camera).late();
                        let said = self.record.to.amend(envelope, inspection);
                        self.heard(self.sinks.len(), frame, said);
                    }
                }
            }
            if !open {
                return;
            }
        }
    }

    /// A frame that was not judged.
    fn fail(&mut self, owed: Owed, reason: FaultReason, text: String) -> Option<Envelope> {
        let line = self.cameras.get(&owed.meta.camera)?;
        let job = line.recipes.get(owed.recipe);
        let inspection = faulty(owed.meta.clone(), &job, reason, text, self.clock.as_ref());
        self.publish(&owed, Box::new(inspection))
    }

    fn publish(&mut self, owed: &Owed, mut inspection: Box<Inspection>) -> Option<Envelope> {
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
        let envelope = (self.envelopes)();
        let frame = inspection.frame.id.0;
        for number in 0..self.sinks.len() {
            let said = self.sinks[number].to.publish(&inspection, &envelope);
            self.heard(number, frame, said);
        }
        let said = self.record.to.keep(envelope.clone(), inspection);
        self.heard(self.sinks.len(), frame, said);
        self.health.camera(&owed.meta.camera).told();
        self.station.left(owed.free);
        Some(envelope)
    }

    /// Counts a refusal, and tells the first of a row; one that refuses does not stop the others.
    fn heard(&mut self, number: usize, frame: u64, said: Result<(), SinkError>) {
        let (name, told) = match self.sinks.get_mut(number) {
            Some(Told { to, told }) => (to.name(), told),
            None => (RECORD, &mut self.record.told),
        };
        match said {
            Ok(()) => *told = false,
            Err(error) => {
                self.health.refused(number);
                if !std::mem::replace(told, true) {
                    log::error!("{name}: frame {frame} not taken: {error}");
                }
            }
        }
    }
}
