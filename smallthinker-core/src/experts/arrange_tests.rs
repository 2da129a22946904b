use std::sync::Arc;

use super::*;
use crate::Error;
use crate::gguf::{Gguf, GgufWriter};
use crate::model::expert_index::{DownLayout, Part};
use crate::model::hparams::Hparams;
use crate::pool::Pool;
use crate::sample::SplitMix64;
use crate::tensor::DType;
use crate::tensor::packed::pack;

const LAYERS: usize = 2;
const EXPERTS: usize = 4;
/// Neither whole groups of columns nor whole tiles of rows, and experts that begin inside of pages.
const HIDDEN: usize = 320;
const FFN: usize = 160;

/// A file of Q4_0 experts; the scale of some block of expert `bad` of every layer's `up` is no number.
fn file(dir: &tempfile::TempDir, bad: Option<usize>) -> Gguf {
    let path = dir.path().join("model.gguf");
    let mut w = GgufWriter::new();
    for layer in 0..LAYERS {
        for part in Part::ALL {
            let (rows, cols) = part.shape(&hparams(), DownLayout::ByOutput);
            let dims = [cols, rows, EXPERTS].map(|n| n as u64);
            w.tensor(&part.tensor(layer), DType::Q4_0, &dims).unwrap();
        }
    }
    let mut random = SplitMix64::new(1);
    let mut out = w.create(&path).unwrap();
    for part in (0..LAYERS).flat_map(|_| Part::ALL) {
        for expert in 0..EXPERTS {
            for block in 0..HIDDEN * FFN / 32 {
                let mut bytes: [u8; 18] = std::array::from_fn(|_| (random.next_unit() * 256.0) as u8);
                let broken = part == Part::Up && bad == Some(expert) && block == 700;
                let scale = if broken { f32::NAN } else { 0.5 + block as f32 };
                bytes[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
                out.write(&bytes).unwrap();
            }
        }
    }
    out.finish().unwrap();
    Gguf::open(&path).unwrap()
}

fn hparams() -> Hparams {
    Hparams::of_experts(LAYERS, HIDDEN, FFN, EXPERTS)
}

fn cache(gguf: &Gguf, slots: usize, buffered: bool) -> ExpertCache {
    let index = ExpertIndex::new(gguf, &hparams()).unwrap();
    let options = CacheOptions { slots, least: 1, policy: CachePolicy::Lru, readers: 2, buffered };
    ExpertCache::new(index, Arc::clone(gguf.source()), options, &Budget::new(1 << 22)).unwrap()
}

/// Whether a slot holds what packing the whole matrices of the file at once makes.
fn check(gguf: &Gguf, cache: &ExpertCache, (layer, expert): ExpertId, slot: &ExpertSlot) {
    let experts = &cache.index().layers[layer];
    for (part, piece) in Part::ALL.into_iter().zip(&experts.pieces) {
        let m = experts.part(part);
        let (mut file, mut expected) = (vec![0; piece.bytes], vec![0; m.slot_bytes]);
        gguf.source().read_exact_at(0, piece.place(expert), &mut file).unwrap();
        pack(m.dtype, m.layout, &file, 0, m.rows, m.cols, &mut expected);
        assert!(experts.is_rearranged(m) && slot.matrix(experts, part).data == expected, "{part:?}");
    }
}

#[test]
fn what_was_read_raw_is_rearranged_before_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = file(&dir, None);
    let (pool, cancel) = (Pool::new(2).unwrap(), CancelFlag::new());
    let team = pool.team(&cancel).unwrap();
    for (slots, buffered) in [(1, false), (2, false), (3, true), (LAYERS * EXPERTS, false)] {
        let cache = cache(&gguf, slots, buffered);
        let mut random = SplitMix64::new(slots as u64);
        let mut pick = |n: usize| (random.next_unit() * n as f64) as usize;
        for _ in 0..100 {
            let id = (pick(LAYERS), pick(EXPERTS));
            // Some of these are evicted as they were read.
            cache.guess(1 - id.0, &[pick(EXPERTS)]);
            cache.request(id.0, 1, std::iter::once(id.1));
            check(&gguf, &cache, id, &cache.acquire(id, &team, &cancel).unwrap());
            assert!(cache.stats().resident <= slots as u64);
        }
        let stats = cache.stats();
        assert_eq!(stats.hits + stats.misses, 100);
    }
}

#[test]
fn an_expert_that_cannot_be_rearranged_is_an_error_and_its_slot_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = file(&dir, Some(2));
    let (pool, cancel) = (Pool::new(2).unwrap(), CancelFlag::new());
    let team = pool.team(&cancel).unwrap();
    let cache = cache(&gguf, 2, false);
    for round in 0..5 {
        let error = cache.acquire((1, 2), &team, &cancel).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        let offset = cache.index().layers[1].pieces[Part::Up as usize].place(2) + 700 * 18;
        let message = error.to_string();
        assert!(message.contains("model.gguf") && message.contains(&offset.to_string()), "{message}");
        for id in [(0, round % 2), (1, 3)] {
            check(&gguf, &cache, id, &cache.acquire(id, &team, &cancel).unwrap());
        }
    }
}
