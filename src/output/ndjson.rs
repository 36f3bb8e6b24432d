//! Events as lines of a file, for people and programs that follow it.
//!
//! The database is the record; this file is written after the commit. A line is whole or not there: what a crash or a full disk left of one is
//! cut off, and what is missing is taken from the database.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Longest line that is looked for at the end of a file, bytes.
const LAST: u64 = 1 << 20;

/// The file.
pub struct Lines {
    path: PathBuf,
    max_bytes: u64,
    file: Option<File>,
}

impl Lines {
    /// Lines in `path`, rotated to `path.1` at `max_bytes`. Nothing is touched yet.
    pub fn new(path: &Path, max_bytes: u64) -> Self {
        Self { path: path.to_path_buf(), max_bytes, file: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one line, whole or not at all.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn append(&mut self, line: &str) -> io::Result<()> {
        let result = self.write(line);
        if result.is_err() {
            self.file = None;
        }
        result
    }

    /// The last whole line; what stands behind it is cut off.
    ///
    /// # Errors
    /// The file is there and cannot be read or cut.
    pub fn last(&mut self) -> io::Result<Option<String>> {
        match Self::last_of(&self.path)? {
            // It may just have been moved aside.
            None => Self::last_of(&self.older()),
            last => Ok(last),
        }
    }

    fn older(&self) -> PathBuf {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        older.into()
    }

    fn last_of(path: &Path) -> io::Result<Option<String>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        // What is no file, as a pipe, has no end to look at.
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let length = file.seek(SeekFrom::End(0))?;
        let from = length.saturating_sub(LAST);
        file.seek(SeekFrom::Start(from))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < end.len() {
            file.set_len(from + whole as u64)?;
        }
        let end = String::from_utf8_lossy(&end[..whole]).into_owned();
        Ok(end.trim_end().rsplit('\n').next().filter(|line| !line.is_empty()).map(str::to_owned))
    }

    /// Makes what is written durable.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_all)
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.file.is_none() {
            if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent)?;
            }
            self.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        }
        let Some(open) = self.file.as_mut() else { return Ok(()) };
        let whole = open.seek(SeekFrom::End(0))?;
        if whole > 0 && whole + line.len() as u64 + 1 > self.max_bytes {
            std::fs::rename(&self.path, self.older())?;
            self.file = None;
            return self.write(line);
        }
        open.write_all(format!("{line}\n").as_bytes()).inspect_err(|_| {
            // Part of a line may have reached a full disk: cutting it off needs no space.
            let _ = open.set_len(whole);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_cut_off() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("events.ndjson");
        let mut lines = Lines::new(&path, u64::MAX);
        assert_eq!(lines.last().expect("reads"), None);
        lines.append("one").expect("writes");
        lines.append("two").expect("writes");
        std::fs::write(&path, std::fs::read_to_string(&path).expect("reads") + "thr").expect("writes");
        assert_eq!(lines.last().expect("reads").as_deref(), Some("two"));
        lines.append("three").expect("writes");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_full_file_is_moved_aside() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("deep/events.ndjson");
        let mut lines = Lines::new(&path, 8);
        ["aaa", "bbb", "ccc"].iter().for_each(|line| lines.append(line).expect("writes"));
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "ccc\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("deep/events.ndjson.1")).expect("reads"), "aaa\nbbb\n");
    }
}
