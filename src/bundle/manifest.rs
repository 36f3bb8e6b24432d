//! `manifest.json`: what the bundle is, and the hash of every other file.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::error::BundleError;
use crate::inspection::anomaly::Pooling;
use crate::inspection::calibration::Calibration;
use crate::inspection::detect::{ClassId, StepChoice, Steps};
use crate::model::network::MapWeights;
use crate::model::profile::ModelConfig;
use crate::preprocess::spec::PreprocessSpec;

/// How anomaly components become a map, and a map a score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSpec {
    /// Weights of the components.
    pub weights: MapWeights,
    /// Standard deviation of the Gaussian smoothing, in cells of the model grid.
    pub sigma: f64,
    /// From map to score.
    pub pooling: Pooling,
}

/// The format version that this program reads and writes.
pub const FORMAT: u32 = 1;

/// Everything that is known of a model without reading its weights. Never rewritten on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format, [`FORMAT`].
    pub format: u32,
    /// Name of the bundle, carried to every event.
    pub id: String,
    /// Name of the profile that the sizes come from.
    pub profile: String,
    /// Product kinds that the model knows; index + 1 is the row of the class embedding, 0 the null class.
    pub classes: Vec<ClassId>,
    /// Step counts that may be asked for.
    pub steps: Vec<Steps>,
    /// Sizes of the networks and the sampler.
    pub model: ModelConfig,
    /// How sensor bytes become model input.
    pub preprocess: PreprocessSpec,
    /// Smoothing, pooling and weights of the anomaly map.
    pub map: MapSpec,
    /// Thresholds; absent in a bundle whose every verdict is a fault.
    pub calibration: Option<Calibration>,
    /// Number format of the weights in the file.
    pub storage_dtype: NumberFormat,
    /// Number format to compute in, per device.
    pub compute_dtype: ComputeDtype,
    /// Seed of everything that is drawn at run time.
    pub seed: u64,
    /// Pictures with their expected answer, for the self-test.
    pub golden: Vec<Golden>,
    /// Third-party parts.
    pub licences: Vec<Licence>,
    /// Where the bundle comes from.
    pub provenance: Provenance,
    /// blake3 in lower-case hex of every other file, by path relative to the bundle with `/` between the parts.
    pub files: BTreeMap<String, String>,
}

/// Number format of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberFormat {
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

/// Number format to compute in, per device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeDtype {
    /// On the CPU.
    pub cpu: NumberFormat,
    /// On CUDA.
    pub cuda: NumberFormat,
}

/// A picture and what the detector must answer to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// The picture, a listed file.
    pub picture: String,
    /// The expected map, a listed safetensors file with one tensor `map` of shape `[height, width]`.
    pub map: String,
    /// Class to judge with; absent is the null class.
    pub class: Option<ClassId>,
    /// Step count to judge with.
    pub steps: Steps,
    /// Expected score.
    pub score: f32,
    /// Largest allowed absolute difference, of the score and of every map value.
    pub tolerance: f32,
}

/// A third-party part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// What it is.
    pub name: String,
    /// SPDX expression.
    pub spdx: String,
    /// Where it was published.
    pub origin: String,
    /// sha256 in hex of the published file.
    pub sha256: String,
}

/// How the bundle was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of dsad.
    pub dsad: String,
    /// Source revision.
    pub revision: String,
    /// Fingerprint of the training pictures.
    pub dataset: String,
    /// Seed of the training.
    pub seed: u64,
    /// The command line.
    pub command: String,
    /// blake3 in hex of the networks that training started from; absent where it started from fresh weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// When, RFC 3339 in UTC.
    pub created: String,
}

impl Manifest {
    /// Reads a manifest; `path` is only named in errors.
    ///
    /// # Errors
    /// A version other than [`FORMAT`], an unknown or missing key, or values that contradict each other.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, BundleError> {
        /// Read first: a later format may have any other keys, and its version is the clearer message.
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        let invalid = |reason: String| BundleError::ManifestInvalid { path: path.into(), reason };
        let version: Version = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if version.format != u64::from(FORMAT) {
            return Err(BundleError::FormatVersion { path: path.into(), found: version.format, known: FORMAT });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        manifest.check_names(path)?;
        match manifest.problem() {
            Some(reason) => Err(invalid(reason)),
            None => Ok(manifest),
        }
    }

    /// Refuses names that could point outside the bundle.
    pub(super) fn check_names(&self, path: &Path) -> Result<(), BundleError> {
        match self.files.keys().find(|name| !is_plain(name)) {
            Some(name) => Err(BundleError::PathEscape { path: path.into(), name: name.clone() }),
            None => Ok(()),
        }
    }

    /// What contradicts itself, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        let calibrated = self.calibration.as_ref().map_or(&[][..], |calibration| &calibration.entries);
        let golden_files = self.golden.iter().flat_map(|golden| [&golden.picture, &golden.map]);
        if self.id.is_empty() {
            return Some("id: is empty".into());
        }
        if self.steps.is_empty() {
            return Some("steps: is empty, no frame could be judged".into());
        }
        if let Some(steps) = self.steps.iter().find(|steps| steps.0 == 0) {
            return Some(format!("steps: {} is not a step count", steps.0));
        }
        if let Some(problem) = self.model.problem() {
            return Some(format!("model: {problem}"));
        }
        if self.model.classes != self.classes.len() {
            return Some(format!("model: classes: {}, but 'classes' lists {}", self.model.classes, self.classes.len()));
        }
        if let Some((name, hash)) = self.files.iter().find(|(_, hash)| !is_hash(hash)) {
            return Some(format!("files: '{name}': '{hash}' is not a blake3 hash of 64 lower-case hex digits"));
        }
        if let Some(name) = golden_files.into_iter().find(|name| !self.files.contains_key(*name)) {
            return Some(format!("golden: '{name}' is not listed under 'files'"));
        }
        let asked = self.golden.iter().map(|golden| ("golden", &golden.class, StepChoice::Fixed(golden.steps)));
        let judged = calibrated.iter().map(|entry| ("calibration", &entry.class, entry.steps));
        for (key, class, steps) in asked.chain(judged) {
            if let StepChoice::Fixed(steps) = steps
                && !self.steps.contains(&steps)
            {
                return Some(format!("{key}: step count {} is not listed under 'steps'", steps.0));
            }
            if let Some(class) = class.as_ref().filter(|class| !self.classes.contains(class)) {
                return Some(format!("{key}: class '{}' is not listed under 'classes'", class.0));
            }
        }
        if let Some(problem) = self.calibration.as_ref().and_then(Calibration::problem) {
            return Some(format!("calibration: {problem}"));
        }
        for golden in &self.golden {
            if !(golden.tolerance.is_finite() && golden.tolerance >= 0.0 && golden.score.is_finite()) {
                return Some(format!("golden: '{}': score and tolerance must be finite", golden.picture));
            }
        }
        None
    }
}

/// A relative path of portable names only: nothing that leaves the directory, on this system or another.
fn is_plain(name: &str) -> bool {
    let portable = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    let reserved = name == super::MANIFEST || name == super::SIGNATURE;
    let normal = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    // `components` tidies up "a//b", "a/./b" and "a/", which would list one file under two names.
    let tidy = name.split('/').all(|part| !part.is_empty() && part != ".");
    portable && !reserved && normal && tidy
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
