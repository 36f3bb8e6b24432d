//! Counters that the stages bump and the supervisor reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::inspection::verdict::{FaultReason, Verdict};

/// Counts since the start. `frames_in = pass + fail + faults`, exactly, once the stages have drained.
#[derive(Debug, Default)]
pub struct Health {
    /// Frames that a camera gave, or should have given.
    pub frames_in: AtomicU64,
    /// Passed.
    pub pass: AtomicU64,
    /// Failed.
    pub fail: AtomicU64,
    /// Frames that were not judged in time.
    pub overrun: AtomicU64,
    /// All other faults.
    pub fault: AtomicU64,
    /// Inspections that a sink refused.
    pub sink_errors: AtomicU64,
    /// Bumped by every stage as it progresses or waits by design: capture, prepare, inspect, publish.
    pub beats: [AtomicU64; 4],
}

/// A reading of [`Health`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[allow(missing_docs, reason = "the same names as in `Health`")]
pub struct Counts {
    pub frames_in: u64,
    pub pass: u64,
    pub fail: u64,
    pub overrun: u64,
    pub fault: u64,
    pub sink_errors: u64,
}

impl Health {
    /// Counts one verdict.
    pub fn count(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Pass => &self.pass,
            Verdict::Fail => &self.fail,
            Verdict::Fault(FaultReason::Overrun) => &self.overrun,
            Verdict::Fault(_) => &self.fault,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that a stage is alive.
    pub fn beat(&self, stage: usize) {
        self.beats[stage].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            frames_in: get(&self.frames_in),
            pass: get(&self.pass),
            fail: get(&self.fail),
            overrun: get(&self.overrun),
            fault: get(&self.fault),
            sink_errors: get(&self.sink_errors),
        }
    }
}
