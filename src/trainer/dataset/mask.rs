//! Ground-truth masks on the model grid.

use std::path::Path;

use crate::preprocess::spec::{Normalisation, PreprocessSpec, SketchPlane};
use crate::trainer::pictures::prepare_file;

/// Reads a mask through the same geometry as its picture: `[height, width]`, true where it is above one half after the
/// resize (protocol `default`). Cells beside a letterboxed picture are never defective.
///
/// # Errors
/// A file that is not a picture.
pub fn load_mask(path: &Path, spec: &PreprocessSpec) -> Result<Vec<bool>, String> {
    let spec = PreprocessSpec { normalisation: Normalisation::SymmetricOne, sketch: SketchPlane::None, ..spec.clone() };
    let prepared = prepare_file(path, &spec).map_err(|reason| format!("{}: {reason}", path.display()))?;
    // In -1 to 1 one half is 0, and what surrounds a letterboxed picture is exactly 0.
    Ok(prepared.image[..spec.width * spec.height].iter().map(|value| *value > 0.0).collect())
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma};

    use super::*;
    use crate::preprocess::spec::Geometry;

    fn load(mask: &GrayImage, geometry: Geometry) -> Vec<bool> {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("mask.png");
        mask.save(&path).expect("writes");
        // Neither the normalisation nor the edges of the model matter to a mask.
        let (normalisation, sketch) = (Normalisation::ImageNet, SketchPlane::Canny);
        let spec = PreprocessSpec { width: 64, height: 32, geometry, normalisation, sketch };
        load_mask(&path, &spec).expect("a mask")
    }

    #[test]
    fn a_marked_half_is_half_of_the_grid() {
        let mask = GrayImage::from_fn(128, 64, |x, _| Luma([if x < 64 { 255 } else { 0 }]));
        let cells = load(&mask, Geometry::Stretch);
        assert!(cells.chunks_exact(64).all(|row| row.iter().enumerate().all(|(x, marked)| *marked == (x < 32))));
    }

    #[test]
    fn a_cell_is_marked_above_one_half() {
        for (value, marked) in [(127u8, false), (128, true)] {
            let cells = load(&GrayImage::from_pixel(50, 50, Luma([value])), Geometry::Stretch);
            assert!(cells.iter().all(|cell| *cell == marked), "{value}");
        }
    }

    #[test]
    fn the_border_of_a_letterboxed_mask_is_never_marked() {
        let cells = load(&GrayImage::from_pixel(100, 100, Luma([255])), Geometry::Letterbox);
        assert!(cells.chunks_exact(64).all(|row| (0..64).all(|x| row[x] == (16..48).contains(&x))));
    }

    #[test]
    fn a_file_that_is_no_mask_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("odd_mask.png");
        std::fs::write(&path, b"text").expect("writes");
        let spec = PreprocessSpec {
            width: 64,
            height: 32,
            geometry: Geometry::Stretch,
            normalisation: Normalisation::SymmetricOne,
            sketch: SketchPlane::None,
        };
        let error = load_mask(&path, &spec).expect_err("refused");
        assert!(error.contains("odd_mask.png"), "{error}");
    }
}
