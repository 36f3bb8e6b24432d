//! `dsad warm-up` from the outside, on the CPU: it judges, keeps nothing, and lets no file of kernels stop it.

use std::path::Path;

use serde_json::Value;

use crate::cli::{config, lines};
use crate::support::{DSAD, run, tiny_bundle};

fn warm_up(dir: &Path, args: &[&str]) -> (i32, String, String) {
    run(DSAD, &[&["warm-up"], args].concat(), dir)
}

fn summary(dir: &Path, args: &[&str]) -> Value {
    let (code, out, error) = warm_up(dir, &[args, &["--json"]].concat());
    assert_eq!(code, 0, "{error}");
    let mut all = lines(&out);
    assert_eq!(all.len(), 1, "{out}");
    all.remove(0)
}

#[test]
fn a_bundle_is_judged_and_a_second_start_is_timed() {
    let dir = tempfile::tempdir().expect("directory");
    let bundle = tiny_bundle().0.to_str().expect("path");
    let told = summary(dir.path(), &["--bundle", bundle]);
    assert_eq!((&told["device"], &told["kernels"], &told["import"]), (&"cpu".into(), &Value::Null, &Value::Null));
    assert_eq!(told["bundles"].as_array().map(Vec::len), Some(1), "{told}");
    for key in ["first_s", "start_s"] {
        assert!(told[key].as_f64().is_some_and(|seconds| seconds > 0.0), "{told}");
    }
    let (code, out, error) = warm_up(dir.path(), &["--bundle", bundle, "--export", "line.kernels"]);
    assert_eq!(code, 0, "{error}");
    // One step a line as it begins: every step count that the bundle lists.
    let steps = ["opening the device cpu", "loading the bundle", "self-test", "warming up for the recipe 'warm-up'"];
    assert!(steps.iter().all(|step| out.contains(step)), "{out}");
    assert_eq!(out.matches("warming up for").count(), 2, "{out}");
    for words in ["nothing is compiled on the CPU", "a start after this takes", "line.kernels was not written"] {
        assert!(out.contains(words), "{out}");
    }
    assert!(!dir.path().join("line.kernels").exists());
}

#[test]
fn a_file_of_kernels_that_is_of_no_use_stops_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let (dir, bundle) = (dir.path(), &tiny_bundle().0);
    config(dir, bundle, "{ kind = 'synthetic', product = 'washer', fps = 20.0 }", "events.ndjson");
    std::fs::write(dir.join("damaged"), "CUBECLB\u{1}and so on").expect("writes");
    let told = summary(dir, &["--config", "dsad.toml", "--import", "damaged"]);
    assert!(told["import"]["ignored"].as_str().is_some_and(|reason| reason.contains("damaged")), "{told}");
    let (code, out, error) = warm_up(dir, &["--config", "dsad.toml", "--import", "damaged"]);
    assert!(code == 0 && out.contains("import: ignored: "), "{out}{error}");
    assert!(error.contains("damaged: ignored, kernels are compiled"), "{error}");
    let (code, _, error) = warm_up(dir, &["--config", "dsad.toml", "--import", "not-there"]);
    assert!(code == 3 && error.contains("not-there: cannot be read"), "{code}: {error}");
    // A station keeps its events for itself.
    assert!(!dir.join("events.ndjson").exists() && !dir.join("state").exists());
    // A bundle with such a file is installed all the same, and a warm-up proves nothing in the station's place.
    let from = bundle.to_str().expect("path");
    let (code, out, error) = run(DSAD, &["bundle", "install", from, "--into", "places", "--kernels", "damaged"], dir);
    assert!(code == 0 && error.contains("damaged: ignored"), "{out}{error}");
    config(dir, Path::new("places"), "{ kind = 'synthetic', product = 'washer', fps = 20.0 }", "events.ndjson");
    summary(dir, &["--config", "dsad.toml"]);
    let (_, out, _) = run(DSAD, &["bundle", "list", "places", "--json"], dir);
    assert_eq!(lines(&out)[0]["slots"][0]["proven"], false, "{out}");
}

#[test]
fn what_cannot_judge_is_an_error() {
    let dir = tempfile::tempdir().expect("directory");
    for (args, words) in [
        (vec!["--config", "none.toml"], "none.toml"),
        (vec!["--bundle", "none"], "none"),
        (vec!["--bundle", tiny_bundle().0.to_str().expect("path"), "--device", "cuda:99"], "cuda:99"),
    ] {
        let (code, _, error) = warm_up(dir.path(), &args);
        assert!(code == 3 && error.contains(words), "{args:?}: {code}: {error}");
    }
    for wrong in [vec![], vec!["--config", "a", "--bundle", "b"], vec!["--config", "a", "--device", "cpu"]] {
        assert_eq!(warm_up(dir.path(), &wrong).0, 2, "{wrong:?}");
    }
}
