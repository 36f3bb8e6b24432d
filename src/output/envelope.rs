//! Identity of events.

use std::sync::Arc;

use crate::inspection::event::{Envelope, EventId};
use crate::inspection::time::Clock;

/// Makes the envelope of every event of a process.
pub struct Envelopes {
    line: Arc<str>,
    station: Arc<str>,
    boot: u64,
    seq: u64,
    clock: Arc<dyn Clock>,
}

impl Envelopes {
    /// Envelopes of a station. `boot` is a random number that names this run of the process.
    pub fn new(line: &str, station: &str, boot: u64, clock: Arc<dyn Clock>) -> Self {
        Self { line: line.into(), station: station.into(), boot, seq: 0, clock }
    }

    /// The next envelope.
    pub fn make(&mut self) -> Envelope {
        let wall_nanos = self.clock.wall_nanos();
        self.seq += 1;
        Envelope {
            event_id: EventId::new(wall_nanos / 1_000_000, self.boot, self.seq),
            seq: self.seq,
            boot: self.boot,
            wall_nanos,
            mono_nanos: self.clock.now().0,
            line: Arc::clone(&self.line),
            station: Arc::clone(&self.station),
        }
    }
}
