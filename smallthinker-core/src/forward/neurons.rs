//! The neurons of one expert for one token: `relu(gate f) ⊙ (up f)`, 32 at a time.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::Result;
use crate::kernels::lanes::{LaneMatrix, PickedRows};
use crate::kernels::neurons::NeuronBlock;
use crate::kernels::{ActGroup, ActRow, Kernels};
use crate::tensor::matrix::Matrix;
use crate::tensor::packed::Layout;

/// Neurons of a block: as many as share one scale once they are quantized.
pub(crate) const NEURONS: usize = 32;
/// Rows of gate between two looks at which rows of up are wanted.
const STEP: usize = 16;

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

impl Neurons {
    /// Computes neurons `rows`. Where gate is not above zero the neuron is zero whatever up is, so those rows of up
    /// are not read. `timed` asks for the times.
    pub(crate) fn compute(
        &mut self,
        kernels: &Kernels,
        gate: &Matrix<'_>,
        up: &Matrix<'_>,
        rows: Range<usize>,
        x: ActRow<'_>,
        timed: bool,
    ) -> Result<()> {
        let began = timed.then(Instant::now);
        let mut active = [0u32; NEURONS];
        let mut values = [0.0f32; NEURONS];
        let mut n = 0;
        for from in rows.clone().step_by(STEP) {
            let mut gates = [0.0f32; STEP];
            let gates = &mut gates[..STEP.min(rows.end - from)];
            some_rows(kernels, gate, PickedRows::From(from), x, gates)?;
            for (row, &g) in (from..).zip(gates.iter()).filter(|(_, g)| **g > 0.0 || g.is_nan()) {
                (active[n], values[n]) = (row as u32, g);
                n += 1;
                request(kernels, up, row)?;
            }
        }
        let between = timed.then(Instant::now);
        let mut ups = [0.0f32; NEURONS];
        some_rows(kernels, up, PickedRows::List(&active[..n]), x, &mut ups[..n])?;
        self.values = [0.0; NEURONS];
        for ((&row, g), u) in active[..n].iter().zip(values).zip(ups) {
            self.values[row as usize - rows.start] = g * u;
        }
        let mut group = [ActGroup::ZERO];
        kernels.quantize_acts(&self.values, &mut group)?;
        let row = ActRow { cols: NEURONS, values: &self.values, groups: &group, lanes: &[] };
        self.packed = row.block(0).as_ref().map_or(NeuronBlock::ZERO, NeuronBlock::new);
        self.up_rows = n;
        if let (Some(began), Some(between)) = (began, between) {
            self.times = [between - began, between.elapsed()];
        }
        Ok(())
    }
}

fn some_rows(
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
