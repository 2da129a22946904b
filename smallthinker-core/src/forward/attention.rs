//! Causal grouped-query attention over the KV cache.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::Result;
use crate::forward::hadamard;
use crate::forward::kv_cache::{LayerKv, PAGE};
use crate::kernels::Kernels;
use crate::kernels::attention::{LANES, QueryRows, finish, merge};
use crate::model::hparams::Hparams;
use crate::pool::Team;
use crate::tiles::{Tile, runs, tiles};

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

/// Bytes of the first keys that a task requests before it makes its queries ready: about as far as requests are ahead of the
/// arithmetic later.
const FIRST_KEYS: usize = 16384;

/// Bytes of the partial results of a session of `context` positions, chunks of `chunk`.
pub(crate) fn partial_bytes(h: &Hparams, chunk: usize, context: usize) -> u64 {
    let rows = (h.n_heads * chunk.min(MAX_SPLIT_TOKENS)) as u64;
    let total = 4 * QueryRows::total_len(h.head_dim) as u64;
    rows.saturating_mul(total).saturating_mul((context / SPAN + 2) as u64)
}

/// Bytes that a task of a longer chunk takes: queries in two forms, outputs, totals and scores of its rows, and a block
/// of keys and values in single precision, which is more than what codes need besides.
pub(crate) fn task_bytes(h: &Hparams) -> usize {
    let rows = TOKENS_PER_TASK.1 * (h.n_heads / h.n_kv_heads);
    4 * (rows * 5 * QueryRows::total_len(h.head_dim) + 2 * PAGE * QueryRows::total_len(h.head_dim))
}

/// Buffers, kept between passes.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// Attention over spans of positions, to be merged.
    partial: Vec<f32>,
    /// One for each task that runs at a time.
    spare: Mutex<Vec<TaskScratch>>,
}

/// What a task needs for itself.
struct TaskScratch {
    rows: QueryRows,
    totals: Vec<f32>,
}

/// What all tasks of a chunk need.
struct Chunk<'a> {
    kernels: &'a Kernels,
    h: &'a Hparams,
    queries: &'a Queries<'a>,
    kv: &'a LayerKv,
    spare: &'a Mutex<Vec<TaskScratch>>,
}

impl Chunk<'_> {
    /// Lends buffers to a task.
    fn with<R>(&self, task: impl FnOnce(&mut TaskScratch) -> R) -> R {
        let lock = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || TaskScratch { rows: QueryRows::new(self.kernels, self.h.head_dim), totals: Vec::new() };
        let mut buffers = lock().pop().unwrap_or_else(new);
        let result = task(&mut buffers);
        lock().push(buffers);
        result
    }

    /// Heads of queries that share keys and values.
    fn group(&self) -> usize {
        self.h.n_heads / self.h.n_kv_heads
    }

    /// Makes `rows` the queries of one kv head for some tokens: token after token, each with the heads of its group.
    fn set_rows(&self, rows: &mut QueryRows, kv_head: usize, tokens: Range<usize>) -> Result<()> {
        let (group, head_dim, queries) = (self.group(), self.h.head_dim, self.queries);
        rows.set((0..tokens.len() * group).map(|i| {
            let (token, head) = (tokens.start + i / group, kv_head * group + i % group);
            (&queries.rows[token * queries.stride + head * head_dim..][..head_dim], queries.visible(token))
        }))
    }

    /// The results of a tile of tokens and heads, whose `totals` are `[tokens][heads]`.
    fn write_heads(&self, tile: &mut Tile<'_>, totals: &[f32]) {
        let head_dim = self.h.head_dim;
        let mut totals = totals.chunks_exact(QueryRows::total_len(head_dim));
        for token in tile.rows() {
            let heads = tile.row(token);
            heads.chunks_exact_mut(head_dim).zip(&mut totals).for_each(|(out, total)| finish(total, out));
            if self.queries.rotated {
                hadamard::rotate(heads, head_dim);
            }
        }
    }

    /// Asks for the first keys of these positions.
    fn request_keys(&self, kv_head: usize, positions: Range<usize>) {
        let (keys, _) = self.kv.page(positions.start).head(kv_head);
        let page = positions.start / PAGE * PAGE;
        let end = (positions.end - page).min(PAGE);
        let keys = keys.groups((positions.start - page) / LANES..end.div_ceil(LANES));
        self.kernels.prefetch(keys.get(..FIRST_KEYS).unwrap_or(keys));
    }

    /// Attends to the positions of one span, as far as they lie in `positions`.
    fn add_span(
        &self,
        rows: &mut QueryRows,
        kv_head: usize,
        span: usize,
        positions: &Range<usize>,
        totals: &mut [f32],
    ) -> Result<()> {
        let first = positions.start.max(span * SPAN) / PAGE * PAGE;
        for page in (first..positions.end.min((span + 1) * SPAN)).step_by(PAGE) {
            let (keys, values) = self.kv.page(page).head(kv_head);
            if page + PAGE < positions.end {
                // Of the next span too: as a rule this task goes on with it.
                let (keys, values) = self.kv.page(page + PAGE).head(kv_head);
                rows.announce(keys, values);
            }
            rows.add_block(page, keys, values)?;
        }
        rows.end_span(totals);
        Ok(())
    }
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
    /// They, the keys and the values are [rotated](hadamard::rotate).
    pub(crate) rotated: bool,
}

impl Queries<'_> {
    /// Positions that a token of the chunk sees.
    pub(crate) fn visible(&self, token: usize) -> Range<usize> {
        let end = self.start + token + 1;
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }
}

/// `out[t]` (`q_dim` wide) = attention of query `t` over the positions it may see.
pub(crate) fn attend(
    team: &Team<'_>,
    kernels: &Kernels,
    h: &Hparams,
    queries: &Queries<'_>,
    kv: &LayerKv,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) -> Result<()> {
    let AttentionScratch { partial, spare } = scratch;
    let chunk = Chunk { kernels, h, queries, kv, spare };
    if out.len() / h.q_dim() <= MAX_SPLIT_TOKENS {
        by_spans(team, &chunk, partial, out)
    } else {
        by_tokens(team, &chunk, out)
    }
}

/// Spans that hold these positions.
fn spans(positions: Range<usize>) -> Range<usize> {
    positions.start / SPAN..positions.end.div_ceil(SPAN)
}

fn by_spans(team: &Team<'_>, c: &Chunk<'_>, partial: &mut Vec<f32>, out: &mut [f32]) -> Result<()> {
    let n = out.len() / c.h.q_dim();
    let (group, total) = (c.group(), QueryRows::total_len(c.h.head_dim));
    let positions = c.queries.visible(0).start..c.queries.start + n;
    let spans = spans(positions.clone());
    // `[kv heads][spans][tokens][heads of the group]`
    let of_span = n * group * total;
    let width = spans.len() * of_span;
    partial.resize(c.h.n_kv_heads * width, 0.0);
    // Keys and values, in half precision as a rule.
    let read = n * positions.len() * c.h.n_kv_heads * c.h.head_dim * 4;
    runs(&team.for_bytes(read), partial, width, (of_span, usize::MAX), &|tile| {
        let (kv_head, first) = (tile.rows().start, spans.start + tile.cols().start / of_span);
        c.request_keys(kv_head, positions.start.max(first * SPAN)..positions.end);
        c.with(|TaskScratch { rows, .. }| {
            c.set_rows(rows, kv_head, 0..n)?;
            (first..).zip(tile.row(kv_head).chunks_exact_mut(of_span)).try_for_each(|(span, part)| {
                part.fill(0.0);
                c.add_span(rows, kv_head, span, &positions, part)
            })
        })
    })?;
    let team = team.for_bytes(size_of_val(partial.as_slice()));
    tiles(&team, out, c.h.q_dim(), (n, group * c.h.head_dim), &|tile| {
        let kv_head = tile.cols().start / (group * c.h.head_dim);
        let parts = partial[kv_head * width..(kv_head + 1) * width].chunks_exact(of_span);
        c.with(|TaskScratch { totals, .. }| {
            totals.clear();
            totals.resize(of_span, 0.0);
            for part in parts {
                let rows = totals.chunks_exact_mut(total).zip(part.chunks_exact(total));
                rows.for_each(|(total, part)| merge(c.kernels, total, part));
            }
            c.write_heads(tile, totals);
        });
        Ok(())
    })
}

fn by_tokens(team: &Team<'_>, c: &Chunk<'_>, out: &mut [f32]) -> Result<()> {
    let (group, total) = (c.group(), QueryRows::total_len(c.h.head_dim));
    let n = out.len() / c.h.q_dim();
    let tokens = n * c.h.n_kv_heads / (TASKS_PER_THREAD * team.threads());
    let tokens = tokens.clamp(TOKENS_PER_TASK.0, TOKENS_PER_TASK.1);
    tiles(team, out, c.h.q_dim(), (tokens, group * c.h.head_dim), &|tile| {
        let (tokens, kv_head) = (tile.rows(), tile.cols().start / (group * c.h.head_dim));
        c.with(|TaskScratch { rows, totals }| {
            c.set_rows(rows, kv_head, tokens.clone())?;
            totals.clear();
            totals.resize(tokens.len() * group * total, 0.0);
            let positions = c.queries.visible(tokens.start).start..c.queries.start + tokens.end;
            for span in spans(positions.clone()) {
                c.add_span(rows, kv_head, span, &positions, totals)?;
            }
            c.write_heads(tile, totals);
            Ok(())
        })
    })
}
