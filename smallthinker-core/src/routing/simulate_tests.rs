//! Virtual time against times worked out by hand, against plain recurrences, and against bounds.

use std::time::Duration;

use proptest::prelude::*;

use super::guesses::Guesses;
use super::tests::{choices, decode_trace};
use super::*;
use crate::{CachePolicy, Stage};

const LRU: ReplayPolicy = ReplayPolicy::Cache(CachePolicy::Lru);

/// Whole seconds.
fn seconds(router: u64, attention: u64, experts: u64, rest: u64) -> ComputeTimes {
    let [router, attention, experts, rest] = [router, attention, experts, rest].map(Duration::from_secs);
    ComputeTimes { router, attention, experts, rest }
}

fn storage(bytes_per_second: f64, latency: f64, queue_depth: usize) -> Storage {
    Storage { bytes_per_second, latency: Duration::from_secs_f64(latency), queue_depth }
}

/// Rearranging takes nothing.
fn plain(slots: usize, storage: Storage, compute: ComputeTimes) -> SimOptions {
    let pack = f64::INFINITY;
    let options = SimOptions::new(slots, storage, compute);
    SimOptions { policy: LRU, pack_bytes_per_second: pack, ..options }
}

/// One layer, two tokens that choose the same two experts, of 300 bytes each.
fn two_tokens() -> Trace {
    let shape = Shape { model: "m".into(), n_experts: 4, top_k: 2, slot_bytes: 300, expert_bytes: vec![300] };
    let mut trace = Trace::new(shape).unwrap();
    trace.push(PassKind::Decode, 1, vec![0, 1]).unwrap();
    trace.push(PassKind::Decode, 1, vec![0, 1]).unwrap();
    trace
}

#[test]
fn times_worked_out_by_hand() {
    // A router of 1 s, attention of 2, experts of 2 each, a head of 1; two readers; parts of 100 bytes.
    // Transfers of 1 s each after a latency of 0.5 s, which passes while the other reader's transfer goes on: parts arrive at
    // 2.5, 3.5, 4.5 (the first expert) and 5.5, 6.5, 7.5. Waits from 3 to 4.5 and from 6.5 to 7.5, then until 10.5; the second
    // token takes 8 s.
    // With a queue of one, parts arrive every 1.5 s: waits from 3 to 5.5 and from 7.5 to 10, then until 13.
    for (queue_depth, time, stall) in [(32, 18.5, 2.5), (1, 21.0, 5.0)] {
        let options = plain(4, storage(100.0, 0.5, queue_depth), seconds(1, 2, 4, 1));
        let found = simulate(&two_tokens(), &SimOptions { readers: 2, ..options }).unwrap();
        assert_eq!((found.time.as_secs_f64(), found.stall.as_secs_f64()), (time, stall));
        assert_eq!(found.accesses, Accesses { hits: 2, misses: 2, bytes_read: 600 });
        assert_eq!((found.tokens, found.bytes_per_token(), found.hit_rate()), (2, 300, 0.5));
        assert_eq!((found.tokens_per_second(), found.stall_share()), (2.0 / time, stall / time));
    }
}

#[test]
fn rearranging_is_done_once_and_before_computing() {
    // Reads take no time. Attention takes 4 s, then two experts of 300 bytes each are rearranged in 3 s each; the second token
    // finds them as they have to be.
    let options = plain(4, storage(f64::INFINITY, 0.0, 1), seconds(0, 4, 0, 0));
    let found = simulate(&two_tokens(), &SimOptions { pack_bytes_per_second: 100.0, ..options }).unwrap();
    assert_eq!((found.time.as_secs_f64(), found.stall.as_secs_f64()), (14.0, 6.0));
}

/// Times by recurrence, for LRU without looking ahead: no events, each read's times follow from those before it.
fn by_recurrence(trace: &Trace, tokens: &[Vec<Vec<u32>>], options: &SimOptions) -> (f64, f64) {
    let (layers, top_k) = (trace.shape().layers() as f64, trace.shape().top_k as f64);
    let of = |time: Duration| time.as_secs_f64();
    let (compute, device) = (&options.compute, &options.storage);
    let mut newest_last: Vec<(usize, u32)> = Vec::new();
    let mut free = vec![0.0f64; options.readers];
    let (mut ends, mut now, mut stall) = (Vec::<f64>::new(), 0.0f64, 0.0);
    for token in tokens {
        for (layer, experts) in token.iter().enumerate() {
            now += of(compute.router) / layers;
            let ids: Vec<(usize, u32)> = experts.iter().map(|e| (layer, *e)).collect();
            let (hits, missing): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| newest_last.contains(id));
            let mut ready = vec![(0.0f64, false); hits.len()];
            let bytes = trace.shape().expert_bytes[layer];
            for _ in &missing {
                let mut last = 0.0f64;
                for bytes in [bytes - 2 * (bytes / 3), bytes / 3, bytes / 3] {
                    free.sort_by(f64::total_cmp);
                    let place = ends.len().checked_sub(device.queue_depth).map_or(0.0, |i| ends[i]);
                    let first_byte = now.max(free[0]).max(place) + of(device.latency);
                    let end = first_byte.max(ends.last().copied().unwrap_or(0.0))
                        + bytes as f64 / device.bytes_per_second;
                    ends.push(end);
                    free[0] = end;
                    last = last.max(end);
                }
                ready.push((last, true));
            }
            newest_last.retain(|id| !hits.contains(id));
            newest_last.extend(hits.into_iter().chain(missing));
            newest_last.drain(..newest_last.len().saturating_sub(options.slots));
            now += of(compute.attention) / layers;
            ready.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (ready, missing) in ready {
                let packing = if missing { bytes as f64 / options.pack_bytes_per_second } else { 0.0 };
                stall += (ready - now).max(0.0) + packing;
                now = now.max(ready) + packing + of(compute.experts) / layers / top_k;
            }
        }
        now += of(compute.rest);
    }
    (now, stall)
}

fn devices() -> impl Strategy<Value = Storage> {
    (1.0f64..1000.0, 0.0f64..2.0, 1usize..6).prop_map(|(rate, latency, depth)| storage(rate, latency, depth))
}

fn times() -> impl Strategy<Value = ComputeTimes> {
    (1u64..20, 1u64..20, 1u64..20, 0u64..20).prop_map(|(a, b, c, d)| seconds(a, b, c, d))
}

proptest! {
    #[test]
    fn times_are_those_of_the_recurrence(
        tokens in choices(3, 6, 2, 20), slots in 2usize..20, device in devices(), compute in times(),
        readers in 1usize..5, pack in 10.0f64..1000.0,
    ) {
        let trace = decode_trace(6, 2, &tokens);
        let mut options = plain(slots, device, compute);
        (options.readers, options.pack_bytes_per_second) = (readers, pack);
        let found = simulate(&trace, &options).unwrap();
        let (time, stall) = by_recurrence(&trace, &tokens, &options);
        prop_assert!((found.time.as_secs_f64() - time).abs() < 1e-7 * (1.0 + time), "{found:?}, {time}");
        prop_assert!((found.stall.as_secs_f64() - stall).abs() < 1e-7 * (1.0 + time), "{found:?}, {stall}");
    }

    /// Without looking ahead, what is read does not depend on when: hits and bytes are those of the replay.
    #[test]
    fn hits_are_those_of_the_replay(
        tokens in choices(3, 6, 2, 20), prompt in choices(3, 6, 2, 4), slots in 2usize..20, device in devices(), pack in 1.0f64..1e4,
    ) {
        let mut trace = decode_trace(6, 2, &tokens);
        for token in prompt.iter().filter(|_| !tokens.is_empty()) {
            trace.push(PassKind::Prompt, 1, token.concat()).unwrap();
            trace.push(PassKind::Decode, 1, token.concat()).unwrap();
        }
        for policy in ReplayPolicy::all() {
            let mut options = SimOptions::new(slots, device, seconds(1, 2, 3, 4));
            (options.policy, options.pack_bytes_per_second) = (policy, pack);
            let found = simulate(&trace, &options).unwrap();
            prop_assert_eq!(found.accesses, replay(&trace, policy, slots).unwrap().decode);
            prop_assert_eq!(found, simulate(&trace, &options).unwrap());
        }
    }

    /// No faster than computing or reading alone; no slower than one after the other.
    #[test]
    fn time_is_between_its_bounds(
        tokens in choices(3, 6, 2, 20), slots in 2usize..20, device in devices(), compute in times(), share in 0.0f64..1.0,
    ) {
        let trace = decode_trace(6, 2, &tokens);
        let computing = compute.total().as_secs_f64() * tokens.len() as f64;
        for look_ahead in [None, Some(share)] {
            let options = SimOptions { look_ahead, ..plain(slots, device, compute) };
            let found = simulate(&trace, &options).unwrap();
            let (time, stall) = (found.time.as_secs_f64(), found.stall.as_secs_f64());
            let reading = found.accesses.bytes_read as f64 / device.bytes_per_second;
            prop_assert!(computing.max(reading) <= time * (1.0 + 1e-9) + 1e-7, "{found:?}");
            // Guessing takes the router's time again, in all layers but the last.
            let guessing = compute.router.as_secs_f64() * tokens.len() as f64 * 2.0 / 3.0;
            let computing = computing + if look_ahead.is_some() { guessing } else { 0.0 };
            prop_assert!((time - stall - computing).abs() < 1e-7 * (1.0 + time), "the rest is computing: {found:?}");
            if look_ahead.is_none() {
                let alone = reading + 3.0 * found.accesses.misses as f64 * device.latency.as_secs_f64();
                prop_assert!(time <= computing + alone + 1e-7 * (1.0 + time), "{found:?}");
            }
            let instant = SimOptions { storage: storage(f64::INFINITY, 0.0, 1), ..options };
            let instant = simulate(&trace, &instant).unwrap();
            prop_assert!((instant.time.as_secs_f64() - computing).abs() < 1e-7 * (1.0 + computing), "{instant:?}");
            prop_assert!(instant.stall.is_zero(), "{instant:?}");
        }
    }

    /// Without looking ahead, faster storage is never slower. (Otherwise it can be: another order of reads leaves another
    /// cache.)
    #[test]
    fn faster_storage_is_never_slower(
        tokens in choices(3, 6, 2, 20), slots in 2usize..20, device in devices(), faster in 1.0f64..3.0, shorter in 0.0f64..1.0, more in 0usize..3,
    ) {
        let trace = decode_trace(6, 2, &tokens);
        let better = Storage {
            bytes_per_second: device.bytes_per_second * faster,
            latency: device.latency.mul_f64(shorter),
            queue_depth: device.queue_depth + more,
        };
        let [slow, fast] = [device, better]
            .map(|device| simulate(&trace, &plain(slots, device, seconds(3, 5, 4, 2))).unwrap().time.as_secs_f64());
        prop_assert!(fast <= slow * (1.0 + 1e-9) + 1e-7, "{fast} s, {slow} s");
    }

    #[test]
    fn every_guess_is_accounted_for(
        tokens in choices(4, 8, 3, 20), slots in 3usize..33, device in devices(), share in 0.0f64..1.0,
    ) {
        let trace = decode_trace(8, 3, &tokens);
        let options = SimOptions { look_ahead: Some(share), ..SimOptions::new(slots, device, seconds(1, 2, 3, 1)) };
        let found = simulate(&trace, &options).unwrap();
        let ahead = found.look_ahead;
        let sum = ahead.on_time + ahead.late + ahead.wasted + ahead.withdrawn + ahead.evicted;
        prop_assert_eq!(ahead.requested, sum);
        prop_assert_eq!(found.accesses.hits + found.accesses.misses, (tokens.len() * 4 * 3) as u64);
        prop_assert!(ahead.late <= found.accesses.misses && ahead.on_time <= found.accesses.hits);
        prop_assert_eq!(found, simulate(&trace, &options).unwrap());
    }

    #[test]
    fn right_guesses_of_a_fast_device_leave_only_the_first_layer_to_wait_for(tokens in choices(4, 8, 1, 20)) {
        // Of one choice, one is guessed.
        let trace = decode_trace(8, 1, &tokens);
        let mut options = plain(32, storage(1e9, 0.0, 4), seconds(1, 1, 1, 1));
        options.look_ahead = Some(1.0);
        let found = simulate(&trace, &options).unwrap();
        let distinct = |layers: std::ops::Range<usize>| {
            let mut all: Vec<_> =
                tokens.iter().flat_map(|t| layers.clone().flat_map(|l| t[l].iter().map(move |e| (l, *e)))).collect();
            all.sort_unstable();
            all.dedup();
            all.len() as u64
        };
        prop_assert_eq!(found.accesses.misses, distinct(0..1));
        prop_assert_eq!(found.look_ahead.on_time, distinct(1..4));
        prop_assert_eq!(found.look_ahead.requested, distinct(1..4));
    }
}

#[test]
fn guesses_are_as_good_as_they_should_be() {
    // Of 16 experts each token chooses a run of four.
    let tokens: Vec<_> = (0..13).map(|t| vec![(t..t + 4).collect::<Vec<u32>>()]).collect();
    let trace = decode_trace(16, 4, &tokens);
    for (share, range) in [(0.0, 0.0..=0.0), (0.7, 0.67..=0.73), (1.0, 1.0..=1.0)] {
        let mut guesses = Guesses::new(&trace, share);
        let (mut right, mut all) = (0, 0);
        for _ in 0..500 {
            for token in &tokens {
                let guess = guesses.of(0, &token[0]);
                assert!(guess.windows(2).all(|pair| pair[0] < pair[1]), "{guess:?}");
                right += guess.iter().filter(|&&e| token[0].contains(&(e as u32))).count();
                assert_eq!(guess.len(), 3); // of four
                all += guess.len();
            }
        }
        let found = right as f64 / all as f64;
        assert!(range.contains(&found), "{found} of {share}");
    }
}

#[test]
fn texts_of_devices() {
    let parsed = |text: &str| text.parse::<Storage>().unwrap();
    assert_eq!(parsed("1.5GB/s"), storage(1.5e9, 100e-6, 32));
    assert_eq!(parsed(" 512 MiB/s @ 0.25ms "), storage(f64::from(512 << 20), 250e-6, 32));
    assert_eq!(parsed("1GB/s@0s").latency, Duration::ZERO);
    assert_eq!(parsed("7GB/s@80us").to_string(), "7 GB/s, 80 µs");
    for wrong in [
        "",
        "1.5GB",
        "0/s",
        "GB/s",
        "1GB/s@",
        "1GB/s@fast",
        "1GB/s@-1s",
        "1GB/s@NaNs",
        "1GB/s@2h",
        "1GB/s@1e9s",
    ] {
        let error = wrong.parse::<Storage>().unwrap_err().to_string();
        assert!(error.contains(&format!("{wrong:?}")) && error.contains("1.5GB/s@120us"), "{error}");
    }
}

#[test]
fn options_outside_their_range_are_refused() {
    let options = || SimOptions::new(4, Storage::new(1e9), seconds(1, 1, 1, 1));
    type Change = fn(&mut SimOptions);
    let wrong: [(&str, Change); 8] = [
        ("slots", |o| o.slots = 1),
        ("storage.bytes_per_second", |o| o.storage.bytes_per_second = 0.0),
        ("storage.bytes_per_second", |o| o.storage.bytes_per_second = f64::NAN),
        ("storage.queue_depth", |o| o.storage.queue_depth = 0),
        ("readers", |o| o.readers = 0),
        ("pack_bytes_per_second", |o| o.pack_bytes_per_second = -1.0),
        ("look_ahead", |o| o.look_ahead = Some(1.1)),
        ("look_ahead", |o| o.look_ahead = Some(f64::NAN)),
    ];
    for (name, change) in wrong {
        let mut options = options();
        change(&mut options);
        let error = simulate(&two_tokens(), &options).unwrap_err().to_string();
        assert!(error.contains(&format!("argument {name}: found")), "{error}");
    }
    let nothing = Trace::new(two_tokens().shape().clone()).unwrap();
    let found = simulate(&nothing, &options()).unwrap();
    assert_eq!((found.tokens_per_second(), found.hit_rate(), found.bytes_per_token()), (0.0, 0.0, 0));
    assert_eq!(found.stall_share(), 0.0);
}

#[test]
fn compute_times_are_those_of_the_stages() {
    let time = |stage: Stage| Duration::from_millis(1 << stage as u64);
    let found = ComputeTimes::by_stage(Duration::from_millis(1 << 13), time);
    let ms = |stages: &[Stage]| Duration::from_millis(stages.iter().map(|stage| 1 << *stage as u64).sum());
    assert_eq!(found.router, ms(&[Stage::Router]));
    assert_eq!(found.attention, ms(&[Stage::Norm, Stage::Qkv, Stage::Attention, Stage::AttentionOut]));
    assert_eq!(found.experts, ms(&[Stage::GateUp, Stage::Gate, Stage::Up, Stage::Down]));
    assert_eq!(found.total(), Duration::from_millis(1 << 13) - ms(&[Stage::Wait]));
}
