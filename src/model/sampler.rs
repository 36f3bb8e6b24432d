//! Reduced-step samplers. The network is an argument, and so is the noise: nothing here draws.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::schedule::{NoiseSchedule, ScheduleKind};

/// How a latent is brought back to normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampler {
    /// Deviation correction (DeCo-Diff, CVPR 2025): starts from the latent itself, without noise, and the network
    /// predicts `d` with `x_t = x0 + sqrt(1 - alpha_bar_t) d`.
    DeviationCorrection {
        /// Levels of the squared-cosine schedule.
        levels: u32,
    },
    /// DDIM with eta 0 (arXiv 2010.02502) on a trailing grid from the last timestep; the network predicts the noise.
    Ddim {
        /// Timesteps of the scaled-linear schedule.
        timesteps: u32,
    },
}

impl Sampler {
    /// The schedule that this sampler runs on.
    pub fn schedule(&self) -> NoiseSchedule {
        match *self {
            Sampler::DeviationCorrection { levels } => NoiseSchedule::new(ScheduleKind::SquaredCosine, levels as usize),
            Sampler::Ddim { timesteps } => NoiseSchedule::new(ScheduleKind::ScaledLinear, timesteps as usize),
        }
    }

    /// Whether [`Self::run`] needs noise.
    pub fn needs_noise(&self) -> bool {
        matches!(self, Sampler::Ddim { .. })
    }

    /// Runs `steps` steps of `predict(x, t)` from `latent` and returns the reconstruction's latent.
    ///
    /// Deviation correction takes noise for a comparison alone: it then starts where DDIM does, at the last level, and the
    /// same network takes the noise away. Latents with noise in some cells are what it was trained with besides defects.
    ///
    /// # Shapes
    /// - latent, noise and output `[b, c, h, w]`
    ///
    /// # Panics
    /// If noise is needed and absent, or `steps` does not fit the schedule.
    pub fn run(
        &self,
        latent: Tensor<4>,
        noise: Option<Tensor<4>>,
        steps: u32,
        predict: impl Fn(Tensor<4>, usize) -> Tensor<4>,
    ) -> Tensor<4> {
        let schedule = self.schedule();
        let grid = schedule.trailing(steps);
        let level = |t: usize| schedule.alpha_bar(t);
        assert!(noise.is_some() || !self.needs_noise(), "DDIM starts from noise");
        let start = level(grid[0]);
        let mut x = match noise {
            Some(noise) => latent * start.sqrt() + noise * (1.0 - start).sqrt(),
            None => latent,
        };
        for (k, &t) in grid.iter().enumerate() {
            let prediction = predict(x.clone(), t);
            let sigma = (1.0 - level(t)).sqrt();
            let (signal, clean) = match self {
                Sampler::DeviationCorrection { .. } => (1.0, x - prediction.clone() * sigma),
                Sampler::Ddim { .. } => {
                    let signal = grid.get(k + 1).map_or(1.0, |&next| level(next).sqrt());
                    (signal, (x - prediction.clone() * sigma) / level(t).sqrt())
                }
            };
            x = match grid.get(k + 1) {
                Some(&next) => clean * signal + prediction * (1.0 - level(next)).sqrt(),
                None => clean,
            };
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tolerance};

    use super::*;

    fn random(seed_shape: [usize; 4]) -> Tensor<4> {
        Tensor::random(seed_shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    #[test]
    fn a_perfect_noise_prediction_gives_back_the_latent() {
        let (latent, noise) = (random([1, 4, 4, 4]), random([1, 4, 4, 4]));
        let sampler = Sampler::Ddim { timesteps: 1000 };
        for steps in [1, 2, 4] {
            let out = sampler.run(latent.clone(), Some(noise.clone()), steps, |_, _| noise.clone());
            out.into_data().assert_approx_eq::<f32>(&latent.to_data(), Tolerance::rel_abs(1e-3, 1e-4));
        }
    }

    #[test]
    fn a_perfect_deviation_prediction_gives_back_the_normal_latent() {
        let (normal, deviation) = (random([1, 4, 4, 4]), random([1, 4, 4, 4]));
        let sampler = Sampler::DeviationCorrection { levels: 10 };
        let schedule = sampler.schedule();
        for steps in [1, 2, 4, 8] {
            let first = schedule.alpha_bar(schedule.trailing(steps)[0]);
            let seen = normal.clone() + deviation.clone() * (1.0 - first).sqrt();
            let out = sampler.run(seen, None, steps, |_, _| deviation.clone());
            out.into_data().assert_approx_eq::<f32>(&normal.to_data(), Tolerance::rel_abs(1e-4, 1e-5));
        }
    }

    #[test]
    fn a_perfect_prediction_takes_noise_away_that_deviation_correction_starts_from() {
        let (latent, noise) = (random([1, 4, 4, 4]), random([1, 4, 4, 4]));
        let sampler = Sampler::DeviationCorrection { levels: 10 };
        let schedule = sampler.schedule();
        let last = schedule.alpha_bar(schedule.trailing(1)[0]);
        // What `DenoiserObjective` trains for where noise takes a cell's place.
        let deviation = noise.clone() - latent.clone() * ((1.0 - last.sqrt()) / (1.0 - last).sqrt());
        for steps in [1, 2, 4] {
            let out = sampler.run(latent.clone(), Some(noise.clone()), steps, |x, t| {
                if t == schedule.trailing(1)[0] {
                    let start = latent.clone() * last.sqrt() + noise.clone() * (1.0 - last).sqrt();
                    x.into_data().assert_approx_eq::<f32>(&start.into_data(), Tolerance::absolute(1e-6));
                }
                deviation.clone()
            });
            out.into_data().assert_approx_eq::<f32>(&latent.to_data(), Tolerance::rel_abs(1e-3, 1e-4));
        }
    }

    #[test]
    fn no_deviation_means_no_change() {
        let latent = random([2, 3, 4, 4]);
        let out = Sampler::DeviationCorrection { levels: 10 }.run(latent.clone(), None, 2, |x, _| x.zeros_like());
        out.into_data().assert_eq(&latent.into_data(), true);
    }
}
