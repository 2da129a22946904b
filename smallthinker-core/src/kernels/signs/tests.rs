//! Every set against a sum over signs that are unpacked one by one.

use super::*;
use crate::kernels::tests::Rng;

fn naive(rows: &[u8], stride: usize, z: &[[i8; WORD]], n: usize) -> Vec<i32> {
    let sign = |row: usize, j: usize| if rows[row * stride + j / 8] & (1 << (j % 8)) == 0 { -1 } else { 1 };
    let product = |row| (0..z.len() * WORD).map(|j| sign(row, j) * i32::from(z.as_flattened()[j])).sum();
    (0..n).map(product).collect()
}

#[test]
fn every_set_gives_the_same_integers() {
    let mut rng = Rng(0x5151);
    for (n, words, stride) in [
        (1, 1, 8),
        (3, 1, 4),
        (7, 2, 10),
        (64, 3, 24),
        (5, 13, 104),
        (9, 14, 110),
        (2, MAX_WORDS, 512),
        (0, 4, 32),
    ] {
        let bytes: Vec<u8> = (0..n * stride + 8 * words).map(|_| rng.next() as u8).collect();
        let random = (0..words).map(|_| [0i8; WORD].map(|_| ((rng.next() % 255) as i16 - 127) as i8));
        let random: Vec<[i8; WORD]> = random.collect();
        let all = |byte: u8| vec![byte; bytes.len()];
        for (rows, z) in [
            (bytes.clone(), random),
            (all(255), vec![[127; WORD]; words]),
            (all(0), vec![[127; WORD]; words]),
            (bytes.clone(), vec![[-127; WORD]; words]),
        ] {
            let want = naive(&rows, stride, &z, n);
            for set in Kernels::available() {
                let mut out = vec![i32::MIN; n];
                set.sign_products(&rows, stride, &z, &mut out).unwrap();
                assert_eq!(out, want, "{} {n}x{words}, {stride}", set.name());
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    let set = Kernels::detect();
    let product = |bytes: usize, stride, words, rows| {
        set.sign_products(&vec![0; bytes], stride, &vec![[0; WORD]; words], &mut vec![0; rows])
    };
    assert!(product(26, 10, 2, 2).is_ok());
    assert!(product(25, 10, 2, 2).is_err());
    assert!(product(64, 8, 0, 2).is_err());
    assert!(product(1000, 8, 65, 1).is_err());
    assert!(product(1000, usize::MAX, 1, 3).is_err());
}
