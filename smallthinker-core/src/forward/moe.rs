//! The experts of one layer: `Σ_e w_e · down_e( relu(gate_e f) ⊙ (up_e f) )`.

use std::sync::Arc;

use crate::experts::ExpertSlot;
use crate::forward::Pass;
use crate::forward::clock::Stage;
use crate::forward::linear::{columns_per_task, linear};
use crate::forward::neurons::{NEURONS, Neurons};
use crate::forward::router::Choice;
use crate::kernels::Acts;
use crate::kernels::neurons::NeuronBlock;
use crate::model::expert_index::{DownLayout, ExpertMatrix, LayerExperts};
use crate::tensor::dequantize;
use crate::tensor::packed::{BLOCK, Layout, TILE};
use crate::tiles::tiles;
use crate::{Error, Result};

/// Buffers of this stage, kept between calls.
#[derive(Default)]
pub(crate) struct MoeScratch {
    blocks: Vec<Neurons>,
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
    neurons: Acts,
    gathered: Acts,
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
        by_expert(pass, layer, parts, choices, xs, s, y)
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
    let (team, kernels) = (pass.team, pass.kernels);
    let (ffn, hidden) = (parts.gate.rows, parts.down.rows);
    let blocks = ffn.div_ceil(NEURONS);
    s.blocks.resize(choices.len() * blocks, Neurons::default());
    tiles(team, &mut s.blocks, blocks, (1, 1), &|tile| {
        let (e, b) = (tile.rows().start, tile.cols().start);
        let (gate, up) = (slots[e].matrix(&parts.gate), slots[e].matrix(&parts.up));
        let rows = NEURONS * b..ffn.min(NEURONS * (b + 1));
        tile.row(e)[0].compute(kernels, &gate, &up, rows, xs.row(0))
    })?;
    let bytes_per_row = |m: &ExpertMatrix| (m.slot_bytes / m.rows.max(1)) as u64;
    let active: usize = s.blocks.iter().map(|b| b.up_rows).sum();
    pass.clock.lap(Stage::GateUp);
    pass.clock.bytes(Stage::Gate, choices.len() as u64 * parts.gate.slot_bytes as u64);
    pass.clock.bytes(Stage::Up, active as u64 * bytes_per_row(&parts.up));
    if parts.down.layout == Layout::Neurons {
        // One place per expert and output: which thread makes it when does not matter for the sum.
        let tile_bytes = blocks * BLOCK;
        let width = hidden.next_multiple_of(TILE);
        s.down.resize(choices.len() * width, 0.0);
        let blocks: Vec<NeuronBlock> = s.blocks.iter().map(|b| b.packed).collect();
        let per_expert = blocks.len() / choices.len().max(1);
        tiles(team, &mut s.down, width, (1, TILE), &|tile| {
            let (e, at) = (tile.rows().start, tile.cols().start / TILE * tile_bytes);
            let down = slots[e].matrix(&parts.down);
            let bytes = down.data.get(at..at + tile_bytes).unwrap_or(&[]);
            let neurons = &blocks[e * per_expert..(e + 1) * per_expert];
            let out = tile.row(e).first_chunk_mut::<TILE>();
            out.map_or(Ok(()), |out| kernels.down_tile(bytes, neurons, out))
        })?;
        for (choice, out) in choices.iter().zip(s.down.chunks_exact(width)) {
            add_scaled(y, choice.weight, &out[..hidden]);
        }
        let touched: usize = blocks.iter().map(NeuronBlock::bytes).sum();
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
    tiles(team, y, hidden, (1, columns_per_task(team, hidden, 1)), &|tile| {
        let rows = tile.cols();
        let mut block = [0.0f32; 256];
        for (i, y) in tile.row(0).chunks_mut(block.len()).enumerate() {
            let from = rows.start + i * block.len();
            let out = &mut block[..y.len()];
            for (e, (slot, choice)) in slots.iter().zip(choices).enumerate() {
                let bytes = slot.matrix(&parts.down).file_rows(from, from + out.len());
                kernels.matvec(parts.down.dtype, bytes, parts.down.cols, neurons.row(e), out)?;
                add_scaled(y, choice.weight, out);
            }
        }
        Ok(())
    })?;
    pass.clock.bytes(Stage::Down, choices.len() as u64 * parts.down.slot_bytes as u64);
    pass.clock.lap(Stage::Down);
    Ok(())
}

/// Prefill: each expert that the batch touches is read once and applied to all its tokens.
fn by_expert(
    pass: &mut Pass<'_>,
    layer: usize,
    parts: &LayerExperts,
    choices: &[Choice],
    xs: &Acts,
    s: &mut MoeScratch,
    y: &mut [f32],
) -> Result<()> {
    let (team, kernels) = (pass.team, pass.kernels);
    let top_k = choices.len() / xs.tokens().max(1);
    let mut users: Vec<Vec<(usize, f32)>> = vec![Vec::new(); pass.cache.index().n_experts];
    for (i, c) in choices.iter().enumerate() {
        users[c.expert].push((i / top_k.max(1), c.weight));
    }
    for (expert, users) in users.iter().enumerate().filter(|(_, u)| !u.is_empty()) {
        let slot = pass.cache.acquire((layer, expert), pass.cancel)?;
        s.gathered.gather(xs, users.iter().map(|(t, _)| *t))?;
        let (ffn, n) = (parts.gate.rows, users.len());
        s.gate.resize(n * ffn, 0.0);
        s.up.resize(n * ffn, 0.0);
        linear(team, kernels, &[slot.matrix(&parts.gate)], &s.gathered, &mut s.gate)?;
        linear(team, kernels, &[slot.matrix(&parts.up)], &s.gathered, &mut s.up)?;
        kernels.relu_mul(&mut s.gate, &s.up)?;
        match parts.down_layout {
            DownLayout::ByOutput => {
                let hidden = parts.down.rows;
                s.neurons.set(kernels, &s.gate, ffn, parts.down.dtype.is_quantized())?;
                s.down.resize(n * hidden, 0.0);
                linear(team, kernels, &[slot.matrix(&parts.down)], &s.neurons, &mut s.down)?;
                for ((t, w), out) in users.iter().zip(s.down.chunks_exact(hidden)) {
                    add_scaled(&mut y[t * hidden..(t + 1) * hidden], *w, out);
                }
            }
            DownLayout::ByNeuron => down_by_neuron(pass, &slot, &parts.down, users, &s.gate, y)?,
        }
        pass.clock.bytes(Stage::GateUp, parts.expert_bytes());
    }
    Ok(())
}

fn add_scaled(y: &mut [f32], w: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
}

/// Down from rows by neuron: each active neuron adds its row, times its value. Columns are split at whole
/// blocks, so a task dequantizes only what it adds.
fn down_by_neuron(
    pass: &Pass<'_>,
    slot: &ExpertSlot,
    m: &ExpertMatrix,
    users: &[(usize, f32)],
    neurons: &[f32],
    y: &mut [f32],
) -> Result<()> {
    let (kernels, hidden, weights) = (pass.kernels, m.cols, slot.matrix(m));
    let block = m.dtype.block_len().max(64);
    let cols = hidden.div_ceil(pass.team.threads()).next_multiple_of(block);
    let tokens = y.len() / hidden;
    tiles(pass.team, y, hidden, (tokens, cols), &|tile| {
        let cols = tile.cols();
        let bytes_at = |c: usize| m.dtype.row_bytes(c);
        let (Some(from), Some(to)) = (bytes_at(cols.start), bytes_at(cols.end)) else {
            return Err(Error::Internal { message: format!("columns {cols:?} split a block") });
        };
        let mut row = vec![0.0f32; cols.len()];
        let mut sum = vec![0.0f32; cols.len()];
        for ((t, w), neurons) in users.iter().zip(neurons.chunks_exact(m.rows)) {
            sum.fill(0.0);
            for (n, &value) in neurons.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                dequantize(m.dtype, &weights.file_rows(n, n + 1)[from..to], &mut row)?;
                kernels.axpy_f32(&mut sum, value, &row)?;
            }
            add_scaled(tile.row(*t), *w, &sum);
        }
        Ok(())
    })
}
