//! Writing the bundle: weights, manifest, golden pictures with their expected maps, notices.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;

use super::calibrate::Calibrated;
use super::pictures::Picture;
use crate::bundle::manifest::{ComputeDtype, FORMAT, Golden, Licence, Manifest, MapSpec, NumberFormat, Provenance};
use crate::bundle::weights::encode_tensor;
use crate::bundle::{Bundle, WEIGHTS};
use crate::detector::{DiffusionDetector, prepare_picture};
use crate::inspection::detect::{ClassId, Detector, Plan, StepChoice, StepPlan, Steps};
use crate::model::profile::ModelConfig;
use crate::preprocess::spec::PreprocessSpec;
use crate::render::encode;

/// Golden pictures per bundle, at most.
const GOLDEN: usize = 3;
/// Allowed difference of the self-test, as a share of the image threshold: another processor rounds otherwise.
const TOLERANCE: f32 = 0.02;

/// Everything that a bundle is made of.
pub struct Export<'a> {
    /// The bundle's directory.
    pub out: &'a Path,
    /// Name of the profile that the sizes come from.
    pub profile: String,
    /// Step counts that may be asked for.
    pub listed: &'a [Steps],
    /// Seed of the training, and of what is drawn at run time.
    pub seed: u64,
    /// The command line, for the record.
    pub command: String,
    /// blake3 of the base that training started from.
    pub base: Option<String>,
    /// Third-party weights.
    pub licences: Vec<Licence>,
    /// `NOTICE.txt`.
    pub notice: String,
    /// The networks' sizes, with the measured latent scale.
    pub model: &'a ModelConfig,
    /// The model's input.
    pub spec: &'a PreprocessSpec,
    /// Weights, smoothing and pooling of the map.
    pub map: MapSpec,
    /// The thresholds.
    pub calibrated: &'a Calibrated,
    /// Classes in the order of their embeddings.
    pub classes: &'a [ClassId],
    /// The weights' file.
    pub weights: Vec<u8>,
    /// Good pictures to take golden ones from.
    pub golden: &'a [Picture],
    /// Hash over the training pictures.
    pub fingerprint: String,
    /// The detector with these weights.
    pub detector: &'a mut DiffusionDetector,
    /// The step count of the self-test.
    pub steps: Steps,
}

/// Writes the bundle, replacing one that is there.
///
/// # Errors
/// What the detector or the disk says.
pub fn export(export: Export<'_>) -> anyhow::Result<Bundle> {
    let mut files = BTreeMap::from([(WEIGHTS.to_owned(), export.weights)]);
    files.insert("NOTICE.txt".into(), export.notice.into_bytes());
    let mut golden = Vec::new();
    // One of each class, spread over the pictures.
    let every = (export.golden.len() / GOLDEN).max(1);
    for (index, picture) in export.golden.iter().step_by(every).take(GOLDEN).enumerate() {
        let (width, height) = (export.spec.width, export.spec.height);
        let bytes = encode::png(&picture.rgb, width, height)?;
        let class = (!export.classes.is_empty()).then(|| export.classes[picture.set].clone());
        let prepared = prepare_picture(&bytes, &export.spec.of_a_tile()).map_err(anyhow::Error::msg)?;
        let plan = Plan::new(StepPlan::Fixed(export.steps), class.clone());
        let detection = export.detector.detect(&[prepared], &plan)?.remove(0);
        let entry = export.calibrated.calibration.entry(class.as_ref(), StepChoice::Fixed(export.steps));
        let threshold = entry.context("the steps of the self-test are calibrated")?.image_threshold;
        let (name, map) = (format!("golden/{index}.png"), format!("golden/{index}.map.safetensors"));
        let values = &detection.map.values;
        files.insert(map.clone(), encode_tensor("map", &[height, width], values, Path::new(&map))?);
        files.insert(name.clone(), bytes);
        golden.push(Golden {
            picture: name,
            map,
            class,
            steps: export.steps,
            score: detection.score.0,
            tolerance: threshold * TOLERANCE,
        });
    }
    let manifest = Manifest {
        format: FORMAT,
        id: export.out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        profile: export.profile,
        classes: export.classes.to_vec(),
        steps: export.listed.to_vec(),
        model: export.model.clone(),
        preprocess: export.spec.clone(),
        map: export.map,
        calibration: Some(export.calibrated.calibration.clone()),
        storage_dtype: NumberFormat::F16,
        compute_dtype: ComputeDtype { cpu: NumberFormat::F32, cuda: NumberFormat::F32 },
        seed: export.seed,
        golden,
        licences: export.licences,
        provenance: Provenance {
            dsad: env!("CARGO_PKG_VERSION").into(),
            revision: revision(),
            dataset: export.fingerprint,
            seed: export.seed,
            command: export.command,
            base: export.base,
            created: timestamp(),
        },
        files: BTreeMap::new(),
    };
    Ok(Bundle::create(export.out, manifest, &files, true)?)
}

/// Revision of the source that this program was built from, if it was built from a repository.
pub fn revision() -> String {
    option_env!("DSAD_REVISION").unwrap_or("unknown").to_owned()
}

/// Now, RFC 3339 in UTC.
pub fn timestamp() -> String {
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    let seconds = std::time::SystemTime::now().duration_since(epoch).map_or(0, |since| since.as_secs());
    crate::inspection::time::rfc3339(seconds.saturating_mul(1_000_000_000))
}
