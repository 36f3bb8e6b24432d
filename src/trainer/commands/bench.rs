//! `trainer bench`: how long starts, parts, frames and training steps take on this machine, and in how much memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::bundle::signature::KeyList;
use crate::config::device::DeviceChoice;
use crate::device;
use crate::model::profile::Profile;
use crate::trainer::bench::{BenchRequest, Row, Timed, Used, bench};
use crate::trainer::start::{Start, only_start};

/// Arguments of `trainer bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// edge, edge-small, or sd15: its frames and their parts, without starts
    #[arg(long, default_value = "edge-small")]
    profile: Profile,
    /// Time the networks of this bundle, at its size, in place of fresh ones of a profile
    #[arg(long, value_name = "DIR", conflicts_with_all = ["profile", "size"])]
    bundle: Option<PathBuf>,
    /// What benches/edge.py said of the same bundle on the same machine at the first --batch: the summary gets the ratio of the
    /// times, and with --train on both sides that of the training steps
    #[arg(long, value_name = "FILE", requires = "bundle")]
    rival: Option<PathBuf>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Columns and rows of the model grid, multiples of 32
    #[arg(long, num_args = 2, value_names = ["COLUMNS", "ROWS"], default_values_t = [256, 256])]
    size: Vec<usize>,
    /// Frames at a time, one number after the other [default: 1 8, of sd15: 1]
    #[arg(long, num_args = 1..)]
    batch: Vec<usize>,
    /// Also a step of every stage of training
    #[arg(long)]
    train: bool,
    /// One JSON object a line, the summary last
    #[arg(long)]
    json: bool,
    /// Become ready to judge by the bundle, say so, and end: the bench starts itself like this
    #[arg(long, hide = true, requires = "bundle")]
    only_start: bool,
}

/// Runs the verb.
///
/// # Errors
/// Arguments that do not go together, or what the device says.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if let (true, Some(bundle)) = (args.only_start, &args.bundle) {
        return only_start(bundle, args.device);
    }
    ensure!(!args.batch.contains(&0), "--batch 0: must be at least 1");
    for side in &args.size {
        ensure!(*side > 0 && side.is_multiple_of(32), "--size: {side} is not a multiple of 32");
    }
    let compute = device::open(args.device)?;
    let bundle = args.bundle.as_deref().map(|dir| Bundle::open(dir, &KeyList::empty())).transpose()?;
    let (profile, size) = match &bundle {
        Some(Bundle { manifest, .. }) => {
            let profile = manifest.profile.parse().map_err(|error| anyhow!("{}: {error}", manifest.profile))?;
            (profile, (manifest.preprocess.width, manifest.preprocess.height))
        }
        None => (args.profile, (args.size[0], args.size[1])),
    };
    let paper = profile == Profile::Sd15;
    ensure!(!(paper && args.train), "profile sd15: its training is another one; benches/paper.sh times its step");
    let batches = match &args.batch[..] {
        [] if paper => vec![1],
        [] => vec![1, 8],
        given => given.to_vec(),
    };
    let rival = args.rival.as_deref().map(rival).transpose()?;
    let request = BenchRequest { profile, bundle, size, batches, train: args.train };
    if !args.json {
        println!("{:<28} {:>8} {:>11} {:>10} {:>11} {:>6}", "what", "pictures", "ms", "pictures/s", "first ms", "runs");
    }
    let said = |row: &Row| if args.json { println!("{}", json!(row)) } else { print(row) };
    let all = device::pooled(&compute.device, || bench(&request, &compute, said))?;
    let frames: Vec<Value> = request
        .batches
        .iter()
        .map(|&batch| {
            let ms = frame_ms(&all, batch);
            json!({"pictures": batch, "frame_ms": ms, "pictures_per_s": ms.map(|ms| batch as f64 / ms * 1e3)})
        })
        .collect();
    let first = request.batches[0];
    let frame_ms = frame_ms(&all, first);
    let rival_ms = rival.as_ref().map(|rival| rival.ms);
    let ratio = frame_ms.zip(rival_ms).map(|(ours, theirs)| ours / theirs);
    let ours = || timed(&all).filter_map(|row| Some((row.what.strip_prefix("training step: ")?, row)));
    let against = rival.iter().flat_map(|rival| &rival.training);
    let training_ratio: BTreeMap<&str, f64> = against
        .filter_map(|(stage, theirs)| {
            let (_, row) = ours().find(|(name, row)| name == stage && row.pictures == theirs.pictures)?;
            Some((stage.as_str(), row.ms / theirs.ms))
        })
        .collect();
    if args.json {
        let ready_s = |of: &str| starts(&all).find(|start| start.what.ends_with(of)).map(|start| start.ready_s);
        let largest = |of: fn(&Used) -> Option<f64>| used(&all).filter_map(of).max_by(f64::total_cmp);
        let training: BTreeMap<&str, f64> = ours().map(|(stage, row)| (stage, row.pictures_per_s)).collect();
        let summary = json!({
            "profile": profile, "device": args.device.to_string(), "size": [size.0, size.1], "batch": first,
            "frame_ms": frame_ms, "rival_ms": rival_ms, "ratio": ratio, "frames": frames,
            "training_pictures_per_s": args.train.then_some(training),
            "training_ratio": (!training_ratio.is_empty()).then_some(training_ratio),
            "ready_cold_s": ready_s("cold"), "ready_warm_s": ready_s("warm"),
            "peak_rss_mb": largest(|used| used.peak_rss_mb), "device_mb": largest(|used| used.device_mb),
        });
        println!("{summary}");
    } else if let (Some(ratio), Some(rival_ms)) = (ratio, rival_ms) {
        println!("{:<28} {first:>8} {rival_ms:>11.3}    ours / theirs {ratio:.2}", "fastest rival");
        for (stage, ratio) in training_ratio {
            println!("training step: {stage}: ours / theirs {ratio:.2}");
        }
    }
    Ok(())
}

fn print(row: &Row) {
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
    match row {
        Row::Timed(Timed { what, pictures, ms, pictures_per_s, first_ms, runs }) => {
            println!("{what:<28} {pictures:>8} {ms:>11.3} {pictures_per_s:>10.1} {first_ms:>11.1} {runs:>6}");
        }
        Row::Used(Used { what, pictures, peak_rss_mb, device_mb }) => {
            let pictures = pictures.map_or("-".into(), |pictures| pictures.to_string());
            let (host, device) = (number(*peak_rss_mb), number(*device_mb));
            println!("{what:<28} {pictures:>8}    {host} MB resident at most, {device} MB on the device");
        }
        Row::Start(Start { what, ready_s, laps }) => {
            let ms = ready_s * 1e3;
            let (device, load) = (laps.device_s * 1e3, laps.load_s * 1e3);
            let (test, warm) = (laps.self_test_s * 1e3, laps.warm_up_s * 1e3);
            let memory = number(laps.peak_rss_mb);
            println!(
                "{what:<28} {:>8} {ms:>11.0}    device {device:.0}, load {load:.0}, self-test {test:.0}, warm-up {warm:.0} ms; \
                 {memory} MB",
                "-"
            );
        }
    }
}

fn timed(rows: &[Row]) -> impl Iterator<Item = &Timed> {
    rows.iter().filter_map(|row| if let Row::Timed(timed) = row { Some(timed) } else { None })
}

fn used(rows: &[Row]) -> impl Iterator<Item = &Used> {
    rows.iter().filter_map(|row| if let Row::Used(used) = row { Some(used) } else { None })
}

fn starts(rows: &[Row]) -> impl Iterator<Item = &Start> {
    rows.iter().filter_map(|row| if let Row::Start(start) = row { Some(start) } else { None })
}

/// A batch of frames at 2 steps in its fastest form, as the rival's.
fn frame_ms(rows: &[Row], batch: usize) -> Option<f64> {
    let of_batch = timed(rows).filter(|row| row.pictures == batch && row.what.starts_with("frame at 2 steps"));
    of_batch.map(|row| row.ms).min_by(f64::total_cmp)
}

/// The last line of a rival's: its fastest times.
#[derive(Debug, Deserialize)]
struct Rival {
    /// Of frames.
    ms: f64,
    /// Of training steps, by stage.
    #[serde(default)]
    training: BTreeMap<String, RivalStep>,
}

#[derive(Debug, Deserialize)]
struct RivalStep {
    ms: f64,
    pictures: usize,
}

fn rival(path: &Path) -> anyhow::Result<Rival> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--rival {}: cannot be read", path.display()))?;
    let last: Option<Rival> = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    last.filter(|rival| rival.ms > 0.0 && rival.training.values().all(|step| step.ms > 0.0))
        .with_context(|| format!("--rival {}: the last line has no 'ms'; make it with benches/edge.py", path.display()))
}
