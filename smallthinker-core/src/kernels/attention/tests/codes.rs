//! What only codes have: the rounding of queries, and codes and scales at the ends of their ranges.

use super::super::codes::SQUARES;
use super::*;

const DIM: usize = 64;

fn random_squares(rng: &mut Rng, scale: impl Fn(u64) -> u16) -> Vec<Square> {
    let mut square = |_| Square {
        scales: std::array::from_fn(|_| scale(rng.next())),
        codes: std::array::from_fn(|_| rng.next() as i8),
    };
    (0..squares(DIM)).map(&mut square).collect()
}

fn random_squares_of_four_bits(rng: &mut Rng, scale: impl Fn(u64) -> u16) -> Vec<Square4> {
    let mut square = |_| Square4 {
        scales: std::array::from_fn(|_| scale(rng.next())),
        codes: std::array::from_fn(|_| rng.next() as u8),
    };
    (0..squares(DIM)).map(&mut square).collect()
}

fn eight<'a>(keys: &'a [Square], values: &'a [Square]) -> [Lines<'a>; 2] {
    [Lines::Q8(keys), Lines::Q8(values)]
}

fn four<'a>(keys: &'a [Square4], values: &'a [Square4]) -> [Lines<'a>; 2] {
    [Lines::Q4(keys), Lines::Q4(values)]
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
        let fours = [0x1800, u64::from(most) + 1]
            .map(|end| random_squares_of_four_bits(&mut rng, |x| (x % end) as u16));
        let q: Vec<Vec<f32>> = (0..seen.len()).map(|_| rng.vector(DIM)).collect();
        for block in [eight(&keys, &values), four(&fours[0], &fours[1])] {
            let want = attend(Kernels::available().last().unwrap(), &q, &seen, block);
            assert!(want.iter().all(|x| x.is_finite()), "scales up to {most:#x}");
            for set in Kernels::available() {
                let got = attend(set, &q, &seen, block);
                assert_eq!(bits(&got), bits(&want), "{} scales up to {most:#x}", set.name());
            }
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
    // Of 4 bits: the smallest and the greatest, the queries' codes as great, and all weights 255.
    for (held, code) in [(0x00, -15.0), (0xff, 15.0)] {
        let squares =
            |scale| vec![Square4 { scales: [scale; LANES], codes: [held; LANES * LANES / 2] }; squares(DIM)];
        let (keys, values) = (squares(0x0400), squares(ONE));
        for set in Kernels::available() {
            let q = vec![vec![1.0; DIM], vec![-1.0; DIM]];
            let out = attend(set, &q, &[0..256, 0..256], four(&keys, &values));
            for out in out {
                assert!((out - code).abs() < 1e-5 * 15.0, "{}: {out} {code}", set.name());
            }
        }
    }
}

/// Keys as small and as great as they can be, half of the positions each, and values that tell which half was weighed how: the products
/// of scores must not overflow either. `scale` makes a difference of ln 10 of the `distance` between the keys' codes.
#[test]
fn greatest_products_of_scores_do_not_overflow() {
    fn check<S: Coded>(zero: S, codes: [i8; 2], of_values: i8, lines: fn(&[S]) -> Lines<'_>) {
        let distance = DIM as f32 * f32::from(codes[1] as i16 - codes[0] as i16) / (DIM as f32).sqrt();
        let scale = half::f16::from_f32(10.0_f32.ln() / distance);
        let mut keys = vec![zero; squares(DIM)];
        let mut values = keys.clone();
        for position in 0..BLOCK {
            let (group, upper) = (position / LANES, usize::from(position % 3 == 0));
            for part in 0..DIM / LANES {
                let (key, value) = (group * DIM / LANES + part, part * BLOCK / LANES + group);
                keys[key].scales_mut()[position % LANES] = scale.to_bits();
                values[value].scales_mut()[position % LANES] = ONE;
                for dim in 0..LANES {
                    keys[key].set_code(S::key(position % LANES, dim), codes[upper]);
                    values[value]
                        .set_code(S::value(position % LANES, dim), of_values * (2 * upper as i8 - 1));
                }
            }
        }
        let factor = (f64::from(distance) * scale.to_f64()).exp();
        let (n, upper) = (BLOCK as f64, BLOCK.div_ceil(3) as f64);
        for (q, factor) in [(1.0, factor), (-1.0, 1.0 / factor)] {
            let want = (upper * factor - (n - upper)) / (upper * factor + n - upper) * f64::from(of_values);
            for set in Kernels::available() {
                let rows = [vec![q; DIM], vec![q; DIM]];
                for out in attend(set, &rows, &[0..BLOCK, 0..BLOCK], [lines(&keys), lines(&values)]) {
                    // A step of the weights.
                    assert!((f64::from(out) - want).abs() < 15.0 / 255.0, "{}: {out} {want}", set.name());
                }
            }
        }
    }
    check(Square::EMPTY, [-128, 127], 15, |squares| Lines::Q8(squares));
    let empty = Square4 { scales: [0; LANES], codes: [0; LANES * LANES / 2] };
    check(empty, [-15, 15], 15, |squares| Lines::Q4(squares));
}

/// However many rows see the same, which kernels take together: the bits of each alone.
#[test]
fn rows_that_see_the_same_have_the_same_bits_in_any_number() {
    let mut rng = Rng(0x5a3e);
    let scale = |x| 0x1000 + (x % 0x1400) as u16;
    let [keys, values] = [0; 2].map(|_| random_squares(&mut rng, scale));
    let [keys4, values4] = [0; 2].map(|_| random_squares_of_four_bits(&mut rng, scale));
    let q: Vec<Vec<f32>> = (0..28).map(|_| rng.vector(DIM).iter().map(|x| 4.0 * x).collect()).collect();
    for block in [eight(&keys, &values), four(&keys4, &values4)] {
        for seen in [0..256, 17..255, 40..50] {
            let alone = |q: &Vec<f32>| {
                attend(
                    Kernels::available().last().unwrap(),
                    std::slice::from_ref(q),
                    std::slice::from_ref(&seen),
                    block,
                )
            };
            let alone: Vec<f32> = q.iter().flat_map(alone).collect();
            for n in (1..=15).chain([28]) {
                for set in Kernels::available() {
                    let got = attend(set, &q[..n], &vec![seen.clone(); n], block);
                    assert_eq!(bits(&got), bits(&alone[..n * DIM]), "{} {n} rows {seen:?}", set.name());
                }
            }
        }
    }
}

/// A position that nearly all attend to has values of a scale of 1/50: another with a weight of 1/1000 does not become coarse by its
/// weight.
#[test]
fn a_great_weight_of_small_values_does_not_drown_others() {
    let mut keys = vec![Square4 { scales: [ONE; LANES], codes: [0x77; LANES * LANES / 2] }; squares(DIM)];
    for square in &mut keys {
        square.scales = [half::f16::from_f32(0.125).to_bits(); LANES];
    }
    for position in 0..LANES {
        keys[0].set_code(Square4::key(position, 0), if position == 0 { 15 } else { -15 });
    }
    let mut q = vec![0.0; DIM];
    q[0] = 1000.0_f32.ln() * (DIM as f32).sqrt() / (30.0 * 0.125);
    for other in 1..LANES {
        let mut values = vec![Square4 { scales: [0; LANES], codes: [0xff; LANES * LANES / 2] }; squares(DIM)];
        for column in [0, SQUARES] {
            values[column].scales[0] = half::f16::from_f32(0.02).to_bits();
            values[column].scales[other] = ONE;
        }
        values[0].set_code(Square4::value(0, 0), -15);
        let want = (0.001 * 15.0 - 0.02 * 15.0) / 1.031;
        for set in Kernels::available() {
            let out = attend(set, &[q.clone()], std::slice::from_ref(&(0..32)), four(&keys, &values))[0];
            // Steps are 0.02 / 255; of the weight alone they would be 50 times as great, and 1/1000 none of them or one.
            assert!((out - want).abs() < 1.5 * 0.02 / 255.0 * 15.0, "{} {other}: {out} {want}", set.name());
        }
    }
}

/// Beside a weight of 1 there are 31 of 1/1000, less than half of what 255 steps can tell: together they are not lost.
#[test]
fn small_weights_count_as_much_as_they_add_up_to() {
    // Dimension 0 of the keys sets the scores apart, of the values the positions.
    let mut keys = vec![Square4 { scales: [ONE; LANES], codes: [0x77; LANES * LANES / 2] }; squares(DIM)];
    let mut values = keys.clone();
    for square in &mut keys {
        square.scales = [half::f16::from_f32(0.125).to_bits(); LANES];
    }
    for position in 0..LANES {
        keys[0].set_code(Square4::key(position, 0), if position == 5 { 15 } else { -15 });
        values[0].set_code(Square4::value(position, 0), if position == 5 { -15 } else { 15 });
    }
    // A difference of ln 1000 in scores. A scale of 127 steps for the one element makes it exact enough.
    let difference = 1000.0_f32.ln() * (DIM as f32).sqrt() / (30.0 * 0.125);
    let mut q = vec![0.0; DIM];
    q[0] = difference;
    let want = (31.0 * 0.001 * 15.0 - 15.0) / 1.031;
    for set in Kernels::available() {
        let out = attend(set, &[q.clone()], std::slice::from_ref(&(0..32)), four(&keys, &values))[0];
        // Lost they would make it -15 / 1.031 = -14.55; two steps of 255 are allowed.
        assert!((out - want).abs() < 2.0 / 255.0 * 15.0, "{}: {out} {want}", set.name());
    }
}

#[test]
fn values_of_zero_count_for_nothing() {
    let mut rng = Rng(0x2e20);
    let keys = random_squares(&mut rng, |_| ONE);
    let values = random_squares(&mut rng, |_| 0);
    let keys4 = random_squares_of_four_bits(&mut rng, |_| ONE);
    let values4 = random_squares_of_four_bits(&mut rng, |_| 0);
    for set in Kernels::available() {
        for block in [eight(&keys, &values), four(&keys4, &values4)] {
            let out = attend(set, &[rng.vector(DIM), rng.vector(DIM)], &[3..200, 0..256], block);
            assert_eq!(out, vec![0.0; 2 * DIM], "{}", set.name());
        }
    }
}

/// A scale that is not a number, or infinite: in sight it spoils the result, out of sight it changes nothing.
#[test]
fn scales_that_are_not_finite_spoil_what_sees_them_only() {
    let mut rng = Rng(0xbad);
    let [keys, values] = [0; 2].map(|_| random_squares(&mut rng, |_| 0x2000));
    spoil(&mut rng, keys, values, |squares| Lines::Q8(squares));
    let [keys, values] = [0; 2].map(|_| random_squares_of_four_bits(&mut rng, |_| 0x2000));
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
                    keys[2].scales_mut()[8] = bad;
                    keys[3].scales_mut()[8] = bad;
                } else {
                    values[1].scales_mut()[8] = bad;
                    values[9].scales_mut()[8] = bad;
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
