//! The experts of one layer: `Σ_e w_e · down_e( relu(gate_e f) ⊙ (up_e f) )`.

use std::sync::Arc;
use std::time::Duration;

use crate::Result;
use crate::experts::ExpertSlot;
use crate::forward::clock::Stage;
use crate::forward::linear::{Batch, UNIT};
use crate::forward::neurons::{self, NEURONS, Neurons, Sparse};
use crate::forward::router::Choice;
use crate::forward::{Pass, moe_batch};
use crate::kernels::Acts;
use crate::kernels::gemm::ActTiles;
use crate::kernels::neurons::NeuronBlock;
use crate::model::expert_index::{DownLayout, LayerExperts, Part};
use crate::tensor::matrix::Matrix;
use crate::tensor::packed::{Layout, TILE, neuron_block_bytes};
use crate::tiles::runs;

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
    if xs.tokens() == 1 {
        pass.cache.fetch(pass.team)?;
    }
    if xs.tokens() == 1 && parts.down_layout == DownLayout::ByOutput {
        one_token(pass, layer, parts, choices, xs, s, y)
    } else {
        moe_batch::by_expert(pass, layer, parts, choices, xs, s, y)
    }
}

/// Decode: the token's experts together, so that each stage has `top_k` times the rows to share. Those that are still
/// being read come in a later round.
fn one_token(
    pass: &mut Pass<'_>,
    layer: usize,
    parts: &LayerExperts,
    choices: &[Choice],
    xs: &Acts,
    s: &mut MoeScratch,
    y: &mut [f32],
) -> Result<()> {
    let (ffn, hidden) = (parts.gate.rows, parts.down.rows);
    let (blocks, width) = (ffn.div_ceil(NEURONS), hidden.next_multiple_of(TILE));
    let by_neuron = parts.down.layout == Layout::Neurons;
    s.blocks.resize(choices.len() * blocks, Neurons::default());
    s.down.resize(choices.len() * width, 0.0);
    // In the order in which they arrive: places in `choices`.
    let mut order = Vec::with_capacity(choices.len());
    let mut slots: Vec<Arc<ExpertSlot>> = Vec::with_capacity(choices.len());
    while order.len() < choices.len() {
        let left: Vec<usize> = (0..choices.len()).filter(|c| !order.contains(c)).collect();
        let experts: Vec<usize> = left.iter().map(|&c| choices[c].expert).collect();
        let before = order.len();
        for (place, slot) in pass.cache.acquire_any(layer, &experts, pass.team, pass.cancel)? {
            order.push(left[place]);
            slots.push(slot);
        }
        pass.clock.lap(Stage::Wait);
        let here = &slots[before..];
        let round = blocks * before..blocks * order.len();
        gate_up(pass, parts, here, xs, &mut s.blocks[round.clone()])?;
        let active = s.blocks[round.clone()].iter().map(|b| b.up_rows).sum();
        pass.count_neurons(layer, active, here.len() * ffn);
        if by_neuron {
            let out = &mut s.down[width * before..width * order.len()];
            sparse_down(pass, parts, here, &s.blocks[round], out)?;
        }
    }
    // Added in the order of the choices, whatever the order in which they came.
    let place = |choice: usize| order.iter().position(|&c| c == choice).unwrap_or(choice);
    if by_neuron {
        for (c, choice) in choices.iter().enumerate() {
            let out = &s.down[place(c) * width..][..hidden];
            pass.kernels.add_scaled(y, choice.weight, out)?;
        }
        pass.clock.lap(Stage::Down);
        return Ok(());
    }
    s.gate.clear();
    for c in 0..choices.len() {
        let blocks = &s.blocks[place(c) * blocks..][..blocks];
        s.gate.extend(blocks.iter().flat_map(|b| b.values).take(ffn));
    }
    let downs: Vec<Matrix<'_>> =
        (0..choices.len()).map(|c| slots[place(c)].matrix(parts, Part::Down)).collect();
    s.neurons.set(pass.kernels, &s.gate, ffn, parts.down.dtype.is_quantized())?;
    dense_down(pass, &downs, choices, &s.neurons, y)
}

/// The neurons of some experts for one token.
fn gate_up(
    pass: &mut Pass<'_>,
    parts: &LayerExperts,
    slots: &[Arc<ExpertSlot>],
    xs: &Acts,
    out: &mut [Neurons],
) -> Result<()> {
    let (kernels, detailed) = (pass.kernels, pass.detailed);
    // Of up, about half.
    let team = pass.team.for_bytes(slots.len() * (parts.gate.slot_bytes + parts.up.slot_bytes / 2));
    let per_expert = out.len() / slots.len().max(1);
    runs(&team, out, per_expert, (1, neurons::MAX_BLOCKS), &|tile| {
        let (e, first) = (tile.rows().start, NEURONS * tile.cols().start);
        let [gate, up] = [Part::Gate, Part::Up].map(|part| slots[e].matrix(parts, part));
        neurons::compute(kernels, [&gate, &up], first, xs.row(0), detailed, tile.row(e))
    })?;
    if detailed {
        let [gate, up] = [0, 1].map(|part| out.iter().map(|b| b.times[part]).sum::<Duration>());
        pass.clock.lap_split([Stage::Gate, Stage::Up], gate, up);
    } else {
        pass.clock.lap(Stage::GateUp);
    }
    let active: usize = out.iter().map(|b| b.up_rows).sum();
    let bytes_per_row = parts.up.slot_bytes / parts.up.rows.max(1);
    pass.clock.bytes(Stage::Gate, slots.len() as u64 * parts.gate.slot_bytes as u64);
    pass.clock.bytes(Stage::Up, (active * bytes_per_row) as u64);
    Ok(())
}

/// The down projections of some experts for one token, from the weights of active neurons only. `blocks` has those of
/// each expert; `out` becomes `[experts][outputs, padded to whole tiles]`: one place per expert and output, so that
/// it does not matter for any sum which thread makes it when.
fn sparse_down(
    pass: &mut Pass<'_>,
    parts: &LayerExperts,
    slots: &[Arc<ExpertSlot>],
    blocks: &[Neurons],
    out: &mut [f32],
) -> Result<()> {
    let (kernels, dtype) = (pass.kernels, parts.down.dtype);
    let (per_expert, width) = (blocks.len() / slots.len().max(1), out.len() / slots.len().max(1));
    let tile_bytes = per_expert * neuron_block_bytes(dtype).unwrap_or(0);
    let touched = blocks.iter().map(|b| b.packed.bytes(dtype)).sum::<usize>() * (width / TILE);
    let (experts, tiles) = (slots.len(), width / TILE);
    let weights = |e: usize, t: usize| {
        let down = slots[e].matrix(parts, Part::Down).data;
        down.get(t * tile_bytes..(t + 1) * tile_bytes).unwrap_or(&[])
    };
    let neurons = |e: usize| Sparse::of(dtype, &blocks[e * per_expert..(e + 1) * per_expert]);
    runs(&pass.team.for_bytes(touched), out, width, (TILE, usize::MAX), &|tile| {
        let (e, first) = (tile.rows().start, tile.cols().start / TILE);
        let outs = tile.row(e).as_chunks_mut::<TILE>().0;
        let end = first + outs.len();
        // A single tile is a thread's last as a rule.
        let goes_on = outs.len() > 1;
        let (here, there) =
            (neurons(e), (goes_on && end == tiles && e + 1 < experts).then(|| neurons(e + 1)));
        for (t, out) in (first..).zip(outs) {
            let next = match &there {
                Some(there) if t + 1 == tiles => Some(there.tile(weights(e + 1, 0), true)),
                _ => (goes_on && t + 1 < tiles).then(|| here.tile(weights(e, t + 1), true)),
            };
            // What came before the first is another task's to know.
            let down = here.tile(weights(e, t), t > first);
            kernels.down_tile(dtype, &down, next.as_ref(), out)?;
        }
        Ok(())
    })?;
    pass.clock.bytes(Stage::Down, touched as u64);
    pass.clock.lap(Stage::Down);
    Ok(())
}

/// Adds the down projections of one token's experts, from all their weights, to `y`.
fn dense_down(
    pass: &mut Pass<'_>,
    downs: &[Matrix<'_>],
    choices: &[Choice],
    neurons: &Acts,
    y: &mut [f32],
) -> Result<()> {
    let kernels = pass.kernels;
    let bytes = downs.iter().map(|down| down.data.len()).sum();
    runs(&pass.team.for_bytes(bytes), y, y.len(), (UNIT, usize::MAX), &|tile| {
        let rows = tile.cols();
        let mut block = [0.0f32; 256];
        for (i, y) in tile.row(0).chunks_mut(block.len()).enumerate() {
            let from = rows.start + i * block.len();
            let out = &mut block[..y.len()];
            for (e, (down, choice)) in downs.iter().zip(choices).enumerate() {
                let bytes = down.file_rows(from, from + out.len());
                kernels.matvec(down.dtype, bytes, down.cols, neurons.row(e), out)?;
                kernels.add_scaled(y, choice.weight, out)?;
            }
        }
        Ok(())
    })?;
    pass.clock.bytes(Stage::Down, bytes as u64);
    pass.clock.lap(Stage::Down);
    Ok(())
}
