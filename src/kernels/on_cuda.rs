//! The kernels on a GPU, by hand: see docs/building.md.

use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2dConfig;
use burn::tensor::{Device, FloatDType, Tolerance};

use super::tests::*;
use super::*;

/// Convolutions whose factors meet in shared memory: positions that fill no tile, few of them, and taps that cubes share; the last
/// three have more tiles than a GPU needs, whose taps are not shared.
const LARGE_CONVOLUTIONS: [Convolution; 9] = [
    (3, 1, [1, 1], 64, 70, [33, 47]),
    (3, 2, [0, 1], 64, 160, [64, 66]),
    (3, 1, [1, 1], 256, 320, [8, 7]),
    (3, 1, [1, 1], 320, 1280, [4, 4]),
    (1, 1, [0, 0], 2560, 640, [5, 6]),
    (1, 1, [0, 0], 512, 300, [37, 15]),
    (3, 1, [1, 1], 64, 128, [96, 100]),
    (3, 1, [1, 1], 64, 128, [97, 101]),
    (7, 1, [3, 3], 64, 128, [96, 100]),
];

fn device() -> Device {
    Device::new(burn_cuda::CudaDevice::new(0))
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn depthwise_agrees_with_burn() {
    depthwise_agrees(&device());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn norms_agree_with_burn() {
    group_norm_agrees(&device());
    cell_norm_agrees(&device());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn pointwise_agrees_with_burn() {
    // Matrix products are made of numbers with 10 bits there.
    pointwise_agrees(&device(), 3e-2);
}

/// Vectors of two and four halves are read as those of whole numbers are.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn halves_agree_with_whole_numbers() {
    let device = device();
    let half = FloatDType::F16;
    for (channels, outputs, [height, width]) in
        [(16, 24, [8, 8]), (20, 40, [50, 56]), (12, 33, [51, 55]), (64, 96, [90, 92]), (1024, 1100, [9, 7])]
    {
        let input = random([1, channels, height, width], &device);
        let (weight, bias) = (random([outputs, channels, 1, 1], &device), random([outputs], &device));
        let whole = pointwise(input.clone(), weight.clone(), bias.clone(), Epilogue::Relu);
        let found = pointwise(input.cast(half), weight.cast(half), bias.cast(half), Epilogue::Relu);
        let tolerance = Tolerance::rel_abs(3e-2, 3e-2);
        found.cast(FloatDType::F32).into_data().assert_approx_eq::<f32>(&whole.into_data(), tolerance);
    }
    // Taps that cubes share, and more tiles than a GPU needs.
    for [height, width] in [[33, 31], [130, 150], [131, 151]] {
        let mut conv = Conv2dConfig::new([128, 200], [3, 3]).init(&device);
        conv.padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
        let (input, added) = (random([1, 128, height, width], &device), random([1, 200, height, width], &device));
        let whole =
            [convolve(&conv, input.clone(), Epilogue::Silu), convolve_onto(&conv, input.clone(), added.clone())];
        conv.weight = conv.weight.map(|weight| weight.cast(half));
        conv.bias = conv.bias.map(|bias| bias.map(|bias| bias.cast(half)));
        let (input, added) = (input.cast(half), added.cast(half));
        let found = [convolve(&conv, input.clone(), Epilogue::Silu), convolve_onto(&conv, input, added)];
        for (found, whole) in found.into_iter().zip(whole) {
            let found = found.cast(FloatDType::F32).into_data();
            found.assert_approx_eq::<f32>(&whole.into_data(), Tolerance::rel_abs(3e-2, 3e-2));
        }
    }
    for side in [8, 15] {
        let joined = random([1, 96, side, side], &device);
        let (whole, found) = (attend(joined.clone(), 2), attend(joined.cast(half), 2));
        let tolerance = Tolerance::rel_abs(3e-2, 3e-2);
        found.cast(FloatDType::F32).into_data().assert_approx_eq::<f32>(&whole.into_data(), tolerance);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn what_is_no_number_stays_none() {
    no_number_stays_none(&device());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn layers_in_one_agree_with_burn() {
    layers_in_one_agree(&device(), 3e-2);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn attention_agrees_with_burn() {
    attention_agrees(&device(), 1e-2);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn convolutions_and_moves_agree_with_burn() {
    convolution_agrees(&device(), 3e-2, &SMALL_CONVOLUTIONS);
    convolution_agrees(&device(), 3e-2, &LARGE_CONVOLUTIONS);
    moves_agree(&device(), 3e-3);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn rows_agree_with_burn() {
    rows_agree(&device(), 1e-4);
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn convolutions_have_the_gradients_of_burn() {
    convolutions::convolution_gradients_agree(&device(), 3e-2, &[Epilogue::None]);
}
