//! The reference.

use super::{LaneGroup, LanesJob};
use crate::kernels::scalar::sum_tree;
use crate::tensor::block::f16;
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES};

pub(in crate::kernels) fn lanes(job: LanesJob<'_>) {
    for (i, out) in job.out.iter_mut().enumerate() {
        let row = job.rows.get(i).unwrap_or(0);
        if let Some((codes, scales)) = job.matrix.row(row) {
            *out = dot(codes, scales, job.x);
        }
    }
}

fn dot(codes: &[[u8; GROUP_CODES]], scales: &[[u8; GROUP_SCALES]], x: &[LaneGroup]) -> f32 {
    let mut sums = [0.0f32; 8];
    for ((codes, scales), x) in codes.iter().zip(scales).zip(x) {
        let codes = codes.as_chunks::<4>().0.as_chunks::<8>().0; // [4][8 blocks][4]
        for (block, (sum, scale)) in sums.iter_mut().zip(scales.as_chunks::<2>().0).enumerate() {
            let mut dot = x.offset[block];
            for (k, codes) in codes.iter().enumerate() {
                for (e, &byte) in codes[block].iter().enumerate() {
                    dot += i32::from(byte & 15) * i32::from(x.q[k][block][e]);
                    dot += i32::from(byte >> 4) * i32::from(x.q[k + 4][block][e]);
                }
            }
            *sum = (dot as f32).mul_add(f16(*scale) * x.scale[block], *sum);
        }
    }
    sum_tree(sums)
}
