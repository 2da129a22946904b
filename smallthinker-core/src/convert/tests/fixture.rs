//! A small random checkpoint in the Hugging Face layout.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};

use super::super::{ConvertOptions, ConvertReport, convert};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::tensor::DType;

pub(super) const LAYERS: usize = 5;
pub(super) const EXPERTS: usize = 3;
pub(super) const VOCAB: usize = 270;

/// A checkpoint to be written to a folder, every part open to change.
pub(super) struct Fixture {
    pub(super) config: Json,
    pub(super) tokenizer: Json,
    pub(super) settings: Json,
    pub(super) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub(super) dtype: Dtype,
}

impl Fixture {
    /// Five layers in the pattern global, window, window, window, global.
    pub(super) fn new() -> Fixture {
        let pattern = [0, 1, 1, 1, 0];
        let config = json!({
            "model_type": "smallthinker", "num_hidden_layers": LAYERS, "hidden_size": 64,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "moe_ffn_hidden_size": 32,
            "moe_num_primary_experts": EXPERTS, "moe_num_active_primary_experts": 2,
            "moe_primary_router_apply_softmax": true, "norm_topk_prob": true, "rms_norm_eps": 1e-6,
            "rope_theta": 1.5e6, "rope_scaling": null, "rope_layout": pattern,
            "sliding_window_layout": pattern, "sliding_window_size": 48, "max_position_embeddings": 512, "tie_word_embeddings": false,
            "vocab_size": VOCAB, "bos_token_id": null, "eos_token_id": [258, 257], "pad_token_id": 257,
            "torch_dtype": "float32", "use_cache": true, "model_name": "fixture",
        });
        let mut fixture = Fixture {
            config,
            tokenizer: tokenizer(),
            settings: json!({
                "add_bos_token": false, "bos_token": null, "eos_token": "<|im_end|>",
                "pad_token": {"content": "<|endoftext|>"}, "chat_template": "{{ messages }}",
            }),
            tensors: BTreeMap::new(),
            dtype: Dtype::F32,
        };
        fixture.fill(64, 32);
        fixture
    }

    /// Weights for this hidden size and expert size; each value follows from the tensor's name and its index.
    pub(super) fn fill(&mut self, hidden: usize, ffn: usize) {
        self.tensors.clear();
        self.config["hidden_size"] = hidden.into();
        self.config["moe_ffn_hidden_size"] = ffn.into();
        let mut add = |name: String, shape: &[usize]| {
            let seed = name.bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
            let value = |i: usize| {
                let h = (seed ^ i as u32).wrapping_mul(0x9E37_79B9);
                // Exact in every source type.
                bf16::from_f32((h >> 8) as f32 / (1 << 24) as f32 - 0.5).to_f32()
            };
            let data = (0..shape.iter().product()).map(value).collect();
            self.tensors.insert(name + ".weight", (shape.to_vec(), data));
        };
        add("model.embed_tokens".into(), &[VOCAB, hidden]);
        add("lm_head".into(), &[VOCAB, hidden]);
        add("model.norm".into(), &[hidden]);
        for i in 0..LAYERS {
            let layer = format!("model.layers.{i}");
            add(format!("{layer}.input_layernorm"), &[hidden]);
            add(format!("{layer}.post_attention_layernorm"), &[hidden]);
            add(format!("{layer}.self_attn.q_proj"), &[128, hidden]);
            add(format!("{layer}.self_attn.k_proj"), &[64, hidden]);
            add(format!("{layer}.self_attn.v_proj"), &[64, hidden]);
            add(format!("{layer}.self_attn.o_proj"), &[hidden, 128]);
            add(format!("{layer}.block_sparse_moe.primary_router"), &[EXPERTS, hidden]);
            for e in 0..EXPERTS {
                let expert = format!("{layer}.block_sparse_moe.experts.{e}");
                add(format!("{expert}.gate"), &[ffn, hidden]);
                add(format!("{expert}.up"), &[ffn, hidden]);
                add(format!("{expert}.down"), &[hidden, ffn]);
            }
        }
    }

    pub(super) fn safetensors(&self, names: &[&String]) -> Vec<u8> {
        let raw: Vec<(&String, Vec<usize>, Vec<u8>)> = names
            .iter()
            .map(|name| {
                let (shape, data) = &self.tensors[*name];
                let bytes = match self.dtype {
                    Dtype::BF16 => data.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                    Dtype::F16 => data.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
                    _ => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
                };
                (*name, shape.clone(), bytes)
            })
            .collect();
        let views =
            raw.iter().map(|(n, s, b)| (n.as_str(), TensorView::new(self.dtype, s.clone(), b).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    pub(super) fn write(&self, dir: &Path) {
        let names: Vec<&String> = self.tensors.keys().collect();
        std::fs::write(dir.join("model.safetensors"), self.safetensors(&names)).unwrap();
        self.write_json(dir);
    }

    pub(super) fn write_json(&self, dir: &Path) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(dir.join("tokenizer.json"), self.tokenizer.to_string()).unwrap();
        std::fs::write(dir.join("tokenizer_config.json"), self.settings.to_string()).unwrap();
    }

    /// Converts and opens the result.
    pub(super) fn convert(&self, dtype: DType) -> Result<(Gguf, ConvertReport)> {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        convert_dir(dir.path(), dtype)
    }

    /// The refusal of this checkpoint, which must leave no file behind.
    pub(super) fn refusal(&self) -> Error {
        self.convert(DType::F32).expect_err("a checkpoint that must be refused was converted")
    }
}

pub(super) fn convert_dir(dir: &Path, dtype: DType) -> Result<(Gguf, ConvertReport)> {
    let out = dir.join("out").join("model.gguf");
    std::fs::create_dir_all(dir.join("out")).unwrap();
    let report = convert(dir, &out, ConvertOptions::new(dtype));
    let files = std::fs::read_dir(dir.join("out")).unwrap().count();
    assert_eq!(files, usize::from(report.is_ok()), "files left in the output folder");
    let report = report?;
    Ok((Gguf::open(&out).unwrap(), report))
}

/// A byte-level vocabulary with one merge: 256 byte tokens, "he" = 256, special tokens 257 to 259, one
/// user-defined token 260, and nothing for the ids up to the vocabulary size.
fn tokenizer() -> Json {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let shifted = (0..256).filter(|&b| !printable(b)).count() as u32;
    let alphabet = (0..256).filter(|&b| printable(b)).chain(256..256 + shifted);
    let mut vocab = serde_json::Map::new();
    for (id, c) in alphabet.enumerate() {
        vocab.insert(char::from_u32(c).unwrap().to_string(), id.into());
    }
    vocab.insert("he".into(), 256.into());
    let added = |id: u32, text: &str, special: bool| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    // As in the tokenizer.json of the Qwen2 models.
    let split = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}\
                 | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    json!({
        "version": "1.0",
        "added_tokens": [
            added(257, "<|endoftext|>", true), added(258, "<|im_end|>", true),
            added(259, "<|im_start|>", true), added(260, "<tool>", false),
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split},
             "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        ]},
        "post_processor": {"type": "ByteLevel", "trim_offsets": false},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["h", "e"]]},
    })
}
