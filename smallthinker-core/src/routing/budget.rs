//! How large a cache to replay.

use std::str::FromStr;

use super::trace::Shape;
use crate::experts::MIN_SLOTS_PER_CHOICE;
use crate::{Error, Result, parse_bytes};

/// Memory for expert slots. Other weights, KV caches and buffers come on top.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CacheBudget {
    /// So many bytes.
    Bytes(u64),
    /// This share of all experts, above 0 and up to 1.
    Share(f64),
}

impl FromStr for CacheBudget {
    type Err = Error;

    /// Reads a number of bytes such as "2GiB" (see [`parse_bytes`]) or a share such as "25%".
    fn from_str(text: &str) -> Result<CacheBudget> {
        let refuse = || Error::argument("budget", format!("{text:?}"), "bytes such as 2GiB, or 1% to 100%");
        match text.trim().strip_suffix('%') {
            None => parse_bytes(text).map(CacheBudget::Bytes).map_err(|_| refuse()),
            Some(percent) => {
                let percent: f64 = percent.trim().parse().map_err(|_| refuse())?;
                if percent > 0.0 && percent <= 100.0 {
                    Ok(CacheBudget::Share(percent / 100.0))
                } else {
                    Err(refuse())
                }
            }
        }
    }
}

impl Shape {
    /// The slots that a budget holds: no fewer than a model needs to run, no more than it has experts.
    pub fn slots(&self, budget: CacheBudget) -> usize {
        let slots = match budget {
            CacheBudget::Bytes(bytes) => bytes / self.slot_bytes.max(1),
            CacheBudget::Share(share) => (share * self.experts() as f64).round() as u64,
        };
        let least = (MIN_SLOTS_PER_CHOICE * self.top_k).min(self.experts());
        usize::try_from(slots).unwrap_or(usize::MAX).clamp(least, self.experts())
    }
}
