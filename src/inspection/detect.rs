//! The seam between pixels and decisions: a detector answers with a map and a score, never with a verdict.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::anomaly::{AnomalyMap, AnomalyScore};
use super::frame::Prepared;
use super::tiles::TileGrid;
use super::time::Timestamp;

/// Denoising steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Steps(pub u32);

/// Name of a product kind that a multi-class bundle knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClassId(pub String);

/// How many steps are asked for: a number, or the word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "StepsText", into = "StepsText")]
pub enum StepChoice {
    /// Always this many.
    Fixed(Steps),
    /// As few as decide the frame: every calibrated step count in turn, until score and map are clear of the thresholds.
    Auto,
}

impl StepChoice {
    /// What can be asked of a bundle that lists these: each of them, then `auto` where there is something to choose from.
    pub fn of_listed(listed: &[Steps]) -> Vec<Self> {
        let auto = (listed.len() > 1).then_some(Self::Auto);
        listed.iter().map(|&steps| Self::Fixed(steps)).chain(auto).collect()
    }
}

/// How a [`StepChoice`] is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StepsText {
    Number(u32),
    Word(String),
}

impl TryFrom<StepsText> for StepChoice {
    type Error = String;

    fn try_from(text: StepsText) -> Result<Self, String> {
        match text {
            StepsText::Number(number) => number.to_string().parse(),
            StepsText::Word(word) => word.parse(),
        }
    }
}

impl From<StepChoice> for StepsText {
    fn from(choice: StepChoice) -> Self {
        match choice {
            StepChoice::Fixed(steps) => Self::Number(steps.0),
            StepChoice::Auto => Self::Word("auto".into()),
        }
    }
}

impl FromStr for StepChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(steps @ 1..)) => Ok(Self::Fixed(Steps(steps))),
            _ => Err(format!("'{text}' is neither a step count such as 2 nor 'auto'")),
        }
    }
}

impl fmt::Display for StepChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(steps) => write!(f, "{}", steps.0),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// How a batch is to be judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Steps to run.
    pub steps: StepPlan,
    /// The product kind; `None` is the null class.
    pub class: Option<ClassId>,
    /// When the verdict must be out: `auto` takes no more steps than end before. `None` is never.
    pub until: Option<Timestamp>,
}

impl Plan {
    /// Without a deadline.
    pub fn new(steps: StepPlan, class: Option<ClassId>) -> Self {
        Self { steps, class, until: None }
    }

    /// The gate of the step count that ran, for `auto`.
    pub fn gate(&self, ran: Steps) -> Option<&Gate> {
        match &self.steps {
            StepPlan::Fixed(_) => None,
            StepPlan::Auto(gates) => gates.iter().find(|gate| gate.steps == ran),
        }
    }
}

/// Steps to run.
#[derive(Debug, Clone, PartialEq)]
pub enum StepPlan {
    /// This many.
    Fixed(Steps),
    /// The gates in turn: a frame that is clear of one needs no more steps. Without a gate nothing can be judged.
    Auto(Vec<Gate>),
}

impl StepPlan {
    /// What a choice comes to with the gates of a calibration.
    pub fn new(choice: StepChoice, gates: impl FnOnce() -> Vec<Gate>) -> Self {
        match choice {
            StepChoice::Fixed(steps) => Self::Fixed(steps),
            StepChoice::Auto => Self::Auto(gates()),
        }
    }
}

/// The thresholds of one step count: what tells a frame that needs more steps. The verdict is not made here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// The step count.
    pub steps: Steps,
    /// Threshold of the score.
    pub image_threshold: f32,
    /// Threshold of the map.
    pub region_threshold: f32,
    /// Cells of the smallest region that counts.
    pub min_area: u32,
}

/// Below this share of its thresholds a frame is clearly good,
const CLEARLY_GOOD: f32 = 0.8;
/// and above this multiple of one clearly not.
const CLEARLY_BAD: f32 = 1.6;

impl Gate {
    /// Whether more steps could hardly change the verdict.
    pub fn is_clear(&self, detection: &Detection) -> bool {
        let above = |factor: f32| {
            detection.score.0 > factor * self.image_threshold
                || detection.map.has_region(factor * self.region_threshold, self.min_area)
        };
        above(CLEARLY_BAD) || !above(CLEARLY_GOOD)
    }
}

/// The defect-free picture that the model proposes, on the model grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconstruction {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes RGB.
    pub rgb: Vec<u8>,
}

/// What a detector found in one frame. No decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// Anomaly value per cell of the model grid, absolute scale.
    pub map: AnomalyMap,
    /// One number pooled from the map.
    pub score: AnomalyScore,
    /// Mean distance of the picture's features to those of good parts: how unlike them it is as a whole, whatever the map
    /// says of its places. 0 where the model has nothing to compare with.
    pub novelty: f32,
    /// The proposed defect-free picture.
    pub reconstruction: Reconstruction,
    /// Steps actually run.
    pub steps: Steps,
    /// How the frame was cut.
    pub tiles: Option<TileGrid>,
    /// Milliseconds from upload to read-back for the batch that this frame was part of.
    pub infer_ms: f64,
}

/// Why a detector could not answer. Becomes `Fault(DetectorFault)`, never a low score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetectorError(pub String);

impl fmt::Display for DetectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DetectorError {}

/// Judges prepared frames.
pub trait Detector: Send {
    /// One detection per input, in the same order.
    fn detect(&mut self, batch: &[Prepared], plan: &Plan) -> Result<Vec<Detection>, DetectorError>;

    /// Whether the device replays frames as one recorded graph; false where it was meant to, and every kernel is launched by
    /// itself. `None` where there is nothing to record, or nothing was yet.
    fn graph_recorded(&self) -> Option<bool> {
        None
    }

    /// Numbers of frames that go through the networks together faster than one by one, upwards, and how long each takes,
    /// milliseconds; the first is one frame.
    fn batches(&self) -> &[(usize, f64)] {
        &[(1, 0.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_choice_is_a_number_or_auto() {
        for (text, choice) in [("2", StepChoice::Fixed(Steps(2))), ("\"auto\"", StepChoice::Auto)] {
            assert_eq!(serde_json::from_str::<StepChoice>(text).expect("reads"), choice);
            assert_eq!(serde_json::to_string(&choice).expect("writes"), text);
        }
        for wrong in ["0", "-1", "\"fast\"", "1.5"] {
            assert!(serde_json::from_str::<StepChoice>(wrong).is_err(), "{wrong}");
        }
        assert!("fast".parse::<StepChoice>().expect_err("refused").contains("'auto'"));
    }

    #[test]
    fn only_what_is_near_a_threshold_is_unclear() {
        let gate = Gate { steps: Steps(1), image_threshold: 1.0, region_threshold: 2.0, min_area: 2 };
        let clear = |score: f32, cells: [f32; 4]| {
            gate.is_clear(&Detection {
                map: AnomalyMap { width: 2, height: 2, values: cells.to_vec() },
                score: AnomalyScore(score),
                novelty: 0.0,
                reconstruction: Reconstruction { width: 2, height: 2, rgb: vec![0; 12] },
                steps: Steps(1),
                tiles: None,
                infer_ms: 0.0,
            })
        };
        assert!(clear(0.5, [0.1; 4]), "clearly good");
        assert!(clear(1.7, [0.1; 4]) && clear(0.5, [3.3, 3.3, 0.0, 0.0]), "clearly bad by score or by region");
        assert!(!clear(0.9, [0.1; 4]) && !clear(1.1, [0.1; 4]), "a score near its threshold");
        assert!(!clear(0.5, [1.9, 1.9, 0.0, 0.0]), "a region near its threshold");
        assert!(clear(0.5, [9.0, 0.0, 0.0, 0.0]), "one cell is no region");
    }
}
