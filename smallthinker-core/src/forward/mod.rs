//! The forward pass (technical report, section 2, and the published modelling code), top to bottom.

pub(crate) mod attention;
pub(crate) mod clock;
mod hadamard;
mod head;
pub(crate) mod kv_cache;
mod kv_codes;
pub(crate) mod kv_page;
mod linear;
pub(crate) mod look_ahead;
mod moe;
mod moe_batch;
mod moe_packed;
mod neurons;
mod picker;
mod rope;
mod router;
mod sparse_head;

use crate::arena::bytes_of;
use crate::cancel::CancelFlag;
use crate::experts::ExpertCache;
use crate::gguf::Source;
use crate::kernels::{Acts, Forms, Kernels};
use crate::model::hparams::Hparams;
use crate::model::predictor::Predictor;
use crate::model::weights::{LayerWeights, Weights};
use crate::pool::Team;
use crate::tiles::tiles;
use crate::{Error, Result};

use attention::{AttentionScratch, Queries, attend};
use clock::{Clock, Stage};
use kv_cache::{KvCache, NewKv};
pub(crate) use linear::{Batch, TaskBuffers, linear};
use moe::MoeScratch;
pub(crate) use moe_packed::MOST_EXPERTS;
pub(crate) use picker::Picker;
use rope::RopeTable;
use router::{Choice, choose};

/// Tokens that one task rotates.
const ROPE_TOKENS: usize = 8;

/// Tokens that one task brings into another form.
const ROWS_PER_TASK: usize = 16;

/// What one forward pass works with.
pub(crate) struct Pass<'a> {
    pub(crate) h: &'a Hparams,
    pub(crate) weights: &'a Weights,
    pub(crate) cache: &'a ExpertCache,
    pub(crate) source: &'a Source,
    pub(crate) kernels: &'static Kernels,
    pub(crate) team: &'a Team<'a>,
    pub(crate) cancel: &'a CancelFlag,
    /// Where its time and its memory traffic go.
    pub(crate) clock: Clock,
    /// Whether decode tells the time of gate from that of up, which costs a look at the clock per task.
    pub(crate) detailed: bool,
    /// The chosen experts of all layers so far, where they are recorded.
    pub(crate) routing: Option<Vec<u32>>,
    /// With it: of each layer's neurons, how many were above zero after ReLU, and how many there were, of tokens evaluated alone.
    pub(crate) neurons: Vec<[u64; 2]>,
    /// Whether to read what the next layers are expected to choose.
    pub(crate) look_ahead: bool,
    /// That, for the layer in progress.
    pub(crate) guess: Vec<usize>,
    /// What picks rows of the head, if not all are wanted of the last position.
    pub(crate) predictor: Option<&'a Predictor>,
    /// Rows of the head that are computed whatever it says.
    pub(crate) head_rows: &'a [u32],
    /// Rows of the head that were computed for last positions.
    pub(crate) rows_done: usize,
}

/// Whose logits a pass should make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    None,
    Last,
    All,
}

/// Buffers of a session, kept between passes.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The residual stream, `[tokens][hidden]`.
    x: Vec<f32>,
    norm: Vec<f32>,
    acts: Acts,
    qkv: Vec<f32>,
    attention: Vec<f32>,
    attend: AttentionScratch,
    router: Vec<f32>,
    choices: Vec<Choice>,
    guesses: Vec<Choice>,
    delta: Vec<f32>,
    rope: RopeTable,
    moe: MoeScratch,
    batch: Batch,
    /// Coordinates of a state, as the head's predictor sees it, and what it picks.
    coordinates: Vec<f32>,
    pub(crate) picker: Picker,
}

impl Pass<'_> {
    /// Evaluates `tokens` after the positions in `kv`. `logits` becomes those of the last position, or gets those of all
    /// positions appended (`[positions][vocab]`), as wanted. On any error the cache still holds what it held.
    pub(crate) fn run(
        &mut self,
        tokens: &[u32],
        want: Want,
        kv: &mut KvCache,
        s: &mut Scratch,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let (n, start) = (tokens.len(), kv.len());
        kv.reserve(n)?;
        self.clock.lap(Stage::Norm);
        self.embed(tokens, &mut s.x)?;
        self.clock.lap(Stage::Embedding);
        let bases = self.h.attention.iter().filter_map(|a| a.rope_base);
        s.rope.set(bases, self.h.head_dim, start, n);
        for layer in 0..self.h.n_layers {
            self.cancel.check()?;
            self.layer(layer, n, kv, s)?;
        }
        match want {
            Want::None => {}
            Want::Last => {
                // Of the same length as before, as a rule: nothing to fill.
                logits.resize(self.h.vocab, 0.0);
                self.rows_done += match self.predictor {
                    Some(predictor) => self.sparse_logits_of(predictor, n - 1, s, logits)?,
                    None => {
                        let x = &s.x[(n - 1) * self.h.hidden..];
                        self.head(x, &mut s.norm, &mut s.acts, &mut s.batch, logits)?;
                        self.h.vocab
                    }
                }
            }
            Want::All => {
                let at = logits.len();
                logits.resize(at + n * self.h.vocab, 0.0);
                self.head(&s.x, &mut s.norm, &mut s.acts, &mut s.batch, &mut logits[at..])?
            }
        }
        kv.advance(n);
        Ok(())
    }

    fn layer(&mut self, layer: usize, n: usize, kv: &mut KvCache, s: &mut Scratch) -> Result<()> {
        let (h, w) = (self.h, &self.weights.layers[layer]);
        // They arrive while all threads make the router's product; then a single thread computes the norms, if it is for one token.
        for weights in [&w.attn_norm, &w.ffn_norm] {
            self.kernels.prefetch(bytes_of(weights));
        }
        self.route(layer, w, s)?;
        self.cache.request(layer, n, s.choices.iter().map(|c| c.expert));
        self.clock.lap(Stage::Router);
        self.attention(layer, w, n, kv, s)?;
        self.add(&mut s.x, &s.delta)?;
        self.guess_next(layer, s)?;

        self.norm(&s.x, &w.ffn_norm, &mut s.norm)?;
        let parts = &self.cache.index().layers[layer];
        let forms = Forms::of(&[parts.gate.dtype, parts.up.dtype]);
        self.quantize(&s.norm, h.hidden, forms, &mut s.acts)?;
        tiles(self.team, &mut s.delta, h.hidden, (ROWS_PER_TASK, h.hidden), &|tile| {
            tile.rows().for_each(|t| tile.row(t).fill(0.0));
            Ok(())
        })?;
        self.clock.lap(Stage::Norm);
        moe::experts(self, layer, &s.choices, &s.acts, &mut s.moe, &mut s.delta)?;
        self.add(&mut s.x, &s.delta)?;
        Ok(())
    }

    /// The router reads the raw residual, before the attention norm: its choice is known while attention
    /// still computes.
    fn route(&mut self, layer: usize, w: &LayerWeights, s: &mut Scratch) -> Result<()> {
        self.apply_router(layer, s)?;
        self.routing.iter_mut().for_each(|all| all.extend(s.choices.iter().map(|c| c.expert as u32)));
        self.clock.bytes(Stage::Router, w.router.bytes());
        Ok(())
    }

    /// Notes how many of a layer's neurons were active, where routing is recorded.
    fn count_neurons(&mut self, layer: usize, active: usize, of: usize) {
        if self.routing.is_some() {
            self.neurons.resize(self.h.n_layers, [0; 2]);
            let [all_active, all] = &mut self.neurons[layer];
            *all_active += active as u64;
            *all += of as u64;
        }
    }

    /// What the router of `layer` chooses for the residual stream as it is, in `s.choices`.
    fn apply_router(&self, layer: usize, s: &mut Scratch) -> Result<()> {
        let (h, router) = (self.h, self.weights.layers[layer].router.view());
        let tokens = s.x.len() / h.hidden;
        s.router.resize(tokens * h.n_experts, 0.0);
        s.acts.swap_floats(&mut s.x, h.hidden);
        let done = linear(self.team, self.kernels, &[router], &s.acts, &mut s.batch, &mut s.router);
        s.acts.swap_floats(&mut s.x, h.hidden);
        done?;
        s.choices.resize(tokens * h.top_k, Choice { expert: 0, weight: 0.0 });
        let logits = &s.router;
        tiles(self.team, &mut s.choices, h.top_k, (ROWS_PER_TASK, h.top_k), &|tile| {
            for t in tile.rows() {
                let logits = &logits[t * h.n_experts..(t + 1) * h.n_experts];
                choose(logits, h.gating, layer, tile.row(t))?;
            }
            Ok(())
        })
    }

    /// Leaves `Wo · attention` in `s.delta`.
    fn attention(
        &mut self,
        layer: usize,
        w: &LayerWeights,
        n: usize,
        kv: &mut KvCache,
        s: &mut Scratch,
    ) -> Result<()> {
        let h = self.h;
        let (q_dim, kv_dim) = (h.q_dim(), h.kv_dim());
        let stride = q_dim + 2 * kv_dim;
        let start = kv.len();
        self.norm(&s.x, &w.attn_norm, &mut s.norm)?;
        let forms = Forms::of(&[w.q.dtype, w.k.dtype, w.v.dtype]);
        self.quantize(&s.norm, h.hidden, forms, &mut s.acts)?;
        self.clock.lap(Stage::Norm);
        s.qkv.resize(n * stride, 0.0);
        linear(
            self.team,
            self.kernels,
            &[w.q.view(), w.k.view(), w.v.view()],
            &s.acts,
            &mut s.batch,
            &mut s.qkv,
        )?;
        let (base, rotated) = (h.attention[layer].rope_base, kv.kind().rotates());
        if base.is_some() || rotated {
            let rope = &s.rope;
            tiles(self.team, &mut s.qkv, stride, (ROPE_TOKENS, stride), &|tile| {
                for i in tile.rows() {
                    if let Some(base) = base {
                        rope.rotate(base, i, &mut tile.row(i)[..q_dim + kv_dim]);
                    }
                    if rotated {
                        hadamard::rotate(tile.row(i), h.head_dim);
                    }
                }
                Ok(())
            })?;
        }
        let new = NewKv { rows: &s.qkv, stride, keys: q_dim, values: q_dim + kv_dim };
        kv.write(self.team, self.kernels, layer, &new)?;
        self.clock.lap(Stage::Qkv);
        s.attention.resize(n * q_dim, 0.0);
        let queries = Queries { rows: &s.qkv, stride, start, window: h.attention[layer].window, rotated };
        let out = &mut s.attention;
        attend(self.team, self.kernels, h, &queries, &kv.layers[layer], &mut s.attend, out)?;
        self.clock.lap(Stage::Attention);
        // Once for all tokens of a chunk.
        let seen = queries.visible(0).start..start + n;
        self.clock.bytes(Stage::Attention, kv.bytes_at(seen.len()));
        self.quantize(&s.attention, q_dim, Forms::of(&[w.o.dtype]), &mut s.acts)?;
        self.clock.lap(Stage::Norm);
        s.delta.resize(n * h.hidden, 0.0);
        linear(self.team, self.kernels, &[w.o.view()], &s.acts, &mut s.batch, &mut s.delta)?;
        self.clock.lap(Stage::AttentionOut);
        self.clock.bytes(Stage::Qkv, [&w.q, &w.k, &w.v].iter().map(|m| m.bytes()).sum());
        self.clock.bytes(Stage::AttentionOut, w.o.bytes());
        Ok(())
    }

    /// RMSNorm of every row of `x`.
    fn norm(&self, x: &[f32], weight: &[f32], out: &mut Vec<f32>) -> Result<()> {
        let width = weight.len();
        out.resize(x.len(), 0.0);
        tiles(self.team, out, width, (ROWS_PER_TASK, width), &|tile| {
            tile.rows().try_for_each(|t| {
                let x = &x[t * width..(t + 1) * width];
                self.kernels.rms_norm(x, weight, self.h.rms_eps, tile.row(t))
            })
        })
    }

    /// Adds what a part of the layer has made to the residual stream.
    fn add(&self, x: &mut [f32], delta: &[f32]) -> Result<()> {
        let width = self.h.hidden;
        tiles(self.team, x, width, (ROWS_PER_TASK, width), &|tile| {
            for t in tile.rows() {
                tile.row(t).iter_mut().zip(&delta[t * width..]).for_each(|(x, d)| *x += d);
            }
            Ok(())
        })
    }

    /// Brings rows of `cols` values into the forms that products need.
    pub(crate) fn quantize(&self, values: &[f32], cols: usize, forms: Forms, acts: &mut Acts) -> Result<()> {
        acts.set_with(values, cols, forms, |groups, per_row| {
            tiles(self.team, groups, per_row, (ROWS_PER_TASK, per_row), &|tile| {
                tile.rows().try_for_each(|t| {
                    self.kernels.quantize_acts(&values[t * cols..(t + 1) * cols], tile.row(t))
                })
            })
        })
    }

    /// Checks token ids before anything is computed; `name` is the argument that holds them.
    pub(crate) fn check_tokens(
        h: &Hparams,
        name: &'static str,
        mut tokens: impl Iterator<Item = u32>,
    ) -> Result<()> {
        match tokens.find(|&t| t as usize >= h.vocab) {
            Some(id) => Err(Error::argument(name, id, format!("token ids 0 to {}", h.vocab - 1))),
            None => Ok(()),
        }
    }
}
