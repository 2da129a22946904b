//! What a cache of so many slots would have done: the same requests in the same order, without the weights.

use std::fmt;

use super::belady::Belady;
use super::trace::{PassKind, Shape, Trace};
use crate::experts::ExpertId;
use crate::experts::policy::{CachePolicy, Policy};
use crate::{Error, Result};

/// A policy to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplayPolicy {
    /// One that the expert cache can use.
    Cache(CachePolicy),
    /// The expert whose next use is farthest. It takes the trace to know that: a bound for all others.
    Belady,
}

impl ReplayPolicy {
    /// Its name: that of the cache's policy, or "belady".
    pub const fn name(self) -> &'static str {
        match self {
            ReplayPolicy::Cache(policy) => policy.name(),
            ReplayPolicy::Belady => "belady",
        }
    }

    /// Every policy.
    pub fn all() -> impl Iterator<Item = ReplayPolicy> {
        let of_cache = CachePolicy::ALL.into_iter().map(ReplayPolicy::Cache);
        of_cache.chain(std::iter::once(ReplayPolicy::Belady))
    }
}

impl fmt::Display for ReplayPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Uses of experts: one for each layer of a pass and expert that any of its tokens chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accesses {
    /// The expert was in the cache.
    pub hits: u64,
    /// Reads of experts from the file.
    pub misses: u64,
    /// Bytes that these reads take.
    pub bytes_read: u64,
}

impl Accesses {
    /// Share of uses that were hits, 0 to 1; 0 if there was none.
    pub fn hit_rate(&self) -> f64 {
        let all = self.hits + self.misses;
        if all == 0 { 0.0 } else { self.hits as f64 / all as f64 }
    }
}

/// What a replay counted. The cache is empty at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replay {
    /// The policy.
    pub policy: ReplayPolicy,
    /// Slots of the cache.
    pub slots: usize,
    /// In prompt passes.
    pub prompt: Accesses,
    /// In decode passes.
    pub decode: Accesses,
    /// Tokens decoded.
    pub decode_tokens: usize,
}

impl Replay {
    /// Share of decode's uses that were hits, 0 to 1; 0 if nothing was decoded.
    pub fn hit_rate(&self) -> f64 {
        self.decode.hit_rate()
    }

    /// Bytes read from the file per decoded token, rounded down; 0 if nothing was decoded.
    pub fn bytes_per_token(&self) -> u64 {
        self.decode.bytes_read.checked_div(self.decode_tokens as u64).unwrap_or(0)
    }
}

/// Errors: [`Error::InvalidArgument`] if `slots` is less than what one token needs in a layer.
pub(super) fn check_slots(shape: &Shape, slots: usize) -> Result<()> {
    if slots < shape.top_k {
        let allowed = format!("{} or more, the experts that a token chooses", shape.top_k);
        return Err(Error::argument("slots", slots, allowed));
    }
    Ok(())
}

/// Replays all passes of `trace` against an empty cache of `slots` slots.
///
/// Errors: [`Error::InvalidArgument`] if `slots` is less than what one token needs in a layer.
pub fn replay(trace: &Trace, policy: ReplayPolicy, slots: usize) -> Result<Replay> {
    let shape = trace.shape();
    check_slots(shape, slots)?;
    let mut cache = Cache::new(trace, policy, slots);
    let (mut prompt, mut decode) = (Accesses::default(), Accesses::default());
    let mut uses = vec![0; shape.n_experts];
    for pass in trace.passes() {
        let counts = if pass.kind() == PassKind::Decode { &mut decode } else { &mut prompt };
        for (layer, choices) in pass.layers(shape).enumerate() {
            choices.iter().for_each(|&expert| uses[expert as usize] += 1);
            cache.turn(layer, pass.tokens(), &mut uses, counts);
        }
    }
    Ok(Replay { policy, slots, prompt, decode, decode_tokens: trace.tokens(PassKind::Decode) })
}

/// What a cache holds.
pub(super) struct Cache<'t> {
    pub(super) shape: &'t Shape,
    pub(super) policy: Box<dyn Policy>,
    /// `[layer][expert]`.
    pub(super) inside: Vec<bool>,
    /// Slots that hold nothing.
    pub(super) free: usize,
}

impl Cache<'_> {
    /// An empty cache of `slots` slots.
    pub(super) fn new(trace: &Trace, policy: ReplayPolicy, slots: usize) -> Cache<'_> {
        let shape = trace.shape();
        let policy = match policy {
            ReplayPolicy::Cache(policy) => policy.start(shape.layers(), shape.n_experts),
            ReplayPolicy::Belady => Box::new(Belady::new(trace)),
        };
        Cache { shape, policy, inside: vec![false; shape.experts()], free: slots }
    }

    /// An absent expert takes a free slot.
    pub(super) fn insert(&mut self, (layer, expert): ExpertId) {
        self.free -= 1;
        self.policy.inserted((layer, expert));
        self.inside[layer * self.shape.n_experts + expert] = true;
    }

    /// An expert gives its slot back.
    pub(super) fn remove(&mut self, (layer, expert): ExpertId) {
        self.policy.removed((layer, expert));
        self.inside[layer * self.shape.n_experts + expert] = false;
        self.free += 1;
    }

    /// A layer's turn, as the engine does it: first everything that fits is requested, then the experts are computed in
    /// order, and what is still missing takes the place of those that are done. Leaves zeros in `uses`.
    pub(super) fn turn(&mut self, layer: usize, tokens: usize, uses: &mut [u32], counts: &mut Accesses) {
        self.policy.turn(layer, tokens, uses);
        let from = layer * self.shape.n_experts;
        for expert in 0..uses.len() {
            if uses[expert] > 0 && self.inside[from + expert] {
                counts.hits += 1;
            } else if uses[expert] > 0 {
                self.load(layer, expert, uses, false, counts);
            }
        }
        for expert in 0..uses.len() {
            if uses[expert] > 0 && !self.inside[from + expert] {
                self.load(layer, expert, uses, true, counts);
            }
            uses[expert] = 0;
        }
    }

    /// Reads an expert into a free slot or into another's; none that the layer still needs, but if the expert is
    /// `urgent`, the one that it needs last.
    fn load(&mut self, layer: usize, expert: usize, uses: &[u32], urgent: bool, counts: &mut Accesses) {
        let n = self.shape.n_experts;
        if self.free == 0 {
            let victim = self.policy.victim(&|(l, e)| l != layer || uses[e] == 0).or_else(|| {
                let needed_last = (0..n).rev().find(|&e| urgent && uses[e] > 0 && self.inside[layer * n + e]);
                needed_last.map(|e| (layer, e))
            });
            let Some(victim) = victim else { return };
            self.remove(victim);
        }
        self.insert((layer, expert));
        counts.misses += 1;
        counts.bytes_read = counts.bytes_read.saturating_add(self.shape.expert_bytes[layer]);
    }
}
