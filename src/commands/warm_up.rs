//! `dsad warm-up`: judges once as the station will, so that kernels are compiled and kept before the first start, or before others.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use serde_json::json;

use super::kernels::{self, Offered};
use super::load::{Bundles, keys};
use crate::config::device::DeviceChoice;
use crate::config::station::load;
use crate::daemon::job::Job;
use crate::device::{self, Compute};
use crate::inspection::detect::StepChoice;
use crate::inspection::recipe::Recipe;
use crate::inspection::time::{Clock, Timestamp};

/// Arguments of `dsad warm-up`.
#[derive(Debug, clap::Args)]
pub struct WarmUpArgs {
    /// The station's configuration: its bundles, on its device, as its recipes ask for them
    #[arg(long, required_unless_present = "bundle", conflicts_with = "bundle")]
    config: Option<PathBuf>,
    /// A bundle alone, at every step count that it lists, one frame at a time
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Device for --bundle: cpu, cuda or cuda:N
    #[arg(long, conflicts_with = "config", default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// Folder of public keys for --bundle; with it, an unsigned bundle is refused
    #[arg(long, conflicts_with = "config")]
    keys: Option<PathBuf>,
    /// First take in the kernels that --export wrote on another station; those that do not fit are ignored
    #[arg(long, value_name = "FILE")]
    import: Option<PathBuf>,
    /// Afterwards write the kernels into a file for stations with the same GPU, driver and build of this program
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Become ready to judge, say so, and end: the verb starts itself like this
    #[arg(long, hide = true, conflicts_with_all = ["import", "export"])]
    only_start: bool,
}

/// Runs the verb.
///
/// # Errors
/// A configuration or a bundle that is refused, a device that does not answer, a self-test that fails, a file that cannot be read or written.
pub fn run(args: &WarmUpArgs, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    let (bundles, cameras, choice) = asked(args)?;
    let ids = bundles.ids();
    kernels::heal(choice);
    let compute = device::open(choice)?;
    let offered = args.import.as_deref().map(|file| kernels::take(&compute, file)).transpose()?;
    let kept = || compute.kernels().map(|store| store.count());
    let before = kept();
    let (shown, since) = (!args.json && !args.only_start, Arc::clone(&clock));
    let told = move |step: &str| {
        if shown {
            println!("{:>8.2} s  {step}", since.now().millis_since(Timestamp(0)) / 1e3);
        }
    };
    let made =
        bundles.unmarked().detectors(choice, Arc::clone(&clock), cameras.iter().map(|jobs| &jobs[..]), None, told);
    // Gone before the other process needs the memory.
    drop(made().map_err(anyhow::Error::msg)?);
    if args.only_start {
        println!("ready");
        return Ok(ExitCode::SUCCESS);
    }
    let first_s = clock.now().millis_since(Timestamp(0)) / 1e3;
    let compiled = kept().zip(before).map(|(after, before)| after.saturating_sub(before));
    let start_s = start_again(args, clock.as_ref())?;
    let exported = args.export.as_deref().map(|file| kernels::export(&compute, file)).transpose()?.flatten();
    if args.json {
        println!(
            "{}",
            json!({"device": choice.to_string(), "bundles": ids, "first_s": first_s, "start_s": start_s, "import": offered,
                   "kernels": kept(), "compiled": compiled, "exported": exported})
        );
        return Ok(ExitCode::SUCCESS);
    }
    match &offered {
        Some(Offered::Taken(count)) => println!("import: {count} kernels were taken in"),
        Some(Offered::Ignored(reason)) => println!("import: ignored: {reason}"),
        None => {}
    }
    match kept().zip(compiled) {
        Some((kept, compiled)) => println!("kernels: {kept} are kept, {compiled} of them were compiled now"),
        None => println!("kernels: {}", none_kept(&compute)),
    }
    println!("ready after {first_s:.2} s; a start after this takes {start_s:.2} s");
    if let Some(file) = &args.export {
        match exported {
            Some(count) => println!("export: {} holds {count} kernels", file.display()),
            None => println!("export: {} was not written: no kernel is kept", file.display()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be judged, for every camera, and on which device.
fn asked(args: &WarmUpArgs) -> anyhow::Result<(Bundles, Vec<Vec<Job>>, DeviceChoice)> {
    let mut bundles = Bundles::default();
    if let Some(config) = &args.config {
        let station = load(config)?;
        let keys = keys(station.keys.as_deref())?;
        let (device, calibrations) = (station.device, station.calibrations.as_deref());
        let mut jobs = |recipes: &[_]| bundles.jobs(recipes, &keys, device, calibrations);
        let cameras = station.cameras.iter().map(|camera| jobs(&camera.recipes)).collect::<anyhow::Result<_>>()?;
        return Ok((bundles, cameras, device));
    }
    let dir = args.bundle.as_ref().context("--config or --bundle is needed")?;
    let index = bundles.open(dir, &keys(args.keys.as_deref())?)?;
    let listed = bundles.get(index).manifest.steps.clone();
    let job = |steps| {
        let recipe = Recipe::whole_frame("warm-up", None, StepChoice::Fixed(steps));
        bundles.job(index, recipe, args.device, None)
    };
    let jobs = listed.into_iter().map(job).collect::<anyhow::Result<Vec<Job>>>()?;
    Ok((bundles, vec![jobs], args.device))
}

fn none_kept(compute: &Compute) -> &'static str {
    match compute.choice {
        DeviceChoice::Cpu => "nothing is compiled on the CPU, so nothing is kept",
        DeviceChoice::Cuda(_) => "none is kept: build with --features kernel-cache, or see the log",
    }
}

/// Starts this program once more until it is ready to judge the same, and says how many seconds that took.
fn start_again(args: &WarmUpArgs, clock: &dyn Clock) -> anyhow::Result<f64> {
    let mut command = Command::new(std::env::current_exe().context("this program's own path")?);
    command.args(["warm-up", "--only-start"]);
    match (&args.config, &args.bundle) {
        (Some(config), _) => command.arg("--config").arg(config),
        (None, Some(bundle)) => command.args(["--device", &args.device.to_string(), "--bundle"]).arg(bundle),
        (None, None) => &mut command,
    };
    let started = clock.now();
    let mut child = command.stdout(Stdio::piped()).spawn().context("another process of this program")?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    let ready_s = clock.now().millis_since(started) / 1e3;
    ensure!(child.wait()?.success() && line == "ready\n", "a second start failed, though the first did not");
    Ok(ready_s)
}
