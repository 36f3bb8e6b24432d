//! Thresholds that were set on the station, beside the signed bundle, which stays as it is.
//!
//! ```text
//! calibrations/
//! └── 4f1c…/             first digits of the model hash
//!     ├── 0001.json      versions; the highest is in force
//!     └── 0002.json
//! ```
//!
//! A version is never rewritten. Going back renames the highest to `.reverted`, so that nothing is lost.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::BundleError;
use super::{io, read_limited, sync_dir, write_synced};
use crate::inspection::calibration::Calibration;

/// The format version that this program reads and writes.
const FORMAT: u32 = 1;
/// Digits of the model hash in the folder's name.
const DIGITS: usize = 16;
/// Largest file, bytes.
const LIMIT: u64 = 16 << 20;

/// One version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StationCalibration {
    /// Version of this format.
    pub format: u32,
    /// The model that it belongs to.
    pub model_hash: String,
    /// Number of this version, from 1.
    pub version: u32,
    /// When, RFC 3339 in UTC.
    pub created: String,
    /// The pictures it was made from.
    pub pictures: Vec<String>,
    /// Thresholds, for the classes and step counts that were calibrated; the bundle's hold for the others.
    pub calibration: Calibration,
}

fn folder(root: &Path, model_hash: &str) -> PathBuf {
    root.join(&model_hash[..DIGITS.min(model_hash.len())])
}

/// Everything under a folder that has a version's number, reverted ones too, oldest first.
fn numbered(folder: &Path) -> Result<Vec<(u32, PathBuf)>, BundleError> {
    let mut found = Vec::new();
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder).map_err(|source| io(folder, "list", source))? {
            let path = entry.map_err(|source| io(folder, "list", source))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(number) = name.and_then(|name| name.split('.').next()?.parse().ok()) {
                found.push((number, path));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The version under a folder that is in force.
fn newest(folder: &Path) -> Result<Option<(u32, PathBuf)>, BundleError> {
    Ok(numbered(folder)?.into_iter().rfind(|(_, path)| path.extension().is_some_and(|e| e == "json")))
}

/// The version in force for a model, if there is one.
///
/// # Errors
/// A file that cannot be read, is no calibration, or belongs to another model: a station with a damaged calibration must
/// not judge by another one than its operator believes.
pub fn current(root: &Path, model_hash: &str) -> Result<Option<StationCalibration>, BundleError> {
    let Some((version, path)) = newest(&folder(root, model_hash))? else { return Ok(None) };
    let invalid = |reason: String| BundleError::StationCalibration { path: path.clone(), reason };
    let found: StationCalibration =
        serde_json::from_slice(&read_limited(&path, LIMIT)?).map_err(|error| invalid(error.to_string()))?;
    if found.format != FORMAT {
        return Err(invalid(format!("format {} is not known, only {FORMAT}", found.format)));
    }
    if found.model_hash != model_hash || found.version != version {
        return Err(invalid(format!(
            "it is version {} of model {}, not {version} of {model_hash}",
            found.version, found.model_hash
        )));
    }
    if let Some(problem) = found.calibration.problem() {
        return Err(invalid(problem));
    }
    Ok(Some(found))
}

/// Writes the next version for a model.
///
/// # Errors
/// Anything that the disk refuses.
pub fn write(
    root: &Path,
    model_hash: &str,
    calibration: Calibration,
    pictures: Vec<String>,
    created: String,
) -> Result<PathBuf, BundleError> {
    let folder = folder(root, model_hash);
    std::fs::create_dir_all(&folder).map_err(|source| io(&folder, "create", source))?;
    // A number means one thing for ever, a reverted version's too.
    let version = 1 + numbered(&folder)?.last().map_or(0, |(number, _)| *number);
    let next =
        StationCalibration { format: FORMAT, model_hash: model_hash.into(), version, created, pictures, calibration };
    let path = folder.join(format!("{version:04}.json"));
    let temporary = path.with_extension("partial");
    let text = serde_json::to_vec_pretty(&next)
        .map_err(|error| BundleError::StationCalibration { path: path.clone(), reason: error.to_string() })?;
    write_synced(&temporary, &text)?;
    std::fs::rename(&temporary, &path).map_err(|source| io(&path, "write", source))?;
    sync_dir(&folder)?;
    Ok(path)
}

/// Takes the version in force back; the one before it holds again, or the bundle's. Gives its number.
///
/// # Errors
/// Anything that the disk refuses.
pub fn revert(root: &Path, model_hash: &str) -> Result<Option<u32>, BundleError> {
    let folder = folder(root, model_hash);
    let Some((version, path)) = newest(&folder)? else { return Ok(None) };
    let aside = folder.join(format!("{version:04}.json.reverted"));
    std::fs::rename(&path, &aside).map_err(|source| io(&aside, "write", source))?;
    sync_dir(&folder)?;
    Ok(Some(version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::calibration::{GoodPart, calibrate};
    use crate::inspection::detect::{StepChoice, Steps};

    const MODEL: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn calibration(scale: f32) -> Calibration {
        let parts: Vec<GoodPart> = (1..20)
            .map(|k| GoodPart { score: k as f32 * scale, level: k as f32 * scale, light: 0.5, novelty: None })
            .collect();
        let entry = calibrate(&parts, 0.1, None, StepChoice::Fixed(Steps(2)), 4).expect("enough");
        Calibration { id: format!("c{scale}"), entries: vec![entry] }
    }

    #[test]
    fn versions_count_up_and_are_taken_back_one_by_one() {
        let root = tempfile::tempdir().expect("folder");
        let now = || current(root.path(), MODEL).expect("reads").map(|c| (c.version, c.calibration.id));
        assert_eq!(now(), None);
        for scale in [1.0, 2.0] {
            write(root.path(), MODEL, calibration(scale), vec!["a.png".into()], "now".into()).expect("writes");
        }
        assert_eq!(now(), Some((2, "c2".into())));
        assert_eq!(current(root.path(), &MODEL.replace('0', "1")).expect("reads"), None, "another model");
        assert_eq!(revert(root.path(), MODEL).expect("reverts"), Some(2));
        assert_eq!(now(), Some((1, "c1".into())));
        write(root.path(), MODEL, calibration(3.0), vec![], "now".into()).expect("writes");
        assert_eq!(now(), Some((3, "c3".into())), "a number is never given twice");
        for _ in 0..2 {
            revert(root.path(), MODEL).expect("reverts");
        }
        assert_eq!(revert(root.path(), MODEL).expect("nothing left"), None);
    }

    #[test]
    fn a_damaged_or_foreign_version_is_refused() {
        let root = tempfile::tempdir().expect("folder");
        let path = write(root.path(), MODEL, calibration(1.0), vec![], "now".into()).expect("writes");
        let text = std::fs::read_to_string(&path).expect("reads");
        for (from, to) in [(&MODEL[..20], "ffffffffffffffffffff"), ("\"format\": 1", "\"format\": 9"), ("{", "")] {
            std::fs::write(&path, text.replacen(from, to, 1)).expect("writes");
            let error = current(root.path(), MODEL).expect_err("refused").to_string();
            assert!(error.contains("0001.json") && error.contains("--revert"), "{error}");
        }
    }
}
