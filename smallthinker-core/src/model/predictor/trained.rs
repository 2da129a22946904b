//! The trained predictor of the report's own engine, `lm_head_profiler.weight`: one dimension, Q4_0, first W1 `[rank,
//! hidden]`, then W2 `[vocab, rank]`, so rank = elements / (hidden + vocab). Row `i` of the head is worth computing when
//! `(W2 · (W1 · x))[i]` is above zero, with `x` and `W1 · x` in 8 bits and nothing in between.

use crate::arena::Arena;
use crate::cancel::CancelFlag;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::hparams::Hparams;
use crate::model::weights::Resident;
use crate::tensor::DType;
use crate::{Error, Result};

pub(super) const TENSOR: &str = "lm_head_profiler.weight";

/// The predictor in memory.
pub(crate) struct Trained {
    pub(crate) down: Resident,
    pub(crate) up: Resident,
}

impl Trained {
    pub(super) fn bytes(&self) -> u64 {
        self.down.bytes() + self.up.bytes()
    }
}

/// Its shape.
pub(super) struct Size {
    rank: usize,
    hidden: usize,
    vocab: usize,
}

impl Size {
    pub(super) fn bytes(&self) -> usize {
        let bytes = |rows, cols| Resident::footprint(DType::Q4_0, rows, cols);
        bytes(self.rank, self.hidden).saturating_add(bytes(self.vocab, self.rank))
    }
}

/// Checks type and length. Errors name the tensor.
pub(super) fn size(gguf: &Gguf, h: &Hparams, info: &TensorInfo) -> Result<Size> {
    if info.dtype != DType::Q4_0 {
        return Err(Error::unsupported(gguf.path(), format!("type of {TENSOR}"), info.dtype, "Q4_0"));
    }
    let elements = info.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let wide = h.hidden + h.vocab;
    let rank = elements.filter(|n| n.is_multiple_of(wide)).map(|n| n / wide);
    match rank.filter(|rank| *rank > 0 && rank.is_multiple_of(32) && h.hidden.is_multiple_of(32)) {
        Some(rank) => Ok(Size { rank, hidden: h.hidden, vocab: h.vocab }),
        None => Err(Error::malformed(
            gguf.path(),
            format!("shape of {TENSOR}"),
            format!("{:?}", info.dims),
            format!("rank × {wide} elements (hidden size and vocabulary), rank a multiple of 32"),
        )),
    }
}

/// Reads both matrices.
pub(super) fn load(gguf: &Gguf, h: &Hparams, info: &TensorInfo, cancel: &CancelFlag) -> Result<Trained> {
    let size = size(gguf, h, info)?;
    let mut arena = Arena::new(size.bytes(), "LM head predictor")?;
    let mut at = info.offset;
    let mut matrix = |rows: usize, cols: usize| {
        cancel.check()?;
        let bytes = DType::Q4_0.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        let mut file = vec![0u8; bytes.unwrap_or_default()];
        gguf.source().read_exact_at(info.shard, at, &mut file)?;
        gguf.source().check_blocks(DType::Q4_0, info.shard, at, &file)?;
        at += file.len() as u64;
        Resident::from_blocks(DType::Q4_0, &file, rows, cols, &mut arena)
    };
    let down = matrix(size.rank, size.hidden)?;
    let up = matrix(size.vocab, size.rank)?;
    Ok(Trained { down, up })
}
