//! Packed files: GGUF files whose experts lie as they do in the slots of the expert cache, so that each takes one read
//! straight into its place.
//!
//! The experts of layer `N` are the tensor `blk.N.ffn_exps_packed.weight` of type I8 and of dimensions `[bytes, experts]`.
//! An expert is gate, up and down, each from a multiple of [`READ_ALIGN`] on, and so is the next expert; what is between
//! them is zero. Which tensors they were, the metadata says: `smallthinker.pack.PART.types` has one name per layer,
//! `smallthinker.pack.PART.shapes` two sizes per layer, length of a row first. The rest is as in any file.

use crate::gguf::{ALIGNMENT_KEY, Array, Gguf, READ_ALIGN, TensorInfo, Value};
use crate::model::expert_index::{DownLayout, ExpertIndex, LayerExperts, Part, Piece};
use crate::model::hparams::Hparams;
use crate::model::weights::expect_shape;
use crate::tensor::DType;
use crate::{Error, Result};

/// The key that makes a file a packed one.
pub(crate) const VERSION_KEY: &str = "smallthinker.pack.version";
const VERSION: u32 = 1;
const LAYOUT_KEY: &str = "smallthinker.pack.layout";
/// Rows of Q4_0 in `Layout::Lanes`, down projections of Q4_0 and Q8_0 in `Layout::Neurons`, all else row by row.
const LAYOUT: &str = "lanes-neurons";

/// Name of the tensor that has the experts of a layer, between `blk.N.` and `.weight`.
pub(crate) const TENSOR: &str = "ffn_exps_packed";

/// Name of the tensor that has the experts of a layer.
pub(crate) fn tensor_name(layer: usize) -> String {
    format!("blk.{layer}.{TENSOR}.weight")
}

/// Whether a file is packed. Errors: [`Error::Unsupported`] for another version or layout.
pub(crate) fn is_packed(gguf: &Gguf) -> Result<bool> {
    if gguf.get(VERSION_KEY).is_none() {
        return Ok(false);
    }
    let version = gguf.require_u32(VERSION_KEY)?;
    if version != VERSION {
        return Err(Error::unsupported(gguf.path(), VERSION_KEY, version, VERSION.to_string()));
    }
    match gguf.require_str(LAYOUT_KEY)? {
        LAYOUT => Ok(true),
        other => Err(Error::unsupported(gguf.path(), LAYOUT_KEY, other, LAYOUT)),
    }
}

fn types_key(part: Part) -> String {
    format!("smallthinker.pack.{}.types", part.name())
}

fn shapes_key(part: Part) -> String {
    format!("smallthinker.pack.{}.shapes", part.name())
}

/// Puts the matrices of an expert into one piece, one after the other. Returns its bytes; `None` if they don't fit memory.
pub(crate) fn join(layer: &mut LayerExperts) -> Option<usize> {
    let mut end = 0usize;
    for m in [&mut layer.gate, &mut layer.up, &mut layer.down] {
        (m.piece, m.at) = (0, end);
        end = end.checked_add(m.slot_bytes)?.checked_next_multiple_of(READ_ALIGN)?;
    }
    Some(end)
}

/// What a packed file with the experts of `index` says of itself.
pub(crate) fn metadata(index: &ExpertIndex) -> Vec<(String, Value)> {
    let mut out = vec![
        // Reads past the page cache need it.
        (ALIGNMENT_KEY.to_owned(), Value::U32(READ_ALIGN as u32)),
        (VERSION_KEY.to_owned(), Value::U32(VERSION)),
        (LAYOUT_KEY.to_owned(), Value::String(LAYOUT.into())),
    ];
    for part in Part::ALL {
        let matrices = || index.layers.iter().map(|l| l.part(part));
        let types = matrices().map(|m| m.dtype.name()).collect();
        out.push((types_key(part), Value::Array(Array::String(types))));
        let shapes = matrices().flat_map(|m| [m.cols as u32, m.rows as u32]).collect();
        out.push((shapes_key(part), Value::Array(Array::U32(shapes))));
    }
    out
}

/// What a packed file says of itself, by part.
pub(crate) struct PackFormat {
    /// Of each layer.
    types: [Vec<DType>; 3],
    /// Row length and rows of each layer.
    shapes: [Vec<[u32; 2]>; 3],
}

impl PackFormat {
    /// That of a file of `layers` layers; `None` if it is not packed. Errors: those of [`is_packed`],
    /// [`Error::Malformed`].
    pub(crate) fn of(gguf: &Gguf, layers: usize) -> Result<Option<PackFormat>> {
        if !is_packed(gguf)? {
            return Ok(None);
        }
        let (mut types, mut shapes) = <([Vec<DType>; 3], [Vec<[u32; 2]>; 3])>::default();
        for part in Part::ALL {
            types[part as usize] = read_types(gguf, part, layers)?;
            shapes[part as usize] = read_shapes(gguf, part, layers)?;
        }
        Ok(Some(PackFormat { types, shapes }))
    }

    /// The experts of a layer.
    pub(crate) fn layer(&self, gguf: &Gguf, h: &Hparams, i: usize) -> Result<LayerExperts> {
        let down = DownLayout::of(h, u64::from(self.shapes[Part::Down as usize][i][0]));
        for part in Part::ALL {
            let (rows, cols) = part.shape(h, down);
            let (found, allowed) = (self.shapes[part as usize][i], [cols, rows]);
            if found.map(|n| n as usize) != allowed {
                let found = format!("{found:?} for layer {i}");
                return Err(Error::malformed(gguf.path(), shapes_key(part), found, format!("{allowed:?}")));
            }
        }
        let dtypes = Part::ALL.map(|part| self.types[part as usize][i]);
        let mut layer = LayerExperts::new(h, dtypes, down).map_err(|part| {
            let found = format!("{} for layer {i}", dtypes[part as usize]);
            let allowed = "types whose blocks fill a row, of sizes that fit memory";
            Error::malformed(gguf.path(), types_key(part), found, allowed)
        })?;
        let name = tensor_name(i);
        let Some(bytes) = join(&mut layer) else {
            return Err(Error::unsupported(
                gguf.path(),
                name,
                format!("{dtypes:?}"),
                "sizes that fit memory",
            ));
        };
        let TensorInfo { dtype, shard, offset, .. } = *expect_shape(gguf, &name, &[bytes, h.n_experts])?;
        if dtype != DType::I8 {
            return Err(Error::malformed(gguf.path(), format!("type of {name}"), dtype, "I8"));
        }
        if !offset.is_multiple_of(READ_ALIGN as u64) {
            let allowed = format!("a multiple of {READ_ALIGN}");
            return Err(Error::malformed(gguf.path(), format!("offset of {name}"), offset, allowed));
        }
        layer.pieces.push(Piece { shard, offset, bytes });
        Ok(layer)
    }
}

fn read_types(gguf: &Gguf, part: Part, layers: usize) -> Result<Vec<DType>> {
    let key = types_key(part);
    let names = gguf.require_str_array(&key)?;
    if names.len() != layers {
        let found = format!("{} names", names.len());
        return Err(Error::malformed(gguf.path(), key, found, format!("{layers}, one per layer")));
    }
    let parse = |name: &str| {
        let found = DType::ALL.into_iter().find(|dtype| dtype.name() == name);
        let allowed = || DType::ALL.map(DType::name).join(", ");
        found.ok_or_else(|| Error::unsupported(gguf.path(), key.as_str(), name, allowed()))
    };
    names.iter().map(parse).collect()
}

fn read_shapes(gguf: &Gguf, part: Part, layers: usize) -> Result<Vec<[u32; 2]>> {
    let key = shapes_key(part);
    let sizes = gguf.require_u32_array(&key)?;
    match sizes.as_chunks::<2>() {
        (shapes, []) if shapes.len() == layers => Ok(shapes.to_vec()),
        _ => {
            let found = format!("{} sizes", sizes.len());
            Err(Error::malformed(gguf.path(), key, found, format!("{}, two per layer", 2 * layers)))
        }
    }
}
