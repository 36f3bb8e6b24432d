//! Gradients of convolutions against those that burn derives of its own.

use super::*;

/// Kernel, stride, padding and sides: also rows at the end that no position of a kernel sees.
const WINDOWS: [(usize, usize, [usize; 2], [usize; 2]); 14] = [
    (3, 1, [1, 1], [9, 13]),
    (3, 1, [0, 1], [8, 11]),
    (3, 1, [1, 0], [8, 11]),
    (3, 1, [3, 3], [5, 4]),
    (3, 2, [1, 1], [9, 12]),
    (3, 2, [0, 1], [12, 7]),
    (3, 2, [1, 0], [12, 7]),
    (3, 2, [3, 3], [11, 8]),
    (3, 2, [0, 0], [10, 12]),
    (7, 1, [1, 1], [9, 8]),
    (7, 1, [0, 1], [7, 12]),
    (7, 1, [3, 3], [6, 4]),
    (7, 2, [0, 1], [11, 14]),
    (7, 2, [3, 3], [13, 10]),
];

fn ours(input: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, window: Window, epilogue: Epilogue) -> Tensor<4> {
    let (input, weight, bias) = (input.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::convolve(input, weight, bias, window, epilogue))
}

fn burns(input: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, window: Window, epilogue: Epilogue) -> Tensor<4> {
    let padding = (window.before, window.after);
    let options = ConvOptions::new_with_padding([window.stride; 2], [padding; 2], [1, 1], 1);
    applied(conv2d(input, weight, Some(bias), options), epilogue)
}

pub(in crate::kernels) fn convolution_gradients_agree(device: &Device, tolerance: f32, epilogues: &[Epilogue]) {
    for (kernel, stride, [before, after], [height, width]) in WINDOWS {
        let window = Window { kernel, stride, before, after };
        let input = random([2, 3, height, width], device);
        let (weight, row) = (random([5, 3, kernel, kernel], device), random([5], device));
        for &epilogue in epilogues {
            let ours = |x, w, b| ours(x, w, b, window, epilogue);
            let burns = |x, w, b| burns(x, w, b, window, epilogue);
            agree(input.clone(), weight.clone(), row.clone(), [&ours, &burns], tolerance);
        }
    }
}

#[test]
fn convolutions_have_the_gradients_of_burn() {
    convolution_gradients_agree(&Device::flex(), TOLERANCE, &[Epilogue::None, Epilogue::Relu, Epilogue::Silu]);
}

/// What is frozen has no gradient, and what is not has the same as if nothing were.
#[test]
fn frozen_parts_of_convolutions_have_no_gradient() {
    let (device, window) = (Device::flex(), Window { kernel: 3, stride: 2, before: 0, after: 1 });
    let (input, weight, row) = (random([2, 3, 8, 9], &device), random([5, 3, 3, 3], &device), random([5], &device));
    for learns in [[true, false, false], [false, true, false], [false, false, true], [true, true, false]] {
        let found = [ours, burns].map(|way| {
            let (x, w, r) = (input.clone().autodiff(), weight.clone().autodiff(), row.clone().autodiff());
            let x = if learns[0] { x.require_grad() } else { x };
            let w = if learns[1] { w.require_grad() } else { w };
            let r = if learns[2] { r.require_grad() } else { r };
            let gradients = way(x.clone(), w.clone(), r.clone(), window, Epilogue::Silu).sum().backward();
            [
                x.grad(&gradients).map(Tensor::into_data),
                w.grad(&gradients).map(Tensor::into_data),
                r.grad(&gradients).map(Tensor::into_data),
            ]
        });
        for ((ours, burns), learns) in found[0].iter().zip(&found[1]).zip(learns) {
            assert_eq!((ours.is_some(), burns.is_some()), (learns, learns));
            if let (Some(ours), Some(burns)) = (ours, burns) {
                ours.assert_approx_eq::<f32>(burns, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
            }
        }
    }
}
