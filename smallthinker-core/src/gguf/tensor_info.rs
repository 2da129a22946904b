//! The tensor directory: names, shapes, types and byte ranges, each checked against the file.

use std::collections::HashSet;

use super::cursor::Cursor;
use crate::error::Result;
use crate::tensor::DType;

/// Most dimensions a tensor may have.
const MAX_DIMS: u32 = 4;
/// Longest tensor name, in bytes; `ggml` itself stops at 63.
const MAX_NAME: u64 = 65_535;

/// Where a tensor lies and how it is to be read. The byte range lies inside its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, for example `blk.0.attn_q.weight`.
    pub name: String,
    /// Type of the elements.
    pub dtype: DType,
    /// Sizes, one to four of them, none zero; `dims[0]` is the length of a row and varies fastest.
    pub dims: Vec<u64>,
    /// Index of the file that holds the data.
    pub shard: usize,
    /// Absolute byte offset of the data in that file.
    pub offset: u64,
    /// Bytes of data.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// Elements in all.
    pub fn n_elements(&self) -> u64 {
        // Cannot wrap: checked when the directory was read.
        self.dims.iter().product()
    }

    /// Elements of a row: `dims[0]`.
    pub fn cols(&self) -> u64 {
        self.dims.first().copied().unwrap_or(0)
    }

    /// Rows in all: the product of the other dimensions.
    pub fn rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }
}

/// Reads the directory of `count` tensors that follows the metadata and resolves the byte ranges, which
/// are counted from the first multiple of `alignment` after the directory.
pub(super) fn read_directory(
    cursor: &mut Cursor<'_>,
    count: usize,
    alignment: u64,
) -> Result<Vec<TensorInfo>> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for i in 0..count {
        let tensor = read_entry(cursor, i, alignment)?;
        if !names.insert(tensor.name.clone()) {
            return Err(cursor.malformed(&tensor.name, "the tensor name twice", "each name once"));
        }
        tensors.push(tensor);
    }
    if !tensors.is_empty() {
        place(cursor, &mut tensors, alignment)?;
    }
    Ok(tensors)
}

/// Reads one entry; `offset` is still relative to the start of the data.
fn read_entry(cursor: &mut Cursor<'_>, index: usize, alignment: u64) -> Result<TensorInfo> {
    let name = cursor.string(&format!("tensor name {index}"), MAX_NAME)?;
    if name.is_empty() {
        return Err(cursor.malformed(&format!("tensor name {index}"), "an empty name", "1 to 65535 bytes"));
    }
    let field = |what: &str| format!("{what} of tensor {name}");

    let n_dims = cursor.u32(&field("n_dims"))?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(cursor.malformed(&field("n_dims"), n_dims, format!("1 to {MAX_DIMS}")));
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        dims.push(cursor.u64(&field("dims"))?);
    }
    let type_id = cursor.u32(&field("type"))?;
    let Some(dtype) = DType::from_ggml(type_id) else {
        let names = DType::ALL.map(|t| format!("{t} ({})", t.ggml_id())).join(", ");
        return Err(cursor.unsupported(&field("type"), format!("type number {type_id}"), names));
    };
    let n_bytes = checked_bytes(&dims, dtype)
        .map_err(|allowed| cursor.malformed(&field("dims"), format!("{dims:?} of type {dtype}"), allowed))?;
    let offset = cursor.u64(&field("offset"))?;
    if offset % alignment != 0 {
        return Err(cursor.malformed(
            &field("offset"),
            offset,
            format!("a multiple of the alignment, {alignment}"),
        ));
    }
    Ok(TensorInfo { name, dtype, dims, shard: 0, offset, n_bytes })
}

/// Bytes of a tensor, or what would be allowed.
fn checked_bytes(dims: &[u64], dtype: DType) -> Result<u64, String> {
    let block = dtype.block_len() as u64;
    let cols = dims.first().copied().unwrap_or(0);
    if dims.contains(&0) {
        return Err("no dimension of zero".into());
    }
    if cols % block != 0 {
        return Err(format!("a first dimension divisible by {block}"));
    }
    dims.iter()
        .try_fold(1u64, |product, &d| product.checked_mul(d))
        .and_then(|elements| (elements / block).checked_mul(dtype.block_bytes() as u64))
        .ok_or_else(|| "a size below 2^64".into())
}

/// Makes offsets absolute; checks that every byte range lies in the file and that none overlap.
fn place(cursor: &Cursor<'_>, tensors: &mut [TensorInfo], alignment: u64) -> Result<()> {
    let file_len = cursor.position() + cursor.remaining();
    let data = cursor.position().next_multiple_of(alignment);
    for t in tensors.iter_mut() {
        let room = file_len.saturating_sub(data);
        match t.offset.checked_add(t.n_bytes) {
            Some(end) if end <= room => t.offset += data,
            _ => {
                let found = format!("{} bytes from offset {} of the data", t.n_bytes, t.offset);
                let allowed = format!("ranges inside the {room} bytes of data in the file");
                return Err(cursor.malformed(&format!("offset of tensor {}", t.name), found, allowed));
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    for pair in order.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if a.offset + a.n_bytes > b.offset {
            let found = format!("an overlap with tensor {}", a.name);
            return Err(cursor.malformed(
                &format!("offset of tensor {}", b.name),
                found,
                "disjoint byte ranges",
            ));
        }
    }
    Ok(())
}
