use std::path::Path;

use burn::tensor::Device;
use dsad::bundle::weights::TensorFile;
use dsad::model::profile::{ModelConfig, Profile};
use dsad::trainer::base::{Base, place};
use tempfile::TempDir;

use super::cli::lines;
use super::support::{TRAINER, kill_once_there, run, tiny_bundle};

/// Arguments of a pretraining of three steps a stage at 64x64.
const PRETRAIN: [&str; 8] =
    ["pretrain", "--out", "base.safetensors", "--stage-steps", "3", "--products", "3", "--config"];

/// A directory with the configuration of `tiny_bundle`, `tiny.toml`.
fn home() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(tiny_bundle().0.with_file_name("tiny.toml"), dir.path().join("tiny.toml")).unwrap();
    dir
}

fn bytes(dir: &TempDir, name: &str) -> Vec<u8> {
    std::fs::read(dir.path().join(name)).unwrap()
}

#[test]
fn a_killed_pretraining_makes_the_same_base_and_fit_starts_from_it() {
    let (whole, killed) = (home(), home());
    let pretrain = [&PRETRAIN[..], &["tiny.toml", "--json"]].concat();
    let (code, out, error) = run(TRAINER, &pretrain, whole.path());
    assert_eq!(code, 0, "{error}");
    let summary = &lines(&out)[0];
    assert_eq!(summary["steps"], serde_json::json!([3, 3, 3]));
    assert_eq!(summary["bytes"], bytes(&whole, "base.safetensors").len());
    assert!(!whole.path().join("base.safetensors.run").exists(), "a run that has ended is cleared away");

    kill_once_there(TRAINER, &pretrain, killed.path(), &killed.path().join("base.safetensors.run/state.json"));
    assert!(!killed.path().join("base.safetensors").exists(), "a killed run leaves no base");
    let (code, _, error) = run(TRAINER, &[&pretrain[..], &["--seed", "9"]].concat(), killed.path());
    assert!(code == 1 && error.contains("--fresh"), "{code}: {error}");
    let (code, _, error) = run(TRAINER, &pretrain, killed.path());
    assert_eq!(code, 0, "{error}");
    assert!(bytes(&killed, "base.safetensors") == bytes(&whole, "base.safetensors"), "the resumed run ends elsewhere");

    // Three products make a bundle with classes; the fit is killed after its first stage, too.
    let parts = tiny_bundle().1.to_str().unwrap();
    let fit = ["fit", "--data", parts, "--out", "bundle", "--config", "tiny.toml", "--stage-steps", "2"];
    let from = |base: &'static str| [&fit[..], &["--base", base]].concat();
    let (code, _, error) = run(TRAINER, &from("base.safetensors"), whole.path());
    assert_eq!(code, 0, "{error}");
    kill_once_there(TRAINER, &from("base.safetensors"), killed.path(), &killed.path().join("bundle.run/state.json"));
    let (code, _, error) = run(TRAINER, &from("none"), killed.path());
    assert!(code == 1 && error.contains("--fresh"), "a run does not go on from another base: {error}");
    let (code, _, error) = run(TRAINER, &from("base.safetensors"), killed.path());
    assert_eq!(code, 0, "{error}");
    let weights = "bundle/weights.safetensors";
    assert!(bytes(&killed, weights) == bytes(&whole, weights), "a resumed fit takes the base again");

    let hash = summary["blake3"].as_str().unwrap();
    for name in ["bundle/manifest.json", "bundle.report.html"] {
        let text = String::from_utf8(bytes(&whole, name)).unwrap();
        assert!(text.contains(hash), "{name} does not name the base");
    }
    // Two steps leave most of the base as it was: the bundle is nearer to it than fresh weights could be.
    let entries = |name: &str| TensorFile::open(&whole.path().join(name)).unwrap().entries().unwrap();
    let (base, fitted) = (entries("base.safetensors"), entries(weights));
    let (mut apart, mut size) = (0.0, 0.0);
    for (name, entry) in base.iter().filter(|(name, _)| name.starts_with("denoiser.")) {
        apart += entry.values.iter().zip(&fitted[name].values).map(|(a, b)| (a - b).abs()).sum::<f32>();
        size += entry.values.iter().map(|v| v.abs()).sum::<f32>();
    }
    assert!(apart < 0.3 * size, "{apart} of {size}");
}

#[test]
fn the_bases_that_ship_fit_the_networks() {
    for profile in [Profile::EdgeSmall, Profile::Edge] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(place(profile));
        if path.exists() {
            let base = Base::open(&path, profile).unwrap();
            base.apply(ModelConfig::of(profile, 2).init(&Device::flex()), 2).unwrap();
        }
    }
}
