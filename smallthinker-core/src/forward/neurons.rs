//! The neurons of one expert for one token: `relu(gate f) ⊙ (up f)`, 32 at a time.

use std::time::{Duration, Instant};

use crate::Result;
use crate::kernels::lanes::{LaneMatrix, PickedRows};
use crate::kernels::neurons::{DownTile, NeuronBlock, Wanted};
use crate::kernels::{ActGroup, ActRow, GROUP, Kernels};
use crate::tensor::DType;
use crate::tensor::matrix::Matrix;
use crate::tensor::packed::Layout;

/// Neurons of a block: as many as share one scale once they are quantized.
pub(crate) const NEURONS: usize = 32;
/// Blocks that a task computes at most: those of an expert of the released models. The more, the seldomer reading turns
/// from the rows of gate to those of up.
pub(crate) const MAX_BLOCKS: usize = 24;
/// Rows of gate between two looks at which rows of up are wanted.
const STEP: usize = 16;
/// Rows of up that are requested before all of gate is done. The others are requested as up is computed.
const EARLY: usize = 4;

/// A block of neurons.
#[derive(Clone)]
pub(crate) struct Neurons {
    /// In single precision; zeros behind the last.
    pub(crate) values: [f32; NEURONS],
    /// Quantized, without zeros.
    pub(crate) packed: NeuronBlock,
    /// Rows of up that were read.
    pub(crate) up_rows: usize,
    /// Time of gate, and of up with what follows it, where they are asked for.
    pub(crate) times: [Duration; 2],
}

impl Default for Neurons {
    fn default() -> Self {
        Neurons { values: [0.0; NEURONS], packed: NeuronBlock::ZERO, up_rows: 0, times: [Duration::ZERO; 2] }
    }
}

/// Computes the neurons from `first` on, of up to [`MAX_BLOCKS`] blocks. Where gate is not above zero the neuron is zero
/// whatever up is, so those rows of up are not read. `timed` asks for the times; the first block gets them.
pub(crate) fn compute(
    kernels: &Kernels,
    [gate, up]: [&Matrix<'_>; 2],
    first: usize,
    x: ActRow<'_>,
    timed: bool,
    out: &mut [Neurons],
) -> Result<()> {
    let began = timed.then(Instant::now);
    let mut active = [0u32; MAX_BLOCKS * NEURONS];
    let mut values = [0.0f32; MAX_BLOCKS * NEURONS];
    let end = gate.rows.min(first + NEURONS * out.len().min(MAX_BLOCKS));
    let mut n = 0;
    for (from, gates) in (first..end).step_by(STEP).zip(values.chunks_mut(STEP)) {
        let gates = &mut gates[..STEP.min(end - from)];
        some_rows(kernels, gate, PickedRows::From(from), x, gates)?;
        let before = n;
        for (row, gate) in (from..).zip(gates) {
            // Written in any case and kept if wanted: which rows are is no pattern that branches could be foreseen from.
            active[n] = row as u32;
            n += usize::from(*gate > 0.0 || gate.is_nan());
        }
        for &row in &active[before.min(EARLY)..n.min(EARLY)] {
            request(kernels, up, row as usize)?;
        }
    }
    let between = timed.then(Instant::now);
    let active = &active[..n];
    let mut ups = [0.0f32; MAX_BLOCKS * NEURONS];
    some_rows(kernels, up, PickedRows::List(active), x, &mut ups[..n])?;
    out.fill(Neurons::default());
    let mut neurons = [0.0f32; MAX_BLOCKS * NEURONS];
    for (&row, up) in active.iter().zip(ups) {
        let i = row as usize - first;
        neurons[i] = values[i] * up;
        out[i / NEURONS].up_rows += 1;
    }
    let cols = out.len().min(MAX_BLOCKS) * NEURONS;
    let mut groups = [ActGroup::ZERO; (MAX_BLOCKS * NEURONS).div_ceil(GROUP)];
    let groups = &mut groups[..cols.div_ceil(GROUP)];
    kernels.quantize_acts(&neurons[..cols], groups)?;
    let row = ActRow { cols, values: &neurons[..cols], groups, lanes: &[] };
    for (i, (block, values)) in out.iter_mut().zip(neurons.as_chunks().0).enumerate() {
        block.values = *values;
        block.packed = row.block(i).as_ref().map_or(NeuronBlock::ZERO, NeuronBlock::new);
    }
    if let (Some(began), Some(between), Some(block)) = (began, between, out.first_mut()) {
        block.times = [between - began, between.elapsed()];
    }
    Ok(())
}

/// The neurons of an expert, as the down projection takes them. Every task makes those that it needs: that takes less time than
/// the others would wait if one thread made them for all.
pub(crate) struct Sparse {
    blocks: Vec<NeuronBlock>,
    wanted: Vec<Wanted>,
}

impl Sparse {
    /// For weights of type `dtype`.
    pub(crate) fn of(dtype: DType, neurons: &[Neurons]) -> Sparse {
        let mut wanted = Vec::with_capacity(neurons.len() * NEURONS / 4);
        for (number, block) in neurons.iter().enumerate() {
            wanted.extend(Wanted::of(dtype, number, &block.packed));
        }
        Sparse { blocks: neurons.iter().map(|block| block.packed).collect(), wanted }
    }

    /// With the weights of a tile; `begun` tells whether the first of them have been requested.
    pub(crate) fn tile<'a>(&'a self, weights: &'a [u8], begun: bool) -> DownTile<'a> {
        DownTile { weights, neurons: &self.blocks, wanted: &self.wanted, begun }
    }
}

pub(super) fn some_rows(
    kernels: &Kernels,
    m: &Matrix<'_>,
    rows: PickedRows<'_>,
    x: ActRow<'_>,
    out: &mut [f32],
) -> Result<()> {
    if m.layout == Layout::Lanes {
        return kernels.matvec_lanes(LaneMatrix::new(m.data, m.rows, m.cols)?, rows, x, out);
    }
    match rows {
        PickedRows::From(first) => {
            kernels.matvec(m.dtype, m.file_rows(first, first + out.len()), m.cols, x, out)
        }
        PickedRows::List(list) => list.iter().zip(out.chunks_exact_mut(1)).try_for_each(|(&row, out)| {
            let row = row as usize;
            kernels.matvec(m.dtype, m.file_rows(row, row + 1), m.cols, x, out)
        }),
    }
}

/// Asks for a row ahead of its use.
fn request(kernels: &Kernels, m: &Matrix<'_>, row: usize) -> Result<()> {
    if m.layout == Layout::Lanes {
        let matrix = LaneMatrix::new(m.data, m.rows, m.cols)?;
        kernels.prefetch(matrix.row_codes(row));
        kernels.prefetch(matrix.row_scales(row));
    } else {
        kernels.prefetch(m.file_rows(row, row + 1));
    }
    Ok(())
}
