//! Data sets as they lie on disk.

pub mod discover;
pub mod index;
pub mod mask;
pub mod survey;

use std::path::PathBuf;

use anyhow::ensure;

/// A picture of a test split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The picture.
    pub path: PathBuf,
    /// Where its defect is marked, if it is.
    pub mask: Option<PathBuf>,
    /// Kind of defect; absent is good.
    pub defect: Option<String>,
}

/// One product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name of its folder.
    pub name: String,
    /// Good pictures for training.
    pub train: Vec<PathBuf>,
    /// Pictures for the evaluation; empty for a flat folder.
    pub test: Vec<Sample>,
}

/// A file or folder that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Everything under a data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// The products, by name.
    pub sets: Vec<Set>,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

impl Discovered {
    /// These sets alone, or all where none is named.
    ///
    /// # Errors
    /// A name that is no set.
    pub fn only(mut self, names: &[String]) -> anyhow::Result<Self> {
        for name in names {
            let known: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
            ensure!(known.contains(&name.as_str()), "set '{name}': the data has {}", known.join(", "));
        }
        self.sets.retain(|set| names.is_empty() || names.contains(&set.name));
        Ok(self)
    }
}
