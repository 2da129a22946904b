//! Every order in which a pass over a file on a disk, the readers and a change of the budget can take turns: no wait that nothing ends, no
//! weights but the right ones. Run by `RUSTFLAGS="--cfg smallthinker_loom" cargo test -p smallthinker-core --lib model_check`.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loom::model::Builder;

use super::*;
use crate::Error;
use crate::gguf::{Double, Gguf, GgufWriter};
use crate::model::expert_index::Part;
use crate::model::hparams::Hparams;
use crate::pool::Pool;
use crate::tensor::DType;

const LAYERS: usize = 2;
const EXPERTS: usize = 2;
const WIDTH: usize = 2;

/// Every weight of an expert is `layer * 10 + expert`.
fn file() -> (Gguf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut w = GgufWriter::new();
    let dims = [WIDTH as u64, WIDTH as u64, EXPERTS as u64];
    for (layer, part) in (0..LAYERS).flat_map(|l| ["gate", "up", "down"].map(|part| (l, part))) {
        w.tensor(&format!("blk.{layer}.ffn_{part}_exps.weight"), DType::F32, &dims).unwrap();
    }
    let mut out = w.create(&path).unwrap();
    for layer in 0..LAYERS {
        for expert in (0..3).flat_map(|_| 0..EXPERTS) {
            let value = (layer * 10 + expert) as f32;
            out.write(&value.to_le_bytes().repeat(WIDTH * WIDTH)).unwrap();
        }
    }
    out.finish().unwrap();
    (Gguf::open(&path).unwrap(), dir)
}

/// A file that is read into memory, some reads of which fail.
#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    reads: AtomicU64,
    fails: std::ops::Range<u64>,
}

impl Double for Memory {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if self.fails.contains(&self.reads.fetch_add(1, Ordering::Relaxed)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(buf.len())
    }
}

/// Tries out every order in which `test` can go with a cache of `slots` slots and one reader, with up to `preemptions` switches
/// between threads that could have gone on.
fn every_order(
    slots: usize,
    preemptions: usize,
    fails: std::ops::Range<u64>,
    test: impl Fn(Arc<ExpertCache>) + Send + Sync + 'static,
) {
    let (gguf, _dir) = file();
    let h = Hparams::of_experts(LAYERS, WIDTH, WIDTH, EXPERTS);
    let index = ExpertIndex::new(&gguf, &h).unwrap();
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(move || {
        let memory = |path: &Path, _, _| -> Box<dyn Double> {
            Box::new(Memory { bytes: std::fs::read(path).unwrap(), reads: 0.into(), fails: fails.clone() })
        };
        let source = Arc::new(gguf.source().doubled(memory));
        let options =
            CacheOptions { slots, least: 1, policy: CachePolicy::Cyclic, readers: 1, buffered: true };
        let budget = Budget::new(1 << 20);
        test(Arc::new(ExpertCache::new(index.clone(), source, options, &budget).unwrap()));
    });
}

/// What an expert's weights are, if they are all the same.
fn value(cache: &ExpertCache, layer: usize, slot: &ExpertSlot) -> usize {
    let mut all = Part::ALL.into_iter().flat_map(|part| {
        let matrix = slot.matrix(&cache.index().layers[layer], part);
        matrix
            .file_rows(0, WIDTH)
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect::<Vec<_>>()
    });
    let first = all.next().unwrap();
    assert!(all.all(|x| x == first), "mixed weights");
    first as usize
}

/// A layer's turn: all of `experts` are computed, in the order in which they arrive.
fn turn(cache: &ExpertCache, layer: usize, experts: &[usize]) -> Result<()> {
    cache.request(layer, 1, experts.iter().copied());
    let mut left = experts.to_vec();
    let (pool, cancel) = (Pool::new(1)?, CancelFlag::new());
    let team = pool.team(&cancel)?;
    while !left.is_empty() {
        let found = cache.acquire_any(layer, &left, &team, &cancel)?;
        for (place, slot) in found.into_iter().rev() {
            assert_eq!(value(cache, layer, &slot), layer * 10 + left.remove(place));
        }
    }
    Ok(())
}

#[test]
fn a_pass_with_guesses_right_and_wrong() {
    every_order(2, 3, 0..0, |cache| {
        turn(&cache, 0, &[0]).unwrap();
        cache.guess(1, &[1]);
        cache.guess(1, &[0]); // instead of the other, if nobody reads that yet
        turn(&cache, 1, &[0]).unwrap();
        turn(&cache, 1, &[1]).unwrap();
    });
}

#[test]
fn failed_reads_are_told_once_and_tried_again() {
    every_order(1, 3, 1..2, |cache| {
        assert!(matches!(turn(&cache, 0, &[0]), Err(Error::Io { .. })));
        turn(&cache, 0, &[0]).unwrap();
        turn(&cache, 1, &[1]).unwrap();
    });
}

#[test]
fn the_number_of_slots_changes_while_a_pass_uses_them() {
    every_order(2, 3, 0..0, |cache| {
        let other = Arc::clone(&cache);
        let resizer = sync::thread::spawn(move || {
            other.resize(1).unwrap();
            other.resize(3).unwrap();
        });
        turn(&cache, 0, &[0]).unwrap();
        turn(&cache, 1, &[1]).unwrap();
        resizer.join().unwrap();
        assert_eq!(cache.slots(), 3);
        turn(&cache, 0, &[1]).unwrap();
    });
}
