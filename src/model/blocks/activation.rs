//! Pointwise non-linearities.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::kernels::Epilogue;

/// Which non-linearity a network uses.
///
/// `Silu` is the paper's. On a CPU burn's transcendental functions are scalar and cost as much as a convolution, so the
/// edge profiles use `Relu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Applies it element by element.
    pub fn forward<const D: usize>(self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Activation::Silu => activation::silu(input),
            Activation::Relu => activation::relu(input),
        }
    }

    /// The same behind a sum or a norm, in one pass.
    pub(in crate::model) fn epilogue(self) -> Epilogue {
        match self {
            Activation::Silu => Epilogue::Silu,
            Activation::Relu => Epilogue::Relu,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tolerance};

    use super::*;

    #[test]
    fn values_match_the_formulas() {
        let x = Tensor::<1>::from_floats([-2.0, 0.0, 3.0], &Device::flex());
        let silu = Activation::Silu.forward(x.clone()).into_data();
        silu.assert_approx_eq::<f32>(
            &burn::tensor::TensorData::from([-0.238_405_84f32, 0.0, 2.857_722_4]),
            Tolerance::default(),
        );
        let relu = Activation::Relu.forward(x).into_data();
        relu.assert_eq(&burn::tensor::TensorData::from([0.0f32, 0.0, 3.0]), true);
    }
}
