//! How a profile is trained: `configs/train/PROFILE.toml`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::grid::Grid;
use super::learner::LearnerSettings;
use crate::config::problem::did_you_mean;
use crate::inspection::detect::Steps;
use crate::model::profile::{ModelConfig, Profile};
use crate::preprocess::spec::Geometry;

/// How pictures come onto the grid, as a configuration says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeometryChoice {
    /// Letterbox where the pictures of a set have different shapes, stretch elsewhere.
    Auto,
    /// Both axes scaled on their own.
    Stretch,
    /// Aspect kept, mid grey around.
    Letterbox,
}

impl GeometryChoice {
    /// The geometry for pictures of one shape, or of different ones.
    pub fn resolve(self, one_shape: bool) -> Geometry {
        match self {
            Self::Auto if one_shape => Geometry::Stretch,
            Self::Stretch => Geometry::Stretch,
            Self::Auto | Self::Letterbox => Geometry::Letterbox,
        }
    }
}

/// A training configuration, every key present.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The model grid.
    pub grid: Grid,
    /// How pictures come onto it.
    pub geometry: GeometryChoice,
    /// Guide by features of the backbone.
    pub semantic: bool,
    /// Guide by the sketch.
    pub sketch: bool,
    /// Fuse the levels of the guidance.
    pub multi_scale: bool,
    /// Have a part that predicts the features of the good part.
    pub repair: bool,
    /// Have a refine head.
    pub refine: bool,
    /// Have prototypes.
    pub prototypes: bool,
    /// Share of the time budget for the autoencoder.
    pub autoencoder_share: f64,
    /// Share of the time budget for the guided denoiser.
    pub denoiser_share: f64,
    /// Share of the time budget for repair and refine head.
    pub refine_share: f64,
    /// Pictures per step of the autoencoder.
    pub autoencoder_batch: usize,
    /// Pictures per step of the guided denoiser.
    pub denoiser_batch: usize,
    /// Pictures per step of repair and refine head.
    pub refine_batch: usize,
    /// The third stage ends when it has seen every picture so often on the average, even if it has time left.
    pub refine_passes: f64,
    /// Peak learning rate of the autoencoder.
    pub autoencoder_rate: f64,
    /// Peak learning rate of the guided denoiser.
    pub denoiser_rate: f64,
    /// Peak learning rate of repair and refine head.
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
    /// How parameters follow their gradients.
    pub fn learner(&self) -> LearnerSettings {
        LearnerSettings { weight_decay: self.weight_decay, ema_decay: self.ema_decay }
    }

    /// The configuration that ships for a profile.
    pub fn of(profile: Profile) -> anyhow::Result<Self> {
        Self::with(profile, &toml::Table::new())
    }

    /// The configuration that ships for a profile, with other values for some keys.
    ///
    /// # Errors
    /// A key that it does not have, or a value out of range.
    pub fn with(profile: Profile, changes: &toml::Table) -> anyhow::Result<Self> {
        let text = match profile {
            Profile::Sd15 => bail!("sd15 is built from public checkpoints; `fit` trains edge and edge-small"),
            Profile::Edge => include_str!("../../configs/train/edge.toml"),
            Profile::EdgeSmall => include_str!("../../configs/train/edge-small.toml"),
        };
        let place = || format!("configs/train/{profile}.toml");
        let mut table: toml::Table = toml::from_str(text).with_context(place)?;
        for (key, value) in changes {
            let Some(place) = table.get_mut(key) else {
                let near = did_you_mean(key, table.keys().map(String::as_str));
                bail!("{key} = {value}: {} has no such key{near}; it has every key that there is", place());
            };
            *place = value.clone();
        }
        let config: Self =
            if changes.is_empty() { toml::from_str(text) } else { table.try_into() }.with_context(place)?;
        config.checked()
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// An unreadable file, an unknown or missing key, or a value out of range.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// The networks of a profile, without the parts that are switched off.
    pub fn model(&self, profile: Profile, classes: usize) -> ModelConfig {
        let mut model = ModelConfig::of(profile, classes);
        if let Some(guidance) = &mut model.guidance {
            guidance.semantic &= self.semantic;
            guidance.sketch = guidance.sketch.filter(|_| self.sketch);
            guidance.multi_scale &= self.multi_scale;
        }
        model.repair = model.repair.filter(|_| self.repair);
        model.refine = model.refine.filter(|_| self.refine);
        model.prototypes = model.prototypes.filter(|_| self.prototypes);
        model
    }

    /// Share of the time budget of the three stages. Without repair and refine head, their share goes to the others.
    pub fn shares(&self) -> [f64; 3] {
        let Self { autoencoder_share, denoiser_share, refine_share, .. } = *self;
        if self.repair || self.refine {
            return [autoencoder_share, denoiser_share, refine_share];
        }
        let whole = autoencoder_share + denoiser_share;
        [autoencoder_share / whole, denoiser_share / whole, 0.0]
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        toml::from_str::<Self>(text)?.checked()
    }

    fn checked(self) -> anyhow::Result<Self> {
        let config = self;
        if let Some(problem) = config.grid.problem() {
            bail!("{problem}");
        }
        for (name, share) in [
            ("autoencoder_share", config.autoencoder_share),
            ("denoiser_share", config.denoiser_share),
            ("refine_share", config.refine_share),
        ] {
            ensure!((0.0..=1.0).contains(&share), "{name} = {share}: must be 0 to 1");
        }
        ensure!(
            config.repair || config.refine || config.refine_share < 1.0,
            "repair = false and refine = false with refine_share = 1: no stage is left to train; give the other *_share keys \
             time"
        );
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
        ensure!(config.refine_passes > 0.0, "refine_passes = {}: must be above 0", config.refine_passes);
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
        assert!(error("refine_share = 0.55", "refine_share = 0.6").contains("add up to"));
        assert!(error("ema_decay", "ema_dcay").contains("ema_dcay"));
    }

    #[test]
    fn changes_are_named_where_they_do_not_fit() {
        let with = |text: &str| TrainConfig::with(Profile::Edge, &toml::from_str(text).expect("is TOML"));
        let changed = with("sketch = false\nsteps = [1, 8]").expect("fits");
        assert_eq!((changed.sketch, changed.steps.len(), changed.denoiser_batch), (false, 2, 16));
        let error = |text: &str| format!("{:#}", with(text).expect_err("refused"));
        let unknown = error("sketsh = false");
        assert!(unknown.contains("sketsh = false") && unknown.contains("'sketch'"), "{unknown}");
        assert!(unknown.contains("configs/train/edge.toml"), "{unknown}");
        assert!(error("refine = 1").contains("refine"), "{}", error("refine = 1"));
        assert!(error("defect_share = 1.5").contains("defect_share = 1.5"));
    }

    #[test]
    fn a_part_that_is_switched_off_is_not_made_and_its_time_is_given_away() {
        let off =
            "semantic = false\nsketch = false\nmulti_scale = false\nrepair = false\nrefine = false\nprototypes = false";
        let config = TrainConfig::with(Profile::EdgeSmall, &toml::from_str(off).expect("is TOML")).expect("fits");
        let model = config.model(Profile::EdgeSmall, 2);
        let guidance = model.guidance.expect("the picture itself still guides");
        assert_eq!((guidance.semantic, guidance.sketch, guidance.multi_scale), (false, None, false));
        assert_eq!((model.repair, model.refine, model.prototypes), (None, None, None));
        let [autoencoder, denoiser, refine] = config.shares();
        assert!((autoencoder + denoiser - 1.0).abs() < 1e-12 && refine == 0.0, "{:?}", config.shares());
        assert!((autoencoder / denoiser - 0.25 / 0.20).abs() < 1e-12);
        let whole = TrainConfig::of(Profile::EdgeSmall).expect("ships");
        assert_eq!(whole.model(Profile::EdgeSmall, 2), ModelConfig::of(Profile::EdgeSmall, 2));
        assert_eq!(whole.shares(), [0.25, 0.20, 0.55]);
    }
}
