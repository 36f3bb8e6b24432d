//! The first three stages, capture, prepare and inspect: a plain loop each over what the stage before hands on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};

use super::challenge::Challenge;
use super::exchange::{self, Detectors, Exchange};
use super::gate::{Breaks, Gate};
use super::health::{CameraHealth, Health};
use super::job::{Item, Job, Recipes, Turn, judge};
use super::ledger::{Notice, Owed};
use super::mailbox::{Consumer, Producer, Taken};
use super::state::Admission;
use super::trigger::{Awaited, Inlet, Paired, Pairing};
use super::watch::{Monitors, watch};
use crate::inspection::detect::Detector;
use crate::inspection::frame::{CameraId, Frame, FrameId, FrameMeta, FrameSource, SourceError, TriggerInfo};
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::trigger::TriggerMode;
use crate::inspection::verdict::{FaultReason, Latency};
use crate::preprocess::Preparer;

/// Wait of a stage that has nothing to do: bounds how long a stop or a heartbeat takes.
pub const IDLE: Duration = Duration::from_millis(100);
/// First and longest wait before a lost camera is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// A frame that is to be inspected.
pub struct Captured {
    frame: Frame,
    job: Arc<Job>,
    due: Option<Timestamp>,
}

/// A frame that is to be judged.
pub struct Work {
    item: Item,
    job: Arc<Job>,
}

/// The first stage, of one camera.
pub struct Capture {
    /// Its name.
    pub camera: CameraId,
    /// Its frames.
    pub source: Box<dyn FrameSource>,
    /// Whether frames come at their own rate. Only then may one be lost; a source without a rate waits.
    pub paced: bool,
    /// What makes frames be inspected.
    pub mode: TriggerMode,
    /// Where triggers come from, for a camera that is asked.
    pub inlet: Option<Arc<Inlet>>,
    /// What lets its frames in.
    pub gate: Arc<Gate>,
    /// What judges its frames.
    pub recipes: Arc<Recipes>,
    /// To prepare.
    pub frames: Producer<Captured>,
    /// To publish.
    pub notices: Sender<Notice>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Under whose controls frames were taken.
struct Light {
    /// The change of recipe that the camera was last set for.
    turn: Turn,
    /// Frames in between were taken while it was set: the last two times.
    between: [(Timestamp, Timestamp); 2],
}

impl Light {
    fn new(turn: Turn) -> Self {
        Self { turn, between: [(Timestamp(0), Timestamp(0)); 2] }
    }

    /// The camera was set for this change; frames from `fresh` on show it.
    fn change(&mut self, turn: Turn, fresh: Timestamp) {
        if fresh > turn.since {
            self.between = [self.between[1], (turn.since, fresh)];
        }
        self.turn = turn;
    }

    /// The recipe of a frame, if the camera was set for it: `latest` is the last change of all.
    fn recipe(&self, captured_at: Timestamp, latest: Turn) -> Option<usize> {
        let between = self.between.iter().any(|(from, to)| (*from..*to).contains(&captured_at));
        let ahead = latest != self.turn && captured_at >= latest.since;
        let Turn { before, recipe, since } = self.turn;
        (!between && !ahead).then_some(if captured_at < since { before } else { recipe })
    }
}

/// What is said of a part whose frame was taken for another recipe.
const CHANGED: &str = "the frame was taken while the recipe changed";

impl Capture {
    /// Takes frames until the camera ends or `stop` is set.
    pub fn run(mut self, stop: &AtomicBool, health: &Health) {
        let health_of = health.camera(&self.camera);
        let mut pairing = Pairing::default();
        let mut light = Light::new(self.recipes.turn());
        self.source.set_controls(&self.recipes.get(light.turn.recipe).recipe.controls);
        // The last frame that nobody asked for: a trigger may be heard of just after the frame of its part.
        let mut spare: Option<Frame> = None;
        let (mut retry, mut gone) = (RETRY.0, None::<String>);
        self.gate.open(self.notices.clone());
        if let Some(inlet) = &self.inlet {
            inlet.open(self.notices.clone());
        }
        while !stop.load(Ordering::Relaxed) {
            health.beat(0);
            let turn = self.follow(&mut light);
            if turn != light.turn {
                let fresh = self.source.set_controls(&self.recipes.get(turn.recipe).recipe.controls);
                light.change(turn, fresh);
            }
            if let Some(inlet) = self.inlet.clone() {
                while let Some(awaited) = pairing.has_room().then(|| inlet.accepted()).flatten() {
                    pairing.add(awaited);
                }
                if let Some(frame) = spare.take() {
                    spare = self.pair(frame, &mut light, &mut pairing, health_of);
                }
                self.expire(pairing.expired(self.clock.now()), gone.as_deref());
                // A source without a rate gives a frame when one is wanted: a picture of a folder for each trigger.
                if !self.paced && !pairing.wants(self.clock.now()) {
                    health_of.rests();
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            }
            // Nor does it give any while nothing is judged that nobody asked for.
            if !self.paced && !self.gate.wants() {
                health_of.rests();
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            health_of.asked(self.clock.as_ref());
            match self.source.next_frame() {
                Ok(frame) => {
                    health_of.seen(&frame.meta);
                    self.gate.back();
                    spare = match self.mode {
                        TriggerMode::Asked(_) => self.pair(frame, &mut light, &mut pairing, health_of),
                        TriggerMode::Free | TriggerMode::Line => {
                            self.every(frame, &mut light, health);
                            None
                        }
                    };
                }
                Err(SourceError::Damaged { meta, reason }) => {
                    health_of.seen(&meta);
                    self.gate.back();
                    self.damaged(*meta, reason, light.turn.recipe, &mut pairing);
                }
                // A camera that waits for its own line is there when it can be waited for.
                Err(SourceError::Timeout) if self.mode == TriggerMode::Line && gone.is_some() => {
                    health_of.found();
                    self.gate.back();
                }
                Err(SourceError::Timeout) => continue,
                Err(SourceError::Ended) => break,
                Err(SourceError::Lost { reason }) => {
                    if gone.is_none() {
                        health_of.lost();
                        self.gate.lost(&reason);
                    }
                    // Once for each reason: a camera may be unplugged for weeks.
                    if gone.as_ref() != Some(&reason) {
                        log::error!(camera:% = self.camera; "camera {} lost: {reason}; it is tried again until it is back", self.camera);
                    }
                    gone = Some(reason);
                    std::thread::sleep(retry);
                    retry = (retry * 2).min(RETRY.1);
                    continue;
                }
            }
            retry = RETRY.0;
            if gone.take().is_some() {
                log::info!(camera:% = self.camera; "camera {} is back", self.camera);
            }
        }
        // Its last frames may be judged for long.
        health_of.rests();
        if let Some(inlet) = &self.inlet {
            inlet.close().for_each(|awaited| pairing.add(awaited));
        }
        self.gate.close();
        for awaited in pairing.rest() {
            self.fail(&awaited, FaultReason::CameraFault, "the station stopped before a frame came".into());
        }
    }

    /// A recipe for which the camera is set in the same way holds at once, without a frame in between that is nobody's.
    fn follow(&self, light: &mut Light) -> Turn {
        let turn = self.recipes.turn();
        if turn != light.turn && self.recipes.alike(turn.recipe, light.turn.recipe) {
            light.change(turn, Timestamp(0));
        }
        turn
    }

    /// Every frame is inspected.
    fn every(&mut self, mut frame: Frame, light: &mut Light, health: &Health) {
        let at = frame.meta.captured_at;
        if self.mode == TriggerMode::Line {
            frame.meta.trigger.get_or_insert_with(|| TriggerInfo { source: "line".into(), part_id: None, at });
        }
        let latest = self.follow(light);
        let Some(recipe) = light.recipe(at, latest) else {
            if self.owe(&frame.meta, self.recipes.at(at)).is_some() {
                self.tell(frame.meta.id, FaultReason::CameraFault, CHANGED.into());
            }
            return;
        };
        let Some(due) = self.owe(&frame.meta, recipe) else { return };
        let captured = Captured { frame, job: self.recipes.get(recipe), due };
        if self.paced {
            return self.push(captured);
        }
        let mut waiting = Some(captured);
        while let Some(captured) = waiting.take() {
            if let Err(back) = self.frames.offer(captured) {
                waiting = Some(back);
                health.beat(0);
                // A detector that takes longer for a part than a camera may be silent is no silence.
                health.camera(&self.camera).rests();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// The frame of a trigger is inspected; gives back one that nobody asked for.
    fn pair(
        &mut self,
        mut frame: Frame,
        light: &mut Light,
        pairing: &mut Pairing,
        health_of: &CameraHealth,
    ) -> Option<Frame> {
        let latest = self.follow(light);
        // One that was taken while the camera was set for another product is no part's.
        let taken_for = light.recipe(frame.meta.captured_at, latest)?;
        let Paired { of, passed, expired } = pairing.frame(frame.meta.captured_at);
        self.expire(expired, None);
        for awaited in passed {
            let text = "the next trigger came before the camera gave a frame".to_owned();
            self.fail(&awaited, FaultReason::Overrun, text);
        }
        let awaited = match of {
            Some(awaited) if self.recipes.alike(awaited.recipe, taken_for) => awaited,
            Some(awaited) => {
                self.fail(&awaited, FaultReason::CameraFault, CHANGED.into());
                return None;
            }
            None => return Some(frame),
        };
        let Awaited { id, info, recipe, .. } = awaited;
        health_of.waited(frame.meta.captured_at.millis_since(info.at));
        (frame.meta.id, frame.meta.trigger) = (id, Some(info));
        let job = self.recipes.get(recipe);
        let due = job.due(&frame.meta);
        self.push(Captured { frame, job, due });
        None
    }

    fn damaged(&mut self, meta: FrameMeta, reason: String, recipe: usize, pairing: &mut Pairing) {
        if self.inlet.is_none() {
            if self.owe(&meta, recipe).is_some() {
                self.tell(meta.id, FaultReason::CameraFault, reason);
            }
            return;
        }
        let Paired { of, passed, expired } = pairing.frame(meta.captured_at);
        self.expire(expired, None);
        for awaited in passed.into_iter().chain(of) {
            self.fail(&awaited, FaultReason::CameraFault, reason.clone());
        }
    }

    /// Triggers for which no frame came.
    fn expire(&self, expired: Vec<Awaited>, why: Option<&str>) {
        for awaited in expired {
            let wait = awaited.until.millis_since(awaited.from);
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            self.fail(&awaited, FaultReason::CameraFault, format!("no frame within {wait:.0} ms{why}"));
        }
    }

    /// An inspection is owed from now on, until its deadline; nothing where none is made.
    fn owe(&self, meta: &FrameMeta, recipe: usize) -> Option<Option<Timestamp>> {
        let due = self.recipes.get(recipe).due(meta);
        let free = self.mode == TriggerMode::Free;
        let admission = self.gate.admit(|| Owed { meta: meta.clone(), recipe, free, due });
        (admission == Ok(Admission::Inspected)).then_some(due)
    }

    /// Hands a frame on; the oldest that waits leaves if there is no room, and is told of.
    fn push(&mut self, captured: Captured) {
        if let Some(Captured { frame, .. }) = self.frames.push(captured) {
            let text = "the frame was replaced by a newer one before it could be inspected".to_owned();
            self.tell(frame.meta.id, FaultReason::Overrun, text);
        }
    }

    fn fail(&self, awaited: &Awaited, reason: FaultReason, text: String) {
        self.tell(awaited.id, reason, text);
    }

    fn tell(&self, id: FrameId, reason: FaultReason, text: String) {
        let _ = self.notices.send(Notice::Failed { camera: self.camera.clone(), id, reason, text });
    }
}

/// Turns frames into model input. What is past its deadline has left already: no time is spent on it.
pub fn prepare_frames(
    mut frames: Consumer<Captured>,
    work: &Sender<Work>,
    notices: &Sender<Notice>,
    clock: &dyn Clock,
    health: &Health,
) {
    let mut preparer = Preparer::default();
    loop {
        health.beat(1);
        let Captured { frame, job, due } = match frames.take(IDLE) {
            Taken::Item(captured) => captured,
            Taken::Nothing => continue,
            Taken::Closed => return,
        };
        let started = clock.now();
        let meta = frame.meta.clone();
        let fail = |reason: FaultReason, text: String| {
            let (camera, id) = (meta.camera.clone(), meta.id);
            notices.send(Notice::Failed { camera, id, reason, text }).is_ok()
        };
        if due.is_some_and(|due| started >= due) {
            if !fail(FaultReason::Overrun, LATE.into()) {
                return;
            }
            continue;
        }
        let prepared = match preparer.prepare_for(&job.recipe, &frame, &job.spec) {
            Ok(prepared) => prepared,
            Err(error) => {
                if !fail(FaultReason::CameraFault, error.to_string()) {
                    return;
                }
                continue;
            }
        };
        let latency = Latency {
            queue: started.millis_since(meta.captured_at),
            prepare: clock.now().millis_since(started),
            ..Latency::default()
        };
        let pixels = Some((frame.format, frame.pixels));
        if work.send(Work { item: Item { meta, prepared, pixels, latency, due }, job }).is_err() {
            return;
        }
    }
}

/// What is said of a frame whose deadline passed.
const LATE: &str = "the deadline passed before the frame could be judged";
/// What is said of a frame whose detector went for another one.
const GONE: &str = "the bundle that the frame was taken under went before it could be judged";

/// What judges, and what becomes of it.
pub struct Judges {
    /// The detectors, by their numbers.
    pub detectors: Vec<Box<dyn Detector>>,
    /// Golden parts that they must answer in between.
    pub challenge: Option<Challenge>,
    /// Those that come and go.
    pub exchanges: Receiver<Exchange>,
}

/// Judges. The only stage that touches a detector: burn's streams belong to threads. Frames of several cameras that wait for
/// the same networks go through them together where that is faster and breaks no deadline.
pub fn inspect(
    work: &Receiver<Work>,
    notices: &Sender<Notice>,
    Judges { detectors, challenge, exchanges }: Judges,
    recipes: &HashMap<CameraId, Arc<Recipes>>,
    clock: &dyn Clock,
    breaks: &Breaks,
) {
    let health = &*breaks.health;
    let mut monitors = Monitors::new();
    let mut detectors = Detectors::new(detectors, challenge);
    for (camera, recipes) in recipes {
        let detector = recipes.get(recipes.current()).detector;
        health.camera(camera).graph_recorded(detectors.all[detector].graph_recorded());
    }
    let mut held: VecDeque<Work> = VecDeque::new();
    loop {
        health.beat(2);
        exchange::apply(&exchanges, &mut detectors, breaks);
        if let Some(challenge) = &mut detectors.challenge {
            challenge.step(!(held.is_empty() && work.is_empty()), &mut detectors.all, clock, health);
        }
        if held.is_empty() {
            match work.recv_timeout(IDLE) {
                Ok(first) => held.push_back(first),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        let now = clock.now();
        let is_gone = detectors.is_gone(held[0].job.detector);
        let detector = &mut detectors.all[held[0].job.detector];
        let most = detector.batches().last().map_or(1, |(size, _)| *size);
        held.extend(work.try_iter().take(most.saturating_sub(held.len())));
        if is_gone || held[0].item.due.is_some_and(|due| now >= due) {
            let Some(Work { item: Item { meta, .. }, .. }) = held.pop_front() else { continue };
            let (camera, id, text) = (meta.camera, meta.id, if is_gone { GONE } else { LATE }.into());
            if notices.send(Notice::Failed { camera, id, reason: FaultReason::Overrun, text }).is_err() {
                return;
            }
            continue;
        }
        let batch: Vec<Work> = held.drain(..together(&held, detector.batches(), now)).collect();
        let (items, jobs): (Vec<Item>, Vec<Arc<Job>>) = batch.into_iter().map(|work| (work.item, work.job)).unzip();
        let inspections = judge(items, &jobs, jobs[0].plan(), detector.as_mut(), clock);
        let recorded = detector.graph_recorded();
        for (mut inspection, job) in inspections.into_iter().zip(jobs) {
            // A frame may have been the first of its kind.
            health.camera(&inspection.frame.camera).graph_recorded(recorded);
            let broke = breaks.look(&inspection);
            inspection.drift = watch(&inspection, &job, &mut monitors, health);
            if notices.send(Notice::Judged(Box::new(inspection))).is_err() {
                return;
            }
            if let Some(text) = broke {
                breaks.give_up(&text);
            }
        }
    }
}

/// How many of the first frames go through the networks together: those that are judged alike, as many as are over before the
/// earliest of their deadlines, of the numbers that are faster together.
fn together(held: &VecDeque<Work>, sizes: &[(usize, f64)], now: Timestamp) -> usize {
    if held.len() == 1 || sizes.len() == 1 {
        return 1;
    }
    let alike = held.iter().take_while(|work| work.job.goes_with(&held[0].job)).count();
    let in_time = |size: usize, millis: f64| {
        let mut dues = held.iter().take(size).filter_map(|work| work.item.due);
        dues.all(|due| due.millis_since(now) > millis)
    };
    let fitting = sizes.iter().filter(|&&(size, millis)| size <= alike && in_time(size, millis));
    fitting.map(|(size, _)| *size).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_of_the_recipe_that_the_camera_was_set_for() {
        let turn = |before, recipe, since| Turn { before, recipe, since: Timestamp(since) };
        let mut light = Light::new(turn(0, 0, 0));
        let first = turn(0, 1, 100);
        let of = |light: &Light, at: u64, latest: Turn| light.recipe(Timestamp(at), latest);
        assert_eq!(of(&light, 50, light.turn), Some(0));
        // Changed while the camera was waited for: what it gives now was taken under the controls of the one before.
        assert_eq!((of(&light, 99, first), of(&light, 100, first)), (Some(0), None));
        light.change(first, Timestamp(130));
        let seen: Vec<Option<usize>> = [99, 100, 129, 130].iter().map(|at| of(&light, *at, first)).collect();
        assert_eq!(seen, [Some(0), None, None, Some(1)]);
        // And again, soon after: what was in between stays so.
        let second = turn(1, 0, 140);
        light.change(second, Timestamp(0));
        let seen: Vec<Option<usize>> = [120, 135, 140].iter().map(|at| of(&light, *at, second)).collect();
        assert_eq!(seen, [None, Some(1), Some(0)]);
    }
}
