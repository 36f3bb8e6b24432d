//! The step loop of one stage: forward, backward, clip, step, average, checkpoint, resume.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor};
use indicatif::ProgressBar;

use super::batches::{BatchSpec, BatchStream, workers};
use super::checkpoint::{RunDirectory, RunState};
use super::ema::Ema;
use super::objective::Objective;
use super::pictures::Picture;
use crate::model::network::Network;

/// Steps that are not counted against the time budget: the device compiles and tunes its kernels in them.
const WARM_UP_STEPS: usize = 4;
/// Steps whose time decides how many the stage gets.
const MEASURED_STEPS: usize = 8;
/// Steps between two looks at the loss: each look waits for the device.
const LOOK_EVERY: usize = 10;
/// Seconds between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// How often a stage may go back to weights from before a loss that is no number.
const RETURNS: usize = 3;
/// Largest norm of all gradients together.
const CLIP: f64 = 1.0;

/// What a stage is run with.
pub struct StageSettings<'a> {
    /// Index of the stage in the run.
    pub index: usize,
    /// Time budget.
    pub seconds: f64,
    /// Peak learning rate.
    pub rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight of the moving average.
    pub ema_decay: f64,
    /// Good pictures.
    pub pictures: &'a [Picture],
    /// What a batch is made of.
    pub batches: &'a BatchSpec,
    /// A fixed number of steps instead of a time budget, for tests.
    pub steps: Option<usize>,
    /// Most steps that the time budget may become.
    pub most: usize,
    /// Device without the gradient graph.
    pub device: &'a Device,
}

/// What a step changes.
#[derive(Clone)]
struct Learning<M> {
    trained: M,
    ema: Ema<M>,
    optimizer: ModuleOptimizer,
}

/// Runs a stage from where `state` stands to its end and installs the average into the network.
///
/// On a GPU a loss was now and then no number, at some sizes of pictures and never twice at the same step. The stage then goes
/// back to the last weights after which ten losses were numbers, and on with the next pictures.
///
/// # Errors
/// A checkpoint that cannot be read or written, or a loss that is again and again not finite.
pub fn run<O: Objective>(
    objective: &O,
    network: Network,
    settings: &StageSettings<'_>,
    directory: &RunDirectory,
    state: &mut RunState,
    progress: &ProgressBar,
) -> anyhow::Result<Network> {
    let device = settings.device;
    let trained = objective.extract(&network).to_device(&device.clone().autodiff()).train();
    let ema = Ema::new(&trained, settings.ema_decay);
    let optimizer: ModuleOptimizer = AdamWConfig::new().with_weight_decay(settings.weight_decay as f32).init();
    let mut now = Learning { trained, ema, optimizer };
    if state.step > 0
        && let Some(saved) = directory.tensors(state)
    {
        let load = |name: &str| ModuleRecord::load(saved.join(name)).with_context(|| format!("{name} of {saved:?}"));
        now.trained = now.trained.try_load_record(load("trained.bpk")?).context("trained.bpk")?;
        let average = now.ema.module().clone().try_load_record(load("average.bpk")?).context("average.bpk")?;
        now.ema.restore(average);
        now.optimizer = now.optimizer.load(saved.join("optimizer.bpk")).context("optimizer.bpk")?;
    }
    // A loss is looked at after the step that it led to: what the last look found may be spoilt, what the one before found is not.
    // (A checkpoint holds the last: if that is spoilt, a run that is resumed ends with an error, and --fresh begins anew.)
    let (mut proven, mut latest) = (now.clone(), now.clone());
    let mut returns = 0;
    let first = state.step;
    let outcome: anyhow::Result<Learning<O::Trained>> = std::thread::scope(|scope| {
        let mut now = now;
        let mut stream = BatchStream::start(scope, settings.pictures, settings.batches, first, workers());
        if state.total.is_none() {
            state.total = settings.steps;
        }
        let mut clock = Instant::now();
        let mut saved = Instant::now();
        let mut since = clock;
        let mut sum: Option<Tensor<1>> = None;
        let mut summed = 0;
        while state.total.is_none_or(|total| state.step < total) {
            let batch = stream.take();
            // Before the number of steps is known, the rate is still rising in any case.
            let total = state.total.unwrap_or(usize::MAX);
            let rate = settings.rate * rate_factor(state.step, total);
            let loss = objective.loss(&network, &now.trained, &batch, device);
            now.trained = descend(&loss, now.trained, &mut now.optimizer, rate);
            now.ema.update(&now.trained, state.step);
            state.step += 1;
            let loss = loss.inner();
            sum = Some(match sum {
                Some(sum) => sum + loss,
                None => loss,
            });
            summed += 1;
            let warm = state.step - first;
            if state.total.is_none() && warm == WARM_UP_STEPS {
                device.sync().context("device")?;
                clock = Instant::now();
                since = clock;
            }
            if state.total.is_none() && warm == WARM_UP_STEPS + MEASURED_STEPS {
                device.sync().context("device")?;
                let step = clock.elapsed().as_secs_f64() / MEASURED_STEPS as f64;
                let total = WARM_UP_STEPS + ((settings.seconds / step) as usize).max(2 * MEASURED_STEPS);
                let total = total.min(settings.most.max(state.step));
                state.total = Some(total);
                progress.set_length(total as u64);
            }
            let last = state.total == Some(state.step);
            if summed >= LOOK_EVERY || last {
                let mean = sum.take().map_or(Ok(f32::NAN), Tensor::try_into_scalar::<f32>)? / summed as f32;
                summed = 0;
                let (name, step) = (objective.name(), state.step);
                if mean.is_finite() {
                    proven = std::mem::replace(&mut latest, now.clone());
                    state.losses[settings.index].push((step, f64::from(mean)));
                    progress.set_message(format!("loss {mean:.4}"));
                } else {
                    anyhow::ensure!(
                        returns < RETURNS,
                        "{name}: the loss is {mean} at step {step}, after it went back {returns} times; try another \
                         --seed, or a lower rate with --config"
                    );
                    returns += 1;
                    log::warn!(
                        "{name}: the loss is {mean} at step {step}: it goes on from weights of some steps before"
                    );
                    now = proven.clone();
                    latest = proven.clone();
                }
                progress.set_position(step as u64);
                state.seconds[settings.index] += since.elapsed().as_secs_f64();
                since = Instant::now();
                if saved.elapsed() > CHECKPOINT_EVERY && !last {
                    save(directory, state, &network, &now)?;
                    saved = Instant::now();
                }
                // A device that slows down (heat, other jobs) must not stretch the budget by more than a tenth.
                if settings.steps.is_none() && state.seconds[settings.index] > settings.seconds * 1.1 {
                    state.total = Some(state.step);
                }
            }
        }
        Ok(now)
    });
    Ok(objective.install(network, outcome?.ema.module().clone()))
}

/// One step down the gradient of `loss`.
pub(super) fn descend<M: Module>(loss: &Tensor<1>, trained: M, optimizer: &mut ModuleOptimizer, rate: f64) -> M {
    let gradients = clip(&trained, GradientsParams::from_grads(loss.backward(), &trained));
    optimizer.step(rate, trained, gradients)
}

/// The learning rate's course: a rise over the first 5 %, then a cosine down to 2 %.
fn rate_factor(step: usize, total: usize) -> f64 {
    let rise = (total / 20).clamp(1, 200);
    if step < rise {
        return (step + 1) as f64 / rise as f64;
    }
    let part = (step - rise) as f64 / (total - rise).max(1) as f64;
    0.02 + 0.98 * 0.5 * (1.0 + (std::f64::consts::PI * part).cos())
}

/// Saves where a stage stands.
fn save<M: Module>(
    directory: &RunDirectory,
    state: &mut RunState,
    network: &Network,
    learning: &Learning<M>,
) -> anyhow::Result<()> {
    directory.save(state, |path| {
        write(network.clone(), path, "network.bpk")?;
        write(learning.trained.clone(), path, "trained.bpk")?;
        write(learning.ema.module().clone(), path, "average.bpk")?;
        learning.optimizer.save(path.join("optimizer.bpk")).context("optimizer.bpk")
    })
}

/// Writes a module's parameters under `name`.
///
/// # Errors
/// Anything that the disk refuses.
pub fn write<M: Module>(module: M, path: &Path, name: &str) -> anyhow::Result<()> {
    module.into_record().save(path.join(name)).with_context(|| format!("{}", path.join(name).display()))
}

/// Scales all gradients so that their common norm is at most [`CLIP`]; burn's own clipping takes each parameter alone.
///
/// The norm stays on the device: reading it back would wait for every step.
fn clip<M: Module>(module: &M, gradients: GradientsParams) -> GradientsParams {
    let mut norm = SquaredNorm { gradients: &gradients, sum: None };
    module.visit(&mut norm);
    let Some(sum) = norm.sum else { return gradients };
    let factor = (sum.sqrt() + 1e-6).recip().mul_scalar(CLIP).clamp_max(1.0);
    let mut scale = Scale { gradients, factor };
    module.visit(&mut scale);
    scale.gradients
}

struct SquaredNorm<'a> {
    gradients: &'a GradientsParams,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for SquaredNorm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let square = gradient.square().sum();
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + square,
                None => square,
            });
        }
    }
}

struct Scale {
    gradients: GradientsParams,
    factor: Tensor<1>,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let factor = self.factor.clone().reshape([1; D]);
            self.gradients.register(param.id, gradient * factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use burn::nn::{Linear, LinearConfig};

    use super::*;
    use crate::model::autoencoder::Autoencoder;
    use crate::model::profile::{ModelConfig, Profile};
    use crate::synthetic::corrupt::CorruptionFamily;
    use crate::trainer::augment::Augmentation;
    use crate::trainer::batches::Batch;
    use crate::trainer::config::TrainConfig;
    use crate::trainer::objective::AutoencoderObjective;

    #[test]
    fn the_common_norm_is_clipped() {
        let device = Device::flex().autodiff();
        let layer: Linear = LinearConfig::new(2, 2).init(&device);
        let loss = layer.forward(Tensor::<2>::ones([1, 2], &device) * 30.0).sum();
        let gradients = clip(&layer, GradientsParams::from_grads(loss.backward(), &layer));
        let mut norm = SquaredNorm { gradients: &gradients, sum: None };
        layer.visit(&mut norm);
        let norm = norm.sum.expect("has gradients").into_scalar::<f32>().sqrt();
        assert!((norm - 1.0).abs() < 1e-4, "{norm}");
    }

    /// The autoencoder's objective, whose loss is no number at some calls.
    struct Spoilt<'a> {
        inner: AutoencoderObjective<'a>,
        at: fn(usize) -> bool,
        calls: Cell<usize>,
    }

    impl Objective for Spoilt<'_> {
        type Trained = Autoencoder;

        fn name(&self) -> &'static str {
            self.inner.name()
        }

        fn extract(&self, network: &Network) -> Autoencoder {
            self.inner.extract(network)
        }

        fn install(&self, network: Network, trained: Autoencoder) -> Network {
            self.inner.install(network, trained)
        }

        fn loss(&self, network: &Network, trained: &Autoencoder, batch: &Batch, device: &Device) -> Tensor<1> {
            let loss = self.inner.loss(network, trained, batch, device);
            self.calls.set(self.calls.get() + 1);
            if (self.at)(self.calls.get()) { loss * f32::NAN } else { loss }
        }
    }

    /// 45 steps whose loss is no number where `at` says so: the losses that were recorded, and whether the result is finite.
    fn spoilt(at: fn(usize) -> bool) -> anyhow::Result<(Vec<usize>, bool)> {
        let config = TrainConfig::of(Profile::EdgeSmall)?;
        let device = Device::flex();
        let network = ModelConfig::of(Profile::EdgeSmall, 0).init(&device).materialize().valid();
        let folder = tempfile::tempdir()?;
        let (directory, _) = RunDirectory::open(folder.path(), &serde_json::json!({}), true)?;
        let mut state = RunState::new(serde_json::json!({}), 3);
        let pictures = [Picture { path: "x".into(), rgb: vec![90; 32 * 32 * 3], set: 0 }];
        let batches = BatchSpec {
            width: 32,
            height: 32,
            size: 1,
            defect_share: 0.5,
            families: CorruptionFamily::TRAINING.to_vec(),
            latent_share: 0.0,
            latent_channels: 8,
            seed: 5,
            augmentations: vec![Augmentation::LEAST],
        };
        let settings = StageSettings {
            index: 0,
            seconds: 0.0,
            rate: 1e-3,
            weight_decay: 1e-4,
            ema_decay: 0.9,
            pictures: &pictures,
            batches: &batches,
            steps: Some(45),
            most: usize::MAX,
            device: &device,
        };
        let objective = Spoilt { inner: AutoencoderObjective { config: &config }, at, calls: Cell::new(0) };
        let network = run(&objective, network, &settings, &directory, &mut state, &ProgressBar::hidden())?;
        let latent = network.autoencoder.encode(Tensor::zeros([1, 3, 32, 32], &device), 1.0);
        let finite = latent.sum().into_scalar::<f32>().is_finite();
        Ok((state.losses[0].iter().map(|(step, _)| *step).collect(), finite))
    }

    #[test]
    fn a_loss_that_is_no_number_costs_some_steps_and_not_the_run() {
        assert_eq!(spoilt(|_| false).expect("trains"), (vec![10, 20, 30, 40, 45], true));
        // In the middle, and in the very last step.
        assert_eq!(spoilt(|call| call == 24).expect("goes on"), (vec![10, 20, 40, 45], true));
        assert_eq!(spoilt(|call| call == 45).expect("goes on"), (vec![10, 20, 30, 40], true));
        let error = spoilt(|call| call > 12).expect_err("there is nothing to go back to").to_string();
        assert!(error.contains("NaN at step") && error.contains("--seed"), "{error}");
    }

    #[test]
    fn the_rate_rises_and_falls() {
        assert!(rate_factor(0, 1000) < 0.05);
        assert!((rate_factor(50, 1000) - 1.0).abs() < 1e-3);
        assert!((rate_factor(1000, 1000) - 0.02).abs() < 1e-3);
    }
}
