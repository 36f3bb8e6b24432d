//! Losses, time and memory.

use std::fmt::Write;

use super::{Report, svg};
use crate::trainer::usage::peak_rss_mb;

/// Names of the stages.
const STAGES: [&str; 3] = ["autoencoder", "denoiser", "repair and refine"];

/// Writes the section.
pub fn write(html: &mut String, report: &Report<'_>) -> anyhow::Result<()> {
    *html += "<h2>Losses</h2>\n";
    for (stage, name) in STAGES.into_iter().enumerate() {
        let losses = &report.state.losses[stage];
        let last = losses.last().map_or(0, |(step, _)| *step);
        writeln!(html, "<h3>{name}: {last} steps</h3>{}", svg::curve(losses))?;
    }
    *html += "<h2>Time and memory</h2><table><tr><th>part</th><th>seconds</th></tr>\n";
    let stages = STAGES.into_iter().zip(report.state.seconds.iter().copied());
    let all = [("reading the pictures", report.setup.seconds)].into_iter().chain(stages);
    for (part, seconds) in all.chain(report.laps.iter().copied()) {
        writeln!(html, "<tr><td>{part}</td><td>{seconds:.1}</td></tr>")?;
    }
    *html += "</table>\n<p>Stages count over all parts of a run that was resumed, the rest in its last.</p>\n";
    let measured = peak_rss_mb().map_or_else(|| "not told by this system".into(), |peak| format!("{peak:.0} MB"));
    writeln!(
        html,
        "<p>Memory of the host at its peak: {measured}; {:.0} MB were expected.</p>",
        report.setup.chosen.memory.host(report.compute.choice)
    )?;
    Ok(())
}
