//! One row: what is asked for, the commands that answer it, and what they said.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::{Figures, Line};
use crate::inspection::calibration::{Calibration, CalibrationEntry};
use crate::inspection::detect::{ClassId, StepChoice, Steps};
use crate::model::profile::Profile;
use crate::trainer::config::TrainConfig;
use crate::trainer::cost::{cost, frame_gflop};
use crate::trainer::evaluate;

/// File of a row that holds its [`Row`].
pub const ROW: &str = "row.json";
/// File of a row that holds the training configuration.
pub const CONFIG: &str = "config.toml";

/// What shapes a row. Step counts to test are no part of it: more of them ask for more tests, not for another fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Name of the variant.
    pub variant: String,
    /// Its sets; several are one bundle.
    pub sets: Vec<String>,
    /// Seed of everything.
    pub seed: u64,
    /// The folder of sets.
    pub data: PathBuf,
    /// The backbone's weights, where they are not those that ship.
    pub backbone: Option<PathBuf>,
    /// Whether it runs on a GPU; on which one makes no difference.
    pub cuda: bool,
    /// Rows side by side on a device: minutes bring fewer steps when they are shared.
    pub parallel: usize,
    /// Version of dsad.
    pub dsad: String,
    /// How it is fitted; absent is the yardstick.
    pub fit: Option<Fit>,
}

/// How a row is fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// The size.
    pub profile: Profile,
    /// The whole training configuration.
    pub config: TrainConfig,
    /// How long it trains.
    pub budget: Budget,
    /// Networks to start from, or `none`; absent: those that ship.
    pub base: Option<String>,
}

/// How long a fit trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// So many minutes.
    Minutes(f64),
    /// So many steps per stage.
    StageSteps(usize),
}

/// A row to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What shapes it.
    pub request: Request,
    /// Step counts to test.
    pub steps: Vec<Steps>,
    /// Whether they are tested from noise as well.
    pub from_noise: bool,
}

/// A row as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What it was asked for.
    pub request: Request,
    /// The command lines that ran, to do it again by hand.
    pub commands: Vec<String>,
    /// The figures: a line per set and test.
    pub lines: Vec<Line>,
    /// Why there are no more of them.
    pub error: Option<String>,
}

/// One command of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Stem of the files that keep its output.
    pub name: String,
    /// Its arguments, without the device.
    pub args: Vec<String>,
}

impl Job {
    /// Where the row lies in the sweep's folder.
    pub fn folder(&self) -> PathBuf {
        let Request { variant, sets, seed, .. } = &self.request;
        let set = if sets.len() > 1 { "together" } else { sets.first().map_or("", String::as_str) };
        Path::new(variant).join(format!("{set}-seed{seed}"))
    }

    /// The row before anything ran.
    pub fn empty(&self) -> Row {
        Row { request: self.request.clone(), commands: Vec::new(), lines: Vec::new(), error: None }
    }

    /// What has to run, in order, for a row in `dir`.
    pub fn commands(&self, dir: &Path) -> Vec<Command> {
        let Request { sets, seed, data, backbone, fit, .. } = &self.request;
        let path = |name: &str| dir.join(name).display().to_string();
        let command = |name: String, verb: &str, flags: &[(&str, String)], backbone: Option<&PathBuf>| {
            let mut args = vec![verb.to_owned(), "--json".into(), "--data".into(), data.display().to_string()];
            args.extend(sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
            for (flag, value) in flags {
                args.extend([(*flag).to_owned(), value.clone()].into_iter().filter(|word| !word.is_empty()));
            }
            args.extend(backbone.iter().flat_map(|path| ["--backbone".into(), path.display().to_string()]));
            Command { name, args }
        };
        let seed = ("--seed", seed.to_string());
        let Some(Fit { profile, budget, base, .. }) = fit else {
            return vec![command("baseline".into(), "baseline", &[seed], backbone.as_ref())];
        };
        let mut flags = vec![
            ("--profile", profile.to_string()),
            ("--config", path(CONFIG)),
            seed,
            match budget {
                Budget::Minutes(minutes) => ("--minutes", minutes.to_string()),
                Budget::StageSteps(steps) => ("--stage-steps", steps.to_string()),
            },
            ("--out", path("bundle")),
        ];
        flags.extend(base.iter().map(|base| ("--base", base.clone())));
        let mut commands = vec![command("fit".into(), "fit", &flags, backbone.as_ref())];
        for (steps, from_noise) in self.tests() {
            let mut flags = vec![("--bundle", path("bundle")), ("--steps", steps.0.to_string())];
            if from_noise {
                flags.push(("--from-noise", String::new()));
            }
            commands.push(command(test_name(steps, from_noise), "test", &flags, None));
        }
        commands
    }

    /// Step counts to test, each as trained and, if asked for, from noise.
    fn tests(&self) -> Vec<(Steps, bool)> {
        let starts: &[bool] = if self.from_noise { &[false, true] } else { &[false] };
        starts.iter().flat_map(|from_noise| self.steps.iter().map(|steps| (*steps, *from_noise))).collect()
    }

    /// The figures, out of what the commands said.
    ///
    /// # Errors
    /// An answer that is missing or not understood.
    pub fn lines(&self, dir: &Path) -> anyhow::Result<Vec<Line>> {
        let Request { variant, seed, fit, .. } = &self.request;
        let line = |set: &str, steps: Option<Steps>, from_noise: bool, figures: Figures| Line {
            variant: variant.clone(),
            set: set.to_owned(),
            seed: *seed,
            steps: steps.map(|steps| steps.0),
            from_noise,
            figures,
            error: None,
        };
        let Some(fit) = fit else {
            let rated = rated(dir, "baseline")?;
            return Ok(rated.iter().map(|row| line(&row.class, None, false, Figures::of(row))).collect());
        };
        let fitted = Fitted::read(dir)?;
        let classes = if self.request.sets.len() > 1 { self.request.sets.len() } else { 0 };
        let model = fit.config.model(fit.profile, classes);
        let [width, height] = fitted.grid;
        let mut lines = Vec::new();
        for (steps, from_noise) in self.tests() {
            let gflop = frame_gflop(&cost(&model, steps.0, width, height));
            for row in rated(dir, &test_name(steps, from_noise))? {
                let class = (classes > 0).then(|| ClassId(row.class.clone()));
                let entry = fitted.calibration.entry(class.as_ref(), StepChoice::Fixed(steps));
                let figures = Figures {
                    false_reject_bound: entry.filter(|_| !from_noise).map(|entry| entry.alpha_bound),
                    unseen_auroc: fitted.unseen,
                    parameters: fitted.parameters,
                    gflop: Some(gflop),
                    fit_seconds: fitted.seconds,
                    ..Figures::of(&row)
                };
                lines.push(line(&row.class, Some(steps), from_noise, figures));
            }
        }
        Ok(lines)
    }
}

fn test_name(steps: Steps, from_noise: bool) -> String {
    format!("test-{}{}", steps.0, if from_noise { "-from-noise" } else { "" })
}

/// What `fit --json` said.
struct Fitted {
    grid: [usize; 2],
    parameters: Option<f64>,
    unseen: Option<f64>,
    seconds: Option<f64>,
    calibration: Calibration,
}

impl Fitted {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let said = output(dir, "fit")?;
        let (first, last) = (said.first().context("fit.json is empty")?, said.last().context("fit.json is empty")?);
        let entries: Vec<CalibrationEntry> =
            serde_json::from_value(last["calibration"].clone()).context("fit.json: calibration")?;
        Ok(Self {
            grid: serde_json::from_value(first["choice"]["grid"].clone()).context("fit.json: choice.grid")?,
            parameters: first["choice"]["parameters"].as_f64(),
            unseen: last["pseudo_unseen_auroc"].as_f64(),
            seconds: last["total_seconds"].as_f64(),
            calibration: Calibration { id: String::new(), entries },
        })
    }
}

/// The JSON lines that a command wrote.
///
/// # Errors
/// A file that cannot be read, or a line that is no JSON.
fn output(dir: &Path, name: &str) -> anyhow::Result<Vec<Value>> {
    let path = dir.join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| path.display().to_string())).collect()
}

/// Whether a command has said its last line.
pub fn is_done(dir: &Path, name: &str) -> bool {
    let last = output(dir, name).ok().and_then(|mut said| said.pop());
    last.is_some_and(|last| if name == "fit" { last["bundle"].is_string() } else { last["class"] == "mean" })
}

/// The metrics of each set that a test wrote; their mean is left out.
fn rated(dir: &Path, name: &str) -> anyhow::Result<Vec<evaluate::Row>> {
    let mut said = output(dir, name)?;
    said.pop();
    ensure!(!said.is_empty(), "{name}.json has no metrics");
    said.into_iter().map(|row| serde_json::from_value(row).with_context(|| format!("{name}.json"))).collect()
}
