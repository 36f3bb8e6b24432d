//! Canny edges on the host (8-bit grey, Sobel 3x3, non-maximum suppression, hysteresis 100 / 200).

const LOW: i32 = 100;
const HIGH: i32 = 200;

/// Edges of a picture: planar RGB in 0 to 1, `[3, height, width]`, to `[height, width]` of 0 and 1.
pub fn canny(planes: &[f32], width: usize, height: usize) -> Vec<f32> {
    let plane = width * height;
    let grey: Vec<i32> = (0..plane)
        .map(|i| {
            let luma = 0.299 * planes[i] + 0.587 * planes[plane + i] + 0.114 * planes[2 * plane + i];
            (luma * 255.0).round() as i32
        })
        .collect();
    let at = |x: isize, y: isize| {
        let (x, y) = (x.clamp(0, width as isize - 1), y.clamp(0, height as isize - 1));
        grey[y as usize * width + x as usize]
    };
    let gradient = |x: isize, y: isize| {
        let gx = at(x + 1, y - 1) + 2 * at(x + 1, y) + at(x + 1, y + 1)
            - at(x - 1, y - 1)
            - 2 * at(x - 1, y)
            - at(x - 1, y + 1);
        let gy = at(x - 1, y + 1) + 2 * at(x, y + 1) + at(x + 1, y + 1)
            - at(x - 1, y - 1)
            - 2 * at(x, y - 1)
            - at(x + 1, y - 1);
        (gx, gy)
    };
    let gradients: Vec<(i32, i32)> = (0..plane).map(|i| gradient((i % width) as isize, (i / width) as isize)).collect();
    let magnitude = |x: isize, y: isize| {
        let inside = (0..width as isize).contains(&x) && (0..height as isize).contains(&y);
        if inside {
            let (gx, gy) = gradients[y as usize * width + x as usize];
            gx.abs() + gy.abs()
        } else {
            0
        }
    };
    // 0 nothing, 1 weak, 2 edge.
    let mut marks = vec![0u8; plane];
    let mut pending = Vec::new();
    for index in 0..plane {
        let (x, y) = ((index % width) as isize, (index / width) as isize);
        let (gx, gy) = gradients[index];
        let here = gx.abs() + gy.abs();
        if here <= LOW {
            continue;
        }
        // Quantised direction: tan(22.5 degrees) is 0.414.
        let (dx, dy) = if f64::from(gy.abs()) < 0.414_213_56 * f64::from(gx.abs()) {
            (1, 0)
        } else if f64::from(gx.abs()) < 0.414_213_56 * f64::from(gy.abs()) {
            (0, 1)
        } else if (gx > 0) == (gy > 0) {
            (1, 1)
        } else {
            (1, -1)
        };
        if here > magnitude(x - dx, y - dy) && here >= magnitude(x + dx, y + dy) {
            marks[index] = 1;
            if here > HIGH {
                marks[index] = 2;
                pending.push(index);
            }
        }
    }
    while let Some(index) = pending.pop() {
        let (x, y) = (index % width, index / width);
        for row in y.saturating_sub(1)..=(y + 1).min(height - 1) {
            for column in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                let next = row * width + column;
                if marks[next] == 1 {
                    marks[next] = 2;
                    pending.push(next);
                }
            }
        }
    }
    marks.into_iter().map(|mark| f32::from(u8::from(mark == 2))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(from: f32, to: f32) -> Vec<f32> {
        (0..3 * 16 * 16).map(|i| if i % 16 < 8 { from } else { to }).collect()
    }

    #[test]
    fn a_step_is_one_line_and_a_faint_one_is_none() {
        let edges = canny(&step(0.1, 0.9), 16, 16);
        for row in edges.chunks_exact(16) {
            assert_eq!(row.iter().sum::<f32>(), 1.0);
            assert_eq!(row[7] + row[8], 1.0);
        }
        assert!(canny(&step(0.5, 0.55), 16, 16).iter().all(|v| *v == 0.0));
    }
}
