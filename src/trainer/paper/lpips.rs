//! LPIPS (Zhang et al., arXiv 1801.03924) with the VGG16 trunk, as CompVis' `taming` computes it: how different two
//! pictures look. It judges the autoencoder in training and ships in no bundle.

use std::path::Path;

use anyhow::ensure;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{Initializer, PaddingConfig2d};
use burn::tensor::{Device, Tensor, activation::relu};

use crate::trainer::import::checkpoint::Checkpoint;
use crate::trainer::import::fill::fill;
use crate::trainer::import::keys;

/// Output channels of VGG16's convolutions, slice by slice; a 2x2 maximum stands between slices.
const SLICES: [&[usize]; 5] = [&[64, 64], &[128, 128], &[256, 256, 256], &[512, 512, 512], &[512, 512, 512]];
/// What the published heads expect of pictures in -1 to 1.
const SHIFT: [f64; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f64; 3] = [0.458, 0.448, 0.450];

/// Trunk and heads, frozen.
#[derive(Module, Debug)]
pub struct Lpips {
    slices: Vec<Vec<Conv2d>>,
    heads: Vec<Conv2d>,
}

impl Lpips {
    /// Reads the trunk from VGG16 in torchvision's layout (`features.0.weight`; the classifier is left), and the linear heads
    /// from the file of the LPIPS authors (`lin0.model.1.weight`, `vgg.pth` of version 0.1).
    ///
    /// # Errors
    /// A file that cannot be read, and parameters that are missing or unexpected.
    pub fn import(trunk: &Path, heads: &Path, device: &Device) -> anyhow::Result<Self> {
        let plain = |config: Conv2dConfig| config.with_initializer(Initializer::Zeros);
        let mut input = 3;
        let slices = SLICES
            .iter()
            .map(|channels| {
                let conv = |&output| {
                    let conv = Conv2dConfig::new([std::mem::replace(&mut input, output), output], [3, 3]);
                    plain(conv.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))).init(device)
                };
                channels.iter().map(conv).collect()
            })
            .collect();
        let head =
            |channels: &[usize]| plain(Conv2dConfig::new([channels[0], 1], [1, 1]).with_bias(false)).init(device);
        let mut lpips = Self { slices, heads: SLICES.iter().map(|channels| head(channels)).collect() };
        for (path, table, skips) in [
            (trunk, keys::vgg16(&SLICES.map(<[usize]>::len)), &keys::VGG16_SKIPS[..]),
            (heads, keys::lpips_heads(), &[]),
        ] {
            let file = Checkpoint::open(path)?;
            let (filled, report) = fill(lpips, &table, &["slices", "heads"], &file, device)?;
            lpips = filled;
            // The other file's parameters are kept in this pass.
            let lacking = table.keys().find(|ours| !report.matched.contains(&format!("{ours}.weight")));
            ensure!(lacking.is_none(), "{}: lacks {}", path.display(), table[lacking.map_or("", |l| l)].theirs);
            let unused = file.unused(skips);
            ensure!(unused.is_empty(), "{}: unexpected tensors: {}", path.display(), unused.join(", "));
        }
        Ok(lpips)
    }

    /// Distance of each pair of pictures, `[b, 3, h, w]` twice to `[b, 1, 1, 1]`.
    pub fn forward(&self, a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
        let (a, b) = (self.features(a), self.features(b));
        let distances = a.into_iter().zip(b).zip(&self.heads).map(|((a, b), head)| {
            let difference = (unit(a) - unit(b)).square();
            head.forward(difference).mean_dims(&[2, 3])
        });
        distances.reduce(|sum, distance| sum + distance).expect("five slices")
    }

    fn features(&self, image: Tensor<4>) -> Vec<Tensor<4>> {
        let device = image.device();
        let row = |values: [f64; 3]| Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]);
        let mut x = (image - row(SHIFT)) / row(SCALE);
        let mut features = Vec::with_capacity(SLICES.len());
        for (k, slice) in self.slices.iter().enumerate() {
            if k > 0 {
                x = MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init().forward(x);
            }
            x = slice.iter().fold(x, |x, conv| relu(conv.forward(x)));
            features.push(x.clone());
        }
        features
    }
}

/// Every cell scaled to length 1. The addend keeps the gradient finite where a cell is all zero.
fn unit(x: Tensor<4>) -> Tensor<4> {
    let length = (x.clone().square().sum_dim(1) + 1e-20).sqrt();
    x / (length + 1e-10)
}
