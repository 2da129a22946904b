//! The replay against plain definitions, and files that are not what they should be.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::{CachePolicy, Error};

/// A trace of one-token passes, `[token][layer]` sets of experts.
pub(super) fn decode_trace(n_experts: usize, top_k: usize, tokens: &[Vec<Vec<u32>>]) -> Trace {
    let layers = tokens.first().map_or(1, Vec::len);
    let mut trace = Trace::new(shape(layers, n_experts, top_k)).unwrap();
    for token in tokens {
        trace.push(PassKind::Decode, 1, token.concat()).unwrap();
    }
    trace
}

fn shape(layers: usize, n_experts: usize, top_k: usize) -> Shape {
    let expert_bytes = (0..layers as u64).map(|layer| 100 + layer).collect();
    Shape { model: "model.gguf".into(), n_experts, top_k, slot_bytes: 128, expert_bytes }
}

/// Sets of `top_k` experts for each layer of each token.
pub(super) fn choices(
    layers: usize,
    n: usize,
    top_k: usize,
    tokens: usize,
) -> impl Strategy<Value = Vec<Vec<Vec<u32>>>> {
    // Few experts are chosen often, as in real models.
    let all: Vec<u32> = (0..n as u32).flat_map(|e| vec![e; n - e as usize]).collect();
    let set =
        prop::sample::subsequence(all, top_k..=top_k).prop_filter_map("equal experts", move |mut set| {
            set.dedup();
            (set.len() == top_k).then_some(set)
        });
    prop::collection::vec(prop::collection::vec(set, layers), 0..tokens)
}

/// Misses of LRU by definition: after each turn, the cache holds the experts used last.
fn naive_lru_misses(tokens: &[Vec<Vec<u32>>], slots: usize) -> u64 {
    let (mut newest_last, mut misses) = (Vec::new(), 0);
    for (layer, experts) in tokens.iter().flat_map(|token| token.iter().enumerate()) {
        let ids: Vec<(usize, u32)> = experts.iter().map(|e| (layer, *e)).collect();
        let (hits, missing): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| newest_last.contains(id));
        misses += missing.len() as u64;
        newest_last.retain(|id| !hits.contains(id));
        newest_last.extend(hits.into_iter().chain(missing));
        newest_last.drain(..newest_last.len().saturating_sub(slots));
    }
    misses
}

/// The fewest misses that any sequence of evictions can have: every set of experts that a cache may hold, with the
/// fewest reads that lead to it.
fn fewest_misses(tokens: &[Vec<Vec<u32>>], n_experts: usize, slots: usize) -> u32 {
    let mut reachable: Vec<(u32, u32)> = vec![(0, 0)]; // set of experts as bits, misses
    for (layer, experts) in tokens.iter().flat_map(|token| token.iter().enumerate()) {
        let needed: u32 = experts.iter().map(|e| 1 << (layer * n_experts + *e as usize)).sum();
        let mut next: Vec<(u32, u32)> = Vec::new();
        for (held, misses) in reachable {
            let all = held | needed;
            let misses = misses + (needed & !held).count_ones();
            // Every way to keep as many of the others as there is room for.
            let others = all & !needed;
            let mut kept = others;
            loop {
                let set = kept | needed;
                if set.count_ones() as usize == slots.min(all.count_ones() as usize) {
                    next.push((set, misses));
                }
                if kept == 0 {
                    break;
                }
                kept = (kept - 1) & others;
            }
        }
        next.sort_unstable();
        next.dedup_by_key(|(set, _)| *set); // the fewest misses come first
        reachable = next;
    }
    reachable.iter().map(|(_, misses)| *misses).min().unwrap_or(0)
}

fn misses(trace: &Trace, policy: ReplayPolicy, slots: usize) -> u64 {
    let found = replay(trace, policy, slots).unwrap();
    let uses: usize = trace.tokens(PassKind::Decode) * trace.shape().layers() * trace.shape().top_k;
    assert_eq!(found.decode.hits + found.decode.misses, uses as u64, "every use is a hit or a miss");
    found.decode.misses
}

proptest! {
    #[test]
    fn lru_is_what_its_name_says(tokens in choices(3, 6, 2, 30), slots in 2usize..20) {
        let trace = decode_trace(6, 2, &tokens);
        let found = misses(&trace, ReplayPolicy::Cache(CachePolicy::Lru), slots);
        prop_assert_eq!(found, naive_lru_misses(&tokens, slots));
    }

    #[test]
    fn belady_is_the_best_possible(tokens in choices(2, 4, 2, 8), slots in 2usize..8) {
        let trace = decode_trace(4, 2, &tokens);
        let found = misses(&trace, ReplayPolicy::Belady, slots);
        prop_assert_eq!(found, u64::from(fewest_misses(&tokens, 4, slots)));
    }

    #[test]
    fn no_policy_is_better_than_belady_or_reads_what_fits_twice(tokens in choices(4, 8, 3, 40)) {
        let trace = decode_trace(8, 3, &tokens);
        for slots in [3, 4, 7, 12, 20, 31, 32] {
            let best = misses(&trace, ReplayPolicy::Belady, slots);
            for policy in CachePolicy::ALL.map(ReplayPolicy::Cache) {
                prop_assert!(misses(&trace, policy, slots) >= best, "{policy} with {slots} slots");
            }
        }
        let mut different = HashSet::new();
        for (layer, set) in tokens.iter().flat_map(|token| token.iter().enumerate()) {
            different.extend(set.iter().map(|expert| (layer, *expert)));
        }
        for policy in ReplayPolicy::all() {
            let found = replay(&trace, policy, 32).unwrap();
            prop_assert_eq!(found.decode.misses, different.len() as u64);
            let bytes: u64 = different.iter().map(|(layer, _)| 100 + *layer as u64).sum();
            prop_assert_eq!(found.decode.bytes_read, bytes);
        }
    }

    #[test]
    fn a_file_holds_the_whole_trace(tokens in choices(3, 5, 2, 6), prompt in choices(1, 5, 2, 12)) {
        let mut trace = decode_trace(5, 2, &tokens);
        if !prompt.is_empty() && !tokens.is_empty() {
            let n = prompt.len();
            let every_layer = (0..3).flat_map(|_| prompt.concat().concat()).collect();
            trace.push(PassKind::Prompt, n, every_layer).unwrap();
        }
        prop_assert_eq!(Trace::from_bytes(&trace.to_bytes()).unwrap(), trace);
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_field(at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index) {
        let mut bytes = small().to_bytes();
        let whole = bytes.len();
        let error = Trace::from_bytes(&bytes[..cut.index(whole)]).unwrap_err();
        prop_assert!(matches!(&error, Error::Malformed { field, .. } if !field.is_empty()), "{error}");
        bytes[at.index(whole)] ^= 1 << bit;
        let error = Trace::from_bytes(&bytes).unwrap_err();
        prop_assert!(matches!(&error, Error::Malformed { .. } | Error::Unsupported { .. }), "{error}");
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), keep in 0usize..120) {
        let mut begun = small().to_bytes();
        begun.truncate(keep);
        begun.extend(&bytes);
        let _ = Trace::from_bytes(&begun);
        let _ = Trace::from_bytes(&bytes);
    }
}

fn small() -> Trace {
    decode_trace(4, 2, &[vec![vec![0, 1], vec![2, 3]], vec![vec![0, 3], vec![1, 3]]])
}

/// A file with some bytes replaced and the hash made right again.
fn patched(at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = small().to_bytes();
    bytes[at..at + new.len()].copy_from_slice(new);
    let end = bytes.len() - 8;
    let mut hash = crate::hash::Fnv::new();
    hash.update(&bytes[..end]);
    bytes[end..].copy_from_slice(&hash.value().to_le_bytes());
    bytes
}

#[test]
fn errors_say_what_was_found_and_what_is_allowed() {
    let huge = u32::MAX.to_le_bytes();
    for (at, new, words) in [
        (0, &b"GGUF"[..], "malformed magic: found other bytes, allowed: a smallthinker routing trace"),
        (8, &[2, 0, 0, 0], "unsupported version: found 2, supported: 1"),
        (12, &huge, "malformed expert bytes: found 4294967295 items of 8 bytes, allowed: at most 11"),
        (16, &huge, "malformed experts per layer: found 4294967295, allowed: 1 to 524288, with 2 layers"),
        (20, &[5], "malformed experts used: found 5, allowed: 1 to 4"),
        (24, &[0], "malformed slot bytes: found 0, allowed: 1 or more"),
        (48, &huge, "malformed model name: found 4294967295 items of 1 bytes"),
        (52, &[0xff], "malformed model name: found invalid byte 0, allowed: UTF-8"),
        (70, &[7], "malformed kind of a pass: found 7, allowed: 0 (prompt) or 1 (decode)"),
        (74, &[2], "malformed tokens of a pass: found 2, allowed: 1 in a decode pass"),
        (74, &huge, "malformed choices of a pass: found 17179869180 items of 4 bytes"),
        (78, &[1], "malformed choice of a token: found [1, 1], allowed: experts 0 to 3 in ascending order"),
        (82, &[4], "malformed choice of a token: found [0, 4], allowed: experts 0 to 3 in ascending order"),
    ] {
        let error = Trace::from_bytes(&patched(at, new)).unwrap_err().to_string();
        assert!(error.starts_with("<memory>: ") && error.contains(words), "{at}: {error}");
    }
    let mut longer = small().to_bytes();
    longer.push(0);
    let error = Trace::from_bytes(&longer).unwrap_err().to_string();
    assert!(
        error.contains(&format!("file size: found {}, allowed: {}", longer.len(), longer.len() - 1)),
        "{error}"
    );
}

#[test]
fn a_file_appears_whole_and_errors_name_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.trace");
    small().write(&path).unwrap();
    small().write(&path).unwrap();
    assert_eq!(Trace::read(&path).unwrap(), small());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    std::fs::write(&path, b"STROUTE\n").unwrap();
    let error = Trace::read(&path).unwrap_err().to_string();
    assert!(error.contains("a.trace") && error.contains("version"), "{error}");
    for missing in [Trace::read(dir.path().join("none")).map(drop), small().write(dir.path().join("no/dir"))]
    {
        assert!(matches!(missing, Err(Error::Io { .. })), "{missing:?}");
    }
}

#[test]
fn budgets_become_slots() {
    let shape = shape(10, 16, 2);
    let slots = |text: &str| shape.slots(text.parse().unwrap());
    assert_eq!([slots("25%"), slots("100%"), slots("12800"), slots("10KiB")], [40, 160, 100, 80]);
    assert_eq!(
        [slots("0"), slots("1%"), slots("1TiB")],
        [4, 4, 160],
        "what can run, and no more than there is"
    );
    for wrong in ["0%", "101%", "-3%", "NaN%", "much"] {
        let error = wrong.parse::<CacheBudget>().unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("2GiB"), "{error}");
    }
}

#[test]
fn a_cache_below_one_choice_is_refused() {
    let error = replay(&small(), ReplayPolicy::Belady, 1).unwrap_err().to_string();
    assert!(error.contains("slots: found 1, allowed: 2 or more"), "{error}");
    let empty = Trace::new(shape(1, 4, 2)).unwrap();
    let found = replay(&empty, ReplayPolicy::Belady, 2).unwrap();
    assert_eq!((found.hit_rate(), found.bytes_per_token()), (0.0, 0));
}
