//! Edges of an input, with the kernel's own time.

use std::sync::Arc;
use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::line::{Bias, EdgeDetection, EventClock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::chips::request;
use crate::config::gpio::{self, EdgeKind, GpioInput, Pin};
use crate::inspection::time::{Clock, Timestamp};
use crate::inspection::trigger::{Edge, EdgeError, EdgeSource};

/// Longest wait for an edge before the caller hears that none came.
const WAIT: Duration = Duration::from_millis(100);
/// Edges that the kernel keeps for a late thread: the most that it gives, 10 seconds at 100 a second.
const KEPT: u32 = 1024;

/// An input that is open, or is opened by the next call.
pub struct Edges {
    pin: Pin,
    settings: GpioInput,
    clock: Arc<dyn Clock>,
    open: Option<Open>,
}

struct Open {
    request: Request,
    /// One edge as the kernel writes it. The crate's own `read_edge_event` (0.8.0, without the old interface) takes up to eight
    /// from the kernel and gives one.
    raw: Vec<u64>,
    /// The kernel's time at the moment 0 of the process's clock, nanoseconds.
    origin: i128,
    counted: Counted,
}

/// The kernel's number of the last edge: of 32 bits, from 1 with every opened line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counted(u32);

impl Counted {
    /// How many were missed before the edge of this number.
    fn missed(&mut self, number: u32) -> u64 {
        let step = number.wrapping_sub(self.0);
        self.0 = number;
        u64::from(step.saturating_sub(1))
    }
}

impl Edges {
    /// Edges of an input. A line that is not there yet is no error here: it may be plugged in later.
    pub fn new(settings: GpioInput, clock: Arc<dyn Clock>) -> Self {
        Self { pin: settings.pin(), settings, clock, open: None }
    }

    fn take(&mut self) -> Result<Edge, EdgeError> {
        let lost = |reason: String| EdgeError::Lost { reason };
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let request = request(&self.pin, |builder| {
                    builder.as_input().with_edge_detection(match self.settings.edge {
                        EdgeKind::Rising => EdgeDetection::RisingEdge,
                        EdgeKind::Falling => EdgeDetection::FallingEdge,
                    });
                    builder.with_event_clock(EventClock::Monotonic).with_kernel_event_buffer_size(KEPT);
                    if self.settings.debounce_us > 0 {
                        builder.with_debounce_period(Duration::from_micros(self.settings.debounce_us.into()));
                    }
                    if let Some(bias) = self.settings.bias {
                        builder.with_bias(match bias {
                            gpio::Bias::PullUp => Bias::PullUp,
                            gpio::Bias::PullDown => Bias::PullDown,
                            gpio::Bias::Disabled => Bias::Disabled,
                        });
                    }
                });
                let request = request.map_err(lost)?;
                let raw = vec![0; request.edge_event_u64_size()];
                let origin = origin(self.clock.as_ref());
                self.open.insert(Open { request, raw, origin, counted: Counted::default() })
            }
        };
        let wait = Timespec { tv_sec: 0, tv_nsec: WAIT.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&open.request, PollFlags::IN)], Some(&wait)) {
            // A signal is no reason to open the line again.
            Ok(0) | Err(Errno::INTR) => return Err(EdgeError::Timeout),
            Ok(_) => {}
            Err(error) => return Err(lost(format!("{}: {error}", self.pin))),
        }
        // A chip that is gone is ready to be read, and says so then.
        let read = open.request.read_edge_events_into_slice(&mut open.raw);
        let edge = read.and_then(|words| open.request.edge_event_from_slice(&open.raw[..words]));
        let edge = edge.map_err(|error| lost(format!("{}: {error}", self.pin)))?;
        let at = i128::from(edge.timestamp_ns) - open.origin;
        // The two clocks were compared with a small error: no edge is from the time to come.
        let at = Timestamp(u64::try_from(at).unwrap_or_default()).min(self.clock.now());
        Ok(Edge { at, missed: open.counted.missed(edge.line_seqno) })
    }
}

impl EdgeSource for Edges {
    fn name(&self) -> &'static str {
        "gpio"
    }

    fn next_edge(&mut self) -> Result<Edge, EdgeError> {
        let found = self.take();
        if let Err(EdgeError::Lost { .. }) = found {
            self.open = None;
        }
        found
    }
}

/// The kernel's monotonic time at the moment 0 of a clock. Both run alike; the closest of some readings tells how far apart.
fn origin(clock: &dyn Clock) -> i128 {
    let reading = || {
        let before = clock.now().0;
        let kernel = clock_gettime(ClockId::Monotonic);
        let after = clock.now().0;
        let kernel = i128::from(kernel.tv_sec) * 1_000_000_000 + i128::from(kernel.tv_nsec);
        (after.saturating_sub(before), kernel - i128::from(before.midpoint(after)))
    };
    let first = reading();
    (1..8).map(|_| reading()).fold(first, std::cmp::min).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gpio::PinLine;
    use crate::platform::clock::SystemClock;

    #[test]
    fn gaps_in_the_kernels_numbers_are_missed_edges() {
        let mut counted = Counted::default();
        let missed = |counted: &mut Counted, of: &[u32]| of.iter().map(|n| counted.missed(*n)).collect::<Vec<_>>();
        assert_eq!(missed(&mut counted, &[1, 2, 5, 6]), [0, 0, 2, 0]);
        let mut counted = Counted(u32::MAX - 1);
        assert_eq!(missed(&mut counted, &[u32::MAX, 0, 2]), [0, 0, 1]);
        // The first were overwritten before anyone read.
        assert_eq!(missed(&mut Counted::default(), &[4]), [3]);
    }

    #[test]
    fn both_clocks_run_alike() {
        let clock = SystemClock::start();
        let first = origin(&clock);
        std::thread::sleep(Duration::from_millis(20));
        let apart = (origin(&clock) - first).unsigned_abs();
        assert!(apart < 1_000_000, "{apart} ns");
    }

    #[test]
    fn a_line_that_is_not_there_is_lost_and_asked_for_again() {
        let clock = Arc::new(SystemClock::start());
        let settings = GpioInput {
            chip: Some("/dev/none".into()),
            line: PinLine::Number(1),
            active_low: false,
            edge: EdgeKind::Rising,
            debounce_us: 0,
            bias: None,
        };
        let by_name = GpioInput { chip: None, line: PinLine::Name("NO SUCH LINE".into()), ..settings.clone() };
        for (settings, word) in [(settings, "/dev/none"), (by_name, "NO SUCH LINE")] {
            let mut edges = Edges::new(settings, clock.clone());
            for _ in 0..2 {
                let Err(EdgeError::Lost { reason }) = edges.next_edge() else { panic!("lost") };
                assert!(reason.contains(word) && reason.contains("dsad gpio"), "{reason}");
            }
        }
    }
}
