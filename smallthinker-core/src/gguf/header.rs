//! The head of one GGUF file: magic, version, metadata, tensor directory.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::source::Source;
use super::tensor_info::{self, TensorInfo};
use super::value::Value;
use crate::error::Result;

const MAGIC: [u8; 4] = *b"GGUF";
/// Longest key, in bytes, as the format's specification has it.
const MAX_KEY: u64 = 65_535;
/// Alignment of tensor data where the file does not say.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// The metadata key that says.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// Smallest metadata entry: key length, one key byte, type, one byte of value.
const MIN_ENTRY: u64 = 8 + 1 + 4 + 1;
/// Smallest directory entry: name length, one name byte, dimension count, one dimension, type, offset.
const MIN_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// Metadata in file order, with an index by key.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    pub(super) entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).and_then(|&i| self.entries.get(i)).map(|(_, v)| v)
    }

    /// Forgets an entry.
    pub(super) fn remove(&mut self, key: &str) {
        if let Some(at) = self.index.remove(key) {
            self.entries.remove(at);
            self.index.values_mut().filter(|i| **i > at).for_each(|i| *i -= 1);
        }
    }

    /// Appends an entry; false if the key is there already.
    fn insert(&mut self, key: String, value: Value) -> bool {
        if self.index.contains_key(&key) {
            return false;
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        true
    }
}

pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Parses the head of the source's only file. Reads no tensor data.
pub(super) fn parse(source: &Source) -> Result<Header> {
    let mut cursor = Cursor::new(source);
    let magic: [u8; 4] = cursor.array("magic")?;
    if magic != MAGIC {
        return Err(cursor.malformed("magic", format!("{:?}", magic.escape_ascii().to_string()), "\"GGUF\""));
    }
    let version = read_version(&mut cursor)?;
    let n_tensors = cursor.u64("tensor_count")?;
    let n_entries = cursor.u64("metadata_kv_count")?;
    let n_entries = cursor.check_count("metadata_kv_count", n_entries, MIN_ENTRY, u64::MAX)?;
    cursor.check_count("tensor_count", n_tensors, MIN_TENSOR, u64::MAX)?;

    let mut metadata = Metadata::default();
    for i in 0..n_entries {
        let key = cursor.string(&format!("metadata key {i}"), MAX_KEY)?;
        if key.is_empty() {
            return Err(cursor.malformed(&format!("metadata key {i}"), "an empty key", "1 to 65535 bytes"));
        }
        let type_id = cursor.u32(&key)?;
        let value = Value::read(&mut cursor, &key, type_id)?;
        if !metadata.insert(key.clone(), value) {
            return Err(cursor.malformed(&key, "the key twice", "each key once"));
        }
    }
    let alignment = alignment(&cursor, &metadata)?;

    // The metadata has used up bytes: check the count again against what is left.
    let n_tensors = cursor.check_count("tensor_count", n_tensors, MIN_TENSOR, u64::MAX)?;
    let tensors = tensor_info::read_directory(&mut cursor, n_tensors, alignment)?;
    Ok(Header { version, metadata, tensors })
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => Ok(version),
        v if (1..=3).contains(&v.swap_bytes()) => Err(cursor.unsupported(
            "version",
            format!("{} in big-endian byte order", v.swap_bytes()),
            "2 and 3, little-endian",
        )),
        v => Err(cursor.unsupported("version", v, "2 and 3")),
    }
}

fn alignment(cursor: &Cursor<'_>, metadata: &Metadata) -> Result<u64> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(a)) if a.is_power_of_two() => Ok(u64::from(*a)),
        Some(other) => Err(cursor.malformed(ALIGNMENT_KEY, other, "u32, a power of two")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_is_gone_and_the_rest_stays() {
        let mut metadata = Metadata::default();
        for (i, key) in ["a", "b", "c"].into_iter().enumerate() {
            assert!(metadata.insert(key.to_owned(), Value::U32(i as u32)));
        }
        metadata.remove("b");
        metadata.remove("nowhere");
        assert_eq!(
            ["a", "b", "c"].map(|k| metadata.get(k).cloned()),
            [Some(Value::U32(0)), None, Some(Value::U32(2))]
        );
        assert_eq!(metadata.entries.len(), 2);
        assert!(metadata.insert("b".to_owned(), Value::U32(3)));
        assert_eq!(metadata.get("b"), Some(&Value::U32(3)));
    }
}
