//! A machine in virtual time: threads that compute together, and threads that read. Nothing sleeps and nothing is drawn at
//! random: the same work takes the same time on any machine that runs this.

use super::storage::{Device, Storage};
use crate::experts::queue::{Job, Queue};

/// A part of an expert that is to be read: `bytes` is how many.
pub(super) type Read = Job<u64>;

pub(super) struct Machine {
    /// Seconds since the beginning.
    pub(super) now: f64,
    pub(super) queue: Queue<u64>,
    device: Device<Read>,
    idle_readers: usize,
}

impl Machine {
    pub(super) fn new(storage: Storage, readers: usize) -> Machine {
        Machine { now: 0.0, queue: Queue::default(), device: Device::new(storage), idle_readers: readers }
    }

    /// Lets idle readers take what is to be read.
    pub(super) fn dispatch(&mut self) {
        while self.idle_readers > 0 {
            let Some(job) = self.queue.pop() else { return };
            self.idle_readers -= 1;
            self.device.read(self.now, job.bytes, job);
        }
    }

    /// Computes for `seconds`. `arrived` is told each part that has been read meanwhile.
    pub(super) fn compute(&mut self, seconds: f64, arrived: &mut dyn FnMut(Read)) {
        let end = self.now + seconds;
        while self.device.next_end().is_some_and(|read| read <= end) {
            self.wait(arrived);
        }
        self.now = end;
    }

    /// Waits until something has been read; returns whether anything is being.
    pub(super) fn wait(&mut self, arrived: &mut dyn FnMut(Read)) -> bool {
        let Some(end) = self.device.next_end() else { return false };
        self.now = end.max(self.now);
        if let Some(job) = self.device.take() {
            self.idle_readers += 1;
            self.dispatch();
            arrived(job);
        }
        true
    }
}
