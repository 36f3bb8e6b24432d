//! Times the paper-sized networks: one guided call, a frame at 10, 4, 2 and 1 steps, one training step. How to run it beside
//! PyTorch: `benches/paper.sh`.
//!
//! One JSON object a line: `{"what": ..., "ms": ..., "runs": ...}`. Weights are random: times do not depend on them.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use dsad::bundle::manifest::NumberFormat;
use dsad::config::device::DeviceChoice;
use dsad::detector::{DetectorSpec, DiffusionDetector};
use dsad::device;
use dsad::inspection::detect::{Detector, Plan, StepPlan, Steps};
use dsad::model::lighten::lighten;
use dsad::model::network::{Network, class_rows};
use dsad::model::profile::{ModelConfig, Profile};
use dsad::preprocess::spec::Normalisation;
use dsad::trainer::judge::TrainerClock;
use dsad::trainer::paper::data::{normal, prepared};
use dsad::trainer::paper::diffusion::{Batch, Learner, objective};
use dsad::trainer::paper::model;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Model grid.
const SIDE: usize = 256;

/// Weights of variance 1/fan-in everywhere: the zero convolutions of a fresh network would hide an error.
struct Filler<'a>(&'a Device);

impl ModuleMapper for Filler<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let fan_in: usize = shape.iter().skip(1).product();
        let (mean, deviation) = if D > 1 { (0.0, (fan_in.max(1) as f64).sqrt().recip()) } else { (0.5, 0.1) };
        let distribution = Distribution::Normal(mean, deviation);
        Param::from_tensor(Tensor::random(shape, distribution, self.0))
    }
}

/// Half precision, or another device.
struct Moved<'a>(&'a Device, FloatDType);

impl ModuleMapper for Moved<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        Param::from_tensor(param.val().to_device(self.0).cast(self.1))
    }
}

struct Arguments {
    device: DeviceChoice,
    half: bool,
    check: bool,
    train: bool,
    batch: usize,
    tiny: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments =
        Arguments { device: DeviceChoice::Cpu, half: false, check: false, train: false, batch: 12, tiny: false };
    let mut given = std::env::args().skip(1);
    while let Some(flag) = given.next() {
        match flag.as_str() {
            "--device" => arguments.device = given.next().ok_or("--device: which?")?.parse()?,
            "--half" => arguments.half = true,
            "--check" => arguments.check = true,
            "--train" => arguments.train = true,
            "--batch" => arguments.batch = given.next().and_then(|n| n.parse().ok()).ok_or("--batch: how many?")?,
            "--tiny" => arguments.tiny = true,
            // cargo bench adds it.
            "--bench" => {}
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(arguments)
}

/// Runs `work` until its kernels are compiled, then `runs` times, and says the mean.
fn time(what: &str, device: &Device, runs: usize, mut work: impl FnMut()) {
    let started = Instant::now();
    for _ in 0..2 {
        work();
        device.sync().expect("the device answers");
    }
    let warm_up = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for _ in 0..runs {
        work();
    }
    device.sync().expect("the device answers");
    let ms = started.elapsed().as_secs_f64() * 1e3 / runs as f64;
    println!("{}", json!({ "what": what, "ms": ms, "runs": runs, "warm_up_s": warm_up }));
}

fn sizes(tiny: bool) -> ModelConfig {
    let mut sizes = ModelConfig::of(Profile::Sd15, 0);
    if tiny {
        sizes.denoiser.channels = vec![32, 64, 64, 64];
        sizes.autoencoder.encoder_channels = vec![32, 32, 32, 32];
        sizes.autoencoder.decoder_channels = vec![32, 32, 32, 32];
    }
    sizes
}

fn noise(count: usize, device: &Device, dtype: FloatDType) -> Tensor<4> {
    normal(&mut ChaCha8Rng::seed_from_u64(1), [count, 4, SIDE / 8, SIDE / 8], device).cast(dtype)
}

fn picture(count: usize, device: &Device, dtype: FloatDType) -> Tensor<4> {
    normal(&mut ChaCha8Rng::seed_from_u64(2), [count, 3, SIDE, SIDE], device).tanh().cast(dtype)
}

/// One guided call's answer.
fn guided(network: &Network, device: &Device, dtype: FloatDType) -> Tensor<4> {
    let image = picture(1, device, dtype);
    let stages = network.features.forward(image.clone());
    let steering = network.steer(image, None, &stages, class_rows(&[0], device));
    network.denoise(noise(1, device, dtype), &[749.0], &steering)
}

fn frames(arguments: &Arguments, device: &Device) {
    let sizes = sizes(arguments.tiny);
    let (dtype, format) = match arguments.half {
        true => (FloatDType::F16, NumberFormat::F16),
        false => (FloatDType::F32, NumberFormat::F32),
    };
    let whole = sizes.init(device).map(&mut Filler(device)).valid();
    let (network, light) = lighten(whole, &sizes);
    // As a frame of 4 steps has it: 749 is its second timestep.
    let judging = |network: Network| network.joined().at(0, 4);
    let network = network.map(&mut Moved(device, dtype));
    if arguments.check {
        let cpu = device::open(DeviceChoice::Cpu).expect("the CPU").device;
        let reference = network.clone().map(&mut Moved(&cpu, FloatDType::F32));
        let reference = guided(&judging(reference), &cpu, FloatDType::F32);
        let read = |tensor: Tensor<4>| tensor.cast(FloatDType::F32).try_into_vec_as::<f32>().expect("values");
        let (ours, theirs) = (read(guided(&judging(network.clone()), device, dtype)), read(reference));
        let size = (theirs.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / theirs.len() as f64).sqrt();
        let worst = ours.iter().zip(&theirs).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        println!("{}", json!({ "what": "guided call beside the CPU", "relative_error": worst / size }));
    }
    {
        let network = judging(network.clone());
        let image = picture(1, device, dtype);
        let stages = network.features.forward(image.clone());
        let steering = network.steer(image, None, &stages, class_rows(&[0], device));
        let latent = noise(1, device, dtype);
        time("guided call", device, 20, || drop(network.denoise(latent.clone(), &[749.0], &steering)));
    }
    let spec = model::preprocess(&light, SIDE, SIDE);
    let detector = DetectorSpec {
        classes: Vec::new(),
        map: model::map(),
        seed: 0,
        latent_channels: light.autoencoder.latent_channels,
        normalisation: Normalisation::SymmetricOne,
    };
    let clock: Arc<_> = TrainerClock::start();
    let mut detector = DiffusionDetector::new(network, detector, device, format, clock);
    let rgb: Vec<u8> = (0..3 * SIDE * SIDE).map(|i| (i * 7 % 251) as u8).collect();
    let frame = [prepared(&rgb, &spec).expect("a picture")];
    for steps in [10, 4, 2, 1] {
        let plan = Plan::new(StepPlan::Fixed(Steps(steps)), None);
        time(&format!("frame at {steps} steps"), device, 10, || {
            drop(detector.detect(&frame, &plan).expect("a detection"));
        });
    }
}

fn training(arguments: &Arguments, device: &Device) {
    let sizes = sizes(arguments.tiny);
    let mut network = sizes.init(device).map(&mut Filler(device)).valid();
    let learner = Learner {
        denoiser: network.denoiser.clone().freeze_reading(),
        control: network.control.take().expect("the paper's size has one"),
    };
    // Only what does not learn stays beside the learner.
    network.denoiser = sizes.denoiser.init(device);
    let mut learner = Some(learner.to_device(&device.clone().autodiff().gradient_checkpointing()).train());
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init();
    let context = network.context.as_ref().map(Param::val);
    let count = arguments.batch;
    let image = picture(count, device, FloatDType::F32);
    let stages = network.features.forward(image.clone());
    time(&format!("training step of {count}"), device, 5, || {
        let batch = Batch {
            latent: noise(count, device, FloatDType::F32),
            noise: noise(count, device, FloatDType::F32),
            timesteps: (0..count).map(|k| k * 83 % 1000).collect(),
            image: image.clone(),
            sketch: Some(image.clone().mean_dim(1)),
            stages: stages.clone(),
        };
        let part = learner.take().expect("it comes back");
        let loss = objective(&part, context.as_ref(), &network, batch);
        let gradients = GradientsParams::from_grads(loss.backward(), &part);
        learner = Some(optimizer.step(1e-5, part, gradients));
    });
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(reason) => {
            eprintln!("paper: {reason}; known are --device D, --half, --check, --train, --batch N, --tiny");
            return ExitCode::from(2);
        }
    };
    let device = match device::open(arguments.device) {
        Ok(compute) => compute.device,
        Err(error) => {
            eprintln!("paper: {error}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.train {
        training(&arguments, &device)
    } else {
        frames(&arguments, &device)
    }
    ExitCode::SUCCESS
}
