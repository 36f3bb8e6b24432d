//! From a picture to the moments of its latent.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};

use super::super::blocks::activation::Activation;
use super::super::blocks::attention::{AttentionBlock, AttentionBlockConfig};
use super::super::blocks::resample::{Downsample, space_to_depth};
use super::super::blocks::stage::{Block, BlockKind, BlockStyle};
use super::AutoencoderConfig;
use crate::kernels::{Epilogue, convolve, group_norm};

/// Blocks around an optional attention at the coarsest level; shared with the decoder.
#[derive(Module, Debug)]
pub struct Middle {
    block1: Block,
    attention: Option<AttentionBlock>,
    block2: Block,
}

impl Middle {
    pub(super) fn new(channels: usize, attention: bool, style: &BlockStyle, device: &Device) -> Self {
        let attention = attention.then(|| {
            AttentionBlockConfig { channels, heads: 1, groups: style.groups, epsilon: style.epsilon }.init(device)
        });
        Self {
            block1: style.block(channels, channels, None, device),
            attention,
            block2: style.block(channels, channels, None, device),
        }
    }

    pub(super) fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let mut x = self.block1.forward(input, None);
        if let Some(attention) = &self.attention {
            x = attention.forward(x);
        }
        self.block2.forward(x, None)
    }
}

/// One resolution of the encoder.
#[derive(Module, Debug)]
pub struct EncoderLevel {
    blocks: Vec<Block>,
    down: Option<Downsample>,
}

/// Picture to moments.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    levels: Vec<EncoderLevel>,
    middle: Middle,
    norm: GroupNorm,
    conv_out: Conv2d,
    patch: usize,
    #[module(skip)]
    activation: Activation,
}

impl Encoder {
    pub(super) fn new(config: &AutoencoderConfig, device: &Device) -> Self {
        let style = &config.style;
        let widths = &config.encoder_channels;
        let conv3 = |input, output| {
            Conv2dConfig::new([input, output], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(device)
        };
        let mut input = widths[0];
        let levels = widths
            .iter()
            .enumerate()
            .map(|(level, &width)| {
                let blocks = (0..config.blocks)
                    .map(|_| style.block(std::mem::replace(&mut input, width), width, None, device))
                    .collect();
                let down = (level + 1 < widths.len()).then(|| match style.kind {
                    BlockKind::Residual => Downsample::asymmetric(width, width, device),
                    BlockKind::Edge => style.down(width, width, device),
                });
                EncoderLevel { blocks, down }
            })
            .collect();
        let last = input;
        Self {
            conv_in: conv3(3 * config.patch * config.patch, widths[0]),
            levels,
            middle: Middle::new(last, config.middle_attention, style, device),
            norm: GroupNormConfig::new(style.groups, last).with_epsilon(style.epsilon).init(device),
            conv_out: conv3(last, 2 * config.latent_channels),
            patch: config.patch,
            activation: style.activation,
        }
    }

    /// `[b, 3, h, w]` to `[b, 2c, h/8, w/8]`.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let mut x = convolve(&self.conv_in, space_to_depth(image, self.patch), Epilogue::None);
        for level in &self.levels {
            for block in &level.blocks {
                x = block.forward(x, None);
            }
            if let Some(down) = &level.down {
                x = down.forward(x);
            }
        }
        let x = self.middle.forward(x);
        convolve(&self.conv_out, group_norm(&self.norm, x, self.activation.epilogue()), Epilogue::None)
    }
}
