//! A page of the KV cache: one block of positions of one layer, in the lines that attention reads.

use crate::arena::{Slab, SlabOf};
use crate::budget::Lease;
use crate::forward::kv_cache::{KvType, PAGE};
use crate::kernels::Kernels;
use crate::kernels::attention::{LANES, Line, Lines, key_lines, value_lines};
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
}

/// One kv head's share of a page.
pub(crate) struct HeadMut<'a> {
    head_dim: usize,
    lines: LinesMut<'a>,
}

enum LinesMut<'a> {
    F16(&'a mut [Line<u16>]),
    F32(&'a mut [Line<f32>]),
}

const fn head_lines(head_dim: usize) -> usize {
    key_lines(head_dim) + value_lines(head_dim)
}

impl Page {
    /// Bytes that the elements of a page take.
    pub(crate) fn bytes(kind: KvType, n_heads: usize, head_dim: usize) -> u64 {
        (n_heads * head_lines(head_dim) * LANES * kind.bytes()) as u64
    }

    /// A page of zeros in `slab`, which has the bytes that [`bytes`](Page::bytes) says.
    pub(crate) fn new(kind: KvType, head_dim: usize, slab: Slab, lease: Lease) -> Page {
        let elements = match kind {
            KvType::F16 => Elements::F16(SlabOf::new(slab)),
            KvType::F32 => Elements::F32(SlabOf::new(slab)),
        };
        Page { head_dim, elements, _lease: lease }
    }

    /// Takes the contents of a page of the same kind.
    pub(crate) fn copy_from(&mut self, other: &Page) {
        match (&mut self.elements, &other.elements) {
            (Elements::F16(to), Elements::F16(from)) if to.len() == from.len() => to.copy_from_slice(from),
            (Elements::F32(to), Elements::F32(from)) if to.len() == from.len() => to.copy_from_slice(from),
            _ => {} // not within one cache
        }
    }

    /// Keys and values of one head, as attention takes them.
    pub(crate) fn head(&self, head: usize) -> (Lines<'_>, Lines<'_>) {
        let (len, keys) = (head_lines(self.head_dim), key_lines(self.head_dim));
        let lines = head * len..(head + 1) * len;
        match &self.elements {
            Elements::F16(all) => {
                let (keys, values) = all[lines].split_at(keys);
                (Lines::F16(keys), Lines::F16(values))
            }
            Elements::F32(all) => {
                let (keys, values) = all[lines].split_at(keys);
                (Lines::F32(keys), Lines::F32(values))
            }
        }
    }

    /// All heads, to be written.
    pub(crate) fn heads_mut(&mut self) -> Vec<HeadMut<'_>> {
        let (len, head_dim) = (head_lines(self.head_dim), self.head_dim);
        let head = |lines| HeadMut { head_dim, lines };
        match &mut self.elements {
            Elements::F16(all) => all.chunks_exact_mut(len).map(LinesMut::F16).map(head).collect(),
            Elements::F32(all) => all.chunks_exact_mut(len).map(LinesMut::F32).map(head).collect(),
        }
    }

    /// Takes one position (relative to the page) from the bytes of a session file.
    pub(crate) fn set_bytes(&mut self, head: usize, part: Part, position: usize, bytes: &[u8]) {
        let dim = self.head_dim;
        let lines = head * head_lines(dim)..(head + 1) * head_lines(dim);
        match &mut self.elements {
            Elements::F16(all) => {
                let row: Vec<u16> = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
                put(&mut all[lines], part, dim, position, 0, &row);
            }
            Elements::F32(all) => {
                let row: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                put(&mut all[lines], part, dim, position, 0, &row);
            }
        }
    }

    /// Appends the little-endian bytes of one position (relative to the page) for a session file.
    pub(crate) fn append_bytes(&self, head: usize, part: Part, position: usize, out: &mut Vec<u8>) {
        let lines = self.head(head);
        let lines = match part {
            Part::Keys => lines.0,
            Part::Values => lines.1,
        };
        for (line, lane) in (0..self.head_dim).map(|d| part.place(self.head_dim, position, d)) {
            match lines {
                Lines::F16(lines) => out.extend(lines[line].0[lane].to_le_bytes()),
                Lines::F32(lines) => out.extend(lines[line].0[lane].to_le_bytes()),
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

    /// Where this part of a head begins.
    fn start(self, head_dim: usize) -> usize {
        match self {
            Part::Keys => 0,
            Part::Values => key_lines(head_dim),
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
                    LinesMut::F32(lines) => put(lines, part, self.head_dim, position, i * LANES, x),
                }
            }
        }
        Ok(())
    }
}

/// Puts elements `dim..` of one position where they belong.
fn put<E: Copy>(lines: &mut [Line<E>], part: Part, head_dim: usize, position: usize, dim: usize, row: &[E]) {
    let lines = &mut lines[part.start(head_dim)..];
    for (x, d) in row.iter().zip(dim..) {
        let (line, lane) = part.place(head_dim, position, d);
        lines[line].0[lane] = *x;
    }
}
