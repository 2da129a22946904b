//! Where each expert's bytes are in the file, and how they lie in a slot.

use crate::arena::Arena;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::hparams::Hparams;
use crate::model::weights::expect_tensor;
use crate::tensor::DType;
use crate::tensor::packed::{Layout, matrix_bytes};
use crate::{Error, Result};

/// One of an expert's three matrices, for all experts of a layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExpertMatrix {
    pub(crate) dtype: DType,
    /// In the slot.
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// File, offset of expert 0, bytes of one expert.
    shard: usize,
    offset: u64,
    pub(crate) bytes: usize,
    /// Bytes in the slot.
    pub(crate) slot_bytes: usize,
}

impl ExpertMatrix {
    /// Shard and byte offset of an expert's slice.
    pub(crate) fn place(&self, expert: usize) -> (usize, u64) {
        (self.shard, self.offset + expert as u64 * self.bytes as u64)
    }
}

/// How the down projection is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DownLayout {
    /// `[hidden, ffn]`: row j makes output j (mainline GGUF).
    ByOutput,
    /// `[ffn, hidden]`: row n is what neuron n adds to the output (the report's own engine).
    ByNeuron,
}

/// One of the matrices of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Gate,
    Up,
    Down,
}

impl Part {
    /// The parts of an expert.
    pub(crate) const ALL: [Part; 3] = [Part::Gate, Part::Up, Part::Down];
}

/// The experts of one layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerExperts {
    pub(crate) gate: ExpertMatrix,
    pub(crate) up: ExpertMatrix,
    pub(crate) down: ExpertMatrix,
    pub(crate) down_layout: DownLayout,
}

impl LayerExperts {
    /// The three matrices, in the order of [`Part`].
    pub(crate) fn matrices(&self) -> [&ExpertMatrix; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// One of the matrices.
    pub(crate) fn part(&self, part: Part) -> &ExpertMatrix {
        self.matrices()[part as usize]
    }

    /// Weight bytes of one expert.
    pub(crate) fn expert_bytes(&self) -> u64 {
        self.matrices().iter().map(|m| m.bytes as u64).sum()
    }

    /// Whether decode reads only the rows of up whose gate is above zero.
    pub(crate) fn sparse_up(&self) -> bool {
        self.down_layout == DownLayout::ByOutput
    }

    /// Whether decode reads only the weights of down that active neurons use.
    pub(crate) fn sparse_down(&self) -> bool {
        self.down_layout == DownLayout::ByNeuron || self.down.layout == Layout::Neurons
    }
}

/// All experts of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExpertIndex {
    pub(crate) layers: Vec<LayerExperts>,
    pub(crate) n_experts: usize,
    /// Bytes that the parts of a slot have, so that it holds any expert.
    pub(crate) part_bytes: [usize; 3],
    /// Bytes of a slot.
    pub(crate) slot_bytes: usize,
}

impl ExpertIndex {
    pub(crate) fn new(gguf: &Gguf, h: &Hparams) -> Result<ExpertIndex> {
        let layers: Vec<LayerExperts> = (0..h.n_layers).map(|i| layer(gguf, h, i)).collect::<Result<_>>()?;
        let widest = |part: Part| layers.iter().map(|l| l.part(part).slot_bytes).max().unwrap_or(0);
        let part_bytes = Part::ALL.map(widest);
        let slot_bytes = part_bytes.into_iter().map(Arena::footprint).sum();
        Ok(ExpertIndex { layers, n_experts: h.n_experts, part_bytes, slot_bytes })
    }

    /// Experts of all layers.
    pub(crate) fn experts(&self) -> usize {
        self.layers.len() * self.n_experts
    }

    /// Bytes of the largest matrix of an expert in the file.
    pub(crate) fn most_read_at_once(&self) -> usize {
        self.layers.iter().flat_map(LayerExperts::matrices).map(|m| m.bytes).max().unwrap_or(0)
    }

    /// Bytes of all slots together when every expert is held.
    pub(crate) fn bank_bytes(&self) -> u64 {
        self.experts() as u64 * self.slot_bytes as u64
    }
}

fn layer(gguf: &Gguf, h: &Hparams, i: usize) -> Result<LayerExperts> {
    let matrix = |info: &TensorInfo, layout: Layout, rows: usize, cols: usize| -> Result<ExpertMatrix> {
        let (dtype, shard, offset) = (info.dtype, info.shard, info.offset);
        // The directory has checked that the whole tensor lies inside the file.
        let bytes = usize::try_from(info.n_bytes / h.n_experts as u64).ok();
        let Some((bytes, slot_bytes)) = bytes.zip(matrix_bytes(dtype, layout, rows, cols)) else {
            return Err(Error::unsupported(gguf.path(), &info.name, info.n_bytes, "sizes that fit memory"));
        };
        Ok(ExpertMatrix { dtype, layout, rows, cols, shard, offset, bytes, slot_bytes })
    };
    let (hidden, ffn, n) = (h.hidden, h.expert_ffn, h.n_experts);
    let name = |part: &str| format!("blk.{i}.ffn_{part}_exps.weight");
    let info = expect_tensor(gguf, &name("gate"), &[hidden, ffn, n])?;
    let gate = matrix(info, Layout::by_row(info.dtype), ffn, hidden)?;
    let info = expect_tensor(gguf, &name("up"), &[hidden, ffn, n])?;
    let up = matrix(info, Layout::by_row(info.dtype), ffn, hidden)?;
    // When hidden == ffn the shape cannot tell the two layouts apart; mainline's is the common one.
    let by_neuron = hidden != ffn
        && gguf.tensor(&name("down")).is_some_and(|t| t.dims.first().is_some_and(|&d| d == hidden as u64));
    let (down, down_layout) = if by_neuron {
        let info = expect_tensor(gguf, &name("down"), &[hidden, ffn, n])?;
        (matrix(info, Layout::Rows, ffn, hidden)?, DownLayout::ByNeuron)
    } else {
        let info = expect_tensor(gguf, &name("down"), &[ffn, hidden, n])?;
        (matrix(info, Layout::by_neuron(info.dtype), hidden, ffn)?, DownLayout::ByOutput)
    };
    Ok(LayerExperts { gate, up, down, down_layout })
}
