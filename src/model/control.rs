//! The semantic and sketch guided network at the paper's size: a trainable copy of the denoiser's reading half that sees
//! the noisy latent, the timestep and the picture.
//!
//! Two forms of one skeleton (DiAD, arXiv 2312.06607). *DSAD*: semantic and sketch feature fusion (SSFF) in place of the
//! hint encoder, multi-scale feature fusion (MFF) in place of DiAD's fusion block; its layers are not published, these
//! follow the two modules that the paper's abstract names. *DiAD*: the released code layer by layer, for its checkpoints
//! and as a baseline. In both, control reaches the coarsest skips and the middle alone: cells of 64 pixels cannot carry a
//! copy of a defect.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Initializer, InstanceNorm, InstanceNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, assert_shape};
use serde::{Deserialize, Serialize};

use super::blocks::activation::Activation;
use super::blocks::pointwise::mix;
use super::blocks::stage::Block;
use super::blocks::timestep::TimestepEmbedding;
use super::features::Stages;
use super::fusion::{Gates, SemanticBranch};
use super::guidance::SketchOperator;
use super::unet::{Conditions, DenoiserConfig, Guidance, Level, Read, Reader, Reading, Unit};
use crate::kernels::{Epilogue, convolve, group_norm, instance_norm};

/// Strides of the hint encoder's convolutions but the last.
const HINT_STRIDES: [usize; 7] = [1, 1, 2, 1, 2, 1, 2];
/// Strides of the sketch branch.
const SKETCH_STRIDES: [usize; 4] = [1, 2, 2, 2];
/// Skips that control reaches: those of the coarsest level.
const CONTROLLED: usize = 3;

/// Configuration of a [`ControlNetwork`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    /// Channels of the picture's encoder down to stride 8.
    pub hint: [usize; 7],
    /// Which form.
    pub form: ControlForm,
}

/// DSAD's or DiAD's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlForm {
    /// With SSFF and MFF.
    Dsad {
        /// The sketch that guides, and the channels of its branch; none without a sketch.
        sketch: Option<SketchBranch>,
        /// Channels that each of the two backbone stages is projected to; none without semantic guidance.
        semantic: Option<usize>,
        /// Channels of the fused levels; none without multi-scale fusion.
        multi_scale: Option<usize>,
    },
    /// As released.
    Diad {
        /// Control reaches all skips instead of the coarsest three.
        all_skips: bool,
        /// Zero convolutions that are left, counted from the coarsest; all without a number. Inference needs 6, those that
        /// the fusion block reads, or 3 where that block is dead.
        zeros: Option<usize>,
    },
}

/// The sketch branch of SSFF.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SketchBranch {
    /// Where the sketch comes from.
    pub operator: SketchOperator,
    /// Channels of its convolutions.
    pub channels: [usize; 4],
}

/// Semantic and sketch feature fusion: `V = U + U g_c g_s` of the mixed views `U`.
#[derive(Module, Debug)]
struct Fusion {
    sketch: Vec<Conv2d>,
    semantic: Option<SemanticBranch>,
    mix: Conv2d,
    norm1: GroupNorm,
    conv: Conv2d,
    norm2: GroupNorm,
    gates: Gates,
}

/// Multi-scale feature fusion: laterals of every level of the trunk, carried down to the coarsest.
#[derive(Module, Debug)]
struct MultiScale {
    laterals: Vec<Conv2d>,
    downs: Vec<Conv2d>,
    weights: Vec<Param<Tensor<1>>>,
    outputs: Vec<Conv2d>,
    norm: InstanceNorm,
}

/// DiAD's fusion of the controls of the last two levels; `branches[3 i + j]` leads from source `i` to target `j`. Without
/// branches only its activation is left.
#[derive(Module, Debug)]
struct SpatialFusion {
    branches: Vec<Conv2d>,
    norm: InstanceNorm,
}

/// Latent, timestep and picture in; control for the denoiser out.
#[derive(Module, Debug)]
pub struct ControlNetwork {
    /// None in one for a single timestep.
    time: Option<TimestepEmbedding>,
    conv_in: Conv2d,
    down: Vec<Level>,
    middle_in: Unit,
    middle_out: Block,
    hint: Vec<Conv2d>,
    hint_out: Conv2d,
    fusion: Option<Fusion>,
    zeros: Vec<Conv2d>,
    zero_middle: Conv2d,
    multi_scale: Option<MultiScale>,
    spatial_fusion: Option<SpatialFusion>,
    levels: usize,
    all_skips: bool,
    #[module(skip)]
    activation: Activation,
}

fn conv3(input: usize, output: usize, stride: usize) -> Conv2dConfig {
    Conv2dConfig::new([input, output], [3, 3])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
}

fn pointwise(input: usize, output: usize) -> Conv2dConfig {
    Conv2dConfig::new([input, output], [1, 1])
}

fn chain(planes: usize, channels: &[usize], strides: &[usize], device: &Device) -> Vec<Conv2d> {
    let inputs = std::iter::once(&planes).chain(channels);
    let convs = inputs.zip(channels).zip(strides);
    convs.map(|((&input, &output), &stride)| conv3(input, output, stride).init(device)).collect()
}

impl ControlConfig {
    /// The sketch that the network needs, if any.
    pub fn sketch(&self) -> Option<SketchOperator> {
        match &self.form {
            ControlForm::Dsad { sketch, .. } => sketch.as_ref().map(|branch| branch.operator),
            ControlForm::Diad { .. } => None,
        }
    }

    /// Skips that it makes a control for, used or not, counted from the coarsest.
    pub fn controls(&self, denoiser: &DenoiserConfig) -> usize {
        match self.form {
            ControlForm::Dsad { .. } => CONTROLLED,
            ControlForm::Diad { zeros, .. } => zeros.unwrap_or(denoiser.skips()),
        }
    }

    /// What is wrong with the configuration, if anything.
    pub fn problem(&self, denoiser: &DenoiserConfig) -> Option<String> {
        if denoiser.blocks != 2 || denoiser.channels.len() < 2 {
            return Some("control needs a denoiser of 2 blocks per level and at least 2 levels".into());
        }
        let groups = denoiser.style.groups;
        match &self.form {
            ControlForm::Dsad { semantic: Some(width), .. } if 2 * width % groups != 0 => {
                Some(format!("2 x {width} semantic channels do not split into {groups} groups"))
            }
            ControlForm::Diad { all_skips, zeros: Some(zeros) }
                if *all_skips || ![CONTROLLED, 2 * CONTROLLED].contains(zeros) =>
            {
                Some(format!("{zeros} zero convolutions: only 3 or 6 can be left, and none spared with all_skips"))
            }
            _ => None,
        }
    }

    /// Makes the network for a denoiser.
    ///
    /// # Panics
    /// If [`Self::problem`] finds one.
    pub fn init(&self, denoiser: &DenoiserConfig, stage_channels: [usize; 3], device: &Device) -> ControlNetwork {
        if let Some(problem) = self.problem(denoiser) {
            panic!("control: {problem}");
        }
        let Reader { time, conv_in, down, middle_in, middle_out, skips } = denoiser.reader(device);
        let zero = |config: Conv2dConfig| config.with_initializer(Initializer::Zeros).init(device);
        let style = &denoiser.style;
        let (first, last) = (denoiser.channels[0], denoiser.channels[denoiser.channels.len() - 1]);
        let norm = |channels| GroupNormConfig::new(style.groups, channels).with_epsilon(style.epsilon).init(device);
        let instance_norm = |channels| InstanceNormConfig::new(channels).with_affine(false).init(device);
        let [.., encoded] = self.hint;
        let (mut fusion, mut multi_scale, mut spatial_fusion) = (None, None, None);
        let (zeros, hinted): (&[usize], usize) = match &self.form {
            ControlForm::Dsad { sketch, semantic, multi_scale: fused } => {
                let drawn = sketch.as_ref().map_or(0, |branch| branch.channels[3]);
                let joined = encoded + drawn + 2 * semantic.unwrap_or(0);
                fusion = Some(Fusion {
                    sketch: sketch
                        .as_ref()
                        .map_or(Vec::new(), |branch| chain(1, &branch.channels, &SKETCH_STRIDES, device)),
                    semantic: semantic.map(|width| SemanticBranch::new(stage_channels, width, style, device)),
                    mix: pointwise(joined, first).init(device),
                    norm1: norm(first),
                    conv: conv3(first, first, 1).init(device),
                    norm2: norm(first),
                    gates: Gates::new(first, style.activation, device),
                });
                multi_scale = fused.map(|width| MultiScale {
                    laterals: denoiser.channels.iter().map(|&c| pointwise(c, width).init(device)).collect(),
                    downs: denoiser.channels[1..]
                        .iter()
                        .map(|_| conv3(width, width, 2).with_bias(false).init(device))
                        .collect(),
                    weights: denoiser.channels[1..].iter().map(|_| Initializer::Ones.init([1], device)).collect(),
                    outputs: skips[skips.len() - CONTROLLED..]
                        .iter()
                        .chain([&last])
                        .map(|&channels| zero(pointwise(width, channels)))
                        .collect(),
                    norm: instance_norm(width),
                });
                (&skips[skips.len() - CONTROLLED..], first)
            }
            ControlForm::Diad { zeros, .. } => {
                let sources = match zeros {
                    Some(CONTROLLED) => &[],
                    _ => &skips[skips.len() - 2 * CONTROLLED..skips.len() - CONTROLLED],
                };
                let branches = sources
                    .iter()
                    .flat_map(|&source| (0..CONTROLLED).map(move |_| conv3(source, last, 2).with_bias(false)));
                spatial_fusion =
                    Some(SpatialFusion { branches: branches.map(zero).collect(), norm: instance_norm(last) });
                (&skips[skips.len() - self.controls(denoiser)..], encoded)
            }
        };
        ControlNetwork {
            hint: chain(3, &self.hint, &HINT_STRIDES, device),
            hint_out: zero(conv3(hinted, first, 1)),
            zeros: zeros.iter().map(|&channels| zero(pointwise(channels, channels))).collect(),
            zero_middle: zero(pointwise(last, last)),
            time: Some(time),
            conv_in,
            down,
            middle_in,
            middle_out,
            fusion,
            multi_scale,
            spatial_fusion,
            levels: denoiser.channels.len(),
            all_skips: matches!(self.form, ControlForm::Diad { all_skips: true, .. }),
            activation: style.activation,
        }
    }
}

impl Fusion {
    fn forward(&self, picture: Tensor<4>, sketch: Option<Tensor<4>>, stages: &Stages, act: Activation) -> Tensor<4> {
        let mut views = vec![picture];
        if !self.sketch.is_empty() {
            let sketch = sketch.expect("this network is guided by a sketch");
            views.push(self.sketch.iter().fold(sketch, |x, conv| convolve(conv, x, act.epilogue())));
        }
        if let Some(branch) = &self.semantic {
            views.push(branch.forward(stages));
        }
        let mixed = group_norm(&self.norm1, mix(&self.mix, Tensor::cat(views, 1)), act.epilogue());
        let mixed = group_norm(&self.norm2, convolve(&self.conv, mixed, Epilogue::None), act.epilogue());
        self.gates.forward(mixed)
    }
}

impl MultiScale {
    fn forward(&self, levels: &[&Tensor<4>], activation: Activation) -> Tensor<4> {
        let settle = |x| instance_norm(&self.norm, x, activation.epilogue());
        let mut fused = settle(mix(&self.laterals[0], levels[0].clone()));
        for (k, level) in levels.iter().enumerate().skip(1) {
            let carried = settle(convolve(&self.downs[k - 1], fused, Epilogue::None));
            let weight = self.weights[k - 1].val().reshape([1, 1, 1, 1]);
            fused = settle(mix(&self.laterals[k], (*level).clone())) + carried * weight;
        }
        fused
    }
}

impl ControlNetwork {
    /// What the network takes from the picture: once per frame, whatever the step count.
    ///
    /// # Shapes
    /// - image `[b, 3, h, w]`, sketch `[b, 1, h, w]` where the configuration asks for one, stages of the same picture
    /// - output `[b, channels, h/8, w/8]`
    pub fn hint(&self, image: Tensor<4>, sketch: Option<Tensor<4>>, stages: &Stages) -> Tensor<4> {
        let act = self.activation;
        let picture = self.hint.iter().fold(image, |x, conv| convolve(conv, x, act.epilogue()));
        let hint = match &self.fusion {
            Some(fusion) => fusion.forward(picture, sketch, stages, act),
            None => picture,
        };
        convolve(&self.hint_out, hint, Epilogue::None)
    }

    /// Control for one denoising call.
    ///
    /// # Shapes
    /// - latent `[b, c, h, w]`, `b` timesteps, the hint of the same pictures
    /// - output: tensors of the denoiser's last skips and its middle
    pub fn forward(
        &self,
        latent: Tensor<4>,
        timesteps: &[f64],
        context: Option<&Tensor<2>>,
        hint: Tensor<4>,
    ) -> Guidance {
        let batch = timesteps.len();
        assert_shape!(latent, [batch, _, _, _]);
        let Self { time, conv_in, down, middle_in, middle_out, .. } = self;
        let reading = Reading { conv_in, down, middle_in, middle_out };
        let conditions = Conditions { context, ..Conditions::default() };
        let embedding = time.as_ref().map(|time| time.forward(timesteps));
        let Read { skips, middle, .. } = reading.forward(latent, embedding, &conditions, Some(hint));
        let first = skips.len() - self.zeros.len();
        let mut controls: Vec<Tensor<4>> =
            self.zeros.iter().zip(&skips[first..]).map(|(zero, skip)| mix(zero, skip.clone())).collect();
        let mut middle = mix(&self.zero_middle, middle);
        if let Some(multi_scale) = &self.multi_scale {
            // The last block of each level, before it is halved.
            let per_level = skips.len() / self.levels;
            let levels: Vec<&Tensor<4>> = (1..=self.levels).map(|level| &skips[level * per_level - 1]).collect();
            let fused = multi_scale.forward(&levels, self.activation);
            for (control, output) in controls.iter_mut().zip(&multi_scale.outputs) {
                *control = control.clone() + mix(output, fused.clone());
            }
            middle = middle + mix(&multi_scale.outputs[CONTROLLED], fused);
        }
        if let Some(fusion) = &self.spatial_fusion {
            let targets = controls.len() - CONTROLLED;
            let sources: Vec<Tensor<4>> = controls[targets - fusion.branches.len() / CONTROLLED..targets].to_vec();
            for (target, control) in controls[targets..].iter_mut().enumerate() {
                let sum = sources.iter().enumerate().fold(control.clone(), |sum, (source, x)| {
                    let branch = convolve(&fusion.branches[CONTROLLED * source + target], x.clone(), Epilogue::None);
                    sum + instance_norm(&fusion.norm, branch, self.activation.epilogue())
                });
                *control = self.activation.forward(sum);
            }
        }
        let unused = if self.all_skips { 0 } else { controls.len() - CONTROLLED };
        Guidance { middle, skips: controls.split_off(unused) }
    }

    /// Removes what has no part in the output, exactly: zero convolutions whose control nobody reads, and a fusion block that
    /// is dead because its first layers are all zero. Gives the form that is left.
    pub fn prune(mut self, form: &ControlForm) -> (Self, ControlForm) {
        let (ControlForm::Diad { all_skips: false, zeros: None }, Some(fusion)) = (form, &mut self.spatial_fusion)
        else {
            return (self, form.clone());
        };
        // InstanceNorm of zeros is zero, and so is SiLU of that.
        let silent = |conv: &Conv2d| conv.weight.val().abs().max().into_scalar::<f32>() == 0.0;
        let left = if fusion.branches.iter().all(silent) { CONTROLLED } else { 2 * CONTROLLED };
        if left == CONTROLLED {
            fusion.branches.clear();
        }
        self.zeros = self.zeros.split_off(self.zeros.len() - left);
        (self, ControlForm::Diad { all_skips: false, zeros: Some(left) })
    }

    /// The same network for one context, whose layers of what attends are joined once: it is not trained any more.
    pub(super) fn joined(mut self, context: Option<&Tensor<2>>) -> Self {
        self.down = self.down.into_iter().map(|level| level.joined(context)).collect();
        self.middle_in = self.middle_in.joined(context);
        self
    }

    /// The same network for one timestep: what follows from it alone is computed once. It is not trained any more.
    pub(super) fn at(mut self, timestep: f64) -> Self {
        let Some(time) = self.time.take() else { return self };
        let embedding = time.forward(&[timestep]);
        self.down = self.down.into_iter().map(|level| level.at(&embedding)).collect();
        self.middle_in = self.middle_in.at(&embedding);
        self.middle_out = self.middle_out.at(&embedding);
        self
    }

    /// Stores what every attention needs of a context that never changes.
    pub fn store_context(mut self, context: &Tensor<2>) -> Self {
        self.down = self.down.into_iter().map(|level| level.store_context(context)).collect();
        self.middle_in = self.middle_in.store_context(context);
        self
    }
}
