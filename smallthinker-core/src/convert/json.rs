//! JSON files of a checkpoint: bounded reads, and typed fields whose errors name the file and the field.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// One JSON object of a file.
pub(super) struct Object {
    pub(super) path: PathBuf,
    pub(super) map: Map<String, Value>,
}

impl Object {
    /// Reads a file of at most `max` bytes that holds one object.
    pub(super) fn read(path: &Path, max: u64) -> Result<Object> {
        match parse(path, &read_bounded(path, max)?)? {
            Value::Object(map) => Ok(Object { path: path.to_owned(), map }),
            other => Err(Error::malformed(path, "document", short(&other), "a JSON object")),
        }
    }

    /// The value of a field; `None` if it is absent or null.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// An integer of at least `min`.
    pub(super) fn u32(&self, field: &str, min: u32) -> Result<u32> {
        let value = self.get(field);
        let number = value.and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).filter(|&n| n >= min);
        number.ok_or_else(|| self.wrong(field, value, format!("an integer from {min} to {}", u32::MAX)))
    }

    /// A finite number above zero.
    pub(super) fn positive_f32(&self, field: &str) -> Result<f32> {
        let value = self.get(field);
        let number = value.and_then(Value::as_f64).map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| self.wrong(field, value, "a positive number".into()))
    }

    /// A bool, or `default` if the field is absent.
    pub(super) fn bool_or(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            other => Err(self.wrong(field, other, "true or false".into())),
        }
    }

    /// A list of zeros and ones, `None` if the field is absent.
    pub(super) fn layout(&self, field: &str, len: usize) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let flag = |v: &Value| match v {
            Value::Bool(b) => Some(*b),
            v => v.as_u64().filter(|&n| n <= 1).map(|n| n == 1),
        };
        let flags: Option<Vec<bool>> = value.as_array().and_then(|list| list.iter().map(flag).collect());
        match flags {
            Some(flags) if flags.len() == len => Ok(Some(flags)),
            _ => Err(self.wrong(field, Some(value), format!("{len} numbers, each 0 or 1"))),
        }
    }

    /// The error for a field of the wrong value.
    pub(super) fn wrong(&self, field: &str, found: Option<&Value>, allowed: String) -> Error {
        let found = found.map_or("nothing".to_owned(), short);
        Error::malformed(&self.path, field, found, allowed)
    }

    /// The error for a field whose value is legal but cannot be converted.
    pub(super) fn refuse(&self, field: &str, found: Option<&Value>, supported: &str) -> Error {
        let found = found.map_or("nothing".to_owned(), short);
        Error::unsupported(&self.path, field, found, supported)
    }
}

/// A value for a message, cut short.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(120) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// Parses JSON, naming the file in errors.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::malformed(path, "document", e, "JSON"))
}

/// The content of a file of at most `max` bytes.
pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > max {
        return Err(Error::malformed(path, "file size", "more", format!("at most {max} bytes")));
    }
    Ok(bytes)
}
