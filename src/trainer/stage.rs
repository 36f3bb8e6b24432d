//! The step loop of one stage: forward, backward, clip, step, average, checkpoint, resume.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor};
use indicatif::ProgressBar;

use super::batches::{BatchSpec, BatchStream, workers};
use super::checkpoint::{RunDirectory, RunState};
use super::learner::{Learner, LearnerSettings};
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

/// What a stage is run with.
pub struct StageSettings<'a> {
    /// Index of the stage in the run.
    pub index: usize,
    /// Time budget.
    pub seconds: f64,
    /// Peak learning rate.
    pub rate: f64,
    /// How parameters follow their gradients.
    pub learner: LearnerSettings,
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
    let mut learner = Learner::new(objective, &network, settings.learner, device);
    if state.step > 0
        && let Some(saved) = directory.tensors(state)
    {
        let load = |(name, part): (&str, O::Trained)| {
            let file = saved.join(name);
            let record = ModuleRecord::load(&file);
            let record = record.with_context(|| format!("{}: start again with --fresh", file.display()))?;
            part.try_load_record(record).with_context(|| file.display().to_string())
        };
        let [trained, average, first, second] = learner.parts();
        learner.restore([load(trained)?, load(average)?, load(first)?, load(second)?], state.step);
    }
    // A loss is looked at after the step that it led to: what the last look found may be spoilt, what the one before found is not.
    // (A checkpoint holds the last: if that is spoilt, a run that is resumed ends with an error, and --fresh begins anew.)
    let (mut proven, mut latest) = (learner.learned(), learner.learned());
    let mut returns = 0;
    let first = state.step;
    let outcome: anyhow::Result<Learner<O>> = std::thread::scope(|scope| {
        let mut stream = BatchStream::start(scope, settings.pictures, settings.batches, first, workers());
        if state.total.is_none() {
            state.total = settings.steps;
        }
        let (mut clock, mut from, mut known) = (Instant::now(), WARM_UP_STEPS, 0);
        let mut saved = Instant::now();
        let mut since = clock;
        let mut sum: Option<Tensor<1>> = None;
        let mut summed = 0;
        while state.total.is_none_or(|total| state.step < total) {
            let batch = stream.take();
            // Before the number of steps is known, the rate is still rising in any case.
            let total = state.total.unwrap_or(usize::MAX);
            let rate = settings.rate * rate_factor(state.step, total);
            let loss = learner.step(objective.inputs(&network, batch), rate);
            state.step += 1;
            sum = Some(match sum {
                Some(sum) => sum + loss,
                None => loss,
            });
            summed += 1;
            let warm = state.step - first;
            // A step that is recorded takes as long as five: its time says nothing of those to come.
            let recorded = std::mem::replace(&mut known, learner.recorded()) != known;
            if state.total.is_none() && warm >= WARM_UP_STEPS && (warm == WARM_UP_STEPS || recorded) {
                device.sync().context("device")?;
                (clock, from) = (Instant::now(), warm);
                since = clock;
            }
            if state.total.is_none() && warm == from + MEASURED_STEPS {
                device.sync().context("device")?;
                let step = clock.elapsed().as_secs_f64() / MEASURED_STEPS as f64;
                let total = first + from + ((settings.seconds / step) as usize).max(2 * MEASURED_STEPS);
                let total = total.min(settings.most.max(state.step));
                state.total = Some(total);
                progress.set_length(total as u64);
            }
            // So few are wanted that their time is not known yet.
            if state.total.is_none() && state.step >= settings.most {
                state.total = Some(state.step);
            }
            let last = state.total == Some(state.step);
            if summed >= LOOK_EVERY || last {
                let mean = sum.take().map_or(Ok(f32::NAN), Tensor::try_into_scalar::<f32>)? / summed as f32;
                summed = 0;
                let (name, step) = (objective.name(), state.step);
                if mean.is_finite() {
                    proven = std::mem::replace(&mut latest, learner.learned());
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
                    learner.go_back(&proven);
                    latest = proven.clone();
                }
                progress.set_position(step as u64);
                state.seconds[settings.index] += since.elapsed().as_secs_f64();
                since = Instant::now();
                if saved.elapsed() > CHECKPOINT_EVERY && !last {
                    save(directory, state, &network, &learner)?;
                    saved = Instant::now();
                }
                // A device that slows down (heat, other jobs) must not stretch the budget by more than a tenth.
                if settings.steps.is_none() && state.seconds[settings.index] > settings.seconds * 1.1 {
                    state.total = Some(state.step);
                }
            }
        }
        Ok(learner)
    });
    Ok(objective.install(network, outcome?.average()))
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
fn save<O: Objective>(
    directory: &RunDirectory,
    state: &mut RunState,
    network: &Network,
    learner: &Learner<O>,
) -> anyhow::Result<()> {
    directory.save(state, |path| {
        write(network.clone(), path, "network.bpk")?;
        learner.parts().into_iter().try_for_each(|(name, part)| write(part, path, name))
    })
}

/// Writes a module's parameters under `name`.
///
/// # Errors
/// Anything that the disk refuses.
pub fn write<M: Module>(module: M, path: &Path, name: &str) -> anyhow::Result<()> {
    module.into_record().save(path.join(name)).with_context(|| format!("{}", path.join(name).display()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use burn::tensor::Tensor;

    use super::*;
    use crate::model::autoencoder::Autoencoder;
    use crate::model::profile::{ModelConfig, Profile};
    use crate::synthetic::corrupt::CorruptionFamily;
    use crate::trainer::augment::Augmentation;
    use crate::trainer::batches::Batch;
    use crate::trainer::config::TrainConfig;
    use crate::trainer::objective::{AutoencoderObjective, Inputs};

    /// The autoencoder's objective, whose loss is no number at some calls.
    #[derive(Clone)]
    struct Spoilt {
        inner: AutoencoderObjective,
        at: fn(usize) -> bool,
        calls: Arc<AtomicUsize>,
    }

    impl Objective for Spoilt {
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

        fn inputs(&self, network: &Network, batch: Batch) -> Inputs {
            self.inner.inputs(network, batch)
        }

        fn loss(&self, network: &Network, trained: &Autoencoder, inputs: &[Tensor<4>], steps: u32) -> Tensor<1> {
            let loss = self.inner.loss(network, trained, inputs, steps);
            let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            if (self.at)(call) { loss * f32::NAN } else { loss }
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
            learner: LearnerSettings { weight_decay: 1e-4, ema_decay: 0.9 },
            pictures: &pictures,
            batches: &batches,
            steps: Some(45),
            most: usize::MAX,
            device: &device,
        };
        let objective = Spoilt { inner: AutoencoderObjective { config }, at, calls: Arc::default() };
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
