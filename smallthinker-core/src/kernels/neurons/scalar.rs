//! The reference.

use super::{NeuronsJob, lines};
use crate::kernels::scalar::sum_tree;
use crate::tensor::block::f16;
use crate::tensor::packed::{BLOCK_Q8_0, BLOCK_SCALES, LINE, TILE, low_output};

pub(in crate::kernels) fn neurons<const B: usize>(job: NeuronsJob<'_, B>) {
    let mut sums = [[0.0f32; 8]; TILE];
    for (b, (tile, block)) in job.tile.iter().zip(job.neurons).enumerate().filter(|(_, (_, n))| !n.is_zero())
    {
        let (scales, codes) = tile.split_at(BLOCK_SCALES);
        let mut dots = [block.offset(B); TILE];
        for (index, q) in block.quads() {
            for (&neuron, &q) in index.iter().zip(q) {
                let codes = codes.chunks_exact(lines(B) * LINE).nth(usize::from(neuron)).unwrap_or(&[]);
                for (p, &byte) in codes.iter().enumerate() {
                    let (output, q) = (low_output(p % LINE), i32::from(q));
                    if B == BLOCK_Q8_0 {
                        dots[output + p / LINE * (TILE / 2)] += i32::from(byte) * q;
                    } else {
                        dots[output] += i32::from(byte & 15) * q;
                        dots[output + TILE / 2] += i32::from(byte >> 4) * q;
                    }
                }
            }
        }
        for ((sums, dot), scale) in sums.iter_mut().zip(dots).zip(scales.as_chunks::<2>().0) {
            sums[b % 8] = (dot as f32).mul_add(f16(*scale) * block.scale, sums[b % 8]);
        }
    }
    for (out, sums) in job.out.iter_mut().zip(sums) {
        *out = sum_tree(sums);
    }
}
