//! Every set against attention in `f64`, and bit by bit against the scalar set.

mod cache;
mod codes;

use std::ops::Range;

use self::cache::{Block, Cache, Kind};
use super::scalar::{exp2, exp2_with, fma};
use super::*;
use crate::kernels::Kernels;
use crate::kernels::tests::Rng;

fn rows(set: &Kernels, q: &[Vec<f32>], seen: &[Range<usize>]) -> QueryRows {
    let mut rows = QueryRows::new(set, q[0].len());
    rows.set(q.iter().map(|q| &q[..]).zip(seen.iter().cloned())).unwrap();
    rows
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// First positions, edges of lines, blocks and spans, windows that begin and end anywhere.
fn ranges(rng: &mut Rng, n: usize, positions: usize) -> Vec<Range<usize>> {
    let edges = [0, 1, 31, 32, 33, 255, 256, 257, 511, 512, 513, 700, positions - 1];
    let mut pick = |i: usize| {
        let start = edges[(rng.next() as usize + i) % edges.len()];
        let len = [1, 2, 31, 32, 255, 256, 300, 511, 600][rng.next() as usize % 9];
        start..(start + len).min(positions)
    };
    (0..n).map(|i| if i < 3 { 0..i + 1 } else { pick(i) }).collect()
}

#[test]
fn matches_wide_arithmetic_and_has_the_same_bits_in_every_set() {
    let mut rng = Rng(0xa77e);
    for kind in [Kind::F16, Kind::F32, Kind::Q8, Kind::Q4] {
        for head_dim in [2, 16, 30, 32, 64, 80, 128] {
            let cache = Cache::new(&mut rng, head_dim, 3, kind);
            for n in [1, 2, 5, 6, 7, 12, 13, 14, 15, 29] {
                let q: Vec<Vec<f32>> =
                    (0..n).map(|_| rng.vector(head_dim).iter().map(|x| 3.0 * x).collect()).collect();
                let seen = ranges(&mut rng, n, 3 * BLOCK);
                let mut want = None;
                for set in Kernels::available().into_iter().rev() {
                    let got = cache.attend(&mut rows(set, &q, &seen), n);
                    let scalar = want.get_or_insert_with(|| got.clone());
                    assert_eq!(bits(&got), bits(scalar), "{} {kind:?} {head_dim} {n} {seen:?}", set.name());
                }
                for (i, got) in want.unwrap().chunks(head_dim).enumerate() {
                    for (got, (want, bound)) in got.iter().zip(cache.naive(&cache.taken(&q[i]), &seen[i])) {
                        let error = (f64::from(*got) - want).abs();
                        assert!(error < bound, "{kind:?} dim {head_dim} {:?}: {got} {want}", seen[i]);
                    }
                }
            }
        }
    }
}

/// Alone or with others, in whatever company: the same bits.
#[test]
fn rows_do_not_depend_on_each_other() {
    let mut rng = Rng(0xa10e);
    for kind in [Kind::F16, Kind::F32, Kind::Q8, Kind::Q4] {
        let cache = Cache::new(&mut rng, 64, 3, kind);
        let q: Vec<Vec<f32>> = (0..40).map(|_| rng.vector(64)).collect();
        // As in a chunk of a prompt: each sees one position more, through a window.
        let seen: Vec<Range<usize>> =
            (0..40usize).map(|i| (470 + i / 2).saturating_sub(250)..470 + i / 2).collect();
        for set in Kernels::available() {
            let together = cache.attend(&mut rows(set, &q, &seen), 40);
            for part in [1, 3, 7, 14, 16, 28] {
                for first in (0..40).step_by(part) {
                    let some = first..(first + part).min(40);
                    let n = some.len();
                    let got = cache.attend(&mut rows(set, &q[some.clone()], &seen[some]), n);
                    let want = &together[first * 64..(first + n) * 64];
                    assert_eq!(bits(&got), bits(want), "{} {kind:?} {first} by {part}", set.name());
                }
            }
        }
    }
}

/// What a row does not see must not reach it, not even as zero times infinity.
#[test]
fn unseen_values_that_are_not_finite_stay_unseen() {
    let mut rng = Rng(0x1f);
    let mut cache = Cache::new(&mut rng, 32, 2, Kind::F32);
    let q: Vec<Vec<f32>> = (0..28).map(|_| rng.vector(32)).collect();
    let seen: Vec<Range<usize>> = (0..28).map(|i| 5 + i / 7..250 + 3 * (i / 7)).collect();
    let clean: Vec<Vec<u32>> = Kernels::available()
        .into_iter()
        .map(|set| bits(&cache.attend(&mut rows(set, &q, &seen), 28)))
        .collect();
    for bad in (0..5).chain(259..512) {
        for x in [&mut cache.keys[bad], &mut cache.values[bad]] {
            x.iter_mut().zip([f32::NAN, f32::INFINITY].into_iter().cycle()).for_each(|(x, b)| *x = b);
        }
    }
    for (set, clean) in Kernels::available().into_iter().zip(&clean) {
        assert_eq!(&bits(&cache.attend(&mut rows(set, &q, &seen), 28)), clean, "{}", set.name());
    }
    // Only the last seven rows see position 258.
    cache.values[258].fill(f32::INFINITY);
    for (set, clean) in Kernels::available().into_iter().zip(&clean) {
        let out = cache.attend(&mut rows(set, &q, &seen), 28);
        assert_eq!(bits(&out)[..21 * 32], clean[..21 * 32], "{}", set.name());
        assert!(out[21 * 32..].iter().all(|x| !x.is_finite()), "{}", set.name());
    }
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    let mut rng = Rng(0x9a9);
    for bad in [f32::NAN, f32::INFINITY, f32::from_bits(0x7f80_0001)] {
        let mut cache = Cache::new(&mut rng, 32, 1, Kind::F32);
        cache.keys[40][3] = bad;
        for set in Kernels::available() {
            let q = vec![vec![1.0; 32]];
            let out = cache.attend(&mut rows(set, &q, std::slice::from_ref(&(0..200))), 1);
            assert!(out.iter().all(|x| x.is_nan()), "{} {bad}", set.name());
        }
    }
}

/// Scores so far apart that all but one weight vanish.
#[test]
fn great_scores_leave_one_value() {
    let mut rng = Rng(0x600d);
    let mut cache = Cache::new(&mut rng, 32, 3, Kind::F32);
    let q = vec![vec![100.0; 32]];
    cache.keys.iter_mut().for_each(|k| k.fill(-1000.0));
    cache.keys[300].fill(1000.0);
    for set in Kernels::available() {
        assert_eq!(
            cache.attend(&mut rows(set, &q, std::slice::from_ref(&(0..768))), 1),
            cache.values[300],
            "{}",
            set.name()
        );
    }
}

#[test]
fn exp2_is_within_about_one_unit() {
    assert_eq!((exp2(0.0), exp2(-0.0), exp2(f32::NEG_INFINITY)), (1.0, 1.0, 0.0));
    assert_eq!((exp2(-126.0), exp2(-127.0), exp2(-3e38)), (f32::MIN_POSITIVE, 0.0, 0.0));
    assert!(exp2(f32::NAN).is_nan() && exp2(f32::from_bits(0xffff_ffff)).is_nan());
    let mut worst = 0.0_f64;
    for i in 0..200_000 {
        let x = -(i as f32) * 6.3e-4;
        let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
        let unit = f64::from(f32::EPSILON) * want.log2().floor().exp2();
        worst = worst.max((got - want).abs() / unit);
    }
    assert!(worst < 1.1, "{worst} units in the last place");
}

#[test]
fn short_exp2_is_within_its_error() {
    assert_eq!(exp2_with(&EXP2_SHORT, 0.0), 1.0);
    let worst = (0..200_000).map(|i| -(i as f32) * 6.3e-4).fold(0.0, |worst: f64, x| {
        worst.max((f64::from(exp2_with(&EXP2_SHORT, x)) / f64::from(x).exp2() - 1.0).abs())
    });
    assert!(worst < 3e-6, "relative error {worst}");
}

/// The stand-in for the instruction rounds as it does, also where rounding twice would err.
#[test]
fn fma_rounds_once() {
    let mut rng = Rng(0xf3a);
    let check = |a: f32, b: f32, c: f32| {
        let (got, want) = (fma(a, b, c), a.mul_add(b, c));
        assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{a:e} {b:e} {c:e}");
    };
    for _ in 0..100_000 {
        let (a, b) = (rng.unit(), rng.unit());
        check(a, b, rng.unit() * 2.0_f32.powi((rng.next() % 80) as i32 - 60));
        // Products near the middle between two floats, and tiny ones.
        let half_unit = 2.0_f32.powi(-24) * (1.0 + rng.unit() * 2.0_f32.powi(-((rng.next() % 24) as i32)));
        check(half_unit, 1.0 + f32::EPSILON * (rng.next() % 3) as f32, 1.0 + f32::EPSILON);
        check(a * 1e-20, b * 1e-20, rng.unit() * 1e-38);
        check(a * 1e-22, b * 1e-22, -0.0);
        check(a * 2e19, b * 2e19, rng.unit() * 3e38);
        check(
            f32::from_bits(rng.next() as u32),
            f32::from_bits(rng.next() as u32),
            f32::from_bits(rng.next() as u32),
        );
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let set = Kernels::detect();
    let q = [0.0; 32];
    assert!(QueryRows::new(set, 32).set(std::iter::empty()).is_err());
    assert!(QueryRows::new(set, 16).set([(&q[..], 0..1)].into_iter()).is_err());
    let mut rows = QueryRows::new(set, 32);
    rows.set([(&q[..], 0..1)].into_iter()).unwrap();
    let lines = vec![Line([0.0; LANES]); key_lines(32)];
    rows.add_block(0, Lines::F32(&lines), Lines::F32(&lines)).unwrap();
    assert!(rows.add_block(0, Lines::F32(&lines[1..]), Lines::F32(&lines)).is_err());
    assert!(rows.add_block(0, Lines::F32(&lines), Lines::F32(&lines[..3])).is_err());
    assert!(rows.add_block(0, Lines::F32(&lines), Lines::Q8(&[])).is_err());
    assert!(rows.add_block(0, Lines::Q4(&[]), Lines::Q4(&[])).is_err());
    // Blocks of one kind only.
    let squares = vec![Square::EMPTY; squares(32)];
    let of_four = vec![Square4 { scales: [0; LANES], codes: [0; LANES * LANES / 2] }; squares.len()];
    let (eight, four) = (Lines::Q8(&squares), Lines::Q4(&of_four));
    assert!(rows.add_block(0, eight, eight).is_err());
    rows.set([(&q[..], 0..1)].into_iter()).unwrap();
    rows.add_block(0, four, four).unwrap();
    assert!(rows.add_block(0, eight, eight).is_err());
}

/// Whatever is announced, or nothing: requests change no result, also of blocks of another kind and of none.
#[test]
fn what_is_announced_changes_nothing() {
    let mut rng = Rng(0xa44);
    let kinds = [Kind::F16, Kind::F32, Kind::Q8, Kind::Q4];
    let empty = Block::Q8([Vec::new(), Vec::new()]);
    for kind in kinds {
        let cache = Cache::new(&mut rng, 64, 3, kind);
        let blocks: Vec<Block> = (0..3).map(|block| cache.block(block)).collect();
        // So many that blocks are widened for all of them, and few.
        for n in [3, 50] {
            let q: Vec<Vec<f32>> = (0..n).map(|_| rng.vector(64)).collect();
            let seen: Vec<Range<usize>> = (0..n).map(|row| row % 5..700 - row).collect();
            for set in Kernels::available() {
                let rows = || rows(set, &q, &seen);
                let want = bits(&cache.attend(&mut rows(), n));
                assert_eq!(bits(&cache.attend_to(&blocks, |_| None, &mut rows(), n)), want);
                assert_eq!(bits(&cache.attend_to(&blocks, |_| Some(&empty), &mut rows(), n)), want);
                for other in kinds {
                    let other = Cache::new(&mut rng, 64, 1, other).block(0);
                    let got = cache.attend_to(&blocks, |_| Some(&other), &mut rows(), n);
                    assert_eq!(bits(&got), want, "{kind:?}, {n} rows, {}", set.name());
                }
            }
        }
    }
}
