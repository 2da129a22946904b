//! `config.json`: the hyperparameters, and the refusal of everything that GGUF cannot say.
//!
//! Every field is either converted, or known not to change the result, or refused by name: a value that is
//! silently dropped would give a model that runs and answers wrongly.

use std::path::Path;

use serde_json::Value;

use super::json::Object;
use crate::error::Result;

/// Largest `config.json`.
const MAX_BYTES: u64 = 16 << 20;

/// In files with a window, every fourth layer from layer 0 is global and without RoPE; no key says otherwise.
const GLOBAL_PERIOD: usize = 4;

/// The hyperparameters of a checkpoint.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) layers: u32,
    pub(super) hidden: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) expert_ffn: u32,
    pub(super) experts: u32,
    pub(super) active_experts: u32,
    pub(super) softmax_router: bool,
    pub(super) rms_eps: f32,
    pub(super) rope_theta: f32,
    pub(super) context: u32,
    pub(super) vocab: u32,
    /// Window of the sliding layers; `None` if all layers are global with RoPE.
    pub(super) window: Option<u32>,
    pub(super) tied: bool,
    pub(super) bos: Option<u32>,
    /// Ids that end a sequence, the main one first.
    pub(super) eos: Vec<u32>,
    pub(super) pad: Option<u32>,
    pub(super) name: Option<String>,
}

/// Fields that are converted or checked below.
const HANDLED: &[&str] = &[
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "moe_ffn_hidden_size",
    "moe_num_primary_experts",
    "moe_num_active_primary_experts",
    "moe_primary_router_apply_softmax",
    "norm_topk_prob",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_layout",
    "sliding_window_layout",
    "sliding_window_size",
    "max_position_embeddings",
    "vocab_size",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "model_name",
    "_name_or_path",
];

/// Fields that do not change what a loaded model computes for given tokens: where the checkpoint comes from,
/// how it was trained, defaults of sampling, and sizes of parts that the fields of [`FIXED`] switch off.
const WITHOUT_EFFECT: &[&str] = &[
    "architectures",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "tokenizer_class",
    "use_cache",
    "initializer_range",
    "attention_dropout",
    "hidden_dropout",
    "router_aux_loss_coef",
    "output_router_logits",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "do_sample",
    "max_length",
    "max_new_tokens",
    "repetition_penalty",
    "profile_sparsity",
    "_attn_implementation",
    "dense_ffn_hidden_size",
    "moe_num_secondary_experts",
    "moe_secondary_expert_size",
];

/// Fields that must have this value where they are present: any other changes the computation.
fn fixed_fields() -> [(&'static str, Value); 13] {
    [
        ("hidden_act", "relu".into()),
        ("hidden_activation", "relu".into()),
        ("attention_bias", false.into()),
        ("mlp_bias", false.into()),
        ("use_qk_norm", false.into()),
        ("partial_rotary_factor", 1.0.into()),
        ("attention_scale", Value::Null),
        ("quantization_config", Value::Null),
        ("moe_shared_primary_experts", 0.into()),
        ("moe_enable_early_router", true.into()),
        ("moe_enable_secondary_experts", false.into()),
        ("is_encoder_decoder", false.into()),
        ("add_cross_attention", false.into()),
    ]
}

impl Config {
    /// Reads and checks `config.json`.
    pub(super) fn read(path: &Path) -> Result<Config> {
        let json = Object::read(path, MAX_BYTES)?;
        match json.get("model_type") {
            Some(Value::String(t)) if t == "smallthinker" => {}
            other => return Err(json.refuse("model_type", other, "\"smallthinker\"")),
        }
        let layers = json.u32("num_hidden_layers", 1)?;
        let config = Config {
            layers,
            hidden: json.u32("hidden_size", 1)?,
            heads: json.u32("num_attention_heads", 1)?,
            kv_heads: json.u32("num_key_value_heads", 1)?,
            head_dim: json.u32("head_dim", 1)?,
            expert_ffn: json.u32("moe_ffn_hidden_size", 1)?,
            experts: json.u32("moe_num_primary_experts", 1)?,
            active_experts: json.u32("moe_num_active_primary_experts", 1)?,
            softmax_router: json.bool_or("moe_primary_router_apply_softmax", false)?,
            rms_eps: json.positive_f32("rms_norm_eps")?,
            rope_theta: json.positive_f32("rope_theta")?,
            context: json.u32("max_position_embeddings", 1)?,
            vocab: json.u32("vocab_size", 1)?,
            window: window(&json, layers as usize)?,
            tied: json.bool_or("tie_word_embeddings", true)?,
            bos: ids(&json, "bos_token_id")?.first().copied(),
            eos: ids(&json, "eos_token_id")?,
            pad: ids(&json, "pad_token_id")?.first().copied(),
            name: name(&json),
        };
        config.check_shapes(&json)?;
        refuse_the_rest(&json, &config)?;
        Ok(config)
    }

    fn check_shapes(&self, json: &Object) -> Result<()> {
        let wrong = |field: &str, allowed: String| Err(json.wrong(field, json.get(field), allowed));
        if self.heads % self.kv_heads != 0 {
            return wrong("num_key_value_heads", format!("a divisor of num_attention_heads, {}", self.heads));
        }
        if self.head_dim % 2 != 0 {
            return wrong("head_dim", "an even number: RoPE turns pairs".into());
        }
        if self.active_experts > self.experts {
            let allowed = format!("at most moe_num_primary_experts, {}", self.experts);
            return wrong("moe_num_active_primary_experts", allowed);
        }
        for (field, ids) in [("bos_token_id", &self.bos), ("pad_token_id", &self.pad)] {
            if ids.is_some_and(|id| id >= self.vocab) {
                return wrong(field, format!("an id below vocab_size, {}", self.vocab));
            }
        }
        if self.eos.iter().any(|&id| id >= self.vocab) {
            return wrong("eos_token_id", format!("ids below vocab_size, {}", self.vocab));
        }
        Ok(())
    }
}

/// Which of the two attention patterns that GGUF keys can express the layouts have.
fn window(json: &Object, layers: usize) -> Result<Option<u32>> {
    let rope = json.layout("rope_layout", layers)?.unwrap_or_else(|| vec![true; layers]);
    let sliding = json.layout("sliding_window_layout", layers)?.unwrap_or_else(|| vec![false; layers]);
    let alternating =
        |layout: &[bool]| layout.iter().enumerate().all(|(i, &on)| on == (i % GLOBAL_PERIOD != 0));
    let all_rope = rope.iter().all(|&on| on);
    if all_rope && !sliding.contains(&true) {
        return Ok(None);
    }
    if alternating(&rope) && alternating(&sliding) {
        return json.u32("sliding_window_size", 1).map(Some);
    }
    let supported = "RoPE in every layer and no window, or 0 in layers 0, 4, 8, ... and 1 elsewhere in both \
                     rope_layout and sliding_window_layout";
    let field = if all_rope || alternating(&rope) { "sliding_window_layout" } else { "rope_layout" };
    Err(json.refuse(field, json.get(field), supported))
}

/// A token id or a list of them.
fn ids(json: &Object, field: &str) -> Result<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let ids = match json.get(field) {
        None => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(one) => id(one).map(|id| vec![id]),
    };
    ids.ok_or_else(|| json.wrong(field, json.get(field), "a token id or a list of token ids".into()))
}

fn name(json: &Object) -> Option<String> {
    let text = |field| json.get(field).and_then(Value::as_str).filter(|s| !s.is_empty());
    text("model_name").or_else(|| text("_name_or_path")).map(str::to_owned)
}

fn refuse_the_rest(json: &Object, config: &Config) -> Result<()> {
    // After a softmax over the chosen experts the weights sum to one already.
    if !json.bool_or("norm_topk_prob", true)? && !config.softmax_router {
        return Err(json.refuse("norm_topk_prob", json.get("norm_topk_prob"), "true"));
    }
    if let Some(scaling) = json.get("rope_scaling") {
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
        if kind != Some("default") {
            return Err(json.refuse("rope_scaling", Some(scaling), "null"));
        }
    }
    if let Some(layout) = json.layout("moe_layer_layout", config.layers as usize)? {
        if layout.contains(&false) {
            return Err(json.refuse("moe_layer_layout", json.get("moe_layer_layout"), "1 in every layer"));
        }
    }
    // Names that other libraries use for the same numbers.
    for (field, number) in
        [("num_experts_per_tok", config.active_experts), ("moe_intermediate_size", config.expert_ffn)]
    {
        if json.get(field).is_some() && json.u32(field, 0)? != number {
            return Err(json.wrong(field, json.get(field), number.to_string()));
        }
    }
    let fixed = fixed_fields();
    let aliases = ["moe_layer_layout", "num_experts_per_tok", "moe_intermediate_size"];
    for (field, value) in json.map.iter().filter(|(_, v)| !v.is_null()) {
        let field = field.as_str();
        if let Some((_, allowed)) = fixed.iter().find(|(name, _)| *name == field) {
            if !same(value, allowed) {
                return Err(json.refuse(field, Some(value), &allowed.to_string()));
            }
            continue;
        }
        let known = HANDLED.contains(&field) || WITHOUT_EFFECT.contains(&field) || aliases.contains(&field);
        // An unknown switch that is off is one that the checkpoint does not use.
        if !known && *value != Value::Bool(false) {
            return Err(json.refuse(
                field,
                Some(value),
                "no such field, null or false: its effect is not known",
            ));
        }
    }
    Ok(())
}

/// Equality that does not tell 1 from 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}
