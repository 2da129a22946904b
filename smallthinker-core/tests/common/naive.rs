//! The forward pass as the published modelling code writes it: no cache, no batching, no quantized
//! activations, `f64` throughout. Slow and short on purpose.

use std::path::Path;

use smallthinker_core::gguf::Gguf;
use smallthinker_core::tensor::dequantize;

use super::Spec;

type Matrix = Vec<Vec<f64>>;

struct Weights(Gguf);

impl Weights {
    /// A tensor as rows of its fastest dimension.
    fn rows(&self, name: &str) -> Matrix {
        let info = self.0.tensor(name).unwrap();
        let mut raw = vec![0; info.n_bytes as usize];
        self.0.source().read_exact_at(info.shard, info.offset, &mut raw).unwrap();
        let mut values = vec![0.0; info.dims.iter().product::<u64>() as usize];
        dequantize(info.dtype, &raw, &mut values).unwrap();
        values.chunks(info.dims[0] as usize).map(|r| r.iter().map(|&x| f64::from(x)).collect()).collect()
    }
}

fn times(m: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    m.iter().map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn norm(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(v, w)| v / (mean + 1e-6).sqrt() * w).collect()
}

fn rope(head: &[f64], position: usize) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for i in 0..half {
        let angle = position as f64 * 10_000f64.powf(-(i as f64) / half as f64);
        out[i] = head[i] * angle.cos() - head[i + half] * angle.sin();
        out[i + half] = head[i + half] * angle.cos() + head[i] * angle.sin();
    }
    out
}

/// Logits after every position, `[tokens][vocab]`.
pub fn logits(path: &Path, s: &Spec, tokens: &[u32]) -> Vec<f64> {
    let w = Weights(Gguf::open(path).unwrap());
    let embedding = w.rows("token_embd.weight");
    let mut x: Matrix = tokens.iter().map(|&t| embedding[t as usize].clone()).collect();
    for layer in 0..s.layers {
        let get = |n: &str| w.rows(&format!("blk.{layer}.{n}.weight"));
        let router = get("ffn_gate_inp");
        let routing: Matrix = x.iter().map(|x| times(&router, x)).collect();
        let attention = attend(s, layer, &x, &get);
        for (x, a) in x.iter_mut().zip(attention) {
            x.iter_mut().zip(a).for_each(|(x, a)| *x += a);
        }
        let (gate, up, down) = (get("ffn_gate_exps"), get("ffn_up_exps"), get("ffn_down_exps"));
        for (x, r) in x.iter_mut().zip(&routing) {
            let f = norm(x, &get("ffn_norm")[0]);
            for (e, weight) in route(s, r) {
                let part = |m: &Matrix| times(&m[e * s.ffn..(e + 1) * s.ffn], &f);
                let h: Vec<f64> = part(&gate).iter().zip(part(&up)).map(|(g, u)| g.max(0.0) * u).collect();
                for (j, x) in x.iter_mut().enumerate() {
                    let out: f64 = (0..s.ffn)
                        .map(|n| {
                            h[n] * if s.down_by_neuron {
                                down[e * s.ffn + n][j]
                            } else {
                                down[e * s.hidden + j][n]
                            }
                        })
                        .sum();
                    *x += weight * out;
                }
            }
        }
    }
    let head = w.rows(if s.tied { "token_embd.weight" } else { "output.weight" });
    let last = &w.rows("output_norm.weight")[0];
    x.iter().flat_map(|x| times(&head, &norm(x, last))).collect()
}

fn route(s: &Spec, logits: &[f64]) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    order.truncate(s.top_k);
    let value = |e: usize| if s.sigmoid { 1.0 / (1.0 + (-logits[e]).exp()) } else { logits[e].exp() };
    let sum: f64 = order.iter().map(|&e| value(e)).sum();
    order.into_iter().map(|e| (e, value(e) / sum)).collect()
}

fn attend(s: &Spec, layer: usize, x: &[Vec<f64>], get: &dyn Fn(&str) -> Matrix) -> Matrix {
    let global = s.window == 0 || layer.is_multiple_of(4);
    let rotates = s.window == 0 || !layer.is_multiple_of(4);
    let weight = get("attn_norm");
    let normed: Matrix = x.iter().map(|x| norm(x, &weight[0])).collect();
    let heads = |name: &str, turn: bool| -> Vec<Matrix> {
        let m = get(name);
        let split = |(p, a): (usize, &Vec<f64>)| {
            let all = times(&m, a);
            all.chunks(s.head_dim).map(|h| if turn { rope(h, p) } else { h.to_vec() }).collect()
        };
        normed.iter().enumerate().map(split).collect()
    };
    let (q, k, v) = (heads("attn_q", rotates), heads("attn_k", rotates), heads("attn_v", false));
    let out = get("attn_output");
    (0..x.len())
        .map(|p| {
            let first = if global { 0 } else { (p + 1).saturating_sub(s.window) };
            let mut joined = Vec::new();
            for (h, q) in q[p].iter().enumerate() {
                let g = h / (s.heads / s.kv_heads);
                let dot = |i: usize| q.iter().zip(&k[i][g]).map(|(a, b)| a * b).sum::<f64>();
                let scores: Vec<f64> = (first..=p).map(|i| dot(i) / (s.head_dim as f64).sqrt()).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                let mut mixed = vec![0.0; s.head_dim];
                for (score, i) in scores.iter().zip(first..) {
                    let share = (score - max).exp() / sum;
                    mixed.iter_mut().zip(&v[i][g]).for_each(|(m, v)| *m += share * v);
                }
                joined.extend(mixed);
            }
            times(&out, &joined)
        })
        .collect()
}
