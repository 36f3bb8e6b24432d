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

/// Runs a stage from where `state` stands to its end and installs the average into the network.
///
/// # Errors
/// A checkpoint that cannot be read or written, or a loss that is not finite.
pub fn run<O: Objective>(
    objective: &O,
    mut network: Network,
    settings: &StageSettings<'_>,
    directory: &RunDirectory,
    state: &mut RunState,
    progress: &ProgressBar,
) -> anyhow::Result<Network> {
    let device = settings.device;
    let mut trained = objective.extract(&network).to_device(&device.clone().autodiff()).train();
    let mut ema = Ema::new(&trained, settings.ema_decay);
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_weight_decay(settings.weight_decay as f32).init();
    if state.step > 0
        && let Some(saved) = directory.tensors(state)
    {
        let load = |name: &str| ModuleRecord::load(saved.join(name)).with_context(|| format!("{name} of {saved:?}"));
        trained = trained.try_load_record(load("trained.bpk")?).context("trained.bpk")?;
        let average = ema.module().clone().try_load_record(load("average.bpk")?).context("average.bpk")?;
        ema.restore(average);
        optimizer = optimizer.load(saved.join("optimizer.bpk")).context("optimizer.bpk")?;
    }
    let first = state.step;
    let outcome: anyhow::Result<()> = std::thread::scope(|scope| {
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
            let loss = objective.loss(&network, &trained, &batch, device);
            trained = descend(&loss, trained, &mut optimizer, rate);
            ema.update(&trained, state.step);
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
                anyhow::ensure!(
                    mean.is_finite(),
                    "{}: the loss is {mean} at step {}; try another --seed, or a lower rate with --config",
                    objective.name(),
                    state.step
                );
                state.losses[settings.index].push((state.step, f64::from(mean)));
                progress.set_position(state.step as u64);
                progress.set_message(format!("loss {mean:.4}"));
                state.seconds[settings.index] += since.elapsed().as_secs_f64();
                since = Instant::now();
                if saved.elapsed() > CHECKPOINT_EVERY && !last {
                    save(directory, state, &network, &trained, &ema, &optimizer)?;
                    saved = Instant::now();
                }
                // A device that slows down (heat, other jobs) must not stretch the budget by more than a tenth.
                if settings.steps.is_none() && state.seconds[settings.index] > settings.seconds * 1.1 {
                    state.total = Some(state.step);
                }
            }
        }
        Ok(())
    });
    outcome?;
    network = objective.install(network, ema.module().clone());
    Ok(network)
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
    trained: &M,
    ema: &Ema<M>,
    optimizer: &ModuleOptimizer,
) -> anyhow::Result<()> {
    directory.save(state, |path| {
        write(network.clone(), path, "network.bpk")?;
        write(trained.clone(), path, "trained.bpk")?;
        write(ema.module().clone(), path, "average.bpk")?;
        optimizer.save(path.join("optimizer.bpk")).context("optimizer.bpk")
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
    use burn::nn::{Linear, LinearConfig};

    use super::*;

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

    #[test]
    fn the_rate_rises_and_falls() {
        assert!(rate_factor(0, 1000) < 0.05);
        assert!((rate_factor(50, 1000) - 1.0).abs() < 1e-3);
        assert!((rate_factor(1000, 1000) - 0.02).abs() < 1e-3);
    }
}
