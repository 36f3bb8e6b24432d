//! The report of a fit: one HTML file that needs nothing else.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::calibrate::Calibrated;
use super::checkpoint::RunState;
use super::dataset::{Set, Skipped};
use super::fit::{FitRequest, default_steps};
use super::judge::TrainerClock;
use super::pictures::Picture;
use super::select::Choice;
use crate::bundle::Bundle;
use crate::detector::{DiffusionDetector, prepare_picture};
use crate::device::Compute;
use crate::inspection::decide::decide;
use crate::inspection::detect::{Detector, Plan, StepChoice, StepPlan};
use crate::model::cost::{cost, frame_gflop};
use crate::model::profile::ModelConfig;
use crate::render::{encode, panel::inspection_panel};
use crate::synthetic::corrupt::{CorruptionFamily, corrupt};

/// Everything that the report tells.
pub struct Report<'a> {
    /// What was asked for.
    pub request: &'a FitRequest,
    /// The data.
    pub sets: &'a [Set],
    /// What was left out of it.
    pub skipped: &'a [Skipped],
    /// What else should be known of it.
    pub remarks: &'a [String],
    /// Losses and times.
    pub state: &'a RunState,
    /// The map.
    pub choice: &'a Choice,
    /// The thresholds.
    pub calibrated: &'a Calibrated,
    /// The bundle as it was written.
    pub bundle: &'a Bundle,
    /// The networks.
    pub model: &'a ModelConfig,
    /// Good pictures that were not trained on.
    pub select: &'a [Picture],
    /// Good pictures behind the thresholds, per class.
    pub calibrate: &'a [Vec<Picture>],
    /// Where it ran.
    pub compute: &'a Compute,
}

/// Good pictures in the report; each also appears with a synthetic defect.
const EXAMPLES: usize = 4;

/// Writes the report.
///
/// # Errors
/// What the detector or the disk says.
pub fn write_report(path: &Path, report: &Report<'_>) -> anyhow::Result<()> {
    let mut html = String::from(HEAD);
    let request = report.request;
    let steps = default_steps(&request.config.steps);
    let parts = cost(report.model, steps.0, request.config.width, request.config.height);
    writeln!(html, "<h1>{}</h1>", escape(&report.bundle.manifest.id))?;
    writeln!(
        html,
        "<p>Profile {}, {} parameters, {:.2} GFLOP a frame at {} steps, seed {}, device {}, {:.1} minutes of training from \
         {}. Model hash {}.</p><pre>{}</pre>",
        request.profile,
        parts.iter().map(|part| part.parameters).sum::<usize>(),
        frame_gflop(&parts),
        steps.0,
        request.seed,
        report.compute.choice,
        report.state.seconds.iter().sum::<f64>() / 60.0,
        report
            .bundle
            .manifest
            .provenance
            .base
            .as_ref()
            .map_or("fresh weights".into(), |hash| format!("the base {hash}")),
        &report.bundle.model_hash[..16],
        escape(&request.command)
    )?;
    data(&mut html, report)?;
    html += "<h2>Losses</h2>";
    for (stage, name) in ["autoencoder", "denoiser", "refine head"].into_iter().enumerate() {
        let losses = &report.state.losses[stage];
        let last = losses.last().map_or(0, |(step, _)| *step);
        writeln!(html, "<h3>{name}: {last} steps, {:.0} s</h3>{}", report.state.seconds[stage], curve(losses))?;
    }
    writeln!(
        html,
        "<h2>Pseudo-validation</h2><p>{} pictures, synthetic defects of families that training did not see: image AUROC \
         {:.4}, pixel AP {:.4}. This is a check that the fit worked, not a promise about real defects.</p>",
        report.choice.pictures, report.choice.image_auroc, report.choice.pixel_ap
    )?;
    thresholds(&mut html, report)?;
    what_if(&mut html, report)?;
    examples(&mut html, report)?;
    extremes(&mut html, report)?;
    writeln!(
        html,
        "<h2>To repeat it</h2><pre>{}</pre></body></html>",
        escape(&serde_json::to_string_pretty(&report.state.request)?)
    )?;
    std::fs::write(path, html).with_context(|| format!("{}: cannot be written", path.display()))
}

fn data(html: &mut String, report: &Report<'_>) -> anyhow::Result<()> {
    *html += "<h2>Data</h2><table><tr><th>set</th><th>good pictures</th></tr>";
    for set in report.sets {
        writeln!(html, "<tr><td>{}</td><td>{}</td></tr>", escape(&set.name), set.train.len())?;
    }
    *html += "</table><ul>";
    report.remarks.iter().try_for_each(|remark| writeln!(html, "<li>{}</li>", escape(remark)))?;
    *html += "</ul>";
    if !report.skipped.is_empty() {
        *html += "<p>Left out:</p><ul>";
        for skipped in report.skipped {
            let path = escape(&skipped.path.display().to_string());
            writeln!(html, "<li>{path}: {}</li>", escape(&skipped.reason))?;
        }
        *html += "</ul>";
    }
    Ok(())
}

fn thresholds(html: &mut String, report: &Report<'_>) -> anyhow::Result<()> {
    *html += "<h2>Thresholds</h2><table><tr><th>class</th><th>steps</th><th>good pictures</th><th>false rejects stated</th>\
              <th>95 % bound</th><th>image</th><th>region</th><th>scores of good pictures</th></tr>";
    for (entry, scores) in report.calibrated.calibration.entries.iter().zip(&report.calibrated.scores) {
        let class = entry.class.as_ref().map_or("(none)", |class| &class.0);
        writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.2} %</td><td>{:.2} %</td><td>{:.4}</td><td>{:.4}</td><td>{}</td></tr>",
            escape(class),
            entry.steps,
            entry.samples,
            entry.alpha * 100.0,
            entry.alpha_bound * 100.0,
            entry.image_threshold,
            entry.region_threshold,
            histogram(scores, entry.image_threshold)
        )?;
    }
    *html += "</table>";
    Ok(())
}

/// A slider over the sensitivity: what the thresholds would do to the good parts behind them.
fn what_if(html: &mut String, report: &Report<'_>) -> anyhow::Result<()> {
    let steps = default_steps(&report.request.config.steps);
    let usual = StepChoice::Fixed(steps);
    let Some(entry) = report.calibrated.calibration.entries.iter().find(|entry| entry.steps == usual) else {
        return Ok(());
    };
    // A part fails by its score or its strongest region, whichever is farther above.
    let ratios: Vec<String> = entry
        .good
        .iter()
        .map(|part| format!("{:.4}", (part.score / entry.image_threshold).max(part.level / entry.region_threshold)))
        .collect();
    writeln!(
        html,
        "<h2>What if</h2><p>Sensitivity <input id=\"s\" type=\"range\" min=\"0\" max=\"1\" step=\"0.01\" value=\"0.5\"> <b \
         id=\"v\"></b> at {} steps</p><script>const good=[{}];const s=document.getElementById('s');function show(){{const \
         t=Math.pow(4,0.5-s.value);const n=good.filter(r=>r>t).length;document.getElementById('v').textContent=\
         Number(s.value).toFixed(2)+': thresholds x '+t.toFixed(2)+', '+n+' of '+good.length+' good parts rejected'}}\
         s.oninput=show;show()</script>",
        steps.0,
        ratios.join(",")
    )?;
    Ok(())
}

/// Draws pictures as the daemon would judge them.
struct Drawer<'a> {
    report: &'a Report<'a>,
    detector: DiffusionDetector,
}

impl<'a> Drawer<'a> {
    fn new(report: &'a Report<'a>) -> anyhow::Result<Self> {
        let detector = DiffusionDetector::load(report.bundle, report.compute, TrainerClock::start())?;
        Ok(Self { report, detector })
    }

    fn draw(&mut self, html: &mut String, rgb: &[u8], set: usize, note: &str) -> anyhow::Result<()> {
        let manifest = &self.report.bundle.manifest;
        let steps = default_steps(&manifest.steps);
        let class = (!manifest.classes.is_empty()).then(|| manifest.classes[set].clone());
        let bytes = encode::png(rgb, manifest.preprocess.width, manifest.preprocess.height)?;
        let prepared = prepare_picture(&bytes, &manifest.preprocess).map_err(anyhow::Error::msg)?;
        let plan = Plan { steps: StepPlan::Fixed(steps), class: class.clone() };
        let detection = self.detector.detect(&[prepared], &plan)?.remove(0);
        let decision = decide(&detection, &plan, manifest.calibration.as_ref(), 0.5);
        let entry = manifest.calibration.as_ref().and_then(|c| c.entry(class.as_ref(), StepChoice::Fixed(steps)));
        let full = entry.map_or(1.0, |entry| 2.0 * entry.region_threshold);
        let panel = inspection_panel(rgb, &detection, &decision, full, &format!("{:.3}", detection.score.0));
        let jpeg = encode::jpeg(&panel.rgb, panel.width, panel.height, 88)?;
        writeln!(html, "<p>{}</p>", escape(note))?;
        writeln!(html, "<img alt=\"example\" src=\"data:image/jpeg;base64,{}\">", STANDARD.encode(jpeg))?;
        Ok(())
    }
}

fn examples(html: &mut String, report: &Report<'_>) -> anyhow::Result<()> {
    let preprocess = &report.bundle.manifest.preprocess;
    let (width, height) = (preprocess.width, preprocess.height);
    let mut drawer = Drawer::new(report)?;
    *html += "<h2>Examples</h2><p>Frame, reconstruction, map; all maps on one scale. Good pictures that were not trained \
              on, and the same with a synthetic defect.</p>";
    let mut rng = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(report.request.seed);
    let every = (report.select.len() / EXAMPLES).max(1);
    for (index, picture) in report.select.iter().step_by(every).take(EXAMPLES).enumerate() {
        let family = CorruptionFamily::ALL[index * 3 % CorruptionFamily::ALL.len()];
        let spoilt = corrupt(&picture.rgb, width, height, None, family, &mut rng).rgb;
        drawer.draw(html, &picture.rgb, picture.set, &picture.path.display().to_string())?;
        drawer.draw(html, &spoilt, picture.set, &format!("the same with a synthetic defect: {family:?}"))?;
    }
    Ok(())
}

/// The good parts that set the thresholds: the most and the least ordinary ones.
fn extremes(html: &mut String, report: &Report<'_>) -> anyhow::Result<()> {
    let steps = StepChoice::Fixed(default_steps(&report.request.config.steps));
    let entries = report.calibrated.calibration.entries.iter().zip(&report.calibrated.scores);
    // The null class is judged on the pictures of all classes, in their order.
    let Some((_, scores)) = entries.into_iter().find(|(entry, _)| entry.steps == steps && entry.class.is_none()) else {
        return Ok(());
    };
    let mut ranked: Vec<(f32, &Picture)> = scores.iter().copied().zip(report.calibrate.iter().flatten()).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut drawer = Drawer::new(report)?;
    *html += "<h2>Good parts that set the thresholds</h2><p>First those with the highest scores: look whether they are good. \
              Then those with the lowest.</p>";
    let lowest = ranked.iter().rev().take(EXAMPLES / 2);
    for (score, picture) in ranked.iter().take(EXAMPLES).chain(lowest) {
        drawer.draw(html, &picture.rgb, picture.set, &format!("{score:.3}  {}", picture.path.display()))?;
    }
    Ok(())
}

/// A loss curve on a logarithmic axis as SVG.
fn curve(points: &[(usize, f64)]) -> String {
    let values: Vec<f64> = points.iter().map(|(_, loss)| loss.max(1e-9).ln()).collect();
    let (low, high) = range(&values);
    let path: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let x = 600.0 * i as f64 / (values.len().max(2) - 1) as f64;
            format!("{x:.1},{:.1}", 120.0 - 110.0 * (v - low) / (high - low))
        })
        .collect();
    format!(
        "<svg width=\"620\" height=\"130\"><polyline fill=\"none\" stroke=\"#176\" points=\"{}\"/><text x=\"4\" y=\"12\">\
         {:.4}</text><text x=\"4\" y=\"126\">{:.4}</text></svg>",
        path.join(" "),
        high.exp(),
        low.exp()
    )
}

/// A histogram of scores with the threshold as a line, as SVG.
fn histogram(scores: &[f32], threshold: f32) -> String {
    let high = scores.iter().copied().fold(threshold, f32::max) * 1.05;
    let mut bins = [0usize; 40];
    for score in scores {
        bins[((score / high * 40.0) as usize).min(39)] += 1;
    }
    let tallest = bins.iter().copied().max().unwrap_or(1).max(1);
    let mut svg = String::from("<svg width=\"244\" height=\"44\">");
    for (index, count) in bins.iter().enumerate() {
        let height = 40.0 * *count as f64 / tallest as f64;
        svg += &format!(
            "<rect x=\"{}\" y=\"{:.1}\" width=\"5\" height=\"{height:.1}\" fill=\"#479\"/>",
            index * 6,
            42.0 - height
        );
    }
    let x = 240.0 * threshold / high;
    svg + &format!("<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"44\" stroke=\"#c22\"/></svg>")
}

fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if high > low { (low, high) } else { (low.min(0.0), high.max(1.0)) }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>dsad fit</title><style>\
    body{font:15px/1.45 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.25em .6em;text-align:left}\
    pre{background:#f4f4f4;padding:.6em;overflow:auto}img{display:block;margin:.4em 0;max-width:100%}\
    text{font-size:11px;fill:#555}</style></head><body>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out_of_the_page() {
        assert_eq!(escape("<b>&\"x\""), "&lt;b&gt;&amp;&quot;x&quot;");
    }

    #[test]
    fn curves_and_histograms_stay_inside_their_box() {
        let svg = curve(&[(10, 1.0), (20, 0.1), (30, 0.01)]);
        assert!(svg.contains("0.0,10.0") && svg.contains("600.0,120.0"), "{svg}");
        assert!(!curve(&[]).contains("NaN") && !curve(&[(1, 1.0)]).contains("NaN"));
        assert!(!histogram(&[0.1, 0.2], 0.15).contains("NaN"));
    }
}
