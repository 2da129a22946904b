//! What a model tells about itself while it is in use.

use std::time::Duration;

use crate::experts::{CachePolicy, ExpertStats};
use crate::model::expert_index::LayerExperts;
use crate::model::predictor::Predictor;
use crate::model::{HeadPredictor, LmHead, Model};
use crate::tensor::DType;

/// The state of a model, for people and monitors.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelStats {
    /// Time that opening took.
    pub load_time: Duration,
    /// Compute threads.
    pub threads: usize,
    /// Name of the kernel set in use.
    pub kernels: &'static str,
    /// Bytes of the budget.
    pub budget: u64,
    /// Bytes of the budget in use by weights, slots and sessions.
    pub budget_used: u64,
    /// The expert cache since the model was opened.
    pub experts: ExpertStats,
    /// What the expert cache evicts.
    pub cache_policy: CachePolicy,
    /// How logits are made, unless a generation says otherwise.
    pub lm_head: LmHead,
    /// What picks the rows of the sparse head, if the model was opened with it.
    pub head_predictor: Option<HeadPredictor>,
    /// Whether experts are read past the system's page cache.
    pub direct_reads: bool,
    /// Whether experts are read that the next layer is expected to choose.
    pub look_ahead: bool,
    /// Whether decode skips inactive neurons in the up projections of all layers.
    pub sparse_up: bool,
    /// Whether decode skips inactive neurons in the down projections of all layers.
    pub sparse_down: bool,
}

/// How decode reads one of the experts' projections in some of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpertKernel {
    /// "gate", "up" or "down".
    pub part: &'static str,
    /// Type of the weights.
    pub dtype: DType,
    /// Number of such layers.
    pub layers: usize,
    /// Whether the weights of inactive neurons are skipped. Never so for gate, which tells which neurons are active.
    pub sparse: bool,
}

impl Model {
    /// Present state and counters.
    pub fn stats(&self) -> ModelStats {
        let m = &self.inner;
        ModelStats {
            load_time: m.load_time,
            threads: m.pool.threads(),
            kernels: m.kernels.name(),
            budget: m.budget.limit(),
            budget_used: m.budget.used(),
            experts: m.cache.stats(),
            cache_policy: m.cache_policy,
            lm_head: if m.predictor.is_some() { LmHead::Sparse } else { LmHead::Full },
            head_predictor: m.predictor.as_ref().map(Predictor::kind),
            direct_reads: m.cache.reads_directly(),
            look_ahead: m.looks_ahead(),
            sparse_up: m.cache.index().layers.iter().all(LayerExperts::sparse_up),
            sparse_down: m.cache.index().layers.iter().all(LayerExperts::sparse_down),
        }
    }

    /// How decode reads the experts: gate, up and down, each with one entry per kind of layer.
    pub fn expert_kernels(&self) -> Vec<ExpertKernel> {
        let layers = &self.inner.cache.index().layers;
        let mut found: Vec<ExpertKernel> = Vec::new();
        let mut note = |part, dtype, sparse| match found
            .iter_mut()
            .find(|k| (k.part, k.dtype, k.sparse) == (part, dtype, sparse))
        {
            Some(kind) => kind.layers += 1,
            None => found.push(ExpertKernel { part, dtype, layers: 1, sparse }),
        };
        layers.iter().for_each(|l| note("gate", l.gate.dtype, false));
        layers.iter().for_each(|l| note("up", l.up.dtype, l.sparse_up()));
        layers.iter().for_each(|l| note("down", l.down.dtype, l.sparse_down()));
        found
    }
}
