//! Noise schedules: tables on the host, in f64.

use serde::{Deserialize, Serialize};

/// Which schedule a model was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Linear in the square root of beta from 0.00085 to 0.012: Stable Diffusion's, over 1000 timesteps.
    ScaledLinear,
    /// Squared cosine (arXiv 2102.09672), beta at most 0.999: deviation correction's, over 10 levels.
    SquaredCosine,
}

/// Cumulative products of `1 - beta`, one per timestep.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alpha_bars: Vec<f64>,
}

impl NoiseSchedule {
    /// The table of `timesteps` entries.
    ///
    /// # Panics
    /// If `timesteps` is 0.
    pub fn new(kind: ScheduleKind, timesteps: usize) -> Self {
        assert!(timesteps > 0, "a schedule needs at least one timestep");
        let beta = |t: usize| match kind {
            ScheduleKind::ScaledLinear => {
                let (first, last) = (0.00085f64.sqrt(), 0.012f64.sqrt());
                let part = if timesteps == 1 { 0.0 } else { t as f64 / (timesteps - 1) as f64 };
                (first + (last - first) * part).powi(2)
            }
            ScheduleKind::SquaredCosine => {
                let curve = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                let (from, to) = (t as f64 / timesteps as f64, (t + 1) as f64 / timesteps as f64);
                (1.0 - curve(to) / curve(from)).min(0.999)
            }
        };
        let mut product = 1.0;
        let alpha_bars = (0..timesteps)
            .map(|t| {
                product *= 1.0 - beta(t);
                product
            })
            .collect();
        Self { alpha_bars }
    }

    /// Number of timesteps.
    pub fn timesteps(&self) -> usize {
        self.alpha_bars.len()
    }

    /// Share of the signal's variance that is left at timestep `t`.
    ///
    /// # Panics
    /// If `t` is not a timestep.
    pub fn alpha_bar(&self, t: usize) -> f64 {
        self.alpha_bars[t]
    }

    /// The trailing grid of `steps` timesteps, first to run first: `round(n - k n / steps) - 1`.
    ///
    /// It always begins at the last timestep, where training and inference agree on what pure noise is
    /// (arXiv 2305.08891); halves round away from zero.
    ///
    /// # Panics
    /// If `steps` is 0 or more than there are timesteps.
    pub fn trailing(&self, steps: u32) -> Vec<usize> {
        let n = self.timesteps() as f64;
        assert!(steps > 0 && f64::from(steps) <= n, "{steps} steps of {n} timesteps");
        (0..steps).map(|k| (n - f64::from(k) * n / f64::from(steps)).round() as usize - 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_linear_matches_the_published_table() {
        let schedule = NoiseSchedule::new(ScheduleKind::ScaledLinear, 1000);
        let table = [
            (0, 0.999150),
            (1, 0.998296),
            (101, 0.892981),
            (201, 0.752143),
            (301, 0.588819),
            (401, 0.422882),
            (501, 0.274999),
            (601, 0.159816),
            (701, 0.081917),
            (801, 0.036547),
            (901, 0.014005),
            (999, 0.004660),
        ];
        for (t, expected) in table {
            assert!((schedule.alpha_bar(t) - expected).abs() < 1e-6, "t {t}: {}", schedule.alpha_bar(t));
        }
    }

    #[test]
    fn squared_cosine_falls_from_nearly_one_to_nearly_zero() {
        let schedule = NoiseSchedule::new(ScheduleKind::SquaredCosine, 10);
        assert!(schedule.alpha_bar(0) > 0.97 && schedule.alpha_bar(9) < 1e-3);
        assert!((1..10).all(|t| schedule.alpha_bar(t) < schedule.alpha_bar(t - 1)));
    }

    #[test]
    fn trailing_grids_match_the_recipe() {
        let levels = NoiseSchedule::new(ScheduleKind::SquaredCosine, 10);
        assert_eq!(levels.trailing(1), [9]);
        assert_eq!(levels.trailing(2), [9, 4]);
        assert_eq!(levels.trailing(4), [9, 7, 4, 2]);
        assert_eq!(levels.trailing(8), [9, 8, 7, 5, 4, 3, 2, 0]);
        let timesteps = NoiseSchedule::new(ScheduleKind::ScaledLinear, 1000);
        assert_eq!(timesteps.trailing(4), [999, 749, 499, 249]);
    }
}
