//! Detectors that come and go while the station runs: a new bundle is loaded beside the old one, in the stage that judges.
//!
//! A frame is judged by the job that it was taken under, which names one detector and one model: no frame sees two. While a detector is loaded the
//! stage judges nothing; frames wait, and those that miss their deadline are overruns. Where memory is short the old one goes first; frames that were
//! taken under it and not judged by then are overruns, too.

use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::challenge::{Challenge, GoldenPart};
use super::gate::Breaks;
use crate::inspection::detect::{Detection, Detector, DetectorError, Plan};
use crate::inspection::frame::Prepared;
use crate::inspection::station_state::FaultKind;

/// Makes one detector, on the thread that will use it, and proves it.
pub type MakeDetector = Box<dyn FnOnce() -> Result<Box<dyn Detector>, String> + Send>;

/// A detector that can be made.
pub struct Makes {
    /// Makes it.
    pub make: MakeDetector,
    /// Golden parts, of whatever number, that challenge it from then on, where there are challenges.
    pub golden: Vec<GoldenPart>,
}

/// What the stage is asked for, between two frames.
pub enum Exchange {
    /// Let go of a detector, then make another one; if that cannot be made, make the first one again under its old number.
    Replace {
        /// Number of the one that goes.
        number: usize,
        /// The one that comes.
        next: Makes,
        /// The one that goes, once more.
        back: Makes,
        /// Hears the number of the one that came.
        answer: Sender<Result<usize, String>>,
    },
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

/// Asks for another detector in the place of one that goes first, and waits for it.
///
/// # Errors
/// It cannot be made, and whether the one before judges again; or the station stops.
pub fn replace(exchanges: &Sender<Exchange>, number: usize, next: Makes, back: Makes) -> Result<usize, String> {
    let (answer, heard) = bounded(1);
    let stops = || "the station stops".to_owned();
    exchanges.send(Exchange::Replace { number, next, back, answer }).map_err(|_| stops())?;
    heard.recv().map_err(|_| stops())?
}

/// The detectors of a station.
pub(super) struct Detectors {
    /// By their numbers.
    pub all: Vec<Box<dyn Detector>>,
    /// Golden parts that they must answer in between.
    pub challenge: Option<Challenge>,
    /// Those that went before the frames that they would judge.
    gone: Vec<usize>,
}

impl Detectors {
    pub(super) fn new(all: Vec<Box<dyn Detector>>, challenge: Option<Challenge>) -> Self {
        Self { all, challenge, gone: Vec::new() }
    }

    /// Whether a detector went before the frames that it would judge.
    pub(super) fn is_gone(&self, number: usize) -> bool {
        self.gone.contains(&number)
    }

    fn challenged_by(&mut self, golden: Vec<GoldenPart>, number: usize) {
        if let Some(challenge) = &mut self.challenge {
            challenge.add(golden.into_iter().map(|part| GoldenPart { detector: number, ..part }));
        }
    }

    fn retire(&mut self, number: usize) {
        if let Some(detector) = self.all.get_mut(number) {
            *detector = Box::new(Retired);
        }
        if let Some(challenge) = &mut self.challenge {
            challenge.remove(number);
        }
    }

    fn add(&mut self, Makes { make, golden }: Makes) -> Result<usize, String> {
        let detector = make()?;
        self.all.push(detector);
        let number = self.all.len() - 1;
        self.challenged_by(golden, number);
        Ok(number)
    }

    fn replace(&mut self, number: usize, next: Makes, back: Makes, breaks: &Breaks) -> Result<usize, String> {
        self.retire(number);
        let problem = match self.add(next) {
            Ok(next) => {
                self.gone.push(number);
                return Ok(next);
            }
            Err(problem) => problem,
        };
        match (back.make)() {
            Ok(detector) => {
                // Frames that waited are judged by the very bundle that they were taken under.
                self.all[number] = detector;
                self.challenged_by(back.golden, number);
                Err(format!("{problem}; the bundle before it judges again"))
            }
            Err(error) => {
                let text = format!("{problem}; nor could the bundle before it be loaded again: {error}");
                if breaks.station.fault(FaultKind::Detector, EXCHANGE, &text) {
                    breaks.give_up(&text);
                }
                Err(text)
            }
        }
    }
}

/// Name of the fault of a station without a detector.
const EXCHANGE: &str = "exchange";

/// Does what was asked for since the last frame.
pub(super) fn apply(exchanges: &Receiver<Exchange>, detectors: &mut Detectors, breaks: &Breaks) {
    let loaded = &breaks.health.loaded;
    for exchange in exchanges.try_iter() {
        // Nothing is judged meanwhile: the station is not ready, and says so.
        loaded.store(matches!(exchange, Exchange::Retire(_)), Ordering::Relaxed);
        match exchange {
            // Who asked may have given up.
            Exchange::Add { make, golden, answer } => drop(answer.send(detectors.add(Makes { make, golden }))),
            Exchange::Replace { number, next, back, answer } => {
                drop(answer.send(detectors.replace(number, next, back, breaks)));
            }
            Exchange::Retire(number) => detectors.retire(number),
        }
        loaded.store(true, Ordering::Relaxed);
        breaks.health.beat(2);
    }
}

/// In the place of a detector whose bundle was replaced: it holds no memory.
struct Retired;

impl Detector for Retired {
    fn detect(&mut self, _: &[Prepared], _: &Plan) -> Result<Vec<Detection>, DetectorError> {
        Err(DetectorError("the bundle was replaced before the frame was judged".into()))
    }
}
