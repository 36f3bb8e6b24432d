//! The whole journey in one go: from good pictures to a calibrated bundle with a report.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use burn::tensor::Device;
use serde_json::json;

use super::base::Base;
use super::calibrate::{Calibrated, calibrate_bundle};
use super::config::TrainConfig;
use super::dataset::{Set, Skipped};
use super::judge::TrainerClock;
use super::pictures::{Picture, Split, load, split};
use super::prototypes::choose_prototypes;
use super::report::{Report, write_report};
use super::select::{Choice, choose};
use super::stages::Stages;
use super::{backbone, export, outliers};
use crate::bundle::Bundle;
use crate::bundle::manifest::NumberFormat;
use crate::bundle::weights::{TensorFile, encode_module};
use crate::detector::{DetectorSpec, DiffusionDetector};
use crate::device::Compute;
use crate::inspection::detect::{ClassId, Steps};
use crate::model::features::FeatureExtractor;
use crate::model::network::Network;
use crate::model::profile::{ModelConfig, Profile};
use crate::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};

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
}

/// Good pictures of all sets, divided.
struct Data {
    train: Vec<Picture>,
    select: Vec<Picture>,
    calibrate: Vec<Vec<Picture>>,
}

/// Fits a bundle to the good pictures of `sets`.
///
/// The same request on the same `out` resumes a run that was killed.
///
/// # Errors
/// No usable picture, another request's run in the way, a device or a disk that refuses.
pub fn fit(
    sets: &[Set],
    mut skipped: Vec<Skipped>,
    remarks: &[String],
    request: &FitRequest,
    compute: &Compute,
) -> anyhow::Result<FitResult> {
    let config = &request.config;
    let spec = PreprocessSpec {
        width: config.width,
        height: config.height,
        geometry: Geometry::Stretch,
        normalisation: Normalisation::SymmetricOne,
        sketch: SketchPlane::None,
    };
    // One product needs no class; several make a class-conditional bundle with a null class.
    let classes: Vec<ClassId> =
        if sets.len() > 1 { sets.iter().map(|set| ClassId(set.name.clone())).collect() } else { Vec::new() };
    let base = request.base.as_deref().map(|path| Base::open(path, request.profile)).transpose()?;
    let features = backbone::load(&request.backbone, &compute.device)?;
    let data = read(sets, &spec, request, &features, &compute.device, &mut skipped)?;
    let asked = json!({
        "profile": request.profile, "config": config, "minutes": request.minutes, "seed": request.seed,
        "stage_steps": request.stage_steps, "pictures": fingerprint(&data), "version": env!("CARGO_PKG_VERSION"),
        "base": base.as_ref().map(|base| &base.hash),
    });
    let mut model = ModelConfig::of(request.profile, classes.len());
    let device = &compute.device;
    let stages = Stages {
        model: &model,
        config,
        minutes: request.minutes,
        stage_steps: request.stage_steps,
        seed: request.seed,
        pictures: &data.train,
        compute,
    };
    let run = sibling(&request.out, "run")?;
    let (mut network, run, state) = stages.run(&run, asked, request.fresh, features, base.as_ref())?;
    model.latent_scale = network.latent_scale();
    let size = (config.width, config.height);
    if let Some(sizes) = &model.prototypes {
        let rows = choose_prototypes(&network, sizes, &data.train, model.classes, size, request.seed, device)?;
        let prototypes = sizes.init(model.backbone.channels(), model.classes, device);
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
    let choice = choose(&network, &data.select, !classes.is_empty(), size, steps.0, request.seed, device)?;
    let detector_spec = DetectorSpec {
        classes: classes.clone(),
        map: choice.map,
        seed: request.seed,
        latent_channels: model.autoencoder.latent_channels,
        normalisation: spec.normalisation,
    };
    let mut detector =
        DiffusionDetector::new(stored()?, detector_spec, device, NumberFormat::F32, TrainerClock::start());
    let calibrated = calibrate_bundle(&mut detector, &data.calibrate, &classes, &config.steps, &spec, None)?;
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
        spec: &spec,
        map: choice.map,
        calibrated: &calibrated,
        classes: &classes,
        weights,
        golden: &data.select,
        fingerprint: fingerprint(&data),
        detector: &mut detector,
        steps,
    })?;
    let report = sibling(&request.out, "report.html")?;
    write_report(
        &report,
        &Report {
            request,
            sets,
            skipped: &skipped,
            remarks,
            state: &state,
            choice: &choice,
            calibrated: &calibrated,
            bundle: &bundle,
            model: &model,
            select: &data.select,
            calibrate: &data.calibrate,
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
pub(super) fn sibling(out: &Path, extension: &str) -> anyhow::Result<PathBuf> {
    let name = out.file_name().with_context(|| format!("--out {}: has no name", out.display()))?;
    Ok(out.with_file_name(format!("{}.{extension}", name.to_string_lossy())))
}

fn read(
    sets: &[Set],
    spec: &PreprocessSpec,
    request: &FitRequest,
    features: &FeatureExtractor,
    device: &Device,
    skipped: &mut Vec<Skipped>,
) -> anyhow::Result<Data> {
    let mut data = Data { train: Vec::new(), select: Vec::new(), calibrate: Vec::new() };
    for (index, set) in sets.iter().enumerate() {
        let mut pictures = load(&set.train, index, spec, skipped);
        if !request.keep_outliers {
            let (kept, left) = outliers::remove(pictures, features, (spec.width, spec.height), device)?;
            pictures = kept;
            skipped.extend(left);
        }
        let count = pictures.len();
        ensure!(
            count >= 2,
            "{}: {count} usable good pictures of {}; at least 2 are needed, one to train on and one to calibrate with",
            set.name,
            set.train.len()
        );
        let Split { train, select, calibrate } = split(pictures, request.seed ^ index as u64);
        log::info!(
            "{}: {} good pictures to train on, {} to choose with, {} to calibrate with",
            set.name,
            train.len(),
            select.len(),
            calibrate.len()
        );
        data.train.extend(train);
        data.select.extend(select);
        data.calibrate.push(calibrate);
    }
    for Skipped { path, reason } in skipped.iter() {
        log::warn!("left out: {}: {reason}", path.display());
    }
    if data.train.is_empty() {
        bail!("no usable good picture");
    }
    Ok(data)
}

fn fingerprint(data: &Data) -> String {
    let mut hasher = blake3::Hasher::new();
    for picture in data.train.iter().chain(&data.select).chain(data.calibrate.iter().flatten()) {
        hasher.update(&picture.rgb);
    }
    hasher.finalize().to_hex().to_string()
}
