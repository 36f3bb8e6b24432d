//! How a profile is trained: `configs/train/PROFILE.toml`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::grid::Grid;
use crate::inspection::detect::Steps;
use crate::model::profile::Profile;
use crate::preprocess::spec::Geometry;

/// A training configuration, every key present.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The model grid.
    pub grid: Grid,
    /// How pictures come onto it.
    pub geometry: Geometry,
    /// Share of the time budget for the autoencoder.
    pub autoencoder_share: f64,
    /// Share of the time budget for the guided denoiser.
    pub denoiser_share: f64,
    /// Share of the time budget for the refine head.
    pub refine_share: f64,
    /// Pictures per step of the autoencoder.
    pub autoencoder_batch: usize,
    /// Pictures per step of the guided denoiser.
    pub denoiser_batch: usize,
    /// Pictures per step of the refine head.
    pub refine_batch: usize,
    /// Peak learning rate of the autoencoder.
    pub autoencoder_rate: f64,
    /// Peak learning rate of the guided denoiser.
    pub denoiser_rate: f64,
    /// Peak learning rate of the refine head.
    pub refine_rate: f64,
    /// Decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// Weight of the moving average of the parameters.
    pub ema_decay: f64,
    /// Share of the pictures that carry a synthetic defect.
    pub defect_share: f64,
    /// Weight of the feature distance in the autoencoder's loss.
    pub feature_weight: f64,
    /// Weight of the KL term in the autoencoder's loss.
    pub kl_weight: f64,
    /// Step counts that the bundle lists.
    pub steps: Vec<Steps>,
}

impl TrainConfig {
    /// The configuration that ships for a profile.
    pub fn of(profile: Profile) -> anyhow::Result<Self> {
        let (name, text) = match profile {
            Profile::Sd15 => bail!("sd15 is built from public checkpoints; `fit` trains edge and edge-small"),
            Profile::Edge => ("edge", include_str!("../../configs/train/edge.toml")),
            Profile::EdgeSmall => ("edge-small", include_str!("../../configs/train/edge-small.toml")),
        };
        Self::parse(text).with_context(|| format!("configs/train/{name}.toml"))
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// An unreadable file, an unknown or missing key, or a value out of range.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        if let Some(problem) = config.grid.problem() {
            bail!("{problem}");
        }
        let shares = config.autoencoder_share + config.denoiser_share + config.refine_share;
        ensure!((shares - 1.0).abs() < 1e-6, "the three *_share keys add up to {shares}, they must add up to 1");
        for (name, batch) in [
            ("autoencoder_batch", config.autoencoder_batch),
            ("denoiser_batch", config.denoiser_batch),
            ("refine_batch", config.refine_batch),
        ] {
            ensure!((1..=512).contains(&batch), "{name} = {batch}: must be 1 to 512");
        }
        for (name, value) in [("ema_decay", config.ema_decay), ("defect_share", config.defect_share)] {
            ensure!((0.0..1.0).contains(&value), "{name} = {value}: must be at least 0 and below 1");
        }
        for (name, value) in [
            ("autoencoder_rate", config.autoencoder_rate),
            ("denoiser_rate", config.denoiser_rate),
            ("refine_rate", config.refine_rate),
        ] {
            ensure!(value > 0.0 && value < 1.0, "{name} = {value}: must lie between 0 and 1");
        }
        ensure!(!config.steps.is_empty(), "steps is empty: a bundle must list at least one step count");
        ensure!(
            config.steps.iter().all(|steps| (1..=10).contains(&steps.0)),
            "steps: every step count must be 1 to 10, the sampler has 10 levels"
        );
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_configurations_parse() {
        for profile in [Profile::Edge, Profile::EdgeSmall] {
            TrainConfig::of(profile).expect("ships in order");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let text = include_str!("../../configs/train/edge-small.toml");
        let error =
            |from: &str, to: &str| TrainConfig::parse(&text.replace(from, to)).expect_err("refused").to_string();
        assert!(error("grid = 65536", "grid = [256, 250]").contains("250"));
        assert!(error("refine_share = 0.30", "refine_share = 0.5").contains("add up to"));
        assert!(error("ema_decay", "ema_dcay").contains("ema_dcay"));
    }
}
