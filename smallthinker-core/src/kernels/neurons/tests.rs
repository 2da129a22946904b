//! Every set against the scalar one and against the dense product, for every sparsity.

use super::*;
use crate::kernels::tests::{Rng, random_q4_0};
use crate::kernels::{ActRow, Acts, scalar};
use crate::tensor::DType;
use crate::tensor::packed::{Layout, pack_neurons_tile, q4_0_bytes};

fn blocks(x: ActRow<'_>) -> Vec<NeuronBlock> {
    (0..x.block_count()).map(|b| NeuronBlock::new(&x.block(b).unwrap())).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn check(rng: &mut Rng, cols: usize, neurons: &[f32]) {
    let file = random_q4_0(rng, TILE, cols);
    let mut tile = vec![0; q4_0_bytes(Layout::Neurons, TILE, cols).unwrap()];
    pack_neurons_tile(&file, cols, &mut tile);
    let mut acts = Acts::new();
    acts.set(&scalar::KERNELS, neurons, cols, true).unwrap();
    let blocks = blocks(acts.row(0));
    let mut want = [f32::NAN; TILE];
    scalar::KERNELS.down_tile(&tile, &blocks, &mut want).unwrap();
    for set in Kernels::available() {
        let at = format!(
            "{} {cols} neurons, {} active",
            set.name(),
            neurons.iter().filter(|n| **n != 0.0).count()
        );
        let mut out = [f32::NAN; TILE];
        set.down_tile(&tile, &blocks, &mut out).unwrap();
        assert_eq!(bits(&out), bits(&want), "{at}");
        // The dense product sums in the same order, but for the scalar set.
        if matches!(set.name(), "avx2" | "avxvnni" | "avx512vnni" | "amx") {
            let mut dense = vec![f32::NAN; TILE];
            set.matvec(DType::Q4_0, &file, cols, acts.row(0), &mut dense).unwrap();
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
    }
}

#[test]
fn a_neuron_that_is_not_finite_is_not_skipped() {
    let mut rng = Rng(3);
    let mut neurons = vec![0.0; 96];
    neurons[40] = f32::NAN;
    let file = random_q4_0(&mut rng, TILE, 96);
    let mut tile = vec![0; q4_0_bytes(Layout::Neurons, TILE, 96).unwrap()];
    pack_neurons_tile(&file, 96, &mut tile);
    for set in Kernels::available() {
        let mut acts = Acts::new();
        acts.set(set, &neurons, 96, true).unwrap();
        let mut out = [0.0; TILE];
        set.down_tile(&tile, &blocks(acts.row(0)), &mut out).unwrap();
        assert!(out.iter().all(|x| x.is_nan()), "{}", set.name());
        assert!(set.down_tile(&tile, &[NeuronBlock::ZERO; 2], &mut out).is_err());
    }
}
