//! Networks, schedules and samplers against published PyTorch modules, and where there are none against plain torch.
//!
//! The fixtures and what they come from: `tests/data/golden/generate.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::{ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use burn::tensor::{Device, Int, Tensor, TensorData};
use dsad::bundle::weights::{TensorEntry, TensorFile};
use dsad::model::autoencoder::posterior::Posterior;
use dsad::model::autoencoder::{Autoencoder, AutoencoderConfig};
use dsad::model::blocks::activation::Activation;
use dsad::model::blocks::attention::AttentionBlockConfig;
use dsad::model::blocks::edge::EdgeBlockConfig;
use dsad::model::blocks::resample::{Downsample, Upsample, depth_to_space, space_to_depth};
use dsad::model::blocks::residual::ResidualBlockConfig;
use dsad::model::blocks::stage::{BlockKind, BlockStyle};
use dsad::model::blocks::timestep::sinusoidal;
use dsad::model::features::Stages;
use dsad::model::guidance::{GuidanceConfig, SketchOperator};
use dsad::model::loss::{dice, focal};
use dsad::model::refine::{Compared, RefineConfig};
use dsad::model::repair::RepairConfig;
use dsad::model::sampler::Sampler;
use dsad::model::schedule::{NoiseSchedule, ScheduleKind};
use dsad::model::score::{feature_map, latent_map};
use dsad::model::sketch::soft_sketch;
use dsad::model::unet::{Conditions, Denoiser, DenoiserConfig, Guidance};
use safetensors::tensor::{Dtype, TensorView};

/// Largest difference, relative to the root mean square of the reference.
const TOLERANCE: f64 = 1e-4;
/// Stable Diffusion's factor, and the reference's.
const LATENT_SCALE: f64 = 0.18215;
pub(super) const GROUPS: usize = 4;

pub(super) struct Fixture {
    entries: BTreeMap<String, TensorEntry>,
    pub(super) device: Device,
}

impl Fixture {
    pub(super) fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name);
        let entries = TensorFile::open(&path.with_extension("safetensors")).unwrap().entries().unwrap();
        Self { entries, device: Device::flex() }
    }

    fn entry(&self, name: &str) -> &TensorEntry {
        self.entries.get(name).unwrap_or_else(|| panic!("no '{name}' in the fixture"))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(super) fn values(&self, name: &str) -> &[f32] {
        &self.entry(name).values
    }

    pub(super) fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let entry = self.entry(name);
        Tensor::from_data(TensorData::new(entry.values.clone(), entry.shape.clone()), &self.device)
    }

    /// Fills a module with the tensors under `prefix`: all of them, and all that it has.
    pub(super) fn load<M: Module>(&self, module: M, prefix: &str) -> M {
        self.load_named(module, |name| Some(name.strip_prefix(prefix)?.strip_prefix('.')?.to_owned()))
    }

    /// Fills a module with the tensors that get a name: all of them, and all that it has.
    pub(super) fn load_named<M: Module>(&self, mut module: M, name: impl Fn(&str) -> Option<String>) -> M {
        let named: Vec<(String, &[usize], Vec<u8>)> = self
            .entries
            .iter()
            .filter_map(|(full, entry)| {
                let data = entry.values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Some((name(full)?, &entry.shape[..], data))
            })
            .collect();
        let views =
            named.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
        let mut store = SafetensorsStore::from_bytes(Some(safetensors::serialize(views, None).unwrap()))
            .with_from_adapter(PyTorchToBurnAdapter)
            .skip_enum_variants(true);
        let report = module.load_from(&mut store).unwrap();
        assert!(report.unused.is_empty() && !report.applied.is_empty(), "{report}");
        module
    }

    pub(super) fn assert_close<const D: usize>(&self, actual: Tensor<D>, name: &str) {
        let expected = self.entry(name);
        assert_eq!(&actual.dims()[..], &expected.shape[..], "shape of '{name}'");
        let actual = actual.into_data().try_into_vec::<f32>().unwrap();
        assert_values(actual.into_iter().map(f64::from), &expected.values, name);
    }
}

fn assert_values(actual: impl ExactSizeIterator<Item = f64>, expected: &[f32], name: &str) {
    assert_eq!(actual.len(), expected.len(), "length of '{name}'");
    let scale = (expected.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>() / expected.len() as f64).sqrt();
    let worst = actual.zip(expected).map(|(a, &e)| (a - f64::from(e)).abs()).fold(0.0, f64::max) / scale;
    // Not `worst >= ..`: that would let NaN pass.
    assert!(worst < TOLERANCE, "'{name}' is off by {worst:.2e}");
}

pub(super) fn style(kind: BlockKind, epsilon: f64) -> BlockStyle {
    BlockStyle { kind, activation: Activation::Silu, groups: GROUPS, epsilon, expansion: 2 }
}

#[test]
fn residual_blocks_match_resnet_block_2d() {
    let fixture = Fixture::open("blocks");
    for (name, output, embedding) in [("residual_same", 8, None), ("residual_wider", 16, Some(12))] {
        let activation = Activation::Silu;
        let config = ResidualBlockConfig { input: 8, output, embedding, groups: GROUPS, epsilon: 1e-6, activation };
        let block = fixture.load(config.init(&fixture.device), &format!("{name}.weights"));
        let embedding = embedding.map(|_| fixture.tensor("embedding"));
        fixture.assert_close(block.forward(fixture.tensor("input"), embedding), &format!("{name}.output"));
    }
}

#[test]
fn edge_blocks_match_torch() {
    let fixture = Fixture::open("blocks");
    for (name, output, embedding, activation) in
        [("edge_same", 8, None, Activation::Relu), ("edge_wider", 16, Some(12), Activation::Silu)]
    {
        let config = EdgeBlockConfig { input: 8, output, embedding, groups: GROUPS, expansion: 2, activation };
        let block = fixture.load(config.init(&fixture.device), &format!("{name}.weights"));
        let embedding = embedding.map(|_| fixture.tensor("embedding"));
        fixture.assert_close(block.forward(fixture.tensor("input"), embedding), &format!("{name}.output"));
    }
}

#[test]
fn attention_matches_diffusers() {
    let fixture = Fixture::open("blocks");
    for (name, heads) in [("attention_1", 1), ("attention_4", 4)] {
        let config = AttentionBlockConfig { channels: 8, heads, groups: GROUPS, epsilon: 1e-6 };
        let block = fixture.load(config.init(&fixture.device), &format!("{name}.weights"));
        fixture.assert_close(block.forward(fixture.tensor("input")), &format!("{name}.output"));
    }
}

#[test]
fn resampling_matches_downsample_2d_upsample_2d_and_pixel_unshuffle() {
    let fixture = Fixture::open("blocks");
    let device = &fixture.device;
    let downs = [
        ("down_symmetric", Downsample::symmetric(8, 12, device)),
        ("down_asymmetric", Downsample::asymmetric(8, 12, device)),
        ("down_folding", Downsample::folding(8, 12, device)),
    ];
    for (name, down) in downs {
        let down = fixture.load(down, &format!("{name}.weights"));
        fixture.assert_close(down.forward(fixture.tensor("input")), &format!("{name}.output"));
    }
    let ups =
        [("up_smoothing", Upsample::smoothing(8, 12, device)), ("up_pointwise", Upsample::pointwise(8, 12, device))];
    for (name, up) in ups {
        let up = fixture.load(up, &format!("{name}.weights"));
        fixture.assert_close(up.forward(fixture.tensor("input")), &format!("{name}.output"));
    }
    let input = fixture.tensor::<4>("input");
    let pixels = Tensor::cat(vec![input.clone(), input], 2).narrow(2, 0, 12).narrow(3, 0, 8);
    let folded = space_to_depth(pixels.clone(), 4);
    fixture.assert_close(folded.clone(), "space_to_depth.output");
    depth_to_space(folded, 4).into_data().assert_eq(&pixels.into_data(), true);
}

#[test]
fn timestep_embedding_matches_diffusers() {
    let fixture = Fixture::open("blocks");
    let timesteps: Vec<f64> = fixture.values("timesteps").iter().map(|&t| f64::from(t)).collect();
    let found = TensorData::new(sinusoidal(&timesteps, 32), [timesteps.len(), 32]);
    fixture.assert_close(Tensor::<2>::from_data(found, &fixture.device), "sinusoidal.output");
}

fn autoencoder(fixture: &Fixture) -> Autoencoder {
    let config = AutoencoderConfig {
        latent_channels: 4,
        patch: 1,
        encoder_channels: vec![8, 16, 16, 24],
        decoder_channels: vec![8, 16, 16, 24],
        blocks: 2,
        middle_attention: true,
        style: style(BlockKind::Residual, 1e-6),
    };
    fixture.load(config.init(&fixture.device), "weights")
}

#[test]
fn autoencoder_matches_autoencoder_kl() {
    let fixture = Fixture::open("autoencoder");
    let autoencoder = autoencoder(&fixture);
    let posterior = autoencoder.posterior(fixture.tensor("image"));
    fixture.assert_close(Tensor::cat(vec![posterior.mean.clone(), posterior.log_variance.clone()], 1), "moments");
    fixture.assert_close(posterior.sample(fixture.tensor("noise")), "sample");
    fixture.assert_close(posterior.kl(), "kl");
    fixture.assert_close(autoencoder.encode(fixture.tensor("image"), LATENT_SCALE) / LATENT_SCALE, "mean");
    fixture.assert_close(autoencoder.decode(fixture.tensor("latent"), LATENT_SCALE), "decoded");
}

#[test]
fn log_variance_is_clamped_as_the_reference_does() {
    let fixture = Fixture::open("autoencoder");
    let posterior = Posterior::from_moments(fixture.tensor("wide.moments"));
    fixture.assert_close(posterior.log_variance, "wide.log_variance");
    let values = fixture.values("wide.log_variance");
    assert!(values.contains(&-30.0) && values.contains(&20.0), "the fixture must reach both bounds");
}

fn denoiser(fixture: &Fixture) -> Denoiser {
    let config = DenoiserConfig {
        latent_channels: 4,
        channels: vec![8, 16, 16],
        blocks: 2,
        attention: vec![false, true, false],
        heads: 4,
        context: None,
        style: style(BlockKind::Residual, 1e-5),
    };
    fixture.load(config.init(&fixture.device), "weights")
}

#[test]
fn denoiser_matches_unet_2d() {
    let fixture = Fixture::open("denoiser");
    let denoiser = denoiser(&fixture);
    let latent = || fixture.tensor::<4>("latent");
    let timesteps: Vec<f64> = fixture.values("timesteps").iter().map(|&t| f64::from(t)).collect();
    fixture.assert_close(denoiser.forward(latent(), &timesteps, &Conditions::default()), "plain");
    let class = fixture.tensor("class");
    let classed = Conditions { class: Some(&class), ..Conditions::default() };
    fixture.assert_close(denoiser.forward(latent(), &timesteps, &classed), "classed");
    let guidance = Guidance {
        middle: fixture.tensor("guidance.middle"),
        skips: (0..3).map(|k| fixture.tensor(&format!("guidance.skips.{k}"))).collect(),
    };
    let guided = Conditions { guidance: Some(&guidance), ..classed };
    fixture.assert_close(denoiser.forward(latent(), &timesteps, &guided), "guided");
}

#[test]
fn schedules_match_ddpm_scheduler() {
    let fixture = Fixture::open("schedule");
    for (name, kind) in [("scaled_linear", ScheduleKind::ScaledLinear), ("squared_cosine", ScheduleKind::SquaredCosine)]
    {
        let expected = fixture.values(name);
        let schedule = NoiseSchedule::new(kind, expected.len());
        for (t, &expected) in expected.iter().enumerate() {
            let error = (schedule.alpha_bar(t) / f64::from(expected) - 1.0).abs();
            assert!(error < TOLERANCE, "{name}: alpha_bar({t}) is off by {error:.2e}");
        }
    }
}

#[test]
fn trailing_grids_match_ddim_scheduler() {
    let fixture = Fixture::open("schedule");
    let schedule = NoiseSchedule::new(ScheduleKind::ScaledLinear, 1000);
    for steps in [1, 2, 4, 5, 8, 10, 20, 50] {
        let expected: Vec<usize> = fixture.values(&format!("trailing.{steps}")).iter().map(|&t| t as usize).collect();
        assert_eq!(schedule.trailing(steps), expected, "{steps} steps");
    }
}

fn check_sampler(sampler: Sampler, name: &str, steps: &[u32]) {
    let fixture = Fixture::open("sampler");
    let denoiser = denoiser(&Fixture::open("denoiser"));
    for &steps in steps {
        let noise = sampler.needs_noise().then(|| fixture.tensor("noise"));
        let latent = sampler.run(fixture.tensor("latent"), noise, steps, |x, t| {
            let timesteps = vec![t as f64; x.dims()[0]];
            denoiser.forward(x, &timesteps, &Conditions::default())
        });
        fixture.assert_close(latent, &format!("{name}.{steps}"));
    }
}

#[test]
fn ddim_matches_ddim_scheduler() {
    check_sampler(Sampler::Ddim { timesteps: 1000 }, "ddim", &[1, 2, 4]);
}

#[test]
fn deviation_correction_matches_its_formula_in_numpy() {
    check_sampler(Sampler::DeviationCorrection { levels: 10 }, "deviation", &[1, 2, 4, 8]);
}

#[test]
fn maps_match_torch() {
    let fixture = Fixture::open("score");
    let (seen, redrawn) = (stages(&fixture, "seen"), stages(&fixture, "redrawn"));
    fixture.assert_close(feature_map(&seen, &redrawn, 32, 64), "feature_map");
    let map = latent_map(fixture.tensor("latent.seen"), fixture.tensor("latent.after"), 32, 64);
    fixture.assert_close(map, "latent_map");
}

#[test]
fn soft_sketch_matches_torch() {
    let fixture = Fixture::open("score");
    fixture.assert_close(soft_sketch(fixture.tensor("image")), "sketch");
}

#[test]
fn losses_match_torch() {
    let fixture = Fixture::open("score");
    let (logits, mask) = (|| fixture.tensor::<4>("logits"), || fixture.tensor::<4>("mask"));
    fixture.assert_close(focal(logits(), mask()), "focal");
    fixture.assert_close(dice(logits(), mask()), "dice");
}

fn edge() -> BlockStyle {
    BlockStyle { activation: Activation::Relu, ..style(BlockKind::Edge, 1e-5) }
}

pub(super) fn stages(fixture: &Fixture, name: &str) -> Stages {
    std::array::from_fn(|k| fixture.tensor(&format!("{name}.{k}")))
}

#[test]
fn edge_autoencoder_matches_torch() {
    let fixture = Fixture::open("edge");
    let config = AutoencoderConfig {
        latent_channels: 5,
        patch: 4,
        encoder_channels: vec![8, 12],
        decoder_channels: vec![12, 16],
        blocks: 1,
        middle_attention: false,
        style: edge(),
    };
    let autoencoder = fixture.load(config.init(&fixture.device), "autoencoder");
    let posterior = autoencoder.posterior(fixture.tensor("image"));
    fixture.assert_close(Tensor::cat(vec![posterior.mean, posterior.log_variance], 1), "moments");
    fixture.assert_close(autoencoder.decode(fixture.tensor::<4>("latent") * 0.5, 0.5), "decoded");
}

#[test]
fn guidance_matches_torch() {
    let fixture = Fixture::open("edge");
    let config = GuidanceConfig {
        patch: 2,
        branch_channels: 8,
        channels: vec![8, 12, 16],
        semantic: true,
        sketch: Some(SketchOperator::Canny),
        multi_scale: true,
        style: edge(),
    };
    let network = config.init(20, &[12, 20], 24, 2, [6, 10, 12], &fixture.device);
    let network = fixture.load(network, "guidance");
    let seen = stages(&fixture, "seen");
    let guidance = network.forward(fixture.tensor("image"), Some(fixture.tensor("sketch")), Some(&seen));
    let [first, second] = <[Tensor<4>; 2]>::try_from(guidance.skips).unwrap();
    fixture.assert_close(first, "control.0");
    fixture.assert_close(second, "control.1");
    fixture.assert_close(guidance.middle, "control.2");
    let classes = Tensor::<1, Int>::from_data(TensorData::from([2i32, 0]), &fixture.device);
    fixture.assert_close(network.class_embedding(classes), "class_embedding");
}

#[test]
fn repair_matches_torch() {
    let fixture = Fixture::open("edge");
    let config = RepairConfig { channels: [8, 12, 16, 20], bottleneck: 4, blocks: 2, style: edge() };
    let network = fixture.load(config.init([6, 10, 12], &fixture.device).network, "repair");
    for (k, stage) in network.forward(&stages(&fixture, "seen")).into_iter().enumerate() {
        fixture.assert_close(stage, &format!("repaired.{k}"));
    }
}

#[test]
fn refine_head_matches_torch() {
    let fixture = Fixture::open("edge");
    let config = RefineConfig { channels: [8, 12, 16], blocks: 1, style: edge() };
    let head = fixture.load(config.init([6, 10, 12], 5, &fixture.device), "refine");
    let (seen, normal) = (stages(&fixture, "seen"), stages(&fixture, "redrawn"));
    let (latent, restored) = (fixture.tensor("latent.seen"), fixture.tensor("latent.normal"));
    let logits = head.forward(
        fixture.tensor("image"),
        Compared { seen: &latent, normal: &restored },
        Compared { seen: &seen, normal: &normal },
    );
    fixture.assert_close(logits, "logits");
}

#[test]
fn backbone_matches_timm() {
    let fixture = Fixture::open("backbone");
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/backbone/efficientnet_lite0.f16.safetensors");
    let features = dsad::trainer::backbone::load(&weights, &fixture.device).unwrap();
    for (k, stage) in features.forward(fixture.tensor("image")).into_iter().enumerate() {
        fixture.assert_close(stage, &format!("stage.{k}"));
    }
}

#[test]
fn fixtures_stay_small() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    let bytes: u64 = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 4_000_000, "{bytes} bytes of fixtures");
}
