//! Every set against the scalar one and against the dense product, for every sparsity.

use super::*;
use crate::kernels::tests::{Rng, weights};
use crate::kernels::{ActRow, Acts, scalar};
use crate::tensor::DType;
use crate::tensor::packed::{Layout, matrix_bytes, pack_neurons_tile};

fn blocks(x: ActRow<'_>) -> Vec<NeuronBlock> {
    (0..x.block_count()).map(|b| NeuronBlock::new(&x.block(b).unwrap())).collect()
}

fn wanted(dtype: DType, blocks: &[NeuronBlock]) -> Vec<Wanted> {
    blocks.iter().enumerate().flat_map(|(number, block)| Wanted::of(dtype, number, block)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn random_tile(rng: &mut Rng, dtype: DType, cols: usize) -> (Vec<u8>, Vec<u8>) {
    let file = weights(rng, dtype, TILE, cols, false);
    let mut tile = vec![0; matrix_bytes(dtype, Layout::Neurons, TILE, cols).unwrap()];
    pack_neurons_tile(dtype, &file, cols, &mut tile);
    (file, tile)
}

fn check(rng: &mut Rng, cols: usize, neurons: &[f32]) {
    for dtype in [DType::Q4_0, DType::Q8_0] {
        let (file, tile) = random_tile(rng, dtype, cols);
        check_type(dtype, &file, &tile, cols, neurons);
    }
}

fn check_type(dtype: DType, file: &[u8], tile: &[u8], cols: usize, neurons: &[f32]) {
    let mut acts = Acts::new();
    acts.set(&scalar::KERNELS, neurons, cols, true).unwrap();
    let blocks = blocks(acts.row(0));
    let mut want = [f32::NAN; TILE];
    let wanted = wanted(dtype, &blocks);
    let tile = DownTile { weights: tile, neurons: &blocks, wanted: &wanted };
    scalar::KERNELS.down_tile(dtype, &tile, None, &mut want).unwrap();
    for set in Kernels::available() {
        let at = format!(
            "{} {dtype} {cols} neurons, {} active",
            set.name(),
            neurons.iter().filter(|n| **n != 0.0).count()
        );
        let mut out = [f32::NAN; TILE];
        set.down_tile(dtype, &tile, Some(&tile), &mut out).unwrap();
        assert_eq!(bits(&out), bits(&want), "{at}");
        // The dense product sums in the same order, but for the scalar set.
        if matches!(set.name(), "avx2" | "avxvnni" | "avx512vnni" | "amx") {
            let mut dense = vec![f32::NAN; TILE];
            set.matvec(dtype, file, cols, acts.row(0), &mut dense).unwrap();
            assert_eq!(bits(&out), bits(&dense), "{at}: dense");
        }
    }
}

#[test]
fn sparse_is_dense_for_every_sparsity() {
    let mut rng = Rng(0x5eed);
    for cols in [32, 256, 320, 768, 1024] {
        for percent in (0..=100).step_by(5) {
            let neurons: Vec<f32> =
                (0..cols).map(|_| if rng.next() % 100 < percent { rng.unit().abs() } else { 0.0 }).collect();
            check(&mut rng, cols, &neurons);
        }
        // Extremes of the integers.
        check(&mut rng, cols, &vec![1.0; cols]);
        let alternating: Vec<f32> = (0..cols).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        check(&mut rng, cols, &alternating);
        for code in [0, 0x7f, 0x80, 0xff] {
            let mut file = weights(&mut rng, DType::Q8_0, TILE, cols, false);
            file.chunks_exact_mut(34).for_each(|block| block[2..].fill(code));
            let mut tile = vec![0; matrix_bytes(DType::Q8_0, Layout::Neurons, TILE, cols).unwrap()];
            pack_neurons_tile(DType::Q8_0, &file, cols, &mut tile);
            check_type(DType::Q8_0, &file, &tile, cols, &alternating);
            check_type(DType::Q8_0, &file, &tile, cols, &vec![1.0; cols]);
        }
    }
}

#[test]
fn a_neuron_that_is_not_finite_is_not_skipped() {
    let mut rng = Rng(3);
    let mut neurons = vec![0.0; 96];
    neurons[40] = f32::NAN;
    for dtype in [DType::Q4_0, DType::Q8_0] {
        let (_, tile) = random_tile(&mut rng, dtype, 96);
        for set in Kernels::available() {
            let mut acts = Acts::new();
            acts.set(set, &neurons, 96, true).unwrap();
            let mut out = [0.0; TILE];
            let blocks = blocks(acts.row(0));
            let tile = DownTile { weights: &tile, neurons: &blocks, wanted: &[] };
            set.down_tile(dtype, &tile, None, &mut out).unwrap();
            assert!(out.iter().all(|x| x.is_nan()), "{} {dtype}", set.name());
            let wrong = DownTile { neurons: &[NeuronBlock::ZERO; 2], ..tile };
            assert!(set.down_tile(dtype, &wrong, None, &mut out).is_err());
            assert!(set.down_tile(DType::Q6_K, &tile, None, &mut out).is_err());
        }
    }
}
