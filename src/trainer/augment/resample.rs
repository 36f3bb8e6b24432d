//! Pixels of a picture after a change of pose or focus. What lies beyond the border is the border.

use super::Turn;

/// Where a part lies, against where it lay.
#[derive(Debug, Clone, Copy)]
pub struct Pose {
    /// Whole turns and flips.
    pub turn: Turn,
    /// Radians.
    pub angle: f64,
    /// Size, 1 as it was.
    pub scale: f64,
    /// Pixels to the right.
    pub dx: f64,
    /// Pixels down.
    pub dy: f64,
}

/// Flipped or turned and moved by whole pixels: exact pixels, none between two.
pub fn turned(rgb: &[u8], width: usize, height: usize, turn: Turn, (dx, dy): (isize, isize)) -> Vec<u8> {
    let (last_x, last_y) = (width as isize - 1, height as isize - 1);
    if turn == Turn::NONE && (dx, dy) == (0, 0) {
        return rgb.to_vec();
    }
    let mut out = Vec::with_capacity(rgb.len());
    for y in 0..height as isize {
        for x in 0..width as isize {
            let (x, y) = ((x - dx).clamp(0, last_x), (y - dy).clamp(0, last_y));
            // Swapped on square grids alone.
            let (x, y) = if turn.swap { (y, x) } else { (x, y) };
            let x = if turn.mirror { last_x - x } else { x };
            let y = if turn.flip { last_y - y } else { y };
            let cell = (y as usize * width + x as usize) * 3;
            out.extend_from_slice(&rgb[cell..cell + 3]);
        }
    }
    out
}

/// Bits behind the point of a place between two pixels, and of a weight.
const BITS: i64 = 16;
const WEIGHT_BITS: u32 = 8;

fn sign(turned: bool) -> f64 {
    if turned { -1.0 } else { 1.0 }
}

/// In another pose, between pixels.
pub fn posed(rgb: &[u8], width: usize, height: usize, pose: &Pose) -> Vec<u8> {
    let (sin, cos) = pose.angle.sin_cos();
    let (sin, cos) = (sin / pose.scale, cos / pose.scale);
    // Back from the new picture to the old one: place relative to the middle, shift off, rotation and scale off, turn off.
    let (a, b, c, d) = {
        let back = [[cos, sin], [-sin, cos]];
        let [first, second] = if pose.turn.swap { [back[1], back[0]] } else { back };
        let (across, down) = (sign(pose.turn.mirror), sign(pose.turn.flip));
        (across * first[0], across * first[1], down * second[0], down * second[1])
    };
    let (middle_x, middle_y) = ((width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0);
    let fixed = |value: f64| (value * (1i64 << BITS) as f64).round() as i64;
    let (limit_x, limit_y) = (fixed(width as f64 - 1.0), fixed(height as f64 - 1.0));
    let (step_x, step_y) = (fixed(a), fixed(c));
    let mut out = Vec::with_capacity(rgb.len());
    for y in 0..height {
        let (u, v) = (-middle_x - pose.dx, y as f64 - middle_y - pose.dy);
        let mut from_x = fixed(a * u + b * v + middle_x);
        let mut from_y = fixed(c * u + d * v + middle_y);
        for _ in 0..width {
            let (x, y) = (from_x.clamp(0, limit_x), from_y.clamp(0, limit_y));
            from_x += step_x;
            from_y += step_y;
            let (column, row) = ((x >> BITS) as usize, (y >> BITS) as usize);
            let part = |value: i64| ((value >> (BITS - i64::from(WEIGHT_BITS))) & 255) as u32;
            let (px, py) = (part(x), part(y));
            let first = (row * width + column) * 3;
            let right = if column + 1 < width { first + 3 } else { first };
            let down = if row + 1 < height { width * 3 } else { 0 };
            let weights = [(256 - px) * (256 - py), px * (256 - py), (256 - px) * py, px * py];
            for channel in 0..3 {
                let at = |cell: usize| u32::from(rgb[cell + channel]);
                let sum = weights[0] * at(first)
                    + weights[1] * at(right)
                    + weights[2] * at(first + down)
                    + weights[3] * at(right + down);
                out.push(((sum + (1 << 15)) >> 16) as u8);
            }
        }
    }
    out
}

/// Blurred by a Gaussian of standard deviation `sigma` pixels.
pub fn blurred(rgb: &[u8], width: usize, height: usize, sigma: f64) -> Vec<u8> {
    let reach = (2.5 * sigma).ceil() as usize;
    let raw: Vec<f64> = (0..=reach).map(|k| (-0.5 * (k as f64 / sigma.max(1e-6)).powi(2)).exp()).collect();
    let total = raw[0] + 2.0 * raw[1..].iter().sum::<f64>();
    let mut weights: Vec<u32> = raw.iter().map(|weight| (weight / total * 256.0).round() as u32).collect();
    // The weights add up to 256, so that a flat picture stays as it is.
    weights[0] = 256 - 2 * weights[1..].iter().sum::<u32>();
    if weights[0] == 256 {
        return rgb.to_vec();
    }
    let line = width * 3;
    let mut rows = vec![0u32; rgb.len()];
    let mut padded = vec![0u32; line + 6 * reach];
    for (source, target) in rgb.chunks_exact(line).zip(rows.chunks_exact_mut(line)) {
        for (k, value) in padded.iter_mut().enumerate() {
            let pixel = (k / 3).saturating_sub(reach).min(width - 1);
            *value = u32::from(source[pixel * 3 + k % 3]);
        }
        for (offset, weight) in weights.iter().enumerate() {
            let (before, after) = (3 * (reach - offset), 3 * (reach + offset));
            let both = if offset == 0 { 0 } else { *weight };
            for (k, sum) in target.iter_mut().enumerate() {
                *sum += weight * padded[before + k] + both * padded[after + k];
            }
        }
    }
    let mut out = Vec::with_capacity(rgb.len());
    let mut sums = vec![0u32; line];
    for y in 0..height {
        sums.fill(1 << 15);
        for (offset, weight) in weights.iter().enumerate() {
            let row = |y: usize| &rows[y * line..][..line];
            let (above, below) = (row(y.saturating_sub(offset)), row((y + offset).min(height - 1)));
            let both = if offset == 0 { 0 } else { *weight };
            for ((sum, above), below) in sums.iter_mut().zip(above).zip(below) {
                *sum += weight * above + both * below;
            }
        }
        out.extend(sums.iter().map(|sum| (sum >> 16) as u8));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Vec<u8> {
        (0..width * height * 3).map(|i| ((i * 31 + i / 7 * 13) % 251) as u8).collect()
    }

    const STILL: Pose = Pose { turn: Turn::NONE, angle: 0.0, scale: 1.0, dx: 0.0, dy: 0.0 };

    #[test]
    fn whole_moves_are_the_same_either_way() {
        let rgb = picture(20, 20);
        let bits = |k: usize| Turn { swap: k & 4 > 0, mirror: k & 2 > 0, flip: k & 1 > 0 };
        for turn in (0..8).map(bits) {
            for (dx, dy) in [(0, 0), (3, -2), (-30, 1)] {
                let exact = turned(&rgb, 20, 20, turn, (dx, dy));
                let pose = Pose { turn, dx: dx as f64, dy: dy as f64, ..STILL };
                assert_eq!(posed(&rgb, 20, 20, &pose), exact, "{turn:?} {dx} {dy}");
            }
        }
        let wide = picture(24, 16);
        for turn in (0..4).map(bits) {
            assert_eq!(posed(&wide, 24, 16, &Pose { turn, ..STILL }), turned(&wide, 24, 16, turn, (0, 0)));
        }
    }

    #[test]
    fn turns_go_where_they_say() {
        // A light pixel at the top left.
        let mut rgb = vec![0u8; 4 * 4 * 3];
        rgb[..3].fill(200);
        let place = |turn| turned(&rgb, 4, 4, turn, (0, 0)).iter().position(|v| *v == 200).expect("is there") / 3;
        let places = [(Turn::MIRROR, 3), (Turn::FLIP, 12), (Turn::HALF, 15), (Turn::QUARTER, 12)];
        places.iter().for_each(|(turn, cell)| assert_eq!(place(*turn), *cell, "{turn:?}"));
    }

    #[test]
    fn a_rotation_and_its_opposite_bring_a_part_back() {
        let part = crate::synthetic::good_part(crate::synthetic::Product::Board, 1, 96).rgb;
        let there = posed(&part, 96, 96, &Pose { angle: 0.1, ..STILL });
        let back = posed(&there, 96, 96, &Pose { angle: -0.1, ..STILL });
        let inside = |i: &usize| (24..72).contains(&(i / 3 % 96)) && (24..72).contains(&(i / 288));
        let apart = |other: &[u8]| {
            let cells: Vec<usize> = (0..part.len()).filter(inside).collect();
            cells.iter().map(|i| f64::from(part[*i].abs_diff(other[*i]))).sum::<f64>() / cells.len() as f64
        };
        assert!(apart(&back) < 0.35 * apart(&there), "{} {}", apart(&back), apart(&there));
    }

    #[test]
    fn a_blur_keeps_a_flat_picture_and_the_light() {
        let flat = vec![77u8; 10 * 6 * 3];
        assert_eq!(blurred(&flat, 10, 6, 1.3), flat);
        let rgb = picture(64, 64);
        let mean = |rgb: &[u8]| rgb.iter().map(|v| f64::from(*v)).sum::<f64>() / rgb.len() as f64;
        assert!((mean(&blurred(&rgb, 64, 64, 1.0)) - mean(&rgb)).abs() < 1.0);
        assert_eq!(blurred(&rgb, 64, 64, 0.0), rgb);
    }
}
