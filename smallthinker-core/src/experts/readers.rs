//! The threads that read experts from the file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::Shared;
use super::slot::{Entry, ExpertId, ExpertSlot};
use crate::arena::Slab;
use crate::tensor::packed::{Layout, pack};
use crate::{Error, Result};

/// An expert to read, with the slot that it goes to.
pub(super) struct Wanted {
    pub(super) id: ExpertId,
    pub(super) bytes: Slab,
}

/// A small pool of reader threads, first come, first served.
pub(super) struct Readers {
    stop: Arc<AtomicBool>,
    queue: Option<Sender<Wanted>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(shared: Arc<Shared>, count: usize) -> Result<Readers> {
        let (queue, wanted) = channel();
        let wanted = Arc::new(Mutex::new(wanted));
        let stop = Arc::new(AtomicBool::new(false));
        let mut readers = Readers { stop: Arc::clone(&stop), queue: Some(queue), threads: Vec::new() };
        for i in 0..count.max(1) {
            let (shared, wanted, stop) = (Arc::clone(&shared), Arc::clone(&wanted), Arc::clone(&stop));
            let thread = std::thread::Builder::new()
                .name(format!("smallthinker-read-{i}"))
                .spawn(move || serve(&shared, &wanted, &stop))
                .map_err(|e| Error::Internal { message: format!("cannot start reader thread {i}: {e}") })?;
            readers.threads.push(thread);
        }
        Ok(readers)
    }

    pub(super) fn read(&self, wanted: Wanted) {
        if let Some(queue) = &self.queue {
            // Fails only when every reader is gone, and readers outlive the queue.
            let _ = queue.send(wanted);
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release); // what is still queued, nobody waits for
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared, wanted: &Mutex<Receiver<Wanted>>, stop: &AtomicBool) {
    let mut buffer = Vec::new();
    loop {
        let next = wanted.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Wanted { id, mut bytes }) = next else { return };
        if stop.load(Ordering::Acquire) {
            return;
        }
        let result = fill(shared, id, &mut bytes, &mut buffer);
        let mut state = shared.lock();
        let entry = match result {
            Ok(read) => {
                state.stats.bytes_read += read;
                state.ready += 1;
                Entry::Ready(Arc::new(ExpertSlot::new(bytes)))
            }
            Err(error) => {
                state.put_back(id, bytes);
                Entry::Failed(error)
            }
        };
        state.entries.insert(id, entry);
        drop(state);
        shared.changed.notify_all();
    }
}

/// Reads an expert into its slot; `buffer` takes what must be packed on its way.
fn fill(shared: &Shared, (layer, expert): ExpertId, slot: &mut [u8], buffer: &mut Vec<u8>) -> Result<u64> {
    let mut read = 0;
    for m in shared.index.layers[layer].matrices() {
        let (shard, offset) = m.place(expert);
        let place = &mut slot[m.at..m.at + m.slot_bytes];
        if m.layout == Layout::Rows {
            shared.source.read_exact_at(shard, offset, place)?;
        } else {
            buffer.resize(m.bytes, 0);
            shared.source.read_blocks_at(m.dtype, shard, offset, buffer)?;
            pack(m.dtype, m.layout, buffer, 0, m.rows, m.cols, place);
        }
        read += m.bytes as u64;
    }
    Ok(read)
}
