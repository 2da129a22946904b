//! Activation quantization and the small vector operations, in every set.

use super::Rng;
use crate::kernels::acts::{ActGroup, GROUP};
use crate::kernels::{Acts, Kernels, scalar};

/// Ordinary vectors, zeros, exact halves, subnormals, huge values and values that are not finite.
fn samples() -> Vec<Vec<f32>> {
    let mut rng = Rng(0xac75);
    let mut all = Vec::new();
    for cols in [32, 64, 224, 256, 288, 1536] {
        for scale in [1.0, 1e-38, 1e-31, 1e-29, 1e-5, 1e5, 1e37, f32::MAX] {
            all.push(rng.vector(cols).into_iter().map(|x| x * scale).collect());
        }
        all.push(vec![0.0; cols]);
        // With 127 as the largest value a step is 1, and these are halves between two integers.
        all.push((0..cols).map(|i| if i % 32 == 0 { 127.0 } else { (i % 50) as f32 - 24.5 }).collect());
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = rng.vector(cols);
            x[cols - 3] = bad;
            all.push(x);
        }
    }
    all
}

#[test]
fn activations_have_the_same_integers_in_every_set() {
    let dirty = ActGroup { q: [55; GROUP], sums: [-9; 16], scale: [3.5; 8] };
    for x in samples() {
        let mut want = vec![ActGroup::ZERO; x.len().div_ceil(GROUP)];
        scalar::KERNELS.quantize_acts(&x, &mut want).unwrap();
        for set in Kernels::available() {
            // Groups hold an earlier vector at first; nothing of it may stay, not even in the padding.
            let mut got = vec![dirty; want.len()];
            set.quantize_acts(&x, &mut got).unwrap();
            for (g, w) in got.iter().zip(&want) {
                assert_eq!((g.q, g.sums), (w.q, w.sums), "{} {:?}", set.name(), &x[..8]);
                assert_eq!(g.scale.map(f32::to_bits), w.scale.map(f32::to_bits), "{}", set.name());
            }
        }
    }
}

#[test]
fn activations_are_within_half_a_step_and_sum_up() {
    for x in samples() {
        let mut acts = Acts::new();
        acts.set(&scalar::KERNELS, &x, x.len(), true).unwrap();
        let row = acts.row(0);
        assert_eq!(row.block_count(), x.len() / 32);
        assert!(row.block(x.len() / 32).is_none());
        for (b, x) in x.chunks(32).enumerate() {
            let block = row.block(b).unwrap();
            for (half, sum) in block.q.chunks(16).zip(block.sums) {
                assert_eq!(half.iter().map(|q| i32::from(*q)).sum::<i32>(), i32::from(sum));
            }
            if x.iter().any(|v| !v.is_finite()) {
                assert!(block.scale.is_nan() && block.q.iter().all(|q| *q == 0));
                continue;
            }
            assert!(block.q.iter().all(|q| *q != -128));
            for (v, q) in x.iter().zip(block.q) {
                let error = (f64::from(*v) - f64::from(block.scale) * f64::from(*q)).abs();
                let bound = (f64::from(block.scale) * 0.50001).max(1e-30);
                assert!(error <= bound, "{v} as {q} x {}", block.scale);
            }
        }
    }
}

#[test]
fn activation_buffers_are_reused_and_take_any_width() {
    let mut acts = Acts::new();
    acts.set(&scalar::KERNELS, &[1.0; 3 * 512], 512, true).unwrap();
    acts.set(&scalar::KERNELS, &[2.0; 2 * 64], 64, true).unwrap();
    assert_eq!((acts.tokens(), acts.cols(), acts.is_quantized()), (2, 64, true));
    assert_eq!(acts.row(1).block(1).unwrap().q, &[127; 32]);
    assert_eq!(acts.row(1).values(), &[2.0; 64]);
    assert!(acts.row(2).values().is_empty() && acts.row(usize::MAX).values().is_empty());
    // Not a multiple of 32: only the f32 side.
    acts.set(&scalar::KERNELS, &[1.0; 2 * 33], 33, true).unwrap();
    assert!(!acts.is_quantized());
    assert_eq!((acts.row(1).values().len(), acts.row(1).block_count()), (33, 0));
}

fn f16s(rng: &mut Rng, n: usize) -> (Vec<u16>, Vec<f32>) {
    let halves: Vec<half::f16> = rng.vector(n).into_iter().map(half::f16::from_f32).collect();
    (halves.iter().map(|h| h.to_bits()).collect(), halves.iter().map(|h| h.to_f32()).collect())
}

#[test]
fn dot_and_axpy_match_wide_arithmetic() {
    let mut rng = Rng(0xd07);
    for n in (0..=70).chain([128, 129, 1000]) {
        let (halves, v) = f16s(&mut rng, n);
        let x = rng.vector(n);
        let w = rng.unit();
        let want: f64 = x.iter().zip(&v).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let bound = (n + 8) as f64 * 2.0_f64.powi(-24) * n as f64;
        for set in Kernels::available() {
            for got in [set.dot_f16(&x, &halves).unwrap(), set.dot_f32(&x, &v).unwrap()] {
                assert!((f64::from(got) - want).abs() <= bound, "{} {n}: {got}, want {want}", set.name());
            }
            let mut rounded = x.clone();
            set.add_scaled(&mut rounded, w, &v).unwrap();
            let (mut a, mut b) = (x.clone(), x.clone());
            set.axpy_f16(&mut a, w, &halves).unwrap();
            set.axpy_f32(&mut b, w, &v).unwrap();
            for i in 0..n {
                assert_eq!(
                    rounded[i].to_bits(),
                    (x[i] + w * v[i]).to_bits(),
                    "{} add_scaled {n}",
                    set.name()
                );
                let want = f64::from(x[i]) + f64::from(w) * f64::from(v[i]);
                assert!((f64::from(a[i]) - want).abs() <= 3e-7, "{} axpy_f16 {n}", set.name());
                assert!((f64::from(b[i]) - want).abs() <= 3e-7, "{} axpy_f32 {n}", set.name());
            }
        }
    }
}

#[test]
fn halves_round_to_nearest_even() {
    let mut rng = Rng(0xf16);
    let mut x = vec![0.0, -0.0, 65504.0, 65519.9, 65520.0, -1e9, 6e-8, 3e-8, 2.9e-8, 1e-40, f32::INFINITY];
    x.extend([1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0]); // ties: to even, down and up
    x.extend((0..2000).map(|_| rng.unit() * 2.0_f32.powi((rng.next() % 50) as i32 - 30)));
    let want: Vec<u16> = x.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
    for set in Kernels::available() {
        for n in [x.len(), 13, 8, 7, 0] {
            let mut out = vec![0x7e00; n];
            set.f32_to_f16(&x[..n], &mut out).unwrap();
            assert_eq!(out, want[..n], "{}", set.name());
        }
        let mut out = [0; 9];
        set.f32_to_f16(&[f32::NAN; 9], &mut out).unwrap();
        assert!(out.iter().all(|h| half::f16::from_bits(*h).is_nan()));
    }
}

#[test]
fn rms_norm_matches_wide_arithmetic() {
    let mut rng = Rng(0x12345);
    for n in [1, 7, 8, 31, 1536] {
        let (x, w) = (rng.vector(n), rng.vector(n));
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
        for set in Kernels::available() {
            let mut out = vec![f32::NAN; n];
            set.rms_norm(&x, &w, 1e-6, &mut out).unwrap();
            for i in 0..n {
                let want = f64::from(x[i]) / (mean + f64::from(1e-6_f32)).sqrt() * f64::from(w[i]);
                assert!((f64::from(out[i]) - want).abs() <= 4e-7 * want.abs(), "{n}: {} {want}", out[i]);
            }
        }
    }
}

#[test]
fn rms_norm_survives_large_values_and_keeps_nan() {
    let set = Kernels::detect();
    let mut out = [f32::NAN; 4];
    set.rms_norm(&[1e30; 4], &[1.0; 4], 1e-6, &mut out).unwrap();
    assert!(out.iter().all(|x| (x - 1.0).abs() < 1e-6), "{out:?}");
    set.rms_norm(&[1.0, f32::NAN, 1.0, 1.0], &[1.0; 4], 1e-6, &mut out).unwrap();
    assert!(out.iter().all(|x| x.is_nan()));
    set.rms_norm(&[], &[], 1e-6, &mut []).unwrap();
}

#[test]
fn relu_mul_keeps_nan() {
    for set in Kernels::available() {
        let mut gate = [2.0, -2.0, 0.0, f32::NAN, 1.0, -1.0, f32::INFINITY];
        set.relu_mul(&mut gate, &[3.0, 3.0, 3.0, 1.0, f32::NAN, 5.0, 2.0]).unwrap();
        assert_eq!(gate[..3], [6.0, 0.0, 0.0]);
        assert!(gate[3].is_nan() && gate[4].is_nan());
        assert_eq!(gate[5..], [0.0, f32::INFINITY]);
    }
}

#[test]
fn unequal_lengths_are_errors() {
    for set in Kernels::available() {
        let (mut a, b) = ([0.0; 8], [0.0; 7]);
        assert!(set.dot_f16(&a, &[0; 7]).is_err());
        assert!(set.dot_f32(&a, &b).is_err());
        assert!(set.axpy_f16(&mut a, 1.0, &[0; 9]).is_err());
        assert!(set.axpy_f32(&mut a, 1.0, &b).is_err());
        assert!(set.add_scaled(&mut a, 1.0, &b).is_err());
        assert!(set.f32_to_f16(&a, &mut [0; 7]).is_err());
        assert!(set.rms_norm(&b, &b, 1e-6, &mut a).is_err());
        assert!(set.rms_norm(&b, &[0.0; 6], 1e-6, &mut [0.0; 7]).is_err());
        assert!(set.relu_mul(&mut a, &b).is_err());
        assert!(set.quantize_acts(&b, &mut [ActGroup::ZERO]).is_err());
        assert!(set.quantize_acts(&[0.0; 32], &mut []).is_err());
        assert_eq!(a, [0.0; 8]);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn float_rows_have_the_same_bits_in_every_vector_set() {
    let mut rng = Rng(0xf32);
    let sets: Vec<_> = Kernels::available().into_iter().filter(|set| set.name() != "scalar").collect();
    for (cols, n_rows, tokens) in [(1, 1, 1), (16, 13, 5), (47, 6, 2), (100, 7, 3), (2560, 64, 9)] {
        let bytes: Vec<u8> = rng.vector(n_rows * cols).iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut acts = Acts::new();
        acts.set(&scalar::KERNELS, &rng.vector(tokens * cols), cols, false).unwrap();
        let products = sets.iter().map(|set| {
            let mut out = vec![f32::NAN; n_rows * tokens];
            set.matmul(crate::tensor::DType::F32, &bytes, n_rows, cols, &acts, 0..tokens, &mut out).unwrap();
            out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
        let products: Vec<_> = products.collect();
        assert!(products.windows(2).all(|pair| pair[0] == pair[1]), "{n_rows}x{cols}, {tokens} vectors");
    }
}
