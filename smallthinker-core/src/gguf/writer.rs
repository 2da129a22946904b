//! Writes GGUF version 3 files: metadata and tensor directory first, then tensor data streamed in order. The
//! file appears under its name only when it is complete.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::header::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT};
use super::value::{Array, Value};
use crate::error::{Error, Result};
use crate::tensor::DType;

const VERSION: u32 = 3;

/// Collects the metadata and the tensor directory of a file to be written.
///
/// ```no_run
/// use smallthinker_core::gguf::{GgufWriter, Value};
/// use smallthinker_core::tensor::DType;
///
/// let mut writer = GgufWriter::new();
/// writer.metadata("general.architecture", Value::String("smallthinker".into()))?;
/// writer.tensor("output_norm.weight", DType::F32, &[2])?;
/// let mut data = writer.create("out.gguf".as_ref())?;
/// data.write(&[0; 8])?;
/// data.finish()?;
/// # Ok::<(), smallthinker_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Declared>,
    names: HashSet<String>,
}

#[derive(Debug)]
struct Declared {
    name: String,
    dtype: DType,
    dims: Vec<u64>,
    n_bytes: u64,
}

impl GgufWriter {
    /// A file with neither metadata nor tensors.
    pub fn new() -> Self {
        GgufWriter::default()
    }

    /// Adds a metadata entry. Keys keep their order. `general.alignment` is what tensor data will be aligned to.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the key is empty or there already, or for an alignment that is no `u32` power of two.
    pub fn metadata(&mut self, key: &str, value: Value) -> Result<()> {
        if key.is_empty() || self.metadata.iter().any(|(k, _)| k == key) {
            return Err(Error::argument("key", format!("{key:?}"), "each key once, none empty"));
        }
        if key == ALIGNMENT_KEY && !matches!(value, Value::U32(a) if a.is_power_of_two()) {
            return Err(Error::argument(ALIGNMENT_KEY, value, "u32, a power of two"));
        }
        self.metadata.push((key.to_owned(), value));
        Ok(())
    }

    /// Declares the next tensor; `dims[0]` is the length of a row. Data follows in the order of declaration.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the name is empty or there already, or if the shape is not one to four
    /// non-zero sizes with rows of whole blocks.
    pub fn tensor(&mut self, name: &str, dtype: DType, dims: &[u64]) -> Result<()> {
        if name.is_empty() || !self.names.insert(name.to_owned()) {
            return Err(Error::argument("name", format!("{name:?}"), "each tensor name once, none empty"));
        }
        let found = || format!("{dims:?} for tensor {name} of type {dtype}");
        if !(1..=4).contains(&dims.len()) {
            return Err(Error::argument("dims", found(), "one to four dimensions"));
        }
        let n_bytes = super::tensor_info::checked_bytes(dims, dtype)
            .map_err(|allowed| Error::argument("dims", found(), allowed))?;
        self.tensors.push(Declared { name: name.to_owned(), dtype, dims: dims.to_vec(), n_bytes });
        Ok(())
    }

    fn alignment(&self) -> u64 {
        let declared = self.metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY);
        match declared {
            Some((_, Value::U32(alignment))) => u64::from(*alignment),
            _ => DEFAULT_ALIGNMENT,
        }
    }

    /// Bytes of data of all tensors declared so far, without padding.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, t| sum.saturating_add(t.n_bytes))
    }

    /// Writes the header to a temporary file beside `path` and returns the stream for the tensor data.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written.
    pub fn create(self, path: &Path) -> Result<TensorStream> {
        let (header, alignment) = (self.header()?, self.alignment());
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let file = temporary(folder).map_err(|e| Error::io(path, "create a temporary file beside", e))?;
        let sizes = self.tensors.into_iter().map(|t| t.n_bytes).collect();
        let mut stream = TensorStream {
            path: path.to_owned(),
            folder: folder.to_owned(),
            out: BufWriter::with_capacity(1 << 20, file),
            alignment,
            sizes,
            current: 0,
            written: 0,
        };
        stream.put(&header)?;
        stream.pad(header.len() as u64)?;
        Ok(stream)
    }

    fn header(&self) -> Result<Vec<u8>> {
        let mut out = b"GGUF".to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            out.extend(value.type_id().to_le_bytes());
            put_value(&mut out, value);
        }
        let (mut offset, alignment) = (0u64, self.alignment());
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            put_numbers(&mut out, &tensor.dims, u64::to_le_bytes);
            out.extend(tensor.dtype.ggml_id().to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = offset
                .checked_add(tensor.n_bytes)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| Error::argument("tensors", "more than 2^64 bytes of data", "less"))?;
        }
        Ok(out)
    }
}

/// Receives the data of the declared tensors, in their order. Dropped before
/// [`finish`](TensorStream::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct TensorStream {
    path: PathBuf,
    folder: PathBuf,
    out: BufWriter<NamedTempFile>,
    alignment: u64,
    sizes: Vec<u64>,
    /// Index of the tensor that the next bytes belong to.
    current: usize,
    /// Bytes of it that are written.
    written: u64,
}

impl TensorStream {
    /// Appends bytes of the current tensor, which may come in any number of pieces. When it is complete, the
    /// next tensor is current.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the bytes reach beyond the tensor, [`Error::Io`] if writing fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let room = self.sizes.get(self.current).map_or(0, |size| size - self.written);
        if bytes.len() as u64 > room {
            let allowed = format!("at most {room}, what is left of tensor {}", self.current);
            return Err(Error::argument("bytes", format!("{} bytes", bytes.len()), allowed));
        }
        self.put(bytes)?;
        self.written += bytes.len() as u64;
        if bytes.len() as u64 == room && room > 0 {
            self.pad(self.written)?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Flushes everything to the disk and gives the file its name, replacing a file of that name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if tensor data is missing, [`Error::Io`] if the system refuses.
    pub fn finish(self) -> Result<()> {
        if self.current < self.sizes.len() {
            let found = format!("data of {} tensors", self.current);
            return Err(Error::argument("tensors", found, format!("data of all {}", self.sizes.len())));
        }
        let path = self.path;
        let file = self.out.into_inner().map_err(|e| Error::io(&path, "write", e.into_error()))?;
        file.as_file().sync_all().map_err(|e| Error::io(&path, "flush", e))?;
        file.persist(&path).map_err(|e| Error::io(&path, "rename the finished file to", e.error))?;
        // The name is durable once the folder is; not every system lets a folder be flushed.
        let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// Zeros after `len` bytes up to the next alignment boundary.
    fn pad(&mut self, len: u64) -> Result<()> {
        let n = len.next_multiple_of(self.alignment) - len;
        let mut zeros = std::io::repeat(0).take(n);
        std::io::copy(&mut zeros, &mut self.out).map_err(|e| Error::io(&self.path, "write", e))?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// A temporary file with the permissions of an ordinary new file: it is going to be one.
fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".gguf-").suffix(".partial");
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(permissions);
    builder.tempfile_in(folder)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_numbers<T: Copy, const N: usize>(out: &mut Vec<u8>, numbers: &[T], to_bytes: fn(T) -> [u8; N]) {
    out.extend(numbers.iter().flat_map(|&n| to_bytes(n)));
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.element_type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => put_numbers(out, v, i8::to_le_bytes),
        Array::U16(v) => put_numbers(out, v, u16::to_le_bytes),
        Array::I16(v) => put_numbers(out, v, i16::to_le_bytes),
        Array::U32(v) => put_numbers(out, v, u32::to_le_bytes),
        Array::I32(v) => put_numbers(out, v, i32::to_le_bytes),
        Array::F32(v) => put_numbers(out, v, f32::to_le_bytes),
        Array::Bool(v) => out.extend(v.iter().map(|&b| u8::from(b))),
        Array::String(v) => v.iter().for_each(|s| put_string(out, s)),
        Array::U64(v) => put_numbers(out, v, u64::to_le_bytes),
        Array::I64(v) => put_numbers(out, v, i64::to_le_bytes),
        Array::F64(v) => put_numbers(out, v, f64::to_le_bytes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Gguf;
    use super::*;

    /// Reading the Python package's file and writing it again must give the same bytes.
    #[test]
    fn rewrites_the_python_packages_file_byte_for_byte() {
        let golden = include_bytes!("testdata/golden.gguf");
        let read = Gguf::from_bytes(golden.to_vec()).unwrap();
        let mut writer = GgufWriter::new();
        for (key, value) in read.metadata() {
            writer.metadata(key, value.clone()).unwrap();
        }
        for t in read.tensors() {
            writer.tensor(&t.name, t.dtype, &t.dims).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("again.gguf");
        let mut data = writer.create(&path).unwrap();
        for t in read.tensors() {
            let bytes = &golden[t.offset as usize..(t.offset + t.n_bytes) as usize];
            let (head, tail) = bytes.split_at(bytes.len() / 3);
            data.write(head).unwrap();
            assert!(!path.exists(), "visible before it is complete");
            data.write(tail).unwrap();
        }
        data.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), golden);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file left");
    }

    #[test]
    fn wrong_use_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let mut writer = GgufWriter::new();
        writer.metadata("k", Value::U8(1)).unwrap();
        assert!(writer.metadata("k", Value::U8(2)).is_err());
        assert!(writer.metadata("", Value::U8(2)).is_err());
        for wrong in [Value::U32(0), Value::U32(33), Value::U64(64)] {
            assert!(writer.metadata("general.alignment", wrong).is_err());
        }
        writer.tensor("w", DType::Q4_0, &[32, 2]).unwrap();
        assert!(writer.tensor("w", DType::F32, &[1]).is_err());
        assert!(writer.tensor("v", DType::Q4_0, &[33]).is_err());
        assert!(writer.tensor("v2", DType::F32, &[]).is_err());
        assert!(writer.tensor("v3", DType::F32, &[1, 0]).is_err());
        assert_eq!(writer.data_bytes(), 36);
        let mut data = writer.create(&path).unwrap();
        assert!(data.write(&[0; 37]).is_err());
        data.write(&[0; 18]).unwrap();
        assert!(data.finish().unwrap_err().to_string().contains("data of all 1"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(GgufWriter::new().create(&dir.path().join("no/such/x.gguf")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_as_readable_as_any_other_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        let (ours, other) = (dir.path().join("a.gguf"), dir.path().join("b"));
        GgufWriter::new().create(&ours).unwrap().finish().unwrap();
        std::fs::write(&other, b"").unwrap();
        assert_eq!(mode(&ours), mode(&other));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<u64>().prop_map(Value::U64),
            any::<i16>().prop_map(Value::I16),
            any::<bool>().prop_map(Value::Bool),
            (-1e30f32..1e30).prop_map(Value::F32),
            any::<String>().prop_map(Value::String),
            prop::collection::vec(any::<String>(), 0..9)
                .prop_map(|v| Value::Array(Array::String(v.iter().collect()))),
            prop::collection::vec(any::<i32>(), 0..9).prop_map(|v| Value::Array(Array::I32(v))),
            prop::collection::vec(any::<u16>(), 0..9).prop_map(|v| Value::Array(Array::U16(v))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read_back(
            values in prop::collection::vec(any_value(), 0..8),
            shapes in prop::collection::vec(prop::collection::vec(1..6u64, 1..5), 0..6),
            log_alignment in 0..13u32,
        ) {
            let mut writer = GgufWriter::new();
            for (i, v) in values.iter().enumerate() {
                writer.metadata(&format!("k{i}"), v.clone()).unwrap();
            }
            let alignment = 1 << log_alignment;
            writer.metadata("general.alignment", Value::U32(alignment)).unwrap();
            for (i, dims) in shapes.iter().enumerate() {
                writer.tensor(&format!("t{i}"), DType::F16, dims).unwrap();
            }
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.gguf");
            let mut data = writer.create(&path).unwrap();
            for (i, dims) in shapes.iter().enumerate() {
                data.write(&vec![i as u8 + 1; dims.iter().product::<u64>() as usize * 2]).unwrap();
            }
            data.finish().unwrap();

            let read = Gguf::open(&path).unwrap();
            prop_assert!(read.metadata().map(|(_, v)| v).eq(values.iter().chain([&Value::U32(alignment)])));
            prop_assert_eq!(read.tensors().len(), shapes.len());
            for (i, (t, dims)) in read.tensors().iter().zip(&shapes).enumerate() {
                prop_assert_eq!(&t.dims, dims);
                prop_assert_eq!(t.offset % u64::from(alignment), 0);
                let mut bytes = vec![0; t.n_bytes as usize];
                read.source().read_exact_at(0, t.offset, &mut bytes).unwrap();
                prop_assert!(bytes.iter().all(|&b| b == i as u8 + 1));
            }
        }
    }
}
