//! What was found in the pictures, and what was chosen for them.

use std::fmt::Write;

use super::{escape, svg};
use crate::trainer::appearance::Spread;
use crate::trainer::setup::Setup;

/// Writes the section.
pub fn write(html: &mut String, setup: &Setup) -> anyhow::Result<()> {
    *html += "<h2>Data</h2><table><tr><th>set</th><th>good pictures</th><th>sizes</th><th>columns over rows</th>\
              <th>mean light, 0 to 1</th><th>contrast</th><th>sharpness</th><th>test: good, defective</th></tr>\n";
    for survey in &setup.surveys {
        let sizes = survey.sizes.iter().take(3);
        let mut sizes: Vec<String> =
            sizes.map(|((width, height), count)| format!("{width}x{height}: {count}")).collect();
        if survey.sizes.len() > sizes.len() {
            sizes.push(format!("and {} more", survey.sizes.len() - sizes.len()));
        }
        let lights: Vec<f32> = survey.looks.iter().map(|look| look.light).collect();
        writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}{}</td><td>{}</td><td>{}</td><td>{}, {}</td></tr>",
            escape(&survey.set),
            survey.train,
            sizes.join("<br>"),
            spread(survey.aspect),
            spread(survey.light),
            svg::histogram(&lights, 1.0, None),
            spread(survey.contrast),
            spread(survey.sharpness),
            survey.test_good,
            survey.test_defective
        )?;
    }
    *html += "</table><p>Spreads are the middle (5 % below, 5 % above).</p>\n";
    list(html, "To know", setup.remarks.iter().cloned())?;
    let left_out = setup.skipped.iter().map(|skipped| format!("{}: {}", skipped.path.display(), skipped.reason));
    list(html, "Left out", left_out)?;
    let chosen = &setup.chosen;
    *html += "<h2>Chosen</h2><table>";
    let mut row =
        |name: &str, text: &str| writeln!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(text));
    let size = format!("{}, {} parameters, on {}", chosen.profile, chosen.parameters, chosen.device);
    row("model", &size)?;
    row("grid", &format!("{}x{} pixels, {}", chosen.grid[0], chosen.grid[1], chosen.geometry.words()))?;
    row("steps", &format!("{:?}, {:.2} GFLOP a frame at {}", chosen.steps, chosen.frame_gflop, chosen.default_steps))?;
    row("training", &chosen.training.to_string())?;
    for set in &chosen.sets {
        let divided = format!(
            "{} pictures to train on, {} to choose with, {} for the thresholds: false rejects of {:.1} % can be shown",
            set.train,
            set.select,
            set.calibrate,
            100.0 * set.false_rejects
        );
        row(&set.set, &divided)?;
        row(&format!("{} varied by", set.set), &set.augmentation.to_string())?;
    }
    *html += "</table>\n";
    Ok(())
}

fn list(html: &mut String, head: &str, items: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut items = items.peekable();
    if items.peek().is_some() {
        writeln!(html, "<h3>{head}</h3><ul>")?;
        items.try_for_each(|item| writeln!(html, "<li>{}</li>", escape(&item)))?;
        *html += "</ul>\n";
    }
    Ok(())
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |spread| format!("{:.3} ({:.3}, {:.3})", spread.median, spread.low, spread.high))
}
