//! The frozen feature extractor: stages of a pretrained backbone that guide the denoiser and score its work.

pub mod efficientnet;
pub mod resnet;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use self::efficientnet::EfficientNetLite0;
use self::resnet::{PixelRange, ResNet50};

/// Which backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backbone {
    /// EfficientNet-Lite0 to stride 16, ImageNet weights (Apache-2.0).
    EfficientnetLite0,
    /// ResNet50 to stride 16.
    Resnet50 {
        /// What its pictures are.
        range: PixelRange,
    },
}

impl Backbone {
    /// Channels of the stages at strides 4, 8 and 16.
    pub fn channels(self) -> [usize; 3] {
        match self {
            Backbone::EfficientnetLite0 => efficientnet::STAGE_CHANNELS,
            Backbone::Resnet50 { .. } => resnet::STAGE_CHANNELS,
        }
    }

    /// Makes the extractor, with untrained weights: they come from a file.
    pub fn init(self, device: &Device) -> FeatureExtractor {
        match self {
            Backbone::EfficientnetLite0 => FeatureExtractor::EfficientnetLite0(EfficientNetLite0::new(device)),
            Backbone::Resnet50 { range } => FeatureExtractor::Resnet50(ResNet50::new(range, device)),
        }
    }
}

/// A backbone of any kind. Frozen: its weights are never trained here.
#[derive(Module, Debug)]
pub enum FeatureExtractor {
    /// EfficientNet-Lite0.
    EfficientnetLite0(EfficientNetLite0),
    /// ResNet50.
    Resnet50(ResNet50),
}

/// Features at strides 4, 8 and 16, finest first.
pub type Stages = [Tensor<4>; 3];

impl FeatureExtractor {
    /// Features of a picture.
    ///
    /// # Shapes
    /// - image `[b, 3, h, w]` in -1 to 1, or in the backbone's [`PixelRange`]. Sides are multiples of 32.
    /// - output `[b, c_k, h/s, w/s]` for the strides `s` 4, 8, 16 (`Backbone::channels`)
    pub fn forward(&self, image: Tensor<4>) -> Stages {
        match self {
            FeatureExtractor::EfficientnetLite0(network) => network.forward(image),
            FeatureExtractor::Resnet50(network) => network.forward(image),
        }
    }
}
