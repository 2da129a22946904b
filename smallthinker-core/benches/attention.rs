//! Speed of attention on one thread, in the shapes of the 21B model (28 heads, 4 KV heads of 128):
//! `cargo bench -p smallthinker-core --bench attention [SET [ELEMENTS]]`.
//!
//! Decode: one token over many layers of cache, more than any cache of the CPU holds, in GB/s of keys and values.
//! Prefill: a chunk of 512 tokens, in multiply-adds that the mask leaves per second and per cycle. The clock of
//! the CPU is taken from a chain of dependent multiplications. Each number is the median of several runs.
#![allow(clippy::print_stdout)]

use std::hint::black_box;

use smallthinker_core::kernels::Kernels;
use smallthinker_core::kernels::attention::{
    BLOCK, LANES, Line, Lines, QueryRows, Square, Square4, key_lines, squares, value_lines,
};

const HEAD_DIM: usize = 128;
const GROUP: usize = 7;
const KV_HEADS: usize = 4;
/// Blocks of a span, as in the forward pass.
const SPAN: usize = 2;
/// How far apart blocks lie that follow one another; prime, so that every block has its turn.
const APART: usize = 7919;
/// Bytes of keys and values that a decode run reads.
const DECODE_BYTES: usize = 256 << 20;
const CHUNK: usize = 512;
/// Tokens of a task, as in the forward pass.
const TOKENS: usize = 32;

/// Processor time of this thread, so that other programs on the machine disturb less than in wall time.
#[cfg(unix)]
fn now() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
fn now() -> f64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0.0, |t| t.as_secs_f64())
}

/// Seconds per call: the median of seven runs after a warm-up.
fn seconds(mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let start = now();
            run();
            now() - start
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Cycles per second: a multiplication (three cycles) and a bit operation (one), each waiting for the one before.
fn clock() -> f64 {
    const STEPS: usize = 10_000_000;
    let s = seconds(|| {
        black_box((0..black_box(STEPS)).fold(black_box(3_u64), |x, _| x.wrapping_mul(x) ^ 0x9e37_79b9));
    });
    4.0 * STEPS as f64 / s
}

/// Blocks of one head's keys and values.
enum Cache {
    F16(Vec<Line<u16>>),
    F32(Vec<Line<f32>>),
    Q8(Vec<Square>),
    Q4(Vec<Square4>),
}

/// A vector in huge pages, where the system has them, as the engine's caches are.
fn filled<T>(len: usize, line: impl Fn(usize) -> T) -> Vec<T> {
    let mut all = Vec::with_capacity(len);
    #[cfg(target_os = "linux")]
    {
        let (start, end) = (all.as_ptr() as usize, all.as_ptr() as usize + len * size_of::<T>());
        let start = start.next_multiple_of(4096);
        // SAFETY: whole pages inside an allocation of our own; the advice does not change contents.
        unsafe { libc::madvise(start as *mut _, (end - start) / 4096 * 4096, libc::MADV_HUGEPAGE) };
    }
    all.extend((0..len).map(line));
    all
}

impl Cache {
    fn new(kind: &str, blocks: usize) -> Cache {
        let n = blocks * (key_lines(HEAD_DIM) + value_lines(HEAD_DIM));
        // Small numbers of both signs.
        let value = |i: usize| ((i * 7919) % 2001) as f32 / 4000.0 - 0.25;
        let half = |i: usize| 0x3000 | ((i * 7919) % 1024) as u16 | ((i & 1) << 15) as u16;
        let codes = |i: usize| std::array::from_fn(|k| ((i + k * (k / LANES)) % 255) as u8 as i8);
        match kind {
            "f16" => Cache::F16(filled(n, |l| Line(std::array::from_fn(|i| half(l * LANES + i))))),
            "f32" => Cache::F32(filled(n, |l| Line(std::array::from_fn(|i| value(l * LANES + i))))),
            "q4_0" => Cache::Q4(filled(2 * blocks * squares(HEAD_DIM), |i| Square4 {
                scales: [0x1800; LANES],
                codes: std::array::from_fn(|k| ((i + k * (k / LANES)) % 255) as u8),
            })),
            _ => Cache::Q8(filled(2 * blocks * squares(HEAD_DIM), |i| Square {
                scales: [0x1800; LANES],
                codes: codes(i),
            })),
        }
    }

    fn block(&self, block: usize) -> (Lines<'_>, Lines<'_>) {
        fn cut<T>(all: &[T], block: usize, keys: usize, len: usize) -> (&[T], &[T]) {
            all[block * len..(block + 1) * len].split_at(keys)
        }
        let (keys, len) = (key_lines(HEAD_DIM), key_lines(HEAD_DIM) + value_lines(HEAD_DIM));
        match self {
            Cache::F16(all) => {
                let (k, v) = cut(all, block, keys, len);
                (Lines::F16(k), Lines::F16(v))
            }
            Cache::F32(all) => {
                let (k, v) = cut(all, block, keys, len);
                (Lines::F32(k), Lines::F32(v))
            }
            Cache::Q8(all) => {
                let (k, v) = cut(all, block, squares(HEAD_DIM), 2 * squares(HEAD_DIM));
                (Lines::Q8(k), Lines::Q8(v))
            }
            Cache::Q4(all) => {
                let (k, v) = cut(all, block, squares(HEAD_DIM), 2 * squares(HEAD_DIM));
                (Lines::Q4(k), Lines::Q4(v))
            }
        }
    }
}

/// One token of `context` positions, in as many layers and heads as the cache holds.
fn decode(set: &Kernels, cache: &Cache, blocks: usize, context: usize, queries: &[f32]) -> f64 {
    let per_head = context / BLOCK;
    let mut totals = vec![0.0; GROUP * QueryRows::total_len(HEAD_DIM)];
    let mut rows = QueryRows::new(set, HEAD_DIM);
    seconds(|| {
        for head in 0..blocks / per_head {
            let q = queries.chunks(HEAD_DIM).take(GROUP).map(|q| (q, 0..context));
            let q: Vec<_> = q.collect();
            rows.set(q.into_iter()).expect("rows of one length");
            totals.fill(0.0);
            for block in 0..per_head {
                // As pages of the engine's cache, blocks do not lie in the order of their use.
                let place = |number: usize| number * APART % blocks;
                let (keys, values) = cache.block(place(head * per_head + block));
                if head * per_head + block + 1 < blocks {
                    let (keys, values) = cache.block(place(head * per_head + block + 1));
                    rows.announce(keys, values);
                }
                rows.add_block(block * BLOCK, keys, values).expect("whole blocks");
                if block % SPAN == SPAN - 1 {
                    rows.end_span(&mut totals);
                }
            }
            black_box(&totals);
        }
    })
}

/// A chunk from `start` on, one kv head; returns seconds and multiply-adds.
fn prefill(set: &Kernels, cache: &Cache, start: usize, tokens: usize, queries: &[f32]) -> (f64, f64) {
    let mut totals = vec![0.0; TOKENS * GROUP * QueryRows::total_len(HEAD_DIM)];
    let mut rows = QueryRows::new(set, HEAD_DIM);
    let s = seconds(|| {
        for first in (start..start + tokens).step_by(TOKENS) {
            let q = queries.chunks(HEAD_DIM).take(TOKENS * GROUP).enumerate();
            let q: Vec<_> = q.map(|(i, q)| (q, 0..first + i / GROUP + 1)).collect();
            rows.set(q.into_iter()).expect("rows of one length");
            totals.fill(0.0);
            for block in 0..(first + TOKENS).div_ceil(BLOCK) {
                let (keys, values) = cache.block(block);
                if (block + 1) * BLOCK < first + TOKENS {
                    let (keys, values) = cache.block(block + 1);
                    rows.announce(keys, values);
                }
                rows.add_block(block * BLOCK, keys, values).expect("whole blocks");
                if block % SPAN == SPAN - 1 {
                    rows.end_span(&mut totals);
                }
            }
            rows.end_span(&mut totals);
            black_box(&totals);
        }
    });
    let positions: usize = (start..start + tokens).map(|p| p + 1).sum();
    (s, (positions * 2 * HEAD_DIM * GROUP) as f64)
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let hz = clock();
    println!("clock: {:.2} GHz", hz / 1e9);
    let queries: Vec<f32> =
        (0..TOKENS * GROUP * HEAD_DIM).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect();
    for (kind, per_32) in [("f16", 64), ("f32", 128), ("q8_0", 34), ("q4_0", 18)] {
        if wanted.get(1).is_some_and(|name| name != kind) {
            continue;
        }
        let block_bytes = BLOCK * 2 * HEAD_DIM / 32 * per_32;
        let blocks = DECODE_BYTES / block_bytes / (32 * KV_HEADS) * (32 * KV_HEADS);
        let cache = Cache::new(kind, blocks);
        for set in Kernels::available() {
            if wanted.first().is_some_and(|name| name != set.name()) {
                continue;
            }
            let label = format!("{:12} {kind:4}", set.name());
            let scalar = set.name() == "scalar";
            for context in [1024, 8192] {
                let blocks = if scalar { context / BLOCK } else { blocks };
                let s = decode(set, &cache, blocks, context, &queries);
                let cycles = s * hz / (blocks * BLOCK) as f64;
                let speed = (blocks * block_bytes) as f64 / s / 1e9;
                println!(
                    "{label} decode at {context}: {speed:5.1} GB/s, {cycles:.0} cycles per position and kv head"
                );
            }
            for start in [0, 3584] {
                if scalar && start > 0 {
                    continue;
                }
                let (s, macs) = prefill(set, &cache, start, if scalar { TOKENS } else { CHUNK }, &queries);
                let (speed, per_cycle) = (macs / s / 1e9, macs / s / hz);
                println!("{label} prefill from {start}: {speed:5.1} GMAC/s, {per_cycle:.1} MAC per cycle");
            }
        }
    }
}
