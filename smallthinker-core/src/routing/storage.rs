//! Storage in virtual time: what a device of known bandwidth, latency and queue depth does with reads.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::{Error, Result, parse_bytes};

/// A storage device. A read takes its latency, of which that of `queue_depth` reads passes at the same time, then its
/// transfer, one read after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Storage {
    /// Bytes that it transfers per second, above 0; may be infinite.
    pub bytes_per_second: f64,
    /// From the request to the first byte.
    pub latency: Duration,
    /// Reads that it works on at once, at least 1.
    pub queue_depth: usize,
}

/// Of a device whose text does not say it.
const LATENCY: Duration = Duration::from_micros(100);

/// More than there are readers.
const QUEUE_DEPTH: usize = 32;

impl Storage {
    /// A device of so many bytes per second, with a latency of 100 µs and a queue that takes all that readers ask for.
    pub fn new(bytes_per_second: f64) -> Storage {
        Storage { bytes_per_second, latency: LATENCY, queue_depth: QUEUE_DEPTH }
    }

    /// Errors: [`Error::InvalidArgument`] naming the field.
    pub(super) fn check(&self) -> Result<()> {
        if self.bytes_per_second.is_nan() || self.bytes_per_second <= 0.0 {
            return Err(Error::argument("storage.bytes_per_second", self.bytes_per_second, "above 0"));
        }
        if self.queue_depth == 0 {
            return Err(Error::argument("storage.queue_depth", 0, "1 or more"));
        }
        Ok(())
    }
}

impl FromStr for Storage {
    type Err = Error;

    /// Reads a rate with an optional latency, such as "1.5GB/s" or "7GB/s@80us" (also "ms" and "s").
    fn from_str(text: &str) -> Result<Storage> {
        let refuse = || {
            Error::argument(
                "storage",
                format!("{text:?}"),
                "a rate and a latency, such as 1.5GB/s or 1.5GB/s@120us",
            )
        };
        let (rate, latency) = text.split_once('@').map_or((text, None), |(rate, l)| (rate, Some(l)));
        let rate = rate.trim().strip_suffix("/s").ok_or_else(refuse)?;
        let rate = parse_bytes(rate).ok().filter(|rate| *rate > 0).ok_or_else(refuse)?;
        let latency = match latency {
            None => LATENCY,
            Some(text) => parse_time(text.trim()).ok_or_else(refuse)?,
        };
        Ok(Storage { latency, ..Storage::new(rate as f64) })
    }
}

/// A time such as "120us", "0.1ms" or "1s", an hour at most.
fn parse_time(text: &str) -> Option<Duration> {
    let units = [("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    let seconds = number.trim().parse::<f64>().ok()? * unit;
    (0.0..=3600.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

impl fmt::Display for Storage {
    /// Such as "1.5 GB/s, 120 µs".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} GB/s, {} µs", self.bytes_per_second / 1e9, self.latency.as_secs_f64() * 1e6)
    }
}

/// A device at work. Times are seconds since the beginning.
pub(super) struct Device<R> {
    storage: Storage,
    /// When the latest transfer ends.
    busy_until: f64,
    /// Reads in progress, with the times when they end; in the order of both.
    under_way: VecDeque<(f64, R)>,
    /// Ends of the latest reads, as many as the device works on at once, the oldest first.
    latest: VecDeque<f64>,
}

impl<R> Device<R> {
    pub(super) fn new(storage: Storage) -> Device<R> {
        Device { storage, busy_until: 0.0, under_way: VecDeque::new(), latest: VecDeque::new() }
    }

    /// Begins to read `bytes` bytes at time `now`, or as soon as there is a place in its queue.
    pub(super) fn read(&mut self, now: f64, bytes: u64, read: R) {
        let full = self.latest.len() == self.storage.queue_depth;
        let place = if full { self.latest.pop_front().unwrap_or(now) } else { now };
        let first_byte = now.max(place) + self.storage.latency.as_secs_f64();
        let end = first_byte.max(self.busy_until) + bytes as f64 / self.storage.bytes_per_second;
        self.busy_until = end;
        self.latest.push_back(end);
        self.under_way.push_back((end, read));
    }

    /// When the next read ends.
    pub(super) fn next_end(&self) -> Option<f64> {
        self.under_way.front().map(|(end, _)| *end)
    }

    /// Takes that read.
    pub(super) fn take(&mut self) -> Option<R> {
        self.under_way.pop_front().map(|(_, read)| read)
    }
}
