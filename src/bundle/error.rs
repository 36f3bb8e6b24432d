//! Every way in which a bundle is refused.

use std::path::PathBuf;

use thiserror::Error;

/// Why a bundle, one of its files or a key is refused. Each message names the file, the key, the value and the remedy.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, in words that follow "cannot".
        action: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// There is no bundle, or a file that its manifest lists is gone.
    #[error("{}: file is missing; copy the whole bundle directory again", path.display())]
    FileMissing {
        /// The file.
        path: PathBuf,
    },
    /// A file that the manifest does not list.
    #[error("{}: not listed under 'files' in manifest.json; delete it or copy the bundle again", path.display())]
    FileUnlisted {
        /// The file.
        path: PathBuf,
    },
    /// Neither a directory nor a regular file.
    #[error("{}: neither a regular file nor a directory; a bundle holds no links and no devices", path.display())]
    FileKind {
        /// The entry.
        path: PathBuf,
    },
    /// A listed name that is not a plain relative path.
    #[error("{}: files: '{name}' is not a plain relative path inside the bundle; export the bundle again", path.display())]
    PathEscape {
        /// The manifest, or the bundle directory when one is being made.
        path: PathBuf,
        /// The name as written.
        name: String,
    },
    /// A file beyond its limit.
    #[error("{}: {bytes} bytes, at most {limit} are allowed; export the bundle again", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A folder of two places for a bundle that cannot be used.
    #[error("{}: {reason}; `dsad bundle install BUNDLE --into DIR` sets it right", path.display())]
    Slots {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A calibration made on the station that cannot be used.
    #[error("{}: {reason}; take it back with `dsad calibrate --revert`, or remove the file", path.display())]
    StationCalibration {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A manifest that is not what this version writes.
    #[error("{}: {reason}; export the bundle again with the trainer of this version", path.display())]
    ManifestInvalid {
        /// The manifest.
        path: PathBuf,
        /// Key, value and what is wrong.
        reason: String,
    },
    /// A format version that this program does not read.
    #[error(
        "{}: format: {found} is unknown, this program reads {known}; export the bundle again or update dsad",
        path.display()
    )]
    FormatVersion {
        /// The manifest.
        path: PathBuf,
        /// The version written there.
        found: u64,
        /// The version that this program reads.
        known: u32,
    },
    /// A file whose bytes are not those of the manifest.
    #[error("{}: blake3 is {found}, manifest.json lists {expected}; the file has changed, copy the bundle again", path.display())]
    HashMismatch {
        /// The file.
        path: PathBuf,
        /// The listed hash.
        expected: String,
        /// The hash of the bytes.
        found: String,
    },
    /// A safetensors header that cannot be true.
    #[error("{}: safetensors header: {reason}; export the bundle again", path.display())]
    TensorHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor's name where there is one.
        reason: String,
    },
    /// A weight that is NaN or infinite.
    #[error("{}: tensor '{tensor}': element {index} is {value}; train or export again", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row-major index of the first such element.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The network needs tensors that the file does not hold.
    #[error("{}: tensors missing: {}; the weights do not belong to the 'model' of manifest.json", path.display(), names(tensors))]
    TensorsMissing {
        /// The file.
        path: PathBuf,
        /// Their names, sorted.
        tensors: Vec<String>,
    },
    /// The file holds tensors that the network does not know.
    #[error("{}: tensors not used: {}; the weights do not belong to the 'model' of manifest.json", path.display(), names(tensors))]
    TensorsUnused {
        /// The file.
        path: PathBuf,
        /// Their names, sorted.
        tensors: Vec<String>,
    },
    /// A tensor of another shape or kind than the network's.
    #[error("{}: tensor '{tensor}': {reason}; the weights do not belong to the 'model' of manifest.json", path.display())]
    TensorMismatch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Expected and found.
        reason: String,
    },
    /// A module that cannot be written as safetensors.
    #[error("{}: cannot encode the weights: {reason}", path.display())]
    Encode {
        /// The file that was to be written.
        path: PathBuf,
        /// The store's answer.
        reason: String,
    },
    /// No signature although the station lists keys.
    #[error(
        "{}: file is missing, and this station accepts signed bundles only; sign with `trainer sign --bundle DIR --key FILE`",
        path.display()
    )]
    Unsigned {
        /// Where the signature should be.
        path: PathBuf,
    },
    /// A signature that is wrong.
    #[error("{}: {reason}; copy the bundle again or sign it with a key that the station lists", path.display())]
    SignatureInvalid {
        /// The signature file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key file that is not one.
    #[error("{}: {reason}", path.display())]
    KeyInvalid {
        /// The key file, or the directory that should hold keys.
        path: PathBuf,
        /// What is wrong, and the remedy.
        reason: String,
    },
    /// The place is taken.
    #[error("{}: exists already; choose another place or ask for it to be replaced", path.display())]
    Exists {
        /// The directory or file.
        path: PathBuf,
    },
}

impl BundleError {
    /// Stable short name for logs, events and scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::FileMissing { .. } => "file_missing",
            Self::FileUnlisted { .. } => "file_unlisted",
            Self::FileKind { .. } => "file_kind",
            Self::PathEscape { .. } => "path_escape",
            Self::TooLarge { .. } => "too_large",
            Self::StationCalibration { .. } => "station_calibration",
            Self::ManifestInvalid { .. } => "manifest_invalid",
            Self::FormatVersion { .. } => "format_version",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::TensorHeader { .. } => "tensor_header",
            Self::NotFinite { .. } => "tensor_not_finite",
            Self::TensorsMissing { .. } => "tensors_missing",
            Self::TensorsUnused { .. } => "tensors_unused",
            Self::TensorMismatch { .. } => "tensor_mismatch",
            Self::Encode { .. } => "encode",
            Self::Unsigned { .. } => "unsigned",
            Self::SignatureInvalid { .. } => "signature_invalid",
            Self::KeyInvalid { .. } => "key_invalid",
            Self::Exists { .. } => "exists",
            Self::Slots { .. } => "slots",
        }
    }
}

/// The first names and how many follow: a network of another size misses hundreds.
fn names(tensors: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = tensors.iter().take(SHOWN).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    if tensors.len() > SHOWN {
        text.push_str(&format!(" and {} more", tensors.len() - SHOWN));
    }
    text
}
