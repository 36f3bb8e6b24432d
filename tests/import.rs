//! Public checkpoints in: the networks compute what PyTorch computed with the same file, every tensor is accounted for, and
//! nothing in a file is executed.
//!
//! The files and what they come from: `tests/data/checkpoints/generate.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use dsad::bundle::weights::TensorFile;
use dsad::model::blocks::stage::BlockKind;
use dsad::model::blocks::transformer::ContextConfig;
use dsad::model::control::{ControlConfig, ControlForm, SketchBranch};
use dsad::model::features::resnet::BLOCKS;
use dsad::model::guidance::SketchOperator;
use dsad::model::profile::{ModelConfig, Profile};
use dsad::model::text::TextEncoderConfig;
use dsad::model::unet::{Conditions, DenoiserConfig};
use dsad::trainer::import::build::{Built, Sources, build};
use dsad::trainer::import::checkpoint::Checkpoint;
use dsad::trainer::import::release::write_diad;
use pytorch_reader::PytorchReader;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

use super::golden_model::{Fixture, style};

const TIMESTEP: [f64; 1] = [749.0];
const GROUPS: usize = 2;

pub(super) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name)
}

/// Stable Diffusion with three levels and a handful of channels.
fn config(form: ControlForm) -> ModelConfig {
    let mut config = ModelConfig::of(Profile::Sd15, 0);
    let style = |epsilon| {
        let mut style = style(BlockKind::Residual, epsilon);
        style.groups = GROUPS;
        style
    };
    config.autoencoder.encoder_channels = vec![4, 4, 8, 8];
    config.autoencoder.decoder_channels = vec![4, 4, 8, 8];
    config.autoencoder.blocks = 1;
    config.autoencoder.style = style(1e-6);
    config.denoiser = DenoiserConfig {
        latent_channels: 4,
        channels: vec![4, 8, 8],
        blocks: 2,
        attention: vec![true, true, false],
        heads: 2,
        context: Some(ContextConfig { tokens: 5, width: 8, stored: false }),
        style: style(1e-5),
    };
    config.control = Some(ControlConfig { hint: [2, 2, 3, 3, 4, 4, 6], form });
    config
}

pub(super) fn diad() -> ModelConfig {
    config(ControlForm::Diad { all_skips: false, zeros: None })
}

pub(super) fn dsad() -> ModelConfig {
    let sketch = Some(SketchBranch { operator: SketchOperator::Soft, channels: [2, 2, 2, 2] });
    config(ControlForm::Dsad { sketch, semantic: Some(2), multi_scale: Some(4) })
}

pub(super) fn text() -> TextEncoderConfig {
    TextEncoderConfig { vocabulary: 30, length: 5, width: 8, heads: 2, layers: 2 }
}

/// Numbers in -1 to 1 from a name: FNV-1a of the name, then SplitMix64 of the index, as in the script.
pub(super) fn hashed(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let number = |index: u64| {
        let x = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let x = x ^ (x >> 31);
        ((x >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
    };
    (0..count as u64).map(number).collect()
}

pub(super) type Named = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub(super) fn write(tensors: &Named, path: &Path) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A file in torchvision's layout with the weights of the script's formula.
pub(super) fn resnet50(path: &Path) {
    let mut tensors = Named::new();
    let mut put = |name: String, shape: &[usize], scale: &dyn Fn(f32) -> f32| {
        let values = hashed(&name, shape.iter().product());
        let data = values.iter().flat_map(|&value| scale(value).to_le_bytes()).collect();
        tensors.insert(name, (Dtype::F32, shape.to_vec(), data));
    };
    let mut layer = |conv: &str, norm: &str, shape: [usize; 4]| {
        let scale = (3.0 / (shape[1] * shape[2] * shape[3]) as f64).sqrt() as f32;
        put(format!("{conv}.weight"), &shape, &|value| value * scale);
        put(format!("{norm}.weight"), &shape[..1], &|value| 0.7 + 0.2 * value);
        put(format!("{norm}.bias"), &shape[..1], &|value| 0.1 * value);
        put(format!("{norm}.running_mean"), &shape[..1], &|value| 0.1 * value);
        put(format!("{norm}.running_var"), &shape[..1], &|value| 1.0 + 0.5 * value);
        // What stride 16 does not need must be passed over.
        put(format!("{norm}.num_batches_tracked"), &[1], &|_| 3.0);
    };
    layer("conv1", "bn1", [64, 3, 7, 7]);
    let mut input = 64;
    for (k, &blocks) in BLOCKS.iter().enumerate() {
        let inner = 64 << k;
        for block in 0..blocks {
            let name = format!("layer{}.{block}", k + 1);
            let shapes = [[inner, input, 1, 1], [inner, inner, 3, 3], [4 * inner, inner, 1, 1]];
            for (i, shape) in shapes.into_iter().enumerate() {
                layer(&format!("{name}.conv{}", i + 1), &format!("{name}.bn{}", i + 1), shape);
            }
            if block == 0 {
                let shape = [4 * inner, input, 1, 1];
                layer(&format!("{name}.downsample.0"), &format!("{name}.downsample.1"), shape);
            }
            input = 4 * inner;
        }
    }
    layer("layer4.0.conv1", "layer4.0.bn1", [4, 4, 1, 1]);
    put("fc.bias".into(), &[10], &|value| value);
    write(&tensors, path);
}

pub(super) fn sources(home: &TempDir, stable_diffusion: &Path) -> Sources {
    let backbone = home.path().join("resnet50.safetensors");
    resnet50(&backbone);
    Sources { stable_diffusion: stable_diffusion.to_path_buf(), first_stage: None, backbone }
}

fn open(name: &str) -> Fixture {
    Fixture::open(&format!("../checkpoints/{name}"))
}

/// Everything but the control network.
fn assert_outputs(expected: &Fixture, built: &Built) {
    let (network, context) = (&built.network, context(built));
    expected.assert_close(context.clone(), "context");
    let conditions = Conditions { context: Some(&context), ..Conditions::default() };
    expected.assert_close(network.denoiser.forward(expected.tensor("latent"), &TIMESTEP, &conditions), "denoiser");
    let image = || expected.tensor::<4>("image");
    expected.assert_close(network.autoencoder.posterior(image()).mean, "autoencoder.mean");
    expected.assert_close(network.autoencoder.decode(expected.tensor("latent"), 1.0), "autoencoder.decoded");
    for (k, stage) in network.features.forward(image()).into_iter().enumerate() {
        expected.assert_close(stage.narrow(1, 0, 32), &format!("features.{k}"));
    }
}

fn context(built: &Built) -> Tensor<2> {
    built.network.context.as_ref().unwrap().val()
}

fn part<'a>(built: &'a Built, name: &str) -> &'a dsad::trainer::import::build::PartReport {
    built.parts.iter().find(|part| part.part == name).unwrap()
}

#[test]
fn a_lightning_file_in_compvis_layout_computes_what_pytorch_did() {
    let home = TempDir::new().unwrap();
    let built = build(&diad(), &text(), &sources(&home, &file("diad.ckpt")), &Device::flex()).unwrap();
    let (expected, context) = (open("expected"), context(&built));
    assert_outputs(&expected, &built);
    let control = built.network.control.as_ref().unwrap();
    let stages = built.network.features.forward(expected.tensor("image"));
    let hint = control.hint(expected.tensor("image"), None, &stages);
    let guidance = control.forward(expected.tensor("latent"), &TIMESTEP, Some(&context), hint);
    let conditions = Conditions { context: Some(&context), guidance: Some(&guidance), ..Conditions::default() };
    let guided = built.network.denoiser.forward(expected.tensor("latent"), &TIMESTEP, &conditions);
    expected.assert_close(guided, "guided");

    assert!(part(&built, "control").report.kept.is_empty());
    for name in ["callbacks", "epoch", "global_step", "optimizer_states"] {
        assert!(built.others.iter().any(|other| other.starts_with(name)), "{name} in {:?}", built.others);
    }
}

#[test]
fn a_directory_of_diffusers_computes_the_same_and_starts_the_control_network_as_a_copy() {
    let home = TempDir::new().unwrap();
    let built = build(&dsad(), &text(), &sources(&home, &file("diffusers")), &Device::flex()).unwrap();
    assert_outputs(&open("expected"), &built);
    let control = &part(&built, "control").report;
    assert!(control.matched.iter().any(|name| name == "down.1.units.0.transformer.own.query.weight"), "{control:?}");
    let own = ["hint", "fusion.", "zeros.", "zero_middle.", "multi_scale."];
    assert!(control.kept.iter().all(|name| own.iter().any(|own| name.starts_with(own))), "{:?}", control.kept);
    for own in own {
        assert!(control.kept.iter().any(|name| name.starts_with(own)), "{own} in {:?}", control.kept);
    }
}

#[test]
fn what_is_written_in_diads_layout_is_what_was_read() {
    let home = TempDir::new().unwrap();
    let read = build(&diad(), &text(), &sources(&home, &file("diad.ckpt")), &Device::flex()).unwrap();
    let path = home.path().join("written.safetensors");
    write_diad(&read, &diad(), &path).unwrap();
    let written = TensorFile::open(&path).unwrap().entries().unwrap();
    // The buffers of the file are those of a toy schedule; everything else comes back in its name, shape and values.
    let parts = ["model.", "control_model.", "first_stage_model.", "cond_stage_model."];
    let original = tensors(|name| parts.iter().any(|part| name.starts_with(part)).then(|| name.to_owned()));
    for (name, (dtype, shape, data)) in original.iter().filter(|(_, (dtype, ..))| *dtype == Dtype::F16) {
        let entry = written.get(name).unwrap_or_else(|| panic!("{name} ({dtype:?}) was not written"));
        assert_eq!(&entry.shape, shape, "{name}");
        let values = data.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32());
        assert!(values.eq(entry.values.iter().copied()), "{name}");
    }
    let buffers = written.keys().filter(|name| !parts.iter().any(|part| name.starts_with(part))).count();
    assert_eq!(buffers, 13);
    // Values of the released code.
    let bar = &written["alphas_cumprod"].values;
    for (t, expected) in [(0, 0.999_150), (501, 0.274_999), (999, 0.004_660)] {
        assert!((bar[t] - expected).abs() < 1e-6, "{t}: {}", bar[t]);
    }
    let again = build(&diad(), &text(), &sources(&home, &path), &Device::flex()).unwrap();
    assert_outputs(&open("expected"), &again);
}

/// The weights of `diad.ckpt` that `keep` names.
fn tensors(keep: impl Fn(&str) -> Option<String>) -> Named {
    let reader = PytorchReader::with_top_level_key(file("diad.ckpt"), "state_dict").unwrap();
    reader
        .into_tensors()
        .into_iter()
        .filter_map(|(name, tensor)| {
            let (_, dtype, shape, read) = tensor.into_parts();
            let dtype = if dtype == pytorch_reader::DType::F16 { Dtype::F16 } else { Dtype::I64 };
            Some((keep(&name)?, (dtype, shape, read().unwrap())))
        })
        .collect()
}

fn plain() -> Named {
    tensors(|name| (!name.starts_with("control_model.")).then(|| name.to_owned()))
}

fn refusal(change: impl FnOnce(&mut Named)) -> String {
    let home = TempDir::new().unwrap();
    let path = home.path().join("changed.safetensors");
    let mut tensors = plain();
    change(&mut tensors);
    write(&tensors, &path);
    format!("{:#}", build(&dsad(), &text(), &sources(&home, &path), &Device::flex()).unwrap_err())
}

#[test]
fn safetensors_with_a_fine_tuned_first_stage_compute_the_same() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("v1-5-pruned.safetensors");
    let mut wrong = plain();
    for (name, (_, _, data)) in &mut wrong {
        if name.starts_with("first_stage_model.") {
            data.fill(0);
        }
    }
    write(&wrong, &path);
    // A first stage of its own, as kl-f8 (without a prefix) and as a fine-tuned one (with its loss).
    for prefix in ["", "first_stage_model."] {
        let first = home.path().join(format!("first{}.safetensors", prefix.len()));
        let mut stage = tensors(|name| Some(format!("{prefix}{}", name.strip_prefix("first_stage_model.")?)));
        stage.insert(format!("{prefix}loss.logvar"), (Dtype::F16, vec![1], vec![0, 0]));
        write(&stage, &first);
        let sources = Sources { first_stage: Some(first), ..sources(&home, &path) };
        let built = build(&dsad(), &text(), &sources, &Device::flex()).unwrap();
        assert_outputs(&open("expected"), &built);
    }
}

#[test]
fn what_is_unexpected_is_an_error() {
    let message = refusal(|tensors| {
        tensors.remove("model.diffusion_model.input_blocks.1.0.in_layers.2.weight");
    });
    assert!(
        message.contains("denoiser lacks 1 of") && message.contains("down.0.units.0.block.conv1.weight"),
        "{message}"
    );

    let message = refusal(|tensors| {
        tensors.insert("model.diffusion_model.input_blocks.99.weight".into(), (Dtype::F16, vec![1], vec![0, 0]));
    });
    assert!(message.contains("no part of the model uses: model.diffusion_model.input_blocks.99"), "{message}");

    let message = refusal(|tensors| {
        tensors.insert("model.diffusion_model.out.2.bias".into(), (Dtype::F16, vec![3], vec![0; 6]));
    });
    assert!(message.contains("'model.diffusion_model.out.2.bias' is [3], the network needs [4]"), "{message}");

    let message = refusal(|tensors| {
        let infinite = [0x00, 0x7c].repeat(4);
        tensors.insert("model.diffusion_model.out.2.bias".into(), (Dtype::F16, vec![4], infinite));
    });
    assert!(message.contains("holds inf"), "{message}");

    let message = refusal(|tensors| {
        tensors.insert("control_model.time_embed.0.weight".into(), (Dtype::F16, vec![1], vec![0, 0]));
    });
    assert!(message.contains("--diad-compat"), "{message}");
}

#[test]
fn a_hostile_pickle_has_no_effect() {
    let beside = Checkpoint::open(&file("hostile-beside.ckpt")).unwrap();
    assert_eq!(beside.read("weight", &[2, 2]).unwrap(), [1.0; 4]);
    assert!(beside.others()[0].starts_with("callbacks"), "{:?}", beside.others());
    let inside =
        Checkpoint::open(&file("hostile-inside.ckpt")).and_then(|checkpoint| checkpoint.read("weight", &[2, 2]));
    assert!(inside.is_err(), "a tensor that a function was to make");
    assert!(!Path::new("HOSTILE-PICKLE-WAS-EXECUTED").exists());
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_allocated() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("absurd.safetensors");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        format!("{:#}", Checkpoint::open(&path).unwrap_err())
    };
    assert!(refused(&u64::MAX.to_le_bytes()).contains("a header of"), "length of the header");
    let header = br#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    assert!(refused(&bytes).contains("beyond the end of the file"), "length of a tensor");
    assert!(refused(b"GIF89a, not weights").contains("neither a PyTorch file nor safetensors"), "another format");
}

/// By hand, with a file that `generate.py --full DIRECTORY` made: 2.1 GB on disk, 14 GB of memory.
#[test]
#[ignore = "needs DSAD_FULL_SIZE, the directory of generate.py --full"]
fn files_of_the_published_size_compute_what_pytorch_did() {
    let directory = PathBuf::from(std::env::var("DSAD_FULL_SIZE").expect("DSAD_FULL_SIZE"));
    let expected = Fixture::open(directory.join("expected").to_str().unwrap());
    let home = TempDir::new().unwrap();
    for layout in ["v1-5-pruned.ckpt", "diffusers"].map(|layout| directory.join(layout)) {
        if layout.exists() {
            let config = ModelConfig::of(Profile::Sd15, 0);
            let built = build(&config, &TextEncoderConfig::clip(), &sources(&home, &layout), &Device::flex()).unwrap();
            assert_outputs(&expected, &built);
            println!("{}: as PyTorch", layout.display());
        }
    }
}
