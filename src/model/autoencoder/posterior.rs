//! The Gaussian that the encoder gives for every latent cell.

use burn::tensor::Tensor;

/// Mean and log variance, `[b, c, h, w]` each, unscaled.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mean: what inference uses, so that a frame judged twice gives the same bits.
    pub mean: Tensor<4>,
    /// Log variance, clamped to -30 to 20.
    pub log_variance: Tensor<4>,
}

impl Posterior {
    /// Splits the moments `[b, 2c, h, w]`.
    pub fn from_moments(moments: Tensor<4>) -> Self {
        let channels = moments.dims()[1] / 2;
        Self {
            mean: moments.clone().narrow(1, 0, channels),
            log_variance: moments.narrow(1, channels, channels).clamp(-30.0, 20.0),
        }
    }

    /// `mean + exp(log_variance / 2) * noise`, noise `[b, c, h, w]` standard normal.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + (self.log_variance.clone() * 0.5).exp() * noise
    }

    /// Divergence from the standard normal, summed per picture, mean over the batch: `[1]`.
    pub fn kl(&self) -> Tensor<1> {
        let batch = self.mean.dims()[0] as f64;
        let terms = self.mean.clone().square() + self.log_variance.clone().exp() - 1.0 - self.log_variance.clone();
        terms.sum() * (0.5 / batch)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn standard_normal_has_no_divergence() {
        let posterior = Posterior::from_moments(Tensor::zeros([2, 4, 3, 3], &Device::flex()));
        assert_eq!(posterior.kl().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn kl_of_a_shifted_unit_normal_is_half_its_squared_mean() {
        let moments = Tensor::cat(
            vec![Tensor::full([1, 1, 1, 2], 3.0, &Device::flex()), Tensor::zeros([1, 1, 1, 2], &Device::flex())],
            1,
        );
        assert!((Posterior::from_moments(moments).kl().into_scalar::<f32>() - 9.0).abs() < 1e-6);
    }
}
