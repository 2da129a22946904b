//! Speed of the kernels on one thread: `cargo bench -p smallthinker-core --bench kernels [SET]`.
//!
//! Decode: `matvec` over 128 MiB of weights, more than any cache holds, in GB/s of weights. Prefill: `matmul`
//! of 512 tokens with one expert's matrix, in GMAC/s. Each number is the median of several runs.
#![allow(clippy::print_stdout)]

use std::hint::black_box;

use smallthinker_core::kernels::{Acts, Kernels};
use smallthinker_core::tensor::DType;

const COLS: usize = 1536;
const MATVEC_BYTES: usize = 128 << 20;
const MATMUL_ROWS: usize = 768;
const MATMUL_TOKENS: usize = 512;

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

fn main() {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let x: Vec<f32> = (0..MATMUL_TOKENS * COLS).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect();
    // Every byte 0x11: small finite values in all types.
    let weights = vec![0x11_u8; MATVEC_BYTES];
    {
        let mut total = 0_u64;
        let s = seconds(|| {
            total =
                weights.as_chunks().0.iter().fold(0, |sum: u64, c| sum.wrapping_add(u64::from_le_bytes(*c)))
        });
        black_box(total);
        println!("reading only: {:.1} GB/s", MATVEC_BYTES as f64 / s / 1e9);
    }
    println!("{:12} {:6} {:>12} {:>14}", "set", "type", "matvec GB/s", "matmul GMAC/s");
    for set in Kernels::available() {
        if wanted.as_ref().is_some_and(|name| name != set.name()) {
            continue;
        }
        let mut acts = Acts::new();
        acts.set(set, &x, COLS, true).expect("whole rows");
        for dtype in DType::ALL {
            let row_bytes = dtype.row_bytes(COLS).expect("whole blocks");
            let rows = MATVEC_BYTES / row_bytes;
            let mut out = vec![0.0; rows];
            let s = seconds(|| {
                set.matvec(dtype, &weights[..rows * row_bytes], COLS, acts.row(0), &mut out)
                    .expect("lengths fit");
                black_box(&out);
            });
            let bandwidth = (rows * row_bytes) as f64 / s / 1e9;
            let tokens = if set.name() == "scalar" { 16 } else { MATMUL_TOKENS };
            let mut out = vec![0.0; tokens * MATMUL_ROWS];
            let part = &weights[..MATMUL_ROWS * row_bytes];
            let s = seconds(|| {
                set.matmul(dtype, part, MATMUL_ROWS, COLS, &acts, 0..tokens, &mut out).expect("lengths fit");
                black_box(&out);
            });
            let macs = (tokens * MATMUL_ROWS * COLS) as f64 / s / 1e9;
            println!("{:12} {:6} {bandwidth:12.1} {macs:14.1}", set.name(), dtype.name());
        }
        let s = seconds(|| {
            for row in x.chunks(COLS).take(64) {
                acts.set(set, row, COLS, true).expect("whole rows");
            }
            black_box(&acts);
        });
        println!("{:12} quantize_acts {:.2} G elements/s", set.name(), (64 * COLS) as f64 / s / 1e9);
        let halves = vec![0x3c00_u16; 128];
        let (query, mut acc) = (vec![0.5_f32; 128], vec![0.0_f32; 128]);
        let s = seconds(|| {
            for _ in 0..10_000 {
                black_box(set.dot_f16(black_box(&query), black_box(&halves)).expect("same length"));
            }
        });
        println!("{:12} dot_f16 of 128: {:.0} ns", set.name(), s * 1e5);
        let s = seconds(|| {
            for _ in 0..10_000 {
                set.axpy_f16(black_box(&mut acc), 1e-3, black_box(&halves)).expect("same length");
            }
        });
        println!("{:12} axpy_f16 of 128: {:.0} ns", set.name(), s * 1e5);
    }
}
