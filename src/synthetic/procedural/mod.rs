//! Procedural pictures of any number of products: what networks learn from before they see a product of somebody's.
//!
//! A product is what its pictures share (a design, materials, light); an instance is what differs between two of them
//! (where the part lies, how it is lit, grain, serial numbers). That is what `fit` meets as well: many pictures of one
//! thing, and defects are what does not belong to it.
//!
//! | file | what |
//! |---|---|
//! | `material` | surfaces from near: noise, gratings, weaves, grids, brushed and turned metal |
//! | `leaves` | things of all sizes over each other |
//! | `part`, `features` | parts on a bed, alone or in trays, with holes, labels, text-like marks |

mod features;
mod leaves;
mod material;
mod part;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::leaves::Leaves;
use self::material::{Material, Palette, Piece, log_uniform};
use self::part::Part;
use super::scene::{Camera, Colour, FRAME, Pose, soften, whole};
use super::shapes::{Point, length};

/// What all pictures of one product share.
pub struct Design {
    kind: Kind,
    look: Look,
    grey: bool,
    seed: u64,
}

enum Kind {
    /// A surface that fills the frame.
    Surface {
        material: Material,
        shift: f32,
        turn: f32,
    },
    Leaves(Leaves),
    Part(Part),
}

/// How a product is lit and seen; every picture differs a little.
struct Look {
    camera: Camera,
    contrast: f32,
    lift: f32,
    /// Passes of the lens' blur beside the usual one.
    blur: usize,
    light: f32,
    /// A reflection: its place, radius and strength.
    glare: Option<(Point, f32, f32)>,
}

/// The product of a seed.
pub fn product(seed: u64) -> Design {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let palette = Palette::random(&mut rng);
    let kind = match rng.random_range(0..20) {
        0..=6 => Kind::Surface {
            material: Material::random(&palette, &mut rng),
            shift: rng.random_range(0.0..12.0),
            turn: rng.random_range(0.0..0.1),
        },
        7..=10 => Kind::Leaves(Leaves::random(&palette, &mut rng)),
        _ => Kind::Part(Part::random(&palette, &mut rng)),
    };
    Design { kind, look: Look::random(&mut rng), grey: palette.grey, seed }
}

impl Look {
    fn random(rng: &mut impl Rng) -> Self {
        let mut slope = || rng.random_range(-0.3..0.3) * rng.random_range(0.0..1.0f32);
        let slope = (slope(), slope());
        let contrast = rng.random_range(0.55..1.15f32);
        Self {
            camera: Camera {
                gain: rng.random_range(0.8..1.25),
                slope,
                cast: std::array::from_fn(|_| rng.random_range(0.94..1.06)),
                vignette: if rng.random_bool(0.6) { rng.random_range(0.0..0.5) } else { 0.0 },
                noise: log_uniform(0.4, 7.0, rng),
            },
            contrast,
            lift: rng.random_range(0.0..1.0) * (1.0 - contrast).max(0.0),
            blur: [0, 0, 0, 1, 1, 2, 4][rng.random_range(0..7)],
            light: rng.random_range(0.0..std::f32::consts::TAU),
            glare: rng.random_bool(0.2).then(|| {
                let mut place = || rng.random_range(0.1..0.9) * FRAME;
                ((place(), place()), log_uniform(15.0, 120.0, rng), rng.random_range(0.1..0.6))
            }),
        }
    }
}

impl Design {
    /// One picture of the product: `height * width * 3` bytes RGB.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn render(&self, instance: u64, width: usize, height: usize) -> Vec<u8> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Stream 0 drew the design.
        rng.set_stream(instance.wrapping_add(1));
        let size = width.max(height);
        let angle: f32 = self.look.light + rng.random_range(-0.2..0.2);
        let light = (angle.cos(), angle.sin());
        let mut plane = match &self.kind {
            Kind::Surface { material, shift, turn } => {
                let pose = Pose::random(*shift, *turn, 0.03, &mut rng);
                let piece = Piece::anywhere(&mut rng);
                let light = pose.direction(light.0, light.1);
                let place = |(_, x, y)| {
                    let (u, v) = pose.to_part(x, y);
                    material.at(u, v, light, &piece)
                };
                whole(size).map(place).collect()
            }
            Kind::Leaves(leaves) => leaves.draw(size, Pose::random(4.0, 0.04, 0.02, &mut rng), light, &mut rng),
            Kind::Part(part) => part.draw(size, light, &mut rng),
        };
        self.look.develop(&mut plane, size, &mut rng);
        let camera = self.look.camera(&mut rng);
        let mut rgb = camera.sense(&camera.expose(&plane, size), &mut rng);
        if self.grey {
            // A sensor without colour filters: one value a pixel.
            rgb.chunks_exact_mut(3).for_each(|pixel| pixel.fill(pixel[1]));
        }
        crop(&rgb, size, width, height)
    }
}

impl Look {
    /// Contrast, reflection and blur.
    fn develop(&self, plane: &mut Vec<Colour>, size: usize, rng: &mut impl Rng) {
        for pixel in plane.iter_mut() {
            *pixel = pixel.map(|c| self.lift + self.contrast * c.clamp(0.0, 1.4));
        }
        if let Some((at, radius, strength)) = self.glare {
            let mut shift = || rng.random_range(-3.0..3.0f32);
            let at = (at.0 + shift(), at.1 + shift());
            for (i, x, y) in whole(size) {
                let far = length(x - at.0, y - at.1) / radius;
                let light = strength / (1.0 + far * far).powi(2);
                plane[i] = plane[i].map(|c| c + light);
            }
        }
        for _ in 0..self.blur {
            *plane = soften(plane, size);
        }
    }

    /// The camera of one picture.
    fn camera(&self, rng: &mut impl Rng) -> Camera {
        let Camera { gain, slope, cast, vignette, noise } = self.camera;
        let mut near = |by: f32| rng.random_range(-by..by);
        Camera {
            gain: gain * (1.0 + near(0.06)),
            slope: (slope.0 + near(0.05), slope.1 + near(0.05)),
            cast: cast.map(|c| c * (1.0 + near(0.015))),
            vignette,
            noise,
        }
    }
}

/// The middle of a square picture.
fn crop(rgb: &[u8], size: usize, width: usize, height: usize) -> Vec<u8> {
    let (left, top) = ((size - width) / 2, (size - height) / 2);
    rgb.chunks_exact(3 * size).skip(top).take(height).flat_map(|row| &row[3 * left..][..3 * width]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(a: &[u8], b: &[u8]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
    }

    /// Mean and standard deviation.
    fn spread(rgb: &[u8]) -> (f64, f64) {
        let mean = rgb.iter().map(|v| f64::from(*v)).sum::<f64>() / rgb.len() as f64;
        let square = rgb.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / rgb.len() as f64;
        (mean, square.sqrt())
    }

    #[test]
    fn seeds_make_the_same_picture_again_and_another_for_every_other_seed() {
        for seed in 0..40 {
            let picture = product(seed).render(3, 64, 64);
            assert_eq!(picture, product(seed).render(3, 64, 64));
            assert_ne!(picture, product(seed).render(4, 64, 64), "seed {seed}");
            assert!(difference(&picture, &product(seed + 1).render(3, 64, 64)) > 4.0, "seed {seed}");
        }
    }

    #[test]
    fn pictures_of_one_product_are_more_like_each_other_than_like_those_of_others() {
        let (mut near, mut far) = (0.0, 0.0);
        for seed in 0..40 {
            let picture = product(seed).render(0, 64, 64);
            near += difference(&picture, &product(seed).render(1, 64, 64));
            far += difference(&picture, &product(seed + 40).render(0, 64, 64));
        }
        assert!(near * 2.0 < far, "{near} to {far}");
    }

    #[test]
    fn all_of_the_range_is_used_and_half_of_the_products_are_grey() {
        let pictures: Vec<Vec<u8>> = (0..200).map(|seed| product(seed).render(0, 64, 64)).collect();
        let grey = pictures.iter().filter(|rgb| rgb.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2])).count();
        assert!((70..=130).contains(&grey), "{grey} of 200 are grey");
        let spreads: Vec<(f64, f64)> = pictures.iter().map(|rgb| spread(rgb)).collect();
        let share = |test: &dyn Fn(&(f64, f64)) -> bool| spreads.iter().filter(|s| test(s)).count();
        assert!(share(&|s| s.0 < 70.0) > 15 && share(&|s| s.0 > 170.0) > 15, "dark and bright ones");
        assert!(share(&|s| s.1 < 3.0) < 10, "few are empty");
        assert!(share(&|s| s.1 > 30.0) > 60, "many have contrast");
        let values: std::collections::BTreeSet<u8> = pictures.concat().into_iter().collect();
        assert_eq!(values.len(), 256);
    }

    #[test]
    fn pictures_need_not_be_square() {
        for (width, height) in [(96, 64), (32, 96)] {
            for seed in 0..10 {
                assert_eq!(product(seed).render(0, width, height).len(), 3 * width * height);
            }
        }
    }
}
