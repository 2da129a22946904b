//! The forward pass (technical report, section 2, and the published modelling code), top to bottom.

pub(crate) mod attention;
mod head;
pub(crate) mod kv_cache;
pub(crate) mod kv_page;
mod linear;
mod moe;
mod rope;
mod router;

use crate::cancel::CancelFlag;
use crate::experts::ExpertCache;
use crate::gguf::Source;
use crate::kernels::{Acts, Kernels};
use crate::model::hparams::Hparams;
use crate::model::weights::{LayerWeights, Weights};
use crate::pool::Team;
use crate::tiles::tiles;
use crate::{Error, Result};

use attention::{Queries, attend};
use kv_cache::{KvCache, NewKv};
use linear::linear;
use moe::MoeScratch;
use rope::RopeTable;
use router::{Choice, choose};

/// Tokens that one task rotates.
const ROPE_TOKENS: usize = 8;

/// What one forward pass works with.
pub(crate) struct Pass<'a> {
    pub(crate) h: &'a Hparams,
    pub(crate) weights: &'a Weights,
    pub(crate) cache: &'a ExpertCache,
    pub(crate) source: &'a Source,
    pub(crate) kernels: &'static Kernels,
    pub(crate) team: &'a Team<'a>,
    pub(crate) cancel: &'a CancelFlag,
    /// Weight bytes that this pass has streamed through the kernels.
    pub(crate) traffic: u64,
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
    /// Attention over spans of positions, to be merged.
    partial: Vec<f32>,
    router: Vec<f32>,
    choices: Vec<Choice>,
    delta: Vec<f32>,
    rope: RopeTable,
    moe: MoeScratch,
}

impl Pass<'_> {
    /// Evaluates `tokens` after the positions in `kv`, and appends the logits that are wanted to `logits`
    /// (`[positions][vocab]`). On any error the cache still holds what it held.
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
        self.embed(tokens, &mut s.x)?;
        let bases = self.h.attention.iter().filter_map(|a| a.rope_base);
        s.rope.set(bases, self.h.head_dim, start, n);
        for layer in 0..self.h.n_layers {
            self.cancel.check()?;
            self.layer(layer, n, kv, s)?;
        }
        match want {
            Want::None => {}
            Want::Last => self.head(&s.x[(n - 1) * self.h.hidden..], &mut s.norm, &mut s.acts, logits)?,
            Want::All => self.head(&s.x, &mut s.norm, &mut s.acts, logits)?,
        }
        kv.advance(n);
        Ok(())
    }

    fn layer(&mut self, layer: usize, n: usize, kv: &mut KvCache, s: &mut Scratch) -> Result<()> {
        let (h, w) = (self.h, &self.weights.layers[layer]);
        self.route(layer, w, s)?;
        self.cache.request(layer, s.choices.iter().map(|c| c.expert));
        self.attention(layer, w, n, kv, s)?;
        add(&mut s.x, &s.delta);

        self.norm(&s.x, &w.ffn_norm, &mut s.norm)?;
        s.acts.set(self.kernels, &s.norm, h.hidden, self.experts_are_quantized(layer))?;
        s.delta.fill(0.0);
        moe::experts(self, layer, &s.choices, &s.acts, &mut s.moe, &mut s.delta)?;
        add(&mut s.x, &s.delta);
        Ok(())
    }

    /// The router reads the raw residual, before the attention norm: its choice is known while attention
    /// still computes.
    fn route(&mut self, layer: usize, w: &LayerWeights, s: &mut Scratch) -> Result<()> {
        let h = self.h;
        s.acts.set(self.kernels, &s.x, h.hidden, false)?;
        s.router.resize(s.acts.tokens() * h.n_experts, 0.0);
        linear(self.team, self.kernels, &[&w.router], &s.acts, &mut s.router)?;
        s.choices.clear();
        for logits in s.router.chunks_exact(h.n_experts) {
            s.choices.extend(choose(logits, h.top_k, h.gating, layer)?);
        }
        self.traffic += w.router.bytes();
        Ok(())
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
        let quantized = [&w.q, &w.k, &w.v].iter().any(|m| m.dtype.is_quantized());
        s.acts.set(self.kernels, &s.norm, h.hidden, quantized)?;
        s.qkv.resize(n * stride, 0.0);
        linear(self.team, self.kernels, &[&w.q, &w.k, &w.v], &s.acts, &mut s.qkv)?;
        if let Some(base) = h.attention[layer].rope_base {
            let rope = &s.rope;
            tiles(self.team, &mut s.qkv, stride, (ROPE_TOKENS, stride), &|tile| {
                tile.rows().for_each(|i| rope.rotate(base, i, &mut tile.row(i)[..q_dim + kv_dim]));
                Ok(())
            })?;
        }
        let new = NewKv { rows: &s.qkv, stride, keys: q_dim, values: q_dim + kv_dim };
        kv.write(self.team, self.kernels, layer, &new)?;
        s.attention.resize(n * q_dim, 0.0);
        let queries = Queries { rows: &s.qkv, stride, start, window: h.attention[layer].window };
        let out = &mut s.attention;
        attend(self.team, self.kernels, h, &queries, &kv.layers[layer], &mut s.partial, out)?;
        s.acts.set(self.kernels, &s.attention, q_dim, w.o.dtype.is_quantized())?;
        s.delta.resize(n * h.hidden, 0.0);
        linear(self.team, self.kernels, &[&w.o], &s.acts, &mut s.delta)?;
        self.traffic += [&w.q, &w.k, &w.v, &w.o].iter().map(|m| m.bytes()).sum::<u64>();
        Ok(())
    }

    /// RMSNorm of every row of `x`.
    fn norm(&self, x: &[f32], weight: &[f32], out: &mut Vec<f32>) -> Result<()> {
        out.resize(x.len(), 0.0);
        let rows = x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len()));
        for (x, out) in rows {
            self.kernels.rms_norm(x, weight, self.h.rms_eps, out)?;
        }
        Ok(())
    }

    fn experts_are_quantized(&self, layer: usize) -> bool {
        let parts = &self.cache.index().layers[layer];
        parts.gate.dtype.is_quantized() || parts.up.dtype.is_quantized()
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

fn add(x: &mut [f32], delta: &[f32]) {
    x.iter_mut().zip(delta).for_each(|(x, d)| *x += d);
}
