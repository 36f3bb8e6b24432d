//! KL autoencoder with a spatial factor of 8 (LDM, arXiv 2112.10752).
//!
//! It owns `latent_scale`: nobody else ever sees an unscaled latent.

pub mod decoder;
pub mod encoder;
pub mod posterior;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor, assert_shape};
use serde::{Deserialize, Serialize};

use self::decoder::Decoder;
use self::encoder::Encoder;
use self::posterior::Posterior;
use super::blocks::pointwise::mix;
use super::blocks::stage::BlockStyle;

/// Configuration of an [`Autoencoder`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderConfig {
    /// Channels of the latent: 4 for `sd15`, 8 for the edge profiles.
    pub latent_channels: usize,
    /// Side of the pixel blocks that the first layer sees as channels; 1 in the paper's network.
    pub patch: usize,
    /// Channels of the encoder per level, finest first; `patch * 2^(levels - 1)` is 8.
    pub encoder_channels: Vec<usize>,
    /// Channels of the decoder per level, finest first.
    pub decoder_channels: Vec<usize>,
    /// Blocks per level of the encoder; the decoder has one more, as in the paper.
    pub blocks: usize,
    /// Single-head attention in the middle.
    pub middle_attention: bool,
    /// Block kind and norms.
    pub style: BlockStyle,
}

/// Encoder, posterior and decoder.
#[derive(Module, Debug)]
pub struct Autoencoder {
    encoder: Encoder,
    quant: Conv2d,
    post_quant: Conv2d,
    decoder: Decoder,
    latent_channels: usize,
}

impl AutoencoderConfig {
    /// What is wrong with the configuration, if anything.
    pub fn problem(&self) -> Option<String> {
        let levels = self.encoder_channels.len();
        if levels == 0 || levels != self.decoder_channels.len() {
            return Some("encoder_channels and decoder_channels need the same number of levels, at least 1".into());
        }
        if self.patch << (levels - 1) != 8 {
            return Some(format!("patch {} with {levels} levels does not reduce by 8", self.patch));
        }
        let groups = self.style.groups;
        let odd = self.encoder_channels.iter().chain(&self.decoder_channels).find(|c| **c % groups != 0)?;
        Some(format!("{odd} channels do not split into {groups} groups"))
    }

    /// Makes the network.
    ///
    /// # Panics
    /// If [`Self::problem`] finds one.
    pub fn init(&self, device: &Device) -> Autoencoder {
        if let Some(problem) = self.problem() {
            panic!("autoencoder: {problem}");
        }
        let moments = 2 * self.latent_channels;
        Autoencoder {
            encoder: Encoder::new(self, device),
            quant: Conv2dConfig::new([moments, moments], [1, 1]).init(device),
            post_quant: Conv2dConfig::new([self.latent_channels, self.latent_channels], [1, 1]).init(device),
            decoder: Decoder::new(self, device),
            latent_channels: self.latent_channels,
        }
    }
}

impl Autoencoder {
    /// The posterior of a picture: `[b, 3, h, w]` to mean and log variance `[b, c, h/8, w/8]`, unscaled.
    pub fn posterior(&self, image: Tensor<4>) -> Posterior {
        assert_shape!(image, [_, 3, _, _]);
        Posterior::from_moments(mix(&self.quant, self.encoder.forward(image)))
    }

    /// The scaled latent of a picture: the posterior's mean times `latent_scale`.
    pub fn encode(&self, image: Tensor<4>, latent_scale: f64) -> Tensor<4> {
        self.posterior(image).mean * latent_scale
    }

    /// The picture of a scaled latent: `[b, c, h, w]` to `[b, 3, 8h, 8w]`, not clamped.
    pub fn decode(&self, latent: Tensor<4>, latent_scale: f64) -> Tensor<4> {
        assert_shape!(latent, [_, self.latent_channels, _, _]);
        self.decoder.forward(mix(&self.post_quant, latent / latent_scale))
    }
}
