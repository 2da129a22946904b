//! Every kernel set of this machine against naive arithmetic on dequantized weights (which has its own
//! oracle, see the tests of `tensor`), over swept shapes. Outputs start as NaN, so that one left out shows.

mod ops;

use proptest::prelude::*;

use super::{Acts, Kernels, scalar};
use crate::tensor::{DType, dequantize};

/// A small generator with a fixed start, so that failures repeat.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
    /// Uniform in -1..1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() & 0xff_ffff) as f32 / 8_388_608.0 - 1.0
    }
    pub(crate) fn vector(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
    fn int(&mut self, bound: i32) -> i32 {
        (self.next() % (2 * bound as u64 + 1)) as i32 - bound
    }
}

/// Where the half-precision scales of a block lie; random bytes there could be NaN.
fn halves(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q6_K => &[208],
        DType::F32 | DType::F16 | DType::BF16 | DType::I8 => &[],
    }
}

/// Replaces the scales of all blocks.
fn set_scales(dtype: DType, bytes: &mut [u8], mut scale: impl FnMut() -> f32) {
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for &at in halves(dtype) {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale()).to_le_bytes());
        }
    }
}

/// Random weights; `whole` makes their values small integers, so that products are exact in `f32`.
pub(super) fn weights(rng: &mut Rng, dtype: DType, rows: usize, cols: usize, whole: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !dtype.is_quantized() {
        for _ in 0..rows * cols {
            let x = if whole { rng.int(100) as f32 } else { rng.unit() };
            crate::tensor::quantize(dtype, &[x], &mut bytes).unwrap();
        }
        return bytes;
    }
    bytes.extend((0..rows * dtype.row_bytes(cols).unwrap()).map(|_| rng.byte()));
    if whole {
        set_scales(dtype, &mut bytes, || [1.0, -1.0, 2.0, 0.5][rng.next() as usize % 4]);
        if dtype == DType::Q6_K {
            for block in bytes.chunks_exact_mut(210) {
                block[192..208].iter_mut().for_each(|s| *s = (*s as i8 / 8) as u8);
            }
        }
    } else {
        set_scales(dtype, &mut bytes, || rng.unit() * 0.1);
    }
    bytes
}

/// Random Q4_0 rows with finite scales.
pub(super) fn random_q4_0(rng: &mut Rng, rows: usize, cols: usize) -> Vec<u8> {
    weights(rng, DType::Q4_0, rows, cols, false)
}

/// Activations whose 8-bit form is themselves: every block of 32 has one ±127, the others are small integers.
fn whole_activations(rng: &mut Rng, n: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..n).map(|_| rng.int(3) as f32).collect();
    for block in x.chunks_mut(32) {
        let at = rng.next() as usize % block.len();
        block[at] = if rng.next().is_multiple_of(2) { 127.0 } else { -127.0 };
    }
    x
}

fn dequantized(dtype: DType, bytes: &[u8], elements: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; elements];
    dequantize(dtype, bytes, &mut out).unwrap();
    out
}

/// A vector as the kernels see it: its 8-bit form for quantized weights.
fn as_seen(dtype: DType, acts: &Acts, token: usize) -> Vec<f32> {
    let row = acts.row(token);
    if !dtype.is_quantized() {
        return row.values().to_vec();
    }
    let blocks = (0..row.block_count()).map(|b| row.block(b).unwrap());
    blocks.flat_map(|b| b.q.map(|q| f32::from(q) * b.scale)).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// What rounding may do to a product: each addition of a block's (or, for float weights, an element's) share
/// and the few roundings inside a share err by 2^-24 of the magnitudes involved. Offsets and minima make
/// those up to four times the products with the largest weight.
fn rounding(dtype: DType, w: &[f32], x: &[f32]) -> f64 {
    let largest = w.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
    let steps = if dtype.is_quantized() { w.len() / 32 + 16 } else { w.len() + 16 };
    let total: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
    2.0_f64.powi(-24) * steps as f64 * 4.0 * f64::from(largest) * total
}

/// `matmul` and `matvec` of all sets against the naive product; returns nothing, asserts everything.
fn check(dtype: DType, bytes: &[u8], n_rows: usize, cols: usize, x: &[f32], exact: bool) {
    let tokens = x.len() / cols;
    let w = dequantized(dtype, bytes, n_rows * cols);
    for set in Kernels::available() {
        let mut acts = Acts::new();
        acts.set(set, x, cols, dtype.is_quantized()).unwrap();
        let mut out = vec![f32::NAN; tokens * n_rows];
        set.matmul(dtype, bytes, n_rows, cols, &acts, 0..tokens, &mut out).unwrap();
        for t in 0..tokens {
            let mut one = vec![f32::NAN; n_rows];
            set.matvec(dtype, bytes, cols, acts.row(t), &mut one).unwrap();
            let seen = as_seen(dtype, &acts, t);
            for r in 0..n_rows {
                let got = out[t * n_rows + r];
                let at = format!("{} {dtype} {n_rows}x{cols}, token {t} of {tokens}, row {r}", set.name());
                assert_eq!(got.to_bits(), one[r].to_bits(), "{at}: matmul {got}, matvec {}", one[r]);
                let row = &w[r * cols..(r + 1) * cols];
                let want = dot(row, &seen);
                let bound = if exact { 0.0 } else { rounding(dtype, row, &seen) };
                let error = (f64::from(got) - want).abs();
                assert!(error <= bound, "{at}: {got}, want {want}, error {error:e}, bound {bound:e}");
            }
        }
    }
}

fn columns(dtype: DType) -> Vec<usize> {
    match dtype.block_len() {
        1 => (1..=40).chain([63, 64, 65, 127, 200, 512]).collect(),
        32 => (1..=32).map(|b| 32 * b).collect(),
        _ => vec![256, 512, 768, 1024],
    }
}

#[test]
fn products_of_whole_numbers_are_exact_in_every_set() {
    let mut rng = Rng(0x5eed_0001);
    for dtype in DType::ALL {
        for cols in columns(dtype) {
            for k in 1..=9 {
                // All pairs of 1..=9 rows and tokens come up over the widths; small widths see most of them.
                let tokens = 1 + (k + cols / dtype.block_len()) % 9;
                let bytes = weights(&mut rng, dtype, k, cols, true);
                let x = whole_activations(&mut rng, tokens * cols);
                check(
                    dtype,
                    &bytes,
                    k,
                    cols,
                    &x,
                    cols <= 512 || !matches!(dtype, DType::Q4_K | DType::Q5_K | DType::Q6_K),
                );
            }
        }
    }
}

#[test]
fn random_products_stay_within_rounding() {
    let mut rng = Rng(0x5eed_0002);
    for dtype in DType::ALL {
        for cols in columns(dtype) {
            for (n_rows, tokens) in [(1, 1), (3, 5), (9, 4)] {
                let bytes = weights(&mut rng, dtype, n_rows, cols, false);
                check(dtype, &bytes, n_rows, cols, &rng.vector(tokens * cols), false);
            }
        }
    }
}

#[test]
fn quantized_activations_cost_at_most_half_a_step_per_element() {
    let mut rng = Rng(0x5eed_0003);
    for dtype in DType::ALL.into_iter().filter(|t| t.is_quantized()) {
        let (rows, cols) = (16, 1024);
        let bytes = weights(&mut rng, dtype, rows, cols, false);
        let w = dequantized(dtype, &bytes, rows * cols);
        let x = rng.vector(cols);
        let mut acts = Acts::new();
        acts.set(&scalar::KERNELS, &x, cols, true).unwrap();
        for set in Kernels::available() {
            let mut out = vec![f32::NAN; rows];
            set.matvec(dtype, &bytes, cols, acts.row(0), &mut out).unwrap();
            for (row, got) in w.chunks(cols).zip(out) {
                let steps = (0..cols).map(|i| acts.row(0).block(i / 32).unwrap().scale / 2.0);
                let steps: f64 = steps.zip(row).map(|(s, w)| f64::from(s) * f64::from(w.abs())).sum();
                let error = (f64::from(got) - dot(row, &x)).abs();
                assert!(error <= 1.001 * steps, "{} {dtype}: error {error}, bound {steps}", set.name());
            }
        }
    }
}

#[test]
fn extreme_codes_do_not_saturate() {
    for dtype in DType::ALL.into_iter().filter(|t| t.is_quantized()) {
        for fill in [0x00, 0xff, 0x80, 0x7f, 0x08, 0xf0] {
            for sign in [[127.0, 127.0], [-127.0, -127.0], [127.0, -127.0]] {
                let mut bytes = vec![fill; 2 * dtype.row_bytes(512).unwrap()];
                set_scales(dtype, &mut bytes, || 1.0);
                let x: Vec<f32> = (0..512).map(|i| sign[i % 2]).collect();
                check(dtype, &bytes, 2, 512, &x, false);
            }
        }
    }
}

#[test]
fn values_that_are_not_finite_make_not_a_number() {
    let mut rng = Rng(0x5eed_0004);
    for dtype in DType::ALL {
        let bytes = weights(&mut rng, dtype, 3, 256, true);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for set in Kernels::available() {
                let mut x = rng.vector(2 * 256);
                x[300] = bad;
                let mut acts = Acts::new();
                acts.set(set, &x, 256, true).unwrap();
                let mut out = [0.0; 6];
                set.matmul(dtype, &bytes, 3, 256, &acts, 0..2, &mut out).unwrap();
                assert!(out[..3].iter().all(|x| x.is_finite()), "{} {dtype}: {out:?}", set.name());
                assert!(out[3..].iter().all(|x| !x.is_finite()), "{} {dtype}: {out:?}", set.name());
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    for set in Kernels::available() {
        let x = [1.0; 128];
        let mut acts = Acts::new();
        assert!(acts.set(set, &x, 33, true).is_err());
        acts.set(set, &x, 64, true).unwrap();
        let rows = [0; 3 * 36];
        let mut out = [f32::NAN; 6];
        let q4 = DType::Q4_0;
        assert!(set.matvec(q4, &rows, 64, acts.row(0), &mut out[..3]).is_ok());
        assert!(set.matvec(q4, &rows, 64, acts.row(2), &mut out[..3]).is_err(), "no such token");
        assert!(set.matvec(q4, &rows[1..], 64, acts.row(0), &mut out[..3]).is_err());
        assert!(set.matvec(q4, &rows, 64, acts.row(0), &mut out[..4]).is_err());
        assert!(set.matvec(q4, &rows, 65, acts.row(0), &mut out[..3]).is_err());
        assert!(set.matvec(q4, &rows[..54], 32, acts.row(0), &mut out[..3]).is_err(), "row too long");
        assert!(set.matmul(q4, &rows, 3, 64, &acts, 0..2, &mut out).is_ok());
        assert!(set.matmul(q4, &rows, 3, 64, &acts, 0..3, &mut out).is_err());
        assert!(set.matmul(q4, &rows, 3, 64, &acts, 0..1, &mut out).is_err());
        assert!(set.matmul(q4, &rows, usize::MAX, 64, &acts, 0..2, &mut out).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = set.matmul(q4, &rows, 3, 64, &acts, 2..1, &mut []);
        assert!(reversed.is_err());
        acts.set(set, &x, 64, false).unwrap();
        assert!(set.matvec(q4, &rows, 64, acts.row(0), &mut out[..3]).is_err(), "not quantized");
        let message = set.matvec(q4, &rows, 64, acts.row(0), &mut out[..3]).unwrap_err().to_string();
        assert!(message.contains("Q4_0"), "{message}");
        // No columns and no rows are products too.
        acts.set(set, &[], 0, true).unwrap();
        assert!(set.matvec(DType::F32, &[], 0, acts.row(0), &mut out[..3]).is_ok());
        assert_eq!(out[..3], [0.0; 3]);
    }
}

#[test]
fn the_table_lists_scalar_last_and_finds_sets_by_name() {
    let sets = Kernels::available();
    assert_eq!(sets.last().unwrap().name(), "scalar");
    assert_eq!(Kernels::detect().name(), sets[0].name());
    for set in &sets {
        assert_eq!(Kernels::by_name(set.name()).unwrap().name(), set.name());
    }
    assert!(Kernels::by_name("sse9").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any block bytes with finite scales of any magnitude.
    #[test]
    fn any_blocks_multiply_as_their_values_do(
        kind in 0..DType::ALL.len(),
        seed in 1_u64..,
        blocks in 1_usize..9,
        rows in 1_usize..4,
        tokens in 1_usize..6,
        magnitude in -10_i32..6,
    ) {
        let dtype = DType::ALL[kind];
        let cols = blocks * dtype.block_len();
        let mut rng = Rng(seed);
        let mut bytes = weights(&mut rng, dtype, rows, cols, false);
        set_scales(dtype, &mut bytes, || rng.unit() * 2.0_f32.powi(magnitude));
        let x = rng.vector(tokens * cols);
        let x: Vec<f32> = x.into_iter().map(|x| x * 2.0_f32.powi(-magnitude)).collect();
        check(dtype, &bytes, rows, cols, &x, false);
    }
}
