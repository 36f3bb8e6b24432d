//! `trainer baseline`: the yardstick. PatchCore-style nearest neighbours (arXiv 2106.08265) on the same backbone.

use std::path::PathBuf;

use anyhow::ensure;
use burn::tensor::{Device, Tensor, TensorData, module::avg_pool2d, ops::AvgPoolOptions};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::inspection::anomaly::{AnomalyMap, gaussian_blur};
use crate::inspection::frame::Prepared;
use crate::model::features::FeatureExtractor;
use crate::model::prototypes::nearest;
use crate::model::score::resize;
use crate::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use crate::trainer::backbone;
use crate::trainer::dataset::Set;
use crate::trainer::dataset::discover::discover;
use crate::trainer::dataset::mask::load_mask;
use crate::trainer::evaluate::{Judged, Protocol, Row, evaluate, print};
use crate::trainer::pictures::prepare_file;

/// Share of the patches that the memory keeps, and its largest size.
const KEEP: f64 = 0.10;
const MAX_PATCHES: usize = 30_000;
/// Smoothing of the map.
const SIGMA: f64 = 4.0;
/// Rows of the memory that are compared at a time: bounds the size of the distance matrix.
const CHUNK: usize = 6_000;

/// Arguments of `trainer baseline`.
#[derive(Debug, clap::Args)]
pub struct BaselineArgs {
    /// A set with a test split, or a folder of sets
    #[arg(long)]
    data: PathBuf,
    /// Only this set of a folder of sets, by name; may be given several times
    #[arg(long = "set")]
    sets: Vec<String>,
    /// Seed of the random choice of patches
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How ground truth becomes metrics
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// The backbone's weights
    #[arg(long)]
    backbone: Option<PathBuf>,
    /// One JSON object a line: a row per class, the mean last
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Data or a device that cannot be used.
pub fn run(args: &BaselineArgs) -> anyhow::Result<()> {
    let compute = device::open(args.device)?;
    let extractor = backbone::load(&backbone::path_or_default(args.backbone.as_deref())?, &compute.device)?;
    let found = discover(&args.data)?.only(&args.sets)?;
    let rows = found
        .sets
        .iter()
        .filter(|set| !set.test.is_empty())
        .map(|set| judge(set, &extractor, args, &compute.device))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!rows.is_empty(), "{}: no set has a test split (test/good, test/DEFECT)", args.data.display());
    print(&rows, args.json)
}

fn spec() -> PreprocessSpec {
    PreprocessSpec {
        width: 256,
        height: 256,
        geometry: Geometry::Stretch,
        normalisation: Normalisation::SymmetricOne,
        sketch: SketchPlane::None,
        tiles: None,
    }
}

/// Patches of one picture: stages at strides 8 and 16, averaged over 3x3 cells, joined at stride 8; `[cells, channels]`.
///
/// The padding counts, as in PatchCore: borders fade towards zero, and what varies there is no alarm.
fn patches(extractor: &FeatureExtractor, prepared: &Prepared, device: &Device) -> Tensor<2> {
    let shape = [1, 3, prepared.height, prepared.width];
    let image = Tensor::<4>::from_data(TensorData::new(prepared.image.to_vec(), shape), device);
    let [_, fine, coarse] = extractor.forward(image);
    let pool = |stage: Tensor<4>| {
        let options = AvgPoolOptions::<2>::new([3, 3]).with_stride([1, 1]).with_padding([1, 1]);
        avg_pool2d(stage, options)
    };
    let [_, _, height, width] = fine.dims();
    let joined = Tensor::cat(vec![pool(fine), resize(pool(coarse), height, width)], 1);
    let channels = joined.dims()[1];
    joined.permute([0, 2, 3, 1]).reshape([height * width, channels])
}

fn judge(set: &Set, extractor: &FeatureExtractor, args: &BaselineArgs, device: &Device) -> anyhow::Result<Row> {
    let spec = spec();
    let mut rows: Vec<f32> = Vec::new();
    let mut channels = 0;
    for path in &set.train {
        match prepare_file(path, &spec) {
            Ok(prepared) => {
                let found = patches(extractor, &prepared, device);
                channels = found.dims()[1];
                rows.extend(found.try_into_vec_as::<f32>()?);
            }
            Err(reason) => log::warn!("left out: {}: {reason}", path.display()),
        }
    }
    ensure!(channels > 0, "{}: no readable good picture", set.name);
    let mut order: Vec<usize> = (0..rows.len() / channels).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(args.seed));
    order.truncate(((order.len() as f64 * KEEP).ceil() as usize).clamp(1, MAX_PATCHES));
    let chunks: Vec<Tensor<2>> = order
        .chunks(CHUNK)
        .map(|part| {
            let kept: Vec<f32> =
                part.iter().flat_map(|&row| rows[row * channels..][..channels].iter().copied()).collect();
            Tensor::from_data(TensorData::new(kept, [part.len(), channels]), device)
        })
        .collect();
    let mut judged = Vec::with_capacity(set.test.len());
    for sample in &set.test {
        let started = std::time::Instant::now();
        let Ok(prepared) = prepare_file(&sample.path, &spec) else {
            log::warn!("left out: {}", sample.path.display());
            continue;
        };
        let found = patches(extractor, &prepared, device);
        let distance = chunks.iter().map(|memory| nearest(found.clone(), memory.clone())).reduce(|a, b| a.min_pair(b));
        let Some(distance) = distance else { continue };
        let distance = distance.reshape([1, 1, spec.height / 8, spec.width / 8]);
        let values = resize(distance, spec.height, spec.width).try_into_vec_as::<f32>()?;
        let values = gaussian_blur(&values, spec.width, spec.height, SIGMA);
        let map = AnomalyMap { width: spec.width, height: spec.height, values };
        let frame_ms = started.elapsed().as_secs_f64() * 1e3;
        let mask = sample.mask.as_deref().map(|path| load_mask(path, &spec, args.protocol)).transpose();
        let mask = mask.map_err(anyhow::Error::msg)?;
        let score = map.max();
        let (path, defective) = (sample.path.clone(), sample.defect.is_some());
        let inside = prepared.inside;
        judged.push(Judged { path, score, map, inside, defective, mask, rejected: None, frame_ms });
    }
    Ok(evaluate(&set.name, &judged, args.protocol))
}
