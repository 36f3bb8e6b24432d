//! `trainer bench`: how long parts, frames and training steps take on this machine.

use anyhow::ensure;
use serde_json::json;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::model::profile::Profile;
use crate::trainer::bench::{BenchRequest, bench};
use crate::trainer::usage::peak_rss_mb;

/// Arguments of `trainer bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// edge or edge-small; sd15 has benches/paper.sh
    #[arg(long, default_value = "edge-small")]
    profile: Profile,
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
    ensure!(args.profile != Profile::Sd15, "--profile sd15: its bench is benches/paper.sh");
    ensure!(args.batch > 0, "--batch 0: must be at least 1");
    for side in &args.size {
        ensure!(*side > 0 && side.is_multiple_of(32), "--size: {side} is not a multiple of 32");
    }
    let compute = device::open(args.device)?;
    let size = (args.size[0], args.size[1]);
    let request = BenchRequest { profile: args.profile, size, batch: args.batch, train: args.train };
    if !args.json {
        println!("{:<28} {:>8} {:>11} {:>11} {:>6}", "what", "pictures", "ms", "first ms", "runs");
    }
    let all = bench(&request, &compute, |timed| {
        if args.json {
            println!("{}", json!(timed));
        } else {
            let (what, pictures, ms, first_ms, runs) =
                (&timed.what, timed.pictures, timed.ms, timed.first_ms, timed.runs);
            println!("{what:<28} {pictures:>8} {ms:>11.3} {first_ms:>11.1} {runs:>6}");
        }
    })?;
    let frame_ms = all.iter().find(|timed| timed.what == "frame at 2 steps").map(|timed| timed.ms);
    if args.json {
        let summary = json!({
            "profile": args.profile, "device": args.device.to_string(), "size": args.size, "batch": args.batch,
            "frame_ms": frame_ms, "peak_rss_mb": peak_rss_mb(),
        });
        println!("{summary}");
    }
    Ok(())
}
