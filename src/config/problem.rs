//! What is wrong in a configuration: file, key, value and remedy, all at once.

use std::fmt;
use std::io::Read;
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

/// Longest file, bytes: a path may name anything, `/dev/zero` too.
const LONGEST: u64 = 1 << 20;

/// Reads a file as it is written.
///
/// # Errors
/// It cannot be read, or is not what is asked for.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    let problem = |message: String| Problem { file: path.to_path_buf(), key: String::new(), message };
    let text =
        text(path).map_err(|error| problem(format!("cannot be read: {error}; check the path and its permissions")))?;
    if text.len() as u64 > LONGEST {
        return Err(problem(format!("is longer than {LONGEST} bytes; is it the right file?")));
    }
    toml::from_str(&text).map_err(|error| {
        let message = error.to_string();
        let hint = unknown_key(error.message()).or_else(|| missing_key(error.message(), &text)).unwrap_or_default();
        problem(format!("{}{hint}", message.trim_end()))
    })
}

fn text(path: &Path) -> std::io::Result<String> {
    // A pipe would be waited for, and a device never ends.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// A suggestion for serde's "unknown field `x`, expected one of `a`, `b`".
fn unknown_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next().filter(|_| message.starts_with("unknown"))?;
    Some(did_you_mean(wrong, quoted))
}

/// A suggestion for serde's "missing field `x`": the key that decides what others mean is asked for before the unknown ones are seen.
fn missing_key(message: &str, text: &str) -> Option<String> {
    let missing = message.strip_prefix("missing field `")?.strip_suffix('`')?;
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).filter(|word| !word.is_empty());
    let near = |word: &&str| *word != missing && !did_you_mean(word, std::iter::once(missing)).is_empty();
    let wrong = words.filter(near).min_by_key(|word| strsim::damerau_levenshtein(word, missing))?;
    Some(format!(" (did you mean '{missing}' by '{wrong}'?)"))
}
