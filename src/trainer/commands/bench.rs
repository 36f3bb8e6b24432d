//! `trainer bench`: how long parts, frames and training steps take on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::bundle::signature::KeyList;
use crate::config::device::DeviceChoice;
use crate::device;
use crate::model::profile::Profile;
use crate::trainer::bench::{BenchRequest, Timed, bench};
use crate::trainer::usage::peak_rss_mb;

/// Arguments of `trainer bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// edge or edge-small; sd15 has benches/paper.sh
    #[arg(long, default_value = "edge-small")]
    profile: Profile,
    /// Time the networks of this bundle, at its size, in place of fresh ones of a profile
    #[arg(long, value_name = "DIR", conflicts_with_all = ["profile", "size"])]
    bundle: Option<PathBuf>,
    /// What benches/edge.py said of the same bundle on the same machine: the summary gets the ratio of the times
    #[arg(long, value_name = "FILE", requires = "bundle")]
    rival: Option<PathBuf>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Columns and rows of the model grid, multiples of 32
    #[arg(long, num_args = 2, value_names = ["COLUMNS", "ROWS"], default_values_t = [256, 256])]
    size: Vec<usize>,
    /// Frames at a time
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Also a step of every stage of training
    #[arg(long)]
    train: bool,
    /// One JSON object a line, the summary last
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Arguments that do not go together, or what the device says.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    ensure!(args.batch > 0, "--batch 0: must be at least 1");
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
    ensure!(profile != Profile::Sd15, "profile sd15: its bench is benches/paper.sh");
    let rival_ms = args.rival.as_deref().map(rival_ms).transpose()?;
    let request = BenchRequest { profile, bundle, size, batch: args.batch, train: args.train };
    if !args.json {
        println!("{:<28} {:>8} {:>11} {:>11} {:>6}", "what", "pictures", "ms", "first ms", "runs");
    }
    let said = |timed: &Timed| {
        if args.json {
            println!("{}", json!(timed));
        } else {
            let (what, pictures, ms, first_ms, runs) =
                (&timed.what, timed.pictures, timed.ms, timed.first_ms, timed.runs);
            println!("{what:<28} {pictures:>8} {ms:>11.3} {first_ms:>11.1} {runs:>6}");
        }
    };
    let all = device::pooled(&compute.device, || bench(&request, &compute, said))?;
    // The fastest form, as the rival's.
    let frames = all.iter().filter(|timed| timed.what.starts_with("frame at 2 steps")).map(|timed| timed.ms);
    let frame_ms = frames.min_by(f64::total_cmp);
    let ratio = frame_ms.zip(rival_ms).map(|(ours, theirs)| ours / theirs);
    if args.json {
        let summary = json!({
            "profile": profile, "device": args.device.to_string(), "size": [size.0, size.1], "batch": args.batch,
            "frame_ms": frame_ms, "rival_ms": rival_ms, "ratio": ratio, "peak_rss_mb": peak_rss_mb(),
        });
        println!("{summary}");
    } else if let (Some(ratio), Some(rival_ms)) = (ratio, rival_ms) {
        println!("{:<28} {:>8} {rival_ms:>11.3}    ours / theirs {ratio:.2}", "fastest rival", args.batch);
    }
    Ok(())
}

/// The fastest time of a rival's lines: `ms` of the last one.
fn rival_ms(path: &Path) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--rival {}: cannot be read", path.display()))?;
    let last: Option<Value> = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let ms = last.as_ref().and_then(|line| line["ms"].as_f64()).filter(|ms| *ms > 0.0);
    ms.with_context(|| format!("--rival {}: the last line has no 'ms'; make it with benches/edge.py", path.display()))
}
