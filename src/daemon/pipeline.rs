//! The pipeline on one screen.
//!
//! ```text
//!  camera 0 ─┐ capture (a thread each)
//!  camera n ─┴─► FRAMES mailbox ─► prepare ─► WORK ─► inspect ─┐
//!      ▲ └ owed, failed ─────────────── failed ────── judged ──┴► NOTICES ─► publish ─► sinks, then the record ─► workers
//!  triggers ◄─ trigger lines, service (HTTP, TCP)      supervisor: the calling thread    counters ◄─ service
//!  recipes ◄─ upkeep
//! ```
//!
//! What is owed is told to publish before it goes on its way, so that a deadline or a hanging stage is answered for without
//! the stages between. A stop closes the upstream end: capture returns and drops its producer, every stage drains, sees the end
//! and returns. Nothing that a camera gave, and no trigger, is lost. No stage restarts another: an unexpected end ends
//! everything. Only the service may end without the others: nobody waits for it.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use tokio::sync::oneshot;

use super::control::{Control, Controlled};
use super::gate::{Breaks, Gate};
use super::health::{Counts, Health};
use super::job::{Job, Recipes};
use super::mailbox::{Producer, mailbox};
use super::publish::{Envelopes, Publish, RECORD};
use super::stages::{Capture, Judges, inspect, prepare_frames};
use super::state::StationState;
use super::trigger::{Inlet, edges};
use super::upkeep::{self, Aside, Running};
use crate::inspection::detect::Detector;
use crate::inspection::frame::{CameraId, FrameSource};
use crate::inspection::station_state::{Fault, FaultKind};
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::trigger::{EdgeSource, TriggerMode};
use crate::inspection::verdict::{Record, VerdictSink};
use crate::service::metrics::Family;
use crate::service::{Act, Desk, Read, Service};

/// Frames that wait for prepare, of a camera that runs free: one being written by the camera's rhythm, one to take.
const FRAMES: usize = 2;
/// The same where every frame is a part that somebody waits for: a short burst must not cost a part.
const PARTS: usize = 8;
/// Notices on their way to publish, which never waits for anything: a second of a hundred parts a second, three notices each.
const NOTICES: usize = 512;
/// How long the READY output may stay on without the supervisor's word that all stages are well, nanoseconds.
const LEASE: u64 = 10_000_000_000;
/// How often the supervisor looks at heartbeats and the stop flag.
const TICK: Duration = Duration::from_millis(100);
/// How long a stage that ended may wait for the one before it to say that it ended too, milliseconds.
const GRACE_MS: u64 = 500;

/// Makes the detectors that jobs name by index, on the thread that will use them.
pub type MakeDetectors = Box<dyn FnOnce() -> Result<Vec<Box<dyn Detector>>, String> + Send>;

/// A worker behind a sink, by name.
pub type Worker = (&'static str, Box<dyn FnOnce() + Send>);

/// Tells what is broken of something that the stages do not know.
pub type Watch = Box<dyn FnMut() -> Option<Fault> + Send>;

/// A camera, and what becomes of its frames.
pub struct Camera {
    /// Its name.
    pub id: CameraId,
    /// Its frames.
    pub source: Box<dyn FrameSource>,
    /// Frames come at their own rate: only then may one be lost.
    pub paced: bool,
    /// What makes frames be inspected.
    pub mode: TriggerMode,
    /// A line whose edges are triggers, for a camera that is asked.
    pub line: Option<Box<dyn EdgeSource>>,
    /// The recipes that it knows; the first one judges.
    pub recipes: Vec<Job>,
}

impl Camera {
    /// A camera that runs free, with one recipe.
    pub fn free(id: CameraId, source: Box<dyn FrameSource>, paced: bool, job: Job) -> Self {
        Self { id, source, paced, mode: TriggerMode::Free, line: None, recipes: vec![job] }
    }
}

/// Everything that runs.
pub struct Parts {
    /// The cameras.
    pub cameras: Vec<Camera>,
    /// The detectors that the recipes name by index. Made on the inspect thread, because burn's streams belong to threads.
    pub detectors: MakeDetectors,
    /// Makes the envelopes of inspections.
    pub envelopes: Envelopes,
    /// Where inspections go, in order.
    pub sinks: Vec<Box<dyn VerdictSink>>,
    /// Where every inspection is kept; it hears last.
    pub record: Box<dyn Record>,
    /// Workers behind the sinks and the record; they end when their sink is dropped.
    pub workers: Vec<Worker>,
    /// Tells about the counters, and takes commands, over the network.
    pub service: Option<Service>,
    /// The station for those who ask outside of the service.
    pub desk: Arc<Desk>,
    /// The state of the station.
    pub state: Arc<StationState>,
    /// Asked ten times a second for faults of outputs and of the record.
    pub watches: Vec<Watch>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Set to stop.
    pub stop: Arc<AtomicBool>,
    /// Longest time from a stop to the end.
    pub shutdown: Duration,
    /// Called once the detectors are ready, before the first frame is taken.
    pub ready: Box<dyn FnOnce() + Send>,
    /// Called at every tick on which all stages have progressed since the last.
    pub alive: Box<dyn Fn() + Send>,
    /// Until when the station may call itself ready, on the clock, nanoseconds: for the READY output.
    pub lease: Arc<AtomicU64>,
    /// What goes on beside the stages.
    pub aside: Aside,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// All cameras ended, or a stop was asked for; everything is drained.
    Drained(Counts),
    /// A stage ended on its own.
    Failed(String),
}

/// What a thread says when it ends.
struct Ended {
    stage: &'static str,
    panic: Option<String>,
}

/// Runs the pipeline to its end on the calling thread.
pub fn run(parts: Parts) -> Ending {
    let Parts { cameras, detectors, envelopes, sinks, record, workers, service, state, .. } = parts;
    let Parts { mut watches, desk, clock, stop, shutdown, ready, alive, lease, aside, .. } = parts;
    let Aside { upkeep, reload, conditions, challenge } = aside;
    let mut opened = Vec::with_capacity(cameras.len());
    let mut recipes: HashMap<CameraId, Arc<Recipes>> = HashMap::new();
    for Camera { id, source, paced, mode, line, recipes: jobs } in cameras {
        recipes.insert(id.clone(), Arc::new(Recipes::new(jobs)));
        opened.push((id, source, paced, mode, line));
    }
    let must_speak = |paced: bool, mode| match mode {
        TriggerMode::Free => true,
        TriggerMode::Line => false,
        TriggerMode::Asked(_) => paced,
    };
    state.runs_free(opened.iter().any(|(_, _, _, mode, _)| *mode == TriggerMode::Free));
    let known = opened.iter().map(|(id, _, paced, mode, _)| (id, &recipes[id], must_speak(*paced, *mode)));
    let health = Arc::new(Health::new(known, sinks.iter().map(|sink| sink.name()).chain([RECORD]), conditions));
    let (ends, ended) = bounded::<Ended>(2 * opened.len() + workers.len() + 5);
    let places = opened.iter().map(|(_, _, _, mode, _)| if mode.is_triggered() { PARTS } else { FRAMES });
    let (producers, consumer) = mailbox(places);
    let names = opened.iter().map(|(id, ..)| id.0.to_string());
    let depths: Vec<_> = names.zip(producers.iter().map(Producer::depth)).collect();
    // Prepare works on the next frames while the device works on these; one of each camera may go through it together.
    let (work_in, work_out) = bounded(opened.len().max(1));
    let (notices_in, notices_out) = bounded(NOTICES);
    let (ready_in, ready_out) = bounded::<Result<(), String>>(1);
    let mut running: HashMap<&'static str, usize> = HashMap::new();

    let mut gates: Vec<(CameraId, Arc<Gate>)> = Vec::new();
    let mut controlled = Vec::new();
    let mut captures = Vec::new();
    let mut lines = Vec::new();
    for ((id, source, paced, mode, line), frames) in opened.into_iter().zip(producers) {
        let judges = &recipes[&id];
        let free = mode == TriggerMode::Free;
        let gate = Arc::new(Gate::new(id.clone(), free, Arc::clone(&state), Arc::clone(&health)));
        gates.push((id.clone(), Arc::clone(&gate)));
        let inlet = match mode {
            TriggerMode::Asked(asked) => {
                let (judges, gate) = (Arc::clone(judges), Arc::clone(&gate));
                Some(Arc::new(Inlet::new(id.clone(), asked, judges, gate, Arc::clone(&health))))
            }
            TriggerMode::Free | TriggerMode::Line => None,
        };
        lines.extend(line.zip(inlet.clone()));
        let (camera, recipes) = (id.clone(), Arc::clone(judges));
        controlled.push(Controlled { camera, recipes, gate: Arc::clone(&gate), inlet: inlet.clone() });
        let (recipes, notices, clock) = (Arc::clone(judges), notices_in.clone(), Arc::clone(&clock));
        captures.push(Capture { camera: id, source, paced, mode, inlet, gate, recipes, frames, notices, clock });
    }

    let running_recipes = controlled.iter().map(|known| (known.camera.clone(), Arc::clone(&known.recipes)));
    // Whoever asks waits for the answer: one at a time.
    let (exchanges, asked_for) = bounded(1);
    let beside = Running { cameras: running_recipes.collect(), exchanges, clock: Arc::clone(&clock) };
    // Dropped, this stops the service.
    let (stop_service, stopped) = oneshot::channel();
    let control = Control::new(controlled, Arc::clone(&state), reload, Arc::clone(&clock));
    let act: Act = Arc::new(move |order| control.act(order));
    let read: Read = {
        let (health, clock, stop) = (Arc::clone(&health), Arc::clone(&clock), Arc::clone(&stop));
        let (started, state) = (clock.wall_nanos(), Arc::clone(&state));
        let read = move || {
            let mut reading = health.reading(started, clock.now());
            state.tell(&mut reading);
            reading.families.push(Family {
                name: "frames_waiting",
                help: "Frames in the mailbox of a camera, before they are prepared.",
                counter: false,
                rows: depths.iter().map(|(camera, depth)| (vec![("camera", camera.clone())], depth() as u64)).collect(),
            });
            reading.obstacles.extend(stop.load(Ordering::Relaxed).then(|| "the station stops".to_owned()));
            reading
        };
        Arc::new(read)
    };
    desk.open(Arc::clone(&read), Arc::clone(&act));
    if let Some(service) = service {
        spawn(SERVICE, &ends, &mut running, move || {
            if let Err(error) = service.run(read, act, stopped) {
                log::error!("{SERVICE}: {error}");
            }
        });
    }
    for (name, worker) in workers {
        spawn(name, &ends, &mut running, worker);
    }
    {
        let (clock, health, state) = (Arc::clone(&clock), Arc::clone(&health), Arc::clone(&state));
        let publish = Publish::new(envelopes, sinks, record, &recipes, clock, health, state);
        spawn("publish", &ends, &mut running, move || publish.run(&notices_out));
    }
    {
        let (notices, clock) = (notices_in.clone(), Arc::clone(&clock));
        let gates = gates.iter().map(|(_, gate)| Arc::clone(gate)).collect();
        let breaks = Breaks { station: Arc::clone(&state), gates, health: Arc::clone(&health) };
        spawn("inspect", &ends, &mut running, move || {
            let made = detectors();
            let said = made.as_ref().map(|_| ()).map_err(Clone::clone);
            // The supervisor waits for this answer; if it is gone, there is nothing to inspect for.
            if ready_in.send(said).is_err() {
                return;
            }
            if let Ok(detectors) = made {
                let judges = Judges { detectors, challenge, exchanges: asked_for };
                inspect(&work_out, &notices, judges, &recipes, clock.as_ref(), &breaks);
            }
        });
    }
    match ready_out.recv() {
        Ok(Ok(())) => {
            health.loaded.store(true, Ordering::Relaxed);
            state.loaded();
            ready();
        }
        Ok(Err(reason)) => return Ending::Failed(reason),
        Err(_) => {
            let panic = ended.recv_timeout(TICK).ok().and_then(|ended| ended.panic);
            return Ending::Failed(format!("inspect ended before it was ready: {}", panic.unwrap_or_default()));
        }
    }
    {
        let (health, clock) = (Arc::clone(&health), Arc::clone(&clock));
        spawn("prepare", &ends, &mut running, move || {
            prepare_frames(consumer, &work_in, &notices_in, clock.as_ref(), &health);
        });
    }
    for capture in captures {
        let (health, stop) = (Arc::clone(&health), Arc::clone(&stop));
        spawn("capture", &ends, &mut running, move || capture.run(&stop, &health));
    }
    for (line, inlet) in lines {
        let stop = Arc::clone(&stop);
        spawn(TRIGGER, &ends, &mut running, move || edges(line, &inlet, &stop));
    }

    if let Some(upkeep) = upkeep {
        let stop = Arc::clone(&stop);
        spawn(UPKEEP, &ends, &mut running, move || upkeep::run(upkeep, &beside, &stop));
    }

    let mut beats = [0; 4];
    let mut deadline: Option<Timestamp> = None;
    // A stage lets go of its channels before it tells that it ended, or panicked: its neighbour may be heard before.
    let mut early: Vec<(&'static str, Timestamp)> = Vec::new();
    while running.keys().any(|name| !ASIDE.contains(name)) {
        match ended.recv_timeout(TICK) {
            Ok(Ended { stage: SERVICE, panic }) => {
                running.remove(SERVICE);
                log::error!("{}; inspection goes on without it", service_ended(panic));
            }
            Ok(Ended { stage, panic: Some(panic) }) => return Ending::Failed(format!("{stage} panicked: {panic}")),
            Ok(Ended { stage, panic: None }) => {
                match running.get_mut(stage) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => {
                        running.remove(stage);
                    }
                }
                if !matches!(stage, TRIGGER | UPKEEP) || !stop.load(Ordering::Relaxed) {
                    early.push((stage, clock.now()));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        early.retain(|(stage, _)| premature(stage, &running).is_some());
        if let Some((stage, _)) = early.iter().find(|(_, since)| clock.now() > since.plus_millis(GRACE_MS)) {
            return Ending::Failed(premature(stage, &running).unwrap_or_default());
        }
        let now: [u64; 4] = std::array::from_fn(|stage| health.beats[stage].load(Ordering::Relaxed));
        // A stage that loads a detector works by design, for minutes where kernels are compiled.
        let loads = |stage: usize| STAGES[stage] == "inspect" && !health.loaded.load(Ordering::Relaxed);
        let progressed =
            (0..4).all(|stage| now[stage] != beats[stage] || loads(stage) || !running.contains_key(STAGES[stage]));
        for Fault { kind, of, text } in watches.iter_mut().filter_map(|watch| watch()) {
            state.fault(kind, &of, &text);
        }
        // A detector that is known to answer wrongly lets no part pass; the next challenge that passes clears it.
        match health.failed_challenge() {
            Some(text) => drop(state.fault(FaultKind::Detector, CHALLENGE, &text)),
            None => state.clear(FaultKind::Detector, CHALLENGE),
        }
        for (camera, text) in health.silences(clock.now()) {
            if let Some((_, gate)) = gates.iter().find(|(known, _)| known == camera) {
                gate.lost(&text);
            }
        }
        let is_ready = health.is_ready(clock.now()) && state.now().is_ready() && !stop.load(Ordering::Relaxed);
        if progressed {
            alive();
            state.beat();
            beats = now;
            if is_ready {
                lease.store(clock.now().0 + LEASE, Ordering::Relaxed);
            }
        }
        if !is_ready {
            lease.store(0, Ordering::Relaxed);
        }
        if stop.load(Ordering::Relaxed) {
            let limit = *deadline.get_or_insert_with(|| clock.now().plus_millis(shutdown.as_millis() as u64));
            if clock.now() > limit {
                let mut hanging: Vec<&str> = running.keys().copied().filter(|name| !ASIDE.contains(name)).collect();
                hanging.sort_unstable();
                return Ending::Failed(format!("did not stop within {shutdown:?}: {}", hanging.join(", ")));
            }
        }
    }
    lease.store(0, Ordering::Relaxed);
    drop(stop_service);
    // Trigger lines look at it within their bounded wait.
    stop.store(true, Ordering::Relaxed);
    if running.contains_key(SERVICE) {
        let rest = deadline.map_or(shutdown, |limit| Duration::from_secs_f64(limit.millis_since(clock.now()) / 1e3));
        loop {
            match ended.recv_timeout(rest) {
                Ok(Ended { stage: SERVICE, panic: None }) => break,
                Ok(Ended { stage: SERVICE, panic }) => {
                    log::error!("{}", service_ended(panic));
                    break;
                }
                // Trigger lines end now, too.
                Ok(_) => {}
                Err(_) => {
                    log::error!("{SERVICE} did not stop within {shutdown:?}");
                    break;
                }
            }
        }
    }
    let counts = health.counts();
    let judged = counts.pass + counts.fail + counts.overrun + counts.fault;
    if judged != counts.frames_in {
        return Ending::Failed(format!("{} frames came and {judged} inspections went", counts.frames_in));
    }
    Ending::Drained(counts)
}

/// The stages in the order of the heartbeats.
const STAGES: [&str; 4] = ["capture", "prepare", "inspect", "publish"];

/// Name of the fault of a detector that answers golden parts wrongly.
const CHALLENGE: &str = "challenge";
/// The one thread that may end before the others.
const SERVICE: &str = "service";
/// Threads that read trigger lines. Nobody hears of their end but the supervisor.
const TRIGGER: &str = "trigger";
/// The one that may wait for a disk.
const UPKEEP: &str = "upkeep";
/// For whose end nobody waits.
const ASIDE: [&str; 3] = [SERVICE, TRIGGER, UPKEEP];

fn service_ended(panic: Option<String>) -> String {
    panic.map_or_else(|| format!("{SERVICE} ended"), |panic| format!("{SERVICE} panicked: {panic}"))
}

/// A stage ends after the one before it; anything else is a fault.
fn premature(stage: &str, running: &HashMap<&'static str, usize>) -> Option<String> {
    let position = STAGES.iter().position(|known| *known == stage);
    let before = match position {
        Some(0) => return None,
        Some(position) => STAGES[position - 1],
        None if matches!(stage, TRIGGER | UPKEEP) => "capture",
        None => "publish",
    };
    running.contains_key(before).then(|| format!("{stage} ended while {before} was still running"))
}

fn spawn(
    stage: &'static str,
    ends: &Sender<Ended>,
    running: &mut HashMap<&'static str, usize>,
    body: impl FnOnce() + Send + 'static,
) {
    let ends = ends.clone();
    *running.entry(stage).or_insert(0) += 1;
    let thread = std::thread::Builder::new().name(stage.into()).spawn(move || {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(body));
        let panic = outcome.err().map(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
        });
        // The supervisor is gone only when the process is ending.
        let _ = ends.send(Ended { stage, panic });
    });
    if let Err(error) = thread {
        // Without a thread the stage has ended: the supervisor is told like for any other ending.
        log::error!("{stage}: no thread: {error}");
    }
}
