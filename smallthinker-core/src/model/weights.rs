//! The resident (dense) weights: every tensor that each token needs, held in memory.

use crate::arena::{Arena, Slab};
use crate::cancel::CancelFlag;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::hparams::Hparams;
use crate::tensor::matrix::Matrix;
use crate::tensor::packed::{Layout, matrix_bytes, pack};
use crate::tensor::{DType, dequantize, quantize};
use crate::{Error, Result};

/// A weight matrix that is always in memory.
pub(crate) struct Resident {
    pub(crate) dtype: DType,
    layout: Layout,
    pub(crate) rows: usize,
    cols: usize,
    data: Slab,
}

impl Resident {
    /// The matrix, to compute with.
    pub(crate) fn view(&self) -> Matrix<'_> {
        Matrix { dtype: self.dtype, layout: self.layout, rows: self.rows, cols: self.cols, data: &self.data }
    }

    /// Bytes of an arena that a matrix takes; the largest number if that overflows or the rows are not whole blocks.
    pub(crate) fn footprint(dtype: DType, rows: usize, cols: usize) -> usize {
        let bytes = matrix_bytes(dtype, Resident::small(dtype, cols), rows, cols);
        bytes.filter(|bytes| *bytes < usize::MAX / 2).map_or(usize::MAX, Arena::footprint)
    }

    /// The layout of a matrix made by [`from_blocks`](Self::from_blocks): no larger than the file's.
    fn small(dtype: DType, cols: usize) -> Layout {
        let layout = Layout::by_row(dtype);
        if matrix_bytes(dtype, layout, 1, cols) > dtype.row_bytes(cols) { Layout::Rows } else { layout }
    }

    /// Takes a matrix over from blocks as they lie in files.
    pub(crate) fn from_blocks(
        dtype: DType,
        file: &[u8],
        rows: usize,
        cols: usize,
        arena: &mut Arena,
    ) -> Result<Resident> {
        let misfit =
            || Error::Internal { message: format!("{} bytes for {rows} × {cols} {dtype}", file.len()) };
        let layout = Resident::small(dtype, cols);
        let fits = dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows)) == Some(file.len());
        let bytes = matrix_bytes(dtype, layout, rows, cols).filter(|_| fits).ok_or_else(misfit)?;
        let mut data = arena.take(bytes).ok_or_else(misfit)?;
        match layout {
            Layout::Rows => data.copy_from_slice(file),
            _ => pack(dtype, layout, file, 0, rows, cols, &mut data),
        }
        Ok(Resident { dtype, layout, rows, cols, data })
    }

    /// Brings values (`[rows][cols]`) into a type.
    pub(crate) fn from_values(
        dtype: DType,
        values: &[f32],
        rows: usize,
        cols: usize,
        arena: &mut Arena,
    ) -> Result<Resident> {
        let mut file = Vec::new();
        quantize(dtype, values, &mut file)?;
        Resident::from_blocks(dtype, &file, rows, cols, arena)
    }

    /// Size in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.data.len() as u64
    }
}

/// Resident weights of one layer.
pub(crate) struct LayerWeights {
    pub(crate) attn_norm: Vec<f32>,
    pub(crate) q: Resident,
    pub(crate) k: Resident,
    pub(crate) v: Resident,
    pub(crate) o: Resident,
    pub(crate) ffn_norm: Vec<f32>,
    /// F32 whatever the file's type: a quantized router scrambles the top-k.
    pub(crate) router: Resident,
}

/// Where the rows of the embedding are.
pub(crate) enum Embedding {
    /// The head's own rows (tied embeddings).
    Tied,
    /// In the file, read row by row: an untied model needs one row per token, not a resident table.
    File(TensorInfo),
}

/// Resident weights of the model.
pub(crate) struct Weights {
    pub(crate) embedding: Embedding,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) output_norm: Vec<f32>,
    pub(crate) head: Resident,
}

/// Names of the resident tensors with their shapes (`[rows, cols]`; norms have one row).
pub(crate) fn resident_shapes(h: &Hparams, tied: bool) -> Vec<(String, usize, usize)> {
    let head = if tied { "token_embd.weight" } else { "output.weight" };
    let mut shapes = vec![("output_norm.weight".into(), 1, h.hidden), (head.into(), h.vocab, h.hidden)];
    for i in 0..h.n_layers {
        let mut add = |name: &str, rows, cols| shapes.push((format!("blk.{i}.{name}.weight"), rows, cols));
        add("attn_norm", 1, h.hidden);
        add("attn_q", h.q_dim(), h.hidden);
        add("attn_k", h.kv_dim(), h.hidden);
        add("attn_v", h.kv_dim(), h.hidden);
        add("attn_output", h.hidden, h.q_dim());
        add("ffn_norm", 1, h.hidden);
        add("ffn_gate_inp", h.n_experts, h.hidden);
    }
    shapes
}

/// Finds a tensor of weights and checks its shape, given in GGUF order (fastest first).
pub(crate) fn expect_tensor<'g>(gguf: &'g Gguf, name: &str, dims: &[usize]) -> Result<&'g TensorInfo> {
    let info = expect_shape(gguf, name, dims)?;
    if DType::ALL.contains(&info.dtype) {
        return Ok(info);
    }
    let supported = DType::ALL.map(DType::name).join(", ");
    Err(Error::unsupported(gguf.path(), format!("type of {name}"), info.dtype, supported))
}

/// Finds a tensor and checks its shape, given in GGUF order (fastest first).
pub(crate) fn expect_shape<'g>(gguf: &'g Gguf, name: &str, dims: &[usize]) -> Result<&'g TensorInfo> {
    let Some(info) = gguf.tensor(name) else {
        return Err(Error::malformed(gguf.path(), name, "no such tensor", format!("a tensor of {dims:?}")));
    };
    // Trailing dimensions of 1 mean nothing.
    let found: Vec<u64> = match info.dims.iter().rposition(|&d| d != 1) {
        Some(last) => info.dims[..=last].to_vec(),
        None => Vec::new(),
    };
    let wanted = match dims.iter().rposition(|&d| d != 1) {
        Some(last) => &dims[..=last],
        None => &[],
    };
    if !found.iter().copied().eq(wanted.iter().map(|&d| d as u64)) {
        let field = format!("shape of {name}");
        return Err(Error::malformed(gguf.path(), field, format!("{:?}", info.dims), format!("{dims:?}")));
    }
    Ok(info)
}

/// Reads all resident tensors. `loaded` is told the bytes of each as it arrives.
pub(crate) fn load(
    gguf: &Gguf,
    h: &Hparams,
    cancel: &CancelFlag,
    loaded: &mut dyn FnMut(u64),
) -> Result<Weights> {
    let tied = gguf.tensor("output.weight").is_none();
    let mut bytes = 0usize;
    for (name, rows, cols) in resident_shapes(h, tied) {
        let info = expect_tensor(gguf, &name, &[cols, rows])?;
        let wanted = resident_bytes(gguf, &name, info, rows, cols)?;
        bytes = bytes.saturating_add(Arena::footprint(wanted));
    }
    let embedding = match tied {
        true => Embedding::Tied,
        false => Embedding::File(expect_tensor(gguf, "token_embd.weight", &[h.hidden, h.vocab])?.clone()),
    };
    let mut loader = Loader { gguf, arena: Arena::new(bytes, "resident weights")?, cancel, loaded };
    let mut layers = Vec::with_capacity(h.n_layers);
    for i in 0..h.n_layers {
        let name = |n: &str| format!("blk.{i}.{n}.weight");
        layers.push(LayerWeights {
            attn_norm: loader.vector(&name("attn_norm"), h.hidden)?,
            q: loader.matrix(&name("attn_q"), h.q_dim(), h.hidden)?,
            k: loader.matrix(&name("attn_k"), h.kv_dim(), h.hidden)?,
            v: loader.matrix(&name("attn_v"), h.kv_dim(), h.hidden)?,
            o: loader.matrix(&name("attn_output"), h.hidden, h.q_dim())?,
            ffn_norm: loader.vector(&name("ffn_norm"), h.hidden)?,
            router: loader.matrix(&name("ffn_gate_inp"), h.n_experts, h.hidden)?,
        });
    }
    let head = if tied { "token_embd.weight" } else { "output.weight" };
    Ok(Weights {
        embedding,
        layers,
        output_norm: loader.vector("output_norm.weight", h.hidden)?,
        head: loader.matrix(head, h.vocab, h.hidden)?,
    })
}

/// These are held in F32 whatever their type in the file.
pub(crate) fn is_vector_or_router(name: &str) -> bool {
    name.ends_with("norm.weight") || name.ends_with("ffn_gate_inp.weight")
}

/// Bytes of the resident tensors in the file: what loading them reads.
pub(crate) fn resident_file_bytes(gguf: &Gguf, h: &Hparams) -> Result<u64> {
    let tied = gguf.tensor("output.weight").is_none();
    let bytes = |(name, rows, cols): (String, usize, usize)| {
        expect_tensor(gguf, &name, &[cols, rows]).map(|info| info.n_bytes)
    };
    resident_shapes(h, tied).into_iter().map(bytes).sum()
}

/// Bytes that a resident tensor takes in memory.
pub(crate) fn resident_bytes(
    gguf: &Gguf,
    name: &str,
    info: &TensorInfo,
    rows: usize,
    cols: usize,
) -> Result<usize> {
    let dtype = if is_vector_or_router(name) { DType::F32 } else { info.dtype };
    matrix_bytes(dtype, Layout::by_row(dtype), rows, cols).ok_or_else(|| too_large(gguf, info))
}

fn too_large(gguf: &Gguf, info: &TensorInfo) -> Error {
    let allowed = "sizes that fit this machine's address space";
    Error::unsupported(gguf.path(), &info.name, info.n_bytes, allowed)
}

fn to_usize(gguf: &Gguf, info: &TensorInfo) -> Result<usize> {
    usize::try_from(info.n_bytes).map_err(|_| too_large(gguf, info))
}

/// Bytes of a piece that is packed: they stay in the second-level cache.
const PIECE: usize = 512 << 10;

struct Loader<'a> {
    gguf: &'a Gguf,
    arena: Arena,
    cancel: &'a CancelFlag,
    loaded: &'a mut dyn FnMut(u64),
}

/// Bytes per read: large enough for the disk, small enough to see a cancel soon.
const READ: usize = 16 << 20;

impl Loader<'_> {
    /// Reads `out.len()` bytes of a tensor, from its byte `at` on.
    fn bytes(&mut self, info: &TensorInfo, at: usize, out: &mut [u8]) -> Result<()> {
        let mut offset = info.offset + at as u64;
        for piece in out.chunks_mut(READ) {
            self.cancel.check()?;
            self.gguf.source().read_exact_at(info.shard, offset, piece)?;
            offset += piece.len() as u64;
            (self.loaded)(piece.len() as u64);
        }
        Ok(())
    }

    fn slab(&mut self, len: usize) -> Result<Slab> {
        let full = || Error::Internal { message: "resident arena is smaller than its tensors".into() };
        self.arena.take(len).ok_or_else(full)
    }

    /// A tensor as `f32` values.
    fn values(&mut self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>> {
        let info = expect_tensor(self.gguf, name, &[cols, rows])?;
        let mut raw = vec![0u8; to_usize(self.gguf, info)?];
        self.bytes(info, 0, &mut raw)?;
        let mut values = vec![0.0; rows * cols];
        dequantize(info.dtype, &raw, &mut values)?;
        Ok(values)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.values(name, 1, len)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Resident> {
        let info = expect_tensor(self.gguf, name, &[cols, rows])?;
        if is_vector_or_router(name) {
            let values = self.values(name, rows, cols)?;
            let mut data = self.slab(values.len() * 4)?;
            for (bytes, v) in data.chunks_exact_mut(4).zip(&values) {
                bytes.copy_from_slice(&v.to_le_bytes());
            }
            let (dtype, layout) = (DType::F32, Layout::Rows);
            return Ok(Resident { dtype, layout, rows, cols, data });
        }
        let layout = Layout::by_row(info.dtype);
        let mut data = self.slab(resident_bytes(self.gguf, name, info, rows, cols)?)?;
        if layout == Layout::Rows {
            self.bytes(info, 0, &mut data)?;
        } else {
            self.packed(info, layout, rows, cols, &mut data)?;
        }
        Ok(Resident { dtype: info.dtype, layout, rows, cols, data })
    }

    /// Reads a matrix piece by piece, each packed while it is in the cache.
    fn packed(
        &mut self,
        info: &TensorInfo,
        layout: Layout,
        rows: usize,
        cols: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let row_bytes = to_usize(self.gguf, info)? / rows.max(1);
        let rows_per_piece = (PIECE / row_bytes.max(1)).max(1);
        let mut buffer = vec![0u8; rows_per_piece * row_bytes];
        for first in (0..rows).step_by(rows_per_piece) {
            let piece = &mut buffer[..rows_per_piece.min(rows - first) * row_bytes];
            self.cancel.check()?;
            let offset = info.offset + (first * row_bytes) as u64;
            self.gguf.source().read_exact_at(info.shard, offset, piece)?;
            self.gguf.source().check_blocks(info.dtype, info.shard, offset, piece)?;
            (self.loaded)(piece.len() as u64);
            pack(info.dtype, layout, piece, first, rows, cols, out);
        }
        Ok(())
    }
}
