//! What a run uses: memory, told before it starts and measured after, and time per part.

use std::fmt;
use std::time::Instant;

use serde::Serialize;

use super::config::TrainConfig;
use crate::config::device::DeviceChoice;
use crate::trainer::cost::PartCost;

/// Memory that a run will need, MB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryEstimate {
    /// The program and the backbone.
    pub program: f64,
    /// Good pictures on the model grid, and batches that are ready.
    pub pictures: f64,
    /// The networks, and what learning adds to those that learn: copy, average, gradients, the optimiser's moments.
    pub networks: f64,
    /// What a batch keeps for the way back, and what passes through.
    pub activations: f64,
}

/// The program itself.
const PROGRAM: f64 = 60.0;
/// Copies of the weights that learn, besides those of the network: the learning ones, their average, two moments, their gradients, and
/// those that a step is made with: 6. And four for each of the two states that a stage may go back to. The next three are measured
/// on the CPU, see the test.
const COPIES: f64 = 6.0 + 8.0;
/// Share of [`PartCost::values`] that is in memory at the peak: the first layers keep theirs longest.
const KEPT: f64 = 0.7;
/// Likewise of a frozen network that the way back leads through: it keeps no taps and no weights,
const FROZEN: f64 = 0.25;
/// and of one that is only looked through.
const PASSING: f64 = 0.035;

impl MemoryEstimate {
    /// Of a training on `pictures` pictures with these parts on a grid, with so many batches in memory: of the stage that
    /// needs most.
    pub fn of(
        pictures: usize,
        (width, height): (usize, usize),
        parts: &[PartCost],
        config: &TrainConfig,
        batches: usize,
    ) -> Self {
        let plane = (width * height) as f64;
        let sum = |names: &[&str], of: fn(&PartCost) -> usize| {
            let named = parts.iter().filter(|part| names.contains(&part.part));
            named.map(|part| of(part) as f64).sum::<f64>()
        };
        let all: usize = parts.iter().map(|part| part.parameters).sum();
        let features = sum(&["features"], |part| part.values);
        let stage = |batch: usize, learns: &[&str], others: f64| {
            let networks = all as f64 + COPIES * sum(learns, |part| part.parameters);
            let activations = batch as f64 * (KEPT * sum(learns, |part| part.values) + others);
            (4.0 * networks / 1e6, 4.0 * activations / 1e6)
        };
        let stages = [
            // Features of a quarter of the picture.
            stage(config.autoencoder_batch, &["encoder", "decoder"], 0.25 * FROZEN * features),
            stage(config.denoiser_batch, &["denoiser", "guidance"], PASSING * features),
            stage(config.refine_batch, &["repair", "refine"], 2.0 * PASSING * features),
        ];
        let larger = |a: (f64, f64), b: (f64, f64)| if a.0 + a.1 < b.0 + b.1 { b } else { a };
        let (networks, activations) = stages.into_iter().fold((0.0, 0.0), larger);
        let batch = config.autoencoder_batch.max(config.denoiser_batch).max(config.refine_batch) as f64;
        // Of each picture of a batch: good and as it is seen, three channels each, and the masks.
        let batches = batches as f64 * batch * 4.0 * 6.1 * plane;
        Self { program: PROGRAM, pictures: (3.0 * plane * pictures as f64 + batches) / 1e6, networks, activations }
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

/// Begins [`peak_rss_mb`] anew, with what is resident now. False where the system does not let it.
pub fn forget_peak_rss() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::profile::{ModelConfig, Profile};
    use crate::trainer::cost::cost;

    /// Peaks of resident memory of `trainer fit --stage-steps 2` on two cores, as Linux counts it.
    #[test]
    fn the_estimate_is_near_what_was_measured() {
        let measured = [
            (Profile::EdgeSmall, (224, 288), 31, 740.0),
            (Profile::EdgeSmall, (256, 256), 240, 798.0),
            (Profile::EdgeSmall, (384, 160), 202, 801.0),
            (Profile::EdgeSmall, (384, 384), 31, 1399.0),
            (Profile::EdgeSmall, (128, 128), 31, 411.0),
            (Profile::Edge, (128, 128), 31, 679.0),
        ];
        for (profile, grid, pictures, peak) in measured {
            let parts = cost(&ModelConfig::of(profile, 0), 2, grid.0, grid.1);
            let config = TrainConfig::of(profile).expect("ships");
            let expected = MemoryEstimate::of(pictures, grid, &parts, &config, 4).total();
            assert!((1.0 / 1.5..1.5).contains(&(expected / peak)), "{profile} {grid:?}: {expected:.0} MB, not {peak}");
        }
    }
}
