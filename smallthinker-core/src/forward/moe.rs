//! The experts of one layer: `Σ_e w_e · down_e( relu(gate_e f) ⊙ (up_e f) )`.

use std::sync::Arc;

use crate::experts::ExpertSlot;
use crate::forward::Pass;
use crate::forward::linear::{Rows, columns_per_task, linear};
use crate::forward::router::Choice;
use crate::kernels::Acts;
use crate::model::expert_index::{DownLayout, ExpertMatrix, LayerExperts};
use crate::tensor::{DType, dequantize};
use crate::tiles::tiles;
use crate::{Error, Result};

/// Buffers of this stage, kept between calls.
#[derive(Default)]
pub(crate) struct MoeScratch {
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
    neurons: Acts,
    gathered: Acts,
}

/// One matrix of a loaded expert.
struct Loaded<'a> {
    slot: &'a ExpertSlot,
    matrix: &'a ExpertMatrix,
}

impl Rows for Loaded<'_> {
    fn dtype(&self) -> DType {
        self.matrix.dtype
    }
    fn n_rows(&self) -> usize {
        self.matrix.rows
    }
    fn cols(&self) -> usize {
        self.matrix.cols
    }
    fn rows(&self, from: usize, to: usize) -> &[u8] {
        self.slot.rows(self.matrix, from, to)
    }
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
    let (team, kernels) = (pass.team, pass.kernels);
    let acquire = |c: &Choice| pass.cache.acquire((layer, c.expert), pass.cancel);
    let slots: Vec<Arc<ExpertSlot>> = choices.iter().map(acquire).collect::<Result<_>>()?;
    let ffn = parts.gate.rows;
    s.gate.resize(choices.len() * ffn, 0.0);
    let cols = columns_per_task(team, ffn, 1).max(64);
    tiles(team, &mut s.gate, ffn, (1, cols), &|tile| {
        let (slot, rows) = (&slots[tile.rows().start], tile.cols());
        let gate = tile.row(tile.rows().start);
        let part = |m| slot.rows(m, rows.start, rows.end);
        kernels.matvec(parts.gate.dtype, part(&parts.gate), parts.gate.cols, xs.row(0), gate)?;
        let mut block = [0.0f32; 128];
        for (i, gate) in gate.chunks_mut(block.len()).enumerate() {
            let from = rows.start + i * block.len();
            let up = &mut block[..gate.len()];
            let bytes = slot.rows(&parts.up, from, from + gate.len());
            kernels.matvec(parts.up.dtype, bytes, parts.up.cols, xs.row(0), up)?;
            kernels.relu_mul(gate, up)?;
        }
        Ok(())
    })?;
    s.neurons.set(kernels, &s.gate, ffn, parts.down.dtype.is_quantized())?;
    let neurons = &s.neurons;
    tiles(team, y, parts.down.rows, (1, columns_per_task(team, parts.down.rows, 1)), &|tile| {
        let rows = tile.cols();
        let mut block = [0.0f32; 256];
        for (i, y) in tile.row(0).chunks_mut(block.len()).enumerate() {
            let from = rows.start + i * block.len();
            let out = &mut block[..y.len()];
            for (e, (slot, choice)) in slots.iter().zip(choices).enumerate() {
                let bytes = slot.rows(&parts.down, from, from + out.len());
                kernels.matvec(parts.down.dtype, bytes, parts.down.cols, neurons.row(e), out)?;
                add_scaled(y, choice.weight, out);
            }
        }
        Ok(())
    })?;
    pass.traffic += parts.expert_bytes() * choices.len() as u64;
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
        let part = |matrix| Loaded { slot: &slot, matrix };
        s.gathered.gather(xs, users.iter().map(|(t, _)| *t))?;
        let (ffn, n) = (parts.gate.rows, users.len());
        s.gate.resize(n * ffn, 0.0);
        s.up.resize(n * ffn, 0.0);
        linear(team, kernels, &[&part(&parts.gate)], &s.gathered, &mut s.gate)?;
        linear(team, kernels, &[&part(&parts.up)], &s.gathered, &mut s.up)?;
        kernels.relu_mul(&mut s.gate, &s.up)?;
        match parts.down_layout {
            DownLayout::ByOutput => {
                let hidden = parts.down.rows;
                s.neurons.set(kernels, &s.gate, ffn, parts.down.dtype.is_quantized())?;
                s.down.resize(n * hidden, 0.0);
                linear(team, kernels, &[&part(&parts.down)], &s.neurons, &mut s.down)?;
                for ((t, w), out) in users.iter().zip(s.down.chunks_exact(hidden)) {
                    add_scaled(&mut y[t * hidden..(t + 1) * hidden], *w, out);
                }
            }
            DownLayout::ByNeuron => down_by_neuron(pass, &slot, &parts.down, users, &s.gate, y)?,
        }
        pass.traffic += parts.expert_bytes();
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
    let (kernels, hidden) = (pass.kernels, m.cols);
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
                dequantize(m.dtype, &slot.rows(m, n, n + 1)[from..to], &mut row)?;
                kernels.axpy_f32(&mut sum, value, &row)?;
            }
            add_scaled(tile.row(*t), *w, &sum);
        }
        Ok(())
    })
}
