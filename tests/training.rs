//! The paper's sampling and training against PyTorch, with the networks of `tests/data/checkpoints/diad.ckpt`.
//!
//! The reference: `tests/data/checkpoints/training.py`.

use std::path::Path;

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use dsad::bundle::weights::TensorFile;
use dsad::model::lighten::lighten;
use dsad::model::network::{Network, class_rows};
use dsad::preprocess::spec::{Geometry, Normalisation, PreprocessSpec, SketchPlane};
use dsad::trainer::import::build::{Built, build};
use dsad::trainer::import::release::{write_autoencoder, write_diad};
use dsad::trainer::paper::autoencoder::{Finetune, Perceptual};
use dsad::trainer::paper::config::{FinetuneFile, TrainFile};
use dsad::trainer::paper::data::Material;
use dsad::trainer::paper::diffusion::{Batch, Learner, objective};
use dsad::trainer::paper::lpips::Lpips;
use dsad::trainer::paper::run::Task;
use safetensors::tensor::Dtype;
use tempfile::TempDir;

use super::golden_model::Fixture;
use super::import::{Named, diad, dsad, file, hashed, sources, text, write};

const RATE: f64 = 1e-3;

fn expected() -> Fixture {
    Fixture::open("../checkpoints/training")
}

fn built(home: &TempDir) -> Built {
    build(&diad(), &text(), &sources(home, &file("diad.ckpt")), &Device::flex()).unwrap()
}

/// The frozen copies of what a learner does not carry, and its data.
fn batch(network: &Network, fixture: &Fixture, step: usize) -> Batch {
    let tensor = |name: &str| fixture.tensor::<4>(&format!("train.{step}.{name}"));
    let timesteps = fixture.values(&format!("train.{step}.timesteps"));
    let image = tensor("image");
    Batch {
        latent: tensor("latent"),
        noise: tensor("noise"),
        timesteps: timesteps.iter().map(|&t| t as usize).collect(),
        stages: network.features.forward(image.clone()),
        image,
        sketch: None,
    }
}

#[test]
fn four_guided_steps_are_pytorchs() {
    let home = TempDir::new().unwrap();
    let network = built(&home).network;
    let (known, fixture) = (Fixture::open("../checkpoints/expected"), expected());
    let image = known.tensor::<4>("image");
    let stages = network.features.forward(image.clone());
    let steering = network.steer(image, None, &stages, class_rows(&[0], &known.device));
    let noise = Some(fixture.tensor("sample.noise"));
    let latent =
        network.sampler().run(known.tensor("latent"), noise, 4, |x, t| network.denoise(x, &[t as f64], &steering));
    fixture.assert_close(latent, "sample.latent");
}

#[test]
fn the_loss_and_two_steps_of_adamw_are_pytorchs() {
    let home = TempDir::new().unwrap();
    let mut built = built(&home);
    let fixture = expected();
    let network = built.network.clone();
    let context = network.context.as_ref().unwrap().val();
    let learner =
        Learner { denoiser: network.denoiser.clone().freeze_reading(), control: network.control.clone().unwrap() };
    let mut learner = learner.to_device(&Device::flex().autodiff().gradient_checkpointing()).train();
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init();
    for step in 0..2 {
        let loss = objective(&learner, Some(&context), &network, batch(&network, &fixture, step));
        fixture.assert_close(loss.clone().inner(), &format!("train.{step}.loss"));
        let gradients = GradientsParams::from_grads(loss.backward(), &learner);
        learner = optimizer.step(RATE, learner, gradients);
    }
    let learner = learner.valid();
    built.network.denoiser = learner.denoiser;
    built.network.control = Some(learner.control);
    let path = home.path().join("trained.safetensors");
    write_diad(&built, &diad(), &path).unwrap();
    compare(&path, &fixture, "trained.");
}

/// Values of a file against those of the fixture under `prefix`, to a hundredth of a step.
fn compare(path: &Path, fixture: &Fixture, prefix: &str) {
    let written = TensorFile::open(path).unwrap().entries().unwrap();
    let names: Vec<&str> = fixture.names().filter_map(|name| name.strip_prefix(prefix)).collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let theirs = fixture.values(&format!("{prefix}{name}"));
        let ours = &written[name].values;
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(f64::from(worst) < RATE * 0.01, "{name} differs by {worst}");
    }
}

/// VGG16 and the heads with the weights of the script's formula.
fn perceptual_files(home: &TempDir) -> [std::path::PathBuf; 2] {
    let (mut trunk, mut heads) = (Named::new(), Named::new());
    let put = |tensors: &mut Named, name: String, shape: &[usize], value: &dyn Fn(f32) -> f32| {
        let values = hashed(&name, shape.iter().product());
        let data = values.iter().flat_map(|&v| value(v).to_le_bytes()).collect();
        tensors.insert(name, (Dtype::F32, shape.to_vec(), data));
    };
    let (mut index, mut width) = (0, 3);
    for (k, slice) in [&[64, 64][..], &[128, 128], &[256; 3], &[512; 3], &[512; 3]].iter().enumerate() {
        index += usize::from(k > 0);
        for &channels in *slice {
            let scale = (6.0 / (9 * width) as f64).sqrt() as f32;
            let name = format!("features.{index}");
            put(&mut trunk, format!("{name}.weight"), &[channels, width, 3, 3], &|v| v * scale);
            put(&mut trunk, format!("{name}.bias"), &[channels], &|v| 0.1 * v);
            (index, width) = (index + 2, channels);
        }
        put(&mut heads, format!("lin{k}.model.1.weight"), &[1, width, 1, 1], &f32::abs);
    }
    put(&mut trunk, "classifier.6.bias".into(), &[10], &|v| v);
    let paths = ["vgg16", "vgg"].map(|name| home.path().join(format!("{name}.safetensors")));
    write(&trunk, &paths[0]);
    write(&heads, &paths[1]);
    paths
}

#[test]
fn lpips_and_two_steps_of_adam_on_the_autoencoder_are_pytorchs() {
    let home = TempDir::new().unwrap();
    let fixture = expected();
    let [trunk, heads] = perceptual_files(&home);
    let device = Device::flex();
    let lpips = Lpips::import(&trunk, &heads, &device).unwrap();
    let distance = lpips.forward(fixture.tensor("autoencoder.0.image"), fixture.tensor("lpips.shown"));
    fixture.assert_close(distance, "lpips");

    let sizes = diad().autoencoder;
    let mut file: FinetuneFile = shipped(include_str!("../configs/train/finetune-autoencoder.toml"));
    file.autoencoder.normalisation = Normalisation::SymmetricOne;
    let spec = PreprocessSpec {
        width: 64,
        height: 32,
        geometry: Geometry::Stretch,
        normalisation: Normalisation::SymmetricOne,
        sketch: SketchPlane::None,
        tiles: None,
    };
    let finetune = Finetune {
        sizes: &sizes,
        run: &file.run,
        config: &file.autoencoder,
        material: &Material { train: vec![], select: vec![], calibrate: vec![], sets: vec![] },
        spec: &spec,
        perceptual: Perceptual::Lpips(lpips),
        device: &device,
    };
    let mut autoencoder = built(&home).network.autoencoder.to_device(&device.clone().autodiff()).train();
    let mut optimizer = finetune.optimizer();
    for step in 0..2 {
        let tensor = |name: &str| fixture.tensor::<4>(&format!("autoencoder.{step}.{name}"));
        let loss: Tensor<1> = finetune.objective(&autoencoder, tensor("image"), tensor("noise"));
        fixture.assert_close(loss.clone().inner(), &format!("autoencoder.{step}.loss"));
        let gradients = GradientsParams::from_grads(loss.backward(), &autoencoder);
        autoencoder = optimizer.step(RATE, autoencoder, gradients);
    }
    let path = home.path().join("finetuned.safetensors");
    write_autoencoder(&autoencoder.valid(), &sizes, &path).unwrap();
    compare(&path, &fixture, "finetuned.");
}

fn shipped<F: serde::de::DeserializeOwned>(text: &str) -> F {
    toml::from_str(text).unwrap()
}

#[test]
fn the_shipped_rates_are_the_papers() {
    let train: TrainFile = shipped(include_str!("../configs/train/train.toml"));
    assert_eq!((train.run.batch, train.run.accumulate, train.run.learning_rate), (12, 4, 1e-5));
    assert_eq!(train.diffusion.weight_decay, 0.01);
    let finetune: FinetuneFile = shipped(include_str!("../configs/train/finetune-autoencoder.toml"));
    assert_eq!((finetune.run.batch, finetune.run.accumulate, finetune.run.learning_rate), (4, 8, 1.8e-4));
}

/// What a lightened network answers, and how much smaller it is.
fn lightened(network: Network, config: &dsad::model::profile::ModelConfig) -> (usize, usize) {
    let known = Fixture::open("../checkpoints/expected");
    let answer = |network: &Network| {
        let image = known.tensor::<4>("image");
        let noise = Some(expected().tensor("sample.noise"));
        network.reconstruct(image, None, &[0], 2, noise).image.try_into_vec_as::<f32>().unwrap()
    };
    let (before, parameters) = (answer(&network), network.num_params());
    let (network, light) = lighten(network, config);
    let size = before.iter().map(|v| v.abs()).fold(0.0, f32::max);
    // As it is, and as it judges frames: what follows from class and step count alone is computed once.
    for after in [answer(&network), answer(&network.at(0, 2)), answer(&network.clone().joined().at(0, 2))] {
        let worst = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4 * size, "{worst} of {size}");
    }
    // The sizes describe what is left.
    assert_eq!(light.init(&Device::flex()).num_params(), network.num_params());
    (parameters, network.num_params())
}

#[test]
fn a_lightened_network_answers_the_same() {
    let home = TempDir::new().unwrap();
    let network = built(&home).network;
    let (before, after) = lightened(network.clone(), &diad());
    assert!(after < before, "{after} of {before}");
    // A fusion block that never learned is dead, and goes too.
    let fresh = diad().init(&Device::flex());
    let mut untrained = network;
    untrained.control = fresh.control;
    let (_, least) = lightened(untrained, &diad());
    assert!(least < after, "{least} of {after}");
    let sources = sources(&home, &file("diffusers"));
    let other = build(&dsad(), &text(), &sources, &Device::flex()).unwrap().network;
    lightened(other, &dsad());
}
