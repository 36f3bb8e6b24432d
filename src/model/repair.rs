//! Repair: which features would this picture have without its defect?
//!
//! Reverse distillation (arXiv 2201.10703) predicts the features of a frozen backbone from a bottleneck too narrow to carry
//! a defect. Here it also learns to *repair*: it sees the features of a picture with a synthetic defect and predicts those of
//! the good picture. The cosine distance of seen and repaired features is an anomaly component, and the refine head looks at
//! their difference.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::blocks::activation::Activation;
use super::blocks::pointwise::mix;
use super::blocks::resample::{Downsample, Upsample};
use super::blocks::stage::{Block, BlockStyle};
use super::features::Stages;
use crate::kernels::join;

/// Configuration of a [`Repair`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairConfig {
    /// Channels at strides 4, 8, 16 and 32.
    pub channels: [usize; 4],
    /// Channels of a cell of the bottleneck, at stride 32.
    pub bottleneck: usize,
    /// Blocks at each stride.
    pub blocks: usize,
    /// Block kind and norms.
    pub style: BlockStyle,
}

/// The repairing network and the units that it works in.
#[derive(Module, Debug)]
pub struct Repair {
    /// Measured on good pictures, not trained.
    pub scale: FeatureScale,
    /// Trained.
    pub network: RepairNetwork,
}

/// Mean and spread of every feature channel on good pictures: a channel that varies little counts like any other.
#[derive(Module, Debug)]
pub struct FeatureScale {
    /// Mean of each channel, per stage.
    centers: Vec<Param<Tensor<1>>>,
    /// One over the standard deviation of each channel, per stage.
    factors: Vec<Param<Tensor<1>>>,
}

/// Standardised features in, standardised features of the part without its defect out.
#[derive(Module, Debug)]
pub struct RepairNetwork {
    down: Vec<Downsample>,
    narrow: Conv2d,
    coarsest: Vec<Block>,
    /// Strides 16, 8 and 4.
    levels: Vec<RepairLevel>,
    #[module(skip)]
    activation: Activation,
}

#[derive(Module, Debug)]
struct RepairLevel {
    up: Upsample,
    blocks: Vec<Block>,
    output: Conv2d,
}

impl FeatureScale {
    /// From measured values: mean and one over the standard deviation of each channel, per stage.
    pub fn new(centers: [Tensor<1>; 3], factors: [Tensor<1>; 3]) -> Self {
        let params = |values: [Tensor<1>; 3]| values.into_iter().map(Param::from_tensor).collect();
        Self { centers: params(centers), factors: params(factors) }
    }

    /// Features with mean 0 and spread 1 on good pictures.
    pub fn standardise(&self, stages: &Stages) -> Stages {
        std::array::from_fn(|k| {
            let row = |param: &Param<Tensor<1>>| {
                let value = param.val();
                let channels = value.dims()[0];
                value.reshape([1, channels, 1, 1])
            };
            (stages[k].clone() - row(&self.centers[k])) * row(&self.factors[k])
        })
    }
}

impl RepairConfig {
    /// Makes the part for a backbone with these stage channels; its units are neutral until they are measured.
    pub fn init(&self, stage_channels: [usize; 3], device: &Device) -> Repair {
        let rows = |value: f64| stage_channels.map(|channels| Tensor::zeros([channels], device) + value);
        Repair { scale: FeatureScale::new(rows(0.0), rows(1.0)), network: self.network(stage_channels, device) }
    }

    fn network(&self, stage_channels: [usize; 3], device: &Device) -> RepairNetwork {
        let Self { channels, bottleneck, style, .. } = self;
        let pointwise = |input, output| Conv2dConfig::new([input, output], [1, 1]).init(device);
        let run = |input: usize, output: usize| {
            (0..self.blocks).map(|k| style.block(if k == 0 { input } else { output }, output, None, device)).collect()
        };
        // What comes down from the finer stride is joined with the stage's own features.
        let inputs = [stage_channels[0], channels[1] + stage_channels[1], channels[2] + stage_channels[2]];
        RepairNetwork {
            down: (0..3).map(|k| style.down(inputs[k], channels[k + 1], device)).collect(),
            narrow: pointwise(channels[3], *bottleneck),
            coarsest: run(*bottleneck, channels[3]),
            levels: (0..3)
                .rev()
                .map(|k| RepairLevel {
                    up: style.up(channels[k + 1], channels[k], device),
                    blocks: run(channels[k], channels[k]),
                    output: pointwise(channels[k], stage_channels[k]),
                })
                .collect(),
            activation: style.activation,
        }
    }

    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        let groups = self.style.groups;
        let uneven = self.channels.iter().chain([&self.bottleneck]).find(|channels| !channels.is_multiple_of(groups));
        uneven.map(|channels| format!("{channels} channels are not a multiple of style.groups {groups}"))
    }
}

impl RepairNetwork {
    /// Standardised features of a picture to those that it would have without its defect.
    ///
    /// # Shapes
    /// - stages at strides 4, 8 and 16 of `[b, 3, h, w]`, with sides that are multiples of 32; the same out
    pub fn forward(&self, stages: &Stages) -> Stages {
        let mut x = stages[0].clone();
        for (k, down) in self.down.iter().enumerate() {
            if k > 0 {
                x = join(x, stages[k].clone());
            }
            x = self.activation.forward(down.forward(x));
        }
        let mut x = mix(&self.narrow, x);
        for block in &self.coarsest {
            x = block.forward(x, None);
        }
        let mut repaired: Vec<Tensor<4>> = Vec::with_capacity(3);
        for level in &self.levels {
            x = level.up.forward(x);
            for block in &level.blocks {
                x = block.forward(x, None);
            }
            repaired.push(mix(&level.output, self.activation.forward(x.clone())));
        }
        repaired.reverse();
        repaired.try_into().expect("three levels")
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{TensorData, Tolerance};

    use super::super::blocks::stage::BlockKind;
    use super::*;

    fn config() -> RepairConfig {
        let style =
            BlockStyle { kind: BlockKind::Edge, activation: Activation::Relu, groups: 4, epsilon: 1e-5, expansion: 2 };
        RepairConfig { channels: [8, 12, 16, 20], bottleneck: 4, blocks: 1, style }
    }

    #[test]
    fn repaired_features_have_the_shapes_of_the_seen_ones() {
        let device = Device::flex();
        let stages: Stages =
            [(3, 16), (5, 8), (6, 4)].map(|(channels, side)| Tensor::ones([2, channels, side, 2 * side], &device));
        let repair = config().init([3, 5, 6], &device);
        let repaired = repair.network.forward(&stages);
        for (seen, repaired) in stages.iter().zip(&repaired) {
            assert_eq!(seen.dims(), repaired.dims());
        }
    }

    #[test]
    fn units_are_those_of_good_pictures() {
        let device = Device::flex();
        let row = |values: [f32; 2]| Tensor::<1>::from_floats(values, &device);
        let scale = FeatureScale::new(
            [row([1.0, 2.0]), row([0.0, 0.0]), row([0.0, 0.0])],
            [row([2.0, 0.5]), row([1.0, 1.0]), row([1.0, 1.0])],
        );
        let stages: Stages = std::array::from_fn(|_| Tensor::<4>::ones([1, 2, 1, 1], &device) * 3.0);
        let [first, second, _] = scale.standardise(&stages);
        let check = |found: Tensor<4>, expected: [f32; 2]| {
            let expected = TensorData::new(expected.to_vec(), [1, 2, 1, 1]);
            found.into_data().assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
        };
        check(first, [4.0, 0.5]);
        check(second, [3.0, 3.0]);
    }

    #[test]
    fn channels_that_do_not_group_are_named() {
        assert_eq!(config().problem(), None);
        let uneven = RepairConfig { bottleneck: 6, ..config() };
        assert!(uneven.problem().is_some_and(|problem| problem.contains("6 channels")));
    }
}
