//! The whole journey in one go: from good pictures to a calibrated bundle with a report.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use burn::module::Module;
use burn::store::ModuleRecord;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::batches::BatchSpec;
use super::calibrate::{Calibrated, calibrate_bundle};
use super::checkpoint::{RunDirectory, RunState};
use super::config::TrainConfig;
use super::judge::TrainerClock;
use super::objective::{AutoencoderObjective, DenoiserObjective, Objective, RefineObjective};
use super::pictures::{Picture, picture_tensor};
use super::prototypes::choose_prototypes;
use super::report::{Report, write_report};
use super::select::{Choice, choose};
use super::setup::Setup;
use super::stage::{self, StageSettings};
use super::usage::Stopwatch;
use super::{backbone, export};
use crate::bundle::Bundle;
use crate::bundle::manifest::NumberFormat;
use crate::bundle::weights::{TensorFile, encode_module};
use crate::detector::{DetectorSpec, DiffusionDetector};
use crate::device::Compute;
use crate::inspection::detect::Steps;
use crate::model::network::Network;
use crate::model::profile::{ModelConfig, Profile};
use crate::preprocess::spec::PreprocessSpec;
use crate::synthetic::corrupt::CorruptionFamily;

/// Stages of a run.
const STAGES: usize = 3;

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
    /// The backbone's weights.
    pub backbone: PathBuf,
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
    let asked = json!({
        "profile": request.profile, "config": config, "minutes": request.minutes, "seed": request.seed,
        "stage_steps": request.stage_steps, "preprocess": spec, "augmentations": setup.augmentations(),
        "pictures": data.fingerprint(), "version": env!("CARGO_PKG_VERSION"),
    });
    let (run, state) = RunDirectory::open(&sibling(&request.out, "run")?, &asked, request.fresh)?;
    let mut state = state.unwrap_or_else(|| RunState::new(asked, STAGES));
    let mut model = setup.model.clone();
    let device = &compute.device;
    device.seed(request.seed);
    let mut network = model.init(device).materialize().valid();
    network.features = setup.features.clone();
    // Chosen when the rest is trained, and no part of a checkpoint.
    let prototypes = network.prototypes.take();
    if let Some(saved) = run.tensors(&state) {
        let record = ModuleRecord::load(saved.join("network.bpk")).context("network.bpk")?;
        network = network.try_load_record(record).context("network.bpk")?;
        log::info!("resumes at stage {} step {}", state.stage, state.step);
    }
    if let Some(scale) = state.latent_scale {
        network = network.with_latent_scale(scale);
    }
    network = train(network, setup, request, &run, &mut state, compute, !classes.is_empty())?;
    let mut stopwatch = Stopwatch::start();
    model.latent_scale = network.latent_scale();
    let size = (spec.width, spec.height);
    if let (Some(prototypes), Some(sizes)) = (prototypes, &model.prototypes) {
        let varied = setup.augmentations();
        let rows = choose_prototypes(&network, sizes, &data.train, &varied, model.classes, size, request.seed, device)?;
        network.prototypes = Some(prototypes.with_rows(rows));
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
    Ok(FitResult { bundle, report, choice, calibrated, seconds })
}

/// The step count that choices are made with: 2 if it is listed.
pub fn default_steps(listed: &[Steps]) -> Steps {
    listed.iter().copied().find(|steps| steps.0 == 2).unwrap_or(listed[0])
}

/// `out` with an extension more: what lies beside the bundle.
fn sibling(out: &Path, extension: &str) -> anyhow::Result<PathBuf> {
    let name = out.file_name().with_context(|| format!("--out {}: has no name", out.display()))?;
    Ok(out.with_file_name(format!("{}.{extension}", name.to_string_lossy())))
}

#[allow(clippy::too_many_arguments)]
fn train(
    mut network: Network,
    setup: &Setup,
    request: &FitRequest,
    run: &RunDirectory,
    state: &mut RunState,
    compute: &Compute,
    classes: bool,
) -> anyhow::Result<Network> {
    let config = &request.config;
    let Setup { data, spec, .. } = setup;
    let seconds = request.minutes * 60.0;
    let latent_channels = ModelConfig::of(request.profile, 0).autoencoder.latent_channels;
    let batches = |stage: u64, size: usize, latent_share: f64, defect_share: f64| BatchSpec {
        width: spec.width,
        height: spec.height,
        size,
        defect_share,
        families: CorruptionFamily::TRAINING.to_vec(),
        latent_share,
        latent_channels,
        seed: request.seed.wrapping_mul(0x0100_0193).wrapping_add(stage),
        augmentations: setup.augmentations(),
    };
    let style = ProgressStyle::with_template("{prefix:>12} {wide_bar} {pos}/{len} {msg} [{elapsed}]")?;
    while state.stage < STAGES {
        let (share, rate, batch) = match state.stage {
            0 => (config.autoencoder_share, config.autoencoder_rate, batches(0, config.autoencoder_batch, 0.0, 0.5)),
            1 => (
                config.denoiser_share,
                config.denoiser_rate,
                batches(1, config.denoiser_batch, 0.3, config.defect_share),
            ),
            _ => (config.refine_share, config.refine_rate, batches(2, config.refine_batch, 0.0, config.defect_share)),
        };
        let settings = StageSettings {
            index: state.stage,
            seconds: seconds * share,
            rate,
            weight_decay: config.weight_decay,
            ema_decay: config.ema_decay,
            pictures: &data.train,
            batches: &batch,
            steps: request.stage_steps,
            device: &compute.device,
        };
        let progress = ProgressBar::new(state.total.unwrap_or(0) as u64).with_style(style.clone());
        network = match state.stage {
            0 => {
                let objective = AutoencoderObjective { config };
                progress.set_prefix(objective.name());
                let network = stage::run(&objective, network, &settings, run, state, &progress)?;
                let scale = measure_scale(&network, &data.train, spec, compute)?;
                state.latent_scale = Some(scale);
                network.with_latent_scale(scale)
            }
            1 => {
                let objective = DenoiserObjective { classes };
                progress.set_prefix(objective.name());
                stage::run(&objective, network, &settings, run, state, &progress)?
            }
            _ if network.refine.is_some() => {
                let objective = RefineObjective { config, classes };
                progress.set_prefix(objective.name());
                stage::run(&objective, network, &settings, run, state, &progress)?
            }
            _ => network,
        };
        progress.finish_and_clear();
        let loss = state.losses[state.stage].last().map_or(f64::NAN, |(_, loss)| *loss);
        log::info!("stage {} of {STAGES}: {} steps, loss {loss:.4}", state.stage + 1, state.step);
        state.stage += 1;
        state.step = 0;
        state.total = None;
        run.save(state, |path| stage::write(network.clone(), path, "network.bpk"))?;
    }
    Ok(network)
}

/// One over the standard deviation of the latents of some training pictures.
fn measure_scale(
    network: &Network,
    pictures: &[Picture],
    spec: &PreprocessSpec,
    compute: &Compute,
) -> anyhow::Result<f64> {
    let (mut sum, mut squares, mut count) = (0.0f64, 0.0f64, 0.0f64);
    for picture in pictures.iter().step_by(pictures.len().div_ceil(32).max(1)) {
        let image = picture_tensor(&picture.rgb, spec.width, spec.height, &compute.device);
        for value in network.autoencoder.encode(image, 1.0).try_into_vec_as::<f32>()? {
            sum += f64::from(value);
            squares += f64::from(value).powi(2);
            count += 1.0;
        }
    }
    let deviation = (squares / count - (sum / count).powi(2)).max(0.0).sqrt();
    ensure!(
        deviation.is_finite() && deviation > 1e-6,
        "the autoencoder gives the same latent for every picture; train longer with --minutes"
    );
    Ok(1.0 / deviation)
}
