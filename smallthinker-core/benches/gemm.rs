//! Speed of the product of packed Q4_0 weights with many vectors, on one thread:
//! `cargo bench -p smallthinker-core --bench gemm [SET]`.
//!
//! In GMAC/s, for the two shapes of an expert's matrices. "cold" goes round the matrices of many experts, so
//! that weights come from memory, as in a model. Each number is the median of several runs.
#![allow(clippy::print_stdout)]

use std::hint::black_box;

use smallthinker_core::kernels::{ActTiles, Acts, GemmScratch, Kernels, Layout, PanelSource};

/// More than second-level caches hold.
const COLD_BYTES: usize = 64 << 20;

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

/// Seconds per call: the median of fifteen runs of about 10 ms after a warm-up.
fn seconds(mut run: impl FnMut()) -> f64 {
    let start = now();
    run();
    run();
    let repeat = (0.01 / (now() - start) * 2.0).clamp(1.0, 1e4) as usize;
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = now();
            (0..repeat).for_each(|_| run());
            (now() - start) / repeat as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let sizes = [1, 4, 8, 16, 17, 24, 48, 100, 512];
    let header: String = sizes.iter().map(|n| format!("{n:>8}")).collect();
    println!("{:24} {:6}{header}", "GMAC/s, vectors:", "");
    for set in Kernels::available() {
        if wanted.as_ref().is_some_and(|name| name != set.name()) {
            continue;
        }
        for (layout, rows, cols) in [(Layout::Lanes, 768, 1536), (Layout::DownTiles, 1536, 768)] {
            let bytes = rows * cols / 32 * 18;
            // Every byte 0x11: small finite values.
            let weights = vec![0x11_u8; COLD_BYTES / bytes * bytes];
            let x: Vec<f32> = (0..512 * cols).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect();
            let mut acts = Acts::new();
            acts.set(set, &x, cols, true).expect("whole rows");
            for cold in [false, true] {
                let mut line = String::new();
                for tokens in sizes {
                    if set.name() == "scalar" && (cold || tokens > 16) {
                        continue;
                    }
                    let mut tiles = ActTiles::new();
                    let mut scratch = GemmScratch::new();
                    let mut out = vec![0.0; tokens * rows];
                    let mut matrices = weights.chunks_exact(bytes).cycle();
                    let s = seconds(|| {
                        let data = if cold { matrices.next().expect("endless") } else { &weights[..bytes] };
                        let w = PanelSource { layout, data, rows, cols };
                        tiles.set(&acts, 0..tokens).expect("in range");
                        set.gemm(&w.rows(0..rows), tiles.batch(0), &mut scratch, &mut out, rows)
                            .expect("lengths fit");
                        black_box(&out);
                    });
                    line += &format!("{:8.1}", (tokens * rows * cols) as f64 / s / 1e9);
                }
                let heat = if cold { "cold" } else { "warm" };
                println!("{:11} {:>4}x{:<7} {heat:6}{line}", set.name(), rows, cols);
            }
        }
    }
}
