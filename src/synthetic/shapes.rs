//! Shapes as signed distances (negative inside), so that every edge can be drawn anti-aliased.

use std::f32::consts::TAU;

use rand::{Rng, RngExt};

/// A point or vector: x to the right, y down.
pub type Point = (f32, f32);

/// 0 up to `low`, 1 from `high`, smooth between; `low > high` falls instead of rising.
pub fn smoothstep(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Share of a pixel `pixel` units wide that lies inside an edge at `distance` (negative inside).
pub fn coverage(distance: f32, pixel: f32) -> f32 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}

/// Length of a vector. Several times as fast as `hypot`, whose care for overflow nothing here needs.
pub fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// Distance to a box around the origin with half sides `half` and corners rounded by `corner`.
pub fn rounded_box(x: f32, y: f32, half: Point, corner: f32) -> f32 {
    let dx = x.abs() - half.0 + corner;
    let dy = y.abs() - half.1 + corner;
    length(dx.max(0.0), dy.max(0.0)) + dx.max(dy).min(0.0) - corner
}

/// What [`Path::nearest`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nearest {
    /// Distance to the path.
    pub distance: f32,
    /// Where along the path, 0 at its start and 1 at its end.
    pub along: f32,
    /// 1 to the right of the direction of travel, -1 to its left.
    pub side: f32,
}

/// An open line through points.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// At least two points.
    pub points: Vec<Point>,
}

impl Path {
    /// A smooth walk of `length` from `start` in direction `angle` (radians) whose direction drifts by up to `wander`
    /// radians a step.
    pub fn walk(start: Point, angle: f32, length: f32, steps: usize, wander: f32, rng: &mut impl Rng) -> Path {
        let mut points = vec![start];
        let (mut at, mut direction, mut turn) = (start, angle, 0.0);
        let step = length / steps as f32;
        for _ in 0..steps {
            turn = 0.6 * turn + rng.random_range(-1.0..1.0) * wander;
            direction += turn;
            at = (at.0 + step * direction.cos(), at.1 + step * direction.sin());
            points.push(at);
        }
        Path { points }
    }

    /// A jagged walk of `length` from `start` that keeps to the direction `angle` (radians), as a crack does.
    pub fn jagged(start: Point, angle: f32, length: f32, steps: usize, rng: &mut impl Rng) -> Path {
        let mut points = vec![start];
        let (mut at, mut drift) = (start, 0.0);
        for _ in 0..steps {
            drift = 0.5 * drift + rng.random_range(-0.6..0.6);
            let step = length / steps as f32 * rng.random_range(0.6..1.4);
            at = (at.0 + step * f32::cos(angle + drift), at.1 + step * f32::sin(angle + drift));
            points.push(at);
        }
        Path { points }
    }

    /// The path moved so that the middle of its bounding box lies at `centre`.
    pub fn centred(mut self, centre: Point) -> Path {
        let (low, high) = self.bounds();
        let (dx, dy) = (centre.0 - 0.5 * (low.0 + high.0), centre.1 - 0.5 * (low.1 + high.1));
        for point in &mut self.points {
            *point = (point.0 + dx, point.1 + dy);
        }
        self
    }

    /// Smallest and largest coordinates.
    pub fn bounds(&self) -> (Point, Point) {
        bounds(&self.points)
    }

    /// The nearest place on the path.
    pub fn nearest(&self, x: f32, y: f32) -> Nearest {
        let segments = (self.points.len() - 1) as f32;
        let mut best = Nearest { distance: f32::MAX, along: 0.0, side: 1.0 };
        for (i, pair) in self.points.windows(2).enumerate() {
            let (dx, dy) = (pair[1].0 - pair[0].0, pair[1].1 - pair[0].1);
            let (px, py) = (x - pair[0].0, y - pair[0].1);
            let t = ((px * dx + py * dy) / (dx * dx + dy * dy).max(1e-9)).clamp(0.0, 1.0);
            let (ex, ey) = (px - t * dx, py - t * dy);
            let squared = ex * ex + ey * ey;
            if squared < best.distance {
                let side = if dx * py - dy * px >= 0.0 { 1.0 } else { -1.0 };
                best = Nearest { distance: squared, along: (i as f32 + t) / segments, side };
            }
        }
        Nearest { distance: best.distance.sqrt(), ..best }
    }
}

/// A closed polygon.
#[derive(Debug, Clone, PartialEq)]
pub struct Polygon {
    /// At least three corners.
    pub points: Vec<Point>,
}

impl Polygon {
    /// An irregular polygon of `corners` corners around `centre`, each 0.55 to 1 times `radius` away.
    pub fn irregular(centre: Point, radius: f32, corners: usize, rng: &mut impl Rng) -> Polygon {
        let phase = rng.random_range(0.0..TAU);
        let points = (0..corners)
            .map(|i| {
                let angle = phase + TAU * (i as f32 + rng.random_range(-0.3..0.3)) / corners as f32;
                let reach = radius * rng.random_range(0.55..1.0);
                (centre.0 + reach * angle.cos(), centre.1 + reach * angle.sin())
            })
            .collect();
        Polygon { points }
    }

    /// Signed distance to the outline.
    pub fn distance(&self, x: f32, y: f32) -> f32 {
        let mut squared = f32::MAX;
        let mut inside = false;
        let mut last = self.points[self.points.len() - 1];
        for &point in &self.points {
            let (ex, ey) = (last.0 - point.0, last.1 - point.1);
            let (wx, wy) = (x - point.0, y - point.1);
            let t = ((wx * ex + wy * ey) / (ex * ex + ey * ey).max(1e-9)).clamp(0.0, 1.0);
            squared = squared.min((wx - ex * t).powi(2) + (wy - ey * t).powi(2));
            if (point.1 > y) != (last.1 > y) && x < (last.0 - point.0) * (y - point.1) / (last.1 - point.1) + point.0 {
                inside = !inside;
            }
            last = point;
        }
        if inside { -squared.sqrt() } else { squared.sqrt() }
    }
}

/// A rounded irregular spot: an ellipse whose radius is waved by a few harmonics.
#[derive(Debug, Clone, PartialEq)]
pub struct Blob {
    /// Its middle.
    pub centre: Point,
    /// Mean radius along the long axis.
    pub radius: f32,
    aspect: f32,
    axis: Point,
    waves: [(f32, f32); 4],
}

impl Blob {
    /// A blob whose short axis is `aspect` (0 to 1) of its long one, with an outline waved by up to about `roughness`.
    pub fn random(centre: Point, radius: f32, aspect: f32, roughness: f32, rng: &mut impl Rng) -> Blob {
        let angle = rng.random_range(0.0..TAU);
        let waves = std::array::from_fn(|k| {
            (roughness * rng.random_range(0.3..1.0) / (k + 2) as f32, rng.random_range(0.0..TAU))
        });
        Blob { centre, radius, aspect, axis: (angle.cos(), angle.sin()), waves }
    }

    /// 0 in the middle, 1 on the outline, growing outwards.
    pub fn level(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = (x - self.centre.0, y - self.centre.1);
        let u = (dx * self.axis.0 + dy * self.axis.1) / self.radius;
        let v = (dy * self.axis.0 - dx * self.axis.1) / (self.radius * self.aspect);
        let rho = length(u, v);
        let angle = v.atan2(u);
        let mut outline = 1.0;
        for (k, (height, phase)) in self.waves.iter().enumerate() {
            outline += height * ((k + 2) as f32 * angle + phase).sin();
        }
        rho / outline.max(0.2)
    }

    /// A radius that holds all points up to `level`.
    pub fn reach(&self, level: f32) -> f32 {
        let waves: f32 = self.waves.iter().map(|w| w.0.abs()).sum();
        self.radius * level * (1.0 + waves)
    }
}

fn bounds(points: &[Point]) -> (Point, Point) {
    points.iter().fold(((f32::MAX, f32::MAX), (f32::MIN, f32::MIN)), |(low, high), p| {
        ((low.0.min(p.0), low.1.min(p.1)), (high.0.max(p.0), high.1.max(p.1)))
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn box_distance_is_negative_inside_and_euclidean_outside() {
        assert_eq!(rounded_box(0.0, 0.0, (4.0, 2.0), 0.0), -2.0);
        assert_eq!(rounded_box(7.0, 6.0, (4.0, 2.0), 0.0), 5.0);
        assert!((rounded_box(4.0, 2.0, (4.0, 2.0), 1.0) - (2f32.sqrt() - 1.0)).abs() < 1e-6);
    }

    #[test]
    fn coverage_is_half_on_the_edge() {
        assert_eq!(coverage(0.0, 1.0), 0.5);
        assert_eq!(coverage(-3.0, 1.0), 1.0);
        assert_eq!(coverage(3.0, 1.0), 0.0);
    }

    #[test]
    fn nearest_place_on_a_path() {
        let path = Path { points: vec![(0.0, 0.0), (10.0, 0.0), (20.0, 0.0)] };
        let below = path.nearest(15.0, 3.0);
        assert_eq!((below.distance, below.side), (3.0, 1.0));
        assert!((below.along - 0.75).abs() < 1e-6);
        assert_eq!(path.nearest(-4.0, -3.0).distance, 5.0);
        assert_eq!(path.nearest(5.0, -3.0).side, -1.0);
    }

    #[test]
    fn polygon_knows_its_inside() {
        let square = Polygon { points: vec![(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)] };
        assert_eq!(square.distance(2.0, 2.0), -2.0);
        assert_eq!(square.distance(7.0, 2.0), 3.0);
    }

    #[test]
    fn blob_reach_holds_its_outline() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..20 {
            let blob = Blob::random((50.0, 50.0), 10.0, 0.6, 0.5, &mut rng);
            assert!(blob.level(50.0, 50.0) < 1e-3);
            let reach = blob.reach(1.0);
            for step in 0..64 {
                let angle = TAU * step as f32 / 64.0;
                let out = blob.level(50.0 + (reach + 1.0) * angle.cos(), 50.0 + (reach + 1.0) * angle.sin());
                assert!(out > 1.0, "a point beyond the reach is inside: {out}");
            }
        }
    }
}
