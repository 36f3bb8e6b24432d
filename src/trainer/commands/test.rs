//! `trainer test`: the metrics of a bundle on a data set, by the daemon's own detector and decision.

use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::bundle::Bundle;
use crate::bundle::signature::KeyList;
use crate::config::device::DeviceChoice;
use crate::detector::DiffusionDetector;
use crate::device;
use crate::inspection::decide::decide;
use crate::inspection::detect::{ClassId, Detector, Plan, Steps};
use crate::inspection::verdict::Verdict;
use crate::trainer::dataset::Set;
use crate::trainer::dataset::discover::discover;
use crate::trainer::dataset::mask::load_mask;
use crate::trainer::evaluate::{Judged, Row, evaluate, print};
use crate::trainer::fit::default_steps;
use crate::trainer::judge::TrainerClock;
use crate::trainer::pictures::prepare_file;

/// Arguments of `trainer test`.
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// The bundle
    #[arg(long)]
    bundle: PathBuf,
    /// A set with a test split, or a folder of sets
    #[arg(long)]
    data: PathBuf,
    /// Denoising steps; default 2 if the bundle lists it
    #[arg(long)]
    steps: Option<u32>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// One JSON object a line: a row per class, the mean last
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A bundle or data that cannot be used.
pub fn run(args: &TestArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle, &KeyList::empty())?;
    let compute = device::open(args.device)?;
    let mut detector = DiffusionDetector::load(&bundle, &compute, TrainerClock::start())?;
    detector.self_test(&bundle, args.device)?;
    let steps = args.steps.map_or_else(|| default_steps(&bundle.manifest.steps), Steps);
    ensure!(
        bundle.manifest.steps.contains(&steps),
        "--steps {}: the bundle lists {:?}",
        steps.0,
        bundle.manifest.steps.iter().map(|s| s.0).collect::<Vec<_>>()
    );
    let found = discover(&args.data)?;
    let rows = found
        .sets
        .iter()
        .filter(|set| !set.test.is_empty())
        .map(|set| test(set, &bundle, &mut detector, steps))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!rows.is_empty(), "{}: no set has a test split (test/good, test/DEFECT)", args.data.display());
    print(&rows, args.json)
}

fn test(set: &Set, bundle: &Bundle, detector: &mut DiffusionDetector, steps: Steps) -> anyhow::Result<Row> {
    let manifest = &bundle.manifest;
    let class = ClassId(set.name.clone());
    let plan = Plan { steps, class: manifest.classes.contains(&class).then_some(class) };
    let mut judged = Vec::with_capacity(set.test.len());
    for sample in &set.test {
        let started = std::time::Instant::now();
        let prepared = match prepare_file(&sample.path, &manifest.preprocess) {
            Ok(prepared) => prepared,
            Err(reason) => {
                log::warn!("left out: {}: {reason}", sample.path.display());
                continue;
            }
        };
        let detection = detector.detect(&[prepared], &plan)?.pop().context("one detection per frame")?;
        let decision = decide(&detection, &plan, manifest.calibration.as_ref(), 0.5);
        let frame_ms = started.elapsed().as_secs_f64() * 1e3;
        let mask = sample.mask.as_deref().map(|path| load_mask(path, &manifest.preprocess)).transpose();
        judged.push(Judged {
            score: detection.score.0,
            map: detection.map,
            defective: sample.defect.is_some(),
            mask: mask.map_err(anyhow::Error::msg)?,
            rejected: match decision.verdict {
                Verdict::Pass => Some(false),
                Verdict::Fail => Some(true),
                Verdict::Fault(_) => None,
            },
            frame_ms,
        });
    }
    Ok(evaluate(&set.name, &judged))
}
