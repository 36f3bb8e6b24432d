//! The semantic and sketch guided network (SSG): it looks at the picture once and steers every denoising step.
//!
//! DSAD's own layers are not published; this follows the two modules that its abstract names. *Semantic and sketch
//! feature fusion* joins three views of the picture at stride 8: its pixels, its edges, and features of the frozen
//! backbone. *Multi-scale feature fusion* gathers the trunk's levels. Control enters the denoiser at its coarsest
//! level only: that bottleneck is what keeps a defect from being copied (DiAD, arXiv 2312.06607, section 9.2 ablation).

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig, Initializer, PaddingConfig2d};
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::blocks::activation::Activation;
use super::blocks::pointwise::{mix, mix_onto};
use super::blocks::resample::{Downsample, space_to_depth};
use super::blocks::stage::{Block, BlockStyle};
use super::features::Stages;
use super::fusion::{Gates, SemanticBranch};
use super::unet::Guidance;
use crate::kernels::{convolve, group_norm, join};

/// Which sketch of the picture guides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SketchOperator {
    /// Differentiable, computed by the model.
    Soft,
    /// Canny edges, computed by the host as a second plane.
    Canny,
}

/// Configuration of a [`GuidanceNetwork`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuidanceConfig {
    /// Side of the pixel blocks that the picture branch sees as channels: 1, 2 or 4.
    pub patch: usize,
    /// Channels of each branch before they are mixed.
    pub branch_channels: usize,
    /// Channels of the trunk per level from stride 8 on; as many levels as the denoiser.
    pub channels: Vec<usize>,
    /// Use the backbone's features.
    pub semantic: bool,
    /// Use the sketch, and which.
    pub sketch: Option<SketchOperator>,
    /// Fuse the trunk's levels.
    pub multi_scale: bool,
    /// Block kind and norms.
    pub style: BlockStyle,
}

/// Strided convolutions from the picture, or its sketch, to stride 8.
#[derive(Module, Debug)]
struct Branch {
    convs: Vec<Conv2d>,
    patch: usize,
    #[module(skip)]
    activation: Activation,
}

impl Branch {
    fn new(planes: usize, patch: usize, width: usize, activation: Activation, device: &Device) -> Self {
        let halvings = (8 / patch).trailing_zeros();
        let mut input = planes * patch * patch;
        let convs = (0..halvings)
            .map(|k| {
                let output = width >> (halvings - 1 - k);
                Conv2dConfig::new([std::mem::replace(&mut input, output), output], [3, 3])
                    .with_stride([2, 2])
                    .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                    .init(device)
            })
            .collect();
        Self { convs, patch, activation }
    }

    fn forward(&self, planes: Tensor<4>) -> Tensor<4> {
        let next = |x, conv| convolve(conv, x, self.activation.epilogue());
        self.convs.iter().fold(space_to_depth(planes, self.patch), next)
    }
}

/// Semantic and sketch feature fusion.
#[derive(Module, Debug)]
struct Fusion {
    picture: Branch,
    sketch: Option<Branch>,
    semantic: Option<SemanticBranch>,
    mix: Conv2d,
    norm: GroupNorm,
    gates: Gates,
    #[module(skip)]
    activation: Activation,
}

#[derive(Module, Debug)]
struct TrunkLevel {
    down: Option<Downsample>,
    block: Block,
}

/// Multi-scale feature fusion: laterals of every trunk level, carried down to the coarsest.
#[derive(Module, Debug)]
struct MultiScale {
    laterals: Vec<Conv2d>,
    downs: Vec<Downsample>,
    weights: Vec<Param<Tensor<1>>>,
    #[module(skip)]
    activation: Activation,
}

impl MultiScale {
    fn forward(&self, levels: &[Tensor<4>]) -> Tensor<4> {
        let mut fused = self.activation.forward(mix(&self.laterals[0], levels[0].clone()));
        for (k, level) in levels.iter().enumerate().skip(1) {
            let carried = self.activation.forward(self.downs[k - 1].forward(fused));
            let weight = self.weights[k - 1].val().reshape([1, 1, 1, 1]);
            fused = self.activation.forward(mix(&self.laterals[k], level.clone())) + carried * weight;
        }
        fused
    }
}

/// The picture, its sketch and its features in; control for the denoiser and a class embedding out.
#[derive(Module, Debug)]
pub struct GuidanceNetwork {
    fusion: Fusion,
    trunk: Vec<TrunkLevel>,
    multi_scale: Option<MultiScale>,
    direct: Vec<Conv2d>,
    fused: Vec<Conv2d>,
    classes: Embedding,
}

impl GuidanceConfig {
    /// What is wrong with the configuration, if anything.
    pub fn problem(&self) -> Option<String> {
        if !matches!(self.patch, 1 | 2 | 4) {
            return Some(format!("patch {} is not 1, 2 or 4", self.patch));
        }
        if self.channels.is_empty() {
            return Some("channels needs at least one level".into());
        }
        let groups = self.style.groups;
        let odd = self.channels.iter().find(|c| **c % groups != 0)?;
        Some(format!("{odd} channels do not split into {groups} groups"))
    }

    /// Makes the network for a denoiser whose coarsest level has `control` channels and `skips` guided skips.
    ///
    /// Only the last layer starts at zero, so an untrained network changes nothing, and every other layer has a gradient
    /// from the second step on. Two such layers in series would never train (as happens to DiAD's fusion block).
    ///
    /// # Panics
    /// If [`Self::problem`] finds one.
    pub fn init(
        &self,
        control: usize,
        skips: &[usize],
        embedding: usize,
        classes: usize,
        semantic_channels: [usize; 3],
        device: &Device,
    ) -> GuidanceNetwork {
        if let Some(problem) = self.problem() {
            panic!("guidance: {problem}");
        }
        let style = &self.style;
        let activation = style.activation;
        let pointwise = |input, output| Conv2dConfig::new([input, output], [1, 1]).init(device);
        let zero = |input, output| {
            Conv2dConfig::new([input, output], [1, 1]).with_initializer(Initializer::Zeros).init(device)
        };
        let branch = self.branch_channels;
        let first = self.channels[0];
        let last = self.channels[self.channels.len() - 1];
        let mut joined = branch;
        let sketch = self.sketch.map(|_| {
            joined += branch / 2;
            Branch::new(1, self.patch, branch / 2, activation, device)
        });
        let semantic = self.semantic.then(|| {
            joined += branch;
            SemanticBranch::new(semantic_channels, branch / 2, style, device)
        });
        let fusion = Fusion {
            picture: Branch::new(3, self.patch, branch, activation, device),
            sketch,
            semantic,
            mix: pointwise(joined, first),
            norm: GroupNormConfig::new(style.groups, first).init(device),
            gates: Gates::new(first, activation, device),
            activation,
        };
        let mut input = first;
        let trunk = self
            .channels
            .iter()
            .enumerate()
            .map(|(level, &width)| {
                let entry = std::mem::replace(&mut input, width);
                TrunkLevel {
                    down: (level > 0).then(|| style.down(entry, width, device)),
                    block: style.block(width, width, None, device),
                }
            })
            .collect();
        let multi_scale = self.multi_scale.then(|| MultiScale {
            laterals: self.channels.iter().map(|&width| pointwise(width, first)).collect(),
            downs: self.channels[1..].iter().map(|_| style.down(first, first, device)).collect(),
            weights: self.channels[1..].iter().map(|_| Initializer::Ones.init([1], device)).collect(),
            activation,
        });
        let outputs: Vec<usize> = skips.iter().copied().chain([control]).collect();
        GuidanceNetwork {
            fusion,
            trunk,
            direct: outputs.iter().map(|&width| zero(last, width)).collect(),
            fused: multi_scale.iter().flat_map(|_| outputs.iter().map(|&width| zero(first, width))).collect(),
            multi_scale,
            classes: EmbeddingConfig::new(classes + 1, embedding).with_initializer(Initializer::Zeros).init(device),
        }
    }
}

impl GuidanceNetwork {
    /// Control for the denoiser.
    ///
    /// # Shapes
    /// - image `[b, 3, h, w]` in -1 to 1, sketch `[b, 1, h, w]`, stages of the same picture
    /// - output: tensors of the denoiser's coarsest level
    pub fn forward(&self, image: Tensor<4>, sketch: Option<Tensor<4>>, stages: Option<&Stages>) -> Guidance {
        let fusion = &self.fusion;
        let mut views = fusion.picture.forward(image);
        if let Some(branch) = &fusion.sketch {
            views = join(views, branch.forward(sketch.expect("this network is guided by a sketch")));
        }
        if let Some(branch) = &fusion.semantic {
            views = join(views, branch.forward(stages.expect("this network is guided by features")));
        }
        let mixed = group_norm(&fusion.norm, mix(&fusion.mix, views), fusion.activation.epilogue());
        let mut x = fusion.gates.forward(mixed);
        let mut levels = Vec::with_capacity(self.trunk.len());
        for level in &self.trunk {
            if let Some(down) = &level.down {
                x = down.forward(x);
            }
            x = level.block.forward(x, None);
            levels.push(x.clone());
        }
        let fused = self.multi_scale.as_ref().map(|multi_scale| multi_scale.forward(&levels));
        let mut controls: Vec<Tensor<4>> = self
            .direct
            .iter()
            .enumerate()
            .map(|(k, direct)| {
                let direct = mix(direct, x.clone());
                match &fused {
                    Some(fused) => mix_onto(&self.fused[k], fused.clone(), direct),
                    None => direct,
                }
            })
            .collect();
        let middle = controls.pop().expect("the middle is always controlled");
        Guidance { middle, skips: controls }
    }

    /// The same network for `classes` classes, each of which starts as the null class.
    pub fn with_classes(mut self, classes: usize) -> Self {
        self.classes.weight = self.classes.weight.map(|rows| rows.narrow(0, 0, 1).repeat_dim(0, classes + 1));
        self
    }

    /// Embeddings of the classes, `[b, embedding]`; index 0 is the null class.
    pub fn class_embedding(&self, classes: Tensor<1, Int>) -> Tensor<2> {
        let rows: Tensor<3> = self.classes.forward(classes.unsqueeze_dim::<2>(1));
        rows.squeeze_dim::<2>(1)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tolerance};

    use super::super::profile::{ModelConfig, Profile};
    use super::*;

    #[test]
    fn every_class_starts_as_the_null_class() {
        let network = ModelConfig::of(Profile::EdgeSmall, 1).init(&Device::flex());
        let mut guidance = network.guidance.expect("is guided");
        guidance.classes.weight = guidance.classes.weight.map(|rows| rows.random_like(Distribution::Default));
        let null = guidance.classes.weight.val().narrow(0, 0, 1);
        let rows = guidance.with_classes(2).classes.weight.val();
        assert_eq!(rows.dims()[0], 3);
        (rows - null).into_data().assert_approx_eq::<f32>(&[[0.0f32; 256]; 3].into(), Tolerance::absolute(0.0));
    }
}
