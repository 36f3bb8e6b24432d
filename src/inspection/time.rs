//! Points in time and the seam through which they are read.

use serde::{Deserialize, Serialize};

/// Nanoseconds on a monotonic clock that starts with the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds from `earlier` to `self`, 0 if `earlier` is later.
    pub fn millis_since(self, earlier: Timestamp) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e6
    }

    /// This point plus `millis` milliseconds.
    pub fn plus_millis(self, millis: u64) -> Timestamp {
        Timestamp(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }
}

/// The only way in which the library reads time.
pub trait Clock: Send + Sync {
    /// Monotonic time, for intervals and deadlines.
    fn now(&self) -> Timestamp;
    /// Nanoseconds since the Unix epoch, for people and records.
    fn wall_nanos(&self) -> u64;
}
