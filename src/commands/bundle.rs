//! `dsad bundle`: is a bundle whole, and which one is in force where two have a place.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;

use super::kernels::take;
use super::load::keys;
use crate::bundle::Bundle;
use crate::bundle::slots::{Slot, Slots};
use crate::config::device::DeviceChoice;
use crate::detector::DiffusionDetector;
use crate::device;
use crate::inspection::time::Clock;

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
    /// Put a bundle in force, after it was verified and has judged its golden pictures here; `systemctl reload dsad` takes it
    Install {
        /// The bundle's directory
        dir: PathBuf,
        /// Folder with two places, which recipes name as their bundle; made when it is not there
        #[arg(long)]
        into: PathBuf,
        /// Folder of public keys; with it, an unsigned bundle is refused
        #[arg(long)]
        keys: Option<PathBuf>,
        /// Device that the golden pictures are judged on
        #[arg(long, default_value_t = DeviceChoice::Cpu)]
        device: DeviceChoice,
        /// Kernels for its GPU, from `dsad warm-up --export` on another station; ignored where they do not fit
        #[arg(long, value_name = "FILE")]
        kernels: Option<PathBuf>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// The bundles of a folder with two places, and which is in force
    List {
        /// The folder
        dir: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put the bundle before this one in force again; `systemctl reload dsad` takes it
    Rollback {
        /// The folder with two places
        dir: PathBuf,
        /// Folder of public keys; with it, an unsigned bundle is refused
        #[arg(long)]
        keys: Option<PathBuf>,
    },
}

/// Runs the verb.
///
/// # Errors
/// A key folder that cannot be read, or a folder that holds something else.
pub fn run(args: &BundleArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Verify { dir, keys, json } => verify(dir, keys.as_deref(), *json),
        Verb::Install { dir, into, keys, device, kernels, json } => {
            let installed = install(dir, into, keys.as_deref(), *device, kernels.as_deref(), clock);
            if *json {
                match &installed {
                    Ok((slot, bundle)) => println!(
                        "{}",
                        json!({"into": into, "ok": true, "slot": slot.to_string(), "id": bundle.manifest.id,
                               "model_hash": bundle.model_hash, "signed_by": bundle.signed_by})
                    ),
                    Err(error) => println!("{}", json!({"into": into, "ok": false, "error": format!("{error:#}")})),
                }
            }
            let (slot, bundle) = match installed {
                Ok(installed) => installed,
                Err(error) => {
                    eprintln!("dsad: {error:#}");
                    eprintln!("dsad: {}: nothing has changed", into.display());
                    return Ok(ExitCode::from(1));
                }
            };
            if !*json {
                println!(
                    "{}: '{}' is in force, in place {slot}; a station that runs takes it when it is reloaded",
                    into.display(),
                    bundle.manifest.id
                );
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::List { dir, json } => list(dir, *json),
        Verb::Rollback { dir, keys: folder } => {
            let mut slots = Slots::open(dir)?;
            let before = slots.before()?;
            let bundle = Bundle::open(&slots.place(before), &keys(folder.as_deref())?)?;
            slots.point(before, false)?;
            println!("{}: '{}' is in force again, in place {before}", dir.display(), bundle.manifest.id);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn verify(dir: &Path, folder: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let keys = keys(folder)?;
    let checked = Bundle::open(dir, &keys).and_then(|bundle| bundle.tensors(crate::bundle::WEIGHTS).map(|_| bundle));
    match checked {
        Ok(bundle) => {
            let manifest = &bundle.manifest;
            let calibrated = manifest.calibration.is_some();
            if json {
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
            if json {
                println!("{}", json!({"bundle": dir, "ok": false, "code": error.code(), "error": error.to_string()}));
            }
            eprintln!("dsad: {error}");
            Ok(ExitCode::from(1))
        }
    }
}

/// Verifies, copies and tries a bundle, with the kernels of a file if there is one, and puts it in force. Whatever fails, the one before is in force
/// still.
///
/// # Errors
/// The first thing that is wrong with it, or with the folder.
pub fn install(
    dir: &Path,
    into: &Path,
    folder: Option<&Path>,
    choice: DeviceChoice,
    kernels: Option<&Path>,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<(Slot, Bundle)> {
    let mut slots = Slots::open(into)?;
    let staged = slots.stage(dir, &keys(folder)?)?;
    if let Err(error) = try_out(&staged.bundle, choice, kernels, clock) {
        staged.discard();
        return Err(error);
    }
    // The station proves it once more, as it will run there.
    Ok(slots.install(staged)?)
}

/// Lets a bundle judge its golden pictures here.
fn try_out(bundle: &Bundle, choice: DeviceChoice, kernels: Option<&Path>, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    anyhow::ensure!(
        !bundle.manifest.golden.is_empty(),
        "{}: has no golden picture to prove itself with",
        bundle.dir.display()
    );
    let compute = device::open(choice).with_context(|| format!("the device {choice}"))?;
    kernels.map(|file| take(&compute, file)).transpose()?;
    let mut detector = DiffusionDetector::load(bundle, &compute, clock)?;
    Ok(detector.self_test(bundle, choice)?)
}

fn list(dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let slots = Slots::open(dir)?;
    let none = crate::bundle::signature::KeyList::empty();
    let mut rows = Vec::new();
    for slot in Slot::ALL {
        let place = slots.place(slot);
        if place.symlink_metadata().is_err() {
            continue;
        }
        let current = slots.current().filter(|(current, _)| *current == slot);
        let (id, hash, problem) = match Bundle::open(&place, &none) {
            Ok(bundle) => (Some(bundle.manifest.id), Some(bundle.model_hash), None),
            Err(error) => (None, None, Some(error.to_string())),
        };
        rows.push(json!({"slot": slot.to_string(), "id": id, "model_hash": hash, "problem": problem,
                         "in_force": current.is_some(), "proven": current.map(|(_, proven)| proven)}));
    }
    if json {
        println!("{}", json!({"dir": dir, "slots": rows}));
    } else {
        for row in &rows {
            let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
            let state = match (row["in_force"] == true, row["proven"] == true) {
                (true, true) => "in force",
                (true, false) => "in force, not proven by the station yet",
                (false, _) => "",
            };
            println!(
                "{}  {}  {}  {state}{}",
                text("slot"),
                text("id"),
                text("model_hash"),
                row["problem"].as_str().unwrap_or("")
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
