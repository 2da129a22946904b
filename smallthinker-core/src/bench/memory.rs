//! How fast this machine reads memory.

use std::hint::black_box;
use std::time::Instant;

use crate::arena::{Arena, Slab};
use crate::kernels::Kernels;
use crate::{Result, platform};

/// A buffer this many times the last-level cache is read from memory.
const CACHE_MULTIPLE: u64 = 4;
const MIN_BUFFER: u64 = 256 << 20;
const MAX_BUFFER: u64 = 1 << 30;
/// Passes of each loop over the buffer per measurement.
const PASSES: usize = 3;

/// Bytes per second that a machine reads from memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct ReadBandwidth {
    /// Of the fastest loop.
    pub best: f64,
    /// Of a plain loop.
    pub plain: f64,
}

impl ReadBandwidth {
    pub(super) fn max(self, other: ReadBandwidth) -> ReadBandwidth {
        ReadBandwidth { best: self.best.max(other.best), plain: self.plain.max(other.plain) }
    }
}

/// Bytes that a loop reads in one go.
const STEP: usize = 512;
/// How far ahead of its reading a loop asks for memory.
const AHEAD: usize = 4096;
/// Places at which a loop reads in turn, at most.
const STREAMS: usize = 4;

/// Ways to read memory, the plain one first. Which is the fastest depends on the machine: some ask for memory far
/// enough ahead by themselves, others need to be asked, or to see several streams.
const LOOPS: [fn(&Kernels, &[u8]) -> u64; 4] =
    [sum::<1, false>, sum::<1, true>, sum::<STREAMS, false>, sum::<STREAMS, true>];

/// What `threads` threads together read from memory per second: the best of several passes over a buffer far larger
/// than the caches.
pub fn measure_read_bandwidth(threads: usize) -> Result<ReadBandwidth> {
    let cache = platform::last_level_cache_bytes().unwrap_or(0);
    // Not so large that a container with little memory left is closed over it.
    let most = platform::available_memory().map_or(MAX_BUFFER, |free| (free / 2).min(MAX_BUFFER));
    let bytes = (cache * CACHE_MULTIPLE).clamp(MIN_BUFFER.min(most), most) as usize;
    let threads = threads.max(1);
    // Whole steps of every loop, so that all of them read all of it.
    let part_bytes = bytes / threads / (STEP * STREAMS) * (STEP * STREAMS);
    // As the weights lie: in huge pages where the system has them.
    let mut arena = Arena::new(Arena::footprint(part_bytes) * threads, "the bandwidth measurement")?;
    let mut parts: Vec<Slab> = (0..threads).map_while(|_| arena.take(part_bytes)).collect();
    // Memory that was never written may be one page of zeros, over and over.
    on_each(parts.iter_mut(), |part| part.fill(1));
    let kernels = Kernels::detect(); // for its way to ask ahead, whatever set the model uses
    let mut rates = [0f64; LOOPS.len()];
    for _ in 0..PASSES {
        // In turn, so that all see the same neighbours on this machine.
        for (rate, read) in rates.iter_mut().zip(LOOPS) {
            let began = Instant::now();
            on_each(parts.iter(), |part| {
                black_box(read(kernels, black_box(part)));
            });
            *rate = rate.max((part_bytes * parts.len()) as f64 / began.elapsed().as_secs_f64());
        }
    }
    Ok(ReadBandwidth { best: rates.into_iter().fold(0.0, f64::max), plain: rates[0] })
}

/// Does `work` with every item, each on a thread of its own.
fn on_each<T: Send>(items: impl Iterator<Item = T>, work: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for item in items {
            let work = &work;
            scope.spawn(move || work(item));
        }
    });
}

/// The sum of all words (of whole steps at each of `N` places), with enough independent additions that memory is what
/// it waits for.
fn sum<const N: usize, const ASK: bool>(kernels: &Kernels, bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; STEP / 8];
    let stream = bytes.len() / N / STEP * STEP;
    for at in (0..stream).step_by(STEP) {
        for n in 0..N {
            let rest = &bytes[n * stream + at..];
            if ASK {
                kernels.prefetch(rest.get(AHEAD..AHEAD + STEP).unwrap_or_default());
            }
            for (lane, word) in lanes.iter_mut().zip(rest.as_chunks().0) {
                *lane = lane.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
    }
    lanes.iter().fold(0, |a, &b| a.wrapping_add(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_reads_every_word() {
        let words: Vec<u64> = (0..(STEP * STREAMS * 5 / 8) as u64).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let n = words.len() as u64;
        for (i, read) in LOOPS.iter().enumerate() {
            assert_eq!(read(Kernels::detect(), &bytes), n * (n - 1) / 2, "loop {i}");
        }
    }

    #[test]
    fn bandwidth_is_that_of_a_memory() {
        let ReadBandwidth { best, plain } = measure_read_bandwidth(1).unwrap();
        assert!(
            (1e8..1e13).contains(&plain) && plain <= best && best < 1e13,
            "{plain:e}, {best:e} bytes per second"
        );
    }
}
