//! The experts of one layer for many tokens: each expert that the batch touches is read once and applied to all its
//! tokens.

use crate::forward::clock::Stage;
use crate::forward::linear::linear;
use crate::forward::moe::MoeScratch;
use crate::forward::neurons::NEURONS;
use crate::forward::router::Choice;
use crate::forward::{Pass, moe_packed};
use crate::kernels::neurons::{DownTile, NeuronBlock, Wanted};
use crate::kernels::{Acts, Forms, Kernels};
use crate::model::expert_index::{DownLayout, LayerExperts, Part};
use crate::pool::Team;
use crate::tensor::matrix::Matrix;
use crate::tensor::packed::{Layout, TILE, neuron_block_bytes};
use crate::tensor::{DType, dequantize};
use crate::tiles::tiles;
use crate::{Error, Result};

/// Tokens of a task of [`sparse_down`]: enough to find a tile's weights in the cache after the first.
const SPARSE_TOKENS: usize = 64;
/// Tokens of such a task after which most of the tile's weights are in the cache.
const FROM_MEMORY: usize = 4;

/// A token that chose an expert, and the weight of the choice.
pub(super) type User = (usize, f32);

/// Adds the experts' outputs to `y`; see [`experts`](super::moe::experts).
pub(super) fn by_expert(
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
    let mut users: Vec<Vec<User>> = vec![Vec::new(); pass.cache.index().n_experts];
    for (i, c) in choices.iter().enumerate() {
        users[c.expert].push((i / top_k.max(1), c.weight));
    }
    if parts.matrices().iter().all(|m| m.layout != Layout::Rows && m.dtype == DType::Q4_0) {
        return moe_packed::experts(pass, layer, parts, &users, xs, s, y);
    }
    for (expert, users) in users.iter().enumerate().filter(|(_, u)| !u.is_empty()) {
        let slot = pass.cache.acquire((layer, expert), team, pass.cancel)?;
        pass.clock.lap(Stage::Wait);
        let [gate, up, down] = Part::ALL.map(|part| slot.matrix(parts, part));
        s.gathered.gather(xs, users.iter().map(|(t, _)| *t))?;
        let (ffn, n) = (gate.rows, users.len());
        s.gate.resize(n * ffn, 0.0);
        s.up.resize(n * ffn, 0.0);
        linear(team, kernels, &[gate], &s.gathered, &mut s.batch, &mut s.gate)?;
        linear(team, kernels, &[up], &s.gathered, &mut s.batch, &mut s.up)?;
        if xs.tokens() == 1 {
            pass.count_neurons(layer, s.gate.iter().filter(|g| **g > 0.0 || g.is_nan()).count(), ffn);
        }
        kernels.relu_mul(&mut s.gate, &s.up)?;
        pass.clock.lap(Stage::GateUp);
        if parts.down_layout == DownLayout::ByNeuron {
            down_by_neuron(pass, &down, users, &s.gate, y)?;
        } else {
            pass.quantize(&s.gate, ffn, Forms::of(&[down.dtype]), &mut s.neurons)?;
            if down.layout == Layout::Neurons && down.dtype != DType::Q4_0 {
                sparse_down(team, kernels, &down, &s.neurons, &mut s.sparse, users, y)?;
            } else {
                s.down.resize(n * down.rows, 0.0);
                linear(team, kernels, &[down], &s.neurons, &mut s.batch, &mut s.down)?;
                for ((t, w), out) in users.iter().zip(s.down.chunks_exact(down.rows)) {
                    kernels.add_scaled(&mut y[t * down.rows..(t + 1) * down.rows], *w, out)?;
                }
            }
        }
        pass.clock.lap(Stage::Down);
        pass.clock.bytes(Stage::GateUp, (parts.gate.slot_bytes + parts.up.slot_bytes) as u64);
        let down = match parts.down_layout {
            // Of one token, the rows of active neurons only; of many, most rows.
            DownLayout::ByNeuron if users.len() == 1 => {
                let active = s.gate.iter().filter(|g| **g != 0.0).count();
                active * (parts.down.slot_bytes / parts.down.rows.max(1))
            }
            _ => parts.down.slot_bytes,
        };
        pass.clock.bytes(Stage::Down, down as u64);
    }
    Ok(())
}

/// Down from neurons for the types that have no product with many vectors in this layout: one vector at a time, the
/// neurons that are zero skipped.
fn sparse_down(
    team: &Team<'_>,
    kernels: &Kernels,
    down: &Matrix<'_>,
    neurons: &Acts,
    blocks: &mut Vec<NeuronBlock>,
    users: &[User],
    y: &mut [f32],
) -> Result<()> {
    let per_token = down.cols / NEURONS;
    blocks.resize(neurons.tokens() * per_token, NeuronBlock::ZERO);
    tiles(team, blocks, per_token, (SPARSE_TOKENS, per_token), &|tile| {
        for t in tile.rows() {
            let row = neurons.row(t);
            for (b, place) in tile.row(t).iter_mut().enumerate() {
                *place = row.block(b).as_ref().map_or(NeuronBlock::ZERO, NeuronBlock::new);
            }
        }
        Ok(())
    })?;
    let tile_bytes = per_token * neuron_block_bytes(down.dtype).unwrap_or(0);
    tiles(team, y, down.rows, (SPARSE_TOKENS, TILE), &|tile| {
        let at = tile.cols().start / TILE * tile_bytes;
        let bytes = down.data.get(at..at + tile_bytes).unwrap_or(&[]);
        let tokens = tile.rows();
        let (mut out, mut wanted) = ([0.0f32; TILE], Vec::new());
        let users = users.iter().zip(blocks.chunks_exact(per_token.max(1)));
        let users = users.filter(|((t, _), _)| tokens.contains(t));
        for (i, ((t, w), blocks)) in users.enumerate() {
            wanted.clear();
            if i < FROM_MEMORY {
                let numbered = blocks.iter().enumerate();
                wanted.extend(numbered.flat_map(|(b, block)| Wanted::of(down.dtype, b, block)));
            }
            let down_tile = DownTile { weights: bytes, neurons: blocks, wanted: &wanted, begun: false };
            kernels.down_tile(down.dtype, &down_tile, None, &mut out)?;
            // The last tile may have fewer outputs.
            let y = tile.row(*t);
            kernels.add_scaled(y, *w, &out[..y.len()])?;
        }
        Ok(())
    })
}

/// Down from rows by neuron: each active neuron adds its row, times its value. Columns are split at whole
/// blocks, so a task dequantizes only what it adds.
fn down_by_neuron(
    pass: &Pass<'_>,
    m: &Matrix<'_>,
    users: &[User],
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
                dequantize(m.dtype, &m.file_rows(n, n + 1)[from..to], &mut row)?;
                kernels.axpy_f32(&mut sum, value, &row)?;
            }
            kernels.add_scaled(tile.row(*t), *w, &sum)?;
        }
        Ok(())
    })
}
