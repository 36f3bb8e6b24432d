//! A file of tensors, in any format that public checkpoints come in.
//!
//! A PyTorch file is a pickle: a program that builds objects. Here its tensors are rebuilt and nothing else is; every
//! other object stays opaque and is listed, whatever it would have done. Nothing is read before its size is known to be
//! the wanted one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use half::{bf16, f16};
use pytorch_reader::{DType, PickleValue, PytorchError, PytorchReader};
use safetensors::tensor::{Dtype, Metadata};

/// Largest safetensors header; Stable Diffusion's has 130 kB.
const HEADER_LIMIT: u64 = 32 << 20;
/// Where Lightning and CompVis keep the tensors.
const STATE: &str = "state_dict";

/// A tensor that is not read yet.
struct Stored {
    shape: Vec<usize>,
    dtype: DType,
    read: Box<dyn Fn() -> std::io::Result<Vec<u8>>>,
}

/// An opened checkpoint.
pub struct Checkpoint {
    path: PathBuf,
    tensors: BTreeMap<String, Stored>,
    others: Vec<String>,
    used: RefCell<BTreeSet<String>>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with {} tensors", self.path.display(), self.tensors.len())
    }
}

impl Checkpoint {
    /// Opens `.safetensors`, or a PyTorch file with or without a `state_dict`.
    ///
    /// # Errors
    /// An unreadable file, or one of no known format.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut start = [0u8; 2];
        let mut file = File::open(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        file.read_exact(&mut start).with_context(|| format!("{}: cannot be read", path.display()))?;
        // A zip, or a bare pickle of protocol 2 to 5; the first bytes of a safetensors file are the length of its header.
        let pickled = &start == b"PK" || (start[0] == 0x80 && (2..=5).contains(&start[1]));
        let (tensors, others) = if pickled { open_pytorch(path) } else { open_safetensors(path, file) }
            .with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_path_buf(), tensors, others, used: RefCell::default() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Objects besides the tensors: name and kind. They are not interpreted.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// Whether a tensor of this name exists.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| &stored.shape[..])
    }

    /// Reads a tensor as f32 if its shape is `shape`; it counts as used from then on.
    ///
    /// # Errors
    /// A missing tensor, another shape or number format, a value that is not finite, a file that ends early.
    pub fn read(&self, name: &str, shape: &[usize]) -> anyhow::Result<Vec<f32>> {
        let stored = self.tensors.get(name).with_context(|| format!("{}: no tensor '{name}'", self.path.display()))?;
        // Before anything is allocated: a file may claim any size.
        ensure!(
            stored.shape == shape,
            "{}: '{name}' is {:?}, the network needs {shape:?}",
            self.path.display(),
            stored.shape
        );
        let bytes = (stored.read)().with_context(|| format!("{}: '{name}'", self.path.display()))?;
        let values = floats(&bytes, stored.dtype)
            .with_context(|| format!("{}: '{name}' has numbers of kind {:?}", self.path.display(), stored.dtype))?;
        ensure!(
            values.len() == shape.iter().product::<usize>(),
            "{}: '{name}' has {} values for {shape:?}",
            self.path.display(),
            values.len()
        );
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            bail!("{}: '{name}' holds {value}", self.path.display());
        }
        self.used.borrow_mut().insert(name.to_owned());
        Ok(values)
    }

    /// Names that nothing has read and that no entry of `skips` covers. A skip that ends in a dot is a prefix, one that
    /// starts with a dot is a suffix.
    pub fn unused(&self, skips: &[&str]) -> Vec<String> {
        let used = self.used.borrow();
        let skipped = |name: &str| {
            let covers = |skip: &str| match (skip.starts_with('.'), skip.ends_with('.')) {
                (true, _) => name.ends_with(skip),
                (_, true) => name.starts_with(skip),
                _ => name == skip,
            };
            skips.iter().any(|skip| covers(skip))
        };
        self.tensors.keys().filter(|name| !used.contains(*name) && !skipped(name)).cloned().collect()
    }
}

type Opened = (BTreeMap<String, Stored>, Vec<String>);

fn open_pytorch(path: &Path) -> anyhow::Result<Opened> {
    let reader = match PytorchReader::with_top_level_key(path, STATE) {
        Err(PytorchError::KeyNotFound(_)) => PytorchReader::new(path)?,
        opened => opened?,
    };
    let others = match PytorchReader::read_pickle_data(path, None)? {
        PickleValue::Dict(entries) if entries.contains_key(STATE) => {
            let mut others: Vec<String> =
                entries.iter().filter(|(name, _)| *name != STATE).map(|(name, value)| other(name, value)).collect();
            others.sort();
            others
        }
        _ => Vec::new(),
    };
    let tensors = reader
        .into_tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let (_, dtype, shape, read) = tensor.into_parts();
            (name, Stored { shape, dtype, read: Box::new(read) })
        })
        .collect();
    Ok((tensors, others))
}

fn other(name: &str, value: &PickleValue) -> String {
    let kind = match value {
        PickleValue::Unsupported(kind) => kind.clone(),
        PickleValue::Dict(entries) => format!("dict of {}", entries.len()),
        PickleValue::List(entries) => format!("list of {}", entries.len()),
        value => format!("{value:?}").chars().take(40).collect(),
    };
    format!("{name} ({kind})")
}

fn open_safetensors(path: &Path, mut file: File) -> anyhow::Result<Opened> {
    let length = file.metadata()?.len();
    let mut prefix = [0u8; 8];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut prefix).context("neither a PyTorch file nor safetensors: too short")?;
    let header = u64::from_le_bytes(prefix);
    ensure!(
        header <= HEADER_LIMIT && header + 8 <= length,
        "neither a PyTorch file nor safetensors: a header of {header} bytes in a file of {length}"
    );
    let mut text = Vec::new();
    file.take(header).read_to_end(&mut text)?;
    let metadata: Metadata = serde_json::from_slice(&text).context("neither a PyTorch file nor safetensors")?;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        ensure!(from <= to, "'{name}' ends before it begins");
        let (from, bytes) = (header + 8 + from as u64, (to - from) as u64);
        ensure!(from + bytes <= length, "'{name}' lies beyond the end of the file");
        let path = path.to_path_buf();
        let read = move || {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut data = Vec::new();
            file.take(bytes).read_to_end(&mut data)?;
            Ok(data)
        };
        let dtype = match info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => DType::I64,
        };
        tensors.insert(name, Stored { shape: info.shape.clone(), dtype, read: Box::new(read) });
    }
    Ok((tensors, Vec::new()))
}

fn floats(bytes: &[u8], dtype: DType) -> Option<Vec<f32>> {
    Some(match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return None,
    })
}
