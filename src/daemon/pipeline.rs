//! The pipeline on one screen.
//!
//! ```text
//!  camera 0 ─┐ capture (a thread each)
//!  camera n ─┴─► FRAMES mailbox ─► prepare ─► WORK ─► inspect ─► INSPECTIONS ─► publish ─► sinks ─► workers
//!                                             supervisor: the calling thread            counters ◄─ service (HTTP)
//! ```
//!
//! A stop closes the upstream end: capture returns and drops its producer, every stage drains, sees the end and returns.
//! Nothing that a camera gave is lost. No stage restarts another: an unexpected end ends everything. Only the service may
//! end without the others: it reads counters, and nobody waits for it.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use tokio::sync::oneshot;

use super::health::{Counts, Health};
use super::mailbox::mailbox;
use super::stages::{Jobs, Record, capture, inspect, prepare_frames, publish};
use crate::inspection::detect::Detector;
use crate::inspection::frame::FrameSource;
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::verdict::VerdictSink;
use crate::service::http::Service;

/// Frames per camera that wait for prepare: one being written by the camera's rhythm, one to take.
const FRAMES: usize = 2;
/// Prepared frames that wait for the device: prepare works on the next while the device works on this one.
const WORK: usize = 1;
/// Inspections that wait for the sinks: they are small and none may be lost.
const INSPECTIONS: usize = 64;
/// How often the supervisor looks at heartbeats and the stop flag.
const TICK: Duration = Duration::from_millis(100);
/// How long a stage that ended may wait for the one before it to say that it ended too, milliseconds.
const GRACE_MS: u64 = 500;

/// Makes the detectors that jobs name by index, on the thread that will use them.
pub type MakeDetectors = Box<dyn FnOnce() -> Result<Vec<Box<dyn Detector>>, String> + Send>;

/// A worker behind a sink, by name.
pub type Worker = (&'static str, Box<dyn FnOnce() + Send>);

/// A camera and whether it may lose frames.
pub struct Camera {
    /// Its frames.
    pub source: Box<dyn FrameSource>,
    /// Frames come at their own rate.
    pub paced: bool,
}

/// Everything that runs.
pub struct Parts {
    /// The cameras.
    pub cameras: Vec<Camera>,
    /// What each camera's frames are judged by.
    pub jobs: Jobs,
    /// The detectors that the jobs name by index. Made on the inspect thread, because burn's streams belong to threads.
    pub detectors: MakeDetectors,
    /// Makes the event of an inspection, once for all sinks.
    pub record: Record,
    /// Where inspections go, in order.
    pub sinks: Vec<Box<dyn VerdictSink>>,
    /// Workers behind the sinks; they end when their sink is dropped.
    pub workers: Vec<Worker>,
    /// Tells about the counters over HTTP.
    pub service: Option<Service>,
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
    let Parts { cameras, jobs, detectors, record, sinks, workers, service, clock, stop, shutdown, ready, alive } =
        parts;
    let recipes = jobs.iter().map(|(camera, job)| (camera, &job.recipe.id));
    let health = Arc::new(Health::new(recipes, sinks.iter().map(|sink| sink.name())));
    let jobs = Arc::new(jobs);
    let (ends, ended) = bounded::<Ended>(cameras.len() + workers.len() + 4);
    let (producers, consumer) = mailbox(cameras.len(), FRAMES);
    let (work_in, work_out) = bounded(WORK);
    let (inspections_in, inspections_out) = bounded(INSPECTIONS);
    let (ready_in, ready_out) = bounded::<Result<(), String>>(1);
    let mut running: HashMap<&'static str, usize> = HashMap::new();

    // Dropped, this stops the service.
    let (stop_service, stopped) = oneshot::channel();
    if let Some(service) = service {
        let (health, clock, stop) = (Arc::clone(&health), Arc::clone(&clock), Arc::clone(&stop));
        let started = clock.wall_nanos();
        let read = move || {
            let mut reading = health.reading(started, clock.now());
            reading.obstacles.extend(stop.load(Ordering::Relaxed).then(|| "the station stops".to_owned()));
            reading
        };
        spawn(SERVICE, &ends, &mut running, move || {
            if let Err(error) = service.run(Arc::new(read), stopped) {
                log::error!("{SERVICE}: {error}");
            }
        });
    }
    for (name, worker) in workers {
        spawn(name, &ends, &mut running, worker);
    }
    {
        let health = Arc::clone(&health);
        spawn("publish", &ends, &mut running, move || publish(&inspections_out, record, sinks, &health));
    }
    {
        let (health, jobs, clock) = (Arc::clone(&health), Arc::clone(&jobs), Arc::clone(&clock));
        spawn("inspect", &ends, &mut running, move || {
            let made = detectors();
            let said = made.as_ref().map(|_| ()).map_err(Clone::clone);
            // The supervisor waits for this answer; if it is gone, there is nothing to inspect for.
            if ready_in.send(said).is_err() {
                return;
            }
            if let Ok(detectors) = made {
                inspect(&work_out, &inspections_in, detectors, &jobs, clock.as_ref(), &health);
            }
        });
    }
    match ready_out.recv() {
        Ok(Ok(())) => {
            health.loaded.store(true, Ordering::Relaxed);
            ready();
        }
        Ok(Err(reason)) => return Ending::Failed(reason),
        Err(_) => {
            let panic = ended.recv_timeout(TICK).ok().and_then(|ended| ended.panic);
            return Ending::Failed(format!("inspect ended before it was ready: {}", panic.unwrap_or_default()));
        }
    }
    {
        let (health, jobs, clock) = (Arc::clone(&health), Arc::clone(&jobs), Arc::clone(&clock));
        spawn("prepare", &ends, &mut running, move || {
            prepare_frames(consumer, &work_in, &jobs, clock.as_ref(), &health);
        });
    }
    for (Camera { source, paced }, producer) in cameras.into_iter().zip(producers) {
        let (health, stop) = (Arc::clone(&health), Arc::clone(&stop));
        spawn("capture", &ends, &mut running, move || capture(source, paced, &producer, &stop, &health));
    }

    let mut beats = [0; 4];
    let mut deadline: Option<Timestamp> = None;
    // A stage lets go of its channels before it tells that it ended, or panicked: its neighbour may be heard before.
    let mut early: Vec<(&'static str, Timestamp)> = Vec::new();
    while running.keys().any(|name| *name != SERVICE) {
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
                early.push((stage, clock.now()));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        early.retain(|(stage, _)| premature(stage, &running).is_some());
        if let Some((stage, _)) = early.iter().find(|(_, since)| clock.now() > since.plus_millis(GRACE_MS)) {
            return Ending::Failed(premature(stage, &running).unwrap_or_default());
        }
        let now: [u64; 4] = std::array::from_fn(|stage| health.beats[stage].load(Ordering::Relaxed));
        let progressed = (0..4).all(|stage| now[stage] != beats[stage] || !running.contains_key(STAGES[stage]));
        if progressed {
            alive();
            beats = now;
        }
        if stop.load(Ordering::Relaxed) {
            let limit = *deadline.get_or_insert_with(|| clock.now().plus_millis(shutdown.as_millis() as u64));
            if clock.now() > limit {
                let mut hanging: Vec<&str> = running.keys().copied().filter(|name| *name != SERVICE).collect();
                hanging.sort_unstable();
                return Ending::Failed(format!("did not stop within {shutdown:?}: {}", hanging.join(", ")));
            }
        }
    }
    drop(stop_service);
    if running.contains_key(SERVICE) {
        let rest = deadline.map_or(shutdown, |limit| Duration::from_secs_f64(limit.millis_since(clock.now()) / 1e3));
        match ended.recv_timeout(rest) {
            Ok(Ended { panic: None, .. }) => {}
            Ok(Ended { panic, .. }) => log::error!("{}", service_ended(panic)),
            Err(_) => log::error!("{SERVICE} did not stop within {shutdown:?}"),
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

/// The one thread that may end before the others.
const SERVICE: &str = "service";

fn service_ended(panic: Option<String>) -> String {
    panic.map_or_else(|| format!("{SERVICE} ended"), |panic| format!("{SERVICE} panicked: {panic}"))
}

/// A stage ends after the one before it; anything else is a fault.
fn premature(stage: &str, running: &HashMap<&'static str, usize>) -> Option<String> {
    let position = STAGES.iter().position(|known| *known == stage);
    let before = match position {
        Some(0) => return None,
        Some(position) => STAGES[position - 1],
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
