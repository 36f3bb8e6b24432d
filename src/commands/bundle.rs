//! `dsad bundle verify`: is this bundle whole, and signed by whom?

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::load::keys;
use crate::bundle::Bundle;

/// Arguments of `dsad bundle`.
#[derive(Debug, clap::Args)]
pub struct BundleArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Check version, signature, hashes and weights
    Verify {
        /// The bundle's directory
        dir: PathBuf,
        /// Folder of public keys; with it, an unsigned bundle is refused
        #[arg(long)]
        keys: Option<PathBuf>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// A key folder that cannot be read.
pub fn run(args: &BundleArgs) -> anyhow::Result<ExitCode> {
    let Verb::Verify { dir, keys: folder, json } = &args.verb;
    let keys = keys(folder.as_deref())?;
    let checked = Bundle::open(dir, &keys).and_then(|bundle| bundle.tensors(crate::bundle::WEIGHTS).map(|_| bundle));
    match checked {
        Ok(bundle) => {
            let manifest = &bundle.manifest;
            let calibrated = manifest.calibration.is_some();
            if *json {
                println!(
                    "{}",
                    json!({"bundle": dir, "ok": true, "id": manifest.id, "model_hash": bundle.model_hash,
                           "signed_by": bundle.signed_by, "calibrated": calibrated})
                );
            } else {
                println!("{}: '{}' is whole, model hash {}", dir.display(), manifest.id, bundle.model_hash);
                println!("signed by: {}", bundle.signed_by.as_deref().unwrap_or("nobody"));
                println!("calibrated: {calibrated}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if *json {
                println!("{}", json!({"bundle": dir, "ok": false, "code": error.code(), "error": error.to_string()}));
            }
            eprintln!("dsad: {error}");
            Ok(ExitCode::from(1))
        }
    }
}
