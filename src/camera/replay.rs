//! A folder as a camera: its pictures in natural order, once.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rate::Rate;
use crate::inspection::frame::{CameraId, Frame, FrameId, FrameMeta, FrameSource, SourceError, TriggerInfo};
use crate::inspection::time::Clock;
use crate::preprocess::decode::{EXTENSIONS, decode};

/// Largest file that is read: a picture of the largest size that is decoded fits, uncompressed.
const MAX_BYTES: u64 = 512 << 20;

/// A finite camera.
pub struct Replay {
    camera: CameraId,
    files: VecDeque<PathBuf>,
    next: u64,
    rate: Rate,
    clock: Arc<dyn Clock>,
}

impl Replay {
    /// Opens a folder, or a single picture. With `fps` frames come at that rate, as from a line; without, as fast as they
    /// are taken.
    ///
    /// # Errors
    /// A folder that cannot be read, or holds no picture.
    pub fn open(camera: CameraId, path: &Path, fps: Option<f64>, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let files = pictures(path)?;
        let rate = Rate::new(fps, Arc::clone(&clock));
        Ok(Self { camera, files: files.into(), next: 0, rate, clock })
    }
}

/// Pictures of a folder in natural order (`2.png` before `10.png`), or the one file that `path` is.
///
/// # Errors
/// A path that cannot be read, or a folder without a picture.
pub fn pictures(path: &Path) -> Result<Vec<PathBuf>, String> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let failed = |error: std::io::Error| format!("{}: cannot be read: {error}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let extension = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        if file.is_file() && extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(format!("{}: holds no picture ({})", path.display(), EXTENSIONS.join(", ")));
    }
    files.sort_by_cached_key(|file| natural(&file.to_string_lossy()));
    Ok(files)
}

/// A sort key in which runs of digits compare by their value.
fn natural(name: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[text..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - text);
        let number = rest[text..text + digits].parse().unwrap_or(u64::MAX);
        parts.push((0, rest[..text].to_owned()));
        parts.push((number, rest[text..text + digits].to_owned()));
        rest = &rest[text + digits..];
    }
    parts
}

impl FrameSource for Replay {
    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        let Some(file) = self.files.front().cloned() else { return Err(SourceError::Ended) };
        self.rate.wait()?;
        self.files.pop_front();
        let id = FrameId(self.next);
        self.next += 1;
        let captured_at = self.clock.now();
        let trigger = TriggerInfo {
            source: "file".into(),
            part_id: file.file_name().map(|name| name.to_string_lossy().into_owned()),
            at: captured_at,
        };
        let meta = FrameMeta {
            id,
            camera: self.camera.clone(),
            captured_at,
            sequence: id.0,
            trigger: Some(trigger),
            width: 0,
            height: 0,
        };
        match read(&file) {
            Ok(picture) => Ok(picture.into_frame(meta)),
            Err(reason) => {
                Err(SourceError::Damaged { meta: Box::new(meta), reason: format!("{}: {reason}", file.display()) })
            }
        }
    }
}

fn read(file: &Path) -> Result<crate::preprocess::decode::Picture, String> {
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if size > MAX_BYTES {
        return Err(format!("{size} bytes are more than the {MAX_BYTES} that are read"));
    }
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    decode(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_by_value() {
        let mut names = ["part10.png", "part9.png", "a2b.png", "a10b.png", "part09.png"];
        names.sort_by_cached_key(|name| natural(name));
        assert_eq!(names, ["a2b.png", "a10b.png", "part09.png", "part9.png", "part10.png"]);
    }
}
