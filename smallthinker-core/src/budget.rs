//! The byte budget of a model, shared by all its sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// How many bytes may be held, and how many are.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

/// Bytes taken from a [`Budget`], given back on drop.
#[derive(Debug)]
pub(crate) struct Lease {
    bytes: u64,
    budget: Arc<Budget>,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Budget> {
        Arc::new(Budget { limit, used: AtomicU64::new(0) })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, or says what is left.
    pub(crate) fn lease(self: &Arc<Self>, what: &str, bytes: u64) -> Result<Lease> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Lease { bytes, budget: Arc::clone(self) }),
            Err(used) => Err(Error::Budget {
                what: what.to_owned(),
                needed: bytes,
                available: self.limit.saturating_sub(used),
            }),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_above_the_limit_and_given_back() {
        let budget = Budget::new(100);
        let first = budget.lease("a", 60).unwrap();
        let error = budget.lease("b", 41).unwrap_err().to_string();
        assert!(error.contains("needs 41 bytes, budget leaves 40 bytes"), "{error}");
        assert!(budget.lease("c", u64::MAX).is_err());
        drop(first);
        assert_eq!(budget.used(), 0);
        budget.lease("d", 100).unwrap();
    }
}
