//! What is owed: every frame that was taken and every trigger that was accepted, until its one inspection has gone out.
//!
//! Inspections of a camera leave in the order of their frames. What is not there at its deadline leaves as an overrun then and
//! there; what the detector says of it afterwards is told once more, as late, and nothing acts on it.

use std::collections::{BTreeMap, VecDeque};

use crate::inspection::event::Envelope;
use crate::inspection::frame::{CameraId, FrameId, FrameMeta};
use crate::inspection::time::Timestamp;
use crate::inspection::verdict::{FaultReason, Inspection};

/// What the publish stage hears.
pub enum Notice {
    /// A frame was taken, or a trigger accepted: an inspection is owed.
    Owed(Owed),
    /// It was judged.
    Judged(Box<Inspection>),
    /// It will not be judged.
    Failed {
        /// The camera.
        camera: CameraId,
        /// The frame.
        id: FrameId,
        /// Why.
        reason: FaultReason,
        /// In words.
        text: String,
    },
    /// Whatever is owed of a camera, and not judged yet, will not be.
    Aborted {
        /// The camera.
        camera: CameraId,
        /// Why.
        reason: FaultReason,
        /// In words.
        text: String,
    },
}

/// An inspection that is owed.
pub struct Owed {
    /// What is known of the frame: its number, and what triggered it.
    pub meta: FrameMeta,
    /// Which of the camera's recipes judges it.
    pub recipe: usize,
    /// Whether nobody asked for it: the frame of a camera that runs free.
    pub free: bool,
    /// When it must be out; never, where the recipe sets no deadline.
    pub due: Option<Timestamp>,
}

/// What goes out.
pub enum Outcome {
    /// The inspection of a frame.
    Judged(Owed, Box<Inspection>),
    /// A frame that was not judged.
    Failed {
        /// What is known of it.
        owed: Owed,
        /// Why.
        reason: FaultReason,
        /// In words.
        text: String,
    },
    /// A deadline has passed: the frame leaves as an overrun.
    Overdue(Owed),
    /// What the detector said of a frame whose overrun is out already, with the envelope of that.
    Late(Box<Inspection>, Envelope),
}

/// How long a verdict that was in time may have waited for its turn beyond its deadline, nanoseconds: publish itself may be held up.
const TURN: u64 = 5_000_000;

/// The books of all cameras.
#[derive(Default)]
pub struct Ledger {
    cameras: BTreeMap<CameraId, Account>,
    /// Late results, to be told.
    late: VecDeque<(Box<Inspection>, Envelope)>,
}

#[derive(Default)]
struct Account {
    /// In the order of their frames.
    owed: VecDeque<Entry>,
    /// Those that left at their deadline, while the detector may still speak of them.
    overdue: Vec<(FrameId, Option<Envelope>)>,
    /// What the detector said after the deadline of frames that are still to leave as overruns.
    spoken: Vec<Inspection>,
}

struct Entry {
    owed: Owed,
    state: State,
}

enum State {
    Waiting,
    Judged(Box<Inspection>),
    Failed(FaultReason, String),
}

impl Ledger {
    /// Takes a notice in that is heard now. A verdict that is heard at or after its deadline is late, whatever it says.
    pub fn take(&mut self, notice: Notice, now: Timestamp) {
        match notice {
            Notice::Owed(owed) => {
                let account = self.cameras.entry(owed.meta.camera.clone()).or_default();
                account.owed.push_back(Entry { owed, state: State::Waiting });
            }
            Notice::Judged(inspection) => {
                let FrameMeta { camera, id, .. } = &inspection.frame;
                let (camera, id) = (camera.clone(), *id);
                let Some(account) = self.cameras.get_mut(&camera) else { return };
                if let Some(entry) = account.waiting(id) {
                    match entry.owed.due {
                        Some(due) if now >= due => account.spoken.push(*inspection),
                        _ => entry.state = State::Judged(inspection),
                    }
                } else if let Some(envelope) = account.forget(id) {
                    self.late.push_back((inspection, envelope));
                }
            }
            Notice::Failed { camera, id, reason, text } => {
                let Some(account) = self.cameras.get_mut(&camera) else { return };
                match account.waiting(id) {
                    Some(entry) => entry.state = State::Failed(reason, text),
                    // It is out as an overrun, and nothing more will come.
                    None => drop(account.forget(id)),
                }
            }
            Notice::Aborted { camera, reason, text } => {
                let Some(account) = self.cameras.get_mut(&camera) else { return };
                account.give_up(reason, &text);
            }
        }
    }

    /// The earliest deadline of what is not out yet.
    pub fn next_due(&self) -> Option<Timestamp> {
        let entries = self.cameras.values().flat_map(|account| &account.owed);
        entries.filter_map(|entry| entry.owed.due).min()
    }

    /// What must go out now, one at a time.
    pub fn next(&mut self, now: Timestamp) -> Option<Outcome> {
        for account in self.cameras.values_mut() {
            // A frame that is ready waits for those before it, but not beyond its deadline.
            let due = |entry: &Entry| entry.owed.due.is_some_and(|due| now >= due);
            let ready = |entry: &Entry| !matches!(entry.state, State::Waiting);
            let first = match account.owed.front() {
                Some(entry) if ready(entry) => 0,
                _ => match account.owed.iter().position(due) {
                    Some(position) => position,
                    None => continue,
                },
            };
            let Some(Entry { owed, state }) = account.owed.remove(first) else { continue };
            let missed = owed.due.is_some_and(|due| now.0 > due.0.saturating_add(TURN));
            return Some(match state {
                State::Judged(inspection) if !missed => Outcome::Judged(owed, inspection),
                State::Failed(reason, text) => Outcome::Failed { owed, reason, text },
                state => {
                    if let State::Judged(inspection) = state {
                        account.spoken.push(*inspection);
                    }
                    account.overdue.push((owed.meta.id, None));
                    Outcome::Overdue(owed)
                }
            });
        }
        self.late.pop_front().map(|(inspection, envelope)| Outcome::Late(inspection, envelope))
    }

    /// Keeps the envelope of a frame that left at its deadline, for what may be said of it later.
    pub fn remember(&mut self, camera: &CameraId, id: FrameId, envelope: Envelope) {
        let Some(account) = self.cameras.get_mut(camera) else { return };
        if let Some(position) = account.spoken.iter().position(|inspection| inspection.frame.id == id) {
            account.overdue.retain(|(overdue, _)| *overdue != id);
            self.late.push_back((Box::new(account.spoken.swap_remove(position)), envelope));
        } else if let Some((_, kept)) = account.overdue.iter_mut().find(|(overdue, _)| *overdue == id) {
            *kept = Some(envelope);
        }
    }

    /// Nothing more will be heard: all that is owed will not be judged.
    pub fn close(&mut self, text: &str) {
        self.cameras.values_mut().for_each(|account| account.give_up(FaultReason::CameraFault, text));
    }
}

impl Account {
    fn give_up(&mut self, reason: FaultReason, text: &str) {
        for entry in self.owed.iter_mut().filter(|entry| matches!(entry.state, State::Waiting)) {
            entry.state = State::Failed(reason, text.to_owned());
        }
    }

    fn waiting(&mut self, id: FrameId) -> Option<&mut Entry> {
        // Numbers of a camera ascend.
        let position = self.owed.binary_search_by_key(&id, |entry| entry.owed.meta.id).ok()?;
        self.owed.get_mut(position).filter(|entry| matches!(entry.state, State::Waiting))
    }

    fn forget(&mut self, id: FrameId) -> Option<Envelope> {
        let position = self.overdue.iter().position(|(overdue, _)| *overdue == id)?;
        self.overdue.swap_remove(position).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::event::EventId;
    use crate::inspection::line::Actuation;
    use crate::inspection::verdict::{Decision, Latency, Verdict};

    fn meta(id: u64) -> FrameMeta {
        FrameMeta { id: FrameId(id), ..FrameMeta::of_picture("top", 8, 8) }
    }

    fn owed(id: u64, due: Option<u64>) -> Notice {
        Notice::Owed(Owed { meta: meta(id), recipe: 0, free: false, due: due.map(Timestamp) })
    }

    fn inspection(id: u64) -> Box<Inspection> {
        Box::new(Inspection {
            frame: meta(id),
            recipe: crate::inspection::recipe::RecipeId("r".into()),
            recipe_hash: "0".into(),
            bundle: String::new(),
            model_hash: String::new(),
            calibration: None,
            detection: None,
            decision: Decision { verdict: Verdict::Pass, rule: None, threshold: None, regions: Vec::new() },
            latency: Latency::default(),
            deadline_ms: None,
            dtype: String::new(),
            seed: 0,
            fault: None,
            prepared: None,
            pixels: None,
            full_scale: None,
            drift: crate::inspection::drift::Drift::default(),
            actuation: Actuation::Nothing,
        })
    }

    fn failed(id: u64) -> Notice {
        let camera = CameraId("top".into());
        Notice::Failed { camera, id: FrameId(id), reason: FaultReason::Overrun, text: String::new() }
    }

    fn envelope(id: u64) -> Envelope {
        Envelope {
            event_id: EventId(id.into()),
            seq: id,
            boot: 0,
            wall_nanos: 0,
            mono_nanos: 0,
            line: "".into(),
            station: "".into(),
        }
    }

    /// What goes out now: a word and the number of the frame.
    fn out(ledger: &mut Ledger, now: u64) -> Vec<(&'static str, u64)> {
        std::iter::from_fn(|| ledger.next(Timestamp(now)))
            .map(|outcome| match outcome {
                Outcome::Judged(owed, _) => ("judged", owed.meta.id.0),
                Outcome::Failed { owed, .. } => ("failed", owed.meta.id.0),
                Outcome::Overdue(owed) => ("overdue", owed.meta.id.0),
                Outcome::Late(inspection, envelope) => {
                    assert_eq!(envelope.seq, inspection.frame.id.0);
                    ("late", inspection.frame.id.0)
                }
            })
            .collect()
    }

    #[test]
    fn inspections_leave_in_the_order_of_their_frames() {
        let mut ledger = Ledger::default();
        (0..4).for_each(|id| ledger.take(owed(id, None), Timestamp(0)));
        ledger.take(failed(2), Timestamp(0));
        ledger.take(Notice::Judged(inspection(1)), Timestamp(0));
        assert_eq!(out(&mut ledger, 5), []);
        ledger.take(Notice::Judged(inspection(0)), Timestamp(0));
        assert_eq!(out(&mut ledger, 5), [("judged", 0), ("judged", 1), ("failed", 2)]);
        ledger.close("stop");
        assert_eq!(out(&mut ledger, 5), [("failed", 3)]);
    }

    #[test]
    fn a_deadline_is_kept_and_what_comes_after_is_late() {
        let mut ledger = Ledger::default();
        ledger.take(owed(0, Some(100)), Timestamp(0));
        ledger.take(owed(1, Some(120)), Timestamp(0));
        ledger.take(owed(2, Some(90)), Timestamp(0));
        assert_eq!(ledger.next_due(), Some(Timestamp(90)));
        // The third has its result, and waits for those before it no longer than its deadline.
        ledger.take(Notice::Judged(inspection(2)), Timestamp(0));
        assert_eq!(out(&mut ledger, 89), []);
        assert_eq!(out(&mut ledger, 90), [("judged", 2)]);
        assert_eq!(out(&mut ledger, 100), [("overdue", 0)]);
        ledger.remember(&CameraId("top".into()), FrameId(0), envelope(0));
        ledger.take(Notice::Judged(inspection(1)), Timestamp(0));
        ledger.take(Notice::Judged(inspection(0)), Timestamp(0));
        assert_eq!(out(&mut ledger, 101), [("judged", 1), ("late", 0)]);
        assert_eq!(ledger.next_due(), None);
    }

    #[test]
    fn a_verdict_that_is_heard_after_its_deadline_is_late_even_if_nobody_looked_in_between() {
        let mut ledger = Ledger::default();
        for id in [0, 1] {
            ledger.take(owed(id, Some(100)), Timestamp(0));
        }
        // In time, and kept from its turn until long after: what it was for has gone by.
        ledger.take(Notice::Judged(inspection(1)), Timestamp(90));
        ledger.take(Notice::Judged(inspection(0)), Timestamp(100));
        let late = 100 + TURN + 1;
        assert_eq!(out(&mut ledger, late), [("overdue", 0), ("overdue", 1)]);
        for id in [0, 1] {
            ledger.remember(&CameraId("top".into()), FrameId(id), envelope(id));
        }
        assert_eq!(out(&mut ledger, late), [("late", 0), ("late", 1)]);
    }

    #[test]
    fn what_is_aborted_leaves_at_once_and_what_is_judged_stays_judged() {
        let mut ledger = Ledger::default();
        (0..3).for_each(|id| ledger.take(owed(id, None), Timestamp(0)));
        ledger.take(Notice::Judged(inspection(1)), Timestamp(0));
        let (camera, reason) = (CameraId("top".into()), FaultReason::Overrun);
        ledger.take(Notice::Aborted { camera, reason, text: "halted".into() }, Timestamp(0));
        assert_eq!(out(&mut ledger, 1), [("failed", 0), ("judged", 1), ("failed", 2)]);
        // The detector speaks of one that is out: nobody hears it.
        ledger.take(Notice::Judged(inspection(0)), Timestamp(2));
        ledger.take(owed(3, None), Timestamp(2));
        assert_eq!(out(&mut ledger, 3), []);
    }

    #[test]
    fn nothing_goes_out_twice() {
        let mut ledger = Ledger::default();
        ledger.take(owed(0, Some(10)), Timestamp(0));
        assert_eq!(out(&mut ledger, 10), [("overdue", 0)]);
        ledger.remember(&CameraId("top".into()), FrameId(0), envelope(0));
        // A frame that is given up after its deadline is out already.
        ledger.take(failed(0), Timestamp(0));
        ledger.take(Notice::Judged(inspection(0)), Timestamp(0));
        ledger.take(Notice::Judged(inspection(7)), Timestamp(0));
        assert_eq!(out(&mut ledger, 20), []);
    }
}
