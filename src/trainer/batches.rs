//! Batches for training: good pictures, the same with synthetic defects, and where these are.
//!
//! A batch depends on the seed, the stage and the step alone. So a resumed run sees the batches that it would have seen,
//! and the number of worker threads changes nothing.

use std::num::NonZero;

use crossbeam::channel::{Receiver, bounded};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::augment::Augmentation;
use super::pictures::Picture;
use crate::synthetic::corrupt::{Corruption, CorruptionFamily, corrupt};

/// Batches that each worker may prepare ahead: enough to ride out one slow batch, little memory.
const AHEAD: usize = 2;

/// Threads that make batches: all cores but one, which drives the device.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).saturating_sub(1).clamp(1, 12)
}

/// Batches in memory at a time: ready ones, one in every worker's hands, one in training.
pub fn in_memory() -> usize {
    workers() * (AHEAD + 1) + 1
}

/// What a batch is made of.
#[derive(Debug, Clone)]
pub struct BatchSpec {
    /// Columns of the pictures.
    pub width: usize,
    /// Rows of the pictures.
    pub height: usize,
    /// Pictures per batch.
    pub size: usize,
    /// Share with a synthetic defect.
    pub defect_share: f64,
    /// Defect families to draw from.
    pub families: Vec<CorruptionFamily>,
    /// Share whose *latent* is corrupted instead; their pictures have the same cells filled with noise.
    pub latent_share: f64,
    /// Latent channels, for the noise.
    pub latent_channels: usize,
    /// Seed of the run and number of the stage.
    pub seed: u64,
    /// How the good pictures of each set are varied.
    pub augmentations: Vec<Augmentation>,
}

/// One batch on the host.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Pictures.
    pub size: usize,
    /// Columns of the pictures.
    pub width: usize,
    /// Rows of the pictures.
    pub height: usize,
    /// Good pictures, `[b, 3, h, w]` in -1 to 1.
    pub clean: Vec<f32>,
    /// What the camera sees, `[b, 3, h, w]`: good, or with a defect.
    pub seen: Vec<f32>,
    /// Share of defective pixels per cell at stride 4, `[b, 1, h/4, w/4]`.
    pub mask: Vec<f32>,
    /// 1 where a latent cell is corrupted, `[b, 1, h/8, w/8]`.
    pub latent_mask: Vec<f32>,
    /// Standard normal noise, `[b, c, h/8, w/8]`.
    pub noise: Vec<f32>,
    /// Whether a picture's noise is another picture's latent, and whose.
    pub swap: Vec<Option<usize>>,
    /// Whether the latent, and not the picture, is corrupted.
    pub latent: Vec<bool>,
    /// Set of every picture.
    pub sets: Vec<usize>,
    /// Uniform draws in 0 to 1 for what a stage decides itself (level, dropping of class and guidance).
    pub draws: Vec<[f64; 3]>,
}

/// Share of pictures whose class is replaced by the null class, so that a recipe without a class works too.
const CLASS_DROP: f64 = 0.2;

impl Batch {
    /// Shape of the pictures' latents.
    pub fn latent_shape(&self) -> [usize; 4] {
        let cells = self.height / 8 * (self.width / 8);
        [self.size, self.noise.len() / (self.size * cells), self.height / 8, self.width / 8]
    }

    /// Index of every picture's class: 0, the null class, for some, and for all where there are no classes.
    pub fn classes(&self, any: bool) -> impl Iterator<Item = f64> {
        let index =
            move |(set, draw): (&usize, &[f64; 3])| if any && draw[2] >= CLASS_DROP { (set + 1) as f64 } else { 0.0 };
        self.sets.iter().zip(&self.draws).map(index)
    }
}

/// Random square patches of latent cells (DeCo-Diff: sides 1 to 16 with falling odds, up to 70 % of the cells).
fn latent_patches(width: usize, height: usize, rng: &mut impl Rng) -> Vec<f32> {
    let draw: f64 = rng.random();
    let side = match draw {
        d if d < 0.30 => 1,
        d if d < 0.55 => 2,
        d if d < 0.75 => 4,
        d if d < 0.90 => 8,
        _ => 16,
    };
    let ratio = rng.random_range(0.0..0.7f64);
    let (columns, rows) = (width.div_ceil(side), height.div_ceil(side));
    let chosen: Vec<bool> = (0..columns * rows).map(|_| rng.random_bool(ratio)).collect();
    (0..height * width)
        .map(|cell| f32::from(u8::from(chosen[cell / width / side * columns + cell % width / side])))
        .collect()
}

/// Makes the batch of one step.
pub fn make(pictures: &[Picture], spec: &BatchSpec, step: usize) -> Batch {
    let mut rng = ChaCha8Rng::seed_from_u64(spec.seed ^ (step as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let (width, height) = (spec.width, spec.height);
    let plane = width * height;
    let latent_plane = plane / 64;
    let mut batch = Batch {
        size: spec.size,
        width,
        height,
        clean: Vec::with_capacity(spec.size * 3 * plane),
        seen: Vec::with_capacity(spec.size * 3 * plane),
        mask: Vec::with_capacity(spec.size * plane / 16),
        latent_mask: Vec::with_capacity(spec.size * latent_plane),
        noise: (0..spec.size * spec.latent_channels * latent_plane).map(|_| StandardNormal.sample(&mut rng)).collect(),
        swap: Vec::with_capacity(spec.size),
        latent: Vec::with_capacity(spec.size),
        sets: Vec::with_capacity(spec.size),
        draws: Vec::with_capacity(spec.size),
    };
    for _ in 0..spec.size {
        let picture = &pictures[rng.random_range(0..pictures.len())];
        let clean = spec.augmentations[picture.set].apply(&picture.rgb, width, height, &mut rng);
        let latent = rng.random_bool(spec.latent_share);
        let patches = if latent { latent_patches(width / 8, height / 8, &mut rng) } else { vec![0.0; latent_plane] };
        let (seen, mask) = if latent {
            (fill_cells(&clean, &patches, width, height, &mut rng), vec![0u8; plane])
        } else if rng.random_bool(spec.defect_share) {
            let family = spec.families[rng.random_range(0..spec.families.len())];
            let other = &pictures[rng.random_range(0..pictures.len())];
            let Corruption { rgb, mask } = corrupt(&clean, width, height, Some(&other.rgb), family, &mut rng);
            (rgb, mask)
        } else {
            (clean.clone(), vec![0u8; plane])
        };
        push_planar(&mut batch.clean, &clean);
        push_planar(&mut batch.seen, &seen);
        push_quarter(&mut batch.mask, &mask, width, height);
        batch.latent_mask.extend(patches);
        batch.swap.push((latent && rng.random_bool(0.3)).then(|| rng.random_range(0..spec.size)));
        batch.latent.push(latent);
        batch.sets.push(picture.set);
        batch.draws.push([rng.random(), rng.random(), rng.random()]);
    }
    batch
}

/// Noise where a latent cell is corrupted: guidance must not see what the denoiser has to redraw.
fn fill_cells(clean: &[u8], cells: &[f32], width: usize, height: usize, rng: &mut impl Rng) -> Vec<u8> {
    let mut rgb = clean.to_vec();
    for y in 0..height {
        for x in 0..width {
            if cells[y / 8 * (width / 8) + x / 8] > 0.5 {
                rgb[(y * width + x) * 3..][..3].iter_mut().for_each(|v| *v = rng.random());
            }
        }
    }
    rgb
}

fn push_planar(out: &mut Vec<f32>, rgb: &[u8]) {
    for channel in 0..3 {
        out.extend(rgb.iter().skip(channel).step_by(3).map(|&v| f32::from(v) / 127.5 - 1.0));
    }
}

fn push_quarter(out: &mut Vec<f32>, mask: &[u8], width: usize, height: usize) {
    for y in (0..height).step_by(4) {
        for x in (0..width).step_by(4) {
            let hits = (0..16).filter(|k| mask[(y + k / 4) * width + x + k % 4] > 127).count();
            out.push(hits as f32 / 16.0);
        }
    }
}

/// Batches of the steps from `first` on, in order, made by `workers` threads of `scope` until the receivers are dropped.
pub struct BatchStream {
    lanes: Vec<Receiver<Batch>>,
    next: usize,
}

impl BatchStream {
    /// Starts the workers.
    pub fn start<'scope, 'env: 'scope>(
        scope: &'scope std::thread::Scope<'scope, 'env>,
        pictures: &'env [Picture],
        spec: &'env BatchSpec,
        first: usize,
        workers: usize,
    ) -> Self {
        let lanes = (0..workers)
            .map(|lane| {
                let (sender, receiver) = bounded(AHEAD);
                scope.spawn(move || {
                    let mut step = first + lane;
                    while sender.send(make(pictures, spec, step)).is_ok() {
                        step += workers;
                    }
                });
                receiver
            })
            .collect();
        Self { lanes, next: 0 }
    }

    /// The batch of the next step.
    ///
    /// # Panics
    /// If a worker panicked.
    pub fn take(&mut self) -> Batch {
        let lane = self.next % self.lanes.len();
        self.next += 1;
        self.lanes[lane].recv().expect("a batch worker panicked")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures() -> Vec<Picture> {
        (0..3u8).map(|k| Picture { path: "x".into(), rgb: vec![90 + 20 * k; 64 * 64 * 3], set: 0 }).collect()
    }

    fn spec() -> BatchSpec {
        BatchSpec {
            width: 64,
            height: 64,
            size: 6,
            defect_share: 0.5,
            families: CorruptionFamily::TRAINING.to_vec(),
            latent_share: 0.3,
            latent_channels: 2,
            seed: 5,
            augmentations: vec![Augmentation::LEAST],
        }
    }

    #[test]
    fn a_batch_depends_on_its_step_alone() {
        let (pictures, spec) = (pictures(), spec());
        let alone: Vec<Batch> = (4..9).map(|step| make(&pictures, &spec, step)).collect();
        for workers in [1, 3] {
            std::thread::scope(|scope| {
                let mut stream = BatchStream::start(scope, &pictures, &spec, 4, workers);
                for batch in &alone {
                    let streamed = stream.take();
                    assert_eq!(streamed.seen, batch.seen);
                    assert_eq!(streamed.noise, batch.noise);
                }
            });
        }
        assert_ne!(alone[0].seen, alone[1].seen);
    }

    #[test]
    fn masks_cover_what_changed() {
        let (pictures, mut spec) = (pictures(), spec());
        spec.latent_share = 0.0;
        spec.defect_share = 1.0;
        let batch = make(&pictures, &spec, 1);
        for (k, mask) in batch.mask.chunks_exact(16 * 16).enumerate() {
            let changed = (0..64 * 64).any(|p| batch.clean[k * 3 * 4096 + p] != batch.seen[k * 3 * 4096 + p]);
            assert!(changed && mask.iter().any(|v| *v > 0.0), "picture {k}");
        }
    }
}
