//! Conversion against checkpoints that the tests write themselves.

mod fixture;

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use super::{ConvertOptions, convert};
use crate::error::{Error, ErrorKind};
use crate::gguf::{Array, Gguf, Value};
use crate::tensor::{DType, quantize};
use fixture::{EXPERTS, Fixture, LAYERS, VOCAB, convert_dir};

fn bytes_of(file: &Gguf, name: &str) -> Vec<u8> {
    let t = file.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let mut bytes = vec![0; t.n_bytes as usize];
    file.source().read_exact_at(t.shard, t.offset, &mut bytes).unwrap();
    bytes
}

fn floats_of(file: &Gguf, name: &str) -> Vec<f32> {
    bytes_of(file, name).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn f32_keeps_every_weight_and_its_place() {
    let fixture = Fixture::new();
    let (file, report) = fixture.convert(DType::F32).unwrap();
    assert_eq!(report.tensors, 3 + LAYERS * 10);
    assert_eq!(file.tensors().len(), report.tensors);
    let source: usize = fixture.tensors.values().map(|(_, data)| data.len()).sum();
    assert_eq!(report.parameters, source as u64);
    assert_eq!(report.data_bytes, 4 * source as u64);
    assert!(report.fallbacks.is_empty() && report.skipped.is_empty());

    let same = |to: &str, from: &str| assert_eq!(floats_of(&file, to), fixture.tensors[from].1, "{to}");
    same("token_embd.weight", "model.embed_tokens.weight");
    same("output.weight", "lm_head.weight");
    same("output_norm.weight", "model.norm.weight");
    for i in 0..LAYERS {
        for (to, from) in [
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_gate_inp", "block_sparse_moe.primary_router"),
        ] {
            same(&format!("blk.{i}.{to}.weight"), &format!("model.layers.{i}.{from}.weight"));
        }
        for matrix in ["gate", "up", "down"] {
            let name = |e| format!("model.layers.{i}.block_sparse_moe.experts.{e}.{matrix}.weight");
            let stacked: Vec<f32> = (0..EXPERTS).flat_map(|e| fixture.tensors[&name(e)].1.clone()).collect();
            assert_eq!(floats_of(&file, &format!("blk.{i}.ffn_{matrix}_exps.weight")), stacked);
        }
    }
    assert_eq!(file.tensor("blk.0.ffn_gate_exps.weight").unwrap().dims, [64, 32, 3]);
    assert_eq!(file.tensor("blk.0.ffn_down_exps.weight").unwrap().dims, [32, 64, 3]);
    assert_eq!(file.tensor("blk.0.ffn_gate_inp.weight").unwrap().dims, [64, 3]);
}

#[test]
fn metadata_says_what_the_config_says() {
    let (file, _) = Fixture::new().convert(DType::F16).unwrap();
    for (key, number) in [
        ("general.file_type", 1),
        ("general.quantization_version", 2),
        ("smallthinker.block_count", 5),
        ("smallthinker.context_length", 512),
        ("smallthinker.embedding_length", 64),
        ("smallthinker.feed_forward_length", 32),
        ("smallthinker.expert_feed_forward_length", 32),
        ("smallthinker.attention.head_count", 4),
        ("smallthinker.attention.head_count_kv", 2),
        ("smallthinker.attention.key_length", 32),
        ("smallthinker.attention.value_length", 32),
        ("smallthinker.attention.sliding_window", 48),
        ("smallthinker.rope.dimension_count", 32),
        ("smallthinker.expert_count", 3),
        ("smallthinker.expert_used_count", 2),
        ("smallthinker.expert_gating_func", 1),
        ("tokenizer.ggml.eos_token_id", 258),
        ("tokenizer.ggml.eot_token_id", 258),
        ("tokenizer.ggml.padding_token_id", 257),
    ] {
        assert_eq!(file.get(key), Some(&Value::U32(number)), "{key}");
    }
    assert_eq!(file.require_str("general.architecture").unwrap(), "smallthinker");
    assert_eq!(file.require_str("general.name").unwrap(), "fixture");
    assert_eq!(file.require_f32("smallthinker.rope.freq_base").unwrap(), 1.5e6);
    assert_eq!(file.require_f32("smallthinker.attention.layer_norm_rms_epsilon").unwrap(), 1e-6);
    assert_eq!(file.require_str("tokenizer.ggml.model").unwrap(), "gpt2");
    assert_eq!(file.require_str("tokenizer.ggml.pre").unwrap(), "qwen2");
    assert_eq!(file.require_str("tokenizer.chat_template").unwrap(), "{{ messages }}");
    assert!(!file.require_bool("tokenizer.ggml.add_bos_token").unwrap());
    assert_eq!(file.get("tokenizer.ggml.bos_token_id"), None);
    assert_eq!(file.get("tokenizer.ggml.eos_token_ids"), Some(&Value::Array(Array::U32(vec![257]))));
    assert!(file.require_str_array("tokenizer.ggml.merges").unwrap().iter().eq(["h e"]));
    let tokens = file.require_str_array("tokenizer.ggml.tokens").unwrap();
    let types = file.require_i32_array("tokenizer.ggml.token_type").unwrap();
    assert_eq!((tokens.len(), types.len()), (VOCAB, VOCAB));
    assert_eq!(
        tokens.iter().skip(255).take(7).collect::<Vec<_>>(),
        ["\u{143}", "he", "<|endoftext|>", "<|im_end|>", "<|im_start|>", "<tool>", "[PAD261]"]
    );
    assert_eq!(types[255..262], [1, 1, 3, 3, 3, 4, 5]);
}

#[test]
fn quantized_types_keep_norms_and_routers_exact() {
    let fixture = Fixture::new();
    for dtype in [DType::Q4_0, DType::Q8_0, DType::BF16, DType::F16] {
        let (file, report) = fixture.convert(dtype).unwrap();
        for t in file.tensors() {
            let full = t.name.contains("norm") || t.name.contains("ffn_gate_inp");
            assert_eq!(t.dtype, if full { DType::F32 } else { dtype }, "{}", t.name);
        }
        assert!(report.fallbacks.is_empty());
        let mut expected = Vec::new();
        quantize(dtype, &fixture.tensors["lm_head.weight"].1, &mut expected).unwrap();
        assert_eq!(bytes_of(&file, "output.weight"), expected);
    }
    assert!(matches!(fixture.convert(DType::Q6_K), Err(Error::InvalidArgument { name: "dtype", .. })));
}

#[test]
fn rows_of_partial_blocks_fall_back_to_f16() {
    let mut fixture = Fixture::new();
    fixture.fill(64, 48);
    let (file, report) = fixture.convert(DType::Q4_0).unwrap();
    let expected: Vec<String> = (0..LAYERS).map(|i| format!("blk.{i}.ffn_down_exps.weight")).collect();
    assert_eq!(report.fallbacks, expected);
    assert_eq!(file.tensor("blk.1.ffn_down_exps.weight").unwrap().dtype, DType::F16);
    assert_eq!(file.tensor("blk.1.ffn_up_exps.weight").unwrap().dtype, DType::Q4_0);
}

#[test]
fn sixteen_bit_sources_and_shards_give_the_same_file() {
    let mut fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let convert_to_bytes = |dir: &Path| {
        let (file, _) = convert_dir(dir, DType::Q8_0).unwrap();
        std::fs::read(file.path()).unwrap()
    };
    fixture.write(dir.path());
    let reference = convert_to_bytes(dir.path());

    for dtype in [Dtype::BF16, Dtype::F16] {
        fixture.dtype = dtype;
        let dir = tempfile::tempdir().unwrap();
        fixture.write_json(dir.path());
        let names: Vec<&String> = fixture.tensors.keys().collect();
        let mut map = serde_json::Map::new();
        for (i, part) in names.chunks(names.len().div_ceil(3)).enumerate() {
            let file = format!("model-{:05}-of-00003.safetensors", i + 1);
            std::fs::write(dir.path().join(&file), fixture.safetensors(part)).unwrap();
            map.extend(part.iter().map(|n| (n.to_string(), file.clone().into())));
        }
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        // F16 rounds what BF16 holds exactly only below its smallest normal number; the fixture has none.
        assert!(convert_to_bytes(dir.path()) == reference, "{dtype:?}");
    }
}

#[test]
fn a_tied_head_is_not_written() {
    let mut fixture = Fixture::new();
    fixture.config["tie_word_embeddings"] = true.into();
    let (file, report) = fixture.convert(DType::F16).unwrap();
    assert!(file.tensor("output.weight").is_none());
    assert_eq!(report.skipped, ["lm_head.weight"]);
    fixture.tensors.remove("lm_head.weight");
    assert!(fixture.convert(DType::F16).unwrap().1.skipped.is_empty());
}

#[test]
fn no_window_and_sigmoid() {
    let mut fixture = Fixture::new();
    fixture.config["rope_layout"] = json!([1, 1, 1, 1, 1]);
    fixture.config["sliding_window_layout"] = json!([0, 0, 0, 0, 0]);
    fixture.config["moe_primary_router_apply_softmax"] = false.into();
    let (file, _) = fixture.convert(DType::F16).unwrap();
    assert_eq!(file.get("smallthinker.attention.sliding_window"), None);
    assert_eq!(file.require_u32("smallthinker.expert_gating_func").unwrap(), 2);
}

#[test]
fn config_values_without_a_place_in_gguf_are_refused_by_name() {
    let sigmoid = |config: &mut Json| config["moe_primary_router_apply_softmax"] = false.into();
    let none = |_: &mut Json| {};
    type Case = (&'static str, Json, fn(&mut Json));
    let cases: Vec<Case> = vec![
        ("model_type", "qwen3_moe".into(), none),
        ("rope_layout", json!([0, 1, 1, 1, 1]), none),
        ("rope_layout", json!([0, 1, 1, 1]), none),
        ("rope_layout", json!([0, 1, 1, 1, 2]), none),
        ("sliding_window_layout", json!([1, 1, 1, 1, 1]), none),
        ("sliding_window_layout", json!([0, 0, 0, 0, 0]), none),
        ("sliding_window_size", Json::Null, none),
        ("hidden_act", "silu".into(), none),
        ("attention_bias", true.into(), none),
        ("use_qk_norm", true.into(), none),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), none),
        ("norm_topk_prob", false.into(), sigmoid),
        ("moe_enable_secondary_experts", true.into(), none),
        ("moe_enable_early_router", false.into(), none),
        ("moe_shared_primary_experts", 1.into(), none),
        ("moe_layer_layout", json!([0, 1, 1, 1, 1]), none),
        ("num_experts_per_tok", 3.into(), none),
        ("quantization_config", json!({"bits": 4}), none),
        ("partial_rotary_factor", 0.5.into(), none),
        ("lm_head_predictor_rank", 128.into(), none),
        ("moe_num_active_primary_experts", 4.into(), none),
        ("num_key_value_heads", 3.into(), none),
        ("head_dim", Json::Null, none),
        ("hidden_size", "64".into(), none),
        ("rms_norm_eps", (-1.0).into(), none),
        ("eos_token_id", 4000.into(), none),
        ("num_hidden_layers", u32::MAX.into(), none),
    ];
    for (field, value, also) in cases {
        let mut fixture = Fixture::new();
        fixture.config[field] = value.clone();
        also(&mut fixture.config);
        let error = fixture.refusal();
        assert!(matches!(error.kind(), ErrorKind::Malformed | ErrorKind::Unsupported), "{field}: {error}");
        assert!(error.to_string().contains(field), "{field} = {value}: {error}");
    }
    for vocab in [265, u32::MAX] {
        let mut fixture = Fixture::new();
        fixture.config["vocab_size"] = vocab.into();
        assert!(fixture.refusal().to_string().contains("model.embed_tokens.weight"));
    }
    // The same values where they change nothing.
    let mut fixture = Fixture::new();
    for (field, value) in [
        ("norm_topk_prob", Json::from(false)), // softmax weights sum to one anyway
        ("hidden_act", "relu".into()),
        ("rope_scaling", json!({"rope_type": "default"})),
        ("moe_layer_layout", json!([1, 1, 1, 1, 1])),
        ("partial_rotary_factor", 1.into()),
        ("some_new_switch", false.into()),
    ] {
        fixture.config[field] = value;
    }
    fixture.convert(DType::F16).unwrap();
}

#[test]
fn tokenizers_that_are_not_qwen2_are_refused_by_field() {
    let cases = [
        ("normalizer", "/normalizer", json!({"type": "Lowercase"})),
        ("pre_tokenizer", "/pre_tokenizer", json!({"type": "ByteLevel"})),
        ("pretokenizers/0/pattern", "/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\p{L}+".into()),
        ("pretokenizers/0/behavior", "/pre_tokenizer/pretokenizers/0/behavior", "Removed".into()),
        ("add_prefix_space", "/pre_tokenizer/pretokenizers/1/add_prefix_space", true.into()),
        ("post_processor", "/post_processor", json!({"type": "TemplateProcessing"})),
        ("model/type", "/model/type", "WordPiece".into()),
        ("model/dropout", "/model/dropout", 0.1.into()),
        ("model/ignore_merges", "/model/ignore_merges", true.into()),
        ("model/merges/0", "/model/merges/0", json!(["h", "nope"])),
        ("model/merges/0", "/model/merges/0", "h".into()),
        ("model/vocab/he", "/model/vocab/he", 3.into()),
        ("model/vocab/he", "/model/vocab/he", 270.into()),
        ("added_tokens/0", "/added_tokens/0/id", 5.into()),
        ("added_tokens/1", "/added_tokens/1/content", "<|endoftext|>".into()),
        ("added_tokens/2/lstrip", "/added_tokens/2/lstrip", true.into()),
    ];
    for (field, pointer, value) in cases {
        let mut fixture = Fixture::new();
        *fixture.tokenizer.pointer_mut(pointer).unwrap() = value;
        let error = fixture.refusal().to_string();
        assert!(error.contains("tokenizer.json") && error.contains(field), "{field}: {error}");
    }
    let mut fixture = Fixture::new();
    fixture.settings["eos_token"] = "<nope>".into();
    assert!(fixture.refusal().to_string().contains("eos_token"));

    let mut fixture = Fixture::new();
    fixture.tokenizer["model"]["merges"] = json!(["h e"]); // the older form
    let (file, _) = fixture.convert(DType::F16).unwrap();
    assert!(file.require_str_array("tokenizer.ggml.merges").unwrap().iter().eq(["h e"]));
}

#[test]
fn wrong_weights_are_refused_by_name() {
    let refuse = |change: fn(&mut Fixture), text: &str| {
        let mut fixture = Fixture::new();
        change(&mut fixture);
        let error = fixture.refusal().to_string();
        assert!(error.contains(text), "{text}: {error}");
    };
    let router = "model.layers.3.block_sparse_moe.primary_router.weight";
    refuse(|f| drop(f.tensors.remove("model.layers.3.block_sparse_moe.primary_router.weight")), router);
    refuse(|f| f.tensors.get_mut("model.norm.weight").unwrap().0 = vec![32, 2], "model.norm.weight");
    refuse(
        |f| drop(f.tensors.insert("model.layers.0.self_attn.q_proj.bias".into(), (vec![1], vec![0.0]))),
        "model.layers.0.self_attn.q_proj.bias",
    );
    refuse(|f| f.tensors.get_mut("lm_head.weight").unwrap().1[9] = f32::NAN, "output.weight");
    refuse(|f| f.dtype = Dtype::I32, "I32");
}

/// A sketch of the LM head that lies beside the checkpoint comes along, if it can be one.
#[test]
fn a_head_sketch_comes_along() {
    use safetensors::tensor::TensorView;
    let dir = tempfile::tempdir().unwrap();
    Fixture::new().write(dir.path());
    let floats = |n: usize| (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>();
    let signs: Vec<u8> = (0..2 * VOCAB).map(|i| i as u8).collect();
    let (directions, scales, mean) = (floats(16 * 64), floats(VOCAB), floats(64));
    let write = |leave_out: &str, rows: usize, margin: f32| {
        let margin = margin.to_le_bytes();
        let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
        let tensors = [
            ("directions", view(Dtype::F32, &[16, 64], directions.as_slice())),
            ("signs", view(Dtype::U8, &[rows, 2 * VOCAB / rows], &signs)),
            ("scales", view(Dtype::F32, &[VOCAB], &scales)),
            ("mean", view(Dtype::F32, &[64], &mean)),
            ("margin", view(Dtype::F32, &[1], &margin)),
        ];
        let kept = tensors.into_iter().filter(|(name, _)| *name != leave_out);
        std::fs::write(
            dir.path().join("head_sketch.safetensors"),
            safetensors::serialize(kept, None).unwrap(),
        )
        .unwrap();
    };
    write("", VOCAB, 2.5);
    let (file, _) = convert_dir(dir.path(), DType::F16).unwrap();
    let key = |name: &str| format!("smallthinker.head_sketch.{name}");
    let numbers = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<f32>>();
    assert_eq!(file.require_f32_array(&key("directions")).unwrap(), numbers(16 * 64));
    assert_eq!(file.get_u8_array(&key("signs")).unwrap().unwrap(), signs);
    assert_eq!(file.require_f32_array(&key("scales")).unwrap(), numbers(VOCAB));
    assert_eq!(file.require_f32_array(&key("mean")).unwrap(), numbers(64));
    assert_eq!(file.require_f32(&key("margin")).unwrap(), 2.5);

    let refused = |name: &str| {
        std::fs::remove_dir_all(dir.path().join("out")).unwrap();
        let error = convert_dir(dir.path(), DType::F16).unwrap_err().to_string();
        assert!(error.contains("head_sketch.safetensors") && error.contains(name), "{name}: {error}");
    };
    for name in ["directions", "signs", "scales", "mean", "margin"] {
        write(name, VOCAB, 2.5);
        refused(name);
    }
    write("", VOCAB / 2, 2.5);
    refused("signs");
    write("", VOCAB, -1.0);
    refused("margin");
    std::fs::write(dir.path().join("head_sketch.safetensors"), [9; 20]).unwrap();
    refused("header");
}

#[test]
fn damaged_checkpoint_files_are_refused() {
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    fixture.write(dir.path());
    let weights = dir.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    for len in [0, 7, 8, 100, 3000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&weights, &whole[..len]).unwrap();
        assert!(convert_dir(dir.path(), DType::F16).is_err(), "{len} bytes");
    }
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&weights, &huge).unwrap();
    assert!(convert_dir(dir.path(), DType::F16).unwrap_err().to_string().contains("header length"));

    std::fs::write(&weights, &whole).unwrap();
    for file in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "", "."] {
        let index = json!({"weight_map": {"model.norm.weight": file}});
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let error = convert_dir(dir.path(), DType::F16).unwrap_err().to_string();
        assert!(error.contains("weight_map of model.norm.weight"), "{error}");
    }
    std::fs::write(dir.path().join("config.json"), "[1, 2").unwrap();
    assert!(convert_dir(dir.path(), DType::F16).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn progress_ends_at_the_total_and_may_cancel() {
    let dir = tempfile::tempdir().unwrap();
    Fixture::new().write(dir.path());
    let out = dir.path().join("out.gguf");
    let mut seen = Vec::new();
    let mut record = |done, total| {
        seen.push((done, total));
        true
    };
    let report =
        convert(dir.path(), &out, ConvertOptions { dtype: DType::Q4_0, progress: Some(&mut record) })
            .unwrap();
    assert!(seen.is_sorted() && seen.iter().all(|s| s.1 == report.data_bytes));
    assert_eq!(seen.last().unwrap().0, report.data_bytes);

    let before = std::fs::read(&out).unwrap();
    let mut calls = 0;
    let mut stop = |_, _| {
        calls += 1;
        calls < 4
    };
    let options = ConvertOptions { dtype: DType::F16, progress: Some(&mut stop) };
    assert!(matches!(convert(dir.path(), &out, options), Err(Error::Cancelled)));
    assert_eq!(calls, 4);
    assert_eq!(std::fs::read(&out).unwrap(), before, "a cancelled conversion leaves the old file");
}
