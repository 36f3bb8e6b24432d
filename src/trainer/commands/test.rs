//! `trainer test`: the metrics of a bundle on a data set, by the daemon's own detector and decision.

use std::path::PathBuf;

use anyhow::ensure;

use crate::bundle::Bundle;
use crate::bundle::signature::KeyList;
use crate::config::device::DeviceChoice;
use crate::detector::DiffusionDetector;
use crate::device;
use crate::inspection::detect::Steps;
use crate::trainer::dataset::discover::discover;
use crate::trainer::evaluate::{Protocol, evaluate, print};
use crate::trainer::fit::default_steps;
use crate::trainer::judge::{TrainerClock, judge};

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
    /// How ground truth becomes metrics
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,
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
        .map(|set| {
            let judged = judge(set, &bundle.manifest, &mut detector, steps, args.protocol)?;
            Ok(evaluate(&set.name, &judged, args.protocol))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!rows.is_empty(), "{}: no set has a test split (test/good, test/DEFECT)", args.data.display());
    print(&rows, args.json)
}
