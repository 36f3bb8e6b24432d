//! The report of a fit: one HTML file that needs nothing else.
//!
//! | file | what |
//! |---|---|
//! | `data` | what was found in the pictures, and what was chosen for them |
//! | `training` | losses, time, memory |
//! | `scores` | pseudo-validation, thresholds, what-if |
//! | `pictures` | frames, reconstructions, maps |
//! | `repeat` | what is needed to do it again |
//! | `svg` | curves and histograms |

mod data;
mod pictures;
mod repeat;
mod scores;
pub mod svg;
mod training;

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use self::pictures::Judge;
use super::calibrate::Calibrated;
use super::checkpoint::RunState;
use super::fit::FitRequest;
use super::select::Choice;
use super::setup::Setup;
use crate::bundle::Bundle;
use crate::device::Compute;

/// Everything that the report tells.
pub struct Report<'a> {
    /// What was asked for.
    pub request: &'a FitRequest,
    /// The data and what was chosen for it.
    pub setup: &'a Setup,
    /// Losses and times.
    pub state: &'a RunState,
    /// Seconds of what came after training.
    pub laps: &'a [(&'static str, f64)],
    /// The map.
    pub choice: &'a Choice,
    /// The thresholds.
    pub calibrated: &'a Calibrated,
    /// The bundle as it was written.
    pub bundle: &'a Bundle,
    /// Where it ran.
    pub compute: &'a Compute,
}

/// Writes the report.
///
/// # Errors
/// What the detector or the disk says.
pub fn write_report(path: &Path, report: &Report<'_>) -> anyhow::Result<()> {
    let mut judge = Judge::new(report)?;
    let mut html = String::from(HEAD);
    writeln!(html, "<h1>{}</h1>", escape(&report.bundle.manifest.id))?;
    if let Some(auroc) = report.choice.unseen_auroc {
        writeln!(
            html,
            "<p><b>{auroc:.3}</b> image AUROC on synthetic defects of families that training has not seen. This shows that \
             the fit worked; it is no promise about real defects, which <code>trainer test</code> measures.</p>"
        )?;
    }
    data::write(&mut html, report.setup)?;
    scores::write(&mut html, report, &mut judge)?;
    pictures::write(&mut html, report, &mut judge)?;
    training::write(&mut html, report)?;
    repeat::write(&mut html, report)?;
    html += "</body></html>\n";
    std::fs::write(path, html).with_context(|| format!("{}: cannot be written", path.display()))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>dsad fit</title><style>\
    body{font:15px/1.45 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top}\
    pre{background:#f4f4f4;padding:.6em;overflow:auto}img{display:block;margin:.4em 0;max-width:100%}\
    svg{display:block}text{font-size:11px;fill:#555}</style></head><body>\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out_of_the_page() {
        assert_eq!(escape("<b>&\"x\""), "&lt;b&gt;&amp;&quot;x&quot;");
    }
}
