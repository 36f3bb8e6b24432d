//! EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; the Lite variant without squeeze-excite, with ReLU6) to stride 16.
//!
//! BatchNorm is folded into the convolutions when the weights are imported. Padding is TensorFlow's "same": a 3x3
//! convolution with stride 2 pads nothing left and above and 1 right and below, a 5x5 one pads 1 and 2; exact for sides
//! that are multiples of 32.

use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor, assert_shape};

use super::super::blocks::depthwise::{Depthwise, DepthwiseConfig};
use super::super::blocks::pointwise::{mix, mix_onto, mix_with};
use super::Stages;
use crate::kernels::{Epilogue, convolve};

/// Channels of blocks 2, 4 and 10, at strides 4, 8 and 16.
pub const STAGE_CHANNELS: [usize; 3] = [24, 40, 112];

/// Blocks up to stride 16: input, output, kernel, stride, expansion.
pub const BLOCKS: [(usize, usize, usize, usize, usize); 11] = [
    (32, 16, 3, 1, 1),
    (16, 24, 3, 2, 6),
    (24, 24, 3, 1, 6),
    (24, 40, 5, 2, 6),
    (40, 40, 5, 1, 6),
    (40, 80, 3, 2, 6),
    (80, 80, 3, 1, 6),
    (80, 80, 3, 1, 6),
    (80, 112, 5, 1, 6),
    (112, 112, 5, 1, 6),
    (112, 112, 5, 1, 6),
];

/// Indices of the blocks that end a stage.
const STAGE_ENDS: [usize; 3] = [2, 4, 10];

/// An inverted residual: expand, filter depthwise, project.
#[derive(Module, Debug)]
pub struct InvertedResidual {
    expand: Option<Conv2d>,
    depthwise: Depthwise,
    project: Conv2d,
    residual: bool,
}

/// The backbone up to stride 16.
#[derive(Module, Debug)]
pub struct EfficientNetLite0 {
    stem: Conv2d,
    blocks: Vec<InvertedResidual>,
}

impl InvertedResidual {
    fn new((input, output, kernel, stride, expansion): (usize, usize, usize, usize, usize), device: &Device) -> Self {
        let inner = input * expansion;
        let padding = if stride == 2 { (kernel / 2 - 1, kernel / 2) } else { (kernel / 2, kernel / 2) };
        Self {
            expand: (expansion > 1).then(|| Conv2dConfig::new([input, inner], [1, 1]).init(device)),
            depthwise: DepthwiseConfig { channels: inner, kernel, stride, padding }.init(device),
            project: Conv2dConfig::new([inner, output], [1, 1]).init(device),
            residual: stride == 1 && input == output,
        }
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let mut x = input.clone();
        if let Some(expand) = &self.expand {
            x = mix_with(expand, x, Epilogue::Relu6);
        }
        let x = self.depthwise.forward_with(x, Epilogue::Relu6);
        if self.residual { mix_onto(&self.project, x, input) } else { mix(&self.project, x) }
    }
}

impl EfficientNetLite0 {
    /// Makes the network, with untrained weights.
    pub fn new(device: &Device) -> Self {
        Self {
            stem: Conv2dConfig::new([3, 32], [3, 3])
                .with_stride([2, 2])
                .with_padding(PaddingConfig2d::Explicit(0, 0, 1, 1))
                .init(device),
            blocks: BLOCKS.iter().map(|&block| InvertedResidual::new(block, device)).collect(),
        }
    }

    /// Features of `[b, 3, h, w]` in -1 to 1; the backbone's own range is `(byte - 127) / 128`.
    pub fn forward(&self, image: Tensor<4>) -> Stages {
        self.forward_normalised(image * (127.5 / 128.0) + (0.5 / 128.0))
    }

    /// Features of a picture that is already in the backbone's own range.
    pub fn forward_normalised(&self, image: Tensor<4>) -> Stages {
        assert_shape!(image, [_, 3, _, _]);
        let mut x = convolve(&self.stem, image, Epilogue::Relu6);
        let mut stages = Vec::with_capacity(3);
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(x);
            if STAGE_ENDS.contains(&index) {
                stages.push(x.clone());
            }
        }
        stages.try_into().expect("three blocks end a stage")
    }
}
