//! ed25519 keys and signatures.
//!
//! All three files are one line of text:
//!
//! ```text
//! NAME.pub        dsad-ed25519 <public key, 64 hex digits> <comment>
//! NAME.key        dsad-ed25519-private <seed, 64 hex digits> <comment>       mode 0600, never leaves the trainer
//! manifest.sig    dsad-ed25519-signature <public key> <signature, 128 hex digits>
//! ```

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use super::error::BundleError;
use super::{io, read_limited};

const PUBLIC: &str = "dsad-ed25519";
const PRIVATE: &str = "dsad-ed25519-private";
const SIGNED: &str = "dsad-ed25519-signature";
/// One line of about 100 bytes and a comment.
const KEY_LIMIT: u64 = 4 << 10;

/// The public keys whose bundles a station accepts. Empty: it accepts unsigned ones too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyList(Vec<VerifyingKey>);

impl KeyList {
    /// No keys: unsigned bundles are accepted, wrong signatures still refused.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Whether unsigned bundles are accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads public keys from files, and from all `*.pub` files of directories.
    ///
    /// # Errors
    /// A file that is no public key, and a directory without any: a station that names keys must not end up accepting
    /// everything because a directory was emptied or misspelt.
    pub fn read(paths: &[PathBuf]) -> Result<Self, BundleError> {
        let mut keys = Vec::new();
        for path in paths {
            let files = if path.is_dir() { public_files(path)? } else { vec![path.clone()] };
            for file in files {
                keys.push(read_public(&file)?);
            }
        }
        Ok(Self(keys))
    }
}

fn public_files(dir: &Path) -> Result<Vec<PathBuf>, BundleError> {
    let entries = fs::read_dir(dir).map_err(|source| io(dir, "list", source))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|source| io(dir, "list", source))?.path();
        if file.extension().is_some_and(|ending| ending == "pub") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        let reason = "holds no *.pub file; put a public key there, or name no key directory to accept unsigned bundles";
        return Err(BundleError::KeyInvalid { path: dir.into(), reason: reason.into() });
    }
    Ok(files)
}

fn read_public(path: &Path) -> Result<VerifyingKey, BundleError> {
    let bytes: [u8; 32] = read_key(path, PUBLIC)?;
    public_key(&bytes).ok_or_else(|| BundleError::KeyInvalid {
        path: path.into(),
        reason: "not a usable ed25519 public key; make a pair with `trainer keygen`".into(),
    })
}

/// A weak key verifies signatures that nobody made.
fn public_key(bytes: &[u8; 32]) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(bytes).ok().filter(|key| !key.is_weak())
}

fn read_key(path: &Path, label: &'static str) -> Result<[u8; 32], BundleError> {
    let text = read_limited(path, KEY_LIMIT)?;
    let text = String::from_utf8_lossy(&text);
    let mut words = text.split_whitespace();
    let key = (words.next() == Some(label)).then(|| words.next().and_then(from_hex)).flatten();
    key.ok_or_else(|| BundleError::KeyInvalid {
        path: path.into(),
        reason: format!("does not begin with '{label}' and 64 hex digits; make a pair with `trainer keygen`"),
    })
}

/// The key that bundles are signed with.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// A new key from the operating system's random source.
    ///
    /// # Errors
    /// The source does not answer.
    pub fn generate() -> Result<Self, BundleError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| BundleError::Io {
            path: "random source".into(),
            action: "draw a key",
            source: std::io::Error::other(error.to_string()),
        })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads a private key file.
    ///
    /// # Errors
    /// Not a private key, or readable by others than its owner.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let seed = read_key(path, PRIVATE)?;
        let mode = fs::metadata(path).map_err(|source| io(path, "read", source))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let reason = format!("mode {mode:03o} lets others read the private key; run `chmod 600` on it");
            return Err(BundleError::KeyInvalid { path: path.into(), reason });
        }
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Writes `NAME.key` with mode 0600 and `NAME.pub` into `dir`; returns both paths.
    ///
    /// # Errors
    /// Either file exists: a key is never overwritten.
    pub fn write(&self, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), BundleError> {
        fs::create_dir_all(dir).map_err(|source| io(dir, "create", source))?;
        let (private, public) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pub")));
        if public.exists() {
            return Err(BundleError::Exists { path: public });
        }
        let seed = to_hex(self.0.as_bytes());
        write_new(&private, 0o600, &format!("{PRIVATE} {seed} {name}\n"))?;
        write_new(&public, 0o644, &format!("{PUBLIC} {} {name}\n", self.public_hex()))?;
        Ok((private, public))
    }

    /// The public key in hex.
    pub fn public_hex(&self) -> String {
        to_hex(self.0.verifying_key().as_bytes())
    }

    /// Signs the exact bytes of a manifest.
    pub fn sign(&self, manifest: &[u8]) -> Signature {
        Signature { key: self.0.verifying_key(), signature: self.0.sign(manifest) }
    }
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), BundleError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => BundleError::Exists { path: path.into() },
        _ => io(path, "write", source),
    })
}

/// The content of `manifest.sig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    key: VerifyingKey,
    signature: ed25519_dalek::Signature,
}

impl Signature {
    /// Reads the text of a signature file; `path` is only named in errors.
    ///
    /// # Errors
    /// Not exactly the one line that signing writes.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, BundleError> {
        let parsed = || {
            let mut words = std::str::from_utf8(text).ok()?.strip_suffix('\n')?.split(' ');
            (words.next()? == SIGNED).then_some(())?;
            let key = public_key(&from_hex(words.next()?)?)?;
            let signature = ed25519_dalek::Signature::from_bytes(&from_hex(words.next()?)?);
            words.next().is_none().then_some(Self { key, signature })
        };
        parsed().ok_or_else(|| BundleError::SignatureInvalid {
            path: path.into(),
            reason: format!("is not one line '{SIGNED} KEY SIGNATURE'"),
        })
    }

    /// The line that [`Self::parse`] reads.
    pub fn to_line(&self) -> String {
        format!("{SIGNED} {} {}\n", to_hex(self.key.as_bytes()), to_hex(&self.signature.to_bytes()))
    }

    /// Checks the signature of a manifest and that its key is listed, if keys are; returns the key in hex.
    ///
    /// # Errors
    /// A key that is not listed, or a signature that does not belong to these bytes.
    pub fn verify(&self, manifest: &[u8], keys: &KeyList, path: &Path) -> Result<String, BundleError> {
        let key = to_hex(self.key.as_bytes());
        let invalid = |reason: String| BundleError::SignatureInvalid { path: path.into(), reason };
        if !keys.is_empty() && !keys.0.contains(&self.key) {
            return Err(invalid(format!("signed with key {key}, which is not among the station's keys")));
        }
        self.key
            .verify_strict(manifest, &self.signature)
            .map_err(|_| invalid(format!("the signature of key {key} does not belong to this manifest.json")))?;
        Ok(key)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lower case only, so that a key and a signature have one spelling.
fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    (digits.len() == 2 * N).then_some(())?;
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}
