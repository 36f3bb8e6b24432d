//! The step loop of a run, and its checkpoints.
//!
//! ```text
//! out/
//! ├── step-000500/      a checkpoint: the model, optimizer.bpk, state.json
//! └── step-001000/
//! ```
//!
//! A checkpoint is written under another name and renamed when it is whole, so a kill at any moment leaves the older one.
//! What a pass draws depends on the seed and its number alone: a run that goes on computes the bits that it would have
//! computed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::RunConfig;
use super::model::publish;

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.bpk";
/// Held while a process trains into a folder.
const LOCK: &str = ".lock";
/// Steps between two looks at the loss: each look waits for the device.
const LOOK_EVERY: usize = 10;

/// What a run trains.
pub trait Task: Sync {
    /// The part that learns.
    type Trained: Module + Clone + Send;

    /// Name in logs.
    fn name(&self) -> &'static str;

    /// Where it computes, without the gradient graph.
    fn device(&self) -> &Device;

    /// A fresh optimiser.
    fn optimizer(&self) -> ModuleOptimizer;

    /// The loss of pass number `pass`, `[1]`.
    ///
    /// # Errors
    /// What the preparation of its pictures says.
    fn loss(&self, trained: &Self::Trained, pass: usize) -> anyhow::Result<Tensor<1>>;

    /// How good the part is on held-out pictures; higher is better.
    ///
    /// # Errors
    /// What the device says.
    fn validate(&self, trained: Self::Trained) -> anyhow::Result<f64>;

    /// Writes the model into a checkpoint.
    ///
    /// # Errors
    /// Anything that the disk refuses.
    fn write(&self, trained: Self::Trained, directory: &Path) -> anyhow::Result<()>;
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// What decides every bit of the run: seed, batch, pictures. Another request must not go on from here.
    pub request: Value,
    /// Optimiser steps that are done.
    pub step: usize,
    /// Learning rate of the last step: the schedule is constant.
    pub learning_rate: f64,
    /// Mean loss per stretch of steps: `(step, loss)`.
    pub losses: Vec<(usize, f64)>,
    /// Validations: `(step, value)`, higher is better.
    pub validations: Vec<(usize, f64)>,
    /// Seconds spent in steps.
    pub seconds: f64,
}

impl State {
    /// A run at its beginning.
    pub fn new(request: Value) -> Self {
        Self { request, step: 0, learning_rate: 0.0, losses: vec![], validations: vec![], seconds: 0.0 }
    }

    /// Columns and rows of the model grid.
    pub fn grid(&self) -> Option<(usize, usize)> {
        let side = |key: &str| self.request.get(key)?.as_u64().map(|side| side as usize);
        Some((side("width")?, side("height")?))
    }

    /// The step with the best validation.
    pub fn best(&self) -> Option<(usize, f64)> {
        let better = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
        self.validations.iter().copied().reduce(better)
    }

    /// Reads the state of a checkpoint; nothing if the directory is a model without one.
    ///
    /// # Errors
    /// A state that cannot be read.
    pub fn read(checkpoint: &Path) -> anyhow::Result<Option<Self>> {
        let path = checkpoint.join(STATE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{}: not the state of a run", path.display()))
    }
}

/// The checkpoints under `out`, oldest first.
fn checkpoints(out: &Path) -> anyhow::Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    if out.is_dir() {
        for entry in std::fs::read_dir(out)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
                found.push((step, path));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Where a run begins: its newest checkpoint; without one, the newest of the run that is named, or what is named itself.
///
/// # Errors
/// A folder that cannot be listed, or an older checkpoint of this very run.
pub fn origin(config: &RunConfig) -> anyhow::Result<PathBuf> {
    let newest = |folder: &Path| anyhow::Ok(checkpoints(folder)?.pop().map(|(_, path)| path));
    let named = &config.resume_path;
    let Some(own) = newest(&config.out)? else { return Ok(newest(named)?.unwrap_or_else(|| named.clone())) };
    let older =
        named.parent() == Some(&config.out) && named.join(STATE).is_file() && named.file_name() != own.file_name();
    ensure!(
        !older,
        "{}: this run has a newer checkpoint, {}; remove the newer ones to go back, or give another --out",
        named.display(),
        own.display()
    );
    Ok(own)
}

/// The origin of a run and where it stands there. `fingerprint` tells what a run starts from apart.
///
/// # Errors
/// A state that cannot be read, or one of another request.
pub fn start(
    config: &RunConfig,
    mut request: Value,
    fingerprint: impl Fn(&Path) -> anyhow::Result<String>,
) -> anyhow::Result<(PathBuf, State)> {
    let from = origin(config)?;
    let Some(mut state) = State::read(&from)? else {
        request[START] = fingerprint(&from)?.into();
        return Ok((from, State::new(request)));
    };
    let named = &config.resume_path;
    // What it started from may be gone; another model in its place must not go unnoticed.
    let fresh = named.exists() && State::read(named)?.is_none() && checkpoints(named)?.is_empty();
    request[START] = if fresh { fingerprint(named)?.into() } else { state.request[START].clone() };
    if let Some(differences) = differences(&state.request, &request) {
        bail!(
            "{}: this run was started otherwise: {differences}; give the same settings to go on, or another --out and the \
             model it started from to begin anew",
            from.display()
        );
    }
    if from.parent() != Some(&config.out) {
        // Its checkpoints lie elsewhere: none of them can be the best of this run.
        state.validations.clear();
    }
    if state.learning_rate != config.learning_rate {
        log::warn!("learning rate {} from here on, {} before", config.learning_rate, state.learning_rate);
    }
    log::info!("goes on from {} at step {}", from.display(), state.step);
    Ok((from, state))
}

/// Key of what a run started from, in its request.
const START: &str = "start";

/// The keys of two requests that differ, in words.
fn differences(there: &Value, now: &Value) -> Option<String> {
    let keys = [there, now].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys());
    let mut keys: Vec<&String> = keys.filter(|key| there[key.as_str()] != now[key.as_str()]).collect();
    keys.sort();
    keys.dedup();
    let words = keys.iter().map(|key| format!("{key} {} there, {} now", there[key.as_str()], now[key.as_str()]));
    (!keys.is_empty()).then(|| words.collect::<Vec<_>>().join("; "))
}

/// The checkpoint of a run that its validations found best, or the model itself if it is no run.
///
/// # Errors
/// A folder that holds neither.
pub fn best(path: &Path) -> anyhow::Result<PathBuf> {
    let found = checkpoints(path)?;
    let Some((_, newest)) = found.last() else { return Ok(path.to_path_buf()) };
    let state = State::read(newest)?.with_context(|| format!("{}: has no {STATE}", newest.display()))?;
    let best = state.best().and_then(|(step, _)| found.iter().find(|(known, _)| *known == step));
    Ok(best.map_or(newest, |(_, path)| path).clone())
}

/// Parameters named by where they are, so that the optimiser's state of another process finds them.
struct Named(Vec<String>);

impl ModuleMapper for Named {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.0.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.0.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let hash = blake3::hash(self.0.join(".").as_bytes());
        let id = ParamId::from(u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes")));
        let (_, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// The gradients of some passes, added up, and their losses likewise; each is a share of the whole step.
fn passes<T: Task>(
    task: &T,
    trained: &T::Trained,
    numbers: impl Iterator<Item = usize>,
    share: f64,
) -> anyhow::Result<(GradientsParams, Tensor<1>)> {
    let mut gradients = GradientsAccumulator::new();
    let mut sum: Option<Tensor<1>> = None;
    for number in numbers {
        let loss = task.loss(trained, number)? * share;
        let seen = loss.clone().inner();
        gradients.accumulate(trained, GradientsParams::from_grads(loss.backward(), trained));
        sum = Some(sum.map_or(seen.clone(), |sum| sum + seen));
    }
    Ok((gradients.grads(), sum.context("a device without a pass")?))
}

/// The gradients of one optimiser step: its passes are divided among the tasks, one per device, and end on the first.
///
/// A step has several passes in any case, so devices exchange weights and gradients once per step, by plain copies.
fn step<T: Task>(tasks: &[T], trained: &T::Trained, state: &State, config: &RunConfig) -> anyhow::Result<Gathered> {
    let first = state.step * config.accumulate;
    let share = 1.0 / config.accumulate as f64;
    let of = |device: usize| (first + device..first + config.accumulate).step_by(tasks.len());
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..)
            .zip(&tasks[1..])
            .map(|(number, task)| {
                let replica = trained.clone().fork(&graph(task.device(), config));
                scope.spawn(move || {
                    let (gradients, loss) = passes(task, &replica, of(number), share)?;
                    anyhow::Ok((replica, gradients, loss))
                })
            })
            .collect();
        let (own, mut loss) = passes(&tasks[0], trained, of(0), share)?;
        if others.is_empty() {
            return Ok((own, loss));
        }
        let device = tasks[0].device();
        let mut gradients = GradientsAccumulator::new();
        gradients.accumulate(trained, own);
        for other in others {
            let (replica, theirs, seen) = other.join().map_err(|_| anyhow::anyhow!("a device's thread panicked"))??;
            gradients.accumulate(trained, theirs.to_device(device, &replica));
            loss = loss + seen.to_device(device);
        }
        Ok((gradients.grads(), loss))
    })
}

/// Gradients and loss of a step.
type Gathered = (GradientsParams, Tensor<1>);

/// A device with the gradient graph.
fn graph(device: &Device, config: &RunConfig) -> Device {
    let graph = device.clone().autodiff();
    if config.gradient_checkpointing { graph.gradient_checkpointing() } else { graph }
}

/// Runs a task from where `state` stands to its last step, and returns where it ended. There is one task per device; the
/// first validates and writes.
///
/// # Errors
/// A loss that is not finite, or what the device or the disk says.
pub fn run<T: Task>(
    tasks: &[T],
    part: T::Trained,
    from: &Path,
    mut state: State,
    config: &RunConfig,
) -> anyhow::Result<State> {
    let task = tasks.first().context("a run needs a device")?;
    if state.step >= config.steps {
        log::warn!("{}: has {} steps already; ask for more with --steps", config.out.display(), state.step);
        return Ok(state);
    }
    std::fs::create_dir_all(&config.out).with_context(|| format!("{}: cannot be made", config.out.display()))?;
    let lock = std::fs::File::create(config.out.join(LOCK)).with_context(|| config.out.display().to_string())?;
    lock.try_lock().with_context(|| format!("{}: another process trains into it", config.out.display()))?;
    let mut trained = part.map(&mut Named(Vec::new())).to_device(&graph(task.device(), config)).train();
    let mut optimizer = task.optimizer();
    if state.step > 0 {
        optimizer = optimizer.load(from.join(OPTIMIZER)).with_context(|| format!("{}/{OPTIMIZER}", from.display()))?;
    }
    state.learning_rate = config.learning_rate;
    let style = ProgressStyle::with_template("{prefix:>12} {wide_bar} {pos}/{len} {msg} [{elapsed}, {eta} left]")?;
    let progress = ProgressBar::new(config.steps as u64).with_style(style).with_position(state.step as u64);
    progress.set_prefix(task.name());
    let mut clock = Instant::now();
    let (mut sum, mut summed): (Option<Tensor<1>>, usize) = (None, 0);
    while state.step < config.steps {
        let (gradients, loss) = step(tasks, &trained, &state, config)?;
        sum = Some(sum.map_or(loss.clone(), |sum| sum + loss));
        trained = optimizer.step(config.learning_rate, trained, gradients);
        state.step += 1;
        summed += 1;
        let last = state.step == config.steps;
        let validate = last || state.step.is_multiple_of(config.validate_every);
        let save = validate || state.step.is_multiple_of(config.checkpoint_every);
        if summed == LOOK_EVERY || save {
            let mean = sum.take().map_or(Ok(f32::NAN), Tensor::try_into_scalar::<f32>)? / summed as f32;
            summed = 0;
            ensure!(
                mean.is_finite(),
                "{}: the loss is {mean} at step {}; go on from the last checkpoint with a lower --learning-rate",
                task.name(),
                state.step
            );
            state.losses.push((state.step, f64::from(mean)));
            state.seconds += clock.elapsed().as_secs_f64();
            progress.set_position(state.step as u64);
            progress.set_message(format!("loss {mean:.5}"));
            if validate {
                let value = task.validate(trained.valid())?;
                ensure!(value.is_finite(), "{}: the validation gave {value} at step {}", task.name(), state.step);
                log::info!("step {}: loss {mean:.5}, validation {value:.4}", state.step);
                state.validations.push((state.step, value));
            }
            if save {
                checkpoint(task, trained.valid(), &optimizer, &state, config)?;
            }
            clock = Instant::now();
        }
    }
    progress.finish_and_clear();
    Ok(state)
}

/// Writes a checkpoint and removes those that are neither among the newest nor the best.
fn checkpoint<T: Task>(
    task: &T,
    trained: T::Trained,
    optimizer: &ModuleOptimizer,
    state: &State,
    config: &RunConfig,
) -> anyhow::Result<()> {
    publish(&config.out.join(format!("step-{:06}", state.step)), |directory| {
        task.write(trained, directory)?;
        optimizer.save(directory.join(OPTIMIZER)).context(OPTIMIZER)?;
        Ok(std::fs::write(directory.join(STATE), serde_json::to_vec_pretty(state)?)?)
    })?;
    let found = checkpoints(&config.out)?;
    let best = state.best().map(|(step, _)| step);
    for (step, path) in &found[..found.len().saturating_sub(config.keep)] {
        if Some(*step) != best {
            std::fs::remove_dir_all(path).with_context(|| format!("{}: cannot be removed", path.display()))?;
        }
    }
    Ok(())
}
