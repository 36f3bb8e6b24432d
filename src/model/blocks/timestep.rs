//! Sinusoidal embedding of a timestep and the small network behind it.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};

use super::activation::Activation;

/// `[cos(t f_i), sin(t f_i)]` with `f_i = 10000^(-i / half)`, cosines first as in the public checkpoints.
///
/// # Shapes
/// - output `[b, width]` for `b` timesteps, row by row; `width` is even
pub fn sinusoidal(timesteps: &[f64], width: usize) -> Vec<f32> {
    let half = width / 2;
    let mut values = Vec::with_capacity(timesteps.len() * width);
    for &t in timesteps {
        let angle = |i: usize| t * (-(10_000f64.ln()) * i as f64 / half as f64).exp();
        values.extend((0..half).map(|i| angle(i).cos() as f32));
        values.extend((0..half).map(|i| angle(i).sin() as f32));
    }
    values
}

/// Two linear layers behind the sinusoidal embedding.
#[derive(Module, Debug)]
pub struct TimestepEmbedding {
    linear1: Linear,
    linear2: Linear,
    width: usize,
    #[module(skip)]
    activation: Activation,
}

impl TimestepEmbedding {
    /// Sinusoids of `width`, output of `4 * width`.
    pub fn new(width: usize, activation: Activation, device: &Device) -> Self {
        assert_eq!(width % 2, 0, "width {width} of the timestep embedding must be even");
        Self {
            linear1: LinearConfig::new(width, 4 * width).init(device),
            linear2: LinearConfig::new(4 * width, 4 * width).init(device),
            width,
            activation,
        }
    }

    /// The sinusoids of `b` timesteps, `[b, width]`.
    pub fn sinusoids(&self, timesteps: &[f64]) -> Vec<f32> {
        sinusoidal(timesteps, self.width)
    }

    /// `b` timesteps to `[b, 4 * width]`, in the dtype of the weights.
    pub fn forward(&self, timesteps: &[f64]) -> Tensor<2> {
        let device = self.linear1.weight.val().device();
        self.of_sinusoids(Tensor::from_data(
            TensorData::new(self.sinusoids(timesteps), [timesteps.len(), self.width]),
            &device,
        ))
    }

    /// Their sinusoids `[b, width]` to `[b, 4 * width]`, in the dtype of the weights.
    pub fn of_sinusoids(&self, sinusoids: Tensor<2>) -> Tensor<2> {
        let sinusoids = sinusoids.cast(self.linear1.weight.val().dtype());
        self.linear2.forward(self.activation.forward(self.linear1.forward(sinusoids)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_come_first() {
        let values = sinusoidal(&[0.0, 1.0], 4);
        assert_eq!(&values[..4], &[1.0, 1.0, 0.0, 0.0]);
        assert!((values[4] - 1f32.cos()).abs() < 1e-7 && (values[6] - 1f32.sin()).abs() < 1e-7);
        assert!((values[5] - 0.01f32.cos()).abs() < 1e-7 && (values[7] - 0.01f32.sin()).abs() < 1e-7);
    }
}
