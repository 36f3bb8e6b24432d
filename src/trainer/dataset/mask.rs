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
