//! A machine in virtual time: threads that compute, threads that read and rearrange what they have read, and the
//! processors that they share. Nothing sleeps and nothing is drawn at random: the same work takes the same time on any
//! machine that runs this.

use super::storage::{Device, Storage};
use crate::experts::queue::{Job, Queue};

/// A part of an expert that is to be read: `bytes` is how many.
pub(super) type Read = Job<u64>;

/// How fast threads are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speeds {
    /// Threads that compute together.
    pub(super) threads: f64,
    /// Processors that they share with threads that rearrange weights.
    pub(super) processors: f64,
    /// Bytes per second of rearranging.
    pub(super) pack: f64,
}

pub(super) struct Machine {
    speeds: Speeds,
    /// Seconds since the beginning.
    pub(super) now: f64,
    pub(super) queue: Queue<u64>,
    device: Device<Read>,
    /// Weights that are being rearranged, each by the thread that has read them, with the seconds that it takes yet.
    packing: Vec<(f64, Read)>,
    idle_readers: usize,
}

impl Machine {
    pub(super) fn new(storage: Storage, readers: usize, speeds: Speeds) -> Machine {
        Machine {
            speeds,
            now: 0.0,
            queue: Queue::default(),
            device: Device::new(storage),
            packing: Vec::new(),
            idle_readers: readers,
        }
    }

    /// Lets idle readers take what is to be read.
    pub(super) fn dispatch(&mut self) {
        while self.idle_readers > 0 {
            let Some(job) = self.queue.pop() else { return };
            self.idle_readers -= 1;
            self.device.read(self.now, job.bytes, job);
        }
    }

    /// Computes for `seconds` of an undisturbed machine. `arrived` is told each part that comes into its place meanwhile.
    pub(super) fn compute(&mut self, seconds: f64, arrived: &mut dyn FnMut(Read)) {
        let mut left = seconds;
        loop {
            let speed = self.speed(self.speeds.threads);
            let end = self.now + left / speed;
            match self.next_event(speed) {
                Some(event) if event <= end => {
                    left = (left - (event - self.now) * speed).max(0.0);
                    self.step(event, speed, arrived);
                }
                _ => {
                    self.pass_to(end, speed);
                    return;
                }
            }
        }
    }

    /// Waits until something happens; returns whether anything can.
    pub(super) fn wait(&mut self, arrived: &mut dyn FnMut(Read)) -> bool {
        let speed = self.speed(0.0);
        let event = self.next_event(speed);
        event.is_some_and(|event| {
            self.step(event, speed, arrived);
            true
        })
    }

    /// The share of a processor that each thread has, when so many compute.
    fn speed(&self, computing: f64) -> f64 {
        let threads = computing + self.packing.len() as f64;
        if threads > self.speeds.processors { self.speeds.processors / threads } else { 1.0 }
    }

    /// When the next read or rearranging ends at this speed.
    fn next_event(&self, speed: f64) -> Option<f64> {
        let pack = self.first_packed().map(|i| self.now + self.packing[i].0 / speed);
        let read = self.device.next_end().map(|end| end.max(self.now));
        match (read, pack) {
            (Some(read), Some(pack)) => Some(read.min(pack)),
            (read, pack) => read.or(pack),
        }
    }

    /// The rearranging that ends first; of equals the one that began first.
    fn first_packed(&self) -> Option<usize> {
        let times = self.packing.iter().enumerate();
        times.min_by(|a, b| a.1.0.total_cmp(&b.1.0).then(a.0.cmp(&b.0))).map(|(i, _)| i)
    }

    /// Comes to the next event and lets it happen: a read first, if several fall together.
    fn step(&mut self, event: f64, speed: f64, arrived: &mut dyn FnMut(Read)) {
        let reads = self.device.next_end().is_some_and(|end| end <= event);
        let packed = self.first_packed();
        self.pass_to(event, speed);
        if let Some(job) = if reads { self.device.take() } else { None } {
            self.packing.push((job.bytes as f64 / self.speeds.pack, job));
        } else if let Some(i) = packed {
            let (_, job) = self.packing.remove(i);
            self.idle_readers += 1;
            self.dispatch();
            arrived(job);
        }
    }

    fn pass_to(&mut self, time: f64, speed: f64) {
        let done = (time - self.now) * speed;
        self.packing.iter_mut().for_each(|(left, _)| *left = (*left - done).max(0.0));
        self.now = time;
    }
}
