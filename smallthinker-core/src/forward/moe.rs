//! The experts of one layer: `Σ_e w_e · down_e( relu(gate_e f) ⊙ (up_e f) )`.

use std::sync::Arc;
use std::time::Duration;

use crate::Result;
use crate::experts::ExpertSlot;
use crate::forward::clock::Stage;
use crate::forward::linear::{Batch, UNIT};
use crate::forward::neurons::{self, NEURONS, Neurons};
use crate::forward::router::Choice;
use crate::forward::{Pass, moe_batch};
use crate::kernels::Acts;
use crate::kernels::gemm::ActTiles;
use crate::kernels::neurons::NeuronBlock;
use crate::model::expert_index::{DownLayout, ExpertMatrix, LayerExperts};
use crate::tensor::packed::{Layout, TILE, neuron_block_bytes};
use crate::tiles::{runs, tiles};

/// Buffers of this stage, kept between calls.
#[derive(Default)]
pub(crate) struct MoeScratch {
    blocks: Vec<Neurons>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) down: Vec<f32>,
    pub(super) neurons: Acts,
    pub(super) gathered: Acts,
    pub(super) batch: Batch,
    /// The neurons of some experts for all their tokens.
    pub(super) tiles: ActTiles,
    pub(super) sparse: Vec<NeuronBlock>,
}

/// Adds the chosen experts' outputs to `y` (`[tokens][hidden]`, zero before). `choices` has `top_k` entries
/// per token, `xs` the normed residuals. Each token's outputs are added in ascending order of expert number,
/// so a token's result does not depend on what else is in the batch.
pub(crate) fn experts(
    pass: &mut Pass<'_>,
    layer: usize,
    choices: &[Choice],
    xs: &Acts,
    s: &mut MoeScratch,
    y: &mut [f32],
) -> Result<()> {
    let parts = &pass.cache.index().layers[layer];
    if xs.tokens() == 1 && parts.down_layout == DownLayout::ByOutput {
        one_token(pass, layer, parts, choices, xs, s, y)
    } else {
        moe_batch::by_expert(pass, layer, parts, choices, xs, s, y)
    }
}

/// Decode: the token's experts together, so that each stage has `top_k` times the rows to share.
fn one_token(
    pass: &mut Pass<'_>,
    layer: usize,
    parts: &LayerExperts,
    choices: &[Choice],
    xs: &Acts,
    s: &mut MoeScratch,
    y: &mut [f32],
) -> Result<()> {
    let acquire = |c: &Choice| pass.cache.acquire((layer, c.expert), pass.cancel);
    let slots: Vec<Arc<ExpertSlot>> = choices.iter().map(acquire).collect::<Result<_>>()?;
    pass.clock.lap(Stage::Wait);
    let (team, kernels, detailed) = (pass.team, pass.kernels, pass.detailed);
    let (ffn, hidden) = (parts.gate.rows, parts.down.rows);
    let blocks = ffn.div_ceil(NEURONS);
    s.blocks.resize(choices.len() * blocks, Neurons::default());
    runs(team, &mut s.blocks, blocks, (1, neurons::MAX_BLOCKS), &|tile| {
        let (e, first) = (tile.rows().start, NEURONS * tile.cols().start);
        let [gate, up] = [&parts.gate, &parts.up].map(|m| slots[e].matrix(m));
        neurons::compute(kernels, [&gate, &up], first, xs.row(0), detailed, tile.row(e))
    })?;
    let bytes_per_row = |m: &ExpertMatrix| (m.slot_bytes / m.rows.max(1)) as u64;
    let active: usize = s.blocks.iter().map(|b| b.up_rows).sum();
    if detailed {
        let [gate, up] = [0, 1].map(|part| s.blocks.iter().map(|b| b.times[part]).sum::<Duration>());
        pass.clock.lap_split([Stage::Gate, Stage::Up], gate, up);
    } else {
        pass.clock.lap(Stage::GateUp);
    }
    pass.clock.bytes(Stage::Gate, choices.len() as u64 * parts.gate.slot_bytes as u64);
    pass.clock.bytes(Stage::Up, active as u64 * bytes_per_row(&parts.up));
    if parts.down.layout == Layout::Neurons {
        // One place per expert and output: which thread makes it when does not matter for the sum.
        let dtype = parts.down.dtype;
        let tile_bytes = blocks * neuron_block_bytes(dtype).unwrap_or(0);
        let width = hidden.next_multiple_of(TILE);
        s.down.resize(choices.len() * width, 0.0);
        s.sparse.clear();
        s.sparse.extend(s.blocks.iter().map(|b| b.packed));
        let blocks = &s.sparse;
        let per_expert = blocks.len() / choices.len().max(1);
        tiles(team, &mut s.down, width, (1, TILE), &|tile| {
            let (e, at) = (tile.rows().start, tile.cols().start / TILE * tile_bytes);
            let down = slots[e].matrix(&parts.down);
            let bytes = down.data.get(at..at + tile_bytes).unwrap_or(&[]);
            let neurons = &blocks[e * per_expert..(e + 1) * per_expert];
            let out = tile.row(e).first_chunk_mut::<TILE>();
            out.map_or(Ok(()), |out| kernels.down_tile(dtype, bytes, neurons, out))
        })?;
        for (choice, out) in choices.iter().zip(s.down.chunks_exact(width)) {
            kernels.add_scaled(y, choice.weight, &out[..hidden])?;
        }
        let touched: usize = blocks.iter().map(|b| b.bytes(dtype)).sum();
        pass.clock.bytes(Stage::Down, (touched * (width / TILE)) as u64);
        pass.clock.lap(Stage::Down);
        return Ok(());
    }
    s.gate.clear();
    for blocks in s.blocks.chunks_exact(blocks) {
        s.gate.extend(blocks.iter().flat_map(|b| b.values).take(ffn));
    }
    s.neurons.set(kernels, &s.gate, ffn, parts.down.dtype.is_quantized())?;
    let neurons = &s.neurons;
    runs(team, y, hidden, (UNIT, usize::MAX), &|tile| {
        let rows = tile.cols();
        let mut block = [0.0f32; 256];
        for (i, y) in tile.row(0).chunks_mut(block.len()).enumerate() {
            let from = rows.start + i * block.len();
            let out = &mut block[..y.len()];
            for (e, (slot, choice)) in slots.iter().zip(choices).enumerate() {
                let bytes = slot.matrix(&parts.down).file_rows(from, from + out.len());
                kernels.matvec(parts.down.dtype, bytes, parts.down.cols, neurons.row(e), out)?;
                kernels.add_scaled(y, choice.weight, out)?;
            }
        }
        Ok(())
    })?;
    pass.clock.bytes(Stage::Down, choices.len() as u64 * parts.down.slot_bytes as u64);
    pass.clock.lap(Stage::Down);
    Ok(())
}
