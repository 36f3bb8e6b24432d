//! By what the distances between patches are measured: how good patches vary.
//!
//! The plain distance of features counts a channel that varies much in good parts like one that never does. Divided by each
//! channel's variance (`D`) it does not, and by the whole covariance (`S`, as in PaDiM, arXiv 2011.08785) it does not even
//! where channels vary together; but few pictures know their covariance badly, and what they never showed then counts too
//! much. The sum of both inverses, `D^-1 + w S^-1`, with a `w` that grows with the number of pictures, takes most of the gain
//! and hardly any of the loss (docs/experiments.md).

/// Weight of the whole covariance's inverse beside that of the single variances, and the number of pictures that it takes:
/// patches of one picture are much alike, so their number does not count.
const WHOLE: (f64, usize) = (0.3, 150);
/// Share of the mean variance that every direction has at least: below it nothing is known.
const SHRINK: f64 = 0.01;

/// Mean and metric of patches.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// The mean, `[channels]`.
    pub center: Vec<f32>,
    /// `[channels, channels]`, row-major and lower triangular: the distance of `a` and `b` is `|(a - b) factor|`.
    pub factor: Vec<f32>,
}

impl Spread {
    /// Of patches `[n, channels]`, row-major, of so many pictures.
    pub fn of(rows: &[f32], channels: usize, pictures: usize) -> Self {
        let whole_weight = WHOLE.0 * (pictures as f64 / WHOLE.1 as f64).min(1.0);
        let count = (rows.len() / channels.max(1)).max(1) as f64;
        let mut center = vec![0.0f64; channels];
        for row in rows.chunks_exact(channels) {
            center.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) / count);
        }
        let mut covariance = vec![0.0f64; channels * channels];
        let mut apart = vec![0.0f64; channels];
        for row in rows.chunks_exact(channels) {
            for ((apart, value), center) in apart.iter_mut().zip(row).zip(&center) {
                *apart = f64::from(*value) - center;
            }
            for (i, out) in covariance.chunks_exact_mut(channels).enumerate() {
                let scaled = apart[i] / count;
                out[..=i].iter_mut().zip(&apart).for_each(|(sum, other)| *sum += scaled * other);
            }
        }
        let diagonal = |matrix: &[f64]| -> Vec<f64> { (0..channels).map(|i| matrix[i * channels + i]).collect() };
        // Patches that are all alike have no spread: any scale does.
        let floor = (diagonal(&covariance).iter().sum::<f64>() / channels as f64 * SHRINK).max(1e-6);
        (0..channels).for_each(|i| covariance[i * channels + i] += floor);
        let variances = diagonal(&covariance);
        // S = K K^T, so S^-1 = K^-T K^-1, of which the lower half is enough.
        let inverse = inverse_lower(&cholesky(covariance, channels), channels);
        let mut precision = vec![0.0f64; channels * channels];
        for (i, out) in precision.chunks_exact_mut(channels).enumerate() {
            for (j, out) in out[..=i].iter_mut().enumerate() {
                let whole: f64 = (i..channels).map(|k| inverse[k * channels + i] * inverse[k * channels + j]).sum();
                let single = if i == j { 1.0 / variances[i] } else { 0.0 };
                // Per channel, so that the distance does not grow with their number.
                *out = (single + whole_weight * whole) / channels as f64;
            }
        }
        let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Self { center: narrow(center), factor: narrow(cholesky(precision, channels)) }
    }

    /// Patches in the coordinates in which the plain distance is the metric's.
    pub fn project(&self, rows: &[f32]) -> Vec<f32> {
        let channels = self.center.len();
        let mut projected = vec![0.0f32; rows.len()];
        for (row, out) in rows.chunks_exact(channels).zip(projected.chunks_exact_mut(channels)) {
            for ((value, center), factors) in row.iter().zip(&self.center).zip(self.factor.chunks_exact(channels)) {
                out.iter_mut().zip(factors).for_each(|(sum, factor)| *sum += (value - center) * factor);
            }
        }
        projected
    }
}

/// The lower triangular `L` of a positive definite `matrix = L L^T`, of which only the lower half is read.
fn cholesky(mut matrix: Vec<f64>, size: usize) -> Vec<f64> {
    for i in 0..size {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| matrix[i * size + k] * matrix[j * size + k]).sum();
            let rest = matrix[i * size + j] - dot;
            matrix[i * size + j] =
                if i == j { rest.max(f64::MIN_POSITIVE).sqrt() } else { rest / matrix[j * size + j] };
        }
        matrix[i * size + i + 1..(i + 1) * size].fill(0.0);
    }
    matrix
}

/// The inverse of a lower triangular matrix.
fn inverse_lower(lower: &[f64], size: usize) -> Vec<f64> {
    let mut inverse = vec![0.0f64; size * size];
    for j in 0..size {
        inverse[j * size + j] = 1.0 / lower[j * size + j];
        for i in j + 1..size {
            let dot: f64 = (j..i).map(|k| lower[i * size + k] * inverse[k * size + j]).sum();
            inverse[i * size + j] = -dot / lower[i * size + i];
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn distance(spread: &Spread, a: &[f32], b: &[f32]) -> f32 {
        let (a, b) = (spread.project(a), spread.project(b));
        a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
    }

    #[test]
    fn distances_are_those_of_both_inverses() {
        // Variances 4 and 1, covariance 1: S^-1 = [1, -1; -1, 4] / 3.
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let uniform = || rng.random_range(-1.0f64..1.0) * 3.0f64.sqrt();
        let draws: Vec<f64> = std::iter::repeat_with(uniform).take(400_000).collect();
        let rows: Vec<f32> = draws
            .chunks_exact(2)
            .flat_map(|d| [2.0 * d[0] + 7.0, 0.5 * d[0] + 0.75f64.sqrt() * d[1] - 1.0].map(|value| value as f32))
            .collect();
        let spread = Spread::of(&rows, 2, 150);
        let few = Spread::of(&rows, 2, 15);
        assert!((spread.center[0] - 7.0).abs() < 0.02 && (spread.center[1] + 1.0).abs() < 0.02, "{spread:?}");
        for (x, y) in [(1.0f64, 0.0f64), (0.0, 1.0), (1.0, 1.0), (2.0, -1.0)] {
            let single = x * x / 4.0 + y * y;
            let whole = (x * x - 2.0 * x * y + 4.0 * y * y) / 3.0;
            for (spread, weight) in [(&spread, 0.3), (&few, 0.03)] {
                let expected = ((single + weight * whole) / 2.0).sqrt();
                let measured = f64::from(distance(spread, &[3.0 + x as f32, 2.0 + y as f32], &[3.0, 2.0]));
                assert!((measured / expected - 1.0).abs() < 0.03, "({x}, {y}): {measured}, expected {expected}");
            }
        }
    }

    #[test]
    fn patches_without_spread_have_a_metric_too() {
        let spread = Spread::of(&[1.0, 2.0, 1.0, 2.0], 2, 1);
        assert!(spread.factor.iter().chain(&spread.center).all(|value| value.is_finite()));
        assert!(distance(&spread, &[1.0, 2.0], &[1.0, 2.5]) > 0.0);
    }
}
