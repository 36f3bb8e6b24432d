//! Judging pictures outside of the daemon: the same `prepare`, the same detector, the same decision.

use std::sync::Arc;
use std::time::Instant;

use crate::inspection::detect::{ClassId, Detection, Detector, Plan, Steps};
use crate::inspection::frame::Prepared;
use crate::inspection::time::{Clock, Timestamp};

/// Time as the trainer reads it.
#[derive(Debug)]
pub struct TrainerClock {
    origin: Instant,
}

impl TrainerClock {
    /// A clock that starts now.
    pub fn start() -> Arc<dyn Clock> {
        Arc::new(Self { origin: Instant::now() })
    }
}

impl Clock for TrainerClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.origin.elapsed().as_nanos() as u64)
    }

    fn wall_nanos(&self) -> u64 {
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        std::time::SystemTime::now().duration_since(epoch).map_or(0, |since| since.as_nanos() as u64)
    }
}

/// Judges every picture with a plan and hands each detection to `take`.
///
/// # Errors
/// What the detector says.
pub fn each(
    detector: &mut dyn Detector,
    pictures: impl Iterator<Item = Prepared>,
    class: Option<&ClassId>,
    steps: Steps,
    mut take: impl FnMut(usize, Detection),
) -> anyhow::Result<()> {
    let plan = Plan { steps, class: class.cloned() };
    for (index, prepared) in pictures.enumerate() {
        for detection in detector.detect(std::slice::from_ref(&prepared), &plan)? {
            take(index, detection);
        }
    }
    Ok(())
}
