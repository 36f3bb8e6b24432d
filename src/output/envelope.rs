//! Identity of events: ULIDs and counters.

use std::sync::Arc;

use crate::inspection::event::Envelope;
use crate::inspection::time::Clock;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Makes the envelope of every event of a process.
pub struct Envelopes {
    line: String,
    station: String,
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
        let wall = self.clock.wall_nanos();
        self.seq += 1;
        Envelope {
            event_id: ulid(wall / 1_000_000, self.boot, self.seq),
            seq: self.seq,
            boot_id: format!("{:016x}", self.boot),
            wall_nanos: wall,
            mono_nanos: self.clock.now().0,
            line: self.line.clone(),
            station: self.station.clone(),
        }
    }
}

/// 48 bits of milliseconds and 80 bits that never repeat: the process's random number over its event counter.
fn ulid(millis: u64, boot: u64, seq: u64) -> String {
    let unique = u128::from(boot) << 32 | u128::from(seq & 0xFFFF_FFFF);
    let bits = u128::from(millis) << 80 | (unique & ((1 << 80) - 1));
    (0..26).rev().map(|k| ALPHABET[(bits >> (5 * k) & 31) as usize] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_do_not_repeat() {
        let ids = [ulid(1, 7, 1), ulid(1, 7, 2), ulid(2, 7, 3), ulid(1_795_435_199_250, 7, 4)];
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ids.iter().all(|id| id.len() == 26));
        // Test vector of the ULID text: the first ten letters are the time.
        assert_eq!(&ulid(1_469_918_176_385, 0, 0)[..10], "01ARYZ6S41");
    }
}
