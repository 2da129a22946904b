//! The reference product, for every CPU.

use super::{Gemm, LANES, Product, panel, residue_counts};

pub(in crate::kernels) const SCALAR: Gemm = Gemm {
    unpack_lanes: panel::unpack_lanes::<0>,
    unpack_down: panel::unpack_down::<0>,
    multiply,
    few: None,
};

fn multiply(p: Product<'_, '_>) {
    let blocks = p.panel.len();
    let counts = residue_counts(blocks);
    for (tile, tokens) in p.tokens.chunks_exact(blocks).enumerate() {
        for m in 0..p.per_tile {
            let mut blocks = p.panel.iter().zip(tokens);
            let sums = counts.map(|count| {
                let mut acc = [0.0_f32; LANES];
                for (w, x) in blocks.by_ref().take(count) {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let products = w.codes.iter().zip(x.q[m].as_chunks::<4>().0).map(|(w, x)| -> i32 {
                            (0..4).map(|e| i32::from(w[4 * r + e]) * i32::from(x[e])).sum()
                        });
                        let dot = x.offset[m] + products.sum::<i32>();
                        *acc = (dot as f32).mul_add(w.scale[r] * x.scale[m], *acc);
                    }
                }
                acc
            });
            let out = p.out.iter_mut().skip((tile * p.per_tile + m) * p.stride).take(p.width);
            for (r, out) in out.enumerate() {
                let [a0, a4, a2, a6, a1, a5, a3, a7] = sums.map(|sum| sum[r]);
                *out = ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7));
            }
        }
    }
}
