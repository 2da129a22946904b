//! GGUF files: opening, metadata, tensor directory, positional reads of tensor data, and writing.
//!
//! Versions 2 and 3, little-endian, as a single file or as shards. A file is taken for hostile: every count,
//! length, dimension, offset and alignment is checked against the size of the file before anything is
//! allocated for it, and every refusal names the field. Opening reads the header only, never the weights.
//!
//! File order: `cursor` (bounded reads) → `value` (metadata values) → `tensor_info` (directory) →
//! `header` (one file) → this file (shards) → `getters` (typed access);
//! `writer` goes the other way.

mod cursor;
mod direct;
mod getters;
mod header;
mod shards;
mod source;
mod strings;
mod tensor_info;
mod value;
mod writer;

#[cfg(test)]
mod malformed;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use direct::ALIGN as READ_ALIGN;
pub(crate) use header::ALIGNMENT_KEY;
#[cfg(test)]
pub(crate) use source::Double;
pub use source::Source;
pub(crate) use source::{ReadBuffer, Reads};
pub use strings::Strings;
pub use tensor_info::TensorInfo;
pub use value::{Array, Value};
pub use writer::{GgufWriter, TensorStream};

use crate::error::{Error, Result};
use header::{Header, Metadata};
use shards::ShardName;

/// An open GGUF model: its metadata, its tensor directory, and its files for reading tensor data.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    source: Arc<Source>,
}

impl Gguf {
    /// Opens a single file, or all shards of a split model given the path of any of them.
    ///
    /// Metadata is that of the first shard, tensors are those of all shards in order.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be opened or read, [`Error::Malformed`] or [`Error::Unsupported`],
    /// naming the field, for what the header holds.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        let path = path.as_ref();
        let opened = Gguf::from_source(Source::open(path)?)?;
        let name = ShardName::parse(path);
        let in_metadata = opened.get_u32("split.count")?.unwrap_or(1);
        let in_name = name.as_ref().map_or(1, |n| n.count);
        if in_metadata.max(1) != in_name {
            let found = format!("{in_metadata} in a file named {:?}", path.file_name().unwrap_or_default());
            let allowed = "the count in a name of the form NAME-00001-of-00003.gguf";
            return Err(Error::malformed(path, "split.count", found, allowed));
        }
        match name {
            Some(name) if name.count > 1 => Gguf::join(path, &name, opened),
            _ => Ok(opened),
        }
    }

    /// Parses a single file held in memory; errors call it `<memory>`. For tests and fuzzing.
    #[doc(hidden)]
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf> {
        Gguf::from_source(Source::from_bytes(Path::new("<memory>"), bytes))
    }

    fn from_source(source: Source) -> Result<Gguf> {
        let Header { version, metadata, tensors } = header::parse(&source)?;
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let path = source.path(0).to_owned();
        Ok(Gguf { path, version, metadata, tensors, index, source: Arc::new(source) })
    }

    /// Joins the shards beside `path`, one of which, `name`, is open already.
    fn join(path: &Path, name: &ShardName, opened: Gguf) -> Result<Gguf> {
        let mut opened = Some(opened);
        let mut shard = |number: u32| -> Result<Gguf> {
            let part = match opened.take_if(|_| number == name.number) {
                Some(part) => part,
                None => Gguf::from_source(Source::open(&name.sibling(path, number))?)?,
            };
            part.expect_u32("split.no", number - 1)?;
            part.expect_u32("split.count", name.count)?;
            Ok(part)
        };
        let first = shard(1)?;
        let Gguf { path, version, metadata, mut tensors, mut index, source } = first;
        let mut source = own(source)?;
        for number in 2..=name.count {
            let part = shard(number)?;
            for mut tensor in part.tensors {
                tensor.shard = number as usize - 1;
                if index.insert(tensor.name.clone(), tensors.len()).is_some() {
                    return Err(Error::malformed(
                        &part.path,
                        tensor.name,
                        "the tensor in two shards",
                        "each name once",
                    ));
                }
                tensors.push(tensor);
            }
            source.append(own(part.source)?);
        }
        let joined = Gguf { path, version, metadata, tensors, index, source: Arc::new(source) };
        if joined.get("split.tensors.count").is_some() {
            joined
                .expect_u32("split.tensors.count", u32::try_from(joined.tensors.len()).unwrap_or(u32::MAX))?;
        }
        Ok(joined)
    }

    fn expect_u32(&self, key: &str, expected: u32) -> Result<()> {
        match self.require_u32(key)? {
            found if found == expected => Ok(()),
            found => Err(Error::malformed(&self.path, key, found, expected.to_string())),
        }
    }

    /// The file, or the first shard.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Format version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.source.total_len()
    }

    /// Keys and values in file order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of a key. The typed getters below check its type too.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The tensor directory, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&i| self.tensors.get(i))
    }

    /// Forgets the value of a key, and with it its memory.
    pub(crate) fn forget(&mut self, key: &str) {
        self.metadata.remove(key);
    }

    /// The same model, read from another source.
    #[cfg(test)]
    pub(crate) fn with_source(self, source: Source) -> Gguf {
        Gguf { source: Arc::new(source), ..self }
    }

    /// The open files, for reading tensor data.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }
}

/// The source of a file that nobody else has seen yet.
fn own(source: Arc<Source>) -> Result<Source> {
    Arc::try_unwrap(source).map_err(|_| Error::Internal { message: "source shared while opening".into() })
}
