//! Bundles with anything wrong in them: refused by the installation and by the station, which judges on.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dsad::bundle::error::BundleError;
use dsad::bundle::signature::PrivateKey;
use dsad::bundle::slots::{Slot, Slots};
use dsad::bundle::{Bundle, MANIFEST, SIGNATURE, WEIGHTS};
use dsad::commands::bundle::install;
use dsad::config::device::DeviceChoice;
use dsad::detector::LoadError;
use dsad::inspection::time::Clock;
use dsad::platform::clock::SystemClock;
use serde_json::{Value, json};

use crate::slots::{copy, deeds, events};
use crate::support::{DSAD, tiny_bundle};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    /// A bit of any file.
    Bit,
    /// Any file is cut short.
    Short,
    /// Any file is longer.
    Long,
    /// Eight bytes of any file.
    Bytes,
    /// Signed, with the right hashes: the length of the tensors' header,
    Header,
    /// the shape of a tensor,
    Shape,
    /// its kind of number,
    Kind,
    /// a number that is none.
    Number,
    /// Signed by somebody else.
    Signature,
    /// Signed by nobody.
    Unsigned,
    /// Signed, with a format of another day.
    Older,
}

const WRONGS: [Wrong; 11] = [
    Wrong::Bit,
    Wrong::Short,
    Wrong::Long,
    Wrong::Bytes,
    Wrong::Header,
    Wrong::Shape,
    Wrong::Kind,
    Wrong::Number,
    Wrong::Signature,
    Wrong::Unsigned,
    Wrong::Older,
];

/// Xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Another manifest, signed.
fn amend(dir: &Path, key: &PrivateKey, change: impl FnOnce(&mut Value)) {
    let path = dir.join(MANIFEST);
    let mut manifest: Value = serde_json::from_slice(&read(&path)).expect("JSON");
    change(&mut manifest);
    let bytes = serde_json::to_vec_pretty(&manifest).expect("JSON");
    write(&dir.join(SIGNATURE), key.sign(&bytes).to_line().as_bytes());
    write(&path, &bytes);
}

/// Other weights, with their hash in a manifest that is signed.
fn reweigh(dir: &Path, key: &PrivateKey, bytes: &[u8]) {
    write(&dir.join(WEIGHTS), bytes);
    amend(dir, key, |manifest| manifest["files"][WEIGHTS] = blake3::hash(bytes).to_hex().to_string().into());
}

/// The tensors with another header.
fn reheaded(bytes: &[u8], chance: &mut Chance, change: impl FnOnce(&mut Value, &mut Chance)) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    let tensors = header.as_object_mut().expect("tensors");
    let mut known: Vec<&mut Value> =
        tensors.iter_mut().filter(|(name, _)| *name != "__metadata__").map(|(_, tensor)| tensor).collect();
    let at = chance.below(known.len());
    change(known[at], chance);
    let mut text = serde_json::to_vec(&header).expect("JSON");
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), &text[..], &bytes[8 + length..]].concat()
}

/// Damages a bundle; gives the file that is wrong.
fn damage(dir: &Path, wrong: Wrong, files: &[String], keys: [&PrivateKey; 2], chance: &mut Chance) -> String {
    let [key, stranger] = keys;
    let file = files[chance.below(files.len())].clone();
    let path = dir.join(&file);
    let mut bytes = read(&path);
    let length = bytes.len();
    let weights = read(&dir.join(WEIGHTS));
    match wrong {
        Wrong::Bit => bytes[chance.below(length)] ^= 1 << chance.below(8),
        Wrong::Short => bytes.truncate(chance.below(length)),
        Wrong::Long => bytes.resize(length + 1 + chance.below(100), 0),
        Wrong::Bytes => {
            let at = chance.below(length);
            bytes[at..length.min(at + 8)].iter_mut().for_each(|byte| *byte = !*byte);
        }
        Wrong::Header => {
            let truth = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes"));
            let any = chance.below(weights.len()) as u64;
            let lie = [u64::MAX, 0, weights.len() as u64, any + u64::from(any == truth)][chance.below(4)];
            reweigh(dir, key, &[&lie.to_le_bytes(), &weights[8..]].concat());
        }
        Wrong::Shape => {
            let changed = reheaded(&weights, chance, |tensor, chance| {
                let shape = tensor["shape"].as_array_mut().expect("shape");
                // Of as many numbers, or of others than there are.
                shape.push((1 + chance.below(2)).into());
            });
            reweigh(dir, key, &changed);
        }
        Wrong::Kind => {
            let kinds = ["BF16", "I16", "F64", "F32", "none"];
            let changed =
                reheaded(&weights, chance, |tensor, chance| tensor["dtype"] = kinds[chance.below(kinds.len())].into());
            reweigh(dir, key, &changed);
        }
        Wrong::Number => {
            // Of f16: NaN and both infinities.
            let at = weights.len() - 2 - 2 * chance.below(1_000);
            let mut changed = weights;
            changed[at..at + 2].copy_from_slice(&[0x7E00u16, 0x7C00, 0xFC00][chance.below(3)].to_le_bytes());
            reweigh(dir, key, &changed);
        }
        Wrong::Signature => amend(dir, stranger, |_| {}),
        Wrong::Unsigned => std::fs::remove_file(dir.join(SIGNATURE)).expect("removes"),
        Wrong::Older => amend(dir, key, |manifest| manifest["format"] = 0.into()),
    }
    match wrong {
        Wrong::Bit | Wrong::Short | Wrong::Long | Wrong::Bytes => write(&path, &bytes),
        Wrong::Header | Wrong::Shape | Wrong::Kind | Wrong::Number => return WEIGHTS.into(),
        Wrong::Signature | Wrong::Unsigned => return SIGNATURE.into(),
        Wrong::Older => return MANIFEST.into(),
    }
    file
}

/// A station that is killed with the test.
struct Judging(Child);

impl Drop for Judging {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Judging {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.0.id().to_string()]).status().expect("kills");
        assert!(sent.success());
    }

    /// The most memory that it ever had, KiB.
    fn peak(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it is there");
        let line = text.lines().find(|line| line.starts_with("VmHWM")).expect("it is counted");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
    }
}

fn until(what: &str, log: &Path, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        let text = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(begun.elapsed() < Duration::from_secs(120), "{what}: {}", text());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Which refusal it is.
fn code(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let loading = error.downcast_ref::<LoadError>().and_then(|error| match error {
        LoadError::Bundle(error) => Some(error),
        _ => None,
    });
    Some(error.downcast_ref::<BundleError>().or(loading)?.code())
}

/// So many damaged bundles, each offered to the installation, and then put in force under a station that judges. Both refuse it, by its
/// path. Its memory in KiB, from when it has judged so many parts, for the database's cache fills until then, and at its most.
fn damaged(count: usize, judged_before: usize) -> (f64, f64) {
    let home = tempfile::tempdir().expect("directory");
    let dir = home.path();
    let keys = ["plant", "stranger"].map(|name| {
        let key = PrivateKey::generate().expect("makes");
        key.write(&dir.join("keys"), name).expect("writes");
        key
    });
    let public = dir.join("public");
    std::fs::create_dir_all(&public).expect("makes");
    std::fs::copy(dir.join("keys/plant.pub"), public.join("plant.pub")).expect("copies");
    let (whole, bad, into) = (dir.join("whole"), dir.join("bad"), dir.join("slots"));
    copy(&tiny_bundle().0, &whole);
    let listed = Bundle::sign(&whole, &keys[0]).expect("signs");
    let mut files: Vec<String> = listed.manifest.files.keys().cloned().collect();
    files.extend([MANIFEST.to_owned(), SIGNATURE.to_owned()]);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let install = |from: &Path| install(from, &into, Some(&public), DeviceChoice::Cpu, None, Arc::clone(&clock));
    install(&whole).expect("installs");

    let text = "station = 's'\nkeys = 'public'\n[[cameras]]\nname = 'a'\nrecipe = 'r.toml'\n\
                source = { kind = 'synthetic', product = 'washer', fps = 50.0 }\n[outputs]\nevents = 'events.ndjson'\n";
    write(&dir.join("dsad.toml"), text.as_bytes());
    write(&dir.join("r.toml"), b"id = 'r'\nbundle = 'slots'\nsteps = 1\n");
    let log = dir.join("log");
    let mut command = Command::new(DSAD);
    command.args(["run", "--config", "dsad.toml"]).current_dir(dir).stdout(Stdio::null());
    let mut station = Judging(command.stderr(File::create(&log).expect("makes")).spawn().expect("starts"));
    let judged = || events(dir).len();
    for parts in (0..=judged_before).step_by(50) {
        until("the station judges", &log, || judged() > parts);
    }
    let in_force = || Slots::open(&into).expect("opens").current();
    assert_eq!(in_force(), Some((Slot::A, true)));
    let place: PathBuf = Slots::open(&into).expect("opens").place(Slot::B);

    let before = station.peak();
    let mut during = Vec::new();
    let mut chance = Chance(88_172_645_463_325_252);
    let mut whys: BTreeMap<Wrong, BTreeMap<&str, u64>> = BTreeMap::new();
    for number in 0..count {
        let wrong = WRONGS[number % WRONGS.len()];
        copy(&whole, &bad);
        let file = damage(&bad, wrong, &files, [&keys[0], &keys[1]], &mut chance);
        let error = match install(&bad) {
            Ok(_) => panic!("number {number}: {wrong:?} in {file}, and it is installed"),
            Err(error) => error,
        };
        let code = error.chain().find_map(code).unwrap_or_else(|| panic!("{wrong:?} in {file}: no code: {error:#}"));
        assert!(format!("{error:#}").contains(dir.to_str().expect("path")), "{wrong:?} in {file}: {error:#}");
        *whys.entry(wrong).or_default().entry(code).or_default() += 1;
        assert_eq!(in_force(), Some((Slot::A, true)), "{wrong:?} in {file}");
        // As if the disk had changed it afterwards.
        let _ = std::fs::remove_dir_all(&place);
        copy(&bad, &place);
        Slots::open(&into).and_then(|mut slots| slots.point(Slot::B, false)).expect("is put in force");
        station.signal("-HUP");
        until(&format!("{wrong:?} in {file} is refused"), &log, || in_force() == Some((Slot::A, true)));
        std::fs::remove_dir_all(&bad).expect("removes");
        if number % 100 == 0 {
            during.push(station.peak());
        }
    }
    let known = judged();
    until("it judges on", &log, || judged() > known + 3);
    let after = station.peak();
    station.signal("-TERM");
    assert!(station.0.wait().expect("ends").success(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
    let events = events(dir);
    for event in &events {
        assert_eq!(event["model_hash"], listed.model_hash, "{event}");
        assert!(event["verdict"] != "fault" || event["reason"] == "overrun", "{event}");
    }
    let refused = deeds(dir, "bundle");
    assert_eq!(refused.len(), count);
    for deed in &refused {
        let why = deed["refused"].as_str().unwrap_or_default();
        assert!(why.contains("slots/b/"), "{deed}");
    }
    let counts: BTreeMap<String, _> = whys.into_iter().map(|(wrong, codes)| (format!("{wrong:?}"), codes)).collect();
    println!(
        "{}",
        json!({"refused": count, "events": events.len(), "peak_rss_kib": [before, after], "every_hundred": during, "codes": counts})
    );
    (before, after)
}

#[test]
fn bundles_with_anything_wrong_are_refused_and_the_old_one_judges_on() {
    damaged(2 * WRONGS.len(), 50);
}

#[test]
#[ignore = "takes minutes: cargo test --test main a_thousand_bundles -- --ignored --nocapture"]
fn a_thousand_bundles_with_anything_wrong_are_refused() {
    let (before, after) = damaged(1_000, 2_500);
    assert!(after <= 1.10 * before, "{before} to {after} KiB");
}
