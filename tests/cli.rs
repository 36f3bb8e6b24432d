//! Both programs from the outside.

use std::path::Path;

use serde_json::Value;

use crate::support::{DSAD, TRAINER, kill_once_there, run, tiny_bundle};

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("directory")
}

pub(super) fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

pub(super) fn config(dir: &Path, bundle: &Path, source: &str, events: &str) {
    std::fs::write(dir.join("r.toml"), format!("id = 'r'\nbundle = '{}'\nsteps = 2\n", bundle.display()))
        .expect("writes");
    let text = format!(
        "station = 's'\n[[cameras]]\nname = 'a'\nrecipe = 'r.toml'\nsource = {source}\n[outputs]\nevents = '{events}'\n[archive]\nfolder = 'drawn'\npasses = 1.0\nmin_free_gib = 0.0\n"
    );
    std::fs::write(dir.join("dsad.toml"), text).expect("writes");
}

#[test]
fn wrong_usage_is_exit_2() {
    let dir = home();
    for (program, args) in [(DSAD, vec!["inspect"]), (DSAD, vec!["nonsense"]), (TRAINER, vec!["fit", "--out", "x"])] {
        assert_eq!(run(program, &args, dir.path()).0, 2, "{args:?}");
    }
}

#[test]
fn bench_times_every_part_and_every_stage() {
    let dir = home();
    let args = ["bench", "--profile", "edge-small", "--size", "64", "32", "--batch", "1", "2", "--train", "--json"];
    let (code, out, error) = run(TRAINER, &args, dir.path());
    assert_eq!(code, 0, "{error}");
    let rows = lines(&out);
    let (summary, rows) = rows.split_last().expect("lines");
    let found = |what: &str, pictures: Value| {
        let row = rows.iter().find(|row| row["what"] == what && (pictures.is_null() || row["pictures"] == pictures));
        row.unwrap_or_else(|| panic!("{what}, {pictures}: {out}"))
    };
    let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0).unwrap_or_else(|| panic!("{out}"));
    for what in ["features", "encode", "guidance", "denoise", "decode", "repair", "refine", "prototypes"] {
        assert!([1, 2].iter().all(|&count| number(&found(what, count.into())["ms"]) > 0.0));
    }
    for stage in ["autoencoder", "denoiser", "refine"] {
        let rate = &found(&format!("training step: {stage}"), Value::Null)["pictures_per_s"];
        assert_eq!(&summary["training_pictures_per_s"][stage], rate);
    }
    assert_eq!(summary["frame_ms"], found("frame at 2 steps", 1.into())["ms"]);
    assert_eq!(summary["frames"][1]["frame_ms"], found("frame at 2 steps", 2.into())["ms"]);
    assert!(["frame at 1 steps", "frame at 4 steps"].iter().all(|what| number(&found(what, 2.into())["ms"]) > 0.0));
    for section in ["memory: parts", "memory: frames", "memory: training"] {
        assert!(number(&summary["peak_rss_mb"]) >= number(&found(section, Value::Null)["peak_rss_mb"]));
    }
    for start in ["cold", "warm"] {
        let row = found(&format!("start to ready, {start}"), Value::Null);
        let inside: f64 =
            ["device_s", "load_s", "self_test_s", "warm_up_s"].iter().map(|part| number(&row[part])).sum();
        assert!(number(&row["ready_s"]) > inside, "{row}");
        assert_eq!(summary[format!("ready_{start}_s")], row["ready_s"]);
    }
    let (code, _, error) = run(TRAINER, &["bench", "--profile", "sd15", "--train"], dir.path());
    assert!(code == 1 && error.contains("benches/paper.sh"), "{code}: {error}");
    let (code, _, error) = run(TRAINER, &["bench", "--size", "64", "33"], dir.path());
    assert!(code == 1 && error.contains("33 is not a multiple of 32"), "{code}: {error}");
}

#[test]
fn bench_of_a_bundle_says_how_it_compares() {
    let dir = home();
    let bundle = tiny_bundle().0.to_str().expect("path");
    let rival = |text: &str| {
        std::fs::write(dir.path().join("rival.jsonl"), text).expect("writes");
        let args = ["bench", "--bundle", bundle, "--rival", "rival.jsonl", "--batch", "1", "--train", "--json"];
        run(TRAINER, &args, dir.path())
    };
    // A step of another batch is not compared with.
    let last = r#"{"what": "fast", "ms": 4.0, "training": {"denoiser": {"ms": 5.0, "pictures": 16}, "refine": {"ms": 5.0, "pictures": 3}}}"#;
    let (code, out, error) = rival(&format!("{{\"what\": \"slow\", \"ms\": 9.0}}\n{last}\n"));
    assert_eq!(code, 0, "{error}");
    let mut rows = lines(&out);
    let summary = rows.pop().expect("a summary");
    let step = rows.iter().find(|row| row["what"] == "training step: denoiser").expect("a step");
    let ratios = summary["training_ratio"].as_object().expect("ratios");
    assert_eq!(ratios.len(), 1, "{summary}");
    let (found, ms) = (ratios["denoiser"].as_f64().expect("a ratio"), step["ms"].as_f64().expect("a time"));
    assert!((found * 5.0 - ms).abs() < 1e-9, "{summary}");
    let ratio = |key: &str| summary[key].as_f64().unwrap_or_else(|| panic!("{key}: {summary}"));
    assert!((ratio("ratio") * 4.0 - ratio("frame_ms")).abs() < 1e-9, "{summary}");
    let (code, _, error) = rival("{\"what\": \"golden maps\"}\n");
    assert!(code == 1 && error.contains("rival.jsonl") && error.contains("benches/edge.py"), "{code}: {error}");
}

#[test]
fn inspect_judges_files_and_says_so_by_its_exit_code() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let bundle = bundle.to_str().expect("path");
    let good = parts.join("washer/test/good");
    let args = ["inspect", "--bundle", bundle, "--json", "--out", "drawn", good.to_str().expect("path")];
    let (code, out, error) = run(DSAD, &args, dir.path());
    assert!(code == 0 || code == 1, "{code}: {error}");
    let events = lines(&out);
    let (summary, events) = events.split_last().expect("lines");
    assert_eq!(summary["images"], 3);
    for event in events {
        assert!(event["score"].is_number() && event["verdict"].is_string(), "{event}");
        assert!(dir.path().join(event["image"].as_str().expect("drawn")).is_file());
    }
    // The same file gives the same numbers, bit for bit.
    let again = lines(&run(DSAD, &args[..4], dir.path()).1);
    assert!(again.is_empty(), "no path is a usage error");
    let again = lines(&run(DSAD, &["inspect", "--bundle", bundle, "--json", args[6]], dir.path()).1);
    for (a, b) in events.iter().zip(&again) {
        assert_eq!(a["score"], b["score"]);
    }
    std::fs::write(dir.path().join("broken.png"), b"\x89PNG\r\n\x1a\n broken").expect("writes");
    let (code, out, _) = run(DSAD, &["inspect", "--bundle", bundle, "--json", "broken.png"], dir.path());
    assert_eq!(code, 3);
    let event = &lines(&out)[0];
    assert_eq!(
        (&event["verdict"], &event["reason"], &event["score"]),
        (&"fault".into(), &"camera_fault".into(), &Value::Null)
    );
    let (code, _, error) = run(DSAD, &["inspect", "--bundle", bundle, "--steps", "8", args[6]], dir.path());
    assert!(code == 3 && error.contains("steps 8"), "{code}: {error}");
    std::fs::create_dir(dir.path().join("empty")).expect("directory");
    let (code, _, error) = run(DSAD, &["inspect", "--bundle", bundle, "empty"], dir.path());
    assert!(code == 3 && error.contains("no picture"), "{code}: {error}");
}

#[test]
fn a_test_prints_one_row_per_class_and_their_mean() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let bundle = bundle.to_str().expect("path");
    let set = parts.join("washer");
    let (code, out, error) =
        run(TRAINER, &["test", "--bundle", bundle, "--data", set.to_str().expect("path"), "--json"], dir.path());
    assert_eq!(code, 0, "{error}");
    let rows = lines(&out);
    assert_eq!(rows.last().expect("rows")["class"], "mean");
    let keys: Vec<&String> = rows[0].as_object().expect("object").keys().collect();
    assert_eq!(
        keys,
        [
            "class",
            "image_auroc",
            "image_ap",
            "image_f1max",
            "pixel_auroc",
            "pixel_ap",
            "pixel_f1max",
            "pro",
            "false_reject_rate",
            "recall",
            "images",
            "frame_ms",
            "image_auroc_low",
            "image_auroc_high"
        ]
    );
    assert_eq!(rows[0]["images"], 10);
}

#[test]
fn a_folder_is_judged_whole_by_the_daemon() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let folder = parts.join("washer/train/good");
    config(dir.path(), bundle, &format!("{{ kind = 'replay', folder = '{}' }}", folder.display()), "out/events.ndjson");
    let (code, out, error) = run(DSAD, &["check", "--config", "dsad.toml", "--json"], dir.path());
    assert_eq!(code, 0, "{error}");
    assert_eq!(lines(&out).last().expect("station")["ok"], true);
    let (code, out, error) = run(DSAD, &["run", "--config", "dsad.toml", "--json"], dir.path());
    assert_eq!(code, 0, "{error}");
    let summary = lines(&out).pop().expect("summary");
    assert_eq!((&summary["counts"]["frames_in"], &summary["events_lost"]), (&12.into(), &0.into()));
    let events = lines(&std::fs::read_to_string(dir.path().join("out/events.ndjson")).expect("events"));
    assert_eq!(events.len(), 12);
    let mut ids: Vec<&str> = events.iter().filter_map(|event| event["event_id"].as_str()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 12);
    // Drawings may be given up when they come too fast, never all of them.
    let drawn =
        events.iter().filter_map(|event| event["image"].as_str()).filter(|path| dir.path().join(path).is_file());
    assert!(drawn.count() > 0, "{events:?}");
}

#[test]
fn lines_that_cannot_be_written_are_in_the_database() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let folder = parts.join("washer/test/good");
    config(dir.path(), bundle, &format!("{{ kind = 'replay', folder = '{}' }}", folder.display()), "/dev/full");
    let (code, out, error) = run(DSAD, &["run", "--config", "dsad.toml", "--json"], dir.path());
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("/dev/full: lines cannot be written"), "{error}");
    let summary = lines(&out).pop().expect("summary");
    assert_eq!((&summary["events_written"], &summary["events_lost"]), (&3.into(), &0.into()));
    let (code, out, error) = run(DSAD, &["events", "export", "--config", "dsad.toml"], dir.path());
    assert_eq!((code, lines(&out).len()), (0, 3), "{error}");
    let (_, out, _) = run(DSAD, &["events", "export", "--config", "dsad.toml", "--format", "csv"], dir.path());
    assert!(out.starts_with("schema,event_id,") && out.lines().count() == 4, "{out}");
    let (_, out, _) = run(DSAD, &["events", "export", "--config", "dsad.toml", "--until", "2020-01-01"], dir.path());
    assert_eq!(out, "");
    let (code, _, error) = run(DSAD, &["events", "export", "--config", "dsad.toml", "--from", "yesterday"], dir.path());
    assert!(code != 0 && error.contains("--from yesterday"), "{error}");
    let (code, _, error) = run(DSAD, &["events", "audit", "--config", "dsad.toml"], dir.path());
    assert!(code == 0 && error.contains("whole; the last hash is"), "{error}");
}

#[test]
fn a_disk_that_takes_no_more_is_said_and_is_no_clean_end() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let folder = parts.join("washer/train/good");
    config(dir.path(), bundle, &format!("{{ kind = 'replay', folder = '{}' }}", folder.display()), "events.ndjson");
    let text = std::fs::read_to_string(dir.path().join("dsad.toml")).expect("reads");
    let text = text.split("[archive]").next().expect("a head").to_owned();
    std::fs::write(dir.path().join("dsad.toml"), text).expect("writes");
    // No file of the process may grow beyond 128 KiB: the database is made, and a few events fit.
    let limited = format!("ulimit -f 128; trap '' XFSZ; exec {DSAD} run --config dsad.toml --json");
    let (code, out, error) = run("bash", &["-c", &limited], dir.path());
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("dsad.db: events cannot be written") && error.contains("lost"), "{error}");
    let summary = lines(&out).pop().expect("summary");
    let number = |value: &serde_json::Value| value.as_u64().expect("number");
    let lost = number(&summary["events_lost"]);
    assert!(lost > 0 && lost + number(&summary["events_written"]) == 12, "{summary}");
    // What was committed is there.
    let (code, out, error) = run(DSAD, &["events", "export", "--config", "dsad.toml"], dir.path());
    assert_eq!((code, lines(&out).len() as u64), (0, 12 - lost), "{error}");
}

#[test]
fn a_refused_configuration_is_exit_78_with_a_suggestion() {
    let dir = home();
    config(dir.path(), Path::new("none"), "{ kind = 'synthetic', product = 'washer' }", "e.ndjson");
    let text = std::fs::read_to_string(dir.path().join("dsad.toml")).expect("reads").replace("events", "evnts");
    std::fs::write(dir.path().join("dsad.toml"), text).expect("writes");
    let (code, _, error) = run(DSAD, &["run", "--config", "dsad.toml"], dir.path());
    assert!(code == 78 && error.contains("did you mean 'events'"), "{code}: {error}");
    let (code, _, error) = run(DSAD, &["check", "--config", "missing.toml"], dir.path());
    assert!(code == 3 && error.contains("missing.toml"), "{code}: {error}");
}

#[test]
fn a_changed_bundle_is_refused_by_name() {
    let (bundle, _) = tiny_bundle();
    let dir = home();
    let (code, _, error) = run(DSAD, &["bundle", "verify", bundle.to_str().expect("path")], dir.path());
    assert_eq!(code, 0, "{error}");
    let copy = dir.path().join("copy");
    std::fs::create_dir_all(copy.join("golden")).expect("directory");
    for name in ["manifest.json", "weights.safetensors", "NOTICE.txt", "golden/0.png", "golden/0.map.safetensors"] {
        std::fs::copy(bundle.join(name), copy.join(name)).expect("copies");
    }
    let path = copy.join("weights.safetensors");
    let mut bytes = std::fs::read(&path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let (code, out, error) = run(DSAD, &["bundle", "verify", "copy", "--json"], dir.path());
    assert!(code == 1 && error.contains("weights.safetensors"), "{code}: {error}");
    assert_eq!(lines(&out)[0]["ok"], false);
}

#[test]
fn trainer_refuses_bad_data_with_a_remedy() {
    let dir = home();
    std::fs::create_dir(dir.path().join("empty")).expect("directory");
    let (code, _, error) = run(TRAINER, &["fit", "--data", "empty", "--out", "b"], dir.path());
    assert!(code == 1 && error.contains("train/good"), "{code}: {error}");
    std::fs::create_dir(dir.path().join("bad")).expect("directory");
    std::fs::write(dir.path().join("bad/1.png"), b"no picture").expect("writes");
    let (code, _, error) = run(TRAINER, &["fit", "--data", "bad", "--out", "b"], dir.path());
    assert!(code == 1 && error.contains("usable good pictures"), "{code}: {error}");
}

#[test]
fn fit_looks_before_it_trains() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let tiny = bundle.with_file_name("tiny.toml");
    let washers = parts.join("washer");
    let common = ["fit", "--config", tiny.to_str().expect("path"), "--json", "--data"];
    let survey = |data: &str| run(TRAINER, &[&common[..], &[data, "--survey"]].concat(), dir.path());
    let (code, out, error) = survey(washers.to_str().expect("path"));
    assert_eq!(code, 0, "{error}");
    let said = &lines(&out)[0];
    assert_eq!(said["data"]["sets"][0]["sizes"], serde_json::json!([[[64, 64], 12]]));
    let choice = &said["choice"];
    assert_eq!((&choice["grid"], &choice["geometry"]), (&serde_json::json!([64, 64]), &"stretch".into()));
    assert_eq!(choice["profile"], "edge-small");
    let washer = &choice["sets"][0];
    let divided = ["train", "select", "calibrate"].map(|key| washer[key].as_u64().expect("a count"));
    assert_eq!(divided.iter().sum::<u64>(), 12);
    assert!(washer["augmentation"]["gain"].as_f64().is_some_and(|gain| (0.04..=0.25).contains(&gain)), "{washer}");
    assert!(std::fs::read_dir(dir.path()).expect("lists").next().is_none(), "nothing is written");

    std::fs::create_dir(dir.path().join("dark")).expect("directory");
    for k in 0..4u8 {
        let picture = image::GrayImage::from_pixel(64, 64, image::Luma([k]));
        picture.save(dir.path().join(format!("dark/{k}.png"))).expect("saves");
    }
    let (code, _, error) = survey("dark");
    assert!(code == 1 && error.contains("lens cap"), "{code}: {error}");
}

#[test]
fn the_report_tells_everything_and_needs_nothing_else() {
    let (bundle, _) = tiny_bundle();
    let report = std::fs::read_to_string(bundle.with_file_name("bundle.report.html")).expect("is beside the bundle");
    assert!(!report.contains("href=") && !report.contains("src=\"http"), "it needs nothing else");
    let told = [
        "mean light",
        "varied by",
        "<td>Warp</td><td><b>no</b></td>",
        "<td>Scratch</td><td>yes</td>",
        "synthetic defects of unseen families",
        "type=\"range\"",
        "Worst good parts",
        "Best good parts",
        "reading the pictures",
        "grid = [64, 64]",
        "pictures</th><td>blake3",
        "backbone</th><td>",
    ];
    told.iter().for_each(|text| assert!(report.contains(text), "{text} is missing"));
    let (_, memory) = report.split_once("at its peak: ").expect("memory");
    let numbers: Vec<f64> = memory.split_whitespace().filter_map(|word| word.parse().ok()).take(2).collect();
    let (measured, expected) = (numbers[0], numbers[1]);
    assert!((0.5..2.0).contains(&(measured / expected)), "{measured} MB instead of {expected}");
}

#[test]
fn a_signed_bundle_needs_its_key() {
    let (bundle, _) = tiny_bundle();
    let dir = home();
    let copy = dir.path().join("copy");
    std::fs::create_dir_all(copy.join("golden")).expect("directory");
    for name in ["manifest.json", "weights.safetensors", "NOTICE.txt", "golden/0.png", "golden/0.map.safetensors"] {
        std::fs::copy(bundle.join(name), copy.join(name)).expect("copies");
    }
    for name in ["mine", "theirs"] {
        assert_eq!(run(TRAINER, &["keygen", "--out", name, "--name", "key"], dir.path()).0, 0);
    }
    let verify = |keys: &str| run(DSAD, &["bundle", "verify", "copy", "--keys", keys], dir.path());
    assert_eq!(verify("mine").0, 1, "unsigned");
    let key = std::fs::read_dir(dir.path().join("mine")).expect("keys");
    let private = key.filter_map(Result::ok).map(|e| e.path()).find(|p| p.extension().is_none_or(|e| e != "pub"));
    let private = private.expect("private key");
    let (code, _, error) =
        run(TRAINER, &["sign", "--bundle", "copy", "--key", private.to_str().expect("path")], dir.path());
    assert_eq!(code, 0, "{error}");
    assert_eq!(verify("mine").0, 0, "its own key");
    assert_eq!(verify("theirs").0, 1, "another key");
}

#[test]
fn awkward_pictures_are_judged_or_refused_each_by_name() {
    let (bundle, _) = tiny_bundle();
    let dir = home();
    let at = |name: &str| dir.path().join(name);
    image::ImageBuffer::from_fn(90, 70, |x, y| image::Luma([(x * y * 10) as u16]))
        .save(at("grey16.png"))
        .expect("saves");
    image::ImageBuffer::from_fn(64, 64, |x, y| image::Rgba([x as u8, y as u8, 9, 128]))
        .save(at("rgba.png"))
        .expect("saves");
    image::GrayImage::new(1, 1).save(at("dot.png")).expect("saves");
    // A header that claims 400 megapixels: refused from the header alone.
    std::fs::write(at("huge.pgm"), b"P5\n20000 20000\n255\n").expect("writes");
    let whole = std::fs::read(at("rgba.png")).expect("reads");
    std::fs::write(at("cut.png"), &whole[..whole.len() / 2]).expect("writes");
    let names = ["grey16.png", "rgba.png", "dot.png", "huge.pgm", "cut.png"];
    let mut args = vec!["inspect", "--bundle", bundle.to_str().expect("path"), "--json"];
    args.extend(names);
    let (code, out, error) = run(DSAD, &args, dir.path());
    assert_eq!(code, 3, "{error}");
    let events = lines(&out);
    assert_eq!(events.len(), names.len() + 1);
    for (name, event) in names.iter().zip(&events) {
        let refused = ["dot.png", "huge.pgm", "cut.png"].contains(name);
        assert_eq!(event["verdict"] == "fault", refused, "{event}");
        assert_eq!(event["score"].is_null(), refused, "{event}");
        assert!(!refused || event["fault"].as_str().is_some_and(|fault| fault.contains(name)), "{event}");
    }
    let (code, _, error) = run(DSAD, &["inspect", "--bundle", args[2], "absent.png"], dir.path());
    assert!(code == 3 && error.contains("absent.png"), "{code}: {error}");
}

#[test]
fn a_killed_fit_resumes_and_makes_the_same_bundle() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let tiny = bundle.with_file_name("tiny.toml");
    let args = ["fit", "--data", parts.join("washer").to_str().expect("path"), "--out", "bundle", "--config"]
        .map(str::to_owned)
        .into_iter()
        .chain([tiny.display().to_string(), "--stage-steps".into(), "3".into()])
        .collect::<Vec<_>>();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // The first checkpoint is written when the first stage ends; the kill comes somewhere after it.
    let state = dir.path().join("bundle.run/state.json");
    kill_once_there(TRAINER, &args, dir.path(), &state);
    assert!(!dir.path().join("bundle").exists(), "a killed run leaves no bundle");
    let stage =
        || serde_json::from_slice::<Value>(&std::fs::read(&state).expect("reads")).expect("JSON")["stage"].clone();
    assert!(stage().as_u64().is_some_and(|stage| stage >= 1));
    // Another request must not continue it.
    let (code, _, error) = run(TRAINER, &[&args[..], &["--seed", "9"]].concat(), dir.path());
    assert!(code == 1 && error.contains("--fresh"), "{code}: {error}");
    let (code, _, error) = run(TRAINER, &args, dir.path());
    assert_eq!(code, 0, "{error}");
    // `tiny_bundle` is the same request, never interrupted: on the CPU the weights are the same bytes.
    let weights = |bundle: &Path| std::fs::read(bundle.join("weights.safetensors")).expect("weights");
    assert!(weights(&dir.path().join("bundle")) == weights(bundle), "the resumed run ends elsewhere");
}

#[test]
fn a_station_sets_its_own_thresholds_and_takes_them_back() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let bundle = bundle.to_str().expect("path");
    let good = parts.join("washer/train/good");
    let good = good.to_str().expect("path");
    let calibrate = ["calibrate", "--bundle", bundle, "--calibrations", "here", "--steps", "2,auto"];
    let (code, _, error) = run(DSAD, &[&calibrate[..], &["--alone", good]].concat(), dir.path());
    assert!(code == 3 && error.contains("at least 99"), "{code}: {error}");
    let (code, out, error) =
        run(DSAD, &[&calibrate[..], &["--alone", "--alpha", "0.1", "--json", good]].concat(), dir.path());
    assert_eq!(code, 0, "{error}");
    let rows = lines(&out);
    assert_eq!((&rows[0]["samples"], &rows[2]["pictures"]), (&12.into(), &12.into()));
    assert_eq!((&rows[0]["steps"], &rows[1]["steps"]), (&2.into(), &"auto".into()));
    let threshold = rows[0]["image_threshold"].as_f64().expect("a number");
    let judged = |more: &[&str]| {
        let inspect = ["inspect", "--bundle", bundle, "--json", good];
        let (_, out, error) = run(DSAD, &[&inspect[..], more].concat(), dir.path());
        lines(&out).first().unwrap_or_else(|| panic!("{error}")).clone()
    };
    let event = judged(&["--calibrations", "here"]);
    assert!(event["calibration_id"].as_str().is_some_and(|id| id.starts_with("station-")), "{event}");
    assert!((event["threshold"].as_f64().expect("a number") - threshold).abs() < 1e-6 * threshold, "{event}");
    // More good parts are added to those behind the thresholds in force.
    let (code, out, error) = run(DSAD, &[&calibrate[..], &["--alpha", "0.1", "--json", good]].concat(), dir.path());
    assert_eq!(code, 0, "{error}");
    assert_eq!(lines(&out)[0]["samples"], 24);
    for version in ["2", "1"] {
        let (code, out, _) = run(DSAD, &[&calibrate[..5], &["--revert"]].concat(), dir.path());
        assert!(code == 0 && out.starts_with(&format!("version {version} is taken back")), "{out}");
    }
    assert_eq!(judged(&["--calibrations", "here"])["calibration_id"], judged(&[])["calibration_id"]);
}

#[test]
fn a_bundle_gets_other_thresholds_or_is_refused_for_few_pictures() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let good = parts.join("washer/train/good");
    let args = ["calibrate", "--bundle", bundle.to_str().expect("path"), "--out", "again", "--data"];
    let args = [&args[..], &[good.to_str().expect("path")]].concat();
    let (code, _, error) = run(TRAINER, &args, dir.path());
    assert!(code == 1 && error.contains("at least 99"), "{code}: {error}");
    let (code, out, error) = run(TRAINER, &[&args[..], &["--alpha", "0.2"]].concat(), dir.path());
    assert!(code == 0 && out.contains("false rejects 20.00 %"), "{error}{out}");
    assert_eq!(run(DSAD, &["bundle", "verify", "again"], dir.path()).0, 0);
}

#[test]
fn a_strangers_folder_ends_with_a_bundle_and_a_report_that_names_what_is_wrong() {
    let (bundle, parts) = tiny_bundle();
    let dir = home();
    let folder = dir.path().join("photos");
    std::fs::create_dir(&folder).expect("makes");
    for entry in std::fs::read_dir(parts.join("washer/train/good")).expect("lists").filter_map(Result::ok) {
        std::fs::copy(entry.path(), folder.join(entry.file_name())).expect("copies");
    }
    let mut names: Vec<_> =
        std::fs::read_dir(&folder).expect("lists").filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.sort();
    // Mixed sizes, one corrupt file, two duplicates, five outliers.
    for name in &names[..2] {
        let picture = image::open(name).expect("opens").resize_exact(96, 80, image::imageops::FilterType::Triangle);
        picture.save(name).expect("saves");
    }
    for (k, name) in names[2..4].iter().enumerate() {
        std::fs::copy(name, folder.join(format!("twin-{k}.png"))).expect("copies");
    }
    std::fs::write(folder.join("corrupt.png"), b"\x89PNG\r\n\x1a\n, then nothing").expect("writes");
    for k in 0..5u32 {
        let picture =
            image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 37 * (k + 1)) as u8, (y * 91) as u8, 255]));
        picture.save(folder.join(format!("odd-{k}.png"))).expect("saves");
    }
    let tiny = bundle.with_file_name("tiny.toml");
    let args = ["fit", "--data", "photos", "--out", "made", "--stage-steps", "2", "--config"];
    let (code, _, error) = run(TRAINER, &[&args[..], &[tiny.to_str().expect("path")]].concat(), dir.path());
    assert_eq!(code, 0, "{error}");
    let report = std::fs::read_to_string(dir.path().join("made.report.html")).expect("report");
    let named = ["corrupt.png", "twin-0.png", "twin-1.png", "odd-0.png", "odd-4.png", "2 of 1 other sizes"];
    for name in named {
        assert!(report.contains(name), "{name} is not in the report; {error}");
    }
    let left = |name: &Path| report.contains(&format!("{}:", name.display()));
    assert_eq!(names.iter().filter(|name| left(name)).count(), 0, "good parts stay");
    let (code, _, error) = run(DSAD, &["inspect", "--bundle", "made", names[5].to_str().expect("path")], dir.path());
    assert!(code == 0 || code == 1, "{error}");
}

#[test]
fn a_lamp_that_fades_is_said_before_parts_are_rejected() {
    let (bundle, _) = tiny_bundle();
    let dir = home();
    let synth = ["synth", "--count", "72", "--test-good", "0", "--test-defective", "0", "--size", "64", "--seed", "5"];
    assert_eq!(run(TRAINER, &[&synth[..], &["--out", "parts"]].concat(), dir.path()).0, 0);
    let good = dir.path().join("parts/washer/train/good");
    let bundle_name = bundle.to_str().expect("path");
    let calibrate = ["calibrate", "--bundle", bundle_name, "--calibrations", "here", "--alone", "--alpha", "0.03"];
    let (code, _, error) = run(DSAD, &[&calibrate[..], &[good.to_str().expect("path")]].concat(), dir.path());
    assert_eq!(code, 0, "{error}");
    // The same parts under a light that loses a tenth every 72 frames.
    let mut names: Vec<_> =
        std::fs::read_dir(&good).expect("lists").filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.sort();
    std::fs::create_dir(dir.path().join("line")).expect("makes");
    for (step, share) in [1.0f32, 0.9, 0.8].into_iter().enumerate() {
        for (k, name) in names.iter().enumerate() {
            let mut picture = image::open(name).expect("opens").into_rgb8();
            picture.pixels_mut().flat_map(|pixel| &mut pixel.0).for_each(|v| *v = (f32::from(*v) * share) as u8);
            picture.save(dir.path().join(format!("line/{step}-{k:02}.png"))).expect("saves");
        }
    }
    config(dir.path(), bundle, "{ kind = 'replay', folder = 'line' }", "events.ndjson");
    let text = std::fs::read_to_string(dir.path().join("dsad.toml")).expect("reads");
    std::fs::write(dir.path().join("dsad.toml"), format!("calibrations = 'here'\n{text}")).expect("writes");
    let (code, _, error) = run(DSAD, &["run", "--config", "dsad.toml", "--json"], dir.path());
    assert_eq!(code, 0, "{error}");
    let events = lines(&std::fs::read_to_string(dir.path().join("events.ndjson")).expect("events"));
    assert_eq!(events.len(), 3 * names.len());
    let drifts = |event: &Value| event["drift"].as_array().is_some_and(|words| words.contains(&"light".into()));
    let first = events.iter().position(drifts).expect("the light is said to drift");
    assert!((names.len()..2 * names.len()).contains(&first), "said at frame {first}");
    let rejected = events[..first].iter().filter(|event| event["verdict"] != "pass").count();
    assert!(rejected * 10 <= first, "{rejected} of {first} were rejected before");
    assert!(error.contains("light drifted"), "{error}");
}
