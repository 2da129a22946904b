//! Conversions against golden vectors that the `gguf` Python package made (testdata/make_golden.py).

use super::super::{DType, dequantize, quantize};

const DEQUANTIZE: &[u8] = include_bytes!("testdata/dequantize.bin");
const QUANTIZE: &[u8] = include_bytes!("testdata/quantize.bin");

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn dequantize_matches_gguf_py_bit_for_bit() {
    let mut at = 0;
    for dtype in DType::ALL {
        let blocks = match dtype.block_len() {
            1 => 32,
            32 => 6,
            _ => 2,
        };
        let elements = blocks * dtype.block_len();
        let (raw, rest) = DEQUANTIZE[at..].split_at(blocks * dtype.block_bytes());
        let want = floats(&rest[..4 * elements]);
        at += raw.len() + 4 * elements;

        let mut got = vec![f32::NAN; elements];
        dequantize(dtype, raw, &mut got).unwrap();
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            // Equality of values, so that -0 and 0 agree; everything else must have the same bits.
            assert!(g == w && w.is_finite(), "{dtype} element {i}: {g:e} ({:08x}), want {w:e}", g.to_bits());
        }
        assert!(want.iter().any(|w| *w != 0.0), "{dtype}: golden vector is empty of values");
    }
    assert_eq!(at, DEQUANTIZE.len());
}

#[test]
fn quantize_matches_gguf_py_byte_for_byte() {
    let samples = floats(&QUANTIZE[..4 * 256]);
    let mut at = 4 * 256;
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0] {
        let mut got = vec![0xa5];
        quantize(dtype, &samples, &mut got).unwrap();
        let want = &QUANTIZE[at..at + dtype.row_bytes(256).unwrap()];
        at += want.len();
        assert_eq!(got[0], 0xa5, "quantize appends");
        for (b, (g, w)) in
            got[1..].chunks(dtype.block_bytes()).zip(want.chunks(dtype.block_bytes())).enumerate()
        {
            assert_eq!(g, w, "{dtype} block {b}");
        }
        assert_eq!(got.len(), want.len() + 1);
    }
    assert_eq!(at, QUANTIZE.len());
}

#[test]
fn quantize_then_dequantize_stays_within_half_a_step() {
    let samples = floats(&QUANTIZE[..4 * 256]);
    // The widest step relative to the largest value of a block, plus the rounding of the scale itself.
    for (dtype, steps) in [(DType::Q8_0, 0.51 / 127.0), (DType::Q4_0, 1.01 / 8.0), (DType::F16, 0.0005)] {
        let mut bytes = Vec::new();
        quantize(dtype, &samples, &mut bytes).unwrap();
        let mut back = vec![f32::NAN; samples.len()];
        dequantize(dtype, &bytes, &mut back).unwrap();
        for (x, y) in samples.chunks(32).zip(back.chunks(32)) {
            let amax = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            for (x, y) in x.iter().zip(y) {
                // Scales of tiny blocks are subnormal halves, up to 2^-25 wrong; codes go up to 127.
                let bound = amax * steps + 127.0 * 2.0_f32.powi(-25);
                assert!((x - y).abs() <= bound, "{dtype}: {x} came back as {y}");
            }
        }
    }
}

#[test]
fn wrong_sizes_are_errors_and_change_nothing() {
    for dtype in DType::ALL {
        let bytes = vec![0x11; 3 * dtype.block_bytes()];
        let mut out = vec![7.0; 2 * dtype.block_len()];
        assert!(dequantize(dtype, &bytes, &mut out).is_err());
        assert!(dequantize(dtype, &bytes[..bytes.len() - 1], &mut vec![0.0; 3 * dtype.block_len()]).is_err());
        assert!(out.iter().all(|x| *x == 7.0));
        assert!(dequantize(dtype, &[], &mut []).is_ok());
        if dtype.block_len() > 1 {
            let message = dequantize(dtype, &bytes, &mut out[..31]).unwrap_err().to_string();
            assert!(message.contains(dtype.name()) && message.contains("31"), "{message}");
        }
    }
}

#[test]
fn quantize_refuses_what_it_cannot_write() {
    let mut out = vec![1, 2, 3];
    for dtype in [DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q4_K, DType::Q5_K, DType::Q6_K] {
        let message = quantize(dtype, &[0.5; 256], &mut out).unwrap_err().to_string();
        assert!(message.contains(dtype.name()), "{message}");
    }
    assert!(quantize(DType::Q4_0, &[0.5; 33], &mut out).is_err());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut block = [0.5; 64];
        block[40] = bad;
        let message = quantize(DType::Q8_0, &block, &mut out).unwrap_err().to_string();
        assert!(message.contains("element 40"), "{message}");
        assert!(quantize(DType::Q4_0, &block, &mut out).is_err());
    }
    assert_eq!(out, [1, 2, 3]);
    // Halves keep non-finite values: they have codes for them.
    quantize(DType::F16, &[f32::INFINITY, f32::NAN], &mut out).unwrap();
    assert_eq!(&out[3..5], &[0x00, 0x7c]);
    assert!(out[6] & 0x7c == 0x7c && (out[6] & 3 != 0 || out[5] != 0));
}
