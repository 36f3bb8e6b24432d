//! The rate of a source that makes its own frames.

use std::sync::Arc;
use std::time::Duration;

use crate::inspection::frame::SourceError;
use crate::inspection::time::{Clock, Timestamp};

/// Longest wait at a time, so that a stop is noticed.
const BOUND: Duration = Duration::from_millis(100);

/// When the next frame is due.
pub(super) struct Rate {
    /// Nanoseconds from frame to frame; without them every frame is due at once.
    period: Option<u64>,
    due: Timestamp,
    clock: Arc<dyn Clock>,
}

impl Rate {
    /// So many frames a second from now on; without a number, as fast as they are taken.
    pub fn new(fps: Option<f64>, clock: Arc<dyn Clock>) -> Self {
        Self { period: fps.map(|fps| (1e9 / fps) as u64), due: clock.now(), clock }
    }

    /// Waits until a frame is due, but no longer than 100 ms.
    ///
    /// # Errors
    /// [`SourceError::Timeout`] if it is not due then.
    pub fn wait(&mut self) -> Result<(), SourceError> {
        let Some(period) = self.period else { return Ok(()) };
        let now = self.clock.now();
        if now < self.due {
            std::thread::sleep(Duration::from_nanos(self.due.0 - now.0).min(BOUND));
            if self.clock.now() < self.due {
                return Err(SourceError::Timeout);
            }
        }
        // What is late by more than a frame does not come faster to make up for it.
        let now = self.clock.now();
        let from = if now.0.saturating_sub(self.due.0) > period { now } else { self.due };
        self.due = Timestamp(from.0.saturating_add(period));
        Ok(())
    }
}
