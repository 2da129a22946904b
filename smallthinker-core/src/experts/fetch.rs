//! Reading by the compute threads. Where the file lies in memory, there is no device to wait for: all the work is the
//! processor's, and threads of their own for it would only take turns with those that compute.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::queue::Job;
use super::{ExpertCache, Shared, readers};
use crate::gguf::{ReadBuffer, Reads};
use crate::model::expert_index::{ExpertIndex, ExpertMatrix};
use crate::pool::Team;
use crate::tensor::packed::Band;
use crate::tiles::runs;
use crate::{Error, Result};

/// Bytes that a task reads of what lies in the file as it does in a slot.
const CHUNK: usize = 128 << 10;

/// Memory for a band of a matrix as it is in the file: as many as threads have read at once.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<ReadBuffer>>);

impl Buffers {
    fn with<T>(&self, bytes: usize, use_it: impl FnOnce(&mut ReadBuffer) -> Result<T>) -> Result<T> {
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all().pop();
        let mut buffer = taken.map_or_else(|| ReadBuffer::new(bytes), Ok)?;
        let done = use_it(&mut buffer);
        all().push(buffer);
        done
    }
}

/// What one task reads: some bytes of a job's piece, and their place in the slot.
struct Part<'a> {
    job: usize,
    shard: usize,
    offset: u64,
    bytes: usize,
    place: Place<'a>,
}

enum Place<'a> {
    /// They lie in the file as they do here.
    Same(&'a mut [u8]),
    Packed(&'a ExpertMatrix, Band<'a>),
}

impl ExpertCache {
    /// Whether the experts that a token has chosen are read by [`fetch`](Self::fetch).
    pub(crate) fn fetches(&self) -> bool {
        self.shared.in_memory
    }

    /// Reads what the pass has chosen and is absent, as far as slots can be had, with all of its threads. Does nothing
    /// for files that don't lie in memory: theirs are on their way since they were requested.
    pub(crate) fn fetch(&self, team: &Team<'_>) -> Result<()> {
        let shared = &*self.shared;
        if !shared.in_memory {
            return Ok(());
        }
        let began = Instant::now();
        let mut jobs = shared.lock().take_awaited();
        if jobs.is_empty() {
            return Ok(());
        }
        let mut parts: Vec<Part<'_>> = Vec::new();
        jobs.iter_mut().enumerate().for_each(|(i, job)| parts_of(&shared.index, i, job, &mut parts));
        let failures: Mutex<Vec<(usize, Error)>> = Mutex::default();
        let width = parts.len();
        let ran = runs(team, &mut parts, width, (1, 1), &|tile| {
            for part in tile.row(0) {
                if let Err(error) = read(shared, part) {
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push((part.job, error));
                }
            }
            Ok(())
        });
        drop(parts);
        // Of a panic: nobody knows what it left undone.
        let unknown = ran.err().map(|error| error.to_string());
        let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (i, job) in jobs.into_iter().enumerate() {
            let failed = failures.iter().position(|(job, _)| *job == i).map(|at| failures.swap_remove(at).1);
            let result = match (failed, &unknown) {
                (Some(error), _) => Err(error),
                (None, Some(message)) => Err(Error::Internal { message: message.clone() }),
                (None, None) => readers::check(shared, &job),
            };
            if shared.lock().arrived(job, result) {
                shared.work.notify_all();
            }
        }
        let mut state = shared.lock();
        state.reading.leave();
        state.stats.stall += began.elapsed();
        drop(state);
        shared.changed.notify_all();
        Ok(())
    }
}

fn parts_of<'a>(index: &'a ExpertIndex, job: usize, of: &'a mut Job, parts: &mut Vec<Part<'a>>) {
    let (layer, expert) = of.id;
    let experts = &index.layers[layer];
    let piece = &experts.pieces[of.piece];
    let (shard, mut offset) = (piece.shard, piece.place(expert));
    let mut add = |bytes: usize, place: Place<'a>| {
        parts.push(Part { job, shard, offset, bytes, place });
        offset += bytes as u64;
    };
    (of.bytes.at, of.bytes.raw) = (0, false);
    let m = experts.matrices()[of.piece];
    if !experts.is_rearranged(m) {
        let place = of.bytes.slab.get_mut(..piece.bytes).unwrap_or(&mut []);
        place.chunks_mut(CHUNK).for_each(|chunk| add(chunk.len(), Place::Same(chunk)));
        return;
    }
    let place = of.bytes.slab.get_mut(..m.slot_bytes).unwrap_or(&mut []);
    let mut left = piece.bytes;
    for band in Band::all(m.dtype, m.layout, m.rows, m.cols, place) {
        let bytes = m.band_bytes().min(left);
        left -= bytes;
        add(bytes, Place::Packed(m, band));
    }
}

fn read(shared: &Shared, part: &mut Part<'_>) -> Result<()> {
    let (source, shard, offset) = (&shared.source, part.shard, part.offset);
    match &mut part.place {
        Place::Same(place) => source.read_exact_at(shard, offset, place),
        Place::Packed(m, band) => shared.fetch_buffers.with(shared.index.widest_band(), |buffer| {
            let range = source.read_range(Reads::Cached, shard, offset, part.bytes, buffer)?;
            let file = buffer.get(range).unwrap_or(&[]);
            source.check_blocks(m.dtype, shard, offset, file)?;
            band.pack(m.dtype, m.layout, file, m.cols);
            Ok(())
        }),
    }
}
