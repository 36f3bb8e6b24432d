//! The artifact that travels from trainer to daemon.
//!
//! A bundle is a directory:
//!
//! ```text
//! manifest.json                  what the model is, and blake3 of every other file (`manifest`); at most 16 MiB
//! manifest.sig                   ed25519 over the exact bytes of manifest.json, one line (`signature`); optional
//! weights.safetensors            all trained tensors, f16 or f32 (`weights`)
//! golden/NAME.png                a picture of the self-test
//! golden/NAME.map.safetensors    its expected map, one tensor `map` of shape [height, width]
//! LICENSES/NOTICE                licences of third-party parts
//! ```
//!
//! Only the names of the first two are fixed; the rest is whatever `files` of the manifest lists. Each listed name is
//! a relative path of ASCII letters, digits, `.`, `_`, `-` and `/` without `.` and `..` parts. A bundle holds exactly
//! the listed files: one more, one less, a link or one changed byte and it is refused. A signature that is present
//! must be right, whether or not the station lists keys; if it lists keys there must be one, made by one of them.
//! An older or newer `format` is refused.
//!
//! [`Bundle::create`] writes a sibling directory `.NAME.tmp-PID`, flushes it to the disk and renames it, so that a
//! bundle is there whole or not at all; an interrupted run leaves only that sibling, which may be deleted. Replacing
//! an existing bundle moves it aside as `.NAME.old-PID` first: an interruption between the two renames leaves the old
//! bundle there. A bundle is never changed in place, except that signing renames a new `manifest.sig` over the old.

pub mod error;
pub mod manifest;
pub mod signature;
pub mod slots;
pub mod station_calibration;
pub mod weights;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use error::BundleError;
use manifest::Manifest;
use signature::{KeyList, PrivateKey, Signature};
use weights::TensorFile;

/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// Name of the signature.
pub const SIGNATURE: &str = "manifest.sig";
/// Name of the weights.
pub const WEIGHTS: &str = "weights.safetensors";
/// Ending of the files whose headers and values are checked on opening.
const TENSORS: &str = ".safetensors";

/// A manifest with the good parts of fifteen classes at four step counts is 2 MiB.
const MANIFEST_LIMIT: u64 = 16 << 20;
/// A signature is one line of 215 bytes.
const SIGNATURE_LIMIT: u64 = 4 << 10;
/// The paper's size in f16 is 2.7 GB.
const FILE_LIMIT: u64 = 4 << 30;

/// An opened bundle: version, signature, hashes, headers and values of tensors have been checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// What the manifest says.
    pub manifest: Manifest,
    /// Where the bundle lies.
    pub dir: PathBuf,
    /// blake3 in hex of the bytes of `manifest.json`: the identity of the model, files included.
    pub model_hash: String,
    /// Public key in hex of who signed it.
    pub signed_by: Option<String>,
}

impl Bundle {
    /// Opens a bundle and checks everything that can be checked without the network.
    ///
    /// # Errors
    /// The first thing that is wrong: manifest, version, signature, then the files in the order of their names.
    pub fn open(dir: &Path, keys: &KeyList) -> Result<Self, BundleError> {
        let bytes = read_limited(&dir.join(MANIFEST), MANIFEST_LIMIT)?;
        let path = dir.join(SIGNATURE);
        // Before the manifest is parsed: its parser never sees bytes of an unknown author on a station with keys.
        let signed_by = match read_limited(&path, SIGNATURE_LIMIT) {
            Ok(text) => Some(Signature::parse(&text, &path)?.verify(&bytes, keys, &path)?),
            Err(BundleError::FileMissing { path }) if !keys.is_empty() => return Err(BundleError::Unsigned { path }),
            Err(BundleError::FileMissing { .. }) => None,
            Err(error) => return Err(error),
        };
        Self::check(dir, &bytes, signed_by)
    }

    /// Signs the bundle in `dir` after checking it, in place of the signature it may have.
    ///
    /// # Errors
    /// As [`Self::open`], less the signature.
    pub fn sign(dir: &Path, key: &PrivateKey) -> Result<Self, BundleError> {
        let bytes = read_limited(&dir.join(MANIFEST), MANIFEST_LIMIT)?;
        let bundle = Self::check(dir, &bytes, Some(key.public_hex()))?;
        // Outside the directory, where an interrupted run would leave an unlisted file.
        let temporary = sibling(dir, "sig")?;
        write_synced(&temporary, key.sign(&bytes).to_line().as_bytes())?;
        let path = dir.join(SIGNATURE);
        fs::rename(&temporary, &path).map_err(|source| io(&path, "write", source))?;
        sync_dir(dir)?;
        Ok(bundle)
    }

    /// Writes a bundle: `files` by name, and the manifest with their hashes filled in.
    ///
    /// # Errors
    /// `dir` exists and is no bundle, or `replace` is false; a manifest or a file that [`Self::open`] would refuse; no space.
    pub fn create(
        dir: &Path,
        mut manifest: Manifest,
        files: &BTreeMap<String, Vec<u8>>,
        replace: bool,
    ) -> Result<Self, BundleError> {
        let exists = dir.symlink_metadata().is_ok();
        // Only a bundle is replaced, never a folder of somebody else's that has the name.
        if exists && !(replace && dir.join(MANIFEST).is_file()) {
            return Err(BundleError::Exists { path: dir.into() });
        }
        manifest.files = files.iter().map(|(name, bytes)| (name.clone(), hash(bytes))).collect();
        manifest.check_names(dir)?;
        let temporary = sibling(dir, "tmp")?;
        let made = Self::fill(&temporary, &manifest, files).and_then(|()| {
            // What cannot be opened is never published.
            Self::open(&temporary, &KeyList::empty())
        });
        let made = made.and_then(|bundle| publish(&temporary, dir, exists).map(|()| bundle));
        match made {
            Ok(bundle) => Ok(Self { dir: dir.into(), ..bundle }),
            Err(error) => {
                // The first error is the one to report; a leftover is harmless.
                let _ = fs::remove_dir_all(&temporary);
                Err(error)
            }
        }
    }

    /// The bytes of a listed file, checked against its hash once more: a file may change after opening.
    ///
    /// # Errors
    /// A name that is not listed, or a file that has changed.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, BundleError> {
        let path = self.dir.join(name);
        let Some(expected) = self.manifest.files.get(name) else {
            return Err(BundleError::FileUnlisted { path });
        };
        let bytes = read_limited(&path, FILE_LIMIT)?;
        match_hash(&path, expected, hash(&bytes))?;
        Ok(bytes)
    }

    /// The tensors of a listed file.
    ///
    /// # Errors
    /// As [`Self::read`] and [`TensorFile::from_bytes`].
    pub fn tensors(&self, name: &str) -> Result<TensorFile, BundleError> {
        let (bytes, path) = (self.read(name)?, self.dir.join(name));
        // The same bytes as on opening, by their hash.
        if name.ends_with(TENSORS) {
            Ok(TensorFile::checked(bytes, &path))
        } else {
            TensorFile::from_bytes(bytes, &path)
        }
    }

    fn check(dir: &Path, manifest: &[u8], signed_by: Option<String>) -> Result<Self, BundleError> {
        let model_hash = hash(manifest);
        let manifest = Manifest::parse(manifest, &dir.join(MANIFEST))?;
        let found = list(dir)?;
        if let Some(name) = found.iter().find(|name| !manifest.files.contains_key(*name)) {
            return Err(BundleError::FileUnlisted { path: dir.join(name) });
        }
        for (name, expected) in &manifest.files {
            let path = dir.join(name);
            let mut file = Hashed::open(&path)?;
            let checked = if name.ends_with(TENSORS) { weights::check(&mut file, &path) } else { Ok(()) };
            // What is damaged is called so, whatever else it seems to be.
            match_hash(&path, expected, file.finish(&path)?)?;
            checked?;
        }
        Ok(Self { manifest, dir: dir.into(), model_hash, signed_by })
    }

    fn fill(dir: &Path, manifest: &Manifest, files: &BTreeMap<String, Vec<u8>>) -> Result<(), BundleError> {
        fs::create_dir_all(dir).map_err(|source| io(dir, "create", source))?;
        let mut folders = vec![dir.to_path_buf()];
        for (name, bytes) in files {
            let path = dir.join(name);
            if let Some(parent) = path.parent().filter(|parent| *parent != dir) {
                fs::create_dir_all(parent).map_err(|source| io(parent, "create", source))?;
                folders.push(parent.into());
            }
            write_synced(&path, bytes)?;
        }
        let path = dir.join(MANIFEST);
        let invalid = |error: serde_json::Error| BundleError::ManifestInvalid {
            path: path.clone(),
            reason: format!("cannot be written: {error}"),
        };
        let mut text = serde_json::to_vec_pretty(manifest).map_err(invalid)?;
        text.push(b'\n');
        write_synced(&path, &text)?;
        folders.iter().try_for_each(|folder| sync_dir(folder))
    }
}

/// Renames a finished bundle to its place.
fn publish(temporary: &Path, dir: &Path, exists: bool) -> Result<(), BundleError> {
    let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|source| io(to, "write", source));
    if exists {
        let old = sibling(dir, "old")?;
        rename(dir, &old)?;
        if let Err(error) = rename(temporary, dir) {
            // Put the old bundle back; if that fails too, it still lies beside.
            let _ = fs::rename(&old, dir);
            return Err(error);
        }
        fs::remove_dir_all(&old).map_err(|source| io(&old, "remove", source))?;
    } else {
        rename(temporary, dir)?;
    }
    sync_dir(parent(dir))
}

/// `.NAME.KIND-PID` beside `dir`: the same file system, so that a rename is atomic.
fn sibling(dir: &Path, kind: &str) -> Result<PathBuf, BundleError> {
    // "." and ".." have no name of their own.
    let dir = match dir.file_name() {
        Some(_) => dir.to_path_buf(),
        None => dir.canonicalize().map_err(|source| io(dir, "find", source))?,
    };
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(parent(&dir).join(format!(".{name}.{kind}-{}", std::process::id())))
}

fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Names of all files below `dir` but the manifest and the signature, `/` between the parts.
fn list(dir: &Path) -> Result<Vec<String>, BundleError> {
    let mut names = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let place = dir.join(&folder);
        for entry in fs::read_dir(&place).map_err(|source| io(&place, "list", source))? {
            let entry = entry.map_err(|source| io(&place, "list", source))?;
            // `file_type` does not follow links: a link is neither file nor directory here.
            let kind = entry.file_type().map_err(|source| io(&entry.path(), "look at", source))?;
            let name = format!("{folder}{}", entry.file_name().to_string_lossy());
            if kind.is_dir() {
                folders.push(name + "/");
            } else if !kind.is_file() {
                return Err(BundleError::FileKind { path: entry.path() });
            } else if name != MANIFEST && name != SIGNATURE {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

fn match_hash(path: &Path, expected: &str, found: String) -> Result<(), BundleError> {
    if found == expected {
        return Ok(());
    }
    Err(BundleError::HashMismatch { path: path.into(), expected: expected.into(), found })
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// A file that is hashed as it is read, in pieces: verifying must not need the memory of the weights, and looks at what it hashes.
struct Hashed {
    file: File,
    length: u64,
    hasher: blake3::Hasher,
}

impl Hashed {
    fn open(path: &Path) -> Result<Self, BundleError> {
        let (file, length) = open_limited(path, FILE_LIMIT)?;
        Ok(Self { file, length, hasher: blake3::Hasher::new() })
    }

    /// Reads what is left; gives the hash of all.
    fn finish(mut self, path: &Path) -> Result<String, BundleError> {
        self.hasher.update_reader(&mut self.file).map_err(|source| io(path, "read", source))?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Opens a regular file of at most `limit` bytes; returns its length.
fn open_limited(path: &Path, limit: u64) -> Result<(File, u64), BundleError> {
    // Links are refused here too: the manifest and the signature are read before the directory is listed.
    let kind = path.symlink_metadata().map_err(|source| io(path, "read", source))?;
    if !kind.is_file() {
        return Err(BundleError::FileKind { path: path.into() });
    }
    let file = File::open(path).map_err(|source| io(path, "read", source))?;
    let bytes = file.metadata().map_err(|source| io(path, "read", source))?.len();
    if bytes > limit {
        return Err(BundleError::TooLarge { path: path.into(), bytes, limit });
    }
    Ok((file, bytes))
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, BundleError> {
    let (file, length) = open_limited(path, limit)?;
    let mut bytes = Vec::with_capacity(length as usize);
    // `take`: the file may grow between the look at its length and the reading.
    file.take(length).read_to_end(&mut bytes).map_err(|source| io(path, "read", source))?;
    Ok(bytes)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let mut file = File::create(path).map_err(|source| io(path, "create", source))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|source| io(path, "write", source))
}

fn sync_dir(dir: &Path) -> Result<(), BundleError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| io(dir, "write", source))
}

/// A missing file is its own error, since its remedy is another.
fn io(path: &Path, action: &'static str, source: std::io::Error) -> BundleError {
    if source.kind() == std::io::ErrorKind::NotFound && action == "read" {
        return BundleError::FileMissing { path: path.into() };
    }
    BundleError::Io { path: path.into(), action, source }
}
