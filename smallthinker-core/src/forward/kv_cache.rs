//! Keys and values of one session, in pages that are allocated as the text grows.
//!
//! A page holds [`PAGE`] positions of one layer. Global layers keep all pages; window layers reuse a ring of
//! them. Pages are shared between forked sessions until one of them writes.

use std::sync::Arc;

use crate::budget::{Budget, Lease};
use crate::kernels::Kernels;
use crate::model::hparams::Hparams;
use crate::{Error, Result};

/// Positions per page.
pub(crate) const PAGE: usize = 256;

/// Element type of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision, the default.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl KvType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
        }
    }
}

/// Elements of a page, `[kv head][PAGE][head_dim]`.
#[derive(Clone)]
pub(crate) enum Elements {
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl Elements {
    fn new(kind: KvType, len: usize) -> Elements {
        match kind {
            KvType::F16 => Elements::F16(vec![0; len]),
            KvType::F32 => Elements::F32(vec![0.0; len]),
        }
    }

    fn write(&mut self, kernels: &Kernels, at: usize, values: &[f32]) -> Result<()> {
        match self {
            Elements::F16(e) => kernels.f32_to_f16(values, &mut e[at..at + values.len()]),
            Elements::F32(e) => {
                e[at..at + values.len()].copy_from_slice(values);
                Ok(())
            }
        }
    }

    /// Little-endian bytes of elements `at..at + len`, for a session file.
    pub(crate) fn append_bytes(&self, at: usize, len: usize, out: &mut Vec<u8>) {
        match self {
            Elements::F16(e) => e[at..at + len].iter().for_each(|x| out.extend(x.to_le_bytes())),
            Elements::F32(e) => e[at..at + len].iter().for_each(|x| out.extend(x.to_le_bytes())),
        }
    }

    /// Takes elements `at..` from such bytes.
    pub(crate) fn set_bytes(&mut self, at: usize, bytes: &[u8]) {
        match self {
            Elements::F16(e) => {
                let values = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
                e[at..].iter_mut().zip(values).for_each(|(e, v)| *e = v);
            }
            Elements::F32(e) => {
                let values = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
                e[at..].iter_mut().zip(values).for_each(|(e, v)| *e = v);
            }
        }
    }
}

pub(crate) struct Page {
    pub(crate) keys: Elements,
    pub(crate) values: Elements,
    _lease: Lease,
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

    fn page_index(&self, position: usize) -> usize {
        let n = position / PAGE;
        self.ring.map_or(n, |ring| n % ring)
    }
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

    /// Bytes of one page, keys and values.
    pub(crate) fn page_bytes(h: &Hparams, kind: KvType) -> u64 {
        2 * (PAGE * h.kv_dim() * kind.bytes()) as u64
    }

    /// Makes room for positions `len..len + n` in every layer. On failure nothing that is held changes.
    pub(crate) fn reserve(&mut self, n: usize) -> Result<()> {
        let page_len = PAGE * self.n_kv_heads * self.head_dim;
        for l in &mut self.layers {
            let (first, last) = (self.len / PAGE, (self.len + n).div_ceil(PAGE));
            for index in first..last {
                let at = l.ring.map_or(index, |ring| index % ring);
                if at == l.pages.len() {
                    l.pages.push(Arc::new(Page::new(self.kind, page_len, &self.budget)?));
                } else if let Some(page) = l.pages.get_mut(at)
                    && Arc::get_mut(page).is_none()
                {
                    // Shared with a fork: this session gets a copy of its own before it writes.
                    let mut own = Page::new(self.kind, page_len, &self.budget)?;
                    own.keys.clone_from(&page.keys);
                    own.values.clone_from(&page.values);
                    *page = Arc::new(own);
                }
            }
        }
        self.high = self.high.max(self.len + n);
        Ok(())
    }

    /// Writes keys and values (`[n_kv_heads * head_dim]` each) of a reserved position.
    pub(crate) fn write(
        &mut self,
        kernels: &Kernels,
        layer: usize,
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        let l = &mut self.layers[layer];
        let at = l.page_index(position);
        let page = l.pages.get_mut(at).and_then(Arc::get_mut);
        let page = page.ok_or_else(|| Error::Internal { message: "KV page was not reserved".into() })?;
        for head in 0..self.n_kv_heads {
            let from = head * self.head_dim;
            let to = (head * PAGE + position % PAGE) * self.head_dim;
            page.keys.write(kernels, to, &keys[from..from + self.head_dim])?;
            page.values.write(kernels, to, &values[from..from + self.head_dim])?;
        }
        Ok(())
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

    /// The page to restore `position` into, after `reserve`.
    pub(crate) fn page_mut(&mut self, layer: usize, position: usize) -> Option<&mut Page> {
        let l = &mut self.layers[layer];
        let at = l.page_index(position);
        l.pages.get_mut(at).and_then(Arc::get_mut)
    }
}

impl Page {
    fn new(kind: KvType, len: usize, budget: &Arc<Budget>) -> Result<Page> {
        let lease = budget.lease("KV cache", 2 * (len * kind.bytes()) as u64)?;
        Ok(Page { keys: Elements::new(kind, len), values: Elements::new(kind, len), _lease: lease })
    }
}
