//! The whole journey in one go: from good pictures to a calibrated bundle with a report.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::base::Base;
use super::calibrate::{Calibrated, calibrate_bundle};
use super::config::TrainConfig;
use super::judge::TrainerClock;
use super::prototypes::choose_prototypes;
use super::report::{Report, write_report};
use super::select::{Choice, choose};
use super::setup::Setup;
use super::stages::Stages;
use super::usage::Stopwatch;
use super::{backbone, export};
use crate::bundle::Bundle;
use crate::bundle::manifest::NumberFormat;
use crate::bundle::weights::{TensorFile, encode_module};
use crate::detector::{DetectorSpec, DiffusionDetector};
use crate::device::{Compute, pooled};
use crate::inspection::detect::Steps;
use crate::inspection::tiles::TileGrid;
use crate::model::network::Network;
use crate::model::profile::Profile;

/// What a fit is asked for.
#[derive(Debug, Clone)]
pub struct FitRequest {
    /// The size.
    pub profile: Profile,
    /// How it is trained.
    pub config: TrainConfig,
    /// Where the bundle goes.
    pub out: PathBuf,
    /// Minutes of training, warm-up of the device not counted.
    pub minutes: f64,
    /// Seed of everything.
    pub seed: u64,
    /// Start again even if there is something to resume.
    pub fresh: bool,
    /// Train on good pictures that are unlike all the others, too.
    pub keep_outliers: bool,
    /// How parts are cut that are larger than the model's input.
    pub tiles: Option<TileGrid>,
    /// The backbone's weights.
    pub backbone: PathBuf,
    /// Networks to start from instead of fresh weights.
    pub base: Option<PathBuf>,
    /// A fixed number of steps per stage instead of the time budget.
    pub stage_steps: Option<usize>,
    /// The command line, for the record.
    pub command: String,
}

/// What a fit ended with.
#[derive(Debug)]
pub struct FitResult {
    /// The bundle.
    pub bundle: Bundle,
    /// The report's file.
    pub report: PathBuf,
    /// The choices and their pseudo-validation.
    pub choice: Choice,
    /// How the thresholds were obtained.
    pub calibrated: Calibrated,
    /// Seconds per stage.
    pub seconds: Vec<f64>,
    /// Seconds of everything; of a run that was resumed, training counts over all its parts, the rest in its last.
    pub total_seconds: f64,
}

/// Fits a bundle to good pictures.
///
/// The same request on the same `out` resumes a run that was killed.
///
/// # Errors
/// No usable picture, another request's run in the way, a device or a disk that refuses.
pub fn fit(setup: &Setup, request: &FitRequest, compute: &Compute) -> anyhow::Result<FitResult> {
    let Setup { data, spec, classes, .. } = setup;
    let config = &request.config;
    let varied = setup.augmentations();
    let base = request.base.as_deref().map(|path| Base::open(path, request.profile)).transpose()?;
    let asked = json!({
        "profile": request.profile, "config": config, "minutes": request.minutes, "seed": request.seed,
        "stage_steps": request.stage_steps, "preprocess": spec, "augmentations": varied,
        "pictures": data.fingerprint(), "version": env!("CARGO_PKG_VERSION"),
        "base": base.as_ref().map(|base| &base.hash),
    });
    let mut model = setup.model.clone();
    let device = &compute.device;
    let size = (spec.width, spec.height);
    let stages = Stages {
        model: &model,
        config,
        size,
        minutes: request.minutes,
        stage_steps: request.stage_steps,
        seed: request.seed,
        pictures: &data.train,
        augmentations: &varied,
        compute,
    };
    let run = sibling(&request.out, "run")?;
    let train = || stages.run(&run, asked, request.fresh, setup.features.clone(), base.as_ref());
    let (mut network, run, state) = pooled(device, train)?;
    let mut stopwatch = Stopwatch::start();
    model.latent_scale = network.latent_scale();
    if let Some(sizes) = &model.prototypes {
        let (rows, metric) =
            choose_prototypes(&network, sizes, &data.train, &varied, model.classes, size, request.seed, device)?;
        let prototypes = sizes.init(model.backbone.channels(), model.classes, device);
        network.prototypes = Some(prototypes.with_rows(rows, metric));
    }

    // From here on with the weights as they will be stored: what is measured is what ships.
    let weights = encode_module(&network, NumberFormat::F16, Path::new("weights"))?;
    let stored = || -> anyhow::Result<Network> {
        let file = TensorFile::from_bytes(weights.clone(), Path::new("weights"))?;
        Ok(file.load_into(model.init(device), NumberFormat::F32)?)
    };
    let network = stored()?;
    let steps = default_steps(&config.steps);
    log::info!("choosing map weights on {} held-out good pictures", data.select.len());
    stopwatch.lap("prototypes");
    let choice = choose(&network, &data.select, !classes.is_empty(), size, steps.0, request.seed, device)?;
    let detector_spec = DetectorSpec {
        classes: classes.clone(),
        map: choice.map,
        seed: request.seed,
        latent_channels: model.autoencoder.latent_channels,
        normalisation: spec.normalisation,
    };
    stopwatch.lap("choosing the map");
    let mut detector =
        DiffusionDetector::new(stored()?, detector_spec, device, NumberFormat::F32, TrainerClock::start());
    let calibrated = calibrate_bundle(&mut detector, &data.calibrate, classes, &config.steps, spec, None)?;
    stopwatch.lap("thresholds");
    let bundle = export::export(export::Export {
        out: &request.out,
        profile: request.profile.to_string(),
        listed: &config.steps,
        seed: request.seed,
        command: request.command.clone(),
        base: base.as_ref().map(|base| base.hash.clone()),
        licences: vec![backbone::licence()],
        notice: backbone::notice(),
        model: &model,
        spec,
        map: choice.map,
        calibrated: &calibrated,
        classes,
        weights,
        golden: &data.select,
        fingerprint: data.fingerprint(),
        detector: &mut detector,
        steps,
    })?;
    stopwatch.lap("bundle");
    let report = sibling(&request.out, "report.html")?;
    write_report(
        &report,
        &Report {
            request,
            setup,
            state: &state,
            choice: &choice,
            calibrated: &calibrated,
            bundle: &bundle,
            laps: &stopwatch.laps,
            compute,
        },
    )?;
    let seconds = state.seconds.clone();
    run.remove()?;
    let total_seconds =
        setup.seconds + seconds.iter().sum::<f64>() + stopwatch.laps.iter().map(|(_, seconds)| seconds).sum::<f64>();
    Ok(FitResult { bundle, report, choice, calibrated, seconds, total_seconds })
}

/// The step count that choices are made with: 2 if it is listed.
pub fn default_steps(listed: &[Steps]) -> Steps {
    listed.iter().copied().find(|steps| steps.0 == 2).unwrap_or(listed[0])
}

/// `out` with an extension more: what lies beside the bundle.
pub(super) fn sibling(out: &Path, extension: &str) -> anyhow::Result<PathBuf> {
    let name = out.file_name().with_context(|| format!("--out {}: has no name", out.display()))?;
    Ok(out.with_file_name(format!("{}.{extension}", name.to_string_lossy())))
}
