//! Block kind by configuration: the networks are written once, for the paper's blocks and for the edge blocks.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::activation::Activation;
use super::edge::{EdgeBlock, EdgeBlockConfig};
use super::resample::{Downsample, Upsample};
use super::residual::{ResidualBlock, ResidualBlockConfig};

/// Which block a network is built of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// The paper's residual block of two 3x3 convolutions.
    Residual,
    /// Depthwise and pointwise convolutions.
    Edge,
}

/// What all blocks of one network have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockStyle {
    /// Block kind.
    pub kind: BlockKind,
    /// Non-linearity.
    pub activation: Activation,
    /// Groups of every norm; divides every channel count.
    pub groups: usize,
    /// Epsilon of every norm.
    pub epsilon: f64,
    /// Inner channels of an edge block as a multiple of its output.
    pub expansion: usize,
}

/// A block of either kind.
#[derive(Module, Debug)]
pub enum Block {
    /// The paper's block.
    Residual(ResidualBlock),
    /// The edge block.
    Edge(EdgeBlock),
}

impl BlockStyle {
    /// Halves the sides in the form that goes with the block kind.
    pub fn down(&self, input: usize, output: usize, device: &Device) -> Downsample {
        match self.kind {
            BlockKind::Residual => Downsample::symmetric(input, output, device),
            BlockKind::Edge => Downsample::folding(input, output, device),
        }
    }

    /// Doubles the sides in the form that goes with the block kind.
    pub fn up(&self, input: usize, output: usize, device: &Device) -> Upsample {
        match self.kind {
            BlockKind::Residual => Upsample::smoothing(input, output, device),
            BlockKind::Edge => Upsample::pointwise(input, output, device),
        }
    }

    /// Makes a block of this style.
    pub fn block(&self, input: usize, output: usize, embedding: Option<usize>, device: &Device) -> Block {
        match self.kind {
            BlockKind::Residual => Block::Residual(
                ResidualBlockConfig {
                    input,
                    output,
                    embedding,
                    groups: self.groups,
                    epsilon: self.epsilon,
                    activation: self.activation,
                }
                .init(device),
            ),
            BlockKind::Edge => Block::Edge(
                EdgeBlockConfig {
                    input,
                    output,
                    embedding,
                    groups: self.groups,
                    expansion: self.expansion,
                    activation: self.activation,
                }
                .init(device),
            ),
        }
    }
}

impl Block {
    /// Applies the block: `[b, input, h, w]` and, where configured, `[b, embedding]` to `[b, output, h, w]`.
    ///
    /// # Panics
    /// If embedding and configuration disagree.
    pub fn forward(&self, input: Tensor<4>, embedding: Option<Tensor<2>>) -> Tensor<4> {
        match self {
            Block::Residual(block) => block.forward(input, embedding),
            Block::Edge(block) => block.forward(input, embedding),
        }
    }

    /// The same block for one embedding, `[1, embedding]`, which it does not get any more.
    pub(in crate::model) fn at(self, embedding: &Tensor<2>) -> Self {
        match self {
            Block::Residual(block) => Block::Residual(block.at(embedding)),
            Block::Edge(block) => Block::Edge(block.at(embedding)),
        }
    }
}
