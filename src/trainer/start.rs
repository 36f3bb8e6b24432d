//! Start to ready: all that stands between the start of a program and its first part. Each start is a process of its own.
//!
//! A cold start finds nothing that earlier ones left: it runs in an empty folder with empty caches, where a GPU's kernels are
//! compiled; the warm one after it finds what the cold one left. Neither reads from a cold disk.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::judge::TrainerClock;
use super::usage::{Stopwatch, peak_rss_mb};
use crate::bundle::Bundle;
use crate::bundle::signature::KeyList;
use crate::config::device::DeviceChoice;
use crate::detector::DiffusionDetector;
use crate::device;
use crate::inspection::detect::{Plan, StepPlan, Steps};

/// Steps of the frames that are timed, and of a recipe unless it says otherwise.
pub const STEPS: Steps = Steps(2);

/// One start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Start {
    /// `start to ready, cold` or `warm`.
    pub what: &'static str,
    /// Seconds from the call of the program to its word that it is ready.
    pub ready_s: f64,
    /// Where they went.
    #[serde(flatten)]
    pub laps: Laps,
}

/// What a started program says of its start. The rest of the time is the system's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Laps {
    /// Opening the device, seconds.
    pub device_s: f64,
    /// Reading the bundle and loading its weights.
    pub load_s: f64,
    /// Judging its golden pictures.
    pub self_test_s: f64,
    /// Judging one as a recipe asks for it.
    pub warm_up_s: f64,
    /// Largest resident size until then, MB.
    pub peak_rss_mb: Option<f64>,
}

/// Starts this program cold, then warm, until it is ready to judge by a bundle.
///
/// # Errors
/// A folder that cannot be made, or a start that fails.
pub fn starts(bundle: &Path, device: DeviceChoice) -> anyhow::Result<Vec<Start>> {
    let bundle = fs::canonicalize(bundle).with_context(|| bundle.display().to_string())?;
    let home = Scratch::make("start")?;
    ["start to ready, cold", "start to ready, warm"]
        .into_iter()
        .map(|what| start(what, &bundle, device, &home.0))
        .collect()
}

fn start(what: &'static str, bundle: &Path, device: DeviceChoice, home: &Path) -> anyhow::Result<Start> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut command = Command::new(program);
    command.args(["bench", "--only-start", "--device", &device.to_string(), "--bundle"]).arg(bundle);
    // Where cubecl keeps kernels, and the driver its own.
    command.current_dir(home).env("XDG_CACHE_HOME", home).env("CUDA_CACHE_PATH", home.join("driver"));
    let started = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().context("another process of this program")?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    let ready_s = started.elapsed().as_secs_f64();
    ensure!(child.wait()?.success(), "{what}: the started program failed");
    let laps = serde_json::from_str(&line).with_context(|| format!("{what}: the started program said '{line}'"))?;
    Ok(Start { what, ready_s, laps })
}

/// Becomes ready to judge by a bundle, says so and where the time went, and ends: the program that [`starts`] starts.
///
/// # Errors
/// Whatever is wrong with the bundle or the device.
pub fn only_start(bundle: &Path, choice: DeviceChoice) -> anyhow::Result<()> {
    let mut watch = Stopwatch::start();
    let compute = device::open(choice)?;
    watch.lap("device");
    let bundle = Bundle::open(bundle, &KeyList::empty())?;
    let mut detector = DiffusionDetector::load(&bundle, &compute, TrainerClock::start())?;
    watch.lap("load");
    detector.self_test(&bundle, choice)?;
    watch.lap("self-test");
    let listed = &bundle.manifest.steps;
    let steps = if listed.contains(&STEPS) { STEPS } else { listed.first().copied().unwrap_or(STEPS) };
    let class = bundle.manifest.classes.first().cloned();
    detector.warm_up(&bundle, &bundle.manifest.preprocess, &Plan::new(StepPlan::Fixed(steps), class), 1)?;
    watch.lap("warm-up");
    let lap = |at: usize| watch.laps[at].1;
    let (device_s, load_s, self_test_s, warm_up_s) = (lap(0), lap(1), lap(2), lap(3));
    let laps = Laps { device_s, load_s, self_test_s, warm_up_s, peak_rss_mb: peak_rss_mb() };
    println!("{}", serde_json::to_string(&laps)?);
    Ok(())
}

/// A folder that is gone when this is.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty folder among the system's temporary files.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(what: &str) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("dsad-bench-{what}-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover among temporary files is harmless.
        let _ = fs::remove_dir_all(&self.0);
    }
}
