//! Every set against the scalar one and against the product with the rows as they lie in the file.

use super::*;
use crate::kernels::Acts;
use crate::kernels::tests::{Rng, random_q4_0};
use crate::tensor::DType;
use crate::tensor::packed::pack_lanes;

#[test]
fn every_set_gives_the_bits_of_the_scalar_one() {
    let mut rng = Rng(0x1234_5678);
    for (rows, cols) in [(1, 32), (3, 64), (9, 256), (16, 288), (13, 768), (21, 1536), (6, 2560)] {
        let file = random_q4_0(&mut rng, rows, cols);
        let mut packed = vec![0; matrix_bytes(DType::Q4_0, Layout::Lanes, rows, cols).unwrap()];
        pack_lanes(&file, 0, rows, cols, &mut packed);
        let matrix = LaneMatrix::new(&packed, rows, cols).unwrap();
        for extreme in [false, true] {
            let mut x = rng.vector(cols);
            if extreme {
                x.iter_mut().for_each(|x| *x = 127.0f32.copysign(*x));
            }
            let mut acts = Acts::new();
            acts.set(&crate::kernels::scalar::KERNELS, &x, cols, true).unwrap();
            let mut want = vec![f32::NAN; rows];
            let scalar = &crate::kernels::scalar::KERNELS;
            scalar.matvec_lanes(matrix, PickedRows::From(0), acts.row(0), &mut want).unwrap();
            for set in Kernels::available() {
                let at = format!("{} {rows}x{cols}, extreme {extreme}", set.name());
                let mut out = vec![f32::NAN; rows];
                set.matvec_lanes(matrix, PickedRows::From(0), acts.row(0), &mut out).unwrap();
                assert_eq!(bits(&out), bits(&want), "{at}");
                // Any part, and any selection.
                let from = rows / 3;
                let mut part = vec![f32::NAN; rows - from];
                set.matvec_lanes(matrix, PickedRows::From(from), acts.row(0), &mut part).unwrap();
                assert_eq!(bits(&part), bits(&want[from..]), "{at}");
                let list: Vec<u32> = (0..rows as u32).filter(|_| rng.next().is_multiple_of(3)).collect();
                let mut picked = vec![f32::NAN; list.len()];
                set.matvec_lanes(matrix, PickedRows::List(&list), acts.row(0), &mut picked).unwrap();
                let selected: Vec<f32> = list.iter().map(|&i| want[i as usize]).collect();
                assert_eq!(bits(&picked), bits(&selected), "{at}");
                // The vector sets sum rows of the file in the same order; the scalar one does not.
                if matches!(set.name(), "avx2" | "avxvnni" | "avx512vnni" | "amx") {
                    let mut stored = vec![f32::NAN; rows];
                    set.matvec(DType::Q4_0, &file, cols, acts.row(0), &mut stored).unwrap();
                    assert_eq!(bits(&stored), bits(&want), "{at}: rows of the file");
                }
            }
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_block_that_is_not_finite_makes_every_product_nan() {
    let mut rng = Rng(7);
    let file = random_q4_0(&mut rng, 5, 512);
    let mut packed = vec![0; matrix_bytes(DType::Q4_0, Layout::Lanes, 5, 512).unwrap()];
    pack_lanes(&file, 0, 5, 512, &mut packed);
    let matrix = LaneMatrix::new(&packed, 5, 512).unwrap();
    let mut x = rng.vector(512);
    x[300] = f32::INFINITY;
    for set in Kernels::available() {
        let mut acts = Acts::new();
        acts.set(set, &x, 512, true).unwrap();
        let mut out = [0.0; 5];
        set.matvec_lanes(matrix, PickedRows::From(0), acts.row(0), &mut out).unwrap();
        assert!(out.iter().all(|x| x.is_nan()), "{}", set.name());
    }
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    let set = Kernels::detect();
    assert!(LaneMatrix::new(&[0; 143], 1, 256).is_err());
    let matrix = LaneMatrix::new(&[0; 288], 2, 256).unwrap();
    let mut acts = Acts::new();
    acts.set(set, &[1.0; 256], 256, true).unwrap();
    let product = |rows, out: &mut [f32]| set.matvec_lanes(matrix, rows, acts.row(0), out);
    assert!(product(PickedRows::From(1), &mut [0.0; 2]).is_err());
    assert!(product(PickedRows::List(&[2]), &mut [0.0]).is_err());
    assert!(product(PickedRows::List(&[0, 1]), &mut [0.0]).is_err());
    acts.set(set, &[1.0; 5 * 256], 256, true).unwrap(); // a large batch has no lanes
    assert!(set.matvec_lanes(matrix, PickedRows::From(0), acts.row(0), &mut [0.0]).is_err());
}
