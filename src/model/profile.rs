//! The sizes of the one design: everything a network is made from, as data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::autoencoder::AutoencoderConfig;
use super::blocks::activation::Activation;
use super::blocks::stage::{BlockKind, BlockStyle};
use super::blocks::transformer::ContextConfig;
use super::control::{ControlConfig, ControlForm, SketchBranch};
use super::features::Backbone;
use super::features::resnet::PixelRange;
use super::guidance::{GuidanceConfig, SketchOperator};
use super::network::Network;
use super::prototypes::PrototypesConfig;
use super::refine::RefineConfig;
use super::repair::RepairConfig;
use super::sampler::Sampler;
use super::unet::DenoiserConfig;

/// A size that ships with a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// The paper's size: Stable Diffusion v1.5 and its checkpoints.
    Sd15,
    /// 8 to 30 M parameters, in a file of at most 16 MiB: CUDA and Jetson.
    Edge,
    /// At most 5 M parameters and 5 GFLOP a frame at 2 steps: a CPU, and the shipped demo.
    EdgeSmall,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Sd15 => "sd15",
            Profile::Edge => "edge",
            Profile::EdgeSmall => "edge-small",
        })
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sd15" => Ok(Profile::Sd15),
            "edge" => Ok(Profile::Edge),
            "edge-small" => Ok(Profile::EdgeSmall),
            _ => Err(format!("unknown profile '{text}': use sd15, edge or edge-small")),
        }
    }
}

/// Everything a [`Network`] is made from. Written by machine, with every field present.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The autoencoder.
    pub autoencoder: AutoencoderConfig,
    /// Factor that gives the latents of the training pictures a standard deviation of 1.
    pub latent_scale: f64,
    /// The denoiser.
    pub denoiser: DenoiserConfig,
    /// The semantic and sketch guided network of the edge profiles.
    pub guidance: Option<GuidanceConfig>,
    /// The semantic and sketch guided network at the paper's size.
    pub control: Option<ControlConfig>,
    /// The part that predicts the features of a good part, if there is one.
    #[serde(default)]
    pub repair: Option<RepairConfig>,
    /// The refine head, if there is one.
    pub refine: Option<RefineConfig>,
    /// The prototypes, if there are any.
    pub prototypes: Option<PrototypesConfig>,
    /// The frozen feature extractor.
    pub backbone: Backbone,
    /// How a latent is brought back to normal.
    pub sampler: Sampler,
    /// Classes that the network knows besides the null class.
    pub classes: usize,
}

fn edge_style(expansion: usize) -> BlockStyle {
    BlockStyle { kind: BlockKind::Edge, activation: Activation::Relu, groups: 8, epsilon: 1e-5, expansion }
}

/// `rows` prototypes, divided among the classes: the work of a frame does not grow with their number.
fn prototypes(rows: usize, classes: usize) -> PrototypesConfig {
    PrototypesConfig { per_class: rows / classes.max(1), border_counts: true, stride: 8, metric: true }
}

/// The paper's blocks; the autoencoder has another epsilon than the denoiser.
fn paper_style(epsilon: f64) -> BlockStyle {
    BlockStyle { kind: BlockKind::Residual, activation: Activation::Silu, groups: 32, epsilon, expansion: 1 }
}

impl ModelConfig {
    /// Stable Diffusion v1.5 with DSAD's guided network. One model for all classes, without a class embedding.
    fn sd15() -> Self {
        Self {
            autoencoder: AutoencoderConfig {
                latent_channels: 4,
                patch: 1,
                encoder_channels: vec![128, 256, 512, 512],
                decoder_channels: vec![128, 256, 512, 512],
                blocks: 2,
                middle_attention: true,
                style: paper_style(1e-6),
            },
            latent_scale: 0.18215,
            denoiser: DenoiserConfig {
                latent_channels: 4,
                channels: vec![320, 640, 1280, 1280],
                blocks: 2,
                attention: vec![true, true, true, false],
                heads: 8,
                context: Some(ContextConfig { tokens: 77, width: 768, stored: false }),
                style: paper_style(1e-5),
            },
            guidance: None,
            control: Some(ControlConfig {
                hint: [16, 16, 32, 32, 96, 96, 256],
                form: ControlForm::Dsad {
                    sketch: Some(SketchBranch { operator: SketchOperator::Soft, channels: [16, 32, 64, 128] }),
                    semantic: Some(128),
                    multi_scale: Some(256),
                },
            }),
            repair: None,
            refine: None,
            prototypes: None,
            backbone: Backbone::Resnet50 { range: PixelRange::SymmetricOne },
            sampler: Sampler::Ddim { timesteps: 1000 },
            classes: 0,
        }
    }

    /// The same with DiAD's control network, layer by layer as released, in place of DSAD's.
    pub fn diad_compat(mut self) -> Self {
        if let Some(control) = &mut self.control {
            control.form = ControlForm::Diad { all_skips: false, zeros: None };
        }
        self
    }

    /// The sketch that the model needs of a picture, if any.
    pub fn sketch(&self) -> Option<SketchOperator> {
        let guidance = self.guidance.as_ref().and_then(|guidance| guidance.sketch);
        guidance.or_else(|| self.control.as_ref().and_then(ControlConfig::sketch))
    }

    /// The configuration of a profile for `classes` classes.
    pub fn of(profile: Profile, classes: usize) -> Self {
        match profile {
            Profile::Sd15 => Self::sd15(),
            Profile::EdgeSmall => Self {
                autoencoder: AutoencoderConfig {
                    latent_channels: 8,
                    patch: 4,
                    encoder_channels: vec![32, 64],
                    decoder_channels: vec![40, 96],
                    blocks: 1,
                    middle_attention: false,
                    style: edge_style(2),
                },
                latent_scale: 1.0,
                denoiser: DenoiserConfig {
                    latent_channels: 8,
                    channels: vec![64, 96, 160],
                    blocks: 1,
                    attention: vec![false, false, true],
                    heads: 4,
                    context: None,
                    style: edge_style(2),
                },
                guidance: Some(GuidanceConfig {
                    patch: 4,
                    branch_channels: 32,
                    channels: vec![64, 96, 128],
                    semantic: true,
                    sketch: Some(SketchOperator::Soft),
                    multi_scale: true,
                    style: edge_style(2),
                }),
                control: None,
                repair: Some(RepairConfig {
                    channels: [32, 64, 96, 128],
                    bottleneck: 48,
                    blocks: 1,
                    style: edge_style(2),
                }),
                refine: Some(RefineConfig { channels: [32, 64, 96], blocks: 2, style: edge_style(2) }),
                prototypes: Some(prototypes(1728, classes)),
                backbone: Backbone::EfficientnetLite0,
                sampler: Sampler::DeviationCorrection { levels: 10 },
                classes,
            },
            Profile::Edge => Self {
                autoencoder: AutoencoderConfig {
                    latent_channels: 8,
                    patch: 4,
                    encoder_channels: vec![64, 128],
                    decoder_channels: vec![104, 208],
                    blocks: 2,
                    middle_attention: false,
                    style: edge_style(2),
                },
                latent_scale: 1.0,
                denoiser: DenoiserConfig {
                    latent_channels: 8,
                    channels: vec![64, 128, 128],
                    blocks: 2,
                    attention: vec![false, true, true],
                    heads: 4,
                    context: None,
                    style: edge_style(2),
                },
                guidance: Some(GuidanceConfig {
                    patch: 4,
                    branch_channels: 64,
                    channels: vec![96, 128, 160],
                    semantic: true,
                    sketch: Some(SketchOperator::Soft),
                    multi_scale: true,
                    style: edge_style(2),
                }),
                control: None,
                repair: Some(RepairConfig {
                    channels: [64, 96, 160, 224],
                    bottleneck: 48,
                    blocks: 2,
                    style: edge_style(2),
                }),
                refine: Some(RefineConfig { channels: [64, 128, 192], blocks: 2, style: edge_style(2) }),
                prototypes: Some(prototypes(1600, classes)),
                backbone: Backbone::EfficientnetLite0,
                sampler: Sampler::DeviationCorrection { levels: 10 },
                classes,
            },
        }
    }

    /// What is wrong with the configuration, if anything: checked before a bundle's weights are read.
    pub fn problem(&self) -> Option<String> {
        if self.autoencoder.latent_channels != self.denoiser.latent_channels {
            return Some(format!(
                "autoencoder.latent_channels {} and denoiser.latent_channels {} differ",
                self.autoencoder.latent_channels, self.denoiser.latent_channels
            ));
        }
        if self.guidance.is_some() && self.control.is_some() {
            return Some("guidance and control exclude each other".into());
        }
        if self.guidance.as_ref().is_some_and(|guidance| guidance.channels.len() != self.denoiser.channels.len()) {
            return Some("guidance.channels and denoiser.channels need the same number of levels".into());
        }
        if !(self.latent_scale.is_finite() && self.latent_scale > 0.0) {
            return Some(format!("latent_scale {} is not a positive number", self.latent_scale));
        }
        (self.autoencoder.problem().map(|p| format!("autoencoder: {p}")))
            .or_else(|| self.denoiser.problem().map(|p| format!("denoiser: {p}")))
            .or_else(|| self.guidance.as_ref()?.problem().map(|p| format!("guidance: {p}")))
            .or_else(|| self.control.as_ref()?.problem(&self.denoiser).map(|p| format!("control: {p}")))
            .or_else(|| self.repair.as_ref()?.problem().map(|p| format!("repair: {p}")))
            .or_else(|| self.prototypes.as_ref()?.problem().map(|p| format!("prototypes: {p}")))
    }

    /// Makes the network with fresh weights.
    ///
    /// # Panics
    /// If [`Self::problem`] finds one.
    pub fn init(&self, device: &burn::tensor::Device) -> Network {
        Network::new(self, device)
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;

    fn parameters(profile: Profile) -> usize {
        ModelConfig::of(profile, 3).init(&Device::flex()).num_params()
    }

    #[test]
    fn profiles_keep_their_size() {
        let small = parameters(Profile::EdgeSmall);
        assert!(small <= 5_000_000, "edge-small has {small} parameters");
        let edge = parameters(Profile::Edge);
        assert!((8_000_000..=30_000_000).contains(&edge), "edge has {edge} parameters");
        // In half precision, with the names of its tensors, for as many classes as MVTec-AD has.
        let weights = 2 * ModelConfig::of(Profile::Edge, 15).init(&Device::flex()).num_params() + 90_000;
        assert!(weights <= 16 << 20, "edge's weights are a file of {weights} bytes");
    }

    #[test]
    fn a_configuration_survives_json() {
        let config = ModelConfig::of(Profile::Edge, 2);
        let text = serde_json::to_string(&config).expect("serialises");
        assert_eq!(serde_json::from_str::<ModelConfig>(&text).expect("parses"), config);
    }
}
