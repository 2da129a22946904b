//! Causal grouped-query attention over the KV cache.

use crate::Result;
use crate::forward::kv_cache::{Elements, LayerKv, PAGE};
use crate::kernels::Kernels;
use crate::model::hparams::Hparams;
use crate::pool::Team;
use crate::tiles::tiles;

/// Tokens that one task attends for during prefill.
const TOKENS_PER_TASK: usize = 8;

/// One chunk's queries.
pub(crate) struct Queries<'a> {
    /// `[tokens][stride]`, the queries first in each row.
    pub(crate) rows: &'a [f32],
    pub(crate) stride: usize,
    /// Position of the first.
    pub(crate) start: usize,
}

/// `out[t]` (`q_dim` wide) = attention of query `t` over the positions it may see. The keys and values of
/// the chunk itself are in the cache already.
///
/// One pass with a running maximum (online softmax), in blocks of pages. Blocks start at multiples of
/// [`PAGE`], so the order of additions depends on the position alone, not on how the prompt was chunked.
pub(crate) fn attend(
    team: &Team<'_>,
    kernels: &Kernels,
    h: &Hparams,
    window: Option<usize>,
    queries: &Queries<'_>,
    kv: &LayerKv,
    out: &mut [f32],
) -> Result<()> {
    let group = h.n_heads / h.n_kv_heads;
    tiles(team, out, h.q_dim(), (TOKENS_PER_TASK, group * h.head_dim), &|tile| {
        let kv_head = tile.cols().start / (group * h.head_dim);
        for t in tile.rows() {
            let last = queries.start + t;
            let visible = window.map_or(0, |w| (last + 1).saturating_sub(w))..last + 1;
            let q = &queries.rows[t * queries.stride..][tile.cols()];
            let heads = q.chunks_exact(h.head_dim).zip(tile.row(t).chunks_exact_mut(h.head_dim));
            for (q, out) in heads {
                one_head(kernels, q, kv, kv_head, visible.clone(), out)?;
            }
        }
        Ok(())
    })
}

fn one_head(
    kernels: &Kernels,
    q: &[f32],
    kv: &LayerKv,
    kv_head: usize,
    visible: std::ops::Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let head_dim = q.len();
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut scores = [0.0f32; PAGE];
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
    out.fill(0.0);
    let mut from = visible.start;
    while from < visible.end {
        let to = visible.end.min((from / PAGE + 1) * PAGE);
        let page = kv.page(from);
        let at = (kv_head * PAGE + from % PAGE) * head_dim;
        let scores = &mut scores[..to - from];
        dots(kernels, q, &page.keys, at, scores)?;
        let mut block_max = max;
        for s in scores.iter_mut() {
            *s *= scale;
            block_max = block_max.max(*s);
        }
        // exp(-inf) = 0 clears the empty start.
        let shrink = (max - block_max).exp();
        if shrink != 1.0 {
            sum *= shrink;
            out.iter_mut().for_each(|o| *o *= shrink);
        }
        max = block_max;
        for s in scores.iter_mut() {
            *s = (*s - max).exp();
            sum += *s;
        }
        add_weighted(kernels, scores, &page.values, at, out)?;
        from = to;
    }
    let norm = 1.0 / sum;
    out.iter_mut().for_each(|o| *o *= norm);
    Ok(())
}

fn dots(kernels: &Kernels, q: &[f32], keys: &Elements, at: usize, scores: &mut [f32]) -> Result<()> {
    let span = at..at + scores.len() * q.len();
    match keys {
        Elements::F16(e) => {
            for (s, k) in scores.iter_mut().zip(e[span].chunks_exact(q.len())) {
                *s = kernels.dot_f16(q, k)?;
            }
        }
        Elements::F32(e) => {
            for (s, k) in scores.iter_mut().zip(e[span].chunks_exact(q.len())) {
                *s = kernels.dot_f32(q, k)?;
            }
        }
    }
    Ok(())
}

fn add_weighted(
    kernels: &Kernels,
    weights: &[f32],
    values: &Elements,
    at: usize,
    out: &mut [f32],
) -> Result<()> {
    let span = at..at + weights.len() * out.len();
    match values {
        Elements::F16(e) => {
            for (w, v) in weights.iter().zip(e[span].chunks_exact(out.len())) {
                kernels.axpy_f16(out, *w, v)?;
            }
        }
        Elements::F32(e) => {
            for (w, v) in weights.iter().zip(e[span].chunks_exact(out.len())) {
                kernels.axpy_f32(out, *w, v)?;
            }
        }
    }
    Ok(())
}
