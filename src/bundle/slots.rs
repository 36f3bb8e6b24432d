//! Two places for one bundle, of which one is in force: a new one is tried while the old one waits to come back.
//!
//! ```text
//! washer/            what a recipe's `bundle` names
//!   current          `a`, or `b unproven`: which place is in force, and whether it still has to prove itself
//!   a/  b/           bundles
//! ```
//!
//! A bundle is copied beside the place that is not in force, flushed to the disk, verified and tried; then it is renamed into the place, and `current`
//! is replaced by a rename. Whenever the power fails the old bundle is in force or the new one, whole; what lies beside with a dot before its name is
//! left over, and removed by the next installation. The first start with a new bundle proves it by its golden pictures: then it is marked as proven,
//! or the other one is in force again.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::BundleError;
use super::signature::KeyList;
use super::{Bundle, io as failed, parent, sibling, sync_dir, write_synced};

/// Name of the file that says which place is in force.
const CURRENT: &str = "current";
/// What it says of a bundle that has not proven itself here.
const UNPROVEN: &str = "unproven";

/// One of the two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// Both.
    pub const ALL: [Slot; 2] = [Slot::A, Slot::B];

    fn word(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The two places of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    dir: PathBuf,
    current: Option<(Slot, bool)>,
}

/// A bundle that is copied, and in no slot yet.
pub struct Staged {
    /// The copy.
    pub bundle: Bundle,
    slot: Slot,
}

impl Staged {
    /// Takes the copy away again.
    pub fn discard(self) {
        // What stays is cleared by the next installation.
        let _ = fs::remove_dir_all(&self.bundle.dir);
    }
}

impl Slots {
    /// The places in `dir`, which need not be there yet.
    ///
    /// # Errors
    /// `dir` holds something else, or `current` says nothing that can be meant.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join(CURRENT);
        let current = match fs::read_to_string(&path) {
            Ok(text) => Some(parse(&text).ok_or_else(|| BundleError::Slots {
                path: path.clone(),
                reason: format!("'{}' is none of 'a' and 'b', alone or with '{UNPROVEN}'", text.trim_end()),
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let strange = fs::read_dir(dir).into_iter().flatten().flatten().find(|entry| {
                    let name = entry.file_name();
                    !Slot::ALL.iter().any(|slot| name == slot.word()) && !name.to_string_lossy().starts_with('.')
                });
                if let Some(strange) = strange {
                    let reason = "is in a folder that holds no slots; name an empty or a new one".into();
                    return Err(BundleError::Slots { path: strange.path(), reason });
                }
                None
            }
            Err(source) => return Err(failed(&path, "read", source)),
        };
        Ok(Self { dir: dir.to_path_buf(), current })
    }

    /// Whether a folder holds slots, and no bundle itself.
    pub fn are_in(dir: &Path) -> bool {
        dir.join(CURRENT).is_file()
    }

    /// The folder of a slot.
    pub fn place(&self, slot: Slot) -> PathBuf {
        self.dir.join(slot.word())
    }

    /// The slot in force, and whether its bundle has proven itself here.
    pub fn current(&self) -> Option<(Slot, bool)> {
        self.current
    }

    /// Copies a bundle beside the slot that is not in force, and opens the copy: it is what will run. Nothing is replaced yet.
    ///
    /// # Errors
    /// It cannot be copied, or is no bundle that may be used.
    pub fn stage(&self, source: &Path, keys: &KeyList) -> Result<Staged, BundleError> {
        // What may not be used is not copied.
        Bundle::open(source, keys)?;
        let slot = self.current.map_or(Slot::A, |(slot, _)| slot.other());
        let place = self.place(slot);
        if self.current.is_some_and(|(_, proven)| !proven) && place.join(super::MANIFEST).is_file() {
            // What is there is what the station would go back to.
            let reason = "the bundle in force has not proven itself yet: reload the station first, or roll back".into();
            return Err(BundleError::Slots { path: self.dir.clone(), reason });
        }
        fs::create_dir_all(&self.dir).map_err(|error| failed(&self.dir, "create", error))?;
        self.clear()?;
        let temporary = sibling(&place, "tmp")?;
        match copy(source, &temporary).and_then(|()| Bundle::open(&temporary, keys)) {
            Ok(bundle) => Ok(Staged { bundle, slot }),
            Err(error) => {
                let _ = fs::remove_dir_all(&temporary);
                Err(error)
            }
        }
    }

    /// Puts a copy into its slot, and the slot in force, as one that the station has still to prove.
    ///
    /// # Errors
    /// The disk refuses; the bundle before is in force still.
    pub fn install(&mut self, Staged { bundle, slot }: Staged) -> Result<(Slot, Bundle), BundleError> {
        let place = self.place(slot);
        if place.symlink_metadata().is_ok() {
            fs::remove_dir_all(&place).map_err(|error| failed(&place, "remove", error))?;
        }
        fs::rename(&bundle.dir, &place).map_err(|error| failed(&place, "write", error))?;
        sync_dir(&self.dir)?;
        self.point(slot, false)?;
        Ok((slot, Bundle { dir: place, ..bundle }))
    }

    /// Puts a slot in force.
    ///
    /// # Errors
    /// The disk refuses; the one before is in force still.
    pub fn point(&mut self, slot: Slot, proven: bool) -> Result<(), BundleError> {
        let path = self.dir.join(CURRENT);
        let temporary = sibling(&path, "tmp")?;
        let word = if proven { slot.to_string() } else { format!("{slot} {UNPROVEN}") };
        write_synced(&temporary, format!("{word}\n").as_bytes())?;
        fs::rename(&temporary, &path).map_err(|error| failed(&path, "write", error))?;
        sync_dir(&self.dir)?;
        self.current = Some((slot, proven));
        Ok(())
    }

    /// The slot that would be in force after a way back.
    ///
    /// # Errors
    /// There is none, or no bundle in it.
    pub fn before(&self) -> Result<Slot, BundleError> {
        let slot = self.current.map(|(slot, _)| slot.other());
        slot.filter(|slot| self.place(*slot).join(super::MANIFEST).is_file()).ok_or_else(|| BundleError::Slots {
            path: self.dir.clone(),
            reason: "there is no bundle before this one to go back to".into(),
        })
    }

    /// Removes what an interrupted installation left.
    fn clear(&self) -> Result<(), BundleError> {
        for entry in fs::read_dir(&self.dir).map_err(|error| failed(&self.dir, "list", error))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(|error| failed(&path, "remove", error))?;
            }
        }
        Ok(())
    }
}

fn parse(text: &str) -> Option<(Slot, bool)> {
    let mut words = text.split_whitespace();
    let word = words.next()?;
    let slot = Slot::ALL.into_iter().find(|slot| slot.word() == word)?;
    match (words.next(), words.next()) {
        (None, _) => Some((slot, true)),
        (Some(UNPROVEN), None) => Some((slot, false)),
        _ => None,
    }
}

/// The bundle that a recipe names: `dir` itself, or the slot in force in it.
///
/// # Errors
/// `dir` holds slots, and nobody can tell which is in force.
pub fn in_force(dir: &Path) -> Result<PathBuf, BundleError> {
    if !Slots::are_in(dir) {
        return Ok(dir.to_path_buf());
    }
    let slots = Slots::open(dir)?;
    Ok(slots.current.map_or_else(|| dir.to_path_buf(), |(slot, _)| slots.place(slot)))
}

/// Copies plain files and folders, flushed to the disk. The bundle was looked through before: there is nothing else in it.
fn copy(from: &Path, to: &Path) -> Result<(), BundleError> {
    fs::create_dir_all(to).map_err(|error| failed(to, "create", error))?;
    for entry in fs::read_dir(from).map_err(|error| failed(from, "list", error))? {
        let entry = entry.map_err(|error| failed(from, "list", error))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|error| failed(&source, "look at", error))?;
        if kind.is_dir() {
            copy(&source, &target)?;
        } else {
            fs::copy(&source, &target).map_err(|error| failed(&target, "write", error))?;
            File::open(&target).and_then(|file| file.sync_all()).map_err(|error| failed(&target, "write", error))?;
        }
    }
    sync_dir(to)?;
    sync_dir(parent(to))
}
