//! Tensors in the safetensors format, and their way into a burn module and out of it.
//!
//! The format: 8 bytes little-endian header length, the header as JSON (dtype, shape and byte range by tensor name),
//! then the data. Nothing in a header is believed before it has been compared with the length of the file.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::store::{ApplyError, FloatCastAdapter, ModuleSnapshot, ModuleStore, SafetensorsStore};
use burn::tensor::{Bool, DType, Int, Tensor};
use half::f16;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};

use super::error::BundleError;
use super::manifest::NumberFormat;
use super::{FILE_LIMIT, Hashed, io, open_limited};

/// Bytes before the header.
const PREFIX: u64 = 8;
/// Key of the text beside the tensors.
const NOTE: &str = "dsad";
/// A thousand tensors need about 100 KiB. A lie about the length must not cost more memory than that.
const HEADER_LIMIT: u64 = 1 << 20;
/// Bytes that are looked at together; whole numbers of both formats.
const PIECE: usize = 1 << 16;

impl From<NumberFormat> for DType {
    fn from(format: NumberFormat) -> Self {
        match format {
            NumberFormat::F16 => DType::F16,
            NumberFormat::F32 => DType::F32,
        }
    }
}

/// One tensor, converted to f32.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    /// Number format in the file.
    pub dtype: NumberFormat,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// A safetensors file in memory whose header is true and whose values are finite.
#[derive(Debug, Clone)]
pub struct TensorFile {
    bytes: Vec<u8>,
    path: PathBuf,
}

impl TensorFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// As [`Self::from_bytes`]; the header is checked before the data is read.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        open_header(path)?;
        Self::from_bytes(super::read_limited(path, FILE_LIMIT)?, path)
    }

    /// Checks the content of a file; `path` is only named in errors.
    ///
    /// # Errors
    /// A header that does not fit the data, a number format other than f16 and f32, or a value that is not finite.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self, BundleError> {
        let length = bytes.len() as u64;
        let prefix = bytes.first_chunk().copied().unwrap_or_default();
        let end = PREFIX + header_length(prefix, length, path)?;
        check_metadata(&bytes[PREFIX as usize..end as usize], length - end, path)?;
        let file = Self { bytes, path: path.into() };
        file.check_finite()?;
        Ok(file)
    }

    /// All tensors by name, as f32.
    ///
    /// # Errors
    /// None after the checks of [`Self::from_bytes`]; the parser's answer is passed on all the same.
    pub fn entries(&self) -> Result<BTreeMap<String, TensorEntry>, BundleError> {
        let mut entries = BTreeMap::new();
        for (name, view) in self.parsed()?.iter() {
            let dtype = number_format(view.dtype()).ok_or_else(|| unknown_dtype(&self.path, name, view.dtype()))?;
            let values = values(dtype, view.data()).collect();
            entries.insert(name.to_string(), TensorEntry { dtype, shape: view.shape().to_vec(), values });
        }
        Ok(entries)
    }

    /// What [`encode_parts`] wrote beside the tensors.
    pub fn note(&self) -> Option<String> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).ok()?;
        metadata.metadata().as_ref()?.get(NOTE).cloned()
    }

    /// The file without the tensors of one field.
    ///
    /// # Errors
    /// None after the checks of [`Self::from_bytes`]; the parser's answer is passed on all the same.
    pub fn without(&self, field: &str) -> Result<Self, BundleError> {
        let parsed = self.parsed()?;
        let kept = parsed.iter().filter(|(name, _)| name.split('.').next() != Some(field));
        let bytes = safetensors::serialize(kept, None).map_err(|error| header_error(&self.path, error))?;
        Ok(Self { bytes, path: self.path.clone() })
    }

    /// Fills a fresh module with the tensors, cast to `dtype`.
    ///
    /// # Errors
    /// Tensors that the module needs and the file lacks, that the file has and the module does not know, or of
    /// another shape. The module is consumed: a half-loaded one never leaves this function.
    pub fn load_into<M: Module>(self, module: M, dtype: NumberFormat) -> Result<M, BundleError> {
        let Self { bytes, path } = self;
        load(memory(bytes, dtype), module, &path)
    }

    /// Puts the tensors, cast to `dtype`, over those of a module; what the file lacks stays as it is.
    ///
    /// # Errors
    /// As [`Self::load_into`], but for what the file lacks.
    pub fn load_over<M: Module>(self, module: M, dtype: NumberFormat) -> Result<M, BundleError> {
        let Self { bytes, path } = self;
        Ok(apply(memory(bytes, dtype), module, &path)?.0)
    }

    /// A file that was checked before.
    pub(super) fn checked(bytes: Vec<u8>, path: &Path) -> Self {
        Self { bytes, path: path.into() }
    }

    fn parsed(&self) -> Result<SafeTensors<'_>, BundleError> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| header_error(&self.path, error))
    }

    fn check_finite(&self) -> Result<(), BundleError> {
        let parsed = self.parsed()?;
        let mut tensors: Vec<_> = parsed.iter().collect();
        // By name, so that one file always gives one message.
        tensors.sort_by_key(|(name, _)| *name);
        for (name, view) in tensors {
            let dtype = number_format(view.dtype()).ok_or_else(|| unknown_dtype(&self.path, name, view.dtype()))?;
            let wrong = values(dtype, view.data()).enumerate().find(|(_, value)| !value.is_finite());
            if let Some((index, value)) = wrong {
                return Err(BundleError::NotFinite { path: self.path.clone(), tensor: name.into(), index, value });
            }
        }
        Ok(())
    }
}

/// Fills a fresh module with the tensors of a file of any size, in the number format that they have there: for models on a
/// workstation. Unlike [`TensorFile`], it does not look for values that are not finite.
///
/// # Errors
/// A file that cannot be read, and as [`TensorFile::load_into`].
pub fn load_file<M: Module>(path: &Path, module: M) -> Result<M, BundleError> {
    load(SafetensorsStore::from_file(path), module, path)
}

fn memory(bytes: Vec<u8>, dtype: NumberFormat) -> SafetensorsStore {
    SafetensorsStore::from_bytes(Some(bytes)).with_from_adapter(FloatCastAdapter::to(dtype.into()))
}

fn load<M: Module>(store: SafetensorsStore, module: M, path: &Path) -> Result<M, BundleError> {
    let (module, missing) = apply(store, module, path)?;
    if missing.is_empty() {
        Ok(module)
    } else {
        Err(BundleError::TensorsMissing { path: path.into(), tensors: missing })
    }
}

/// The module with the tensors of a store, and the names of those that the store lacks.
fn apply<M: Module>(store: SafetensorsStore, mut module: M, path: &Path) -> Result<(M, Vec<String>), BundleError> {
    let path = path.to_path_buf();
    // Without validation the store reports instead of refusing, and the report is judged below: the store itself lets
    // unused tensors pass.
    let mut store = store.validate(false).allow_partial(true);
    let report = module
        .load_from(&mut store)
        .map_err(|error| BundleError::TensorHeader { path: path.clone(), reason: error.to_string() })?;
    if let Some(error) = report.errors.first() {
        let (tensor, reason) = match error {
            ApplyError::ShapeMismatch { path, expected, found } => {
                (path, format!("shape is {:?}, the network needs {:?}", found.as_slice(), expected.as_slice()))
            }
            ApplyError::DTypeMismatch { path, expected, found } => {
                (path, format!("number format is {found:?}, the network needs {expected:?}"))
            }
            ApplyError::AdapterError { path, message } | ApplyError::LoadError { path, message } => {
                (path, message.clone())
            }
        };
        return Err(BundleError::TensorMismatch { path, tensor: tensor.clone(), reason });
    }
    if !report.unused.is_empty() {
        return Err(BundleError::TensorsUnused { path, tensors: report.unused });
    }
    Ok((module, report.missing.into_iter().map(|(name, _)| name).collect()))
}

/// Encodes all tensors of a module as a safetensors file, cast to `dtype`; `path` is only named in errors.
///
/// The bytes depend on the tensors alone: the same weights give the same hash.
///
/// # Errors
/// A value that is not finite, or becomes infinite in f16.
pub fn encode_module<M: Module>(module: &M, dtype: NumberFormat, path: &Path) -> Result<Vec<u8>, BundleError> {
    encode(SafetensorsStore::from_bytes(None).clear_metadata(), module, dtype, path)
}

/// As [`encode_module`], the named fields of a module alone, with a text beside the tensors.
///
/// # Errors
/// As [`encode_module`].
pub fn encode_parts<M: Module>(
    module: &M,
    parts: &[&str],
    note: &str,
    dtype: NumberFormat,
    path: &Path,
) -> Result<Vec<u8>, BundleError> {
    let store = SafetensorsStore::from_bytes(None).with_regexes(parts.iter().map(|part| format!("^{part}\\.")));
    // One key only: the order of several would be another one in every run.
    encode(store.clear_metadata().metadata(NOTE, note), module, dtype, path)
}

fn encode<M: Module>(
    store: SafetensorsStore,
    module: &M,
    dtype: NumberFormat,
    path: &Path,
) -> Result<Vec<u8>, BundleError> {
    let mut store = store.with_to_adapter(FloatCastAdapter::to(dtype.into()));
    let encode = |error: burn::store::SafetensorsStoreError| BundleError::Encode {
        path: path.into(),
        reason: error.to_string(),
    };
    store.collect_from(module).map_err(encode)?;
    let bytes = store.get_bytes().map_err(encode)?;
    TensorFile::from_bytes(bytes, path).map(|file| file.bytes)
}

/// Encodes one f32 tensor as a safetensors file; `path` is only named in errors.
///
/// # Errors
/// Values that do not fill the shape, or are not finite.
pub fn encode_tensor(name: &str, shape: &[usize], values: &[f32], path: &Path) -> Result<Vec<u8>, BundleError> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let encode =
        |error: safetensors::SafeTensorError| BundleError::Encode { path: path.into(), reason: error.to_string() };
    let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), &data).map_err(encode)?;
    let bytes = safetensors::serialize([(name, view)], None).map_err(encode)?;
    TensorFile::from_bytes(bytes, path).map(|file| file.bytes)
}

/// Checks a file in pieces: its header against its length, then every value. It must not need the memory of the weights.
pub(super) fn check(file: &mut Hashed, path: &Path) -> Result<(), BundleError> {
    let metadata = read_header(file, file.length, path)?;
    let mut piece = vec![0; PIECE];
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let dtype = number_format(info.dtype).ok_or_else(|| unknown_dtype(path, &name, info.dtype))?;
        let (mut left, mut before) = (info.data_offsets.1 - info.data_offsets.0, 0);
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE)];
            file.read_exact(piece).map_err(|source| io(path, "read", source))?;
            if let Some((index, value)) = values(dtype, piece).enumerate().find(|(_, value)| !value.is_finite()) {
                return Err(BundleError::NotFinite { path: path.into(), tensor: name, index: before + index, value });
            }
            left -= piece.len();
            before += values(dtype, piece).count();
        }
    }
    Ok(())
}

/// Whether the tensors of a file are those of a module, from its header alone.
///
/// # Errors
/// A header that is wrong; tensors of another shape, unused or missing.
pub fn check_fit<M: Module>(path: &Path, module: &M) -> Result<(), BundleError> {
    let metadata = open_header(path)?;
    let mut needed = Shapes::default();
    module.visit(&mut needed);
    let found = metadata.tensors();
    for (tensor, expected) in &needed.all {
        let Some(info) = found.get(tensor).filter(|info| info.shape != *expected) else { continue };
        let reason = format!("shape is {:?}, the network needs {expected:?}", info.shape);
        return Err(BundleError::TensorMismatch { path: path.into(), tensor: tensor.clone(), reason });
    }
    let mut tensors: Vec<String> = found.keys().filter(|name| !needed.all.contains_key(*name)).cloned().collect();
    if !tensors.is_empty() {
        tensors.sort();
        return Err(BundleError::TensorsUnused { path: path.into(), tensors });
    }
    let tensors: Vec<String> = needed.all.into_keys().filter(|name| !found.contains_key(name)).collect();
    if tensors.is_empty() { Ok(()) } else { Err(BundleError::TensorsMissing { path: path.into(), tensors }) }
}

/// The shapes of a module's tensors by their names in a file. None of them is made.
#[derive(Default)]
struct Shapes {
    path: Vec<String>,
    all: BTreeMap<String, Vec<usize>>,
}

impl Shapes {
    fn add(&mut self, shape: impl Iterator<Item = usize>) {
        self.all.insert(self.path.join("."), shape.collect());
    }
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.add(param.lazy_shape().iter().copied());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.add(param.lazy_shape().iter().copied());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.add(param.lazy_shape().iter().copied());
    }
}

/// The header of a file, checked against the file's length.
fn open_header(path: &Path) -> Result<Metadata, BundleError> {
    let (mut file, length) = open_limited(path, FILE_LIMIT)?;
    read_header(&mut file, length, path)
}

/// The header of a file of a length, checked against it; the data is what is read next.
fn read_header(from: &mut impl Read, length: u64, path: &Path) -> Result<Metadata, BundleError> {
    let mut read = |buffer: &mut [u8]| from.read_exact(buffer).map_err(|source| io(path, "read", source));
    let mut prefix = [0; PREFIX as usize];
    if length >= PREFIX {
        read(&mut prefix)?;
    }
    let header = header_length(prefix, length, path)?;
    let mut buffer = vec![0; header as usize];
    read(&mut buffer)?;
    check_metadata(&buffer, length - PREFIX - header, path)
}

/// The header length, if the file can hold it.
fn header_length(prefix: [u8; PREFIX as usize], file: u64, path: &Path) -> Result<u64, BundleError> {
    let error = |reason: String| Err(BundleError::TensorHeader { path: path.into(), reason });
    if file < PREFIX {
        return error(format!("the file has {file} bytes, at least {PREFIX} are needed"));
    }
    let header = u64::from_le_bytes(prefix);
    if header > file - PREFIX {
        return error(format!("its length is given as {header}, but only {} bytes follow", file - PREFIX));
    }
    if header > HEADER_LIMIT {
        return error(format!("its length is {header}, at most {HEADER_LIMIT} are allowed"));
    }
    Ok(header)
}

/// Byte ranges without gaps that fill the data exactly, shapes that fill their ranges, and known number formats.
fn check_metadata(header: &[u8], data: u64, path: &Path) -> Result<Metadata, BundleError> {
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| BundleError::TensorHeader { path: path.into(), reason: error.to_string() })?;
    let tensors: BTreeMap<_, _> = metadata.tensors().into_iter().collect();
    for (name, info) in &tensors {
        if number_format(info.dtype).is_none() {
            return Err(unknown_dtype(path, name, info.dtype));
        }
    }
    let end = tensors.values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
    if end != data {
        let reason = format!("the tensors end at byte {end} of the data, which has {data} bytes");
        return Err(BundleError::TensorHeader { path: path.into(), reason });
    }
    Ok(metadata)
}

fn header_error(path: &Path, error: safetensors::SafeTensorError) -> BundleError {
    BundleError::TensorHeader { path: path.into(), reason: error.to_string() }
}

fn unknown_dtype(path: &Path, tensor: &str, dtype: Dtype) -> BundleError {
    let reason = format!("tensor '{tensor}': number format is {dtype:?}, only F16 and F32 are allowed");
    BundleError::TensorHeader { path: path.into(), reason }
}

fn number_format(dtype: Dtype) -> Option<NumberFormat> {
    match dtype {
        Dtype::F16 => Some(NumberFormat::F16),
        Dtype::F32 => Some(NumberFormat::F32),
        _ => None,
    }
}

fn values(dtype: NumberFormat, data: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let size = match dtype {
        NumberFormat::F16 => 2,
        NumberFormat::F32 => 4,
    };
    data.chunks_exact(size).map(move |chunk| match *chunk {
        [a, b] => f16::from_le_bytes([a, b]).to_f32(),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("chunks of 2 or 4 bytes"),
    })
}
