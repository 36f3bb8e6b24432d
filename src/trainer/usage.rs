//! What a run uses: memory, told before it starts and measured after, and time per part.

use std::fmt;
use std::time::Instant;

use serde::Serialize;

use super::batches::in_memory;
use super::config::TrainConfig;
use crate::config::device::DeviceChoice;
use crate::model::cost::PartCost;

/// Memory that a run will need, MB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryEstimate {
    /// The program and the backbone.
    pub program: f64,
    /// Good pictures on the model grid, and batches that are ready.
    pub pictures: f64,
    /// Networks, the copy that learns, its average, its gradients and the optimiser's two moments.
    pub networks: f64,
    /// What the largest batch keeps for the way back.
    pub activations: f64,
}

/// The program itself.
const PROGRAM: f64 = 60.0;
/// Copies of the weights: network, learning copy, average, gradients, two moments, and what the optimiser makes on the way.
const COPIES: f64 = 8.0;
/// Values kept per value that a convolution puts out: its output, the norm's and the activation's, and gradients in flight.
/// Measured: see the test.
const KEPT: f64 = 4.0;

impl MemoryEstimate {
    /// Of a training on `pictures` pictures with these parts on a grid.
    pub fn of(pictures: usize, (width, height): (usize, usize), parts: &[PartCost], config: &TrainConfig) -> Self {
        let plane = (width * height) as f64;
        let values = |names: &[&str]| {
            let named = parts.iter().filter(|part| names.contains(&part.part));
            named.map(|part| part.values as f64).sum::<f64>()
        };
        // Features are computed of a quarter of the picture in the first stage.
        let stages = [
            (config.autoencoder_batch, values(&["encoder", "decoder"]) + 0.25 * values(&["features"])),
            (config.denoiser_batch, values(&["denoiser", "guidance"])),
            (config.refine_batch, values(&["refine"])),
        ];
        let largest = stages.into_iter().map(|(batch, values)| batch as f64 * values).fold(0.0, f64::max);
        let batch = config.autoencoder_batch.max(config.denoiser_batch).max(config.refine_batch) as f64;
        let parameters: usize = parts.iter().map(|part| part.parameters).sum();
        Self {
            program: PROGRAM,
            pictures: (3.0 * plane * pictures as f64 + in_memory() as f64 * batch * 4.0 * 6.1 * plane) / 1e6,
            networks: COPIES * 4.0 * parameters as f64 / 1e6,
            activations: KEPT * 4.0 * largest / 1e6,
        }
    }

    /// All of it.
    pub fn total(&self) -> f64 {
        self.program + self.pictures + self.networks + self.activations
    }

    /// What this process needs of it: the rest is on the device.
    pub fn host(&self, device: DeviceChoice) -> f64 {
        match device {
            DeviceChoice::Cpu => self.total(),
            DeviceChoice::Cuda(_) => self.program + self.pictures,
        }
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pictures, networks, activations, .. } = self;
        write!(
            f,
            "about {:.1} GB: {pictures:.0} MB of pictures, {networks:.0} MB of networks and optimiser, {activations:.0} MB of \
             activations; networks and activations are on the device",
            self.total() / 1e3
        )
    }
}

/// Largest resident size of this process so far, MB; none where the system does not tell.
pub fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

/// Seconds per part of a run.
#[derive(Debug)]
pub struct Stopwatch {
    since: Instant,
    /// What took how long, in order.
    pub laps: Vec<(&'static str, f64)>,
}

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        Self { since: Instant::now(), laps: Vec::new() }
    }

    /// What has run since the last lap was this.
    pub fn lap(&mut self, what: &'static str) {
        self.laps.push((what, self.since.elapsed().as_secs_f64()));
        self.since = Instant::now();
    }
}
