//! What follows the gradients of a step: their norm is bounded, then AdamW (arXiv 1711.05101) and a moving average.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Slice};
use burn::tensor::Shape;

/// How parameters follow their gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent {
    /// Weights of the moments, first and second.
    pub moments: [f64; 2],
    /// Added to the root of the second.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of all gradients together.
    pub clip: f64,
}

/// Added to the norm, so that nothing is not divided by.
pub(super) const LEAST: f64 = 1e-6;

/// Parameters, their average, first and second moments of their gradients.
type Rows<T> = (T, T, T, T);

/// [`super::Gradients::descend`] by burn's operations.
pub(super) fn by_parts<B: Backend>(
    (parameters, average, first, second): Rows<FloatTensor<B>>,
    gradient: FloatTensor<B>,
    course: FloatTensor<B>,
    descent: Descent,
) -> Rows<FloatTensor<B>> {
    let row = Shape::new([1, 1, 1, 1]);
    let setting = |k: usize| B::float_slice(course.clone(), &[Slice::from(k..k + 1)]);
    let weighed = |value: FloatTensor<B>, weight: f64| B::float_mul_scalar(value, weight.into());
    let joined = |old: FloatTensor<B>, new: FloatTensor<B>, weight: f64| {
        B::float_add(weighed(old, weight), weighed(new, 1.0 - weight))
    };
    let square = |value: FloatTensor<B>| B::float_mul(value.clone(), value);
    // The norm stays on the device: reading it would wait for every step.
    let norm = B::float_add_scalar(B::float_sqrt(B::float_sum(square(gradient.clone()))), LEAST.into());
    let factor = B::float_clamp_max(weighed(B::float_recip(norm), descent.clip), 1.0.into());
    let gradient = B::float_mul(gradient, B::float_reshape(factor, row));
    let first = joined(first, gradient.clone(), descent.moments[0]);
    let second = joined(second, square(gradient), descent.moments[1]);
    let root = B::float_sqrt(B::float_mul(second.clone(), setting(2)));
    let change = B::float_mul(first.clone(), setting(1));
    let change = B::float_div(change, B::float_add_scalar(root, descent.epsilon.into()));
    let kept = B::float_add_scalar(weighed(setting(0), -descent.weight_decay), 1.0.into());
    let parameters = B::float_sub(B::float_mul(parameters, kept), B::float_mul(change, setting(0)));
    let new = B::float_add_scalar(weighed(setting(3), -1.0), 1.0.into());
    let average = B::float_add(B::float_mul(average, setting(3)), B::float_mul(parameters.clone(), new));
    (parameters, average, first, second)
}

#[cfg(test)]
mod tests {
    use burn::backend::Dispatch;
    use burn::tensor::{Device, Distribution, Tensor, Tolerance};

    use super::super::descend;
    use super::*;

    #[test]
    fn one_pass_is_what_burns_operations_do() {
        let device = Device::flex();
        let descent = Descent { moments: [0.9, 0.999], epsilon: 1e-5, weight_decay: 0.02, clip: 1.0 };
        let random = |low, high| {
            let uniform = Distribution::Uniform(low, high);
            Tensor::<4>::random([1, 1, 1, 40_001], uniform, &device)
        };
        let course = Tensor::<1>::from_floats([1e-2, 1.3, 4.0, 0.7], &device).reshape([4, 1, 1, 1]);
        // Gradients whose norm is bounded, and such as are left as they are.
        for most in [1.0, 1e-3] {
            let rows = [random(-1.0, 1.0), random(-1.0, 1.0), random(-1.0, 1.0), random(0.0, 1.0)];
            let gradient = random(-most, most);
            let found = descend(rows.clone(), gradient.clone(), course.clone(), descent);
            let [parameters, average, first, second] = rows.map(Tensor::into_dispatch);
            let rows = (parameters, average, first, second);
            let expected =
                by_parts::<Dispatch>(rows, gradient.into_dispatch(), course.clone().into_dispatch(), descent);
            for (found, expected) in found.into_iter().zip([expected.0, expected.1, expected.2, expected.3]) {
                let expected = Tensor::<4>::from_dispatch(expected).into_data();
                found.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 1e-6));
            }
        }
    }
}
