//! `dsad check`: would this configuration run? Starts nothing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::load::{Bundles, keys};
use crate::config::access::Door;
use crate::config::camera::CameraKind;
use crate::config::station::load;
use crate::daemon::job::Job;
use crate::gpio::chips::find;

/// Arguments of `dsad check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The station's configuration
    #[arg(long)]
    config: PathBuf,
    /// One JSON object a line: the cameras, then the station
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Everything that is wrong with the configuration or its bundles.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let station = load(&args.config)?;
    let keys = keys(station.keys.as_deref())?;
    let mut bundles = Bundles::default();
    for camera in &station.cameras {
        if let CameraKind::Replay { folder, .. } = &camera.kind {
            crate::camera::replay::pictures(folder).map_err(anyhow::Error::msg)?;
        }
        for (recipe, dir) in &camera.recipes {
            let index = bundles.open(dir, &keys)?;
            let job = bundles.job(index, recipe.clone(), station.device, station.calibrations.as_deref())?;
            say(&camera.name, &job, dir, args.json);
        }
    }
    let outputs = station.outputs.gpio.iter().map(|output| (output.word(), output.pin().clone()));
    let inputs = station.cameras.iter().filter_map(|camera| camera.trigger_line.as_ref());
    for (signal, pin) in outputs.chain(inputs.map(|input| ("trigger", input.pin()))) {
        // No error: the configuration may be checked on another machine than that of the lines.
        let problem = find(&pin).err();
        if args.json {
            println!("{}", json!({"gpio": signal, "pin": pin.to_string(), "problem": problem}));
        } else {
            println!(
                "gpio {signal}: {}",
                problem.map_or_else(|| format!("{pin} is there"), |problem| format!("NOT THERE: {problem}"))
            );
        }
    }
    let http = station.http.as_ref().map(|http| http.listen);
    if args.json {
        println!(
            "{}",
            json!({"station": station.name, "line": station.line, "device": station.device.to_string(),
                   "cameras": station.cameras.len(), "events": station.outputs.events, "http": http,
                   "tcp": station.tcp.as_ref().map(|door| door.listen),
                   "modbus": station.modbus.as_ref().map(|door| door.listen), "ok": true})
        );
    } else {
        println!("station '{}' on {}: in order", station.name, station.device);
        println!("events: {}", station.outputs.events.display());
        let listen = |door: &Option<Door>| door.as_ref().map(|door| door.listen);
        let (tcp, modbus) = (listen(&station.tcp), listen(&station.modbus));
        for (name, listen) in [("http", http), ("tcp", tcp), ("modbus", modbus)] {
            println!("{name}: {}", listen.map_or("none".into(), |listen| listen.to_string()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a camera would judge by.
fn say(camera: &str, job: &Job, bundle: &Path, json: bool) {
    let recipe = &job.recipe;
    let class = recipe.class.as_ref().map(|class| class.0.as_str());
    let entry = job
        .calibration
        .as_ref()
        .and_then(|c| c.judging(recipe.class.as_ref(), recipe.steps, recipe.rois.id().as_ref()))
        // Thresholds of frames that were cut otherwise judge nothing.
        .filter(|entry| entry.tiles == job.spec.tiles);
    if json {
        println!(
            "{}",
            json!({"camera": camera, "recipe": recipe.id.0, "bundle": job.bundle, "class": class,
                   "model_hash": job.model_hash, "steps": recipe.steps, "calibrated": entry.is_some(),
                   "calibration_id": job.calibration.as_ref().map(|calibration| &calibration.id),
                   "deadline_ms": recipe.deadline_ms})
        );
        return;
    }
    println!(
        "camera {camera}: recipe '{}', bundle '{}' ({}), class {}, {} steps, {}{}",
        recipe.id.0,
        job.bundle,
        bundle.display(),
        class.unwrap_or("(none)"),
        recipe.steps,
        entry.map_or("NOT CALIBRATED: every frame would be a fault".into(), |entry| format!(
            "calibrated ({}) on {} good parts at {:.2} % false rejects",
            job.calibration.as_ref().map_or("", |calibration| &calibration.id),
            entry.samples,
            entry.alpha * 100.0
        )),
        recipe.deadline_ms.map_or(String::new(), |deadline| format!(", deadline {deadline} ms"))
    );
}
