//! Frames, reconstructions and maps, as the daemon would judge them.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Report, escape};
use crate::detector::{DiffusionDetector, prepare_picture};
use crate::inspection::calibration::CalibrationEntry;
use crate::inspection::decide::decide;
use crate::inspection::detect::{Detection, Detector, Plan, StepChoice, StepPlan};
use crate::render::{encode, panel::inspection_panel};
use crate::synthetic::corrupt::{CorruptionFamily, corrupt};
use crate::trainer::fit::default_steps;
use crate::trainer::judge::TrainerClock;
use crate::trainer::pictures::Picture;
use crate::trainer::select::defect_rng;

/// Good pictures in the report; each also appears with a synthetic defect.
const EXAMPLES: usize = 4;

/// The bundle's detector.
pub struct Judge<'a> {
    report: &'a Report<'a>,
    detector: DiffusionDetector,
}

impl<'a> Judge<'a> {
    /// Loads the bundle as it was written.
    pub fn new(report: &'a Report<'a>) -> anyhow::Result<Self> {
        let detector = DiffusionDetector::load(report.bundle, report.compute, TrainerClock::start())?;
        Ok(Self { report, detector })
    }

    /// What is asked for the pictures of a set.
    fn plan(&self, set: usize) -> Plan {
        let manifest = &self.report.bundle.manifest;
        let class = (!manifest.classes.is_empty()).then(|| manifest.classes[set].clone());
        Plan::new(StepPlan::Fixed(default_steps(&manifest.steps)), class)
    }

    /// The thresholds for the pictures of a set.
    pub fn entry(&self, set: usize) -> Option<&'a CalibrationEntry> {
        let steps = StepChoice::Fixed(default_steps(&self.report.bundle.manifest.steps));
        self.report.calibrated.calibration.entry(self.plan(set).class.as_ref(), steps)
    }

    /// Judges a picture on the model grid.
    pub fn detect(&mut self, rgb: &[u8], set: usize) -> anyhow::Result<Detection> {
        let preprocess = self.report.bundle.manifest.preprocess.of_a_tile();
        let bytes = encode::png(rgb, preprocess.width, preprocess.height)?;
        let prepared = prepare_picture(&bytes, &preprocess).map_err(anyhow::Error::msg)?;
        let plan = self.plan(set);
        let mut detection = self.detector.detect(&[prepared], &plan)?.remove(0);
        // One tile is enough to reject the whole: it is judged by the same thresholds.
        detection.tiles = self.report.bundle.manifest.preprocess.tiles;
        Ok(detection)
    }

    fn draw(&mut self, html: &mut String, rgb: &[u8], set: usize, note: &str) -> anyhow::Result<()> {
        let detection = self.detect(rgb, set)?;
        let decision = decide(&detection, &self.plan(set), self.report.bundle.manifest.calibration.as_ref(), 0.5);
        let full = self.entry(set).map_or(1.0, |entry| 2.0 * entry.region_threshold);
        let panel = inspection_panel(rgb, &detection, &decision, full, &format!("{:.3}", detection.score.0));
        let jpeg = encode::jpeg(&panel.rgb, panel.width, panel.height, 88)?;
        writeln!(html, "<p>{}</p>", escape(note))?;
        writeln!(html, "<img alt=\"example\" src=\"data:image/jpeg;base64,{}\">", STANDARD.encode(jpeg))?;
        Ok(())
    }
}

/// Writes the section.
pub fn write(html: &mut String, report: &Report<'_>, judge: &mut Judge<'_>) -> anyhow::Result<()> {
    let preprocess = &report.bundle.manifest.preprocess;
    let (width, height) = (preprocess.width, preprocess.height);
    let select = &report.setup.data.select;
    *html += "<h2>Examples</h2><p>Frame, reconstruction, map; all maps on one scale. Good pictures that were not trained \
              on, and the same with a synthetic defect.</p>\n";
    let mut rng = defect_rng(report.request.seed);
    let every = (select.len() / EXAMPLES).max(1);
    for (index, picture) in select.iter().step_by(every).take(EXAMPLES).enumerate() {
        let family = CorruptionFamily::ALL[index * 3 % CorruptionFamily::ALL.len()];
        let spoilt = corrupt(&picture.rgb, width, height, None, family, &mut rng).rgb;
        judge.draw(html, &picture.rgb, picture.set, &picture.path.display().to_string())?;
        judge.draw(html, &spoilt, picture.set, &format!("the same with a synthetic defect: {family:?}"))?;
    }
    extremes(html, report, judge)
}

/// The good parts that set the thresholds: the most and the least ordinary ones.
fn extremes(html: &mut String, report: &Report<'_>, judge: &mut Judge<'_>) -> anyhow::Result<()> {
    let steps = StepChoice::Fixed(default_steps(&report.request.config.steps));
    let entries = report.calibrated.calibration.entries.iter().zip(&report.calibrated.scores);
    // The null class is judged on the pictures of all classes, in their order.
    let Some((_, scores)) = entries.into_iter().find(|(entry, _)| entry.steps == steps && entry.class.is_none()) else {
        return Ok(());
    };
    let pictures = report.setup.data.calibrate.iter().flatten();
    let mut ranked: Vec<(f32, &Picture)> = scores.iter().copied().zip(pictures).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let lowest = ranked.len().saturating_sub(EXAMPLES / 2).max(EXAMPLES.min(ranked.len()));
    for (head, part) in
        [("Worst good parts", &ranked[..EXAMPLES.min(ranked.len())]), ("Best good parts", &ranked[lowest..])]
    {
        writeln!(
            html,
            "<h2>{head}</h2><p>Of those that set the thresholds{}</p>",
            match head {
                "Worst good parts" => ": look whether they are good, a bad one makes the thresholds too high.",
                _ => ".",
            }
        )?;
        for (score, picture) in part {
            judge.draw(html, &picture.rgb, picture.set, &format!("{score:.3}  {}", picture.path.display()))?;
        }
    }
    Ok(())
}
