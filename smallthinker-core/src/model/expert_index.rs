//! Where each expert's bytes are in the file, and how they lie in a slot.

use std::ops::Range;

use crate::arena::Arena;
use crate::gguf::{Gguf, READ_ALIGN};
use crate::model::hparams::Hparams;
use crate::model::pack_format::PackFormat;
use crate::model::weights::expect_tensor;
use crate::tensor::DType;
use crate::tensor::packed::{Layout, TILE, matrix_bytes};
use crate::{Error, Result};

/// One of an expert's three matrices, for all experts of a layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExpertMatrix {
    pub(crate) dtype: DType,
    /// In the slot.
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Bytes in the slot.
    pub(crate) slot_bytes: usize,
    /// The piece of the slot that it lies in, and where.
    pub(crate) piece: usize,
    pub(crate) at: usize,
}

impl ExpertMatrix {
    /// The bytes of its piece.
    pub(crate) fn range(&self) -> Range<usize> {
        self.at..self.at + self.slot_bytes
    }

    /// Bytes in the file of the rows that a [`Band`](crate::tensor::packed::Band) holds.
    pub(crate) fn band_bytes(&self) -> usize {
        TILE * self.dtype.row_bytes(self.cols).unwrap_or(0)
    }
}

/// What is read at once of an expert, for all experts of a layer: one of its matrices; all of them from a packed file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    /// File, offset of expert 0, bytes of one expert.
    pub(crate) shard: usize,
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
}

impl Piece {
    /// Byte offset of an expert's slice.
    pub(crate) fn place(&self, expert: usize) -> u64 {
        self.offset + expert as u64 * self.bytes as u64
    }

    /// Bytes of the whole blocks that an expert's slice lies in, of that one of `experts` which has most: what a direct read needs.
    fn widest_read(&self, experts: usize) -> usize {
        let skipped = |expert| (self.place(expert) % READ_ALIGN as u64) as usize;
        // After as many experts as a block has bytes, slices begin at the same places in blocks again.
        let blocks = |expert| (skipped(expert) + self.bytes).next_multiple_of(READ_ALIGN);
        (0..experts.min(READ_ALIGN)).map(blocks).max().unwrap_or(0)
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

impl DownLayout {
    /// That of a down projection whose rows have `cols` elements. When hidden == ffn the shape cannot tell the two apart;
    /// mainline's is the common one.
    pub(crate) fn of(h: &Hparams, cols: u64) -> DownLayout {
        if h.hidden != h.expert_ffn && cols == h.hidden as u64 {
            DownLayout::ByNeuron
        } else {
            DownLayout::ByOutput
        }
    }
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

    /// Name in tensor names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Part::Gate => "gate",
            Part::Up => "up",
            Part::Down => "down",
        }
    }

    /// Name of the tensor of layer `layer`.
    pub(crate) fn tensor(self, layer: usize) -> String {
        format!("blk.{layer}.ffn_{}_exps.weight", self.name())
    }

    /// Rows and columns of the stored matrix.
    pub(crate) fn shape(self, h: &Hparams, down: DownLayout) -> (usize, usize) {
        match (self, down) {
            (Part::Down, DownLayout::ByOutput) => (h.hidden, h.expert_ffn),
            _ => (h.expert_ffn, h.hidden),
        }
    }
}

/// The experts of one layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerExperts {
    pub(crate) gate: ExpertMatrix,
    pub(crate) up: ExpertMatrix,
    pub(crate) down: ExpertMatrix,
    pub(crate) down_layout: DownLayout,
    /// What is read of each expert: as many pieces in each layer.
    pub(crate) pieces: Vec<Piece>,
}

impl LayerExperts {
    /// Experts with these types of gate, up and down, each matrix a piece of its own; none is placed in a file yet. Errors:
    /// the part that doesn't fit memory, or whose rows are not whole blocks.
    pub(crate) fn new(h: &Hparams, dtypes: [DType; 3], down: DownLayout) -> Result<LayerExperts, Part> {
        let matrix = |part: Part| {
            let (rows, cols) = part.shape(h, down);
            let dtype = dtypes[part as usize];
            let layout = match (part, down) {
                (Part::Gate | Part::Up, _) => Layout::by_row(dtype),
                (Part::Down, DownLayout::ByOutput) => Layout::by_neuron(dtype),
                (Part::Down, DownLayout::ByNeuron) => Layout::Rows,
            };
            let slot_bytes = matrix_bytes(dtype, layout, rows, cols).ok_or(part)?;
            Ok(ExpertMatrix { dtype, layout, rows, cols, slot_bytes, piece: part as usize, at: 0 })
        };
        let (gate, up, down_matrix) = (matrix(Part::Gate)?, matrix(Part::Up)?, matrix(Part::Down)?);
        Ok(LayerExperts { gate, up, down: down_matrix, down_layout: down, pieces: Vec::new() })
    }

    /// The three matrices, in the order of [`Part`].
    pub(crate) fn matrices(&self) -> [&ExpertMatrix; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// One of the matrices.
    pub(crate) fn part(&self, part: Part) -> &ExpertMatrix {
        self.matrices()[part as usize]
    }

    /// Bytes of one expert in the file.
    pub(crate) fn expert_bytes(&self) -> u64 {
        self.pieces.iter().map(|p| p.bytes as u64).sum()
    }

    /// Whether a matrix must be rearranged, once it was read, before it can be computed with.
    pub(crate) fn is_rearranged(&self, m: &ExpertMatrix) -> bool {
        // The one piece of a packed file lies there as in a slot.
        self.pieces.len() > 1 && m.layout != Layout::Rows
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
    /// Bytes that the pieces of a slot have, so that it holds any expert, in its layout and as it was read: whole pages.
    pub(crate) piece_bytes: Vec<usize>,
    /// Bytes of a slot.
    pub(crate) slot_bytes: usize,
    /// Whether experts lie in the file as they do in a slot.
    pub(crate) packed: bool,
}

impl ExpertIndex {
    pub(crate) fn new(gguf: &Gguf, h: &Hparams) -> Result<ExpertIndex> {
        let format = PackFormat::of(gguf, h.n_layers)?;
        let layer = |i| match &format {
            Some(format) => format.layer(gguf, h, i),
            None => plain_layer(gguf, h, i),
        };
        let layers: Vec<LayerExperts> = (0..h.n_layers).map(layer).collect::<Result<_>>()?;
        let packed = format.is_some();
        let mut piece_bytes: Vec<usize> = Vec::new();
        for layer in &layers {
            piece_bytes.resize(layer.pieces.len(), 0);
            for (widest, piece) in piece_bytes.iter_mut().zip(&layer.pieces) {
                *widest = piece.widest_read(h.n_experts).max(*widest);
            }
            for m in layer.matrices() {
                piece_bytes[m.piece] = m.range().end.next_multiple_of(READ_ALIGN).max(piece_bytes[m.piece]);
            }
        }
        let slot_bytes = piece_bytes.iter().map(|bytes| Arena::footprint(*bytes)).sum();
        Ok(ExpertIndex { layers, n_experts: h.n_experts, piece_bytes, slot_bytes, packed })
    }

    /// Experts of all layers.
    pub(crate) fn experts(&self) -> usize {
        self.layers.len() * self.n_experts
    }

    /// Bytes of the memory that an expert is rearranged in, once it was read; 0 if none is.
    pub(crate) fn spare_bytes(&self) -> usize {
        if self.widest_band() > 0 { self.slot_bytes } else { 0 }
    }

    /// Bytes of the widest band that is rearranged.
    pub(crate) fn widest_band(&self) -> usize {
        let bands = |l: &LayerExperts| {
            let rearranged = l.matrices().into_iter().filter(|m| l.is_rearranged(m));
            rearranged.map(ExpertMatrix::band_bytes).max()
        };
        self.layers.iter().filter_map(bands).max().unwrap_or(0)
    }

    /// Bytes of all slots together when every expert is held.
    pub(crate) fn bank_bytes(&self) -> u64 {
        self.experts() as u64 * self.slot_bytes as u64
    }
}

/// A layer whose matrices are tensors of the file.
fn plain_layer(gguf: &Gguf, h: &Hparams, i: usize) -> Result<LayerExperts> {
    let cols = gguf.tensor(&Part::Down.tensor(i)).and_then(|down| down.dims.first());
    let down = DownLayout::of(h, cols.copied().unwrap_or(0));
    let tensor = |part: Part| {
        let (rows, cols) = part.shape(h, down);
        expect_tensor(gguf, &part.tensor(i), &[cols, rows, h.n_experts])
    };
    let [gate, up, down_tensor] = [tensor(Part::Gate)?, tensor(Part::Up)?, tensor(Part::Down)?];
    let tensors = [gate, up, down_tensor];
    let too_large = |part: Part| {
        let info = tensors[part as usize];
        Error::unsupported(gguf.path(), &info.name, info.n_bytes, "sizes that fit memory")
    };
    let mut layer = LayerExperts::new(h, tensors.map(|info| info.dtype), down).map_err(too_large)?;
    for (part, info) in Part::ALL.into_iter().zip(tensors) {
        // The directory has checked that the whole tensor lies inside the file.
        let bytes = usize::try_from(info.n_bytes / h.n_experts as u64).map_err(|_| too_large(part))?;
        layer.pieces.push(Piece { shard: info.shard, offset: info.offset, bytes });
    }
    Ok(layer)
}
