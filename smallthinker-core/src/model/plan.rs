//! What a model takes and what a budget allows, computed from the file's directory alone.

use crate::experts::MIN_SLOTS_PER_CHOICE;
use crate::forward::kv_cache::{KvCache, KvType, PAGE};
use crate::gguf::Gguf;
use crate::kernels::{ActGroup, Acts};
use crate::model::expert_index::ExpertIndex;
use crate::model::hparams::Hparams;
use crate::model::weights::{expect_tensor, resident_shapes};
use crate::{Error, Result};

/// The memory plan of a model under a budget; all sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The budget that this plan is for.
    pub budget: u64,
    /// Dense weights, always in memory.
    pub resident: u64,
    /// Vocabulary and merges (an estimate).
    pub tokenizer: u64,
    /// Buffers of one session.
    pub scratch: u64,
    /// KV cache of one session at the full context.
    pub kv_full_context: u64,
    /// KV cache that every session starts with.
    pub kv_first_page: u64,
    /// All experts of all layers.
    pub expert_bank: u64,
    /// One expert slot.
    pub expert_slot: u64,
    /// Slots that the budget holds.
    pub expert_slots: u64,
    /// Experts in the model.
    pub experts: u64,
    /// Least budget that can run the model.
    pub floor: u64,
    /// Weight bytes that one token touches; a budget near it reads almost every expert from the file.
    pub per_token: u64,
    /// Budget at which nothing is ever read twice, with one session at the full context.
    pub everything: u64,
}

impl Plan {
    /// Whether all experts stay in memory.
    pub fn fits(&self) -> bool {
        self.expert_slots >= self.experts
    }
}

/// Left to the rest of the machine when the budget is chosen from what is free.
const MARGIN: u64 = 256 << 20;

/// The default budget: what is free less a margin, or no limit where the system does not tell.
pub(crate) fn default_budget() -> u64 {
    crate::platform::available_memory().map_or(u64::MAX, |free| free.saturating_sub(MARGIN.min(free / 8)))
}

/// Plans for a budget. Errors: [`Error::Budget`] below the floor.
pub(crate) fn plan(
    gguf: &Gguf,
    h: &Hparams,
    index: &ExpertIndex,
    kv: KvType,
    chunk: usize,
    budget: u64,
) -> Result<Plan> {
    let tied = gguf.tensor("output.weight").is_none();
    let mut resident = 0;
    for (name, rows, cols) in resident_shapes(h, tied) {
        let info = expect_tensor(gguf, &name, &[cols, rows])?;
        resident += info.n_bytes.max(if name.contains("_norm") || name.contains("gate_inp") { 4 * (rows * cols) as u64 } else { 0 });
    }
    let slot = index.slot_bytes as u64;
    let experts = h.n_layers as u64 * h.n_experts as u64;
    let kv_page = h.n_layers as u64 * KvCache::page_bytes(h, kv);
    let tokenizer = h.vocab as u64 * TOKENIZER_BYTES_PER_TOKEN;
    let scratch = scratch_bytes(h, chunk);
    let fixed = resident + tokenizer + scratch;
    let working_set = (MIN_SLOTS_PER_CHOICE * h.top_k) as u64;
    let floor = fixed + kv_page + working_set.min(experts) * slot;
    if budget < floor {
        let per_token = fixed + h.n_layers as u64 * h.top_k as u64 * slot;
        let what = format!("this model (one token touches {per_token} bytes of it)");
        return Err(Error::Budget { what, needed: floor, available: budget });
    }
    let kv_full = kv_full_context(h, kv, chunk);
    // A session's cache may grow to a quarter of the rest before experts get more.
    let for_slots = (budget - fixed).saturating_sub(kv_full.min((budget - fixed) / 4).max(kv_page));
    let slots = (for_slots / slot.max(1)).clamp(working_set.min(experts), experts);
    Ok(Plan {
        budget,
        resident,
        tokenizer,
        scratch,
        kv_full_context: kv_full,
        kv_first_page: kv_page,
        expert_bank: index.bank_bytes(),
        expert_slot: slot,
        expert_slots: slots,
        experts,
        floor,
        per_token: resident + h.n_layers as u64 * h.top_k as u64 * slot,
        everything: fixed + kv_full + index.bank_bytes(),
    })
}

/// Measured with the 151,936-token vocabulary: strings, two hash maps and the merge table.
const TOKENIZER_BYTES_PER_TOKEN: u64 = 400;

/// Upper bound of a session's buffers for chunks of `chunk` positions.
pub(crate) fn scratch_bytes(h: &Hparams, chunk: usize) -> u64 {
    let acts = |cols: usize| 4 * cols + cols.div_ceil(256) * size_of::<ActGroup>();
    let qkv = h.q_dim() + 2 * h.kv_dim();
    let per_position = 4 * (3 * h.hidden + qkv + h.q_dim() + h.n_experts + h.head_dim)
        + acts(h.hidden.max(h.q_dim()))
        // the experts' stage, at worst with all positions in one expert
        + 4 * (2 * h.expert_ffn + h.hidden)
        + acts(h.hidden)
        + acts(h.expert_ffn);
    (per_position * chunk + 4 * h.vocab + size_of::<Acts>()) as u64
}

fn kv_full_context(h: &Hparams, kv: KvType, chunk: usize) -> u64 {
    let positions = |window: Option<usize>| window.map_or(h.context_length, |w| (w + chunk + PAGE).min(h.context_length));
    let pages: usize = h.attention.iter().map(|a| positions(a.window).div_ceil(PAGE)).sum();
    pages as u64 * KvCache::page_bytes(h, kv)
}
