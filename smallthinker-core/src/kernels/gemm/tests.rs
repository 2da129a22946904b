//! Every set's product against the scalar one and against `matvec` over the stock rows, bit by bit.

use proptest::prelude::*;

use super::{ActTiles, GemmScratch, Layout, PanelSource};
use crate::kernels::tests::Rng;
use crate::kernels::{Acts, Kernels, scalar};
use crate::tensor::DType;
use crate::tensor::block::{BlockQ4_0, cast};

const LAYOUTS: [Layout; 2] = [Layout::Lanes, Layout::DownTiles];

/// Packs stock rows by the definition of the layouts.
fn pack(layout: Layout, stock: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let (all, blocks) = (cast::<BlockQ4_0>(stock).0, cols / 32);
    let block = |row: usize, b: usize| &all[row * blocks + b];
    let code = |row: usize, col: usize| {
        let (byte, high) = (block(row, col / 32).qs[col % 16], col % 32 >= 16);
        if high { byte >> 4 } else { byte & 15 }
    };
    match layout {
        Layout::Lanes => {
            let groups = blocks.div_ceil(8);
            let mut codes = vec![0; rows * groups * 128];
            let mut scales = vec![0; rows * groups * 16];
            for row in 0..rows {
                for b in 0..blocks {
                    let group = row * groups + b / 8;
                    for n in 0..16 {
                        codes[group * 128 + n / 4 * 32 + b % 8 * 4 + n % 4] = block(row, b).qs[n];
                    }
                    scales[(group * 8 + b % 8) * 2..][..2].copy_from_slice(&block(row, b).d);
                }
            }
            [codes, scales].concat()
        }
        Layout::DownTiles => {
            let mut out = Vec::new();
            for tile in 0..rows.div_ceil(128) {
                let inside = |r: usize| (128 * tile + r < rows).then_some(128 * tile + r);
                for b in 0..blocks {
                    for r in 0..128 {
                        out.extend(inside(r).map_or([0; 2], |row| block(row, b).d));
                    }
                    for n in 0..32 {
                        for p in 0..64 {
                            let r = 16 * (p / 4 % 4) + 4 * (p / 16) + p % 4;
                            let code = |r| inside(r).map_or(0, |row| code(row, 32 * b + n));
                            out.push(code(r) | code(64 + r) << 4);
                        }
                    }
                }
            }
            out
        }
    }
}

fn stock_rows(rng: &mut Rng, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..rows * cols / 32 * 18).map(|_| rng.next() as u8).collect();
    for block in bytes.chunks_exact_mut(18) {
        block[..2].copy_from_slice(&half::f16::from_f32(rng.unit() * 0.1).to_le_bytes());
    }
    bytes
}

/// Equal bits, or both not a number.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

fn acts(x: &[f32], cols: usize) -> Acts {
    let mut acts = Acts::new();
    acts.set(&scalar::KERNELS, x, cols, true).unwrap();
    acts
}

/// Vector by vector, rows in order.
fn product(set: &Kernels, w: &PanelSource<'_>, xs: &Acts, tokens: &[usize]) -> Vec<f32> {
    let mut tiles = ActTiles::new();
    tiles.set(xs, tokens.iter().copied()).unwrap();
    // A gap after each vector's outputs has to stay as it is.
    let stride = w.rows + 3;
    let mut out = vec![f32::NAN; tokens.len() * stride];
    set.gemm(&w.rows(0..w.rows), tiles.batch(0), &mut GemmScratch::new(), &mut out, stride).unwrap();
    assert!(out.chunks(stride).all(|row| row[w.rows..].iter().all(|x| x.is_nan())));
    out.chunks(stride).flat_map(|row| row[..w.rows].to_vec()).collect()
}

/// What `matvec` makes of the stock rows; the scalar one adds in another order.
fn expected(set: &Kernels, stock: &[u8], rows: usize, cols: usize, xs: &Acts, token: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows];
    set.matvec(DType::Q4_0, stock, cols, xs.row(token), &mut out).unwrap();
    out
}

fn check(stock: &[u8], rows: usize, cols: usize, xs: &Acts, tokens: &[usize]) {
    for layout in LAYOUTS {
        let data = pack(layout, stock, rows, cols);
        let w = PanelSource { layout, data: &data, rows, cols };
        let reference = product(&scalar::KERNELS, &w, xs, tokens);
        for set in Kernels::available() {
            let got = product(set, &w, xs, tokens);
            for (t, &token) in tokens.iter().enumerate() {
                let vector = expected(set, stock, rows, cols, xs, token);
                for row in 0..rows {
                    let (got, reference) = (got[t * rows + row], reference[t * rows + row]);
                    let place = format!(
                        "{} {layout:?} {rows}x{cols} token {t}/{} row {row}",
                        set.name(),
                        tokens.len()
                    );
                    assert!(same(got, reference), "{place}: {got:e}, scalar {reference:e}");
                    if cfg!(target_arch = "x86_64") && set.name() != "scalar" {
                        assert!(same(got, vector[row]), "{place}: {got:e}, matvec {:e}", vector[row]);
                    }
                }
            }
        }
    }
}

#[test]
fn all_shapes_have_the_bits_of_matvec() {
    let mut rng = Rng(0x5eed_0101);
    let shapes = [32, 64, 256, 288, 768, 1536, 2560].into_iter().flat_map(|cols| {
        let rows = if cols <= 288 { &[16, 17, 48, 128, 200][..] } else { &[17, 144] };
        rows.iter().map(move |&rows| (rows, cols))
    });
    for (rows, cols) in shapes {
        let stock = stock_rows(&mut rng, rows, cols);
        let xs = acts(&rng.vector(3 * cols), cols);
        for count in [1, 2, 3, 5, 16, 17, 33] {
            let tokens: Vec<usize> = (0..count).map(|_| rng.next() as usize % 3).collect();
            check(&stock, rows, cols, &xs, &tokens);
        }
    }
}

#[test]
fn all_numbers_of_vectors_fill_all_outputs() {
    let mut rng = Rng(0x5eed_0102);
    let (rows, cols) = (40, 320);
    let stock = stock_rows(&mut rng, rows, cols);
    let xs = acts(&rng.vector(7 * cols), cols);
    for count in (1..=40).chain([129, 600]) {
        let tokens: Vec<usize> = (0..count).map(|t| t * 5 % 7).collect();
        check(&stock, rows, cols, &xs, &tokens);
    }
}

#[test]
fn parts_of_the_rows_are_parts_of_the_product() {
    let mut rng = Rng(0x5eed_0103);
    let (rows, cols, count) = (300, 288, 21);
    let stock = stock_rows(&mut rng, rows, cols);
    let xs = acts(&rng.vector(count * cols), cols);
    let mut tiles = ActTiles::new();
    tiles.set(&xs, 0..count).unwrap();
    for layout in LAYOUTS {
        let data = pack(layout, &stock, rows, cols);
        let w = PanelSource { layout, data: &data, rows, cols };
        for set in Kernels::available() {
            let all = product(set, &w, &xs, &(0..count).collect::<Vec<_>>());
            let mut scratch = GemmScratch::new();
            for range in [0..16, 16..300, 112..144, 128..256, 240..300, 288..300, 64..64] {
                let mut out = vec![f32::NAN; count * range.len()];
                set.gemm(&w.rows(range.clone()), tiles.batch(0), &mut scratch, &mut out, range.len())
                    .unwrap();
                for (t, out) in out.chunks(range.len().max(1)).enumerate() {
                    assert_eq!(out, &all[t * rows..][range.clone()], "{} {layout:?} {range:?}", set.name());
                }
            }
        }
    }
}

#[test]
fn extremes_neither_saturate_nor_flush() {
    let mut rng = Rng(0x5eed_0104);
    let (rows, cols, count) = (32, 288, 18);
    for code in [0x00, 0xff, 0x0f, 0xf0, 0x88] {
        for scale in [1.0, -1.0, 65504.0, 6e-8, -6e-8, 0.0] {
            let mut stock = vec![code; rows * cols / 32 * 18];
            for block in stock.chunks_exact_mut(18) {
                block[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            }
            for magnitude in [1.0, 1e-28, 1e30] {
                let sign = |rng: &mut Rng| if rng.next().is_multiple_of(2) { magnitude } else { -magnitude };
                let mut x = vec![magnitude; cols];
                x.extend(vec![-magnitude; cols]);
                x.extend((2 * cols..count * cols).map(|_| sign(&mut rng)));
                let tokens: Vec<usize> = (0..count).collect();
                check(&stock, rows, cols, &acts(&x, cols), &tokens);
            }
        }
    }
}

#[test]
fn not_a_number_stays_with_its_vector() {
    let mut rng = Rng(0x5eed_0105);
    let (rows, cols, count) = (32, 288, 20);
    let stock = stock_rows(&mut rng, rows, cols);
    for bad in [0, 7, 15, 19] {
        let mut x = rng.vector(count * cols);
        x[bad * cols + 40] = f32::NAN;
        let xs = acts(&x, cols);
        for layout in LAYOUTS {
            let data = pack(layout, &stock, rows, cols);
            let w = PanelSource { layout, data: &data, rows, cols };
            for set in Kernels::available() {
                let out = product(set, &w, &xs, &(0..count).collect::<Vec<_>>());
                for (t, out) in out.chunks(rows).enumerate() {
                    assert!(out.iter().all(|x| x.is_nan() == (t == bad)), "{} {layout:?} {t}", set.name());
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (rows, cols) = (40, 64);
    let xs = acts(&vec![1.0; 3 * cols], cols);
    let mut tiles = ActTiles::new();
    assert!(tiles.set(&xs, [3].into_iter()).is_err(), "no such token");
    assert_eq!(tiles.batch(0).tokens(), 0);
    tiles.set(&xs, 0..3).unwrap();
    for set in Kernels::available() {
        for layout in LAYOUTS {
            let data = vec![0; pack(layout, &vec![0; rows * 36], rows, cols).len()];
            let w = PanelSource { layout, data: &data, rows, cols };
            let mut out = vec![0.0; 3 * rows];
            let mut run = |w: PanelSource<'_>, range, tiles: &ActTiles, len: usize, stride| {
                set.gemm(&w.rows(range), tiles.batch(0), &mut GemmScratch::new(), &mut out[..len], stride)
                    .is_ok()
            };
            assert!(run(w, 0..rows, &tiles, 3 * rows, rows));
            assert!(run(w, 32..rows, &tiles, 2 * rows + 8, rows), "the last stride may be short");
            assert!(!run(w, 0..rows, &tiles, 3 * rows - 1, rows));
            assert!(!run(w, 0..rows, &tiles, 3 * rows, rows - 1));
            assert!(!run(w, 0..rows, &tiles, 3 * rows, usize::MAX));
            assert!(!run(w, 8..rows, &tiles, 3 * rows, rows));
            assert!(!run(w, 0..20, &tiles, 3 * rows, rows));
            assert!(!run(w, 0..48, &tiles, 3 * rows, rows));
            assert!(!run(PanelSource { data: &data[1..], ..w }, 0..rows, &tiles, 3 * rows, rows));
            assert!(!run(PanelSource { cols: 65, ..w }, 0..rows, &tiles, 3 * rows, rows));
            assert!(!run(PanelSource { rows: usize::MAX, ..w }, 0..rows, &tiles, 3 * rows, rows));
            let mut others = ActTiles::new();
            others.set(&acts(&[1.0; 32], 32), 0..1).unwrap();
            assert!(!run(w, 0..rows, &others, 3 * rows, rows), "other columns");
            let mut floats = Acts::new();
            floats.set(set, &vec![1.0; cols], cols, false).unwrap();
            assert!(others.set(&floats, 0..1).is_err(), "not quantized");
            others.set(&xs, std::iter::empty()).unwrap();
            assert!(run(w, 0..rows, &others, 0, rows), "no vectors, no outputs");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_shape_has_the_bits_of_matvec(
        seed in 1_u64..,
        rows in 1_usize..150,
        blocks in 1_usize..40,
        count in 1_usize..40,
    ) {
        let mut rng = Rng(seed);
        let cols = 32 * blocks;
        let stock = stock_rows(&mut rng, rows, cols);
        let xs = acts(&rng.vector(3 * cols), cols);
        let tokens: Vec<usize> = (0..count).map(|_| rng.next() as usize % 3).collect();
        check(&stock, rows, cols, &xs, &tokens);
    }
}
