//! Verdicts, and the record that every frame ends as.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::anomaly::Region;
use super::detect::Detection;
use super::drift::Drift;
use super::event::Envelope;
use super::frame::{FrameBuf, FrameMeta, PixelFormat, Prepared};
use super::line::Actuation;
use super::recipe::RecipeId;

/// What is said about one part. Nothing but a completed, calibrated, in-time detection can be `Pass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Good.
    Pass,
    /// Defective.
    Fail,
    /// Not judged.
    Fault(FaultReason),
}

impl Verdict {
    /// The word on the wire: `pass`, `fail` or `fault`.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Fault(_) => "fault",
        }
    }
}

/// Why a part was not judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultReason {
    /// The frame could not be inspected in time.
    Overrun,
    /// No frame, or one that cannot be used.
    CameraFault,
    /// The detector failed, or gave a value that is not finite.
    DetectorFault,
    /// No calibration for this bundle, step count or class.
    Uncalibrated,
}

impl FaultReason {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            FaultReason::Overrun => "overrun",
            FaultReason::CameraFault => "camera_fault",
            FaultReason::DetectorFault => "detector_fault",
            FaultReason::Uncalibrated => "uncalibrated",
        }
    }
}

/// Which rule rejected a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailRule {
    /// The anomaly score is above its threshold.
    ImageScore,
    /// A region of at least the minimum area is above the pixel threshold.
    Region,
}

impl FailRule {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            FailRule::ImageScore => "image_score",
            FailRule::Region => "region",
        }
    }
}

/// A verdict with the numbers that led to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that rejected, for `Fail`.
    pub rule: Option<FailRule>,
    /// The image threshold used.
    pub threshold: Option<f32>,
    /// Every region above the pixel threshold, largest peak first.
    pub regions: Vec<Region>,
}

impl Decision {
    /// Why it is not a pass, as the word on the wire.
    pub fn reason(&self) -> Option<&'static str> {
        match self.verdict {
            Verdict::Fault(reason) => Some(reason.word()),
            _ => self.rule.map(FailRule::word),
        }
    }
}

/// Time that one frame spent where, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Waiting between the stages.
    pub queue: f64,
    /// Host preprocessing.
    pub prepare: f64,
    /// The detector.
    pub infer: f64,
    /// The decision.
    pub decide: f64,
    /// From capture to verdict.
    pub total: f64,
}

/// The full record of one frame: the unit of traceability.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// The frame judged.
    pub frame: FrameMeta,
    /// The recipe in force.
    pub recipe: RecipeId,
    /// What names the recipe as it was meant then.
    pub recipe_hash: Arc<str>,
    /// Identity of the bundle.
    pub bundle: String,
    /// Hash over the bundle's manifest.
    pub model_hash: String,
    /// The calibration that judged, if any.
    pub calibration: Option<String>,
    /// Map, score and reconstruction; absent for faults before the detector.
    pub detection: Option<Detection>,
    /// The verdict and its numbers.
    pub decision: Decision,
    /// Where the time went.
    pub latency: Latency,
    /// Milliseconds from the trigger, or from the capture where there is none, to the deadline; absent is never.
    pub deadline_ms: Option<u64>,
    /// Compute dtype of the detector.
    pub dtype: String,
    /// Seed of the noise.
    pub seed: u64,
    /// What went wrong, for faults.
    pub fault: Option<String>,
    /// The model's input, for drawings.
    pub prepared: Option<Arc<Prepared>>,
    /// The frame as the camera gave it, for the archive.
    pub pixels: Option<(PixelFormat, FrameBuf)>,
    /// Map value with the hottest colour in drawings, from the calibration; absent where nothing was judged.
    pub full_scale: Option<f32>,
    /// What drifts on this camera, by this frame and those before it.
    pub drift: Drift,
    /// What the line does with the part: set where the verdicts of a camera come together, at the end of the way.
    pub actuation: Actuation,
}

impl Inspection {
    /// Lets go of what takes room, and keeps what was said; false where there was nothing.
    pub fn let_go(&mut self) -> bool {
        let had = self.pixels.is_some() || self.prepared.is_some();
        (self.pixels, self.prepared) = (None, None);
        if let Some(detection) = &mut self.detection {
            detection.reconstruction.rgb = Vec::new();
        }
        had
    }
}

/// Why a sink could not take an inspection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkError(pub String);

impl std::fmt::Display for SinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SinkError {}

/// A machine that hears of inspections at once, as lines and registers do. Never waits, for a disk or a network least of all: work
/// that can block stands behind a worker.
pub trait VerdictSink: Send {
    /// Name for logs and counters.
    fn name(&self) -> &str;
    /// Takes one inspection, before it is recorded.
    ///
    /// # Errors
    /// It could not be taken.
    fn publish(&mut self, inspection: &Inspection, envelope: &Envelope) -> Result<(), SinkError>;
}

/// Where every inspection is kept: it hears last, and takes it over. Never waits.
pub trait Record: Send {
    /// Keeps an inspection.
    ///
    /// # Errors
    /// It could not be taken: nothing will tell of this part.
    fn keep(&mut self, envelope: Envelope, inspection: Box<Inspection>) -> Result<(), SinkError>;
    /// Keeps what a detector said after the deadline: `envelope` is of the overrun that went out then. Nothing may act on it.
    ///
    /// # Errors
    /// It could not be taken.
    fn amend(&mut self, envelope: Envelope, late: Box<Inspection>) -> Result<(), SinkError>;
}
