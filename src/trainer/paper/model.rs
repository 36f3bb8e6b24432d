//! A model on disk: what `build-model` makes, `train` starts from and writes, `test` judges and `export` turns into a
//! bundle.
//!
//! ```text
//! model/
//! ├── model.json             sizes of the networks
//! └── weights.safetensors    all parameters, f32
//! ```

use std::path::Path;

use anyhow::{Context, ensure};
use burn::store::{ModuleSnapshot, SafetensorsStore};
use burn::tensor::Device;

use crate::bundle::manifest::MapSpec;
use crate::bundle::weights::load_file;
use crate::inspection::anomaly::Pooling;
use crate::model::features::Backbone;
use crate::model::features::resnet::PixelRange;
use crate::model::guidance::SketchOperator;
use crate::model::network::{MapWeights, Network};
use crate::model::profile::ModelConfig;
use crate::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};

const SIZES: &str = "model.json";
const WEIGHTS: &str = "weights.safetensors";
/// Smoothing of the paper's map, in cells.
const SIGMA: f64 = 5.0;

/// Writes a model into an existing directory.
///
/// # Errors
/// Anything that the disk refuses.
pub fn write(network: &Network, config: &ModelConfig, directory: &Path) -> anyhow::Result<()> {
    let mut store = SafetensorsStore::from_file(directory.join(WEIGHTS)).clear_metadata();
    network.save_into(&mut store).map_err(|error| anyhow::anyhow!("{}: {error}", directory.display()))?;
    Ok(std::fs::write(directory.join(SIZES), serde_json::to_vec_pretty(config)?)?)
}

/// Makes a directory that appears as a whole, filled by `fill`.
///
/// # Errors
/// A directory that exists, or anything that the disk refuses.
pub fn publish(out: &Path, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    ensure!(!out.exists(), "{}: exists already; choose another --out, or remove it", out.display());
    let name = out.file_name().with_context(|| format!("{}: has no name", out.display()))?.to_string_lossy();
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let partial = parent.join(format!(".{name}.partial"));
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    std::fs::create_dir_all(&partial).with_context(|| format!("{}: cannot be made", partial.display()))?;
    fill(&partial)?;
    for entry in std::fs::read_dir(&partial)? {
        std::fs::File::open(entry?.path())?.sync_all()?;
    }
    std::fs::File::open(&partial)?.sync_all()?;
    std::fs::rename(&partial, out).with_context(|| format!("{}: cannot be made", out.display()))?;
    Ok(std::fs::File::open(parent)?.sync_all()?)
}

/// Reads the sizes of a model.
///
/// # Errors
/// A directory that holds no model, or sizes that contradict each other.
pub fn read_config(directory: &Path) -> anyhow::Result<ModelConfig> {
    ensure!(
        directory.is_dir(),
        "{}: not a folder; a model is a folder that `trainer build-model` or `trainer train` made",
        directory.display()
    );
    let path = directory.join(SIZES);
    ensure!(
        path.is_file(),
        "{}: holds no {SIZES}; a model is a folder that `trainer build-model` or `trainer train` made",
        directory.display()
    );
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let config: ModelConfig = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    if let Some(problem) = config.problem() {
        anyhow::bail!("{}: {problem}", path.display());
    }
    Ok(config)
}

/// What tells a model from another: blake3 of its weights.
///
/// # Errors
/// A file that cannot be read.
pub fn fingerprint(directory: &Path) -> anyhow::Result<String> {
    file_fingerprint(&directory.join(WEIGHTS))
}

/// blake3 of a file.
///
/// # Errors
/// A file that cannot be read.
pub fn file_fingerprint(path: &Path) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    std::io::copy(&mut file, &mut hasher).with_context(|| format!("{}: cannot be read", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Reads a model.
///
/// # Errors
/// As [`read_config`], and weights that do not fit.
pub fn read(directory: &Path, device: &Device) -> anyhow::Result<(ModelConfig, Network)> {
    let config = read_config(directory)?;
    let network = load_file(&directory.join(WEIGHTS), config.init(device))?;
    Ok((config, network))
}

/// How pictures come to this model.
pub fn preprocess(config: &ModelConfig, width: usize, height: usize) -> PreprocessSpec {
    let image_net = matches!(config.backbone, Backbone::Resnet50 { range: PixelRange::ImageNet });
    PreprocessSpec {
        width,
        height,
        geometry: Geometry::Stretch,
        normalisation: if image_net { Normalisation::ImageNet } else { Normalisation::SymmetricOne },
        sketch: match config.sketch() {
            Some(SketchOperator::Canny) => SketchPlane::Canny,
            Some(SketchOperator::Soft) | None => SketchPlane::None,
        },
        tiles: None,
    }
}

/// The paper's anomaly map and score: the sum of the cosine distances of the features, smoothed, and the largest mean.
pub fn map() -> MapSpec {
    MapSpec {
        weights: MapWeights {
            features: 1.0,
            features_floor: 0.0,
            latent: 0.0,
            refine: 0.0,
            refine_power: 1.0,
            prototypes: 0.0,
            prototypes_floor: 0.0,
        },
        sigma: SIGMA,
        pooling: Pooling::BoxMax,
    }
}
