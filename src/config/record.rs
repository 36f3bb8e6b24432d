//! What a station keeps: the database and the archive of pictures.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[store]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreFile {
    /// Days that events are kept.
    pub days: u32,
    /// MiB of the database, at most; the oldest overruns and passes go first.
    pub max_mib: u64,
    /// MiB that wait for a broker or a webhook that does not answer, at most; passes are given up first.
    pub outbox_mib: u64,
    /// Hours that they wait, at most.
    pub outbox_hours: u32,
}

impl Default for StoreFile {
    fn default() -> Self {
        Self { days: 400, max_mib: 8_192, outbox_mib: 256, outbox_hours: 168 }
    }
}

/// `[archive]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveFile {
    /// The folder.
    pub folder: PathBuf,
    /// Share of the passes that are kept, 0 to 1. Failures and faults all are.
    #[serde(default = "default_passes")]
    pub passes: f64,
    /// Passes with a score of at least this share of the threshold are kept, too; 1 or more is none of them.
    #[serde(default = "default_near")]
    pub near: f64,
    /// Days that pictures are kept.
    #[serde(default = "default_days")]
    pub days: u32,
    /// GiB of all pictures, at most; the oldest passes go first.
    #[serde(default = "default_max")]
    pub max_gib: f64,
    /// GiB that stay free on the disk.
    #[serde(default = "default_free")]
    pub min_free_gib: f64,
}

fn default_passes() -> f64 {
    0.01
}

fn default_near() -> f64 {
    0.9
}

fn default_days() -> u32 {
    90
}

fn default_max() -> f64 {
    20.0
}

fn default_free() -> f64 {
    2.0
}

/// How much the database keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Days that events are kept.
    pub days: u32,
    /// Bytes of the database, at most.
    pub max_bytes: u64,
    /// Bytes that wait for one destination, at most.
    pub outbox_bytes: u64,
    /// Hours that something may wait for a destination.
    pub outbox_hours: u32,
}

impl StoreFile {
    /// What it means, or what is wrong: key and words.
    ///
    /// # Errors
    /// A limit that nothing fits into.
    pub fn resolve(&self) -> Result<StoreLimits, (&'static str, String)> {
        for (key, value) in [
            ("store.days", u64::from(self.days)),
            ("store.max_mib", self.max_mib),
            ("store.outbox_mib", self.outbox_mib),
            ("store.outbox_hours", u64::from(self.outbox_hours)),
        ] {
            if !(1..=100_000).contains(&value) {
                return Err((key, format!("{value}: must be 1 to 100000")));
            }
        }
        Ok(StoreLimits {
            days: self.days,
            max_bytes: self.max_mib << 20,
            outbox_bytes: self.outbox_mib << 20,
            outbox_hours: self.outbox_hours,
        })
    }
}

/// Where pictures are kept, and which.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchiveSettings {
    /// The folder.
    pub folder: PathBuf,
    /// Which, and for how long.
    pub limits: ArchiveLimits,
}

/// Which pictures are kept, and for how long: may change while the station runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArchiveLimits {
    /// Share of the passes that are kept, 0 to 1. Failures and faults all are.
    pub passes: f64,
    /// Passes whose score is at least this share of the threshold are kept, too.
    pub near: f64,
    /// Days that files are kept.
    pub days: u32,
    /// Bytes of all files, at most.
    pub max_bytes: u64,
    /// Bytes that stay free on the disk.
    pub min_free_bytes: u64,
}

impl ArchiveFile {
    /// What it means, relative to a folder, or what is wrong: key and words.
    ///
    /// # Errors
    /// A number that makes no sense.
    pub fn resolve(&self, base: &Path) -> Result<ArchiveSettings, (&'static str, String)> {
        let within = |key: &'static str, value: f64, from: f64, to: f64| {
            let fits = (from..=to).contains(&value);
            if fits { Ok(()) } else { Err((key, format!("{value}: must be {from} to {to}"))) }
        };
        within("archive.passes", self.passes, 0.0, 1.0)?;
        within("archive.near", self.near, 0.0, 1e6)?;
        within("archive.days", self.days.into(), 1.0, 100_000.0)?;
        within("archive.max_gib", self.max_gib, 0.001, 1e6)?;
        within("archive.min_free_gib", self.min_free_gib, 0.0, 1e6)?;
        let bytes = |gib: f64| (gib * (1u64 << 30) as f64) as u64;
        Ok(ArchiveSettings {
            folder: base.join(&self.folder),
            limits: ArchiveLimits {
                passes: self.passes,
                near: self.near,
                days: self.days,
                max_bytes: bytes(self.max_gib),
                min_free_bytes: bytes(self.min_free_gib),
            },
        })
    }
}

impl ArchiveSettings {
    /// Everything, for ever.
    pub fn everything(folder: &Path) -> Self {
        let folder = folder.to_path_buf();
        let limits = ArchiveLimits { passes: 1.0, near: 0.0, days: u32::MAX, max_bytes: u64::MAX, min_free_bytes: 0 };
        Self { folder, limits }
    }
}
