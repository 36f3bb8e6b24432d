//! Pseudo-validation, thresholds, and what other thresholds would do.

use std::fmt::Write;

use super::pictures::Judge;
use super::{Report, escape, svg};
use crate::synthetic::corrupt::CorruptionFamily;
use crate::trainer::fit::default_steps;
use crate::trainer::pictures::with_and_without_defects;
use crate::trainer::select::{DEFECTS, defect_rng};

/// A judged picture, in units of its thresholds.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Family of its synthetic defect; none is good.
    defect: Option<CorruptionFamily>,
    /// Score over the image threshold.
    score: f32,
    /// Level of its strongest region over the region threshold.
    level: f32,
}

impl Part {
    /// A part fails by its score or its strongest region, whichever is farther above.
    fn ratio(&self) -> f32 {
        self.score.max(self.level)
    }

    fn seen(&self) -> Option<bool> {
        self.defect.map(|family| CorruptionFamily::TRAINING.contains(&family))
    }
}

/// Writes the sections.
pub fn write(html: &mut String, report: &Report<'_>, judge: &mut Judge<'_>) -> anyhow::Result<()> {
    let parts = judged(report, judge)?;
    let known = thresholded(report, judge);
    families(html, report, &parts)?;
    thresholds(html, report)?;
    compared(html, &known, &parts)
}

/// The pictures of the pseudo-validation again, by the bundle's own detector.
fn judged(report: &Report<'_>, judge: &mut Judge<'_>) -> anyhow::Result<Vec<Part>> {
    let size = (report.setup.spec.width, report.setup.spec.height);
    let mut rng = defect_rng(report.request.seed);
    let mut parts = Vec::new();
    with_and_without_defects(&report.setup.data.select, DEFECTS, size, &mut rng, |picture, rgb, defect| {
        let Some(entry) = judge.entry(picture.set) else { return Ok(()) };
        let detection = judge.detect(rgb, picture.set)?;
        parts.push(Part {
            defect: defect.map(|defect| defect.family),
            score: detection.score.0 / entry.image_threshold,
            level: detection.region_level(entry.min_area) / entry.region_threshold,
        });
        Ok(())
    })?;
    Ok(parts)
}

/// The good parts behind the thresholds, each with those of its class.
fn thresholded(report: &Report<'_>, judge: &Judge<'_>) -> Vec<Part> {
    let entries = (0..report.setup.data.calibrate.len()).filter_map(|set| judge.entry(set));
    let part = |entry: &crate::inspection::calibration::CalibrationEntry, score: f32, level: f32| Part {
        defect: None,
        score: score / entry.image_threshold,
        level: level / entry.region_threshold,
    };
    entries.flat_map(|entry| entry.good.iter().map(move |good| part(entry, good.score, good.level))).collect()
}

fn families(html: &mut String, report: &Report<'_>, parts: &[Part]) -> anyhow::Result<()> {
    let choice = report.choice;
    let good = parts.iter().filter(|part| part.defect.is_none()).count();
    writeln!(
        html,
        "<h2>Pseudo-validation</h2><p>Synthetic defects in {good} good pictures that neither trained the networks nor set \
         the thresholds, per family. Families that training has not seen say more. All together: image AUROC {:.3}, pixel \
         AP {:.3}.</p><table><tr><th>family</th><th>in training</th><th>defects</th><th>image AUROC</th><th>caught at the \
         threshold</th></tr>",
        choice.image_auroc, choice.pixel_ap
    )?;
    let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.3}"));
    for row in &choice.families {
        let caught = parts.iter().filter(|part| part.defect == Some(row.family) && part.ratio() > 1.0).count();
        writeln!(
            html,
            "<tr><td>{:?}</td><td>{}</td><td>{}</td><td>{}</td><td>{caught} of {}</td></tr>",
            row.family,
            if row.seen { "yes" } else { "<b>no</b>" },
            row.pictures,
            number(row.image_auroc),
            row.pictures
        )?;
    }
    *html += "</table>\n";
    Ok(())
}

fn thresholds(html: &mut String, report: &Report<'_>) -> anyhow::Result<()> {
    *html += "<h2>Thresholds</h2><table><tr><th>class</th><th>steps</th><th>good pictures</th><th>false rejects stated</th>\
              <th>99 % bound</th><th>image</th><th>region</th><th>scores of good pictures</th></tr>\n";
    for (entry, scores) in report.calibrated.calibration.entries.iter().zip(&report.calibrated.scores) {
        let class = entry.class.as_ref().map_or("(none)", |class| &class.0);
        let high = scores.iter().copied().fold(entry.image_threshold, f32::max) * 1.05;
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
            svg::histogram(scores, high, Some(entry.image_threshold))
        )?;
    }
    *html += "</table>\n";
    let steps = default_steps(&report.request.config.steps);
    writeln!(html, "<h2>Scores, and what if</h2><p>At {} steps, in units of the thresholds (red).</p>", steps.0)?;
    Ok(())
}

/// Scores of good parts and of synthetic defects on one axis, and a slider over the sensitivity.
fn compared(html: &mut String, known: &[Part], parts: &[Part]) -> anyhow::Result<()> {
    let of = |defect: Option<bool>| parts.iter().filter(move |part| part.seen() == defect);
    for (name, value) in
        [("Image score", (|part| part.score) as fn(&Part) -> f32), ("Strongest region", |part| part.level)]
    {
        let rows = [
            ("good parts behind the thresholds", known.iter().map(value).collect()),
            ("other good parts", of(None).map(value).collect()),
            ("synthetic defects of unseen families", of(Some(false)).map(value).collect()),
            ("synthetic defects of families in training", of(Some(true)).map(value).collect()),
        ];
        writeln!(html, "<h3>{name}</h3>{}", svg::comparison(&rows))?;
    }
    let list = |parts: &mut dyn Iterator<Item = &Part>| {
        let ratios: Vec<String> = parts.map(|part| format!("{:.4}", part.ratio())).collect();
        ratios.join(",")
    };
    let (below, span) = svg::axis();
    writeln!(
        html,
        "<p>Sensitivity <input id=\"s\" type=\"range\" min=\"0\" max=\"1\" step=\"0.01\" value=\"0.5\"> <b id=\"v\"></b></p>\
         <ul><li id=\"g\"></li><li id=\"h\"></li><li id=\"u\"></li><li id=\"k\"></li></ul>\n<script>const \
         good=[{}],other=[{}],unseen=[{}],seen=[{}];\
         const s=document.getElementById('s');\
         function say(id,list,what,t){{document.getElementById(id).textContent=list.filter(r=>r>t).length+' of '+list.length+\
         what}}\
         function show(){{const t=Math.pow(4,0.5-s.value);\
         document.getElementById('v').textContent=Number(s.value).toFixed(2)+': thresholds x '+t.toFixed(2);\
         say('g',good,' good parts behind the thresholds rejected',t);say('h',other,' other good parts rejected',t);\
         say('u',unseen,' synthetic defects of unseen families caught',t);\
         say('k',seen,' synthetic defects of families in training caught',t);\
         const x={}*Math.min(1,Math.max(0,(Math.log2(t)+{below})/{span}));\
         for(const l of document.querySelectorAll('line.t')){{l.setAttribute('x1',x);l.setAttribute('x2',x)}}}}\
         s.oninput=show;show()</script>",
        list(&mut known.iter()),
        list(&mut of(None)),
        list(&mut of(Some(false))),
        list(&mut of(Some(true))),
        svg::WIDTH
    )?;
    Ok(())
}
