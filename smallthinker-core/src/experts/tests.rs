use std::fs::{self, OpenOptions};
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::Error;
use crate::gguf::{Gguf, GgufWriter};
use crate::model::expert_index::Part;
use crate::model::hparams::Hparams;
use crate::pool::Pool;
use crate::tensor::DType;

const LAYERS: usize = 3;
const EXPERTS: usize = 4;
const HIDDEN: usize = 8;
const FFN: usize = 4;

/// A file whose every expert weight is `layer * 100 + expert * 10 + matrix`.
struct File {
    gguf: Gguf,
    dir: tempfile::TempDir,
}

impl File {
    fn new() -> File {
        let dir = tempfile::tempdir().unwrap();
        let mut w = GgufWriter::new();
        let parts = [("gate", [HIDDEN, FFN]), ("up", [HIDDEN, FFN]), ("down", [FFN, HIDDEN])];
        for layer in 0..LAYERS {
            for (name, [a, b]) in parts {
                let dims = [a as u64, b as u64, EXPERTS as u64];
                w.tensor(&format!("blk.{layer}.ffn_{name}_exps.weight"), DType::F32, &dims).unwrap();
            }
        }
        let path = dir.path().join("model.gguf");
        let mut out = w.create(&path).unwrap();
        for layer in 0..LAYERS {
            for matrix in 0..parts.len() {
                for expert in 0..EXPERTS {
                    let value = (layer * 100 + expert * 10 + matrix) as f32;
                    out.write(&value.to_le_bytes().repeat(HIDDEN * FFN)).unwrap();
                }
            }
        }
        out.finish().unwrap();
        File { gguf: Gguf::open(&path).unwrap(), dir }
    }

    /// The same, read from memory.
    fn in_memory() -> File {
        let File { dir, .. } = File::new();
        let bytes = fs::read(dir.path().join("model.gguf")).unwrap();
        File { gguf: Gguf::from_bytes(bytes).unwrap(), dir }
    }

    fn cache(&self, slots: usize) -> ExpertCache {
        self.cache_with(slots, CachePolicy::Lru)
    }

    fn cache_with(&self, slots: usize, policy: CachePolicy) -> ExpertCache {
        let h = Hparams::of_experts(LAYERS, HIDDEN, FFN, EXPERTS);
        let index = ExpertIndex::new(&self.gguf, &h).unwrap();
        let options = CacheOptions { slots, least: 1, policy, readers: 2, buffered: false };
        let budget = Budget::new(1 << 20);
        ExpertCache::new(index, Arc::clone(self.gguf.source()), options, &budget).unwrap()
    }
}

fn acquire(cache: &ExpertCache, id: ExpertId, cancel: &CancelFlag) -> Result<Arc<ExpertSlot>> {
    let pool = Pool::new(1)?;
    cache.acquire(id, &*pool.team(&CancelFlag::new())?, cancel)
}

fn check(cache: &ExpertCache, id: ExpertId) {
    let slot = acquire(cache, id, &CancelFlag::new()).unwrap();
    for part in Part::ALL {
        let expected = ((id.0 * 100 + id.1 * 10 + part as usize) as f32).to_le_bytes();
        let matrix = slot.matrix(&cache.index().layers[id.0], part);
        assert!(matrix.file_rows(0, matrix.rows).chunks(4).all(|b| b == expected), "{id:?}, {part:?}");
    }
}

#[test]
fn right_weights_in_any_order_with_any_number_of_slots() {
    let file = File::new();
    let all = [1, 2, 5, LAYERS * EXPERTS].map(|slots| CachePolicy::ALL.map(|policy| (slots, policy)));
    for (slots, policy) in all.into_iter().flatten() {
        let cache = file.cache_with(slots, policy);
        let mut id = 0usize;
        for _ in 0..200 {
            id = (id * 5 + 7) % (LAYERS * EXPERTS);
            cache.request(id / EXPERTS, 1, std::iter::once(id % EXPERTS));
            check(&cache, (id / EXPERTS, id % EXPERTS));
        }
        let stats = cache.stats();
        assert_eq!(stats.hits + stats.misses, 200, "each request is a hit or a miss");
        assert_eq!(stats.bytes_read, stats.misses * 3 * (HIDDEN * FFN * 4) as u64);
        if slots == LAYERS * EXPERTS {
            assert_eq!(stats.evictions, 0);
        }
    }
}

#[test]
fn what_a_token_chose_of_a_file_in_memory_is_there_after_the_fetch() {
    let (file, pool, cancel) = (File::in_memory(), Pool::new(2).unwrap(), CancelFlag::new());
    let team = pool.team(&cancel).unwrap();
    let cache = file.cache(4);
    for (layer, experts, misses) in [(0, 0..3, 3), (0, 1..4, 4), (1, 0..4, 8)] {
        cache.request(layer, 1, experts.clone());
        cache.fetch(&team).unwrap();
        let stats = cache.stats();
        assert_eq!((stats.misses, stats.resident), (misses, misses.min(4)));
        assert_eq!(stats.bytes_read, misses * 3 * (HIDDEN * FFN * 4) as u64);
        experts.for_each(|expert| check(&cache, (layer, expert)));
        assert_eq!(cache.stats().misses, misses);
    }
    // More than there are slots: the rest is read when its turn comes.
    let cache = file.cache(2);
    cache.request(2, 1, 0..3);
    cache.fetch(&team).unwrap();
    assert_eq!(cache.stats().resident, 2);
    (0..3).for_each(|expert| check(&cache, (2, expert)));
    // A prompt's are on their way since they were requested.
    let before = cache.stats().misses;
    cache.request(1, 2, 0..1);
    assert_eq!(cache.stats().misses, before + 1);
    check(&cache, (1, 0));
}

#[test]
fn evicts_the_least_recently_used_and_never_what_is_held() {
    let file = File::new();
    let cache = file.cache(3);
    let cancel = CancelFlag::new();
    let held = acquire(&cache, (0, 0), &cancel).unwrap();
    check(&cache, (0, 1));
    check(&cache, (0, 2));
    cache.request(0, 1, std::iter::once(1)); // now 2 is older than 1, and 0, the oldest, is held
    check(&cache, (1, 0));
    let before = cache.stats().misses;
    check(&cache, (0, 1));
    check(&cache, (0, 0));
    assert_eq!(cache.stats().misses, before, "1 and the held 0 are still there");
    check(&cache, (0, 2));
    assert_eq!(cache.stats().misses, before + 1, "2 was evicted");
    drop(held);
}

#[test]
fn a_pass_evicts_what_it_has_computed_before_what_it_still_needs() {
    let file = File::new();
    for policy in CachePolicy::ALL {
        let cache = file.cache_with(3, policy);
        for (tokens, experts) in [(1, 1..4), (2, 0..4)] {
            cache.request(0, tokens, experts.clone());
            experts.for_each(|expert| check(&cache, (0, expert)));
        }
        // 1, 2 and 3 were here. For 0, the last of them had to go; it came back in the place of one that was done.
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (3, 3 + 2), "{policy}");
        cache.request(1, 1, 0..3);
        (0..3).for_each(|expert| check(&cache, (1, expert)));
        assert_eq!(cache.stats().misses, 5 + 3, "{policy}: each of a batch that fits is read once");
    }
}

/// A session that needs memory while a prompt holds experts gets it when the prompt can spare it, and not at its expense.
#[test]
fn slots_are_given_up_between_what_a_pass_holds_at_once() {
    let file = File::new();
    let cache = file.cache(6);
    let slot = cache.index().slot_bytes as u64;
    std::thread::scope(|scope| {
        let hold = cache.hold(16);
        assert_eq!(hold.experts, 3);
        let mut held = vec![acquire(&cache, (0, 0), &CancelFlag::new()).unwrap()];
        // All but one slot.
        let shared = &cache.shared;
        let giver = scope.spawn(move || shared.give_back(5 * slot));
        let until = Instant::now() + Duration::from_secs(10);
        while cache.slots() > 3 && Instant::now() < until {
            std::thread::yield_now();
        }
        std::thread::sleep(2 * POLL);
        assert_eq!(cache.slots(), 3);
        for expert in 1..3 {
            held.push(acquire(&cache, (0, expert), &CancelFlag::new()).unwrap());
        }
        assert!(!giver.is_finished());
        drop((held, hold));
        assert!(giver.join().unwrap());
        assert_eq!(cache.slots(), 1);
    });
    check(&cache, (2, 3));
}

#[test]
fn all_slots_held_is_an_error_not_a_hang() {
    let file = File::new();
    let cache = file.cache(1);
    let cancel = CancelFlag::new();
    let _held = acquire(&cache, (0, 0), &cancel).unwrap();
    assert!(matches!(acquire(&cache, (0, 1), &cancel), Err(Error::Internal { .. })));
}

#[test]
fn a_short_read_is_one_error_and_the_next_try_reads_again() {
    let file = File::new();
    let cache = file.cache(2);
    let cancel = CancelFlag::new();
    let path = file.dir.path().join("model.gguf");
    let whole = fs::read(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(whole.len() as u64 / 2).unwrap();
    for _ in 0..3 {
        let error = acquire(&cache, (LAYERS - 1, 0), &cancel).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::ShortRead { .. }), "{error}");
        assert!(error.to_string().contains("model.gguf"), "{error}");
    }
    check(&cache, (0, 0));
    // Requested together by a pass that was told of only one of them.
    cache.request(LAYERS - 1, 1, 0..2);
    acquire(&cache, (LAYERS - 1, 0), &cancel).map(|_| ()).unwrap_err();
    // Same inode, contents back.
    use std::io::Write;
    OpenOptions::new().write(true).open(&path).unwrap().write_all(&whole).unwrap();
    for expert in 0..2 {
        cache.request(LAYERS - 1, 1, std::iter::once(expert));
        check(&cache, (LAYERS - 1, expert));
    }
}

#[test]
fn a_set_cancel_flag_ends_a_wait() {
    let file = File::new();
    let cache = file.cache(2);
    let cancel = CancelFlag::new();
    cancel.cancel();
    assert!(matches!(acquire(&cache, (0, 0), &cancel), Err(Error::Cancelled)));
    // What was requested then still arrives.
    check(&cache, (0, 0));
}
