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
    let tile = DownTile { weights: tile, neurons: &blocks, wanted: &wanted, begun: false };
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
            let tile = DownTile { weights: &tile, neurons: &blocks, wanted: &[], begun: false };
            set.down_tile(dtype, &tile, None, &mut out).unwrap();
            assert!(out.iter().all(|x| x.is_nan()), "{} {dtype}", set.name());
            let wrong = DownTile { neurons: &[NeuronBlock::ZERO; 2], ..tile };
            assert!(set.down_tile(dtype, &wrong, None, &mut out).is_err());
            assert!(set.down_tile(DType::Q6_K, &tile, None, &mut out).is_err());
        }
    }
}

#[test]
fn groups_that_are_not_full_repeat_the_last_neuron() {
    for count in [0, 1, 4, 29, 30, 32] {
        let mut neurons = [0.0f32; 32];
        neurons.iter_mut().rev().take(count).for_each(|n| *n = 1.0);
        let mut acts = Acts::new();
        acts.set(&scalar::KERNELS, &neurons, 32, true).unwrap();
        let block = NeuronBlock::new(&acts.row(0).block(0).unwrap());
        let index: Vec<u8> = block.quads().flat_map(|(index, _)| *index).collect();
        let expected = (32 - count..32).chain(std::iter::repeat(31)).take(count.next_multiple_of(4));
        assert_eq!(index, expected.map(|i| i as u8).collect::<Vec<_>>(), "{count}");
        assert!(block.quads().flat_map(|(_, q)| *q).skip(count).all(|q| q == 0));
    }
}

/// Two tiles of an expert and one of another, computed one after the other.
fn check_requests<const B: usize>(dtype: DType) {
    let mut rng = Rng(0x5eed_0200);
    let mut expert = || {
        let neurons: Vec<f32> =
            (0..768).map(|_| if rng.next() % 100 < 35 { rng.unit().abs() } else { 0.0 }).collect();
        let mut acts = Acts::new();
        acts.set(&scalar::KERNELS, &neurons, 768, true).unwrap();
        let blocks = blocks(acts.row(0));
        let wanted = wanted(dtype, &blocks);
        (blocks, wanted)
    };
    let experts = [expert(), expert()];
    let data = vec![0; 3 * 24 * B];
    let tile = |t: usize| {
        let (neurons, wanted) = &experts[t / 2];
        DownTile { weights: &data[t * 24 * B..(t + 1) * 24 * B], neurons, wanted, begun: t > 0 }
    };
    let place = |at: *const u8| at as usize - data.as_ptr() as usize;
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    let (mut expected_codes, mut expected_scales) = (Vec::new(), Vec::new());
    for t in 0..3 {
        let mut requests = Requests::new::<B>(tile(t), (t < 2).then(|| tile(t + 1)));
        for (b, block) in tile(t).neurons.iter().enumerate() {
            scales.extend(requests.scales::<B>(b).map(|at| place(at.cast())));
            for _ in 0..requests.due(block.quads().len()) {
                codes.extend(requests.codes().into_iter().flatten().map(place));
            }
            let at = (24 * t + b) * B;
            expected_scales.push(at);
            let lines = if dtype == DType::Q8_0 { 128 } else { 64 };
            let index = block.quads().flat_map(|(index, _)| *index);
            expected_codes.extend(index.map(|i| at + 256 + lines * usize::from(i)));
        }
    }
    assert_eq!(codes, expected_codes, "{dtype}");
    assert_eq!(scales, expected_scales[SCALES_AHEAD..], "{dtype}");
}

#[test]
fn everything_is_requested_once_in_the_order_of_its_use() {
    check_requests::<BLOCK_Q4_0>(DType::Q4_0);
    check_requests::<BLOCK_Q8_0>(DType::Q8_0);
}
