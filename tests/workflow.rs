//! The paper's whole way through the programs, with networks of a handful of channels: finetune the autoencoder, build the
//! model, train, test, export, and the daemon judges by the bundle. Two runs are killed and go on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dsad::bundle::weights::TensorFile;
use dsad::model::profile::ModelConfig;
use dsad::model::text::TextEncoderConfig;
use tempfile::TempDir;

use super::cli::{config, lines};
use super::import::{diad, dsad as dsad_sizes, file, resnet50, text};
use super::support::{DSAD, TRAINER, run};

const SIDE: &str = "64";

struct Workshop {
    home: TempDir,
}

impl Workshop {
    /// A product, and the sizes of a form of the model.
    fn new(model: &ModelConfig, text: &TextEncoderConfig) -> Self {
        let home = tempfile::tempdir().unwrap();
        let sizes = serde_json::json!({ "model": model, "text": text });
        std::fs::write(home.path().join("sizes.json"), sizes.to_string()).unwrap();
        resnet50(&home.path().join("resnet50.safetensors"));
        let workshop = Self { home };
        let count = ["--count", "20", "--test-good", "2", "--test-defective", "2", "--size", SIDE];
        workshop.trainer(&[&["synth", "--out", "data"], &count[..]].concat());
        // One product is enough.
        for entry in std::fs::read_dir(workshop.at("data")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("washer") {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
        workshop
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn trainer(&self, args: &[&str]) -> String {
        let (code, out, error) = run(TRAINER, args, self.home.path());
        assert_eq!(code, 0, "{args:?}: {error}");
        out
    }

    /// A shipped configuration with short distances between checkpoints.
    fn configuration(&self, shipped: &str, name: &str) {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(shipped)).unwrap();
        let text = text
            .replace("checkpoint_every = 500", "checkpoint_every = 2")
            .replace("devices = [\"cuda\"]", "devices = [\"cpu\"]")
            .replace("width = 256", &format!("width = {SIDE}"))
            .replace("height = 256", &format!("height = {SIDE}"))
            .replace("validation_pictures = 60", "validation_pictures = 2")
            .replace("validation_steps = 4", "validation_steps = 1");
        std::fs::write(self.at(name), text).unwrap();
    }

    /// Starts a run and kills it as soon as a checkpoint of at least `step` is there.
    fn kill_after(&self, args: &[&str], out: &str, step: usize) {
        let mut child = Command::new(TRAINER)
            .args(args)
            .current_dir(self.home.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(120);
        while checkpoints(&self.at(out)).last().is_none_or(|last| *last < step) {
            assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "no checkpoint {step}");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Steps of the checkpoints of a run.
fn checkpoints(out: &Path) -> Vec<usize> {
    let names =
        std::fs::read_dir(out).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut steps: Vec<usize> = names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

#[test]
fn from_public_checkpoints_to_a_bundle_that_the_daemon_serves() {
    let shop = Workshop::new(&dsad_sizes(), &text());
    shop.configuration("configs/train/finetune-autoencoder.toml", "finetune.toml");
    shop.configuration("configs/train/train.toml", "train.toml");

    let first = file("diad.ckpt");
    let first = first.to_str().unwrap();
    let common = ["--data", "data/washer", "--batch", "2", "--accumulate", "2"];
    let finetune = |steps: &'static str| {
        let own = ["finetune-autoencoder", "--config", "finetune.toml", "--sizes", "sizes.json"];
        [&own[..], &["--resume_path", first, "--out", "first", "--steps", steps], &common].concat()
    };
    shop.kill_after(&finetune("1000"), "first", 2);
    let out = shop.trainer(&finetune("12"));
    let stage = out.lines().find_map(|line| line.strip_prefix("autoencoder")).unwrap().trim().to_owned();

    let stable_diffusion = file("diffusers");
    shop.trainer(&[
        "build-model",
        "--stable-diffusion",
        stable_diffusion.to_str().unwrap(),
        "--first-stage",
        &stage,
        "--backbone",
        "resnet50.safetensors",
        "--sizes",
        "sizes.json",
        "--out",
        "model",
    ]);

    let train = |out: &'static str, steps: &'static str| {
        let own = ["train", "--config", "train.toml", "--learning-rate", "1e-3"];
        [&own[..], &["--resume-path", "model", "--out", out, "--steps", steps], &common].concat()
    };
    shop.kill_after(&train("run", "1000"), "run", 2);
    shop.kill_after(&train("run", "1000"), "run", 6);
    let reached = *checkpoints(&shop.at("run")).last().unwrap();
    assert!(reached < 40, "the run is killed on its way, not at its end: {reached}");
    shop.trainer(&train("run", "40"));
    assert_eq!(checkpoints(&shop.at("run")), [38, 40], "the newest two stay");
    shop.trainer(&train("whole", "40"));
    let bytes = |run: &str, name: &str| std::fs::read(shop.at(run).join("step-000040").join(name)).unwrap();
    let weights = |run: &str| bytes(run, "weights.safetensors");
    assert!(weights("run") == weights("whole"), "a run that was killed ends elsewhere");
    let state = |run: &str| serde_json::from_slice::<serde_json::Value>(&bytes(run, "state.json")).unwrap();
    assert_eq!(state("run")["validations"], state("whole")["validations"]);
    assert_ne!(
        std::fs::read(shop.at("run/step-000040/weights.safetensors")).unwrap(),
        std::fs::read(shop.at("model/weights.safetensors")).unwrap()
    );
    let other = [&train("run", "50")[..], &["--seed", "9"]].concat();
    let (code, _, error) = run(TRAINER, &other, shop.home.path());
    assert!(code == 1 && error.contains("seed 1 there, 9 now"), "{error}");

    // Two devices share the passes of a step: the same sums in another order.
    shop.trainer(&[&train("one", "2")[..], &["--devices", "cpu"]].concat());
    shop.trainer(&[&train("two", "2")[..], &["--devices", "cpu,cpu"]].concat());
    let entries = |run: &str| {
        let path = shop.at(run).join("step-000002/weights.safetensors");
        TensorFile::open(&path).unwrap().entries().unwrap()
    };
    let (one, two) = (entries("one"), entries("two"));
    let learned = one.iter().filter(|(name, _)| name.starts_with("control.") || name.starts_with("denoiser.up"));
    let pairs = learned.flat_map(|(name, entry)| entry.values.iter().zip(&two[name].values));
    // Adam's first steps are of the size of the rate wherever a gradient is not zero: rounding may turn a few of them.
    let (far, count) = pairs.fold((0, 0), |(far, count), (a, b)| (far + usize::from((a - b).abs() > 2e-5), count + 1));
    assert!(count > 10_000 && far * 200 < count, "{far} of {count} weights differ");

    let judge = ["test", "--resume_path", "run", "--data", "data/washer", "--out", "judged", "--json"];
    let rows = lines(&shop.trainer(&[&judge[..], &["--steps", "2"]].concat()));
    assert_eq!((&rows[0]["images"], &rows[1]["class"]), (&4.into(), &"mean".into()));
    for name in ["metrics.json", "metrics.csv", "metrics.txt"] {
        assert!(shop.at("judged").join(name).is_file(), "{name}");
    }
    for name in ["input", "reconstruction", "samples", "features", "heatmap"] {
        let folder = shop.at("judged/washer/good");
        let pictures = std::fs::read_dir(folder).unwrap().filter_map(Result::ok);
        let found = pictures.filter(|p| p.file_name().to_string_lossy().ends_with(&format!("-{name}.png"))).count();
        assert_eq!(found, 2, "{name}");
    }

    shop.trainer(&["export", "--resume-path", "run", "--data", "data/washer", "--out", "bundle", "--steps", "1,2"]);
    // The bundle's figures are those of the model: the same networks, lightened and in half precision.
    let tested = lines(&shop.trainer(&["test", "--bundle", "bundle", "--data", "data/washer", "--json"]));
    assert_eq!(tested[0]["image_auroc"], rows[0]["image_auroc"]);
    let good = shop.at("data/washer/test/good");
    config(
        shop.home.path(),
        &shop.at("bundle"),
        &format!("{{ kind = 'replay', folder = '{}' }}", good.display()),
        "e.ndjson",
    );
    let (code, _, error) = run(DSAD, &["run", "--config", "dsad.toml", "--json"], shop.home.path());
    assert_eq!(code, 0, "{error}");
    let events = lines(&std::fs::read_to_string(shop.at("e.ndjson")).unwrap());
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|event| event["verdict"] != "fault"), "{events:?}");
}

#[test]
fn diads_network_trains_and_its_wrong_data_is_refused() {
    let shop = Workshop::new(&diad(), &text());
    shop.configuration("configs/train/train.toml", "train.toml");
    let checkpoint = file("diad.ckpt");
    shop.trainer(&[
        "build-model",
        "--stable-diffusion",
        checkpoint.to_str().unwrap(),
        "--backbone",
        "resnet50.safetensors",
        "--sizes",
        "sizes.json",
        "--diad-compat",
        "--normalisation",
        "image-net",
        "--out",
        "model",
    ]);
    let train = ["train", "--config", "train.toml", "--resume-path", "model", "--data", "data/washer", "--out", "run"];
    shop.trainer(&[&train[..], &["--steps", "2", "--batch", "3", "--accumulate", "1"]].concat());
    let export = ["export", "--resume-path", "run/step-000002", "--out", "bundle", "--steps", "1", "--data"];
    let picture = std::fs::read_dir(shop.at("data/washer/train/good")).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(&picture, shop.at("away")).unwrap();
    let (code, _, error) = run(TRAINER, &[&export[..], &["data/washer"]].concat(), shop.home.path());
    assert!(code == 1 && error.contains("not the pictures of the run"), "{error}");
    std::fs::rename(shop.at("away"), &picture).unwrap();
    // A folder of somebody else's is not replaced.
    std::fs::create_dir(shop.at("bundle")).unwrap();
    std::fs::write(shop.at("bundle/thesis.txt"), "years of work").unwrap();
    let (code, _, error) = run(TRAINER, &[&export[..], &["data/washer"]].concat(), shop.home.path());
    assert!(code == 1 && error.contains("exists already") && shop.at("bundle/thesis.txt").exists(), "{error}");
    std::fs::remove_dir_all(shop.at("bundle")).unwrap();
    shop.trainer(&[&export[..], &["data/washer"]].concat());
    let manifest = std::fs::read_to_string(shop.at("bundle/manifest.json")).unwrap();
    assert!(manifest.contains("\"image_net\"") && manifest.contains("\"zeros\": 6"), "{manifest}");
}
