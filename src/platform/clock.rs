//! Time as the daemon reads it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::inspection::time::{Clock, Timestamp};

/// The system's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now: make it first thing in the process.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall_nanos(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    }
}

/// Exists once systemd knows that somebody sets the clock: `systemd-timesyncd`, or any other with `systemd-time-wait-sync`.
pub(super) const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";
/// How long an answer is good for, milliseconds.
const GOOD_MS: f64 = 5_000.0;

/// Says whether the clock of the wall is set by others, at little cost.
pub fn synchronised(clock: Arc<dyn Clock>) -> Box<dyn Fn() -> bool + Send> {
    // The time of the answer, and the answer in the lowest bit.
    let known = AtomicU64::new(0);
    Box::new(move || {
        let (now, last) = (clock.now(), known.load(Ordering::Relaxed));
        if last > 1 && now.millis_since(Timestamp(last)) < GOOD_MS {
            return last & 1 == 1;
        }
        let is = Path::new(SYNCHRONISED).exists();
        known.store((now.0 & !1) | u64::from(is), Ordering::Relaxed);
        is
    })
}
