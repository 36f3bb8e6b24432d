//! Pictures of files as model input: golden pictures, and those of the trainer.

use super::LoadError;
use crate::bundle::Bundle;
use crate::bundle::manifest::Golden;
use crate::inspection::detect::{Plan, StepPlan};
use crate::inspection::frame::{FrameMeta, Prepared};
use crate::inspection::golden::Expected;
use crate::inspection::roi::Roi;
use crate::preprocess::spec::PreprocessSpec;
use crate::preprocess::{decode, prepare};

/// A picture file as model input, whole frame.
///
/// # Errors
/// Bytes that are not a picture.
pub fn prepare_picture(bytes: &[u8], spec: &PreprocessSpec) -> Result<Prepared, String> {
    let picture = decode::decode(bytes).map_err(|error| error.to_string())?;
    let meta = FrameMeta::of_picture("picture", picture.width, picture.height);
    prepare(&picture.into_frame(meta), &Roi::FULL, spec).map_err(|error| error.to_string())
}

/// A golden picture as model input, what the detector is asked for, and what it must answer.
///
/// # Errors
/// Files of the bundle that have changed, or are not what they should be.
pub fn golden(bundle: &Bundle, golden: &Golden) -> Result<(Prepared, Plan, Expected), LoadError> {
    let mut map = bundle.tensors(&golden.map)?.entries()?;
    let wrong = |reason: String| LoadError::Golden {
        bundle: bundle.dir.display().to_string(),
        picture: golden.picture.clone(),
        reason,
    };
    let map = map.remove("map").ok_or_else(|| wrong("the expected map has no tensor 'map'".into()))?.values;
    let picture = bundle.read(&golden.picture)?;
    let prepared = prepare_picture(&picture, &bundle.manifest.preprocess.of_a_tile()).map_err(wrong)?;
    let plan = Plan::new(StepPlan::Fixed(golden.steps), golden.class.clone());
    Ok((prepared, plan, Expected { map, score: golden.score, tolerance: golden.tolerance }))
}
