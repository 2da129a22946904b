//! Which tensors the GGUF file gets, of which type, from which tensors of the checkpoint.

use std::collections::HashSet;

use super::checkpoint::{Checkpoint, Stored};
use super::config::Config;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// One tensor to write.
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) dtype: DType,
    /// Sizes in GGUF order: `dims[0]` is the length of a row.
    pub(super) dims: Vec<u64>,
    /// What it is made of, stacked along the last dimension: one tensor, or one per expert.
    pub(super) parts: Vec<Stored>,
}

/// The plan of a conversion.
pub(super) struct Plan {
    pub(super) tensors: Vec<Planned>,
    /// Names of tensors whose rows are not whole blocks of the chosen type and that are kept in F16 instead.
    pub(super) fallbacks: Vec<String>,
    /// Names of tensors of the checkpoint that are not needed.
    pub(super) skipped: Vec<String>,
}

/// What precision a tensor needs.
#[derive(Clone, Copy, PartialEq)]
enum Precision {
    /// Norms (tiny) and routers (quantized, they choose other experts).
    Full,
    Chosen,
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    dtype: DType,
    used: HashSet<String>,
    plan: Plan,
}

/// Plans the conversion of `checkpoint` to `dtype`.
pub(super) fn plan(checkpoint: &Checkpoint, config: &Config, dtype: DType) -> Result<Plan> {
    let plan = Plan { tensors: Vec::new(), fallbacks: Vec::new(), skipped: Vec::new() };
    let mut planner = Planner { checkpoint, dtype, used: HashSet::new(), plan };
    let (hidden, vocab) = (u64::from(config.hidden), u64::from(config.vocab));
    let q = u64::from(config.heads) * u64::from(config.head_dim);
    let kv = u64::from(config.kv_heads) * u64::from(config.head_dim);
    let (ffn, experts) = (u64::from(config.expert_ffn), u64::from(config.experts));

    use Precision::{Chosen, Full};
    planner.one("token_embd", "model.embed_tokens", &[vocab, hidden], Chosen)?;
    for i in 0..config.layers {
        let (to, from) = (format!("blk.{i}"), format!("model.layers.{i}"));
        let attention = format!("{from}.self_attn");
        let moe = format!("{from}.block_sparse_moe");
        planner.one(&format!("{to}.attn_norm"), &format!("{from}.input_layernorm"), &[hidden], Full)?;
        planner.one(&format!("{to}.attn_q"), &format!("{attention}.q_proj"), &[q, hidden], Chosen)?;
        planner.one(&format!("{to}.attn_k"), &format!("{attention}.k_proj"), &[kv, hidden], Chosen)?;
        planner.one(&format!("{to}.attn_v"), &format!("{attention}.v_proj"), &[kv, hidden], Chosen)?;
        planner.one(&format!("{to}.attn_output"), &format!("{attention}.o_proj"), &[hidden, q], Chosen)?;
        planner.one(
            &format!("{to}.ffn_norm"),
            &format!("{from}.post_attention_layernorm"),
            &[hidden],
            Full,
        )?;
        planner.one(
            &format!("{to}.ffn_gate_inp"),
            &format!("{moe}.primary_router"),
            &[experts, hidden],
            Full,
        )?;
        for (matrix, shape) in [("gate", [ffn, hidden]), ("up", [ffn, hidden]), ("down", [hidden, ffn])] {
            let names = (0..experts).map(|e| format!("{moe}.experts.{e}.{matrix}.weight"));
            planner.stack(&format!("{to}.ffn_{matrix}_exps.weight"), names, &shape, experts, Chosen)?;
        }
    }
    planner.one("output_norm", "model.norm", &[hidden], Full)?;
    if !config.tied {
        planner.one("output", "lm_head", &[vocab, hidden], Chosen)?;
    }
    planner.finish(config.tied)
}

impl Planner<'_> {
    fn one(&mut self, to: &str, from: &str, shape: &[u64], precision: Precision) -> Result<()> {
        let from = std::iter::once(format!("{from}.weight"));
        self.stack(&format!("{to}.weight"), from, shape, 1, precision)
    }

    /// Plans `count` tensors of this shape as one; more than one get a dimension of their own.
    fn stack(
        &mut self,
        to: &str,
        from: impl Iterator<Item = String>,
        shape: &[u64],
        count: u64,
        precision: Precision,
    ) -> Result<()> {
        let mut parts = Vec::new();
        for name in from {
            parts.push(self.checkpoint.expect(&name, shape)?.clone());
            self.used.insert(name);
        }
        let mut dims: Vec<u64> = shape.iter().rev().copied().collect();
        if to.ends_with("_exps.weight") {
            dims.push(count);
        }
        let fits = dims.first().is_some_and(|cols| cols % self.dtype.block_len() as u64 == 0);
        let dtype = match precision {
            Precision::Full => DType::F32,
            Precision::Chosen if fits => self.dtype,
            Precision::Chosen => {
                self.plan.fallbacks.push(to.to_owned());
                DType::F16
            }
        };
        self.plan.tensors.push(Planned { name: to.to_owned(), dtype, dims, parts });
        Ok(())
    }

    /// Refuses a checkpoint with tensors that have no place in the file: they would be dropped silently.
    fn finish(mut self, tied: bool) -> Result<Plan> {
        let mut rest: Vec<&str> = self.checkpoint.names().filter(|name| !self.used.contains(*name)).collect();
        rest.sort_unstable();
        for name in rest {
            // Computed from rope_theta, or a copy of the embedding.
            if name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight") {
                self.plan.skipped.push(name.to_owned());
                continue;
            }
            let path = self.checkpoint.path_of_name(name);
            return Err(Error::unsupported(
                path,
                name,
                "a tensor",
                "only the tensors of a SmallThinker model",
            ));
        }
        Ok(self.plan)
    }
}
