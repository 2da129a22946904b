//! What only codes have: the rounding of queries, and codes and scales at the ends of their ranges.

use super::*;

const DIM: usize = 64;

fn random_squares(rng: &mut Rng, scale: impl Fn(u64) -> u16) -> Vec<Square> {
    let mut square = |_| Square {
        scales: std::array::from_fn(|_| scale(rng.next())),
        codes: std::array::from_fn(|_| rng.next() as i8),
    };
    (0..squares(DIM)).map(&mut square).collect()
}

fn eight<'a>(keys: &'a [Square], values: &'a [Square]) -> [Lines<'a>; 2] {
    [Lines::Q8(keys), Lines::Q8(values)]
}

/// Rows that each see some of one block.
fn attend(set: &Kernels, q: &[Vec<f32>], seen: &[Range<usize>], [keys, values]: [Lines<'_>; 2]) -> Vec<f32> {
    let mut rows = rows(set, q, seen);
    rows.add_block(0, keys, values).unwrap();
    let mut totals = vec![0.0; q.len() * QueryRows::total_len(DIM)];
    rows.end_span(&mut totals);
    let mut out = vec![0.0; q.len() * DIM];
    let totals = totals.chunks(QueryRows::total_len(DIM));
    out.chunks_mut(DIM).zip(totals).for_each(|(out, total)| finish(total, out));
    out
}

/// 1 in half precision.
const ONE: u16 = 0x3c00;

/// Codes of -128, which no engine writes but a file may hold, and scales from subnormal to great.
#[test]
fn codes_and_scales_of_all_sizes_have_the_same_bits_in_every_set() {
    let mut rng = Rng(0xc0de);
    let seen = [0..256, 0..1, 31..33, 200..256, 0..256, 17..255, 255..256];
    for most in [0x0003, 0x0400, ONE, 0x5bff, 0x7bff] {
        let keys = random_squares(&mut rng, |x| (x % 0x1800) as u16);
        let mut values = random_squares(&mut rng, |x| (x % (u64::from(most) + 1)) as u16);
        values[3].codes.fill(-128);
        values[3].scales.fill(most);
        let q: Vec<Vec<f32>> = (0..seen.len()).map(|_| rng.vector(DIM)).collect();
        let want = attend(Kernels::available().last().unwrap(), &q, &seen, eight(&keys, &values));
        assert!(want.iter().all(|x| x.is_finite()), "scales up to {most:#x}");
        for set in Kernels::available() {
            let got = attend(set, &q, &seen, eight(&keys, &values));
            assert_eq!(bits(&got), bits(&want), "{} scales up to {most:#x}", set.name());
        }
    }
}

/// All products as great as they can be: sums of integers must not overflow.
#[test]
fn greatest_codes_do_not_overflow() {
    for code in [-128, 127] {
        let keys = vec![Square { scales: [0x0400; LANES], codes: [code; LANES * LANES] }; squares(DIM)];
        let values = vec![Square { scales: [ONE; LANES], codes: [code; LANES * LANES] }; squares(DIM)];
        for set in Kernels::available() {
            let q = vec![vec![1.0; DIM], vec![-1.0; DIM]];
            let out = attend(set, &q, &[0..256, 0..256], eight(&keys, &values));
            assert_eq!(out, vec![f32::from(code); 2 * DIM], "{}", set.name());
        }
    }
}

/// Every byte, against the definition.
#[test]
fn codes_of_four_bits_become_those_of_eight_in_every_set() {
    let mut rng = Rng(0x4b17);
    let mut square = || Square4 {
        scales: std::array::from_fn(|_| rng.next() as u16),
        codes: std::array::from_fn(|_| rng.next() as u8),
    };
    let four: Vec<Square4> = (0..9).map(|_| square()).collect();
    for set in Kernels::available() {
        let mut eight = vec![Square::EMPTY; four.len()];
        // SAFETY: the set exists, so the CPU has its instructions.
        unsafe { (set.attention.codes.unpack)(&four, &mut eight) };
        for (four, eight) in four.iter().zip(eight) {
            assert_eq!(four.scales, eight.scales, "{}", set.name());
            for (place, code) in eight.codes.into_iter().enumerate() {
                assert_eq!(four.code(place), code, "{} {place}", set.name());
            }
        }
    }
}

#[test]
fn values_of_zero_count_for_nothing() {
    let mut rng = Rng(0x2e20);
    let keys = random_squares(&mut rng, |_| ONE);
    let values = random_squares(&mut rng, |_| 0);
    for set in Kernels::available() {
        let out = attend(set, &[rng.vector(DIM), rng.vector(DIM)], &[3..200, 0..256], eight(&keys, &values));
        assert_eq!(out, vec![0.0; 2 * DIM], "{}", set.name());
    }
}

/// A scale that is not a number, or infinite: in sight it spoils the result, out of sight it changes nothing.
#[test]
fn scales_that_are_not_finite_spoil_what_sees_them_only() {
    let mut rng = Rng(0xbad);
    let [keys, values] = [0; 2].map(|_| random_squares(&mut rng, |_| 0x2000));
    spoil(&mut rng, keys, values, |squares| Lines::Q8(squares));
    let mut four = || Square4 { scales: [0x2000; LANES], codes: std::array::from_fn(|_| rng.next() as u8) };
    let [keys, values] = [0; 2].map(|_| (0..squares(DIM)).map(|_| four()).collect());
    spoil(&mut rng, keys, values, |squares| Lines::Q4(squares));
}

fn spoil<S: Coded>(rng: &mut Rng, keys: Vec<S>, values: Vec<S>, lines: fn(&[S]) -> Lines<'_>) {
    let q: Vec<Vec<f32>> = (0..2).map(|_| rng.vector(DIM)).collect();
    for set in Kernels::available() {
        let clean = attend(set, &q, &[0..40, 0..41], [&keys, &values].map(|s| lines(s)));
        for bad in [half::f16::NAN.to_bits(), half::f16::INFINITY.to_bits()] {
            for in_keys in [true, false] {
                let (mut keys, mut values) = (keys.clone(), values.clone());
                if in_keys {
                    // Both parts of position 40.
                    keys[2].set_scale(8, bad);
                    keys[3].set_scale(8, bad);
                } else {
                    values[1].set_scale(8, bad);
                    values[9].set_scale(8, bad);
                }
                let both = [&keys, &values].map(|s| lines(s));
                let out = attend(set, &q, &[0..40, 0..41], both);
                assert_eq!(bits(&out[..DIM]), bits(&clean[..DIM]), "{} {bad:#x} {in_keys}", set.name());
                let spoilt = out[DIM..].iter().all(|x| !x.is_finite());
                assert!(
                    spoilt || in_keys && bad == half::f16::INFINITY.to_bits(),
                    "{} {bad:#x} {in_keys}",
                    set.name()
                );
                // Alone, squares are unpacked a few at a time.
                let alone = attend(set, &q[..1], std::slice::from_ref(&(0..40)), both);
                assert_eq!(bits(&alone), bits(&clean[..DIM]), "{} {bad:#x} {in_keys}", set.name());
            }
        }
    }
}

#[test]
fn queries_round_to_nearest_in_every_set() {
    let mut rng = Rng(0x90a2);
    let mut special: Vec<Vec<f32>> = vec![
        vec![0.0; 32],
        vec![1e-44; 32],
        vec![f32::MAX; 32],
        vec![-f32::MAX; 7],
        [vec![1.0; 31], vec![f32::NAN]].concat(),
        [vec![f32::NEG_INFINITY], vec![1.0; 5]].concat(),
    ];
    special.extend((1..90).map(|n| rng.vector(n)));
    for x in special {
        let parts = x.len().div_ceil(LANES);
        let mut want = None;
        for set in Kernels::available().into_iter().rev() {
            let (mut codes, mut scales, mut sums) =
                (vec![[7; LANES]; parts], vec![7.0; parts], vec![7; parts]);
            // SAFETY: the set exists, so the CPU has its instructions.
            unsafe { (set.attention.codes.quantize)(&x, &mut codes, &mut scales, &mut sums) };
            for (part, x) in x.chunks(LANES).enumerate() {
                let (codes, scale, sum) = (&codes[part], scales[part], sums[part]);
                assert_eq!(sum, codes.iter().map(|c| i32::from(*c)).sum::<i32>());
                assert!(codes[x.len()..].iter().all(|c| *c == 0), "padding");
                if x.iter().any(|x| !x.is_finite()) {
                    assert!(scale.is_nan() && sum == 0, "{x:?}");
                    continue;
                }
                for (code, x) in codes.iter().zip(x) {
                    let error = (f64::from(*code) * f64::from(scale) - f64::from(*x)).abs();
                    assert!(
                        error <= 0.5001 * f64::from(scale) || x.abs() < 1e-35,
                        "{x} as {code} times {scale}"
                    );
                }
            }
            let got = (codes, bits(&scales), sums);
            assert_eq!(&got, want.get_or_insert_with(|| got.clone()), "{}", set.name());
        }
    }
}
