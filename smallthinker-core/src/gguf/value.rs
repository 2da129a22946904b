//! Metadata values: the thirteen value types of GGUF, and how each is read.

use std::fmt;

use super::cursor::Cursor;
use super::strings::Strings;
use crate::error::Result;

/// Longest string value, in bytes. Real ones (chat templates) have tens of kilobytes.
const MAX_STRING: u64 = 64 << 20;
/// Longest array, in elements. Real ones (vocabularies) have hundreds of thousands.
const MAX_ARRAY: u64 = 64 << 20;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array. All elements have one type; arrays of arrays are refused when read.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Type number of arrays in a file.
pub(super) const ARRAY_TYPE: u32 = 9;
const TYPE_NAMES: [&str; 13] =
    ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];

/// Evaluates `$body` with `$v` bound to the number inside, for the integer variants; `None` for the others.
macro_rules! for_integers {
    ($kind:ident, $value:expr, $v:ident => $body:expr) => {
        match $value {
            $kind::U8($v) => Some($body),
            $kind::I8($v) => Some($body),
            $kind::U16($v) => Some($body),
            $kind::I16($v) => Some($body),
            $kind::U32($v) => Some($body),
            $kind::I32($v) => Some($body),
            $kind::U64($v) => Some($body),
            $kind::I64($v) => Some($body),
            _ => None,
        }
    };
}

impl Value {
    /// Type number of this value in a file.
    pub fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::String(_) => 8,
            Value::Array(_) => ARRAY_TYPE,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// The number, if this is an integer of any width.
    pub fn as_integer(&self) -> Option<i128> {
        for_integers!(Value, self, v => i128::from(*v))
    }

    /// The number, if this is a float of either width.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::F32(v) => Some(f64::from(*v)),
            Value::F64(v) => Some(*v),
            _ => None,
        }
    }

    /// Reads a value of type number `type_id` for the metadata key `key`.
    pub(super) fn read(cursor: &mut Cursor<'_>, key: &str, type_id: u32) -> Result<Value> {
        Ok(match type_id {
            0 => Value::U8(cursor.u8(key)?),
            1 => Value::I8(i8::from_le_bytes(cursor.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(cursor.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(cursor.array(key)?)),
            4 => Value::U32(cursor.u32(key)?),
            5 => Value::I32(i32::from_le_bytes(cursor.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(cursor.array(key)?)),
            7 => Value::Bool(read_bool(cursor, key)?),
            8 => Value::String(cursor.string(key, MAX_STRING)?),
            ARRAY_TYPE => Value::Array(Array::read(cursor, key)?),
            10 => Value::U64(cursor.u64(key)?),
            11 => Value::I64(i64::from_le_bytes(cursor.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(cursor.array(key)?)),
            other => return Err(cursor.malformed(key, format!("value type {other}"), "0 to 12")),
        })
    }
}

impl Array {
    /// Type number of the elements in a file.
    pub fn element_type_id(&self) -> u32 {
        match self {
            Array::U8(_) => 0,
            Array::I8(_) => 1,
            Array::U16(_) => 2,
            Array::I16(_) => 3,
            Array::U32(_) => 4,
            Array::I32(_) => 5,
            Array::F32(_) => 6,
            Array::Bool(_) => 7,
            Array::String(_) => 8,
            Array::U64(_) => 10,
            Array::I64(_) => 11,
            Array::F64(_) => 12,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            integers => for_integers!(Array, integers, v => v.len()).unwrap_or(0),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as `T`, if they are integers: `Some(Err(i))` names the first that does not fit `T`.
    pub(super) fn integers<T: TryFrom<i128>>(&self) -> Option<Result<Vec<T>, usize>> {
        for_integers!(Array, self, v => {
            v.iter().enumerate().map(|(i, x)| T::try_from(i128::from(*x)).map_err(|_| i)).collect()
        })
    }

    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Array> {
        let element = cursor.u32(key)?;
        // A string element takes at least the eight bytes of its length.
        let size: u64 = match element {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            ARRAY_TYPE => {
                return Err(cursor.unsupported(key, "an array of arrays", "arrays of scalars and strings"));
            }
            other => return Err(cursor.malformed(key, format!("array of value type {other}"), "0 to 12")),
        };
        let count = cursor.u64(key)?;
        let n = cursor.check_count(key, count, size, MAX_ARRAY)?;
        Ok(match element {
            0 => Array::U8(cursor.take(n, key)?.to_vec()),
            1 => Array::I8(numbers(cursor, key, n, i8::from_le_bytes)?),
            2 => Array::U16(numbers(cursor, key, n, u16::from_le_bytes)?),
            3 => Array::I16(numbers(cursor, key, n, i16::from_le_bytes)?),
            4 => Array::U32(numbers(cursor, key, n, u32::from_le_bytes)?),
            5 => Array::I32(numbers(cursor, key, n, i32::from_le_bytes)?),
            6 => Array::F32(numbers(cursor, key, n, f32::from_le_bytes)?),
            7 => Array::Bool((0..n).map(|_| read_bool(cursor, key)).collect::<Result<_>>()?),
            8 => Array::String(strings(cursor, key, n)?),
            10 => Array::U64(numbers(cursor, key, n, u64::from_le_bytes)?),
            11 => Array::I64(numbers(cursor, key, n, i64::from_le_bytes)?),
            _ => Array::F64(numbers(cursor, key, n, f64::from_le_bytes)?),
        })
    }
}

fn numbers<T, const N: usize>(
    cursor: &mut Cursor<'_>,
    key: &str,
    n: usize,
    from_bytes: fn([u8; N]) -> T,
) -> Result<Vec<T>> {
    (0..n).map(|_| cursor.array(key).map(from_bytes)).collect()
}

fn strings(cursor: &mut Cursor<'_>, key: &str, n: usize) -> Result<Strings> {
    let mut list = Strings::with_capacity(n);
    for _ in 0..n {
        list.push(cursor.str(key, MAX_STRING)?);
    }
    Ok(list)
}

fn read_bool(cursor: &mut Cursor<'_>, key: &str) -> Result<bool> {
    match cursor.u8(key)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.malformed(key, format!("bool byte {other}"), "0 or 1")),
    }
}

fn type_name(id: u32) -> &'static str {
    TYPE_NAMES.get(id as usize).copied().unwrap_or("unknown type")
}

/// Type and value, for messages: strings are cut short, arrays show only their length.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = type_name(self.type_id());
        match self {
            Value::String(s) => {
                let cut: String = s.chars().take(60).collect();
                write!(f, "string {cut:?}{}", if cut.len() < s.len() { "..." } else { "" })
            }
            Value::Array(a) => write!(f, "array of {} {}", a.len(), type_name(a.element_type_id())),
            Value::Bool(b) => write!(f, "bool {b}"),
            Value::F32(x) => write!(f, "f32 {x}"),
            Value::F64(x) => write!(f, "f64 {x}"),
            integer => write!(f, "{name} {}", integer.as_integer().unwrap_or(0)),
        }
    }
}
