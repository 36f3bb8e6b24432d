//! Training on procedural pictures only: the base that `fit` starts from.

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::augment::Augmentation;
use super::backbone;
use super::base::{self, BaseRecord};
use super::checkpoint::write_whole;
use super::config::TrainConfig;
use super::fit::sibling;
use super::pictures::Picture;
use super::stages::Stages;
use crate::device::{Compute, pooled};
use crate::model::profile::Profile;
use crate::synthetic::procedural;

/// Pictures of each product: enough to tell what belongs to the product from what belongs to the picture.
pub const INSTANCES: usize = 8;

/// What a base is asked for.
#[derive(Debug, Clone)]
pub struct PretrainRequest {
    /// The size.
    pub profile: Profile,
    /// How it is trained.
    pub config: TrainConfig,
    /// Where the base goes.
    pub out: PathBuf,
    /// Minutes of training, rendering and the device's warm-up not counted.
    pub minutes: f64,
    /// Seed of everything.
    pub seed: u64,
    /// Start again even if there is something to resume.
    pub fresh: bool,
    /// The backbone's weights.
    pub backbone: PathBuf,
    /// What the file holds, of [`base::PART_NAMES`].
    pub parts: Vec<String>,
    /// Procedural products.
    pub products: usize,
    /// A fixed number of steps per stage instead of the time budget.
    pub stage_steps: Option<usize>,
    /// The command line, for the record.
    pub command: String,
}

/// What a pretraining ended with.
#[derive(Debug)]
pub struct Pretrained {
    /// Bytes of the file.
    pub bytes: usize,
    /// blake3 of the file, in hex.
    pub hash: String,
    /// Steps per stage.
    pub steps: Vec<usize>,
    /// Seconds per stage.
    pub seconds: Vec<f64>,
    /// The last loss per stage.
    pub losses: Vec<f64>,
}

/// Trains all three stages on procedural pictures and writes the asked parts.
///
/// The same request on the same `out` resumes a run that was killed.
///
/// # Errors
/// Another request's run in the way, a device or a disk that refuses.
pub fn pretrain(request: &PretrainRequest, compute: &Compute) -> anyhow::Result<Pretrained> {
    let config = &request.config;
    let features = backbone::load(&request.backbone, &compute.device)?;
    let size = config.grid.size(1.0, f64::INFINITY);
    let pictures = render(request, size);
    // The pictures of a product vary by themselves.
    let varied = vec![Augmentation::LEAST; request.products];
    log::info!(
        "{} procedural pictures of {} products, {} MB",
        pictures.len(),
        request.products,
        pictures.iter().map(|picture| picture.rgb.len()).sum::<usize>() / 1_000_000
    );
    // Pictures in general have no class: all of them train the null class.
    let model = config.model(request.profile, 0);
    let stages = Stages {
        model: &model,
        config,
        size,
        minutes: request.minutes,
        stage_steps: request.stage_steps,
        seed: request.seed,
        pictures: &pictures,
        augmentations: &varied,
        compute,
    };
    let asked = json!({
        "verb": "pretrain", "profile": request.profile, "config": config, "minutes": request.minutes,
        "seed": request.seed, "products": request.products, "parts": request.parts, "stage_steps": request.stage_steps,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let directory = sibling(&request.out, "run")?;
    let train = || stages.run(&directory, asked, request.fresh, features, None);
    let (network, run, state) = pooled(&compute.device, train)?;
    let last = |losses: &Vec<(usize, f64)>| losses.last().copied().unwrap_or_default();
    let record = BaseRecord {
        profile: request.profile,
        parts: request.parts.clone(),
        dsad: env!("CARGO_PKG_VERSION").into(),
        seed: request.seed,
        command: request.command.clone(),
        steps: state.losses.iter().map(|losses| last(losses).0).collect(),
    };
    let bytes = base::encode(&network, &record, &request.out)?;
    write_whole(&request.out, &bytes).with_context(|| format!("--out {}: cannot be written", request.out.display()))?;
    run.remove()?;
    Ok(Pretrained {
        bytes: bytes.len(),
        hash: blake3::hash(&bytes).to_hex().to_string(),
        steps: record.steps,
        losses: state.losses.iter().map(|losses| last(losses).1).collect(),
        seconds: state.seconds,
    })
}

/// All pictures, rendered on all cores; they depend on the seed alone.
fn render(request: &PretrainRequest, (width, height): (usize, usize)) -> Vec<Picture> {
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut products: Vec<(usize, Vec<Picture>)> = (0..request.products).map(|set| (set, Vec::new())).collect();
    let per_worker = products.len().div_ceil(workers).max(1);
    std::thread::scope(|scope| {
        for share in products.chunks_mut(per_worker) {
            scope.spawn(move || {
                for (set, pictures) in share {
                    let product = procedural::product(request.seed.wrapping_mul(0x9E37_79B9).wrapping_add(*set as u64));
                    pictures.extend((0..INSTANCES).map(|k| Picture {
                        path: format!("product-{set}/{k}").into(),
                        rgb: product.render(k as u64, width, height),
                        set: *set,
                    }));
                }
            });
        }
    });
    products.into_iter().flat_map(|(_, pictures)| pictures).collect()
}
