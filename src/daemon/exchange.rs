//! Detectors that come and go while the station runs: a new bundle is loaded beside the old one, in the stage that judges.
//!
//! A frame is judged by the job that it was taken under, which names one detector and one model: no frame sees two. While a detector is loaded the
//! stage judges nothing; frames wait, and those that miss their deadline are overruns.

use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::challenge::{Challenge, GoldenPart};
use super::health::Health;
use crate::inspection::detect::{Detection, Detector, DetectorError, Plan};
use crate::inspection::frame::Prepared;

/// Makes one detector, on the thread that will use it, and proves it.
pub type MakeDetector = Box<dyn FnOnce() -> Result<Box<dyn Detector>, String> + Send>;

/// What the stage is asked for, between two frames.
pub enum Exchange {
    /// Make another detector; its golden parts challenge it from then on, where there are challenges.
    Add {
        /// Makes it.
        make: MakeDetector,
        /// Golden parts, of whatever number.
        golden: Vec<GoldenPart>,
        /// Hears its number.
        answer: Sender<Result<usize, String>>,
    },
    /// Let go of one that judges nothing any more.
    Retire(usize),
}

/// Asks for another detector and waits for it.
///
/// # Errors
/// It cannot be made, or the station stops.
pub fn add(exchanges: &Sender<Exchange>, make: MakeDetector, golden: Vec<GoldenPart>) -> Result<usize, String> {
    let (answer, heard) = bounded(1);
    let stops = || "the station stops".to_owned();
    exchanges.send(Exchange::Add { make, golden, answer }).map_err(|_| stops())?;
    heard.recv().map_err(|_| stops())?
}

/// Does what was asked for since the last frame.
pub(super) fn apply(
    exchanges: &Receiver<Exchange>,
    detectors: &mut Vec<Box<dyn Detector>>,
    challenge: &mut Option<Challenge>,
    health: &Health,
) {
    for exchange in exchanges.try_iter() {
        match exchange {
            Exchange::Add { make, golden, answer } => {
                // Nothing is judged meanwhile: the station is not ready, and says so.
                health.loaded.store(false, Ordering::Relaxed);
                let made = make();
                health.loaded.store(true, Ordering::Relaxed);
                let made = made.map(|detector| {
                    detectors.push(detector);
                    detectors.len() - 1
                });
                if let (Ok(number), Some(challenge)) = (&made, challenge.as_mut()) {
                    challenge.add(golden.into_iter().map(|part| GoldenPart { detector: *number, ..part }));
                }
                // Who asked may have given up.
                let _ = answer.send(made);
            }
            Exchange::Retire(number) => {
                if let Some(detector) = detectors.get_mut(number) {
                    *detector = Box::new(Retired);
                }
                if let Some(challenge) = challenge {
                    challenge.remove(number);
                }
            }
        }
        health.beat(2);
    }
}

/// In the place of a detector whose bundle was replaced: it holds no memory.
struct Retired;

impl Detector for Retired {
    fn detect(&mut self, _: &[Prepared], _: &Plan) -> Result<Vec<Detection>, DetectorError> {
        Err(DetectorError("the bundle was replaced before the frame was judged".into()))
    }
}
