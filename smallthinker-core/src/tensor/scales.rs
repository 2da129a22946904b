//! Scales that are not finite numbers. Such a scale makes a product NaN or not depending on which weights are skipped, so
//! it must not get into a matrix of [`Layout::Lanes`] or [`Layout::Neurons`], whichever way the matrix comes.

use super::DType;
use super::block::{BlockQ4_0, BlockQ8_0, cast};
use super::packed::{BLOCK_SCALES, GROUP_CODES, Layout, groups, neuron_block_bytes};

/// All ones in the exponent of a half-precision number.
fn bad(scale: [u8; 2]) -> bool {
    scale[1] & 0x7c == 0x7c
}

/// Offset in `file`, whole blocks of a type that is packed, of the first scale that is not a finite number.
pub(crate) fn bad_scale(dtype: DType, file: &[u8]) -> Option<usize> {
    match dtype {
        DType::Q4_0 => {
            let place = cast::<BlockQ4_0>(file).0.iter().position(|block| bad(block.d))?;
            Some(place * size_of::<BlockQ4_0>())
        }
        DType::Q8_0 => {
            let place = cast::<BlockQ8_0>(file).0.iter().position(|block| bad(block.d))?;
            Some(place * size_of::<BlockQ8_0>())
        }
        _ => None,
    }
}

/// Offset in `data`, a matrix of `rows` rows of `cols` weights that is packed already, of the first scale that is not a
/// finite number.
pub(crate) fn bad_packed_scale(
    dtype: DType,
    layout: Layout,
    rows: usize,
    cols: usize,
    data: &[u8],
) -> Option<usize> {
    match layout {
        Layout::Rows => None,
        Layout::Lanes => {
            let codes = rows * groups(cols) * GROUP_CODES;
            bad_in(data.get(codes..)?).map(|at| codes + at)
        }
        Layout::Neurons => {
            let block = neuron_block_bytes(dtype)?;
            let mut blocks = data.chunks(block).enumerate();
            blocks.find_map(|(i, b)| bad_in(b.get(..BLOCK_SCALES)?).map(|at| i * block + at))
        }
    }
}

/// Offset of the first of these scales that is not a finite number.
fn bad_in(scales: &[u8]) -> Option<usize> {
    let scales = scales.as_chunks::<2>().0;
    // Without a way out of the loop it is one for vector instructions, and nearly always the only one.
    if !scales.iter().fold(false, |any, scale| any | bad(*scale)) {
        return None;
    }
    scales.iter().position(|scale| bad(*scale)).map(|place| 2 * place)
}

#[cfg(test)]
mod tests {
    use super::super::packed::{matrix_bytes, pack};
    use super::*;

    /// Every scale of a matrix, spoilt alone, is found where it went to; spoilt codes are not taken for one.
    #[test]
    fn every_scale_that_is_no_number_is_found_before_and_after_packing() {
        let kinds = [
            (DType::Q4_0, Layout::Lanes, 5, 288),
            (DType::Q4_0, Layout::Neurons, 150, 64),
            (DType::Q8_0, Layout::Neurons, 130, 64),
        ];
        for (dtype, layout, rows, cols) in kinds {
            let block = dtype.block_bytes();
            // All ones: the worst that codes can be.
            let mut file = vec![0xff; rows * dtype.row_bytes(cols).unwrap()];
            file.chunks_mut(block).for_each(|b| b[..2].copy_from_slice(&[0x34, 0x12]));
            let packed = |file: &[u8]| {
                let mut out = vec![0; matrix_bytes(dtype, layout, rows, cols).unwrap()];
                pack(dtype, layout, file, 0, rows, cols, &mut out);
                out
            };
            assert_eq!(bad_scale(dtype, &file), None);
            assert_eq!(bad_packed_scale(dtype, layout, rows, cols, &packed(&file)), None);
            let mut places = std::collections::HashSet::new();
            for at in (0..file.len()).step_by(block) {
                // Infinity, minus infinity, two that are no numbers.
                let wrong = [[0x00, 0x7c], [0x00, 0xfc], [0x01, 0x7c], [0xff, 0xff]][at / block % 4];
                file[at..at + 2].copy_from_slice(&wrong);
                assert_eq!(bad_scale(dtype, &file), Some(at));
                let out = packed(&file);
                let place = bad_packed_scale(dtype, layout, rows, cols, &out).unwrap();
                assert_eq!(out[place..place + 2], wrong, "{dtype} {layout:?}");
                assert!(places.insert(place), "each has a place of its own");
                file[at..at + 2].copy_from_slice(&[0x34, 0x12]);
            }
        }
    }
}
