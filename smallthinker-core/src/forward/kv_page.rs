//! A page of the KV cache: one block of positions of one layer, in the lines that attention reads.

use crate::arena::{Slab, SlabOf};
use crate::budget::Lease;
use crate::forward::kv_cache::{KvType, PAGE};
use crate::kernels::Kernels;
use crate::kernels::attention::{LANES, Line, Lines, Square, key_lines, squares, value_lines};
use crate::{Error, Result};

/// Keys or values.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Keys,
    Values,
}

/// Keys and values of [`PAGE`] positions.
pub(crate) struct Page {
    head_dim: usize,
    elements: Elements,
    _lease: Lease,
}

/// Per kv head the keys, then the values.
enum Elements {
    F16(SlabOf<Line<u16>>),
    F32(SlabOf<Line<f32>>),
    Q8(SlabOf<Square>),
}

/// One kv head's share of a page.
pub(crate) struct HeadMut<'a> {
    head_dim: usize,
    lines: LinesMut<'a>,
}

enum LinesMut<'a> {
    F16(&'a mut [Line<u16>]),
    F32(&'a mut [Line<f32>]),
    Q8(&'a mut [Square]),
}

const fn head_lines(head_dim: usize) -> usize {
    key_lines(head_dim) + value_lines(head_dim)
}

impl Page {
    /// Bytes that the elements of a page take.
    pub(crate) fn bytes(kind: KvType, n_heads: usize, head_dim: usize) -> u64 {
        let per_head = match kind {
            KvType::F16 => head_lines(head_dim) * size_of::<Line<u16>>(),
            KvType::F32 => head_lines(head_dim) * size_of::<Line<f32>>(),
            KvType::Q8_0 => 2 * squares(head_dim) * size_of::<Square>(),
        };
        n_heads as u64 * per_head as u64
    }

    /// A page of zeros in `slab`, which has the bytes that [`bytes`](Page::bytes) says.
    pub(crate) fn new(kind: KvType, head_dim: usize, slab: Slab, lease: Lease) -> Page {
        let elements = match kind {
            KvType::F16 => Elements::F16(SlabOf::new(slab)),
            KvType::F32 => Elements::F32(SlabOf::new(slab)),
            KvType::Q8_0 => Elements::Q8(SlabOf::new(slab)),
        };
        Page { head_dim, elements, _lease: lease }
    }

    /// Takes the contents of a page of the same cache or of a fork.
    pub(crate) fn copy_from(&mut self, other: &Page) {
        match (&mut self.elements, &other.elements) {
            (Elements::F16(to), Elements::F16(from)) if to.len() == from.len() => to.copy_from_slice(from),
            (Elements::F32(to), Elements::F32(from)) if to.len() == from.len() => to.copy_from_slice(from),
            (Elements::Q8(to), Elements::Q8(from)) if to.len() == from.len() => to.copy_from_slice(from),
            _ => {} // not within one cache
        }
    }

    /// Keys and values of one head, as attention takes them.
    pub(crate) fn head(&self, head: usize) -> (Lines<'_>, Lines<'_>) {
        fn cut<T>(all: &[T], head: usize, keys: usize, len: usize) -> (&[T], &[T]) {
            all[head * len..(head + 1) * len].split_at(keys)
        }
        let (len, keys) = (head_lines(self.head_dim), key_lines(self.head_dim));
        match &self.elements {
            Elements::F16(all) => {
                let (keys, values) = cut(all, head, keys, len);
                (Lines::F16(keys), Lines::F16(values))
            }
            Elements::F32(all) => {
                let (keys, values) = cut(all, head, keys, len);
                (Lines::F32(keys), Lines::F32(values))
            }
            Elements::Q8(all) => {
                let (keys, values) = cut(all, head, squares(self.head_dim), 2 * squares(self.head_dim));
                (Lines::Q8(keys), Lines::Q8(values))
            }
        }
    }

    /// All heads, to be written.
    pub(crate) fn heads_mut(&mut self) -> impl Iterator<Item = HeadMut<'_>> {
        let head_dim = self.head_dim;
        let heads: Vec<LinesMut<'_>> = match &mut self.elements {
            Elements::F16(all) => all.chunks_exact_mut(head_lines(head_dim)).map(LinesMut::F16).collect(),
            Elements::F32(all) => all.chunks_exact_mut(head_lines(head_dim)).map(LinesMut::F32).collect(),
            Elements::Q8(all) => all.chunks_exact_mut(2 * squares(head_dim)).map(LinesMut::Q8).collect(),
        };
        heads.into_iter().map(move |lines| HeadMut { head_dim, lines })
    }

    /// Appends the bytes of one position (relative to the page) for a session file: little-endian elements, or
    /// per 32 of them the scale and the codes.
    pub(crate) fn append_bytes(&self, head: usize, part: Part, position: usize, out: &mut Vec<u8>) {
        let lines = self.head(head);
        let lines = match part {
            Part::Keys => lines.0,
            Part::Values => lines.1,
        };
        let places = (0..self.head_dim).map(|d| part.place(self.head_dim, position, d));
        match lines {
            Lines::F16(lines) => places.for_each(|(l, i)| out.extend(lines[l].0[i].to_le_bytes())),
            Lines::F32(lines) => places.for_each(|(l, i)| out.extend(lines[l].0[i].to_le_bytes())),
            Lines::Q8(squares) => {
                for chunk in 0..self.head_dim.div_ceil(LANES) {
                    let square = &squares[part.square(self.head_dim, position, chunk)];
                    out.extend(square.scales[position % LANES].to_le_bytes());
                    (0..LANES).for_each(|d| out.push(part.code(square, position, d) as u8));
                }
            }
        }
    }

    /// Takes one position of one head from such bytes.
    pub(crate) fn set_bytes(&mut self, head: usize, part: Part, position: usize, bytes: &[u8]) {
        let Some(mut head) = self.heads_mut().nth(head) else { return };
        let dim = head.head_dim;
        match &mut head.lines {
            LinesMut::F16(lines) => {
                let row = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
                put(lines, part, dim, position, 0, row);
            }
            LinesMut::F32(lines) => {
                let row = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
                put(lines, part, dim, position, 0, row);
            }
            LinesMut::Q8(squares) => {
                for (chunk, block) in bytes.as_chunks::<{ KvType::Q8_BLOCK }>().0.iter().enumerate() {
                    let [low, high, codes @ ..] = *block;
                    // Whatever a file says, scales are not negative.
                    let scale = u16::from_le_bytes([low, high]) & 0x7fff;
                    put_codes(squares, part, dim, position, chunk, scale, codes.map(|c| c as i8));
                }
            }
        }
    }
}

impl Part {
    /// Line, from the beginning of this part, and lane of one element.
    fn place(self, head_dim: usize, position: usize, dim: usize) -> (usize, usize) {
        match self {
            Part::Keys => (position / LANES * head_dim + dim, position % LANES),
            Part::Values => (dim / LANES * PAGE + position, dim % LANES),
        }
    }

    /// Square, from the beginning of this part, of 32 dimensions of one position.
    fn square(self, head_dim: usize, position: usize, chunk: usize) -> usize {
        match self {
            Part::Keys => position / LANES * head_dim.div_ceil(LANES) + chunk,
            Part::Values => chunk * (PAGE / LANES) + position / LANES,
        }
    }

    /// The code of one of these dimensions.
    fn code(self, square: &Square, position: usize, dim: usize) -> i8 {
        match self {
            Part::Keys => square.codes[Square::key(position % LANES, dim)],
            Part::Values => square.codes[Square::value(position % LANES, dim)],
        }
    }
}

impl HeadMut<'_> {
    /// Writes key and value of one position (relative to the page).
    pub(crate) fn write(
        &mut self,
        kernels: &Kernels,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) -> Result<()> {
        for (part, row) in [(Part::Keys, key), (Part::Values, value)] {
            if row.len() != self.head_dim {
                return Err(Error::Internal { message: format!("a KV row of {} elements", row.len()) });
            }
            for (i, x) in row.chunks(LANES).enumerate() {
                match &mut self.lines {
                    LinesMut::F16(lines) => {
                        let mut halves = [0; LANES];
                        let halves = &mut halves[..x.len()];
                        kernels.f32_to_f16(x, halves)?;
                        put(lines, part, self.head_dim, position, i * LANES, halves.iter().copied());
                    }
                    LinesMut::F32(lines) => {
                        put(lines, part, self.head_dim, position, i * LANES, x.iter().copied());
                    }
                    LinesMut::Q8(squares) => {
                        let (scale, codes) = quantize(x);
                        put_codes(squares, part, self.head_dim, position, i, scale, codes);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Puts elements `dim..` of one position where they belong.
fn put<E>(
    lines: &mut [Line<E>],
    part: Part,
    head_dim: usize,
    position: usize,
    dim: usize,
    row: impl Iterator<Item = E>,
) {
    let start = match part {
        Part::Keys => 0,
        Part::Values => key_lines(head_dim),
    };
    for (x, d) in row.zip(dim..) {
        let (line, lane) = part.place(head_dim, position, d);
        lines[start + line].0[lane] = x;
    }
}

/// Puts 32 codes of one position where they belong.
fn put_codes(
    all: &mut [Square],
    part: Part,
    head_dim: usize,
    position: usize,
    chunk: usize,
    scale: u16,
    codes: [i8; LANES],
) {
    let start = match part {
        Part::Keys => 0,
        Part::Values => squares(head_dim),
    };
    let square = &mut all[start + part.square(head_dim, position, chunk)];
    let at = position % LANES;
    square.scales[at] = scale;
    for (dim, code) in codes.into_iter().enumerate() {
        let place = match part {
            Part::Keys => Square::key(at, dim),
            Part::Values => Square::value(at, dim),
        };
        square.codes[place] = code;
    }
}

/// Up to 32 elements as codes of -127..=127 times a half-precision scale, rounded to nearest, ties to even.
/// If one is not finite, all become NaN.
fn quantize(x: &[f32]) -> (u16, [i8; LANES]) {
    /// Adding and subtracting this rounds a small float to an integer.
    const ROUND: f32 = 12_582_912.0;
    let largest = x.iter().fold(0, |m, v| m.max(v.abs().to_bits()));
    if largest >= f32::INFINITY.to_bits() {
        return (half::f16::NAN.to_bits(), [1; LANES]);
    }
    let scale = half::f16::from_f32_const(f32::from_bits(largest) / 127.0);
    let step = scale.to_f32_const();
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let mut codes = [0; LANES];
    for (code, v) in codes.iter_mut().zip(x) {
        // The scale was rounded, so that the largest element may lie beyond 127 of its steps.
        *code = ((v * inverse).clamp(-127.0, 127.0) + ROUND - ROUND) as i8;
    }
    (scale.to_bits(), codes)
}
