//! A page of the KV cache: one block of positions of one layer, in the lines that attention reads.

use crate::arena::{Slab, SlabOf};
use crate::budget::Lease;
use crate::forward::kv_cache::{KvType, PAGE};
use crate::forward::kv_codes::{self, Stored};
use crate::kernels::Kernels;
use crate::kernels::attention::{LANES, Line, Lines, Square, Square4, key_lines, squares, value_lines};
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
    Q4(SlabOf<Square4>),
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
    Q4(&'a mut [Square4]),
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
            KvType::Q4_0 => 2 * squares(head_dim) * size_of::<Square4>(),
        };
        n_heads as u64 * per_head as u64
    }

    /// A page of zeros in `slab`, which has the bytes that [`bytes`](Page::bytes) says.
    pub(crate) fn new(kind: KvType, head_dim: usize, slab: Slab, lease: Lease) -> Page {
        let elements = match kind {
            KvType::F16 => Elements::F16(SlabOf::new(slab)),
            KvType::F32 => Elements::F32(SlabOf::new(slab)),
            KvType::Q8_0 => Elements::Q8(SlabOf::new(slab)),
            KvType::Q4_0 => Elements::Q4(SlabOf::new(slab)),
        };
        Page { head_dim, elements, _lease: lease }
    }

    /// Takes the contents of a page of the same cache or of a fork.
    pub(crate) fn copy_from(&mut self, other: &Page) {
        match (&mut self.elements, &other.elements) {
            (Elements::F16(to), Elements::F16(from)) if to.len() == from.len() => to.copy_from_slice(from),
            (Elements::F32(to), Elements::F32(from)) if to.len() == from.len() => to.copy_from_slice(from),
            (Elements::Q8(to), Elements::Q8(from)) if to.len() == from.len() => to.copy_from_slice(from),
            (Elements::Q4(to), Elements::Q4(from)) if to.len() == from.len() => to.copy_from_slice(from),
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
            Elements::Q4(all) => {
                let (keys, values) = cut(all, head, squares(self.head_dim), 2 * squares(self.head_dim));
                (Lines::Q4(keys), Lines::Q4(values))
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
            Elements::Q4(all) => all.chunks_exact_mut(2 * squares(head_dim)).map(LinesMut::Q4).collect(),
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
            Lines::Q8(squares) => append_codes(squares, part, self.head_dim, position, out),
            Lines::Q4(squares) => append_codes(squares, part, self.head_dim, position, out),
        }
    }

    /// Takes one position of one head from such bytes.
    pub(crate) fn set_bytes(&mut self, head: usize, part: Part, position: usize, bytes: &[u8]) {
        let Some(mut head) = self.heads_mut().nth(head) else { return };
        let dim = head.head_dim;
        match &mut head.lines {
            LinesMut::F16(lines) => {
                put_bytes(lines, part, dim, position, bytes, u16::from_le_bytes);
            }
            LinesMut::F32(lines) => {
                put_bytes(lines, part, dim, position, bytes, f32::from_le_bytes);
            }
            LinesMut::Q8(squares) => set_codes(squares, part, dim, position, bytes),
            LinesMut::Q4(squares) => set_codes(squares, part, dim, position, bytes),
        }
    }
}

fn append_codes<S: Stored>(squares: &[S], part: Part, head_dim: usize, position: usize, out: &mut Vec<u8>) {
    for chunk in 0..head_dim.div_ceil(LANES) {
        S::append_bytes(&kv_codes::get(squares, part, head_dim, position, chunk), out);
    }
}

fn set_codes<S: Stored>(squares: &mut [S], part: Part, head_dim: usize, position: usize, bytes: &[u8]) {
    for (chunk, block) in S::blocks(bytes).enumerate() {
        kv_codes::put(squares, part, head_dim, position, chunk, &block);
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
                        put(lines, part, self.head_dim, position, i * LANES, halves);
                    }
                    LinesMut::F32(lines) => {
                        put(lines, part, self.head_dim, position, i * LANES, x);
                    }
                    LinesMut::Q8(squares) => {
                        kv_codes::put(squares, part, self.head_dim, position, i, &Square::quantize(x));
                    }
                    LinesMut::Q4(squares) => {
                        kv_codes::put(squares, part, self.head_dim, position, i, &Square4::quantize(x));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Puts elements `dim..` of one position where they belong: up to 32, from a multiple of that on.
fn put<E: Copy>(lines: &mut [Line<E>], part: Part, head_dim: usize, position: usize, dim: usize, row: &[E]) {
    let (line, lane) = part.place(head_dim, position, dim);
    match part {
        Part::Keys => {
            let lines = &mut lines[line..line + row.len()];
            lines.iter_mut().zip(row).for_each(|(line, x)| line.0[lane] = *x);
        }
        Part::Values => {
            lines[key_lines(head_dim) + line].0[lane..lane + row.len()].copy_from_slice(row);
        }
    }
}

/// Puts all elements of one position, `N` bytes each, where they belong.
fn put_bytes<E: Copy + Default, const N: usize>(
    lines: &mut [Line<E>],
    part: Part,
    head_dim: usize,
    position: usize,
    bytes: &[u8],
    element: fn([u8; N]) -> E,
) {
    for (i, bytes) in bytes.as_chunks::<N>().0.chunks(LANES).enumerate() {
        let mut row = [E::default(); LANES];
        row.iter_mut().zip(bytes).for_each(|(x, bytes)| *x = element(*bytes));
        put(lines, part, head_dim, position, i * LANES, &row[..bytes.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;
    use crate::budget::Budget;

    fn page(kind: KvType, head_dim: usize) -> Page {
        let bytes = Page::bytes(kind, 2, head_dim) as usize;
        let slab = Arena::new(Arena::footprint(bytes), "a page").unwrap().take(bytes).unwrap();
        Page::new(kind, head_dim, slab, Budget::new(u64::MAX).lease("a page", 0).unwrap())
    }

    /// Of a head size that is no multiple of 32, too: every element is where attention looks for it, and bytes of a session file
    /// bring it back there.
    #[test]
    fn elements_are_written_to_their_places_and_restored_from_bytes() {
        for head_dim in [64, 80] {
            let row = |head: usize, part: usize, position: usize| -> Vec<f32> {
                (0..head_dim).map(|d| (d + 100 * (part + 2 * head) + position) as f32 / 2.0).collect()
            };
            for kind in [KvType::F16, KvType::F32] {
                let (mut written, mut restored) = (page(kind, head_dim), page(kind, head_dim));
                for position in [0, 31, 32, PAGE - 1] {
                    for (head, mut lines) in written.heads_mut().enumerate() {
                        let [key, value] = [row(head, 0, position), row(head, 1, position)];
                        lines.write(Kernels::detect(), position, &key, &value).unwrap();
                    }
                    for (head, (part, side)) in
                        (0..2).flat_map(|head| [(head, (0, Part::Keys)), (head, (1, Part::Values))])
                    {
                        let lines = written.head(head);
                        for (d, want) in row(head, part, position).into_iter().enumerate() {
                            let (line, lane) = side.place(head_dim, position, d);
                            let got = match [lines.0, lines.1][part] {
                                Lines::F16(lines) => half::f16::from_bits(lines[line].0[lane]).to_f32(),
                                Lines::F32(lines) => lines[line].0[lane],
                                _ => f32::NAN,
                            };
                            assert_eq!(got, want, "{kind:?} {head_dim}: position {position}, dimension {d}");
                        }
                        let mut bytes = [Vec::new(), Vec::new()];
                        written.append_bytes(head, side, position, &mut bytes[0]);
                        restored.set_bytes(head, side, position, &bytes[0]);
                        restored.append_bytes(head, side, position, &mut bytes[1]);
                        assert_eq!(bytes[0].len(), kind.row_bytes(head_dim));
                        assert_eq!(bytes[0], bytes[1], "{kind:?} {head_dim}: position {position}");
                    }
                }
            }
        }
    }
}
