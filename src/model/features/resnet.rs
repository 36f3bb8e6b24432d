//! ResNet50 (He et al., arXiv 1512.03385; the stride sits in the 3x3 convolution, as in torchvision and timm) to stride 16.
//!
//! BatchNorm is folded into the convolutions when the weights are imported.

use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::tensor::{Device, Tensor, activation::relu, assert_shape};
use serde::{Deserialize, Serialize};

use super::super::blocks::pointwise::{mix_onto, mix_with};
use super::Stages;
use crate::kernels::{Epilogue, convolve};

/// Channels of layers 1 to 3, at strides 4, 8 and 16.
pub const STAGE_CHANNELS: [usize; 3] = [256, 512, 1024];
/// Blocks per layer.
pub const BLOCKS: [usize; 3] = [3, 4, 6];
/// Output channels of a block as a multiple of its inner ones.
const EXPANSION: usize = 4;
/// Mean and standard deviation of ImageNet's channels in 0 to 1.
pub const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// See [`MEAN`].
pub const DEVIATION: [f64; 3] = [0.229, 0.224, 0.225];

/// What the pixels of the pictures are that the backbone gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelRange {
    /// -1 to 1.
    SymmetricOne,
    /// Less ImageNet's mean, by its deviation: what the backbone was trained with.
    ImageNet,
}

/// Reduce, filter, expand, and the input again.
#[derive(Module, Debug)]
pub struct Bottleneck {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    shortcut: Option<Conv2d>,
}

/// The backbone up to stride 16.
#[derive(Module, Debug)]
pub struct ResNet50 {
    conv1: Conv2d,
    pool: MaxPool2d,
    layers: Vec<Vec<Bottleneck>>,
    #[module(skip)]
    range: PixelRange,
}

fn conv(input: usize, output: usize, kernel: usize, stride: usize, device: &Device) -> Conv2d {
    let pad = kernel / 2;
    Conv2dConfig::new([input, output], [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
        .init(device)
}

impl Bottleneck {
    fn new(input: usize, inner: usize, stride: usize, device: &Device) -> Self {
        let output = EXPANSION * inner;
        Self {
            conv1: conv(input, inner, 1, 1, device),
            conv2: conv(inner, inner, 3, stride, device),
            conv3: conv(inner, output, 1, 1, device),
            shortcut: (input != output || stride != 1).then(|| conv(input, output, 1, stride, device)),
        }
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let x = mix_with(&self.conv1, input.clone(), Epilogue::Relu);
        let x = convolve(&self.conv2, x, Epilogue::Relu);
        let kept = match &self.shortcut {
            // Strided in all layers but the first, so no plain mixing.
            Some(shortcut) => convolve(shortcut, input, Epilogue::None),
            None => input,
        };
        relu(mix_onto(&self.conv3, x, kept))
    }
}

impl ResNet50 {
    pub(super) fn new(range: PixelRange, device: &Device) -> Self {
        let mut input = 64;
        let layers = BLOCKS
            .iter()
            .enumerate()
            .map(|(layer, &blocks)| {
                let inner = 64 << layer;
                (0..blocks)
                    .map(|block| {
                        let stride = if layer > 0 && block == 0 { 2 } else { 1 };
                        let entry = std::mem::replace(&mut input, EXPANSION * inner);
                        Bottleneck::new(entry, inner, stride, device)
                    })
                    .collect()
            })
            .collect();
        let pool = MaxPool2dConfig::new([3, 3])
            .with_strides([2, 2])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .init();
        Self { conv1: conv(3, 64, 7, 2, device), pool, layers, range }
    }

    /// Features of pictures `[b, 3, h, w]` in the configured range, at strides 4, 8 and 16.
    pub fn forward(&self, image: Tensor<4>) -> Stages {
        assert_shape!(image, [_, 3, _, _]);
        let image = match self.range {
            PixelRange::ImageNet => image,
            PixelRange::SymmetricOne => {
                let device = image.device();
                let row = |values: [f64; 3]| Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]);
                let (mean, deviation) = (row(MEAN).cast(image.dtype()), row(DEVIATION).cast(image.dtype()));
                (image * 0.5 + 0.5 - mean) / deviation
            }
        };
        let mut x = self.pool.forward(convolve(&self.conv1, image, Epilogue::Relu));
        let mut stages = self.layers.iter().map(|layer| {
            x = layer.iter().fold(x.clone(), |x, block| block.forward(x));
            x.clone()
        });
        std::array::from_fn(|_| stages.next().expect("three layers"))
    }
}
