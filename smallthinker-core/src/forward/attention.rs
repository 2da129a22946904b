//! Causal grouped-query attention over the KV cache.

use std::ops::Range;

use crate::Result;
use crate::forward::kv_cache::{LayerKv, PAGE};
use crate::kernels::Kernels;
use crate::kernels::attention::{QueryRows, finish, merge};
use crate::model::hparams::Hparams;
use crate::pool::Team;
use crate::tiles::tiles;

/// Positions that are summed up on their own before they are added to earlier ones. Spans start at multiples
/// of this, whatever the threads and the chunks, so that it does not change results who computes them.
const SPAN: usize = 2 * PAGE;

/// Chunks of up to so many tokens are split by spans: then there is work for all threads in a single token, too,
/// and keys and values are read once for all tokens. Longer chunks are split by tokens: their partial results
/// would take more room than the keys and values.
const MAX_SPLIT_TOKENS: usize = 16;

/// Tokens that one task attends for in a longer chunk: the more, the more often a page is used while it is in the
/// cache; the fewer, the better the threads can share.
const TOKENS_PER_TASK: (usize, usize) = (8, 32);
const TASKS_PER_THREAD: usize = 4;

/// Bytes of the partial results of a session of `context` positions, chunks of `chunk`.
pub(crate) fn partial_bytes(h: &Hparams, chunk: usize, context: usize) -> u64 {
    let rows = (h.n_heads * chunk.min(MAX_SPLIT_TOKENS)) as u64;
    let total = 4 * QueryRows::total_len(h.head_dim) as u64;
    rows.saturating_mul(total).saturating_mul((context / SPAN + 2) as u64)
}

/// Bytes that a task of a longer chunk takes: queries, outputs, totals and scores of its rows, and a block of keys and
/// values in single precision.
pub(crate) fn task_bytes(h: &Hparams) -> usize {
    let rows = TOKENS_PER_TASK.1 * (h.n_heads / h.n_kv_heads);
    4 * (rows * 4 * QueryRows::total_len(h.head_dim) + 2 * PAGE * QueryRows::total_len(h.head_dim))
}

/// One chunk's queries. Their keys and values are in the cache already.
pub(crate) struct Queries<'a> {
    /// `[tokens][stride]`, the queries first in each row.
    pub(crate) rows: &'a [f32],
    pub(crate) stride: usize,
    /// Position of the first.
    pub(crate) start: usize,
    /// Positions that each sees, itself included; all if `None`.
    pub(crate) window: Option<usize>,
}

impl Queries<'_> {
    fn visible(&self, token: usize) -> Range<usize> {
        let end = self.start + token + 1;
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }

    /// The queries of one kv head for some tokens: token after token, each with the heads of its group.
    fn of_head(
        &self,
        kernels: &Kernels,
        h: &Hparams,
        kv_head: usize,
        tokens: Range<usize>,
    ) -> Result<QueryRows> {
        let group = h.n_heads / h.n_kv_heads;
        let rows = (0..tokens.len() * group).map(|i| {
            let (token, head) = (tokens.start + i / group, kv_head * group + i % group);
            (&self.rows[token * self.stride + head * h.head_dim..][..h.head_dim], self.visible(token))
        });
        QueryRows::new(kernels, h.head_dim, rows)
    }
}

/// `out[t]` (`q_dim` wide) = attention of query `t` over the positions it may see.
pub(crate) fn attend(
    team: &Team<'_>,
    kernels: &Kernels,
    h: &Hparams,
    queries: &Queries<'_>,
    kv: &LayerKv,
    partial: &mut Vec<f32>,
    out: &mut [f32],
) -> Result<()> {
    let n = out.len() / h.q_dim();
    if n <= MAX_SPLIT_TOKENS {
        by_spans(team, kernels, h, queries, kv, partial, out)
    } else {
        by_tokens(team, kernels, h, queries, kv, out)
    }
}

/// Spans that hold these positions.
fn spans(positions: Range<usize>) -> Range<usize> {
    positions.start / SPAN..positions.end.div_ceil(SPAN)
}

/// Attends to the positions of one span, as far as they lie in `positions`.
fn add_span(
    rows: &mut QueryRows,
    kv: &LayerKv,
    kv_head: usize,
    span: usize,
    positions: &Range<usize>,
    totals: &mut [f32],
) -> Result<()> {
    let first = positions.start.max(span * SPAN) / PAGE * PAGE;
    for page in (first..positions.end.min((span + 1) * SPAN)).step_by(PAGE) {
        let (keys, values) = kv.page(page).head(kv_head);
        rows.add_block(page, keys, values)?;
    }
    rows.end_span(totals);
    Ok(())
}

fn by_spans(
    team: &Team<'_>,
    kernels: &Kernels,
    h: &Hparams,
    queries: &Queries<'_>,
    kv: &LayerKv,
    partial: &mut Vec<f32>,
    out: &mut [f32],
) -> Result<()> {
    let n = out.len() / h.q_dim();
    let (group, total) = (h.n_heads / h.n_kv_heads, QueryRows::total_len(h.head_dim));
    let positions = queries.visible(0).start..queries.start + n;
    let spans = spans(positions.clone());
    // `[spans][kv heads][tokens][heads of the group]`
    let width = h.n_heads * n * total;
    partial.clear();
    partial.resize(spans.len() * width, 0.0);
    tiles(team, partial, width, (1, width / h.n_kv_heads), &|tile| {
        let kv_head = tile.cols().start / (width / h.n_kv_heads);
        let mut rows = queries.of_head(kernels, h, kv_head, 0..n)?;
        for i in tile.rows() {
            add_span(&mut rows, kv, kv_head, spans.start + i, &positions, tile.row(i))?;
        }
        Ok(())
    })?;
    let (first, later) = partial.split_at_mut(width);
    for part in later.chunks_exact(width) {
        first.chunks_exact_mut(total).zip(part.chunks_exact(total)).for_each(|(a, b)| merge(a, b));
    }
    for (i, total) in first.chunks_exact(total).enumerate() {
        let (kv_head, token, head) = (i / (n * group), i / group % n, i % group);
        let at = token * h.q_dim() + (kv_head * group + head) * h.head_dim;
        finish(total, &mut out[at..at + h.head_dim]);
    }
    Ok(())
}

fn by_tokens(
    team: &Team<'_>,
    kernels: &Kernels,
    h: &Hparams,
    queries: &Queries<'_>,
    kv: &LayerKv,
    out: &mut [f32],
) -> Result<()> {
    let (group, total) = (h.n_heads / h.n_kv_heads, QueryRows::total_len(h.head_dim));
    let n = out.len() / h.q_dim();
    let tokens = n * h.n_kv_heads / (TASKS_PER_THREAD * team.threads());
    let tokens = tokens.clamp(TOKENS_PER_TASK.0, TOKENS_PER_TASK.1);
    tiles(team, out, h.q_dim(), (tokens, group * h.head_dim), &|tile| {
        let (tokens, kv_head) = (tile.rows(), tile.cols().start / (group * h.head_dim));
        let mut rows = queries.of_head(kernels, h, kv_head, tokens.clone())?;
        let mut totals = vec![0.0; tokens.len() * group * total];
        let positions = queries.visible(tokens.start).start..queries.start + tokens.end;
        for span in spans(positions.clone()) {
            add_span(&mut rows, kv, kv_head, span, &positions, &mut totals)?;
        }
        for (token, totals) in tokens.zip(totals.chunks_exact(group * total)) {
            let heads = tile.row(token).chunks_exact_mut(h.head_dim);
            heads.zip(totals.chunks_exact(total)).for_each(|(out, total)| finish(total, out));
        }
        Ok(())
    })
}
