//! `trainer test`: the metrics of a bundle, or of a model that is not one yet, on a data set, by the daemon's own detector
//! and decision.

use std::path::PathBuf;

use anyhow::ensure;

use crate::bundle::Bundle;
use crate::bundle::signature::KeyList;
use crate::config::device::DeviceChoice;
use crate::detector::DiffusionDetector;
use crate::device;
use crate::inspection::calibration::Calibration;
use crate::inspection::detect::{ClassId, StepChoice, Steps};
use crate::inspection::tiles::TileGrid;
use crate::preprocess::spec::PreprocessSpec;
use crate::trainer::dataset::discover::discover;
use crate::trainer::evaluate::{Protocol, evaluate, print, write};
use crate::trainer::fit::default_steps;
use crate::trainer::gallery;
use crate::trainer::judge::{Rules, TrainerClock, judge};
use crate::trainer::paper::config::{GridArgs, parse_device};
use crate::trainer::paper::export::grid;
use crate::trainer::paper::run::{State, best};
use crate::trainer::paper::{model, validate};

/// Denoising steps of a model without a bundle, as in the paper.
const PAPER_STEPS: u32 = 10;

/// Arguments of `trainer test`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("model").required(true))]
pub struct TestArgs {
    /// The bundle
    #[arg(long, group = "model")]
    bundle: Option<PathBuf>,
    /// A run of `trainer train` (its best checkpoint is taken), one checkpoint, or a model of `trainer build-model`
    #[arg(long, alias = "resume_path", group = "model")]
    resume_path: Option<PathBuf>,
    /// A set with a test split, or a folder of sets
    #[arg(long)]
    data: PathBuf,
    /// Only this set of a folder of sets, by name; may be given several times
    #[arg(long = "set")]
    sets: Vec<String>,
    /// Denoising steps, or auto; by default 2 of a bundle that lists it, 10 of a model
    #[arg(long)]
    steps: Option<StepChoice>,
    /// A comparison: reconstructions start from noise, as in naive DDIM, with the same weights and without thresholds
    #[arg(long, requires = "bundle")]
    from_noise: bool,
    /// Cut pictures otherwise than the bundle says, as 8x8,20; it judges only with thresholds for that (`trainer calibrate`)
    #[arg(long)]
    tiles: Option<TileGrid>,
    /// How ground truth becomes metrics
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,
    /// Folder for metrics.json, metrics.csv, metrics.txt and five pictures per image (twice the time)
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    grid: GridArgs,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: DeviceChoice,
    /// One JSON object a line: a row per class, the mean last
    #[arg(long)]
    json: bool,
}

/// What is tested.
struct Subject {
    detector: DiffusionDetector,
    preprocess: PreprocessSpec,
    classes: Vec<ClassId>,
    calibration: Option<Calibration>,
    steps: StepChoice,
}

impl TestArgs {
    fn subject(&self) -> anyhow::Result<Subject> {
        let compute = device::open(self.device)?;
        if let Some(path) = &self.resume_path {
            let from = best(path)?;
            let (width, height) = grid(State::read(&from)?.as_ref(), self.grid.asked())?;
            let (config, network) = model::read(&from, &compute.device)?;
            let preprocess = model::preprocess(&config, width, height);
            if let Some(problem) = preprocess.problem() {
                anyhow::bail!("{problem}");
            }
            let detector = validate::detector(network, &config, &preprocess, 0, &compute.device);
            let steps = self.steps.unwrap_or(StepChoice::Fixed(Steps(PAPER_STEPS)));
            ensure!(steps != StepChoice::Auto, "--steps auto: a model has no thresholds; export a bundle first");
            return Ok(Subject { detector, preprocess, classes: Vec::new(), calibration: None, steps });
        }
        let bundle = Bundle::open(self.bundle.as_deref().unwrap_or_else(|| "".as_ref()), &KeyList::empty())?;
        let mut detector = DiffusionDetector::load(&bundle, &compute, TrainerClock::start())?;
        detector.self_test(&bundle, self.device)?;
        let manifest = bundle.manifest;
        let steps = self.steps.unwrap_or_else(|| StepChoice::Fixed(default_steps(&manifest.steps)));
        let known = match steps {
            StepChoice::Fixed(steps) => manifest.steps.contains(&steps),
            StepChoice::Auto => manifest.calibration.is_some(),
        };
        ensure!(
            known,
            "--steps {steps}: the bundle lists {:?}",
            manifest.steps.iter().map(|s| s.0).collect::<Vec<_>>()
        );
        if self.from_noise {
            ensure!(steps != StepChoice::Auto, "--steps auto: there are no thresholds for --from-noise; give a number");
            ensure!(
                !manifest.model.sampler.needs_noise(),
                "--from-noise: this bundle's sampler starts from noise in any case; test it without the flag"
            );
            detector = detector.from_noise();
        }
        Ok(Subject {
            detector,
            preprocess: cut(manifest.preprocess, self.tiles),
            classes: manifest.classes,
            calibration: manifest.calibration.filter(|_| !self.from_noise),
            steps,
        })
    }
}

/// What a bundle says, with other tiles where they are asked for.
pub(super) fn cut(spec: PreprocessSpec, tiles: Option<TileGrid>) -> PreprocessSpec {
    PreprocessSpec { tiles: tiles.or(spec.tiles), ..spec }
}

/// Runs the verb.
///
/// # Errors
/// A bundle, a model or data that cannot be used.
pub fn run(args: &TestArgs) -> anyhow::Result<()> {
    let mut subject = args.subject()?;
    let rules = Rules {
        preprocess: &subject.preprocess,
        classes: &subject.classes,
        calibration: subject.calibration.as_ref(),
        steps: subject.steps,
        protocol: args.protocol,
    };
    let mut rows = Vec::new();
    for set in discover(&args.data)?.only(&args.sets)?.sets.iter().filter(|set| !set.test.is_empty()) {
        let judged = judge(set, rules, &mut subject.detector)?;
        rows.push(evaluate(&set.name, &judged, args.protocol));
        if let Some(out) = &args.out {
            gallery::write(set, &judged, rules, &subject.detector, out)?;
        }
    }
    ensure!(!rows.is_empty(), "{}: no set has a test split (test/good, test/DEFECT)", args.data.display());
    if let Some(out) = &args.out {
        write(&rows, out)?;
    }
    print(&rows, args.json)
}
