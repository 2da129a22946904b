//! Anonymous memory for weights: one mapping, huge pages requested, cut into disjoint owned slabs.
//!
//! Weights never live in a file mapping: a truncated file would kill the process (SIGBUS), and 4 KiB
//! pages cost TLB misses on every row.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::{Error, Result};

/// Every slab starts on such a boundary: a cache line, and wide enough for any vector load.
pub(crate) const SLAB_ALIGN: usize = 64;

/// A mapping that hands out each of its bytes at most once.
pub(crate) struct Arena {
    map: Arc<Mapping>,
    used: usize,
}

struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Keeps the pages; its bytes are reached through slabs only.
    map: MmapMut,
}

// SAFETY: the mapping is plain memory without thread affinity; access goes through slabs, which are disjoint.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself offers no access to the bytes.
unsafe impl Sync for Mapping {}

impl Arena {
    /// Reserves `bytes` of zeroed memory. Pages are committed when first written.
    pub(crate) fn new(bytes: usize, what: &str) -> Result<Arena> {
        let refuse = || Error::Budget { what: what.to_owned(), needed: bytes as u64, available: 0 };
        let mut map = MmapMut::map_anon(bytes.max(1)).map_err(|_| refuse())?;
        // A refused hint costs speed, not correctness.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let base = NonNull::new(map.as_mut_ptr()).ok_or_else(refuse)?;
        Ok(Arena { map: Arc::new(Mapping { base, len: bytes, map }), used: 0 })
    }

    /// Bytes that a slab of `len` bytes takes from an arena.
    pub(crate) const fn footprint(len: usize) -> usize {
        len.next_multiple_of(SLAB_ALIGN)
    }

    /// Cuts the next `len` bytes off; `None` when the arena is used up.
    pub(crate) fn take(&mut self, len: usize) -> Option<Slab> {
        let end = self.used.checked_add(Self::footprint(len))?;
        if end > self.map.len {
            return None;
        }
        // SAFETY: used + len <= map.len, so the pointer stays inside the mapping.
        let base = unsafe { self.map.base.add(self.used) };
        self.used = end;
        Some(Slab { base, len, map: Arc::clone(&self.map) })
    }
}

/// Exclusive owner of a range of an [`Arena`]; keeps the mapping alive.
pub(crate) struct Slab {
    base: NonNull<u8>,
    len: usize,
    map: Arc<Mapping>,
}

// SAFETY: a slab owns its bytes alone (ranges are handed out once), like a Box<[u8]>.
unsafe impl Send for Slab {}
// SAFETY: shared access only reads; writing needs `&mut Slab`.
unsafe impl Sync for Slab {}

impl Slab {
    /// Gives the memory back to the system; what was in it is zero from now on, and takes memory again once it is
    /// written.
    pub(crate) fn discard(&mut self) {
        #[cfg(target_os = "linux")]
        {
            // Whole pages only: those at the ends are shared with the neighbours.
            let page = rustix::param::page_size();
            let from = (self.base.as_ptr() as usize).wrapping_sub(self.map.base.as_ptr() as usize);
            let (first, end) = (from.next_multiple_of(page), (from + self.len) / page * page);
            if first < end {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                // SAFETY: the pages belong to this slab alone, which is borrowed mutably; zeros are as good as any bytes.
                let _ = unsafe { self.map.map.unchecked_advise_range(advice, first, end - first) };
            }
        }
        // Where the system keeps them, nothing is lost but memory.
    }
}

impl Deref for Slab {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the live mapping, initialised (anonymous pages are zero) and owned.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

/// A type of which any bytes are a value.
///
/// # Safety
/// Every bit pattern must be a valid value, and there must be no padding.
pub(crate) unsafe trait AnyBits: Copy {}

// SAFETY: a number, any pattern of which is valid.
unsafe impl AnyBits for u16 {}
// SAFETY: as above.
unsafe impl AnyBits for f32 {}

/// A slab as a slice of `T`, zeros at first.
pub(crate) struct SlabOf<T> {
    slab: Slab,
    _elements: PhantomData<T>,
}

impl<T: AnyBits> SlabOf<T> {
    pub(crate) fn new(slab: Slab) -> SlabOf<T> {
        const { assert!(align_of::<T>() <= SLAB_ALIGN && size_of::<T>() > 0) };
        SlabOf { slab, _elements: PhantomData }
    }
}

/// The bytes of some elements.
pub(crate) fn bytes_of<T: AnyBits>(elements: &[T]) -> &[u8] {
    // SAFETY: elements without padding, so that all of these bytes are initialised.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

impl<T: AnyBits> Deref for SlabOf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: slabs are aligned for `T`, which any bytes are; the length is rounded down.
        unsafe { std::slice::from_raw_parts(self.slab.as_ptr().cast(), self.slab.len / size_of::<T>()) }
    }
}

impl<T: AnyBits> DerefMut for SlabOf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(self.slab.as_mut_ptr().cast(), self.slab.len / size_of::<T>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discarding_a_slab_leaves_its_neighbours_alone() {
        let mut arena = Arena::new(Arena::footprint(10_000) * 3, "test").unwrap();
        let mut slabs: Vec<Slab> = (0..3).map(|_| arena.take(10_000).unwrap()).collect();
        slabs.iter_mut().for_each(|s| s.fill(7));
        slabs[1].discard();
        assert!(slabs[0].iter().chain(slabs[2].iter()).all(|&b| b == 7));
        assert!(cfg!(not(target_os = "linux")) || slabs[1].contains(&0));
        slabs[1].fill(8);
        assert!(slabs[1].iter().all(|&b| b == 8));
    }

    #[test]
    fn slabs_are_disjoint_aligned_and_bounded() {
        let mut arena = Arena::new(Arena::footprint(100) * 3, "test").unwrap();
        let mut slabs: Vec<Slab> = (0..3).map(|_| arena.take(100).unwrap()).collect();
        assert!(arena.take(1).is_none());
        for (i, s) in slabs.iter_mut().enumerate() {
            assert_eq!(s.as_ptr() as usize % SLAB_ALIGN, 0);
            assert!(s.iter().all(|&b| b == 0));
            s.fill(i as u8 + 1);
        }
        drop(arena);
        for (i, s) in slabs.iter().enumerate() {
            assert!(s.len() == 100 && s.iter().all(|&b| b == i as u8 + 1));
        }
    }
}
