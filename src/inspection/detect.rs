//! The seam between pixels and decisions: a detector answers with a map and a score, never with a verdict.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::anomaly::{AnomalyMap, AnomalyScore, Region};
use super::frame::Prepared;
use super::mask::RoiMask;
use super::polygon::RoiSetId;
use super::tiles::TileGrid;
use super::time::Timestamp;

/// Denoising steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Steps(pub u32);

/// Name of a product kind that a multi-class bundle knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClassId(pub String);

/// How many steps are asked for: a number, or the word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
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
#[derive(Serialize, Deserialize, JsonSchema)]
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
                || !detection.regions(factor * self.region_threshold, self.min_area).is_empty()
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
    /// Anomaly value per cell of the model grid, absolute scale, whatever the recipe's ROIs.
    pub map: AnomalyMap,
    /// One number pooled from the map; with ROIs from what counts of it, by their thresholds.
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
    /// What counts of the map; absent without ROIs: all of it.
    pub rois: Option<Counted>,
    /// Milliseconds from upload to read-back for the batch that this frame was part of.
    pub infer_ms: f64,
}

/// What counts of a detection's map.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// Where, and by which thresholds.
    pub mask: Arc<RoiMask>,
    /// The score without thresholds of the ROIs' own: what is compared with good parts.
    pub plain_score: AnomalyScore,
}

impl Detection {
    /// Regions above a threshold of at least so many cells, where the map counts, highest first.
    pub fn regions(&self, threshold: f32, min_area: u32) -> Vec<Region> {
        match &self.rois {
            Some(counted) => counted.mask.regions(&self.map, threshold, min_area),
            None => {
                let mut regions = self.map.regions(threshold);
                regions.retain(|region| region.area >= min_area);
                regions
            }
        }
    }

    /// The score at the calibrated point of every ROI. Where their thresholds are moved, the score itself moves with them.
    pub fn plain_score(&self) -> AnomalyScore {
        self.rois.as_ref().map_or(self.score, |counted| counted.plain_score)
    }

    /// The region level (`AnomalyMap::region_level`) of what counts, at the calibrated point of every ROI.
    pub fn region_level(&self, min_area: u32) -> f32 {
        match &self.rois {
            Some(counted) => counted.mask.masked(&self.map).region_level(min_area),
            None => self.map.region_level(min_area),
        }
    }

    /// What names the ROIs that it is judged with.
    pub fn roi_set(&self) -> Option<&RoiSetId> {
        self.rois.as_ref().and_then(|counted| counted.mask.id())
    }
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
    use super::super::mask::Placement;
    use super::super::polygon::{PolygonRoi, RoiMode, Rois};
    use super::super::roi::Roi;
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
    fn what_does_not_count_asks_for_no_more_steps() {
        let corners = |low: f64, high: f64| vec![[low, 0.0], [high, 0.0], [high, 1.0], [low, 1.0]];
        let roi = |name: &str, mode, polygon, threshold| {
            let name = name.into();
            PolygonRoi { name, polygon, mode, threshold, min_area: None }
        };
        let gate = Gate { steps: Steps(1), image_threshold: 1.0, region_threshold: 2.0, min_area: 1 };
        let clear = |list: Vec<PolygonRoi>, cells: [f32; 4]| {
            let rois = Rois::new(list, &Roi::FULL).expect("valid");
            let mask = rois.mask(&Placement::of_crop(&Roi::FULL, (2, 2))).expect("valid").expect("has ROIs");
            gate.is_clear(&Detection {
                map: AnomalyMap { width: 2, height: 2, values: cells.to_vec() },
                score: AnomalyScore(0.1),
                novelty: 0.0,
                reconstruction: Reconstruction { width: 2, height: 2, rgb: vec![0; 12] },
                steps: Steps(1),
                tiles: None,
                rois: Some(Counted { mask, plain_score: AnomalyScore(0.1) }),
                infer_ms: 0.0,
            })
        };
        // The left column is near the region threshold.
        let near = [1.9, 0.1, 1.9, 0.1];
        let right = || roi("right", RoiMode::Include, corners(0.5, 1.0), None);
        let left = |threshold| roi("left", RoiMode::Include, corners(0.0, 0.5), threshold);
        assert!(!clear(vec![left(None)], near), "it counts");
        assert!(clear(vec![right()], near), "it does not");
        assert!(clear(vec![roi("out", RoiMode::Exclude, corners(0.0, 0.5), None)], near));
        assert!(clear(vec![left(Some(4.0)), right()], near), "far below the threshold of its own");
        assert!(!clear(vec![left(Some(4.0)), right()], [7.6, 0.1, 0.1, 0.1]), "near it");
        assert!(clear(vec![left(Some(0.25)), right()], near), "far above it: clearly bad");
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
                rois: None,
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
