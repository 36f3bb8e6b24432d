use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::cli::lines;
use super::support::{TRAINER, kill_once_there, run, tiny_bundle};

/// Two variants of networks at 64x64 side by side, one of which also makes a bundle of two products.
const FILE: &str = "sets = ['washer']\nprofile = 'edge-small'\nparallel = 2\nstage_steps = 1\nsteps = [1, 2]\n\
                    baseline = true\nbase = 'none'\n\
                    [[variant]]\nname = 'whole'\n\
                    [variant.train]\ngrid = [64, 64]\nsteps = [1, 2]\n\
                    [[variant]]\nname = 'bare'\nsets = ['board', 'washer']\ntogether = true\nfrom_noise = true\n\
                    [variant.train]\ngrid = [64, 64]\nsteps = [1, 2]\nsemantic = false\nsketch = false\n\
                    multi_scale = false\nrepair = false\nrefine = false\nprototypes = false\ndefect_share = 0.0\n";

fn sweep(home: &TempDir) -> (i32, Vec<Value>, String) {
    let data = tiny_bundle().1.to_str().unwrap();
    let args = ["sweep", "sweep.toml", "--out", "out", "--data", data, "--json"];
    let (code, out, error) = run(TRAINER, &args, home.path());
    (code, lines(&out), error)
}

fn row(home: &TempDir, place: &str) -> Value {
    let text = std::fs::read(home.path().join("out").join(place).join("row.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn modified(path: &Path) -> std::time::SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn variants_run_side_by_side_and_a_killed_sweep_goes_on() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("sweep.toml"), FILE).unwrap();
    let data = tiny_bundle().1.to_str().unwrap();
    let args = ["sweep", "sweep.toml", "--out", "out", "--data", data];
    let bundle = home.path().join("out/whole/washer-seed0/bundle/manifest.json");
    kill_once_there(TRAINER, &args, home.path(), &bundle);
    let made = modified(&bundle);

    let (code, mut table, error) = sweep(&home);
    assert_eq!(code, 0, "{error}");
    let summary = table.pop().unwrap();
    assert_eq!((&summary["rows"], &summary["failed"]), (&4.into(), &0.into()));
    assert_eq!(modified(&bundle), made, "what was fitted before the kill is kept");
    // Two step counts; two sets at two step counts, as trained and from noise; two sets of the yardstick.
    let of = |variant: &str| table.iter().filter(|line| line["variant"] == variant).collect::<Vec<_>>();
    assert_eq!((of("whole").len(), of("bare").len(), of("baseline").len(), table.len()), (2, 8, 2, 12));
    for line in &table {
        let auroc = |key: &str| line[key].as_f64().unwrap();
        assert!(auroc("image_auroc_low") <= auroc("image_auroc_high"), "{line}");
        assert!((0.0..=1.0).contains(&auroc("image_auroc")) && line["frame_ms"].as_f64().unwrap() > 0.0, "{line}");
        let (fitted, judged) = (line["variant"] != "baseline", line["from_noise"] == false);
        for key in ["parameters", "gflop", "fit_seconds", "unseen_auroc"] {
            assert_eq!(line[key].is_number(), fitted, "{key}: {line}");
        }
        for key in ["false_reject_rate", "false_reject_bound", "recall"] {
            assert_eq!(line[key].is_number(), fitted && judged, "{key}: {line}");
        }
    }
    let (whole, bare) = (of("whole"), of("bare"));
    assert!(bare[0]["parameters"].as_f64() < whole[0]["parameters"].as_f64());
    assert!(whole[0]["gflop"].as_f64() < whole[1]["gflop"].as_f64(), "two steps cost more than one");
    assert_ne!(bare[0]["pixel_ap"], bare[4]["pixel_ap"], "noise is another start");
    let manifest: Value = serde_json::from_slice(&std::fs::read(&bundle).unwrap()).unwrap();
    for part in ["repair", "refine", "prototypes"] {
        assert!(manifest["model"][part].is_object(), "{part}");
    }
    let path = home.path().join("out/bare/together-seed0/bundle/manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(manifest["classes"], serde_json::json!(["board", "washer"]));
    for part in ["repair", "refine", "prototypes"] {
        assert!(manifest["model"][part].is_null(), "{part}");
    }
    assert_eq!(manifest["model"]["guidance"]["semantic"], false);

    // A command of a row does it again.
    let commands = row(&home, "whole/washer-seed0")["commands"].clone();
    assert_eq!(commands.as_array().unwrap().len(), 3);
    let test = commands[2].as_str().unwrap();
    assert!(test.starts_with("RAYON_NUM_THREADS=") && test.contains("--steps 2"), "{test}");
    let words: Vec<&str> = test.split_whitespace().skip(2).collect();
    let (code, out, error) = run(TRAINER, &words, home.path());
    assert_eq!(code, 0, "{error}");
    assert_eq!(lines(&out)[0]["image_auroc"], whole[1]["image_auroc"]);
    let text = std::fs::read_to_string(home.path().join("out/table.md")).unwrap();
    assert!(text.contains("| bare | 2 sets | 2 |") && text.contains(test), "{text}");

    // The same again runs nothing, another step count tests, another configuration fits anew.
    let log = home.path().join("out/whole/washer-seed0/fit.log");
    let said = modified(&log);
    let (code, again, error) = sweep(&home);
    assert_eq!((code, &again[..12]), (0, &table[..]), "{error}");
    assert_eq!(modified(&log), said);
    let one = FILE.split("[[variant]]\nname = 'bare'").next().unwrap().replace("baseline = true", "parallel = 1");
    let one = one.replacen("parallel = 2\n", "", 1);
    std::fs::write(home.path().join("sweep.toml"), one.replace("grid = [64, 64]", "grid = [96, 64]")).unwrap();
    let (code, table, error) = sweep(&home);
    assert_eq!((code, table.len()), (0, 3), "{error}");
    assert!(modified(&bundle) > made, "another request is another bundle");
    assert_eq!(row(&home, "whole/washer-seed0")["request"]["fit"]["config"]["grid"], serde_json::json!([96, 64]));
}

#[test]
fn a_row_that_fails_says_why_and_the_other_runs() {
    let home = tempfile::tempdir().unwrap();
    let alone = FILE.replace("baseline = true\n", "");
    let with = |own: &str| alone.replace("sets = ['board', 'washer']\ntogether = true\nfrom_noise = true", own);
    std::fs::write(home.path().join("sweep.toml"), with("base = 'x'")).unwrap();
    std::fs::write(home.path().join("x"), "is no base").unwrap();
    let (code, mut table, error) = sweep(&home);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("1 of 2 rows failed") && error.contains("table.md"), "{error}");
    assert_eq!(table.pop().unwrap()["failed"], 1);
    let failed: Vec<&Value> = table.iter().filter(|line| line["error"].is_string()).collect();
    assert_eq!((failed.len(), &failed[0]["variant"]), (1, &"bare".into()));
    let why = failed[0]["error"].as_str().unwrap();
    assert!(why.starts_with("fit: trainer: --base x") && why.contains("--base none"), "{why}");
    assert_eq!(table.len(), 2 + 1, "the other has its lines: {table:?}");

    // With the reason gone, the same command makes up for it.
    std::fs::write(home.path().join("sweep.toml"), with("")).unwrap();
    let (code, _, error) = sweep(&home);
    assert_eq!(code, 0, "{error}");
}

#[test]
fn a_sweep_that_makes_no_sense_is_refused_before_anything_runs() {
    let home = tempfile::tempdir().unwrap();
    for (from, to, words) in [
        ("stage_steps", "stage_stps", &["sweep.toml", "stage_stps"][..]),
        ("'washer'", "'wascher'", &["sweep.toml", "'wascher'", "did you mean 'washer'", "board"]),
        ("semantic", "semantik", &["sweep.toml", "variant 'bare'", "semantik = false", "did you mean 'semantic'"]),
        ("parallel = 2", "parallel = 0", &["sweep.toml", "parallel = 0", "at least 1"]),
    ] {
        std::fs::write(home.path().join("sweep.toml"), FILE.replacen(from, to, 1)).unwrap();
        let (code, _, error) = sweep(&home);
        assert_eq!(code, 1, "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{to}: {error}");
        assert!(!home.path().join("out").exists(), "{to}");
    }
}
