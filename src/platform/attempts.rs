//! Starts that did not end well, counted over processes: a start that crashes, hangs or is killed cannot say so itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One start, from its begin to its good end.
#[derive(Debug)]
pub struct Attempt {
    file: PathBuf,
    /// How many starts in a row before this one did not end well.
    pub failed_before: u32,
}

impl Attempt {
    /// Counts a start in `folder`, which is made where it is not there.
    ///
    /// # Errors
    /// The system refuses.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let file = folder.join("starts-without-end");
        // What cannot be read counts as none: a count that is too low costs two more starts.
        let failed_before = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0u32);
        fs::write(&file, failed_before.saturating_add(1).to_string())?;
        Ok(Self { file, failed_before })
    }

    /// The start ended well.
    ///
    /// # Errors
    /// The system refuses.
    pub fn ended_well(&self) -> io::Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_until_one_ends_well() {
        let dir = tempfile::tempdir().expect("directory");
        let folder = dir.path().join("deep/cache");
        for expected in [0, 1, 2] {
            assert_eq!(Attempt::begin(&folder).expect("counts").failed_before, expected);
        }
        let last = Attempt::begin(&folder).expect("counts");
        last.ended_well().expect("forgets");
        last.ended_well().expect("is forgotten already");
        assert_eq!(Attempt::begin(&folder).expect("counts").failed_before, 0);
        fs::write(folder.join("starts-without-end"), "\0\0").expect("writes");
        assert_eq!(Attempt::begin(&folder).expect("counts").failed_before, 0);
    }
}
