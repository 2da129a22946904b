//! Hyperparameters: GGUF metadata checked once, so that nothing behind this file meets an impossible shape.

use log::warn;

use crate::gguf::{Gguf, Value};
use crate::{Error, Result};

/// How the router's logits of the chosen experts become weights. Both are then divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    /// `exp` of the logits (the 21B).
    Softmax,
    /// The logistic function of the logits (the 4B).
    Sigmoid,
}

/// What one layer's attention does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerAttention {
    /// Positions visible to a query, itself included; `None` sees all.
    pub window: Option<usize>,
    /// Base of the rotary embedding; `None` for a layer without positions (NoPE).
    pub rope_base: Option<f32>,
}

/// The shape of a model (GGUF keys `smallthinker.*`).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Hparams {
    /// Transformer layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Neurons of one expert.
    pub expert_ffn: usize,
    /// Experts per layer.
    pub n_experts: usize,
    /// Experts computed per token and layer.
    pub top_k: usize,
    /// Rows of the vocabulary.
    pub vocab: usize,
    /// Positions the model was made for.
    pub context_length: usize,
    /// Epsilon of every RMSNorm.
    pub rms_eps: f32,
    /// Router weights.
    pub gating: Gating,
    /// Attention of each layer, `n_layers` entries.
    pub attention: Vec<LayerAttention>,
}

/// Every fourth layer, counted from 0, is global without RoPE when the model has a window
/// (technical report, section 2.3).
const GLOBAL_PERIOD: usize = 4;
/// Far above any real model, low enough that products of three stay inside `u64` and `usize`.
const MAX_DIM: u32 = 1 << 20;

impl Hparams {
    /// For tests of experts by themselves: nothing else of the model has a size.
    #[cfg(test)]
    pub(crate) fn of_experts(n_layers: usize, hidden: usize, expert_ffn: usize, n_experts: usize) -> Hparams {
        Hparams {
            n_layers,
            hidden,
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: hidden,
            expert_ffn,
            n_experts,
            top_k: 1,
            vocab: 1,
            context_length: 1,
            rms_eps: 0.0,
            gating: Gating::Softmax,
            attention: Vec::new(),
        }
    }

    /// Reads and checks the metadata. `gating` overrides what the file says or fails to say.
    pub fn from_gguf(gguf: &Gguf, vocab: usize, gating: Option<Gating>) -> Result<Hparams> {
        let path = gguf.path();
        let n_layers = dim(gguf, "smallthinker.block_count")?;
        let hidden = dim(gguf, "smallthinker.embedding_length")?;
        let n_heads = dim(gguf, "smallthinker.attention.head_count")?;
        let n_kv_heads = match gguf.get("smallthinker.attention.head_count_kv") {
            Some(_) => dim(gguf, "smallthinker.attention.head_count_kv")?,
            None => n_heads,
        };
        let head_dim = match gguf.get("smallthinker.attention.key_length") {
            Some(_) => dim(gguf, "smallthinker.attention.key_length")?,
            None => hidden / n_heads,
        };
        if n_heads % n_kv_heads != 0 {
            let allowed = format!("a divisor of head_count {n_heads}");
            return Err(Error::malformed(path, "smallthinker.attention.head_count_kv", n_kv_heads, allowed));
        }
        if head_dim == 0 || head_dim % 2 != 0 {
            let key = "smallthinker.attention.key_length";
            return Err(Error::malformed(path, key, head_dim, "an even number (RoPE turns pairs)"));
        }
        for key in ["smallthinker.attention.value_length", "smallthinker.rope.dimension_count"] {
            if gguf.get(key).is_some() && dim(gguf, key)? != head_dim {
                let allowed = format!("{head_dim}, the attention.key_length");
                return Err(Error::unsupported(path, key, dim(gguf, key)?, allowed));
            }
        }
        let n_experts = dim(gguf, "smallthinker.expert_count")?;
        let top_k = dim(gguf, "smallthinker.expert_used_count")?;
        if top_k > n_experts {
            let allowed = format!("1 to expert_count {n_experts}");
            return Err(Error::malformed(path, "smallthinker.expert_used_count", top_k, allowed));
        }
        let expert_ffn = match gguf.get("smallthinker.expert_feed_forward_length") {
            Some(_) => dim(gguf, "smallthinker.expert_feed_forward_length")?,
            None => dim(gguf, "smallthinker.feed_forward_length")?,
        };
        let eps_key = "smallthinker.attention.layer_norm_rms_epsilon";
        let rms_eps = gguf.require_f32(eps_key)?;
        if !(rms_eps.is_finite() && rms_eps >= 0.0) {
            return Err(Error::malformed(path, eps_key, rms_eps, "a finite number >= 0"));
        }
        Ok(Hparams {
            n_layers,
            hidden,
            n_heads,
            n_kv_heads,
            head_dim,
            expert_ffn,
            n_experts,
            top_k,
            vocab,
            context_length: dim_up_to(gguf, "smallthinker.context_length", u32::MAX)?,
            rms_eps,
            gating: read_gating(gguf, gating)?,
            attention: read_attention(gguf, n_layers)?,
        })
    }

    /// Elements of the keys (or of the values) of one position and layer.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Elements of the queries of one position.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }
}

fn dim(gguf: &Gguf, key: &str) -> Result<usize> {
    dim_up_to(gguf, key, MAX_DIM)
}

fn dim_up_to(gguf: &Gguf, key: &str, max: u32) -> Result<usize> {
    let value = gguf.require_u32(key)?;
    if value == 0 || value > max {
        return Err(Error::malformed(gguf.path(), key, value, format!("1 to {max}")));
    }
    Ok(value as usize)
}

fn read_gating(gguf: &Gguf, chosen: Option<Gating>) -> Result<Gating> {
    let key = "smallthinker.expert_gating_func";
    let in_file = match gguf.get_u32(key)? {
        Some(1) => Some(Gating::Softmax),
        Some(2) => Some(Gating::Sigmoid),
        Some(other) => return Err(Error::unsupported(gguf.path(), key, other, "1 (softmax), 2 (sigmoid)")),
        None => None,
    };
    if chosen.or(in_file).is_none() {
        warn!("{}: {key} is missing; assuming softmax", gguf.path().display());
    }
    Ok(chosen.or(in_file).unwrap_or(Gating::Softmax))
}

fn read_attention(gguf: &Gguf, n_layers: usize) -> Result<Vec<LayerAttention>> {
    let base = rope_base(gguf, "smallthinker.rope.freq_base")?.unwrap_or(10_000.0);
    let base_window = rope_base(gguf, "smallthinker.rope.freq_base_swa")?.unwrap_or(base);
    refuse_rope_scaling(gguf)?;
    let window = gguf.get_u32("smallthinker.attention.sliding_window")?.filter(|&w| w > 0);
    let Some(window) = window else {
        return Ok(vec![LayerAttention { window: None, rope_base: Some(base) }; n_layers]);
    };
    let slides = sliding_layers(gguf, n_layers)?;
    Ok(slides
        .into_iter()
        .map(|slides| match slides {
            true => LayerAttention { window: Some(window as usize), rope_base: Some(base_window) },
            false => LayerAttention { window: None, rope_base: None },
        })
        .collect())
}

/// Any scaling that would change a result is refused by name; a type of `none` or a factor of 1 changes none.
fn refuse_rope_scaling(gguf: &Gguf) -> Result<()> {
    let off = gguf.get_str("smallthinker.rope.scaling.type")? == Some("none");
    let scales = |key: &str| {
        key.starts_with("smallthinker.rope.scal") && !(off || key.ends_with("original_context_length"))
    };
    for (key, value) in gguf.metadata().filter(|(key, _)| scales(key)) {
        if !matches!(value.as_float(), Some(0.0 | 1.0)) {
            return Err(Error::unsupported(gguf.path(), key, format!("{value:?}"), "no scaling"));
        }
    }
    Ok(())
}

/// Which layers slide: `sliding_window_pattern` as one flag per layer, or as a period whose first layer is
/// global; every fourth global when the key is absent.
fn sliding_layers(gguf: &Gguf, n_layers: usize) -> Result<Vec<bool>> {
    let key = "smallthinker.attention.sliding_window_pattern";
    let period = match gguf.get(key) {
        None => GLOBAL_PERIOD,
        Some(Value::Array(_)) => {
            let flags = gguf.get_bool_array(key)?.unwrap_or_default();
            if flags.len() != n_layers {
                let allowed = format!("{n_layers} flags, one per layer");
                return Err(Error::malformed(gguf.path(), key, format!("{} flags", flags.len()), allowed));
            }
            return Ok(flags.to_vec());
        }
        Some(_) => dim(gguf, key)?,
    };
    Ok((0..n_layers).map(|i| i % period != 0).collect())
}

fn rope_base(gguf: &Gguf, key: &str) -> Result<Option<f32>> {
    match gguf.get_f32(key)? {
        Some(base) if base.is_finite() && base > 0.0 => Ok(Some(base)),
        Some(base) => Err(Error::malformed(gguf.path(), key, base, "a finite number > 0")),
        None => Ok(None),
    }
}
