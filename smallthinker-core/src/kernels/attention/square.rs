//! Codes of keys and values of 8 or 4 bits, in the order in which products of integers take them.

use super::LANES;
use crate::arena::AnyBits;

/// 8-bit codes of 32 dimensions of 32 positions, with one scale for the 32 codes of each position. A product of
/// integers adds up neighbours: of keys four dimensions, of values two positions.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Square {
    /// Per position, in half precision, not negative.
    pub scales: [u16; LANES],
    /// Of keys `[dimension / 4][position][dimension % 4]`, of values `[position / 2][dimension][position % 2]`.
    pub codes: [i8; LANES * LANES],
}

/// As [`Square`], with codes of 4 bits: the odd numbers from -15 to 15, so that there are 16 of them and as many of each
/// sign. A code `c` is held as `(c + 15) / 2`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Square4 {
    /// Per position, in half precision, not negative.
    pub scales: [u16; LANES],
    /// Of keys in the order of a square's, of values `[position / 4][dimension][position % 4]`. Cut into parts of [`HALF_BYTES`]: the
    /// lower halves of so many bytes are one part, the upper halves the next.
    pub codes: [u8; LANES * LANES / 2],
}

/// See [`Square4`]: two registers of the widest kind.
pub const HALF_BYTES: usize = 128;

// SAFETY: numbers only, and no padding, as the sizes say.
unsafe impl AnyBits for Square {}
const _: () = assert!(size_of::<Square>() == 2 * LANES + LANES * LANES);
// SAFETY: as above.
unsafe impl AnyBits for Square4 {}
const _: () = assert!(size_of::<Square4>() == 2 * LANES + LANES * LANES / 2);

impl Square {
    /// Zeros.
    pub(crate) const EMPTY: Square = Square { scales: [0; LANES], codes: [0; LANES * LANES] };
}

/// A square whose codes have places, see `key` and `value`.
pub(crate) trait Coded: Copy {
    /// A code takes `1 / 2^SHIFT` bytes.
    const SHIFT: u32;
    /// What makes a code of a key a number that is not negative, added to it.
    const OFFSET: i32;
    /// Positions whose values a product of integers adds up.
    const NEIGHBOURS: usize;

    /// Where the code of a key is.
    fn key(position: usize, dimension: usize) -> usize {
        (dimension / 4 * LANES + position) * 4 + dimension % 4
    }

    /// Where the code of a value is.
    fn value(position: usize, dimension: usize) -> usize {
        (position / Self::NEIGHBOURS * LANES + dimension) * Self::NEIGHBOURS + position % Self::NEIGHBOURS
    }

    fn scales(&self) -> &[u16; LANES];
    fn scales_mut(&mut self) -> &mut [u16; LANES];
    fn code(&self, place: usize) -> i8;
    fn set_code(&mut self, place: usize, code: i8);
}

impl Coded for Square {
    const SHIFT: u32 = 0;
    const OFFSET: i32 = 128;
    const NEIGHBOURS: usize = 2;

    #[inline]
    fn scales(&self) -> &[u16; LANES] {
        &self.scales
    }

    fn scales_mut(&mut self) -> &mut [u16; LANES] {
        &mut self.scales
    }

    fn code(&self, place: usize) -> i8 {
        self.codes[place]
    }

    fn set_code(&mut self, place: usize, code: i8) {
        self.codes[place] = code;
    }
}

impl Coded for Square4 {
    const SHIFT: u32 = 1;
    const OFFSET: i32 = 15;
    const NEIGHBOURS: usize = 4;

    #[inline]
    fn scales(&self) -> &[u16; LANES] {
        &self.scales
    }

    fn scales_mut(&mut self) -> &mut [u16; LANES] {
        &mut self.scales
    }

    fn code(&self, place: usize) -> i8 {
        let (byte, upper) = half_of(place);
        let held = if upper { self.codes[byte] >> 4 } else { self.codes[byte] & 15 };
        held as i8 * 2 - 15
    }

    fn set_code(&mut self, place: usize, code: i8) {
        let (byte, upper) = half_of(place);
        let held = (code.clamp(-15, 15) + 15) as u8 / 2;
        let byte = &mut self.codes[byte];
        *byte = if upper { *byte & 0x0f | held << 4 } else { *byte & 0xf0 | held };
    }
}

/// The byte that holds the code of 4 bits at this place, and whether its upper half does.
fn half_of(place: usize) -> (usize, bool) {
    let (part, at) = (place / HALF_BYTES, place % HALF_BYTES);
    (part / 2 * HALF_BYTES + at, part % 2 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every place of its own, and every code of 4 bits.
    #[test]
    fn codes_of_four_bits_do_not_touch_each_other() {
        let code = |place: usize| (place * 7 % 16) as i8 * 2 - 15;
        let mut square = Square4 { scales: [0; LANES], codes: [0; LANES * LANES / 2] };
        for place in (0..LANES * LANES).rev() {
            square.set_code(place, code(place));
        }
        square.set_code(300, 15);
        square.set_code(300, 127);
        assert_eq!(square.code(300), 15, "the largest there is");
        square.set_code(300, -15);
        for place in 0..LANES * LANES {
            assert_eq!(square.code(place), if place == 300 { -15 } else { code(place) }, "{place}");
        }
    }

    #[test]
    fn keys_and_values_have_places_of_their_own() {
        for place in [Square::key, Square::value, Square4::key, Square4::value] {
            let all = (0..LANES).flat_map(|p| (0..LANES).map(move |d| place(p, d)));
            let mut all: Vec<usize> = all.collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..LANES * LANES));
        }
    }
}
