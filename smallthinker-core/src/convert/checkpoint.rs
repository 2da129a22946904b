//! The safetensors files of a checkpoint: where each tensor lies, and reading it piece by piece as `f32`.

use std::collections::HashMap;
use std::path::{Component, Path};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::json::{self, Object};
use crate::error::{Error, Result};
use crate::gguf::Source;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const MAX_INDEX: u64 = 256 << 20;
/// Largest header, the limit of the format.
const MAX_HEADER: u64 = 100_000_000;

/// An open checkpoint.
pub(super) struct Checkpoint {
    source: Source,
    tensors: HashMap<String, Stored>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) shape: Vec<u64>,
    dtype: Dtype,
    shard: usize,
    offset: u64,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    pub(super) fn open(dir: &Path) -> Result<Checkpoint> {
        let index_path = dir.join(INDEX_FILE);
        if !index_path.exists() {
            let mut checkpoint =
                Checkpoint { source: Source::open(&dir.join(SINGLE_FILE))?, tensors: HashMap::new() };
            checkpoint.read_header(0)?;
            return Ok(checkpoint);
        }
        let index = Object::read(&index_path, MAX_INDEX)?;
        let placed = weight_map(&index)?;
        let mut files: Vec<&str> = placed.iter().map(|(_, file)| file.as_str()).collect();
        files.sort_unstable();
        files.dedup();

        let Some((first, rest)) = files.split_first() else {
            return Err(index.wrong("weight_map", None, "at least one tensor".into()));
        };
        let mut source = Source::open(&dir.join(first))?;
        for file in rest {
            source.append(Source::open(&dir.join(file))?);
        }
        let mut checkpoint = Checkpoint { source, tensors: HashMap::new() };
        for shard in 0..files.len() {
            checkpoint.read_header(shard)?;
        }
        for (name, file) in &placed {
            let found = checkpoint.tensors.get(name).and_then(|t| files.get(t.shard));
            if found != Some(&file.as_str()) {
                let place = found.map_or("no file".to_owned(), |f| format!("file {f}"));
                return Err(Error::malformed(&index_path, format!("weight_map of {name}"), file, place));
            }
        }
        Ok(checkpoint)
    }

    fn read_header(&mut self, shard: usize) -> Result<()> {
        let path = self.source.path(shard).to_owned();
        let len = self.source.len(shard);
        let mut prefix = [0u8; 8];
        self.source.read_exact_at(shard, 0, &mut prefix)?;
        let header_len = u64::from_le_bytes(prefix);
        let room = len.saturating_sub(8).min(MAX_HEADER);
        if header_len > room {
            let allowed = format!("at most {room} (the format's limit, or what the file can hold)");
            return Err(Error::malformed(&path, "header length", header_len, allowed));
        }
        let mut header = vec![0u8; header_len as usize];
        self.source.read_exact_at(shard, 8, &mut header)?;
        // Parsing checks that byte ranges are contiguous and that each fits its shape and type.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| Error::malformed(&path, "header", e, "a valid safetensors header"))?;
        let data = 8 + header_len;
        let data_len = metadata.data_len() as u64;
        if data_len > len - data {
            let allowed = format!("at most the {} bytes after the header", len - data);
            return Err(Error::malformed(
                &path,
                "data_offsets",
                format!("{data_len} bytes of data"),
                allowed,
            ));
        }
        for (name, info) in metadata.tensors() {
            let stored = Stored {
                shape: info.shape.iter().map(|&n| n as u64).collect(),
                dtype: info.dtype,
                shard,
                offset: data + info.data_offsets.0 as u64,
            };
            if self.tensors.contains_key(&name) {
                return Err(Error::malformed(&path, name, "the tensor in two files", "each name once"));
            }
            self.tensors.insert(name, stored);
        }
        Ok(())
    }

    /// Names of all tensors, in no particular order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor `name`, which must have this shape and a float type.
    pub(super) fn expect(&self, name: &str, shape: &[u64]) -> Result<&Stored> {
        let Some(stored) = self.tensors.get(name) else {
            return Err(Error::malformed(
                self.source.path(0),
                name,
                "no such tensor",
                format!("shape {shape:?}"),
            ));
        };
        let path = self.source.path(stored.shard);
        if stored.shape != shape {
            let found = format!("shape {:?}", stored.shape);
            return Err(Error::malformed(path, name, found, format!("{shape:?}, as config.json says")));
        }
        match stored.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(stored),
            other => Err(Error::unsupported(path, name, format!("type {other}"), "F32, F16 and BF16")),
        }
    }

    /// The file that holds the tensor `name`.
    pub(super) fn path_of_name(&self, name: &str) -> &Path {
        self.source.path(self.tensors.get(name).map_or(0, |t| t.shard))
    }

    /// The file that holds a tensor.
    pub(super) fn path_of(&self, tensor: &Stored) -> &Path {
        self.source.path(tensor.shard)
    }

    /// Reads elements `start..start + out.len()` of a tensor that [`expect`](Checkpoint::expect) returned;
    /// `bytes` is scratch space.
    pub(super) fn read_f32(
        &self,
        t: &Stored,
        start: u64,
        out: &mut [f32],
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let size = t.dtype.bitsize() / 8;
        bytes.resize(out.len() * size, 0);
        self.source.read_exact_at(t.shard, t.offset + start * size as u64, bytes)?;
        match t.dtype {
            Dtype::F16 => decode(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => decode(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            _ => decode(bytes, out, f32::from_le_bytes),
        }
        Ok(())
    }
}

fn decode<const N: usize>(bytes: &[u8], out: &mut [f32], from: impl Fn([u8; N]) -> f32) {
    let (items, _) = bytes.as_chunks::<N>();
    for (x, item) in out.iter_mut().zip(items) {
        *x = from(*item);
    }
}

/// The pairs of tensor name and file name. A file name must not lead out of the checkpoint's folder.
fn weight_map(index: &Object) -> Result<Vec<(String, String)>> {
    let Some(map) = index.get("weight_map").and_then(|v| v.as_object()) else {
        return Err(index.wrong("weight_map", index.get("weight_map"), "an object".into()));
    };
    let mut placed = Vec::with_capacity(map.len());
    for (name, file) in map {
        let plain = file.as_str().filter(|f| {
            let mut parts = Path::new(f).components();
            matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
        });
        let Some(plain) = plain else {
            let field = format!("weight_map of {name}");
            return Err(Error::malformed(&index.path, field, json::short(file), "a plain file name"));
        };
        placed.push((name.clone(), plain.to_owned()));
    }
    Ok(placed)
}
