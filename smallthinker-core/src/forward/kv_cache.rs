//! Keys and values of one session, in pages that are allocated as the text grows.
//!
//! A page holds [`PAGE`] positions of one layer. Global layers keep all pages; window layers reuse a ring of
//! them. Pages are shared between forked sessions until one of them writes.

use std::sync::{Arc, Mutex, PoisonError};

use crate::arena::Arena;
use crate::budget::{Budget, Lease};
use crate::forward::kv_page::{HeadMut, Page};
use crate::kernels::Kernels;
use crate::kernels::attention::BLOCK;
use crate::model::hparams::Hparams;
use crate::pool::Team;
use crate::{Error, Result};

/// Positions per page: one block of attention.
pub(crate) const PAGE: usize = BLOCK;

/// Element type of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision, the default.
    #[default]
    F16,
    /// Single precision.
    F32,
    /// 8-bit codes, with a half-precision scale for 32 of them: about half the memory, and the memory traffic, of
    /// half precision. Keys, values and the queries that meet them are rounded to one part in 254 of the largest of 32.
    Q8_0,
    /// 4-bit codes, with a half-precision scale for 32 of them: a little more than a quarter of the memory of half precision. Before
    /// they are rounded, queries, keys and values are rotated (by a Walsh-Hadamard transform), so that a few large elements
    /// don't make all others coarse. Queries are rounded as with `Q8_0`, keys and values to one part in 16 of the largest of 32.
    Q4_0,
}

impl KvType {
    /// Bytes of 32 codes with their scale.
    pub(crate) const Q8_BLOCK: usize = 34;
    pub(crate) const Q4_BLOCK: usize = 18;

    /// Bytes of the keys or of the values of one head at one position, without padding for speed.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            KvType::F16 => 2 * head_dim,
            KvType::F32 => 4 * head_dim,
            KvType::Q8_0 => head_dim.div_ceil(32) * Self::Q8_BLOCK,
            KvType::Q4_0 => head_dim.div_ceil(32) * Self::Q4_BLOCK,
        }
    }

    /// Whether queries, keys and values are rotated before they are rounded. Session files hold them like that.
    pub(crate) const fn rotates(self) -> bool {
        matches!(self, KvType::Q4_0)
    }

    /// What session files say of it: bytes of an element, scales not counted; 3 for half a byte.
    pub(crate) const fn code(self) -> u32 {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
            KvType::Q8_0 => 1,
            KvType::Q4_0 => 3,
        }
    }
}

/// One layer's pages.
#[derive(Clone)]
pub(crate) struct LayerKv {
    pages: Vec<Arc<Page>>,
    /// Pages in the ring; `None` keeps all.
    ring: Option<usize>,
}

impl LayerKv {
    /// The page that holds `position`, which must have been written.
    pub(crate) fn page(&self, position: usize) -> &Page {
        &self.pages[self.page_index(position)]
    }

    fn is_global(&self) -> bool {
        self.ring.is_none()
    }

    fn page_index(&self, position: usize) -> usize {
        let n = position / PAGE;
        self.ring.map_or(n, |ring| n % ring)
    }
}

/// Keys and values of a chunk, as they come out of the projections.
pub(crate) struct NewKv<'a> {
    /// `[tokens][stride]`.
    pub(crate) rows: &'a [f32],
    pub(crate) stride: usize,
    /// Where in a row the keys of all heads begin.
    pub(crate) keys: usize,
    /// Where the values begin.
    pub(crate) values: usize,
}

/// Keys and values of all layers for positions `0..len`.
#[derive(Clone)]
pub(crate) struct KvCache {
    pub(crate) layers: Vec<LayerKv>,
    len: usize,
    /// One past the highest position that may have been written since the cache was empty.
    high: usize,
    /// Length that was restored from a file: window layers got only what that position sees.
    restored: usize,
    kind: KvType,
    n_kv_heads: usize,
    head_dim: usize,
    windows: Vec<Option<usize>>,
    budget: Arc<Budget>,
}

impl KvCache {
    /// An empty cache. A chunk of up to `max_chunk` positions can be written and be taken back without
    /// harming the window of the position before it.
    pub(crate) fn new(h: &Hparams, kind: KvType, max_chunk: usize, budget: Arc<Budget>) -> KvCache {
        let windows: Vec<Option<usize>> = h.attention.iter().map(|a| a.window).collect();
        let ring = |window: usize| (window + max_chunk).div_ceil(PAGE) + 1;
        let layers = windows.iter().map(|w| LayerKv { pages: Vec::new(), ring: w.map(ring) }).collect();
        KvCache {
            layers,
            len: 0,
            high: 0,
            restored: 0,
            kind,
            n_kv_heads: h.n_kv_heads,
            head_dim: h.head_dim,
            windows,
            budget,
        }
    }

    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn kind(&self) -> KvType {
        self.kind
    }

    /// Bytes of the keys and values of one layer at `positions` positions.
    pub(crate) fn bytes_at(&self, positions: usize) -> u64 {
        Page::bytes(self.kind, self.n_kv_heads, self.head_dim) * positions as u64 / PAGE as u64
    }

    /// Bytes of one page, keys and values.
    pub(crate) fn page_bytes(h: &Hparams, kind: KvType) -> u64 {
        Page::bytes(kind, h.n_kv_heads, h.head_dim)
    }

    /// Makes room for positions `len..len + n` in every layer. On failure nothing that is held changes.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<()> {
        for index in self.len / PAGE..(self.len + n).div_ceil(PAGE) {
            // Apart: rewinding gives back pages of the global layers only.
            self.reserve_page(index, LayerKv::is_global)?;
            self.reserve_page(index, |l| !l.is_global())?;
        }
        self.high = self.high.max(self.len + n);
        Ok(())
    }

    /// Gives the chosen layers a page `index` that is theirs alone, all in one piece of memory, as single pages
    /// would be too small for huge pages of the system.
    fn reserve_page(&mut self, index: usize, chosen: impl Fn(&LayerKv) -> bool) -> Result<()> {
        let bytes = Page::bytes(self.kind, self.n_kv_heads, self.head_dim);
        let lacks = |l: &mut LayerKv| {
            let at = l.page_index(index * PAGE);
            // A page shared with a fork is copied before this session writes.
            chosen(l) && l.pages.get_mut(at).is_none_or(|page| Arc::get_mut(page).is_none())
        };
        let mut layers: Vec<&mut LayerKv> =
            self.layers.iter_mut().filter_map(|l| lacks(l).then_some(l)).collect();
        if layers.is_empty() {
            return Ok(());
        }
        let leases: Result<Vec<Lease>> =
            layers.iter().map(|_| self.budget.lease("KV cache", bytes)).collect();
        let leases = leases?;
        let mut arena = Arena::new(layers.len() * Arena::footprint(bytes as usize), "KV cache")?;
        for (l, lease) in layers.iter_mut().zip(leases) {
            let slab = arena.take(bytes as usize);
            let slab = slab.ok_or_else(|| Error::Internal { message: "KV pages do not fit".into() })?;
            let mut page = Page::new(self.kind, self.head_dim, slab, lease);
            let at = l.page_index(index * PAGE);
            if let Some(shared) = l.pages.get_mut(at) {
                page.copy_from(shared);
                *shared = Arc::new(page);
            } else {
                l.pages.push(Arc::new(page));
            }
        }
        Ok(())
    }

    /// Writes a chunk's keys and values of one layer, at the reserved positions from `len` on.
    pub(crate) fn write(
        &mut self,
        team: &Team<'_>,
        kernels: &Kernels,
        layer: usize,
        new: &NewKv<'_>,
    ) -> Result<()> {
        let (start, head_dim) = (self.len, self.head_dim);
        let end = start + new.rows.len() / new.stride.max(1);
        let not_reserved = || Error::Internal { message: "KV pages were not reserved".into() };
        if end - start == 1 {
            // Not worth waking anybody.
            let page = self.page_mut(layer, start).ok_or_else(not_reserved)?;
            return page.heads_mut().enumerate().try_for_each(|(head, mut lines)| {
                let of = |at: usize| &new.rows[at + head * head_dim..][..head_dim];
                lines.write(kernels, start % PAGE, of(new.keys), of(new.values))
            });
        }
        let l = &mut self.layers[layer];
        // Where each touched page lies; no two in the same place, as a ring is longer than a chunk.
        let mut firsts: Vec<Option<usize>> = vec![None; l.pages.len()];
        for page in start / PAGE..end.div_ceil(PAGE) {
            if let Some(first) = firsts.get_mut(l.page_index(page * PAGE)) {
                *first = Some(page * PAGE);
            }
        }
        let mut parts: Vec<Mutex<(usize, usize, HeadMut<'_>)>> = Vec::new();
        for (page, first) in l.pages.iter_mut().zip(firsts) {
            if let (Some(first), Some(page)) = (first, Arc::get_mut(page)) {
                let heads = page.heads_mut().enumerate();
                parts.extend(heads.map(|(head, lines)| Mutex::new((first, head, lines))));
            }
        }
        let pages = end.div_ceil(PAGE) - start / PAGE;
        if parts.len() != pages * self.n_kv_heads {
            return Err(not_reserved());
        }
        team.run(parts.len(), &|i| {
            // Each part has one task: nobody waits here.
            let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (first, head, lines) = &mut *part;
            for position in start.max(*first)..end.min(*first + PAGE) {
                let row = &new.rows[(position - start) * new.stride..][..new.stride];
                let of = |at: usize| &row[at + *head * head_dim..][..head_dim];
                lines.write(kernels, position - *first, of(new.keys), of(new.values))?;
            }
            Ok(())
        })
    }

    /// Notes that all layers were written for the next `n` positions.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Goes back to `len` positions and gives back the pages behind them. `false`: a window layer no longer
    /// holds what position `len` sees; then the cache is empty and the text must be evaluated again.
    pub(crate) fn truncate(&mut self, len: usize) -> bool {
        let len = len.min(self.len);
        let intact = self.layers.iter().zip(&self.windows).all(|(l, window)| match (l.ring, window) {
            (Some(ring), Some(window)) => {
                // The ring's oldest page that is still whole; and nothing before the restored window.
                let in_ring = (self.high.div_ceil(PAGE)).saturating_sub(ring) * PAGE;
                let oldest = in_ring.max(self.restored.saturating_sub(*window));
                (len + 1).saturating_sub(*window) >= oldest
            }
            _ => true,
        });
        self.len = if intact { len } else { 0 };
        if self.len == 0 {
            (self.high, self.restored) = (0, 0);
        }
        for l in &mut self.layers {
            if l.ring.is_none() || self.len == 0 {
                l.pages.truncate(self.len.div_ceil(PAGE));
            }
        }
        intact
    }

    /// First position that a session file must hold for this layer.
    pub(crate) fn oldest_needed(&self, layer: usize) -> usize {
        self.windows[layer].map_or(0, |window| self.len.saturating_sub(window))
    }

    /// Makes an empty cache hold `len` positions whose contents the caller fills in.
    pub(crate) fn restore(&mut self, len: usize) -> Result<()> {
        self.truncate(0);
        self.reserve(len)?;
        self.advance(len);
        self.restored = len;
        Ok(())
    }

    /// Elements of one position of one kv head.
    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub(crate) fn n_kv_heads(&self) -> usize {
        self.n_kv_heads
    }

    /// The page to write `position` into, after `reserve`.
    pub(crate) fn page_mut(&mut self, layer: usize, position: usize) -> Option<&mut Page> {
        let l = &mut self.layers[layer];
        let at = l.page_index(position);
        l.pages.get_mut(at).and_then(Arc::get_mut)
    }
}
