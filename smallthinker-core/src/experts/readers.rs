//! The threads that read experts from the file.

use std::sync::{Arc, PoisonError};

use super::Shared;
use super::queue::Job;
use super::sync::thread::{Builder, JoinHandle};
use crate::{Error, Result};

/// A small pool of reader threads.
pub(super) struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(shared: &Arc<Shared>, count: usize) -> Result<Readers> {
        let mut readers = Readers { shared: Arc::clone(shared), threads: Vec::new() };
        for i in 0..count.max(1) {
            let shared = Arc::clone(shared);
            let thread = Builder::new()
                .name(format!("smallthinker-read-{i}"))
                .spawn(move || serve(&shared))
                .map_err(|e| Error::Internal { message: format!("cannot start reader thread {i}: {e}") })?;
            readers.threads.push(thread);
        }
        Ok(readers)
    }

    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        // What is still queued, nobody waits for.
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared) {
    while let Some(mut job) = next(shared) {
        let result = fill(shared, &mut job);
        let mut state = shared.lock();
        state.reading.leave();
        let again = state.arrived(job, result);
        drop(state);
        if again {
            shared.work.notify_all();
        }
        shared.changed.notify_all();
    }
}

/// The next job; `None` when the cache closes.
fn next(shared: &Shared) -> Option<Job> {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return None;
        }
        if let Some(job) = state.queue.pop() {
            state.reading.enter();
            return Some(job);
        }
        state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Reads a piece of an expert, as it is in the file. Returns the bytes read.
fn fill(shared: &Shared, job: &mut Job) -> Result<u64> {
    let (layer, expert) = job.id;
    let experts = &shared.index.layers[layer];
    let piece = &experts.pieces[job.piece];
    let (reads, offset) = (shared.reads(), piece.place(expert));
    let read = shared.source.read_range(reads, piece.shard, offset, piece.bytes, &mut job.bytes.slab)?;
    job.bytes.at = read.start;
    job.bytes.raw = experts.is_rearranged(experts.matrices()[job.piece]);
    check(shared, job)
}

/// Checks a piece that lies in the file as it does in its place. Returns the bytes read.
pub(super) fn check(shared: &Shared, job: &Job) -> Result<u64> {
    let (layer, expert) = job.id;
    let experts = &shared.index.layers[layer];
    let piece = &experts.pieces[job.piece];
    if shared.index.packed {
        for m in experts.matrices() {
            let (offset, data) = (piece.place(expert) + m.at as u64, job.bytes.get(m.range()));
            let shape = (m.rows, m.cols);
            shared.source.check_packed((m.dtype, m.layout), shape, piece.shard, offset, data)?;
        }
    }
    Ok(piece.bytes as u64)
}
