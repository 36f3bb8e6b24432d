//! The table of a sweep: as Markdown to read, as JSON to go on with.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::row::Row;
use crate::trainer::checkpoint::write_whole;
use crate::trainer::evaluate;

/// One bundle on one set at one step count, or the yardstick on one set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The variant.
    pub variant: String,
    /// The set.
    pub set: String,
    /// Seed of everything.
    pub seed: u64,
    /// Denoising steps; the yardstick has none.
    pub steps: Option<u32>,
    /// Whether the reconstruction started from noise.
    pub from_noise: bool,
    /// What was measured.
    #[serde(flatten)]
    pub figures: Figures,
    /// Why there are no figures.
    pub error: Option<String>,
}

/// What is measured of a line; `None` where a figure does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Area under the ROC curve of the scores.
    pub image_auroc: Option<f64>,
    /// Lower end of its 95 % bootstrap interval; of a mean: the least that it is made of.
    pub image_auroc_low: Option<f64>,
    /// Upper end; of a mean: the most.
    pub image_auroc_high: Option<f64>,
    /// Average precision of the scores.
    pub image_ap: Option<f64>,
    /// Area under the ROC curve of the map's cells.
    pub pixel_auroc: Option<f64>,
    /// Average precision of the map's cells.
    pub pixel_ap: Option<f64>,
    /// Per-region overlap.
    pub pro: Option<f64>,
    /// Share of the good pictures that the thresholds reject.
    pub false_reject_rate: Option<f64>,
    /// What calibration said that it stays under.
    pub false_reject_bound: Option<f64>,
    /// Share of the defective pictures that the thresholds reject.
    pub recall: Option<f64>,
    /// Image AUROC of the pseudo-validation on unseen families.
    pub unseen_auroc: Option<f64>,
    /// Parameters of the networks.
    pub parameters: Option<f64>,
    /// Operations of a frame in 1e9.
    pub gflop: Option<f64>,
    /// Seconds from the data to the bundle.
    pub fit_seconds: Option<f64>,
    /// Median milliseconds per frame.
    pub frame_ms: Option<f64>,
}

impl Figures {
    /// Those that a test tells.
    pub fn of(row: &evaluate::Row) -> Self {
        Self {
            image_auroc: row.image_auroc,
            image_auroc_low: row.image_auroc_low,
            image_auroc_high: row.image_auroc_high,
            image_ap: row.image_ap,
            pixel_auroc: row.pixel_auroc,
            pixel_ap: row.pixel_ap,
            pro: row.pro,
            false_reject_rate: row.false_reject_rate,
            recall: row.recall,
            frame_ms: row.frame_ms,
            ..Self::default()
        }
    }

    /// Every figure by its place, so that one loop prints or averages them all.
    fn places(&mut self) -> [&mut Option<f64>; 15] {
        [
            &mut self.image_auroc,
            &mut self.image_auroc_low,
            &mut self.image_auroc_high,
            &mut self.image_ap,
            &mut self.pixel_auroc,
            &mut self.pixel_ap,
            &mut self.pro,
            &mut self.false_reject_rate,
            &mut self.false_reject_bound,
            &mut self.recall,
            &mut self.unseen_auroc,
            &mut self.parameters,
            &mut self.gflop,
            &mut self.fit_seconds,
            &mut self.frame_ms,
        ]
    }

    /// Means of what every one has; the interval becomes the least and the most.
    fn mean(all: &[Self]) -> Self {
        let mut mean = Self::default();
        for (place, value) in mean.places().into_iter().enumerate() {
            let values: Option<Vec<f64>> = all.iter().map(|figures| *figures.clone().places()[place]).collect();
            *value = values.filter(|values| !values.is_empty()).map(|v| v.iter().sum::<f64>() / v.len() as f64);
        }
        let ends = |of: fn(f64, f64) -> f64| all.iter().filter_map(|figures| figures.image_auroc).reduce(of);
        let spread = mean.image_auroc.is_some();
        mean.image_auroc_low = ends(f64::min).filter(|_| spread);
        mean.image_auroc_high = ends(f64::max).filter(|_| spread);
        mean
    }

    fn cells(&self) -> String {
        let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        let percent = |value: Option<f64>| value.map_or("-".into(), |v| format!("{:.1} %", 100.0 * v));
        let interval = match (self.image_auroc_low, self.image_auroc_high) {
            (Some(low), Some(high)) => format!(" ({low:.3} to {high:.3})"),
            _ => String::new(),
        };
        [
            number(self.image_auroc, 4) + &interval,
            number(self.image_ap, 4),
            number(self.pixel_auroc, 4),
            number(self.pixel_ap, 4),
            number(self.pro, 4),
            percent(self.false_reject_rate),
            percent(self.false_reject_bound),
            percent(self.recall),
            number(self.unseen_auroc, 4),
            number(self.parameters.map(|count| count / 1e6), 2),
            number(self.gflop, 2),
            number(self.fit_seconds, 0),
            number(self.frame_ms, 1),
        ]
        .join(" | ")
    }
}

/// Heads of [`Figures::cells`], after that of the image AUROC.
const HEADS: &str = "image AP | pixel AUROC | pixel AP | PRO | false rejects | bound | recall | unseen AUROC | M parameters | \
                     GFLOP | fit s | frame ms";

/// What a table says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Header {
    /// Version of dsad.
    pub version: String,
    /// Revision of its source, or `unknown`.
    pub revision: String,
    /// Where it ran.
    pub device: String,
    /// When it was written.
    pub date: String,
    /// The command line of the sweep.
    pub command: String,
}

/// The mean of several lines of a variant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mean {
    /// The variant.
    pub variant: String,
    /// Over what.
    pub over: String,
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Whether reconstructions started from noise.
    pub from_noise: bool,
    /// The means.
    #[serde(flatten)]
    pub figures: Figures,
}

/// All rows that have ended so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// What it says of itself.
    pub header: Header,
    /// Rows that the sweep has, with those that have not ended.
    pub planned: usize,
    /// Lines of all rows, failed ones among them.
    pub lines: Vec<Line>,
    /// Means per variant: over the sets, and over the seeds of a set.
    pub means: Vec<Mean>,
    /// Rows that failed.
    pub failed: usize,
    /// The commands of every row, to repeat it by hand.
    pub commands: Vec<String>,
}

impl Table {
    /// A table of rows, in the order in which they were planned.
    pub fn new(header: Header, planned: usize, rows: &[&Row]) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        for row in rows {
            lines.extend(row.lines.iter().cloned());
            lines.extend(row.error.as_ref().map(|error| Line {
                variant: row.request.variant.clone(),
                set: row.request.sets.join(", "),
                seed: row.request.seed,
                steps: None,
                from_noise: false,
                figures: Figures::default(),
                error: Some(error.clone()),
            }));
        }
        Self {
            header,
            planned,
            means: means(&lines),
            lines,
            failed: rows.iter().filter(|row| row.error.is_some()).count(),
            commands: rows.iter().flat_map(|row| row.commands.iter().cloned()).collect(),
        }
    }

    /// The table to read.
    pub fn markdown(&self) -> String {
        let Header { version, revision, device, date, command } = &self.header;
        let mut out = format!("dsad {version}, revision {revision}, on {device}, {date}\n\n`{command}`\n\n");
        out += &format!("| variant | set | seed | steps | image AUROC (95 %) | {HEADS} |\n|{}\n", "---|".repeat(17));
        for line in &self.lines {
            let Line { variant, set, seed, .. } = line;
            let steps = steps_text(line.steps, line.from_noise);
            let _ = match &line.error {
                // A bar or a line break would end the cell.
                Some(error) => writeln!(
                    out,
                    "| {variant} | {set} | {seed} | - | failed: {} |{}",
                    error.replace('|', "/").replace('\n', " "),
                    " |".repeat(12)
                ),
                None => writeln!(out, "| {variant} | {set} | {seed} | {steps} | {} |", line.figures.cells()),
            };
        }
        if !self.means.is_empty() {
            out += &format!(
                "\nMeans\n\n| variant | over | steps | image AUROC (least to most) | {HEADS} |\n|{}\n",
                "---|".repeat(16)
            );
        }
        for Mean { variant, over, steps, from_noise, figures } in &self.means {
            let _ = writeln!(out, "| {variant} | {over} | {} | {} |", steps_text(*steps, *from_noise), figures.cells());
        }
        out
    }

    /// Writes `table.md`, with the commands of every row below, and `table.json`.
    ///
    /// # Errors
    /// Anything that the disk refuses.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let commands = self.commands.join("\n");
        let markdown = format!("{}\nTo repeat a row\n\n```\n{commands}\n```\n", self.markdown());
        for (name, bytes) in [("table.md", markdown.into_bytes()), ("table.json", serde_json::to_vec_pretty(self)?)] {
            write_whole(&folder.join(name), &bytes).with_context(|| format!("{name} in {}", folder.display()))?;
        }
        Ok(())
    }
}

fn steps_text(steps: Option<u32>, from_noise: bool) -> String {
    let steps = steps.map_or("-".into(), |steps| steps.to_string());
    if from_noise { format!("{steps} from noise") } else { steps }
}

/// Over the seeds of each set that has several, then over the sets: of each its mean, so that a set with more seeds weighs no
/// more.
fn means(lines: &[Line]) -> Vec<Mean> {
    // Variants in the order of the table.
    let mut groups: Vec<(&Line, BTreeMap<&str, Vec<Figures>>)> = Vec::new();
    for line in lines.iter().filter(|line| line.error.is_none()) {
        let same = |other: &&Line| {
            (&other.variant, other.steps, other.from_noise) == (&line.variant, line.steps, line.from_noise)
        };
        let at = groups.iter().position(|(first, _)| same(first)).unwrap_or_else(|| {
            groups.push((line, BTreeMap::new()));
            groups.len() - 1
        });
        groups[at].1.entry(&line.set).or_default().push(line.figures);
    }
    let mut means = Vec::new();
    for (first, sets) in groups {
        let mean = |over: String, all: &[Figures]| Mean {
            variant: first.variant.clone(),
            over,
            steps: first.steps,
            from_noise: first.from_noise,
            figures: Figures::mean(all),
        };
        for (set, seeds) in sets.iter().filter(|(_, seeds)| seeds.len() > 1) {
            means.push(mean(format!("{set}, {} seeds", seeds.len()), seeds));
        }
        if sets.len() > 1 {
            let each: Vec<Figures> = sets.values().map(|seeds| Figures::mean(seeds)).collect();
            means.push(mean(format!("{} sets", sets.len()), &each));
        }
    }
    means
}

#[cfg(test)]
mod tests {
    use super::super::row::Request;
    use super::*;

    fn line(variant: &str, set: &str, seed: u64, image_auroc: f64) -> Line {
        let figures = Figures {
            image_auroc: Some(image_auroc),
            image_auroc_low: Some(image_auroc - 0.05),
            image_auroc_high: Some(image_auroc + 0.04),
            pixel_ap: (set == "a").then_some(0.5),
            false_reject_rate: Some(0.014),
            parameters: Some(4.2e6),
            ..Figures::default()
        };
        Line { variant: variant.into(), set: set.into(), seed, steps: Some(2), from_noise: false, figures, error: None }
    }

    fn row(variant: &str, set: &str, seed: u64, lines: Vec<Line>, error: Option<&str>) -> Row {
        let request = Request {
            variant: variant.into(),
            sets: vec![set.into()],
            seed,
            data: "d".into(),
            backbone: None,
            cuda: false,
            parallel: 1,
            dsad: "0".into(),
            fit: None,
        };
        let commands = vec![format!("trainer fit --set {set} --seed {seed}")];
        Row { request, commands, lines, error: error.map(str::to_owned) }
    }

    fn table() -> Table {
        let rows = [
            row("x", "a", 0, vec![line("x", "a", 0, 0.8)], None),
            row("x", "a", 1, vec![line("x", "a", 1, 0.9)], None),
            row("x", "b", 0, vec![line("x", "b", 0, 0.95), Line { from_noise: true, ..line("x", "b", 0, 0.6) }], None),
            row("y", "a", 0, Vec::new(), Some("fit: the loss is NaN | at\nstep 7")),
        ];
        let header = Header {
            version: "0.1.0".into(),
            revision: "abc".into(),
            device: "cpu".into(),
            date: "today".into(),
            command: "trainer sweep".into(),
        };
        Table::new(header, 5, &rows.iter().collect::<Vec<_>>())
    }

    #[test]
    fn known_rows_make_a_known_table() {
        let text = table().markdown();
        let expected = "\
dsad 0.1.0, revision abc, on cpu, today

`trainer sweep`

| variant | set | seed | steps | image AUROC (95 %) | image AP | pixel AUROC | pixel AP | PRO | false rejects | bound | recall | unseen AUROC | M parameters | GFLOP | fit s | frame ms |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
| x | a | 0 | 2 | 0.8000 (0.750 to 0.840) | - | - | 0.5000 | - | 1.4 % | - | - | - | 4.20 | - | - | - |
| x | a | 1 | 2 | 0.9000 (0.850 to 0.940) | - | - | 0.5000 | - | 1.4 % | - | - | - | 4.20 | - | - | - |
| x | b | 0 | 2 | 0.9500 (0.900 to 0.990) | - | - | - | - | 1.4 % | - | - | - | 4.20 | - | - | - |
| x | b | 0 | 2 from noise | 0.6000 (0.550 to 0.640) | - | - | - | - | 1.4 % | - | - | - | 4.20 | - | - | - |
| y | a | 0 | - | failed: fit: the loss is NaN / at step 7 | | | | | | | | | | | | |

Means

| variant | over | steps | image AUROC (least to most) | image AP | pixel AUROC | pixel AP | PRO | false rejects | bound | recall | unseen AUROC | M parameters | GFLOP | fit s | frame ms |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
| x | a, 2 seeds | 2 | 0.8500 (0.800 to 0.900) | - | - | 0.5000 | - | 1.4 % | - | - | - | 4.20 | - | - | - |
| x | 2 sets | 2 | 0.9000 (0.850 to 0.950) | - | - | - | - | 1.4 % | - | - | - | 4.20 | - | - | - |
";
        assert_eq!(text, expected);
    }

    #[test]
    fn failures_are_counted_and_commands_are_kept() {
        let table = table();
        assert_eq!((table.failed, table.planned, table.lines.len(), table.commands.len()), (1, 5, 5, 4));
        let home = tempfile::tempdir().expect("directory");
        table.write(home.path()).expect("writes");
        let text = std::fs::read_to_string(home.path().join("table.md")).expect("reads");
        assert!(text.starts_with(&table.markdown()) && text.contains("trainer fit --set b --seed 0"), "{text}");
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(home.path().join("table.json")).expect("reads")).expect("parses");
        assert_eq!((&json["lines"][0]["image_auroc"], &json["means"][1]["over"]), (&0.8.into(), &"2 sets".into()));
        let first: Line = serde_json::from_value(json["lines"][0].clone()).expect("reads back");
        assert_eq!(first, table.lines[0]);
    }
}
