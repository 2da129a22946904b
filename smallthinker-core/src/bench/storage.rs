//! How fast a model's experts can be read from storage.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::experts::{ExpertCache, LentSlot};
use crate::pool::Team;
use crate::sample::SplitMix64;

/// How long a measurement reads.
const TIME: Duration = Duration::from_secs(1);

/// Bytes per second that the cache's number of threads reads of experts' pieces, picked at random, in the way that the
/// cache reads them and into the same memory, without rearranging or keeping what they read.
/// Nothing else uses them meanwhile: `team` is the pool's. A thread reads only if there is a slot for it.
pub(super) fn measure(cache: &ExpertCache, team: &Team<'_>) -> Result<f64> {
    let slots: Vec<LentSlot<'_>> = (0..cache.readers()).map_while(|_| cache.lend_slot(team)).collect();
    let (began, bytes) = (Instant::now(), AtomicU64::new(0));
    let read = |seed: usize, mut slot: LentSlot<'_>| -> Result<()> {
        let mut random = SplitMix64::new(seed as u64);
        let mut pick = |n: usize| (random.next_unit() * n as f64) as usize;
        while began.elapsed() < TIME {
            let index = cache.index();
            let (layer, expert) = (pick(index.layers.len()), pick(index.n_experts));
            let piece = pick(index.layers[layer].pieces.len());
            bytes.fetch_add(cache.read_only(layer, expert, piece, &mut slot)?, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let start = |(seed, slot)| {
            scope.spawn({
                let read = &read;
                move || read(seed, slot)
            })
        };
        let threads: Vec<_> = slots.into_iter().enumerate().map(start).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    Ok(bytes.into_inner() as f64 / began.elapsed().as_secs_f64())
}
