//! Layouts of Q4_0 and Q8_0 weights that kernels read at memory speed. Codes and scales are the file's, only their places
//! differ, so nothing is lost.
//!
//! [`Layout::Lanes`] suits products row by row. The eight blocks of a group of 256 columns lie side by side, four
//! elements of each at a time, so that lane `i` of a vector accumulates block `i` and no sum across lanes is
//! needed. [`Layout::Neurons`] suits the down projection after a ReLU: weights lie by neuron (by column of the
//! stored matrix), so that the neurons that are zero are never read.
//!
//! In both, codes and scales lie apart: codes then fill whole cache lines.

use super::DType;
use super::block::{BlockQ4_0, BlockQ8_0, cast};
use super::transpose::{transpose, transpose_quads};

/// Columns of a group of [`Layout::Lanes`].
pub(crate) const GROUP_COLS: usize = 256;
/// Bytes of a group's codes, and of its scales.
pub(crate) const GROUP_CODES: usize = 128;
pub(crate) const GROUP_SCALES: usize = 16;
/// Outputs of a tile of [`Layout::Neurons`].
pub(crate) const TILE: usize = 128;
/// Bytes of a neuron's Q4_0 codes in a tile: one cache line. Q8_0 has two lines.
pub(crate) const LINE: usize = TILE / 2;
/// Bytes of the scales of a block of 32 neurons in a tile, which lie before the block's codes.
pub(crate) const BLOCK_SCALES: usize = 2 * TILE;
/// Bytes of a block of 32 neurons in a tile.
pub(crate) const BLOCK_Q4_0: usize = BLOCK_SCALES + 32 * LINE;
pub(crate) const BLOCK_Q8_0: usize = BLOCK_SCALES + 32 * 2 * LINE;

/// Bytes of a block of 32 neurons in a tile; `None` for types that don't lie by neuron.
pub(crate) fn neuron_block_bytes(dtype: DType) -> Option<usize> {
    match dtype {
        DType::Q4_0 => Some(BLOCK_Q4_0),
        DType::Q8_0 => Some(BLOCK_Q8_0),
        _ => None,
    }
}

/// How a weight matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Row by row, as in the file.
    Rows,
    /// Q4_0. A plane of codes, `[rows][groups][4][8 blocks][4]` bytes: byte `4k + e` of each block of the file
    /// stands at `[k][block][e]`. Then a plane of half-precision scales, `[rows][groups][8 blocks]`. Columns
    /// are padded with zeros to whole groups.
    Lanes,
    /// Q4_0 or Q8_0, for the stored matrix `[outputs, neurons]`: tiles of 128 outputs, in each the blocks of 32
    /// neurons, in each 128 half-precision scales and then the codes of each neuron. Outputs are padded with zeros
    /// to whole tiles.
    ///
    /// Q4_0 codes take 64 bytes: byte `16 l + 4 m + e` (`l`, `m`, `e` in 0..4) holds output `16 m + 4 l + e` in its
    /// low and 64 more in its high half. Interleaving the bytes of four neurons within 128-bit lanes, as vector
    /// instructions do, then gives consecutive outputs. Q8_0 codes take 64 bytes in the same order for the first 64
    /// outputs, then 64 bytes for the others; they are stored plus 128, as byte products want them unsigned.
    Neurons,
}

impl Layout {
    /// The layout that the products with a matrix's rows are fastest in.
    pub(crate) fn by_row(dtype: DType) -> Layout {
        if dtype == DType::Q4_0 { Layout::Lanes } else { Layout::Rows }
    }

    /// The layout that the down projection is fastest in.
    pub(crate) fn by_neuron(dtype: DType) -> Layout {
        if neuron_block_bytes(dtype).is_some() { Layout::Neurons } else { Layout::Rows }
    }
}

/// Packs a whole matrix, or the rows from `first` on that `file` holds: whole tiles for [`Layout::Neurons`].
pub(crate) fn pack(
    dtype: DType,
    layout: Layout,
    file: &[u8],
    first: usize,
    rows: usize,
    cols: usize,
    out: &mut [u8],
) {
    match layout {
        // What lies as in the file is read into its place.
        Layout::Rows => {}
        Layout::Lanes => pack_lanes(file, first, rows, cols, out),
        Layout::Neurons => {
            let (row, block) = (dtype.row_bytes(cols).unwrap_or(0), neuron_block_bytes(dtype).unwrap_or(0));
            let tile = cols / 32 * block;
            if row > 0 && tile > 0 {
                let tiles = out.chunks_exact_mut(tile).skip(first / TILE);
                file.chunks(TILE * row)
                    .zip(tiles)
                    .for_each(|(file, out)| pack_neurons_tile(dtype, file, cols, out));
            }
        }
    }
}

/// Groups of a row.
pub(crate) fn groups(cols: usize) -> usize {
    cols.div_ceil(GROUP_COLS)
}

/// Bytes that a matrix takes in a layout; `None` if the type does not lie so, `cols` is not whole blocks or the size
/// overflows.
pub(crate) fn matrix_bytes(dtype: DType, layout: Layout, rows: usize, cols: usize) -> Option<usize> {
    let row = dtype.row_bytes(cols)?;
    match layout {
        Layout::Rows => rows.checked_mul(row),
        Layout::Lanes if dtype != DType::Q4_0 => None,
        Layout::Lanes => rows.checked_mul(groups(cols))?.checked_mul(GROUP_CODES + GROUP_SCALES),
        Layout::Neurons => {
            rows.div_ceil(TILE).checked_mul(cols / 32)?.checked_mul(neuron_block_bytes(dtype)?)
        }
    }
}

/// The place of up to [`TILE`] rows of a matrix in its layout.
pub(crate) struct Band<'a> {
    codes: &'a mut [u8],
    /// Of [`Layout::Lanes`], where they lie apart.
    scales: &'a mut [u8],
}

impl<'a> Band<'a> {
    /// The bands of the matrix of `rows` × `cols` whose place is `out`.
    pub(crate) fn all(
        dtype: DType,
        layout: Layout,
        rows: usize,
        cols: usize,
        out: &'a mut [u8],
    ) -> Vec<Band<'a>> {
        let (scales_from, codes, scales) = match layout {
            Layout::Rows => (out.len(), TILE * dtype.row_bytes(cols).unwrap_or(0), 0),
            Layout::Neurons => (out.len(), cols / 32 * neuron_block_bytes(dtype).unwrap_or(0), 0),
            Layout::Lanes => {
                let groups = groups(cols);
                (rows * groups * GROUP_CODES, TILE * groups * GROUP_CODES, TILE * groups * GROUP_SCALES)
            }
        };
        let (all_codes, all_scales) = out.split_at_mut(scales_from.min(out.len()));
        let scales = all_scales.chunks_mut(scales.max(1)).chain(std::iter::repeat_with(Default::default));
        all_codes.chunks_mut(codes.max(1)).zip(scales).map(|(codes, scales)| Band { codes, scales }).collect()
    }

    /// Fills the band with its rows, which are as in the file.
    pub(crate) fn pack(&mut self, dtype: DType, layout: Layout, file: &[u8], cols: usize) {
        match layout {
            Layout::Rows => {
                let n = self.codes.len().min(file.len());
                self.codes[..n].copy_from_slice(&file[..n]);
            }
            Layout::Lanes => pack_rows(file, cols, self.codes, self.scales),
            Layout::Neurons => pack_neurons_tile(dtype, file, cols, self.codes),
        }
    }
}

/// Packs whole rows of `cols` weights into [`Layout::Lanes`]: `file` are consecutive rows from row `first` on of the
/// matrix of `rows` rows whose place is `out`. Rows outside the matrix are left out.
pub(crate) fn pack_lanes(file: &[u8], first: usize, rows: usize, cols: usize, out: &mut [u8]) {
    let groups = groups(cols);
    let (codes, scales) = out.split_at_mut((rows * groups * GROUP_CODES).min(out.len()));
    let codes = codes.get_mut(first * groups * GROUP_CODES..).unwrap_or(&mut []);
    let scales = scales.get_mut(first * groups * GROUP_SCALES..).unwrap_or(&mut []);
    pack_rows(file, cols, codes, scales);
}

/// Packs rows of `cols` weights into the places of their codes and of their scales.
fn pack_rows(file: &[u8], cols: usize, codes: &mut [u8], scales: &mut [u8]) {
    let (blocks, groups) = (cols / 32, groups(cols));
    if blocks == 0 {
        return;
    }
    let codes = codes.as_chunks_mut::<GROUP_CODES>().0.chunks_exact_mut(groups);
    let scales = scales.as_chunks_mut::<GROUP_SCALES>().0.chunks_exact_mut(groups);
    for ((row, codes), scales) in cast::<BlockQ4_0>(file).0.chunks_exact(blocks).zip(codes).zip(scales) {
        for ((blocks, codes), scales) in row.chunks(8).zip(codes).zip(scales) {
            match blocks.first_chunk::<8>() {
                Some(blocks) => pack_group(blocks, codes, scales),
                None => {
                    let mut all = [BlockQ4_0 { d: [0; 2], qs: [0; 16] }; 8];
                    all[..blocks.len()].copy_from_slice(blocks);
                    pack_group(&all, codes, scales);
                }
            }
        }
    }
}

#[inline]
fn pack_group(blocks: &[BlockQ4_0; 8], codes: &mut [u8; GROUP_CODES], scales: &mut [u8; GROUP_SCALES]) {
    let halves = codes.as_chunks_mut::<16>().0;
    for (half, blocks) in blocks.as_chunks::<4>().0.iter().enumerate() {
        for (k, quads) in transpose_quads(&blocks.map(|block| block.qs)).iter().enumerate() {
            halves[2 * k + half] = *quads;
        }
    }
    scales.copy_from_slice(blocks.map(|block| block.d).as_flattened());
}

/// The blocks of one row of [`Layout::Lanes`] as they lie in the file.
pub(crate) fn unpack_lanes_row(packed: &[u8], row: usize, rows: usize, cols: usize) -> Vec<u8> {
    let groups = groups(cols);
    let (codes, scales) = packed.split_at((rows * groups * GROUP_CODES).min(packed.len()));
    let codes = codes.as_chunks::<GROUP_CODES>().0.iter().skip(row * groups);
    let scales = scales.as_chunks::<GROUP_SCALES>().0.iter().skip(row * groups);
    let mut file = Vec::with_capacity(cols / 32 * size_of::<BlockQ4_0>());
    for block in 0..cols / 32 {
        let (mut codes, mut scales) = (codes.clone().skip(block / 8), scales.clone().skip(block / 8));
        let (Some(codes), Some(scales)) = (codes.next(), scales.next()) else { break };
        let i = block % 8;
        file.extend(&scales[2 * i..2 * i + 2]);
        (0..4).for_each(|k| file.extend(&codes[32 * k + 4 * i..][..4]));
    }
    file
}

/// The output, counted within a tile, that byte `p` of a line of a neuron's codes holds in its low half.
pub(crate) const fn low_output(p: usize) -> usize {
    16 * (p / 4 % 4) + 4 * (p / 16) + p % 4
}

/// Packs the rows of one tile (up to [`TILE`] rows of `cols` weights, as in the file) into its place in
/// [`Layout::Neurons`].
pub(crate) fn pack_neurons_tile(dtype: DType, file: &[u8], cols: usize, out: &mut [u8]) {
    let per_row = cols / 32;
    if dtype == DType::Q8_0 {
        let all = cast::<BlockQ8_0>(file).0;
        for (b, out) in out.as_chunks_mut::<BLOCK_Q8_0>().0.iter_mut().enumerate().take(per_row) {
            pack_block_q8_0(|row| all.get(row * per_row + b), out);
        }
    } else {
        let all = cast::<BlockQ4_0>(file).0;
        for (b, out) in out.as_chunks_mut::<BLOCK_Q4_0>().0.iter_mut().enumerate().take(per_row) {
            pack_block_q4_0(|row| all.get(row * per_row + b), out);
        }
    }
}

/// `block(row)` is the block's part in a row of the tile, if there is such a row.
fn pack_block_q4_0<'a>(block: impl Fn(usize) -> Option<&'a BlockQ4_0>, out: &mut [u8; BLOCK_Q4_0]) {
    let (scales, codes) = out.split_at_mut(BLOCK_SCALES);
    for (row, scale) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *scale = block(row).map_or([0; 2], |block| block.d);
    }
    // Byte `e` of a row holds neurons `e` and `e + 16`; sixteen rows at a time become sixteen bytes by neuron.
    for part in 0..LINE / 16 {
        let of = |shift: usize| {
            transpose(&std::array::from_fn(|i| {
                block(low_output(16 * part + i) + shift).map_or([0; 16], |block| block.qs)
            }))
        };
        let (low, high) = (of(0), of(TILE / 2));
        for (e, (low, high)) in low.iter().zip(&high).enumerate() {
            let place = |neuron: usize| LINE * neuron + 16 * part;
            let first: [u8; 16] = std::array::from_fn(|i| (low[i] & 15) | (high[i] << 4));
            let second: [u8; 16] = std::array::from_fn(|i| (low[i] >> 4) | (high[i] & 0xf0));
            codes[place(e)..place(e) + 16].copy_from_slice(&first);
            codes[place(e + 16)..place(e + 16) + 16].copy_from_slice(&second);
        }
    }
}

fn pack_block_q8_0<'a>(block: impl Fn(usize) -> Option<&'a BlockQ8_0>, out: &mut [u8; BLOCK_Q8_0]) {
    let (scales, codes) = out.split_at_mut(BLOCK_SCALES);
    for (row, scale) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *scale = block(row).map_or([0; 2], |block| block.d);
    }
    for part in 0..2 * LINE / 16 {
        let (line, at) = (part / 4, 16 * (part % 4));
        for half in 0..2 {
            // Flipping the top bit of a signed byte adds 128.
            let bytes = transpose(&std::array::from_fn(|i| {
                let row = low_output(at + i) + TILE / 2 * line;
                let codes = block(row).and_then(|block| block.qs.as_chunks::<16>().0.get(half));
                codes.map_or([0x80; 16], |codes| codes.map(|code| code as u8 ^ 0x80))
            }));
            for (e, bytes) in bytes.iter().enumerate() {
                let place = 2 * LINE * (16 * half + e) + LINE * line + at;
                codes[place..place + 16].copy_from_slice(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
        let mut state = 12345u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..rows * dtype.row_bytes(cols).unwrap()).map(|_| byte()).collect()
    }

    /// The code of a weight as the file has it.
    fn code(file: &[u8], cols: usize, row: usize, col: usize) -> u8 {
        let block = &file[(row * cols / 32 + col / 32) * 18..][..18];
        let byte = block[2 + col % 16];
        if col % 32 < 16 { byte & 15 } else { byte >> 4 }
    }

    fn scale(file: &[u8], cols: usize, row: usize, block: usize) -> &[u8] {
        &file[(row * cols / 32 + block) * 18..][..2]
    }

    #[test]
    fn lanes_hold_every_weight_at_its_place() {
        for (rows, cols) in [(1, 32), (5, 256), (3, 288), (7, 768)] {
            let file = file(DType::Q4_0, rows, cols);
            let groups = groups(cols);
            let mut out = vec![0xaa; matrix_bytes(DType::Q4_0, Layout::Lanes, rows, cols).unwrap()];
            // In two steps, of which the first is whole tiles.
            let part = rows / 2;
            let (a, b) = file.split_at(part * cols / 32 * 18);
            pack_lanes(a, 0, rows, cols, &mut out);
            pack_lanes(b, part, rows, cols, &mut out);
            for row in 0..rows {
                for col in 0..cols {
                    let (group, lane, e) = (row * groups + col / 256, col / 32 % 8, col % 32);
                    let byte = out[group * 128 + e % 16 / 4 * 32 + lane * 4 + e % 4];
                    let found = if e < 16 { byte & 15 } else { byte >> 4 };
                    assert_eq!(found, code(&file, cols, row, col), "{rows}x{cols}: {row}, {col}");
                }
                for block in 0..groups * 8 {
                    let at = rows * groups * 128 + (row * groups * 8 + block) * 2;
                    let want = if block < cols / 32 { scale(&file, cols, row, block) } else { &[0, 0] };
                    assert_eq!(&out[at..at + 2], want);
                }
                let want = &file[row * cols / 32 * 18..][..cols / 32 * 18];
                assert_eq!(unpack_lanes_row(&out, row, rows, cols), want);
            }
        }
    }

    #[test]
    fn bands_together_are_the_matrix() {
        let kinds = [
            (DType::Q4_0, Layout::Lanes),
            (DType::Q4_0, Layout::Neurons),
            (DType::Q8_0, Layout::Neurons),
            (DType::Q8_0, Layout::Rows),
        ];
        for (dtype, layout) in kinds {
            for (rows, cols) in [(1, 32), (128, 288), (300, 64), (0, 64)] {
                let file = file(dtype, rows, cols);
                let whole = || vec![0xaa; matrix_bytes(dtype, layout, rows, cols).unwrap()];
                let (mut expected, mut found) = (whole(), whole());
                pack(dtype, layout, &file, 0, rows, cols, &mut expected);
                if layout == Layout::Rows {
                    expected.copy_from_slice(&file);
                }
                let mut bands = Band::all(dtype, layout, rows, cols, &mut found);
                assert_eq!(bands.len(), rows.div_ceil(TILE));
                // In any order.
                let parts = file.chunks(TILE * dtype.row_bytes(cols).unwrap());
                bands.iter_mut().zip(parts).rev().for_each(|(b, part)| b.pack(dtype, layout, part, cols));
                assert!(found == expected, "{dtype}, {layout:?}, {rows} x {cols}");
            }
        }
    }

    #[test]
    fn neurons_hold_every_weight_at_its_place() {
        for (rows, cols) in [(1, 32), (128, 64), (200, 96), (256, 768)] {
            let file = file(DType::Q4_0, rows, cols);
            let mut out = vec![0xaa; matrix_bytes(DType::Q4_0, Layout::Neurons, rows, cols).unwrap()];
            let tile_bytes = cols / 32 * BLOCK_Q4_0;
            pack(DType::Q4_0, Layout::Neurons, &file, 0, rows, cols, &mut out);
            for row in 0..rows.next_multiple_of(TILE) {
                for col in 0..cols {
                    let block = &out[row / TILE * tile_bytes + col / 32 * BLOCK_Q4_0..][..BLOCK_Q4_0];
                    let codes = &block[BLOCK_SCALES + col % 32 * LINE..][..LINE];
                    let p = (0..64).find(|&p| low_output(p) == row % 64).unwrap();
                    let found = if row % TILE < 64 { codes[p] & 15 } else { codes[p] >> 4 };
                    let inside = row < rows;
                    let want = if inside { code(&file, cols, row, col) } else { 0 };
                    assert_eq!(found, want, "{rows}x{cols}: {row}, {col}");
                    let at = 2 * (row % TILE);
                    let want = if inside { scale(&file, cols, row, col / 32) } else { &[0, 0] };
                    assert_eq!(&block[at..at + 2], want);
                }
            }
        }
    }

    #[test]
    fn neurons_of_eight_bits_hold_every_weight_at_its_place() {
        for (rows, cols) in [(1, 32), (128, 64), (200, 96)] {
            let file = file(DType::Q8_0, rows, cols);
            let mut out = vec![0xaa; matrix_bytes(DType::Q8_0, Layout::Neurons, rows, cols).unwrap()];
            // In two steps, of which the first is whole tiles.
            let (a, b) = file.split_at(file.len().min(TILE * cols / 32 * 34));
            pack(DType::Q8_0, Layout::Neurons, a, 0, rows, cols, &mut out);
            pack(DType::Q8_0, Layout::Neurons, b, TILE, rows, cols, &mut out);
            for row in 0..rows.next_multiple_of(TILE) {
                for col in 0..cols {
                    let block = row / TILE * (cols / 32) + col / 32;
                    let block = &out[block * BLOCK_Q8_0..][..BLOCK_Q8_0];
                    let p = (0..64).find(|&p| low_output(p) == row % 64).unwrap();
                    let at = BLOCK_SCALES + col % 32 * 128 + row % TILE / 64 * 64 + p;
                    let stored = (row * cols + col) / 32 * 34;
                    let (code, scale): (u8, &[u8]) = if row < rows {
                        (file[stored + 2 + col % 32], &file[stored..stored + 2])
                    } else {
                        (0, &[0, 0])
                    };
                    assert_eq!(block[at].wrapping_sub(128), code, "{rows}x{cols}: {row}, {col}");
                    assert_eq!(&block[2 * (row % TILE)..][..2], scale);
                }
            }
        }
    }
}
