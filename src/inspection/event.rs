//! The event: an inspection as every reader gets it, one JSON object with a fixed order of fields.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::anomaly::Region;
use super::frame::Prepared;
use super::roi::PixelBox;
use super::time::rfc3339;
use super::verdict::{Inspection, Latency};

/// Regions of an event, at most, the highest first: a part out of place has hundreds.
const REGIONS: usize = 64;
/// Version of the event's meaning.
pub const SCHEMA: u32 = 1;

/// A ULID: 48 bits of milliseconds and 80 bits that never repeat, as 26 letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EventId(pub u128);

impl EventId {
    /// The id of an event of that time, number `seq` of the process that `boot` names.
    pub fn new(millis: u64, boot: u64, seq: u64) -> Self {
        let unique = u128::from(boot) << 32 | u128::from(seq & 0xFFFF_FFFF);
        Self(u128::from(millis) << 80 | (unique & ((1 << 80) - 1)))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        (0..26).rev().try_for_each(|k| write!(f, "{}", ALPHABET[(self.0 >> (5 * k) & 31) as usize] as char))
    }
}

/// What a station adds to an inspection. Made on the way of every verdict: it owns no text of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Unique and sortable by time.
    pub event_id: EventId,
    /// Counts the events of this process.
    pub seq: u64,
    /// Names the run of the process.
    pub boot: u64,
    /// Nanoseconds since the Unix epoch.
    pub wall_nanos: u64,
    /// Nanoseconds on the process's monotonic clock.
    pub mono_nanos: u64,
    /// Name of the line.
    pub line: Arc<str>,
    /// Name of the station.
    pub station: Arc<str>,
}

/// A region in frame pixels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventRegion {
    /// Bounding box in frame pixels.
    pub bbox: PixelBox,
    /// Cells of the model grid.
    pub area: u32,
    /// Largest map value.
    pub peak: f32,
    /// The ROI; absent where the recipe has none that include.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roi: Option<String>,
    /// Frame pixels, what a ROI's `min_area` is compared with; absent where the recipe has no ROIs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub area_px: Option<f64>,
}

/// One event; see `docs/events.md` for the meaning of each field.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the fields are documented where their readers look: docs/events.md")]
pub struct Event {
    pub schema: u32,
    pub event_id: String,
    pub seq: u64,
    pub boot_id: String,
    pub t_wall: String,
    pub time_synced: bool,
    pub flags: Vec<&'static str>,
    pub t_mono_ns: u64,
    pub line: String,
    pub station: String,
    pub camera: String,
    pub frame_id: u64,
    pub sequence: u64,
    pub captured_mono_ns: u64,
    pub trigger: Option<String>,
    pub part_id: Option<String>,
    pub recipe_id: String,
    pub recipe_hash: String,
    pub bundle_id: String,
    pub model_hash: String,
    pub calibration_id: Option<String>,
    pub verdict: &'static str,
    pub reason: Option<&'static str>,
    pub fault: Option<String>,
    pub score: Option<f32>,
    pub threshold: Option<f32>,
    pub regions: Vec<EventRegion>,
    pub latency_ms: Latency,
    pub deadline_ms: Option<u64>,
    pub late_verdict: Option<&'static str>,
    pub actuation: &'static str,
    pub dtype: String,
    pub steps: Option<u32>,
    pub seed: u64,
    pub drift: Vec<&'static str>,
    pub image: Option<String>,
}

impl Event {
    /// The event of an inspection, by a clock and on a machine that nothing is known of; `image` names its pictures, if any are kept.
    pub fn new(inspection: &Inspection, envelope: &Envelope, image: Option<String>) -> Self {
        let decision = &inspection.decision;
        Self {
            schema: SCHEMA,
            event_id: envelope.event_id.to_string(),
            seq: envelope.seq,
            boot_id: format!("{:016x}", envelope.boot),
            t_wall: rfc3339(envelope.wall_nanos),
            time_synced: false,
            flags: Vec::new(),
            t_mono_ns: envelope.mono_nanos,
            line: envelope.line.to_string(),
            station: envelope.station.to_string(),
            camera: inspection.frame.camera.to_string(),
            frame_id: inspection.frame.id.0,
            sequence: inspection.frame.sequence,
            captured_mono_ns: inspection.frame.captured_at.0,
            trigger: inspection.frame.trigger.as_ref().map(|trigger| trigger.source.clone()),
            part_id: inspection.frame.trigger.as_ref().and_then(|trigger| trigger.part_id.clone()),
            recipe_id: inspection.recipe.0.clone(),
            recipe_hash: inspection.recipe_hash.to_string(),
            bundle_id: inspection.bundle.clone(),
            model_hash: inspection.model_hash.clone(),
            calibration_id: inspection.calibration.clone(),
            verdict: decision.verdict.word(),
            reason: decision.reason(),
            fault: inspection.fault.clone(),
            score: inspection.detection.as_ref().and_then(|detection| finite(detection.score.0)),
            threshold: decision.threshold.and_then(finite),
            regions: regions(inspection),
            latency_ms: inspection.latency,
            deadline_ms: inspection.deadline_ms,
            late_verdict: None,
            actuation: inspection.actuation.word(),
            dtype: inspection.dtype.clone(),
            steps: inspection.detection.as_ref().map(|detection| detection.steps.0),
            seed: inspection.seed,
            drift: inspection.drift.words(),
            image,
        }
    }

    /// Adds what the detector said after the deadline. Verdict, reason and actuation stay those that went out in time.
    pub fn amend(&mut self, late: &Inspection) {
        self.late_verdict = Some(late.decision.verdict.word());
        self.captured_mono_ns = late.frame.captured_at.0;
        self.sequence = late.frame.sequence;
        self.calibration_id = late.calibration.clone();
        self.score = late.detection.as_ref().and_then(|detection| finite(detection.score.0));
        self.threshold = late.decision.threshold.and_then(finite);
        self.regions = regions(late);
        self.latency_ms = late.latency;
        self.steps = late.detection.as_ref().map(|detection| detection.steps.0);
    }
}

fn finite(value: f32) -> Option<f32> {
    value.is_finite().then_some(value)
}

/// Regions in frame pixels.
fn regions(inspection: &Inspection) -> Vec<EventRegion> {
    let mask = inspection.detection.as_ref().and_then(|detection| detection.rois.as_ref()).map(|rois| &rois.mask);
    let name = |roi: Option<u8>| mask.zip(roi).and_then(|(mask, roi)| mask.name(roi)).map(str::to_owned);
    let of = |prepared: &Arc<Prepared>| {
        let region = |region: &Region| {
            let [x, y, width, height] = [region.x, region.y, region.width, region.height].map(f64::from);
            EventRegion {
                bbox: prepared.transform.to_frame(x, y, width, height),
                area: region.area,
                peak: region.peak,
                roi: name(region.roi),
                area_px: mask.map(|mask| mask.frame_area(region.area)),
            }
        };
        inspection.decision.regions.iter().take(REGIONS).map(region).collect()
    };
    inspection.prepared.as_ref().map(of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_do_not_repeat() {
        let ids = [(1, 7, 1), (1, 7, 2), (2, 7, 3), (1_795_435_199_250, 7, 4)];
        let ids = ids.map(|(millis, boot, seq)| EventId::new(millis, boot, seq).to_string());
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ids.iter().all(|id| id.len() == 26));
        // Test vector of the ULID text: the first ten letters are the time.
        assert_eq!(&EventId::new(1_469_918_176_385, 0, 0).to_string()[..10], "01ARYZ6S41");
    }
}
