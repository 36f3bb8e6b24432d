//! Outputs that tell a machine what to do with a part: a sink that never waits, and the worker that drives the lines.
//!
//! A line is inactive before the first order, after the last, and whenever the worker ends, by a panic too. A process that is
//! killed drives nothing: what its lines show then is the board's matter, and nothing relies on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use gpiocdev::Request;
use gpiocdev::line::Value;

use super::chips::request;
use super::schedule::{Order, Pins, Schedule};
use crate::config::gpio::{GpioOutput, Pin};
use crate::inspection::event::Envelope;
use crate::inspection::line::Actuation;
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::verdict::{Inspection, SinkError, VerdictSink};

/// Orders between the publish stage and the worker: a burst of a second at 100 parts a second, and as much again.
const QUEUE: usize = 256;
/// Longest sleep of the worker: how late READY hears that the station is not ready any more.
const NAP: Duration = Duration::from_millis(20);
/// How long a station that has failed waits for its lines to become inactive, milliseconds.
const PATIENCE: u32 = 300;

/// What the outputs report.
#[derive(Debug, Default)]
pub struct GpioHealth {
    /// In the order of the configuration.
    pub outputs: Vec<OutputHealth>,
    /// Orders that found no room on the way to the worker.
    pub lost: AtomicU64,
    /// Set when the station has failed: the lines become inactive at once, whatever is on its way.
    pub(super) abandoned: AtomicBool,
    /// Whether the worker has let go of the lines.
    pub(super) quiet: AtomicBool,
}

/// What one output reports.
#[derive(Debug, Default)]
pub struct OutputHealth {
    /// The word in the configuration.
    pub signal: &'static str,
    /// Its line.
    pub pin: String,
    /// Pulses given.
    pub pulses: AtomicU64,
    /// Rejects that were driven after their part was at the ejector.
    pub late: AtomicU64,
    /// Parts that passed and got no pulse, because it would have come too late.
    pub withheld: AtomicU64,
    /// Pulses that could not be driven.
    pub failed: AtomicU64,
    /// Whether the line cannot be driven now.
    pub failing: AtomicBool,
}

impl GpioHealth {
    /// Makes all lines inactive at once, and waits for it, but not for long: a chip may hang.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        for _ in 0..PATIENCE {
            if self.quiet.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        log::error!("gpio: the lines could not be made inactive within {PATIENCE} ms");
    }

    /// Why the station is not ready, as far as outputs are concerned.
    pub fn obstacles(&self) -> Vec<String> {
        let failing = self.outputs.iter().filter(|output| output.failing.load(Ordering::Relaxed));
        failing.map(|output| format!("gpio {}, {}: cannot be driven", output.signal, output.pin)).collect()
    }
}

/// The sink.
pub struct GpioSink {
    orders: Sender<Order>,
    clock: Arc<dyn Clock>,
    health: Arc<GpioHealth>,
}

/// What the worker needs; it ends when the sink is dropped and the last reject is driven.
pub struct GpioWorker {
    outputs: Vec<GpioOutput>,
    orders: Receiver<Order>,
    clock: Arc<dyn Clock>,
    ready: Box<dyn Fn() -> bool + Send>,
    health: Arc<GpioHealth>,
}

/// A sink and its worker. `ready` says whether the station is: READY follows it while every output can be driven.
pub fn open(
    outputs: &[GpioOutput],
    clock: Arc<dyn Clock>,
    ready: Box<dyn Fn() -> bool + Send>,
) -> (GpioSink, GpioWorker, Arc<GpioHealth>) {
    let (sender, receiver) = bounded(QUEUE);
    let of = |output: &GpioOutput| OutputHealth {
        signal: output.word(),
        pin: output.pin().to_string(),
        ..OutputHealth::default()
    };
    let health = Arc::new(GpioHealth { outputs: outputs.iter().map(of).collect(), ..GpioHealth::default() });
    let sink = GpioSink { orders: sender, clock: Arc::clone(&clock), health: Arc::clone(&health) };
    let worker = GpioWorker { outputs: outputs.to_vec(), orders: receiver, clock, ready, health: Arc::clone(&health) };
    (sink, worker, health)
}

impl VerdictSink for GpioSink {
    fn name(&self) -> &str {
        "gpio"
    }

    fn publish(&mut self, inspection: &Inspection, _: &Envelope) -> Result<(), SinkError> {
        if inspection.actuation == Actuation::Nothing {
            return Ok(());
        }
        let frame = &inspection.frame;
        let sent = self.clock.now();
        let at = frame.trigger.as_ref().map_or(frame.captured_at, |trigger| trigger.at);
        // A frame that never came and that nothing triggered has no time.
        let at = if at == Timestamp(0) { sent } else { at };
        let order = Order { camera: frame.camera.clone(), actuation: inspection.actuation, at, sent };
        self.orders.try_send(order).map_err(|error| {
            self.health.lost.fetch_add(1, Ordering::Relaxed);
            SinkError(match error {
                TrySendError::Full(_) => format!("the queue of {QUEUE} orders is full: a chip does not answer"),
                TrySendError::Disconnected(_) => "the worker has ended".into(),
            })
        })
    }
}

impl GpioWorker {
    /// Drives until the sink is gone and no reject is on its way.
    pub fn run(self) {
        let pins = self.outputs.iter().map(|output| (output.pin().clone(), None)).collect();
        let mut lines = Lines { pins, clock: Arc::clone(&self.clock), health: Arc::clone(&self.health) };
        let mut schedule = Schedule::new(&self.outputs, Arc::clone(&self.health));
        let (mut open, mut lost) = (true, 0);
        loop {
            let known = self.health.lost.load(Ordering::Relaxed);
            if known != lost {
                lost = known;
                schedule.lost(self.clock.now());
            }
            if self.health.abandoned.load(Ordering::Relaxed) {
                return;
            }
            schedule.step(open && (self.ready)(), &mut lines);
            if !open && schedule.idle() {
                return;
            }
            let left = schedule.next().0.saturating_sub(self.clock.now().0);
            let wait = Duration::from_nanos(left).min(NAP);
            if !open {
                std::thread::sleep(wait);
                continue;
            }
            match self.orders.recv_timeout(wait) {
                Ok(order) => {
                    schedule.take(&order);
                    self.orders.try_iter().for_each(|order| schedule.take(&order));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        }
    }
}

/// The lines, each open by itself: one chip that is gone takes no other along.
struct Lines {
    pins: Vec<(Pin, Option<Request>)>,
    clock: Arc<dyn Clock>,
    health: Arc<GpioHealth>,
}

impl Pins for Lines {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn set(&mut self, output: usize, active: bool) -> Result<(), String> {
        let (pin, open) = &mut self.pins[output];
        let request = match open {
            Some(request) => request,
            None => open.insert(inactive(pin)?),
        };
        drive(request, active).inspect_err(|_| *open = None)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        for (pin, open) in &self.pins {
            if let Some(request) = open
                && let Err(reason) = drive(request, false)
            {
                log::error!("{pin}: cannot be made inactive: {reason}");
            }
        }
        self.health.quiet.store(true, Ordering::Relaxed);
    }
}

/// An output that is open and inactive.
///
/// # Errors
/// No such line, no permission, a line that somebody has, or one that is no output.
pub fn inactive(pin: &Pin) -> Result<Request, String> {
    request(pin, |builder| {
        builder.as_output(Value::Inactive);
    })
}

/// Drives a line.
///
/// # Errors
/// The chip is gone, or refuses.
pub fn drive(request: &Request, active: bool) -> Result<(), String> {
    request.set_lone_value(Value::from(active)).map_err(|error| error.to_string())
}
