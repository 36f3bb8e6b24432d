//! What is wrong in a configuration: file, key, value and remedy, all at once.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use crate::inspection::words::did_you_mean;

/// One thing that is wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The key, or nothing where the file as a whole is wrong.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.key.is_empty() { "" } else { ": " };
        write!(f, "{}{separator}{}: {}", self.file.display(), self.key, self.message)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// Reads a file as it is written.
///
/// # Errors
/// It cannot be read, or is not what is asked for.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    let problem = |message: String| Problem { file: path.to_path_buf(), key: String::new(), message };
    let text = std::fs::read_to_string(path)
        .map_err(|error| problem(format!("cannot be read: {error}; check the path and its permissions")))?;
    toml::from_str(&text).map_err(|error| {
        let message = error.to_string();
        let hint = unknown_key(error.message()).unwrap_or_default();
        problem(format!("{}{hint}", message.trim_end()))
    })
}

/// A suggestion for serde's "unknown field `x`, expected one of `a`, `b`".
fn unknown_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next().filter(|_| message.starts_with("unknown"))?;
    Some(did_you_mean(wrong, quoted))
}
