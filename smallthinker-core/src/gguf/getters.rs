//! Typed access to metadata. Absent keys are `None`; a value of the wrong type or out of range is an error
//! naming the key, what was found and what is allowed. Integers of any width are taken if they fit.

use super::{Array, Gguf, Strings, Value};
use crate::error::{Error, Result};

impl Gguf {
    /// An integer that fits `u32`.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.convert(key, "u32", |v| v.as_integer().and_then(|i| u32::try_from(i).ok()))
    }

    /// An integer that fits `u64`.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>> {
        self.convert(key, "u64", |v| v.as_integer().and_then(|i| u64::try_from(i).ok()))
    }

    /// A float of either width, rounded to `f32`; one that is finite must stay finite.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.convert(key, "f32", |v| {
            let wide = v.as_float()?;
            let narrow = wide as f32;
            (narrow.is_finite() == wide.is_finite()).then_some(narrow)
        })
    }

    /// A bool.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.convert(key, "bool", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.convert(key, "string", |v| match v {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn get_str_array(&self, key: &str) -> Result<Option<&Strings>> {
        self.convert(key, "array of string", |v| match v {
            Value::Array(Array::String(a)) => Some(a),
            _ => None,
        })
    }

    /// An array of integers that fit `u32`.
    pub fn get_u32_array(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.integers(key, "array of u32")
    }

    /// An array of integers that fit `i32`.
    pub fn get_i32_array(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.integers(key, "array of i32")
    }

    /// An array of bytes.
    pub fn get_u8_array(&self, key: &str) -> Result<Option<&[u8]>> {
        self.convert(key, "array of u8", |v| match v {
            Value::Array(Array::U8(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// An array of `f32`.
    pub fn get_f32_array(&self, key: &str) -> Result<Option<&[f32]>> {
        self.convert(key, "array of f32", |v| match v {
            Value::Array(Array::F32(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// An array of bools.
    pub fn get_bool_array(&self, key: &str) -> Result<Option<&[bool]>> {
        self.convert(key, "array of bool", |v| match v {
            Value::Array(Array::Bool(a)) => Some(a.as_slice()),
            _ => None,
        })
    }

    /// [`get_u32`](Gguf::get_u32), but a missing key is an error.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        self.require(key, "u32", self.get_u32(key)?)
    }

    /// [`get_u64`](Gguf::get_u64), but a missing key is an error.
    pub fn require_u64(&self, key: &str) -> Result<u64> {
        self.require(key, "u64", self.get_u64(key)?)
    }

    /// [`get_f32`](Gguf::get_f32), but a missing key is an error.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        self.require(key, "f32", self.get_f32(key)?)
    }

    /// [`get_bool`](Gguf::get_bool), but a missing key is an error.
    pub fn require_bool(&self, key: &str) -> Result<bool> {
        self.require(key, "bool", self.get_bool(key)?)
    }

    /// [`get_str`](Gguf::get_str), but a missing key is an error.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.require(key, "string", self.get_str(key)?)
    }

    /// [`get_str_array`](Gguf::get_str_array), but a missing key is an error.
    pub fn require_str_array(&self, key: &str) -> Result<&Strings> {
        self.require(key, "array of string", self.get_str_array(key)?)
    }

    /// [`get_u32_array`](Gguf::get_u32_array), but a missing key is an error.
    pub fn require_u32_array(&self, key: &str) -> Result<Vec<u32>> {
        self.require(key, "array of u32", self.get_u32_array(key)?)
    }

    /// [`get_i32_array`](Gguf::get_i32_array), but a missing key is an error.
    pub fn require_i32_array(&self, key: &str) -> Result<Vec<i32>> {
        self.require(key, "array of i32", self.get_i32_array(key)?)
    }

    /// [`get_f32_array`](Gguf::get_f32_array), but a missing key is an error.
    pub fn require_f32_array(&self, key: &str) -> Result<&[f32]> {
        self.require(key, "array of f32", self.get_f32_array(key)?)
    }

    fn require<T>(&self, key: &str, allowed: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::malformed(&self.path, key, "no such key", allowed))
    }

    fn convert<'a, T>(
        &'a self,
        key: &str,
        allowed: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(Error::malformed(&self.path, key, value, allowed)),
            },
        }
    }

    fn integers<T: TryFrom<i128>>(&self, key: &str, allowed: &str) -> Result<Option<Vec<T>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let converted = match value {
            Value::Array(array) => array.integers(),
            _ => None,
        };
        match converted {
            Some(Ok(numbers)) => Ok(Some(numbers)),
            Some(Err(at)) => {
                Err(Error::malformed(&self.path, key, format!("{value}, element {at} out of range"), allowed))
            }
            None => Err(Error::malformed(&self.path, key, value, allowed)),
        }
    }
}
