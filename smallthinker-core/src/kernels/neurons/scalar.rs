//! The reference.

use super::NeuronsJob;
use crate::kernels::scalar::sum_tree;
use crate::tensor::block::f16;
use crate::tensor::packed::{BLOCK_SCALES, NEURON_CODES, TILE, low_output};

pub(in crate::kernels) fn neurons(job: NeuronsJob<'_>) {
    let mut sums = [[0.0f32; 8]; TILE];
    for (b, (tile, block)) in job.tile.iter().zip(job.neurons).enumerate().filter(|(_, (_, n))| !n.is_zero())
    {
        let (scales, codes) = tile.split_at(BLOCK_SCALES);
        let codes = codes.as_chunks::<NEURON_CODES>().0;
        let mut dots = [block.offset; TILE];
        for (index, q) in block.quads() {
            for (&neuron, &q) in index.iter().zip(q) {
                for (p, byte) in codes[usize::from(neuron % 32)].iter().enumerate() {
                    dots[low_output(p)] += i32::from(byte & 15) * i32::from(q);
                    dots[low_output(p) + TILE / 2] += i32::from(byte >> 4) * i32::from(q);
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
