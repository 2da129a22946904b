//! Small random models of every shape, written as GGUF files, and a plain forward pass to compare with.
#![allow(dead_code, unused_imports, unreachable_pub)] // each test binary uses a part

mod naive;

use std::path::{Path, PathBuf};

use smallthinker_core::gguf::{Array, GgufWriter, Strings, Value};
use smallthinker_core::tensor::{DType, quantize};
use smallthinker_core::{Model, ModelOptions};

pub use naive::logits as naive_logits;

/// What to build.
#[derive(Debug, Clone)]
pub struct Spec {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub experts: usize,
    pub top_k: usize,
    pub window: usize,
    pub tied: bool,
    pub sigmoid: bool,
    pub dtype: DType,
    /// Of the experts' down matrices, if another.
    pub down_dtype: Option<DType>,
    /// Store down by neuron, as the report's own engine does.
    pub down_by_neuron: bool,
    pub context: usize,
    /// How much larger the first element of every key is than the others; that of queries is smaller by as much.
    pub large_key: f32,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            layers: 5,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            ffn: 32,
            experts: 6,
            top_k: 2,
            window: 0,
            tied: true,
            sigmoid: true,
            dtype: DType::F32,
            down_dtype: None,
            down_by_neuron: false,
            context: 1024,
            large_key: 1.0,
        }
    }
}

/// Bytes in the byte-level alphabet, then the special tokens.
pub const VOCAB: usize = 256 + 3;

/// A folder with one model file; removed on drop.
pub struct Fixture {
    pub path: PathBuf,
    pub spec: Spec,
    _dir: tempfile::TempDir,
}

impl Fixture {
    pub fn new(spec: Spec) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        write_model(&spec, &path);
        Fixture { path, spec, _dir: dir }
    }

    pub fn open(&self) -> Model {
        self.open_with(|_| {})
    }

    pub fn open_with(&self, change: impl FnOnce(&mut ModelOptions)) -> Model {
        let mut options = ModelOptions::default();
        options.threads = Some(2);
        change(&mut options);
        Model::open_with(&self.path, options).unwrap()
    }
}

fn write_model(s: &Spec, path: &Path) {
    let mut rng = Random::new(7);
    let mut w = GgufWriter::new();
    metadata(s, &mut w);
    let tensors = tensors(s);
    for (name, dtype, dims) in &tensors {
        w.tensor(name, *dtype, &dims.iter().map(|&d| d as u64).collect::<Vec<_>>()).unwrap();
    }
    let mut out = w.create(path).unwrap();
    for (name, dtype, dims) in &tensors {
        let n: usize = dims.iter().product();
        // Blocks add a part to the residual stream, as in a trained model; else rounding is amplified from
        // layer to layer.
        let share = if name.contains("attn_output") || name.contains("down") { 0.05 } else { 1.0 };
        let scale = if name.contains("norm") { 0.1 } else { share / (dims[0] as f32).sqrt() };
        let mut values: Vec<f32> =
            (0..n).map(|_| rng.normal() * scale + if name.contains("norm") { 1.0 } else { 0.0 }).collect();
        let first = match name.rsplit('.').nth(1) {
            Some("attn_k") => s.large_key,
            Some("attn_q") => 1.0 / s.large_key,
            _ => 1.0,
        };
        values.chunks_mut(s.hidden * s.head_dim).filter(|_| first != 1.0).for_each(|head| {
            head[..s.hidden].iter_mut().for_each(|x| *x *= first);
        });
        let mut bytes = Vec::new();
        quantize(*dtype, &values, &mut bytes).unwrap();
        out.write(&bytes).unwrap();
    }
    out.finish().unwrap();
}

fn metadata(s: &Spec, w: &mut GgufWriter) {
    let mut put = |key: &str, value| w.metadata(key, value).unwrap();
    put("general.architecture", Value::String("smallthinker".into()));
    for (key, n) in [
        ("block_count", s.layers),
        ("context_length", s.context),
        ("embedding_length", s.hidden),
        ("feed_forward_length", s.ffn),
        ("expert_feed_forward_length", s.ffn),
        ("attention.head_count", s.heads),
        ("attention.head_count_kv", s.kv_heads),
        ("attention.key_length", s.head_dim),
        ("attention.value_length", s.head_dim),
        ("expert_count", s.experts),
        ("expert_used_count", s.top_k),
        ("expert_gating_func", if s.sigmoid { 2 } else { 1 }),
    ] {
        put(&format!("smallthinker.{key}"), Value::U32(n as u32));
    }
    if s.window > 0 {
        put("smallthinker.attention.sliding_window", Value::U32(s.window as u32));
    }
    put("smallthinker.attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    put("smallthinker.rope.freq_base", Value::F32(10_000.0));
    put("tokenizer.ggml.model", Value::String("gpt2".into()));
    put("tokenizer.ggml.pre", Value::String("qwen2".into()));
    put("tokenizer.ggml.tokens", Value::Array(Array::String(vocabulary().iter().collect())));
    put("tokenizer.ggml.merges", Value::Array(Array::String(Strings::default())));
    let types = (0..VOCAB).map(|i| if i < 256 { 1 } else { 3 }).collect();
    put("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    put("tokenizer.ggml.eos_token_id", Value::U32(258));
    put("tokenizer.ggml.add_bos_token", Value::Bool(false));
}

/// The 256 bytes spelled in the byte-level alphabet of GPT-2, then the special tokens of ChatML.
fn vocabulary() -> Vec<String> {
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let mut tokens: Vec<String> = (0..256u32)
        .map(|b| {
            let c = if printable(b) {
                b
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(c).unwrap().to_string()
        })
        .collect();
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from));
    tokens
}

fn tensors(s: &Spec) -> Vec<(String, DType, Vec<usize>)> {
    let mut all = vec![("token_embd.weight".to_string(), s.dtype, vec![s.hidden, VOCAB])];
    for i in 0..s.layers {
        let mut add = |name: &str, dtype, dims: &[usize]| {
            all.push((format!("blk.{i}.{name}.weight"), dtype, dims.to_vec()));
        };
        add("attn_norm", DType::F32, &[s.hidden]);
        add("attn_q", s.dtype, &[s.hidden, s.heads * s.head_dim]);
        add("attn_k", s.dtype, &[s.hidden, s.kv_heads * s.head_dim]);
        add("attn_v", s.dtype, &[s.hidden, s.kv_heads * s.head_dim]);
        add("attn_output", s.dtype, &[s.heads * s.head_dim, s.hidden]);
        add("ffn_norm", DType::F32, &[s.hidden]);
        add("ffn_gate_inp", DType::F32, &[s.hidden, s.experts]);
        add("ffn_gate_exps", s.dtype, &[s.hidden, s.ffn, s.experts]);
        add("ffn_up_exps", s.dtype, &[s.hidden, s.ffn, s.experts]);
        let down = if s.down_by_neuron { [s.hidden, s.ffn] } else { [s.ffn, s.hidden] };
        add("ffn_down_exps", s.down_dtype.unwrap_or(s.dtype), &[down[0], down[1], s.experts]);
    }
    all.push(("output_norm.weight".into(), DType::F32, vec![s.hidden]));
    if !s.tied {
        all.push(("output.weight".into(), s.dtype, vec![s.hidden, VOCAB]));
    }
    all
}

/// A seeded source of numbers (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    pub fn below(&mut self, n: u32) -> u32 {
        self.next() % n
    }

    pub fn tokens(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(256)).collect()
    }

    /// Nearly normal, standard deviation 1: a sum of uniforms.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.next() as f32 / u32::MAX as f32 - 0.5).sum::<f32>() * std::f32::consts::SQRT_2
    }
}

/// Greatest difference of two sets of logits, and the worst KL divergence of a position.
pub fn distance(a: &[f32], b: &[f64], vocab: usize) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    let kl = a
        .chunks(vocab)
        .zip(b.chunks(vocab))
        .map(|(a, b)| {
            let (p, q) = (log_softmax(b.iter().copied()), log_softmax(a.iter().map(|&x| f64::from(x))));
            p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
        })
        .fold(0.0, f64::max);
    (worst, kl)
}

fn log_softmax(x: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let max = x.clone().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = x.clone().map(|v| (v - max).exp()).sum::<f64>().ln() + max;
    x.map(|v| v - log_sum).collect()
}
