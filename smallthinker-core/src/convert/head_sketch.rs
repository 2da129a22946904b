//! A trained sketch of the LM head, `head_sketch.safetensors` beside the checkpoint, becomes metadata.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors};

use super::config::Config;
use crate::error::{Error, Result};
use crate::gguf::{Array, Source, Value};
use crate::model::predictor::Stored;

const FILE: &str = "head_sketch.safetensors";
/// Largest file: many times that of the released models' vocabulary.
const MAX_FILE: u64 = 256 << 20;

/// The `smallthinker.head_sketch.*` metadata; none if there is no such file.
pub(super) fn metadata(dir: &Path, config: &Config) -> Result<Vec<(&'static str, Value)>> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let source = Source::open(&path)?;
    let len = source.len(0);
    if len > MAX_FILE {
        return Err(Error::malformed(&path, "size", len, format!("{MAX_FILE} bytes at most")));
    }
    let mut bytes = vec![0u8; len as usize];
    source.read_exact_at(0, 0, &mut bytes)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::malformed(&path, "header", e, "a valid safetensors file"))?;
    let tensor = |name: &str, dtype: Dtype, shape: &[Option<usize>]| {
        let found = file
            .tensor(name)
            .map_err(|_| Error::malformed(&path, name, "no such tensor", "all tensors of a sketch"))?;
        let fits = found.shape().len() == shape.len()
            && found.shape().iter().zip(shape).all(|(n, want)| want.is_none_or(|want| want == *n));
        if found.dtype() != dtype || !fits {
            let shown: Vec<String> =
                shape.iter().map(|n| n.map_or("any".to_owned(), |n| n.to_string())).collect();
            let allowed = format!("{dtype:?} [{}]", shown.join(", "));
            return Err(Error::malformed(
                &path,
                name,
                format!("{:?} {:?}", found.dtype(), found.shape()),
                allowed,
            ));
        }
        Ok(found)
    };
    let (hidden, vocab) = (config.hidden as usize, config.vocab as usize);
    let directions = tensor("directions", Dtype::F32, &[None, Some(hidden)])?;
    let count = directions.shape().first().copied().unwrap_or(0);
    let signs = tensor("signs", Dtype::U8, &[Some(vocab), Some(count / 8)])?;
    let scales = tensor("scales", Dtype::F32, &[Some(vocab)])?;
    let mean = tensor("mean", Dtype::F32, &[Some(hidden)])?;
    let margin = tensor("margin", Dtype::F32, &[Some(1)])?;
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    };
    let (directions, signs, scales) = (floats(directions.data()), signs.data(), floats(scales.data()));
    let mean = floats(mean.data());
    let margin = floats(margin.data()).first().copied().unwrap_or(f32::NAN);
    Stored::checked((&directions, signs, &scales, &mean, margin), hidden, vocab)
        .map_err(|(name, found, allowed)| Error::malformed(&path, name, found, allowed))?;
    Ok(vec![
        ("smallthinker.head_sketch.directions", Value::Array(Array::F32(directions))),
        ("smallthinker.head_sketch.signs", Value::Array(Array::U8(signs.to_vec()))),
        ("smallthinker.head_sketch.scales", Value::Array(Array::F32(scales))),
        ("smallthinker.head_sketch.mean", Value::Array(Array::F32(mean))),
        ("smallthinker.head_sketch.margin", Value::F32(margin)),
    ])
}
