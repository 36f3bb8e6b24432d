//! `trainer describe`: what a profile is made of and what it costs, without making it.

use anyhow::ensure;
use serde_json::json;

use crate::inspection::detect::Steps;
use crate::model::profile::{ModelConfig, Profile};
use crate::trainer::cost::{cost, frame_gflop};

/// Arguments of `trainer describe`.
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// sd15, edge or edge-small
    #[arg(long)]
    profile: Profile,
    /// With DiAD's control network in place of DSAD's guided network (sd15)
    #[arg(long)]
    diad_compat: bool,
    /// Classes besides the null class
    #[arg(long, default_value_t = 0)]
    classes: usize,
    /// Denoising steps of a frame
    #[arg(long, default_value_t = 2)]
    steps: u32,
    /// Side of the model grid in pixels, a multiple of 32
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// One JSON object a line: a row per part, the whole last
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Arguments that do not go together.
pub fn run(args: &DescribeArgs) -> anyhow::Result<()> {
    ensure!(args.steps > 0, "--steps 0: must be at least 1");
    ensure!(args.size > 0 && args.size.is_multiple_of(32), "--size {}: must be a multiple of 32", args.size);
    ensure!(!args.diad_compat || args.profile == Profile::Sd15, "--diad-compat: only sd15 has a control network");
    let mut config = ModelConfig::of(args.profile, args.classes);
    if args.diad_compat {
        config = config.diad_compat();
    }
    let parts = cost(&config, args.steps, args.size, args.size);
    let total: usize = parts.iter().map(|part| part.parameters).sum();
    let gflop = frame_gflop(&parts);
    if !args.json {
        println!(
            "{:<11} {:>13} {:>12} {:>10} {:>6} {:>12}",
            "part", "parameters", "bytes f16", "GFLOP", "calls", "a frame"
        );
    }
    for part in &parts {
        let frame = part.gflop * f64::from(part.calls);
        if args.json {
            let row = json!({
                "part": part.part, "parameters": part.parameters, "bytes_f16": 2 * part.parameters,
                "bytes_f32": 4 * part.parameters, "gflop": part.gflop, "calls": part.calls, "frame_gflop": frame,
            });
            println!("{row}");
        } else {
            println!(
                "{:<11} {:>13} {:>12} {:>10.3} {:>6} {:>12.3}",
                part.part,
                part.parameters,
                2 * part.parameters,
                part.gflop,
                part.calls,
                frame
            );
        }
    }
    if args.json {
        let summary = json!({
            "profile": args.profile, "diad_compat": args.diad_compat, "steps": Steps(args.steps), "size": args.size,
            "parameters": total, "bytes_f16": 2 * total, "bytes_f32": 4 * total, "frame_gflop": gflop,
        });
        println!("{summary}");
    } else {
        println!("{:<11} {:>13} {:>12} {:>10} {:>6} {:>12.3}", "whole", total, 2 * total, "", "", gflop);
    }
    Ok(())
}
