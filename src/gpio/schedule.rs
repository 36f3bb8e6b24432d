//! What outputs do and when: a plain machine over readings of a clock and [`Pins`], without threads or hardware.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::output::{GpioHealth, OutputHealth};
use crate::config::gpio::GpioOutput;
use crate::inspection::frame::CameraId;
use crate::inspection::line::Actuation;
use crate::inspection::time::Timestamp;

/// Longest time from the verdict to a PASS, milliseconds, whatever its window: after a worker that hung, or a queue of parts
/// that come faster than pulses can be told apart, a pulse would be taken for that of a later part.
const PROMPT_MS: u64 = 100;
/// Pulses of one line that wait for the one before.
const WAITING: usize = 64;
/// Rejects of one ejector that are on their way: 5 a second over a minute.
const ON_THE_WAY: usize = 300;
/// A reject is late from this time on, milliseconds: longer than the system keeps a thread waiting, shorter than a part.
const LATE_MS: u64 = 5;
/// Wait before a line that could not be driven is tried again, milliseconds.
const RETRY_MS: u64 = 250;
/// How often a line that nobody needs is driven all the same, milliseconds: one that is gone is found before a part needs it.
const PROBE_MS: u64 = 1_000;
/// Shortest time for which READY stays away when the fate of a part is not known, milliseconds.
const UNKNOWN_MS: u64 = 1_000;

/// Lines that can be driven, by the number of their output.
pub(super) trait Pins {
    /// The time. A line may take its own: it is asked for before each.
    fn now(&self) -> Timestamp;
    /// Drives a line. One that is not open is opened, inactive, first; one that fails is closed.
    fn set(&mut self, output: usize, active: bool) -> Result<(), String>;
}

/// What is to be done about one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    /// Whose frame.
    pub camera: CameraId,
    /// What the line does with it.
    pub actuation: Actuation,
    /// When it was triggered, or captured where nothing triggered.
    pub at: Timestamp,
    /// When the verdict was there.
    pub sent: Timestamp,
}

/// All outputs of a station.
pub(super) struct Schedule {
    outputs: Vec<Output>,
    health: Arc<GpioHealth>,
    /// READY stays away until then: a part is on the line whose reject nobody will drive.
    unready_until: Timestamp,
}

struct Output {
    cameras: Option<Vec<String>>,
    wire: Wire,
    task: Task,
}

/// A line and its level.
struct Wire {
    output: usize,
    name: String,
    active: bool,
    /// When the level changed last.
    since: Option<Timestamp>,
    fault: Option<String>,
    /// When it is tried, or looked at, again.
    again: Timestamp,
}

enum Task {
    /// A pulse for each order; `accepts` says on which.
    Pulse {
        accepts: bool,
        pulse: u64,
        gap: u64,
        window: Option<u64>,
        waiting: VecDeque<Timestamp>,
        ends: Timestamp,
        told: bool,
    },
    /// Active while any of these cameras holds the line.
    Hold { by: BTreeSet<CameraId> },
    /// Changes at `next`; none while the station is not ready.
    Beat { period: u64, next: Option<Timestamp> },
    /// Pulses at their own times, the earliest first.
    Eject { pulse: u64, delay: u64, due: VecDeque<Timestamp>, ends: Timestamp, told: bool },
}

impl Wire {
    /// Drives the line, unless it is known to fail. Whether it was.
    fn drive(&mut self, active: bool, now: Timestamp, pins: &mut dyn Pins, health: &OutputHealth) -> bool {
        if self.fault.is_some() {
            return false;
        }
        match pins.set(self.output, active) {
            Ok(()) => {
                if active != self.active {
                    self.since = Some(now);
                }
                self.active = active;
                self.again = now.plus_millis(PROBE_MS);
                true
            }
            Err(reason) => {
                log::error!("{}: {reason}; the output fails and is tried again until it is back", self.name);
                self.failed(reason, now, health);
                false
            }
        }
    }

    fn failed(&mut self, reason: String, now: Timestamp, health: &OutputHealth) {
        health.failing.store(true, Relaxed);
        // Whatever it shows: nobody drives it any more.
        self.active = false;
        self.fault = Some(reason);
        self.again = now.plus_millis(RETRY_MS);
    }

    /// Tries a line that fails, and looks after one that nobody needs. A line comes back inactive.
    fn tend(&mut self, now: Timestamp, pins: &mut dyn Pins, health: &OutputHealth) {
        if now < self.again {
            return;
        }
        let Some(before) = &self.fault else {
            self.drive(self.active, now, pins, health);
            return;
        };
        match pins.set(self.output, false) {
            Ok(()) => {
                log::info!("{}: is driven again", self.name);
                health.failing.store(false, Relaxed);
                self.fault = None;
                self.since = Some(now);
                self.again = now.plus_millis(PROBE_MS);
            }
            Err(reason) => {
                // Once for each reason: a chip may be away for weeks.
                if *before != reason {
                    log::error!("{}: {reason}", self.name);
                }
                self.failed(reason, now, health);
            }
        }
    }
}

impl Output {
    fn new(output: usize, settings: &GpioOutput, health: &OutputHealth) -> Self {
        let millis = |ms: &u32| u64::from(*ms);
        let task = match settings {
            GpioOutput::Pass { pulse_ms, gap_ms, window_ms, .. } => Task::Pulse {
                accepts: true,
                pulse: millis(pulse_ms),
                gap: millis(gap_ms),
                window: window_ms.as_ref().map(millis),
                waiting: VecDeque::with_capacity(WAITING),
                ends: Timestamp(0),
                told: false,
            },
            GpioOutput::Fail { pulse_ms, gap_ms, .. } => Task::Pulse {
                accepts: false,
                pulse: millis(pulse_ms),
                gap: millis(gap_ms),
                window: None,
                waiting: VecDeque::with_capacity(WAITING),
                ends: Timestamp(0),
                told: false,
            },
            GpioOutput::Hold { .. } => Task::Hold { by: BTreeSet::new() },
            GpioOutput::Ready { period_ms, .. } => Task::Beat { period: millis(period_ms), next: None },
            GpioOutput::Eject { pulse_ms, delay_ms, .. } => Task::Eject {
                pulse: millis(pulse_ms),
                delay: millis(delay_ms),
                due: VecDeque::with_capacity(ON_THE_WAY),
                ends: Timestamp(0),
                told: false,
            },
        };
        let name = format!("gpio {}, {}", health.signal, health.pin);
        let wire = Wire { output, name, active: false, since: None, fault: None, again: Timestamp(0) };
        Self { cameras: settings.cameras().map(<[String]>::to_vec), wire, task }
    }

    fn of(&self, camera: &CameraId) -> bool {
        self.cameras.as_ref().is_none_or(|cameras| cameras.iter().any(|name| **name == *camera.0))
    }

    /// Takes an order. A reject that there is no room for: until when its part is on the line.
    fn take(&mut self, order: &Order, health: &OutputHealth) -> Option<Timestamp> {
        match (&mut self.task, order.actuation) {
            (Task::Pulse { accepts: true, window, waiting, .. }, Actuation::Accept) => {
                let prompt = order.sent.plus_millis(PROMPT_MS);
                let latest = window.map_or(prompt, |window| order.at.plus_millis(window).min(prompt));
                if waiting.len() < WAITING { waiting.push_back(latest) } else { count(&health.withheld) }
            }
            (Task::Pulse { accepts: false, waiting, .. }, Actuation::Reject) => {
                // Nothing is energised for a good part by this: it is told however late.
                let latest = Timestamp(u64::MAX);
                if waiting.len() < WAITING { waiting.push_back(latest) } else { count(&health.failed) }
            }
            (Task::Hold { by }, Actuation::Hold) => {
                by.insert(order.camera.clone());
            }
            (Task::Hold { by }, Actuation::Accept | Actuation::Reject) => {
                by.remove(&order.camera);
            }
            (Task::Eject { pulse, delay, due, .. }, Actuation::Reject) => {
                let at = order.at.plus_millis(*delay);
                if due.len() == ON_THE_WAY {
                    count(&health.failed);
                    log::error!(
                        "{}: {ON_THE_WAY} rejects are on their way and there is no room for one more; delay_ms is too \
                         long for this rate. READY stays away until its part is past the ejector",
                        self.wire.name
                    );
                    return Some(at.plus_millis(*pulse));
                }
                // Cameras that share an ejector may be heard in any order.
                due.insert(due.partition_point(|other| *other <= at), at);
            }
            _ => {}
        }
        None
    }

    /// Does what is due. `ready` is that of READY.
    fn step(&mut self, ready: bool, pins: &mut dyn Pins, health: &OutputHealth) {
        let now = pins.now();
        let wire = &mut self.wire;
        wire.tend(now, pins, health);
        match &mut self.task {
            Task::Pulse { pulse, gap, waiting, ends, told, .. } => {
                if wire.active && now >= end(wire, *gap, waiting, *ends) {
                    wire.drive(false, now, pins, health);
                }
                while let Some(latest) = waiting.front() {
                    if now > *latest {
                        waiting.pop_front();
                        count(&health.withheld);
                        if !std::mem::replace(told, true) {
                            log::warn!(
                                "{}: a part passed too late for its window and gets no pulse; the next that are late are \
                                 only counted",
                                wire.name
                            );
                        }
                        continue;
                    }
                    if wire.active || wire.since.is_some_and(|since| now < since.plus_millis(*gap)) {
                        break;
                    }
                    waiting.pop_front();
                    if wire.drive(true, now, pins, health) {
                        count(&health.pulses);
                        (*ends, *told) = (now.plus_millis(*pulse), false);
                    } else {
                        // Later it would be the pulse of another part.
                        count(&health.failed);
                    }
                }
            }
            Task::Hold { by } => {
                if wire.active == by.is_empty() {
                    wire.drive(!by.is_empty(), now, pins, health);
                }
            }
            Task::Beat { period, next } => {
                if !ready {
                    *next = None;
                    if wire.active {
                        wire.drive(false, now, pins, health);
                    }
                } else if next.is_none_or(|next| now >= next) {
                    wire.drive(!wire.active, now, pins, health);
                    *next = Some(now.plus_millis(*period));
                }
            }
            Task::Eject { pulse, due, ends, told, .. } => {
                while let Some(at) = due.front().copied().filter(|at| *at <= now) {
                    due.pop_front();
                    if now > at.plus_millis(LATE_MS) {
                        count(&health.late);
                        if !std::mem::replace(told, true) {
                            log::warn!(
                                "{}: a reject came {:.0} ms after its part was at the ejector; the next that are late are \
                                 only counted",
                                wire.name,
                                now.millis_since(at)
                            );
                        }
                    } else {
                        *told = false;
                    }
                    // Two parts close together are one long pulse: a gap would help neither.
                    if wire.active || wire.drive(true, now, pins, health) {
                        count(&health.pulses);
                        *ends = now.plus_millis(*pulse);
                    } else {
                        count(&health.failed);
                    }
                }
                if wire.active && now >= *ends {
                    wire.drive(false, now, pins, health);
                }
            }
        }
    }

    /// When it must step again, if nothing is ordered before.
    fn next(&self) -> Timestamp {
        let wire = &self.wire;
        let due = match &self.task {
            Task::Pulse { gap, waiting, ends, .. } if wire.active => Some(end(wire, *gap, waiting, *ends)),
            Task::Pulse { gap, waiting, .. } => {
                waiting.front().map(|_| wire.since.map_or(Timestamp(0), |since| since.plus_millis(*gap)))
            }
            Task::Hold { .. } => None,
            Task::Beat { next, .. } => *next,
            Task::Eject { due, ends, .. } => {
                let next = due.front().copied();
                if wire.active { Some(next.map_or(*ends, |next| next.min(*ends))) } else { next }
            }
        };
        due.map_or(wire.again, |due| due.min(wire.again))
    }

    /// Whether no pulse is given and none will be.
    fn idle(&self) -> bool {
        match &self.task {
            Task::Pulse { waiting, .. } => waiting.is_empty() && !self.wire.active,
            Task::Eject { due, .. } => due.is_empty() && !self.wire.active,
            Task::Hold { .. } | Task::Beat { .. } => true,
        }
    }
}

/// When a pulse ends: at its time, or as early as the gap allows if another waits for it.
fn end(wire: &Wire, gap: u64, waiting: &VecDeque<Timestamp>, ends: Timestamp) -> Timestamp {
    let shortest = wire.since.map_or(ends, |since| since.plus_millis(gap));
    if waiting.is_empty() { ends } else { ends.min(shortest) }
}

fn count(counter: &std::sync::atomic::AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Schedule {
    pub fn new(outputs: &[GpioOutput], health: Arc<GpioHealth>) -> Self {
        let outputs = outputs.iter().zip(&health.outputs).enumerate();
        let outputs = outputs.map(|(number, (settings, health))| Output::new(number, settings, health)).collect();
        Self { outputs, health, unready_until: Timestamp(0) }
    }

    /// Takes what is to be done about a part.
    pub fn take(&mut self, order: &Order) {
        for (output, health) in self.outputs.iter_mut().zip(&self.health.outputs) {
            if output.of(&order.camera)
                && let Some(until) = output.take(order, health)
            {
                self.unready_until = self.unready_until.max(until);
            }
        }
    }

    /// Orders were lost: READY stays away until the parts are past every ejector.
    pub fn lost(&mut self, now: Timestamp) {
        let longest = self.outputs.iter().map(|output| match &output.task {
            Task::Eject { pulse, delay, .. } => pulse + delay,
            _ => 0,
        });
        let until = now.plus_millis(longest.max().unwrap_or(0).max(UNKNOWN_MS));
        self.unready_until = self.unready_until.max(until);
    }

    /// Does what is due. `ready` is what the station says; READY follows it while every output can be driven.
    pub fn step(&mut self, ready: bool, pins: &mut dyn Pins) {
        let mut all = ready && pins.now() >= self.unready_until;
        // READY last: it knows of a line that fails now.
        for beats in [false, true] {
            for (output, health) in self.outputs.iter_mut().zip(&self.health.outputs) {
                if beats == matches!(output.task, Task::Beat { .. }) {
                    output.step(all, pins, health);
                    all &= output.wire.fault.is_none();
                }
            }
        }
    }

    /// When `step` must be called again, if nothing is ordered before.
    pub fn next(&self) -> Timestamp {
        self.outputs.iter().map(Output::next).min().unwrap_or(Timestamp(u64::MAX))
    }

    /// Whether no pulse is given and none will be.
    pub fn idle(&self) -> bool {
        self.outputs.iter().all(Output::idle)
    }
}

#[cfg(test)]
mod tests;
