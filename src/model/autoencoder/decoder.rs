//! From a latent back to a picture.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};

use super::super::blocks::activation::Activation;
use super::super::blocks::resample::{Upsample, depth_to_space};
use super::super::blocks::stage::Block;
use super::AutoencoderConfig;
use super::encoder::Middle;
use crate::kernels::{Epilogue, convolve, group_norm};

/// One resolution of the decoder.
#[derive(Module, Debug)]
pub struct DecoderLevel {
    blocks: Vec<Block>,
    up: Option<Upsample>,
}

/// Latent to picture. `levels` are in the order of execution, coarsest first.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    levels: Vec<DecoderLevel>,
    norm: GroupNorm,
    conv_out: Conv2d,
    patch: usize,
    #[module(skip)]
    activation: Activation,
}

impl Decoder {
    pub(super) fn new(config: &AutoencoderConfig, device: &Device) -> Self {
        let style = &config.style;
        let conv3 = |input, output| {
            Conv2dConfig::new([input, output], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(device)
        };
        let finest = config.decoder_channels[0];
        let coarsest = config.decoder_channels[config.decoder_channels.len() - 1];
        let mut input = coarsest;
        let levels = config
            .decoder_channels
            .iter()
            .enumerate()
            .rev()
            .map(|(level, &width)| {
                let blocks = (0..config.blocks + 1)
                    .map(|_| style.block(std::mem::replace(&mut input, width), width, None, device))
                    .collect();
                DecoderLevel { blocks, up: (level > 0).then(|| style.up(width, width, device)) }
            })
            .collect();
        Self {
            conv_in: conv3(config.latent_channels, coarsest),
            middle: Middle::new(coarsest, config.middle_attention, style, device),
            levels,
            norm: GroupNormConfig::new(style.groups, finest).with_epsilon(style.epsilon).init(device),
            conv_out: conv3(finest, 3 * config.patch * config.patch),
            patch: config.patch,
            activation: style.activation,
        }
    }

    /// `[b, c, h, w]` to `[b, 3, 8h, 8w]`.
    pub fn forward(&self, latent: Tensor<4>) -> Tensor<4> {
        let mut x = self.middle.forward(convolve(&self.conv_in, latent, Epilogue::None));
        for level in &self.levels {
            for block in &level.blocks {
                x = block.forward(x, None);
            }
            if let Some(up) = &level.up {
                x = up.forward(x);
            }
        }
        depth_to_space(
            convolve(&self.conv_out, group_norm(&self.norm, x, self.activation.epilogue()), Epilogue::None),
            self.patch,
        )
    }
}
