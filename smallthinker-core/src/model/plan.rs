//! What a model takes and what a budget allows, computed from the file's directory alone.

use crate::experts::MIN_SLOTS_PER_CHOICE;
use crate::forward::attention::{partial_bytes, task_bytes};
use crate::forward::kv_cache::{KvCache, KvType, PAGE};
use crate::forward::{MOST_EXPERTS, Picker, TaskBuffers};
use crate::gguf::{Gguf, ReadBuffer};
use crate::kernels::gemm::{ActTiles, GemmScratch};
use crate::kernels::{ActGroup, Acts};
use crate::model::expert_index::ExpertIndex;
use crate::model::hparams::Hparams;
use crate::model::options::ModelOptions;
use crate::model::predictor::{LmHead, predictor_bytes};
use crate::model::weights::{expect_tensor, resident_bytes, resident_shapes};
use crate::platform::MemoryRoom;
use crate::{Error, Result};

/// The memory plan of a model under a budget; all sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The budget that this plan is for.
    pub budget: u64,
    /// Dense weights, always in memory.
    pub resident: u64,
    /// What the sparse LM head holds besides the head; 0 with the full head.
    pub lm_head: u64,
    /// Vocabulary and merges.
    pub tokenizer: u64,
    /// Buffers of one session.
    pub scratch: u64,
    /// Memory that experts which were read are rearranged in; 0 if none needs to be.
    pub read_buffers: u64,
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
    /// Slots that the model can't do without.
    pub(crate) working_set: u64,
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

    /// What the model itself takes, without its sessions and its expert slots.
    pub(crate) fn fixed(&self) -> u64 {
        let all = [self.resident, self.lm_head, self.tokenizer, self.read_buffers];
        all.into_iter().fold(0, u64::saturating_add)
    }

    /// The plan for another budget, of which `sessions` bytes are in use. Errors: [`Error::Budget`] below the floor, or if
    /// the sessions leave too little.
    pub(crate) fn with_budget(&self, budget: u64, sessions: u64) -> Result<Plan> {
        let fixed = self.fixed();
        let least = self.working_set.saturating_mul(self.expert_slot);
        let needed = self.floor.max(fixed.saturating_add(least).saturating_add(sessions));
        if budget < needed {
            let what = format!("this model (one token touches {} bytes of it)", self.per_token);
            return Err(Error::Budget { what, needed, available: budget });
        }
        let for_slots = self.for_slots(budget).min((budget - fixed).saturating_sub(sessions));
        let expert_slots = (for_slots / self.expert_slot.max(1)).clamp(self.working_set, self.experts);
        Ok(Plan { budget, expert_slots, ..self.clone() })
    }

    /// Bytes of a budget that go to expert slots: all but what one session begins with. What sessions need later they take from
    /// slots.
    fn for_slots(&self, budget: u64) -> u64 {
        budget.saturating_sub(self.fixed()).saturating_sub(self.scratch).saturating_sub(self.kv_first_page)
    }
}

/// Left over, at most, when the budget is chosen from what is free.
const MARGIN: u64 = 256 << 20;
/// Left over of what the machine has free, as a fraction: other programs may come to need it.
const MARGIN_OF_MACHINE: u64 = 8;
/// Left over of what the limit of a group of processes allows: such a limit is as a rule set for this program.
const MARGIN_OF_GROUP: u64 = 16;

/// Sessions at the full context that the default budget has room for.
const DEFAULT_SESSIONS: u64 = 4;

/// What is free less a margin; no limit where the system does not tell.
fn free_memory() -> u64 {
    usable(crate::platform::memory_room())
}

fn usable(room: MemoryRoom) -> u64 {
    let less = |free: Option<u64>, share: u64| free.map(|free| free.saturating_sub(MARGIN.min(free / share)));
    let limits = [less(room.machine, MARGIN_OF_MACHINE), less(room.groups, MARGIN_OF_GROUP)];
    limits.into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// Plans for the options' budget. Errors: [`Error::Budget`] below the floor.
pub(crate) fn plan(
    gguf: &Gguf,
    h: &Hparams,
    index: &ExpertIndex,
    tokenizer: usize,
    options: &ModelOptions,
) -> Result<Plan> {
    let tokenizer = tokenizer as u64;
    let (kv, chunk) = (options.kv_type, options.resolved_chunk()?);
    let tied = gguf.tensor("output.weight").is_none();
    let mut resident = 0u64;
    for (name, rows, cols) in resident_shapes(h, tied) {
        let info = expect_tensor(gguf, &name, &[cols, rows])?;
        resident = resident.saturating_add(resident_bytes(gguf, &name, info, rows, cols)? as u64);
    }
    let slot = index.slot_bytes as u64;
    let experts = h.n_layers as u64 * h.n_experts as u64;
    let kv_page = (h.n_layers as u64).saturating_mul(KvCache::page_bytes(h, kv));
    let scratch = scratch_bytes(h, chunk, options.resolved_threads()?, options.resolved_context(h)?);
    let kv_full = kv_full_context(h, options.resolved_context(h)?, kv, chunk);
    let lm_head = match options.lm_head {
        LmHead::Full => 0,
        LmHead::Sparse => predictor_bytes(gguf, h)?,
    };
    let mut read_buffers = index.spare_bytes() as u64;
    if gguf.source().lies_in_memory() && index.widest_band() > 0 {
        read_buffers += options.resolved_threads()? as u64 * ReadBuffer::bytes(index.widest_band()) as u64;
    }
    let all = [resident, lm_head, tokenizer, scratch, read_buffers];
    let fixed = all.into_iter().fold(0, u64::saturating_add);
    let everything = fixed.saturating_add(kv_full).saturating_add(index.bank_bytes());
    let more_sessions = (DEFAULT_SESSIONS - 1).saturating_mul(kv_full.saturating_add(scratch));
    let budget =
        options.memory_budget.unwrap_or_else(|| free_memory().min(everything.saturating_add(more_sessions)));
    let working_set = ((MIN_SLOTS_PER_CHOICE * h.top_k) as u64).min(experts);
    let floor = fixed.saturating_add(kv_page).saturating_add(working_set.saturating_mul(slot));
    let one_token = (h.n_layers as u64 * h.top_k as u64).saturating_mul(slot);
    let per_token = resident.saturating_add(one_token);
    let plan = Plan {
        budget,
        resident,
        lm_head,
        tokenizer,
        scratch,
        read_buffers,
        kv_full_context: kv_full,
        kv_first_page: kv_page,
        expert_bank: index.bank_bytes(),
        expert_slot: slot,
        expert_slots: working_set,
        experts,
        working_set,
        floor,
        per_token,
        everything,
    };
    plan.with_budget(budget, 0)
}

/// Upper bound of a session's buffers for chunks of `chunk` positions on `threads` threads, `context` positions in all.
pub(crate) fn scratch_bytes(h: &Hparams, chunk: usize, threads: usize, context: usize) -> u64 {
    let acts = |cols: usize| 4 * cols + cols.div_ceil(256) * size_of::<ActGroup>();
    let (qkv, widest) = (h.q_dim() + 2 * h.kv_dim(), h.hidden.max(h.q_dim()));
    let one = 4 * (3 * h.hidden + qkv + h.q_dim() + h.n_experts + h.head_dim)
        + acts(widest)
        + size_of::<(usize, f32)>() * 3 * h.top_k
        // a batch of all positions in one expert
        + 4 * (2 * h.expert_ffn + h.hidden)
        + acts(h.hidden)
        + acts(h.expert_ffn)
        // arranged for products with many vectors
        + ActTiles::bytes_per_vector(widest)
        + ActTiles::bytes_per_vector(h.hidden)
        + ActTiles::bytes_per_vector(h.expert_ffn);
    // Tiles of a group of experts that are not full
    let unfilled =
        MOST_EXPERTS * (ActTiles::bytes_per_tile(h.hidden) + ActTiles::bytes_per_tile(h.expert_ffn));
    // What each thread unpacks and computes, once for attention and once for experts.
    let attention = task_bytes(h);
    let task = attention
        + 2 * (GemmScratch::bytes(widest.max(h.expert_ffn)) + chunk * TaskBuffers::BYTES_PER_VECTOR);
    // A single position keeps the neurons of all its experts.
    let together = h.top_k * (4 * (h.expert_ffn + h.hidden) + acts(h.expert_ffn) + 8 * h.expert_ffn);
    (one as u64)
        .saturating_mul(chunk as u64)
        .saturating_add((task as u64).saturating_mul(threads as u64))
        .saturating_add(partial_bytes(h, chunk, context))
        .saturating_add(
            (unfilled + together + 4 * h.vocab + Picker::bytes(h.vocab) + size_of::<Acts>()) as u64,
        )
}

fn kv_full_context(h: &Hparams, context: usize, kv: KvType, chunk: usize) -> u64 {
    let positions = |window: Option<usize>| window.map_or(context, |w| (w + chunk + PAGE).min(context));
    let pages: usize = h.attention.iter().map(|a| positions(a.window).div_ceil(PAGE)).sum();
    (pages as u64).saturating_mul(KvCache::page_bytes(h, kv))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_what_is_free_stays_free() {
        const MIB: u64 = 1 << 20;
        let usable = |machine, groups| usable(MemoryRoom { machine, groups });
        assert_eq!(usable(None, None), u64::MAX);
        assert_eq!(usable(Some(1024 * MIB), None), (1024 - 128) * MIB);
        assert_eq!(usable(Some(16384 * MIB), Some(1024 * MIB)), (1024 - 64) * MIB);
        assert_eq!(usable(Some(16384 * MIB), Some(8192 * MIB)), (8192 - 256) * MIB);
        assert_eq!(usable(Some(1024 * MIB), Some(1020 * MIB)), (1024 - 128) * MIB);
    }
}
