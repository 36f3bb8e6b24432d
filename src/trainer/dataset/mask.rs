//! Ground-truth masks on the model grid.

use std::path::Path;

use crate::preprocess::spec::{Normalisation, PreprocessSpec, SketchPlane};
use crate::trainer::evaluate::Protocol;
use crate::trainer::pictures::prepare_file;

/// Reads a mask through the same geometry as its picture: `[height, width]`, true where it is above one half after the
/// resize, or above nothing at all in DiAD's protocol. Cells beside a letterboxed picture are never defective.
///
/// # Errors
/// A file that is not a picture.
pub fn load_mask(path: &Path, spec: &PreprocessSpec, protocol: Protocol) -> Result<Vec<bool>, String> {
    let spec = PreprocessSpec { normalisation: Normalisation::SymmetricOne, sketch: SketchPlane::None, ..spec.clone() };
    let prepared = prepare_file(path, &spec).map_err(|reason| format!("{}: {reason}", path.display()))?;
    // In -1 to 1 one half is 0, and what surrounds a letterboxed picture is exactly 0, which no byte is.
    let marked = |value: f32| match protocol {
        Protocol::Default => value > 0.0,
        Protocol::Diad => value > -1.0 && value != 0.0,
    };
    Ok(prepared.image[..prepared.width * prepared.height].iter().map(|value| marked(*value)).collect())
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
        let spec = PreprocessSpec { width: 64, height: 32, geometry, normalisation, sketch, tiles: None };
        load_mask(&path, &spec, Protocol::Default).expect("a mask")
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
    fn any_trace_marks_a_cell_in_the_released_protocol() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("mask.png");
        // Wide for the grid: it is letterboxed, and its border stays unmarked.
        GrayImage::from_fn(100, 100, |x, _| Luma([u8::from(x < 50)])).save(&path).expect("writes");
        let (normalisation, sketch) = (Normalisation::ImageNet, SketchPlane::None);
        let spec =
            PreprocessSpec { width: 64, height: 32, geometry: Geometry::Letterbox, normalisation, sketch, tiles: None };
        let cells = load_mask(&path, &spec, Protocol::Diad).expect("a mask");
        assert!(cells.chunks_exact(64).all(|row| (0..64).all(|x| row[x] == (16..32).contains(&x))));
        assert!(load_mask(&path, &spec, Protocol::Default).expect("a mask").iter().all(|marked| !marked));
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
            tiles: None,
        };
        let error = load_mask(&path, &spec, Protocol::Default).expect_err("refused");
        assert!(error.contains("odd_mask.png"), "{error}");
    }
}
