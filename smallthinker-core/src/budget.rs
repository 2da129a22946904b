//! The byte budget of a model, shared by all its sessions.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::{Error, Result};

/// How many bytes may be held, and how many are.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicU64,
    used: AtomicU64,
    reserve: OnceLock<Weak<dyn Reserve>>,
}

/// Somebody who holds bytes that he can do without, more slowly.
pub(crate) trait Reserve: fmt::Debug + Send + Sync {
    /// Gives back at least `bytes`; returns whether he could.
    fn give_back(&self, bytes: u64) -> bool;
}

/// Bytes taken from a [`Budget`], given back on drop.
#[derive(Debug)]
pub(crate) struct Lease {
    bytes: u64,
    budget: Arc<Budget>,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Budget> {
        Arc::new(Budget { limit: AtomicU64::new(limit), used: AtomicU64::new(0), reserve: OnceLock::new() })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes how many bytes may be held. What is held beyond that stays, but nothing more is lent.
    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Names the one who is asked to give back before a lease is refused. Only the first call counts.
    pub(crate) fn set_reserve(&self, reserve: Weak<dyn Reserve>) {
        let _ = self.reserve.set(reserve);
    }

    /// Bytes that are not lent.
    pub(crate) fn free(&self) -> u64 {
        self.limit().saturating_sub(self.used())
    }

    /// Takes `bytes`, if need be from the reserve, or says what is left.
    pub(crate) fn lease(self: &Arc<Self>, what: &str, bytes: u64) -> Result<Lease> {
        loop {
            let Some(missing) = self.missing(bytes) else {
                return Ok(Lease { bytes, budget: Arc::clone(self) });
            };
            let reserve = self.reserve.get().and_then(Weak::upgrade);
            if !reserve.is_some_and(|reserve| reserve.give_back(missing)) {
                let (what, available) = (what.to_owned(), self.free());
                return Err(Error::Budget { what, needed: bytes, available });
            }
        }
    }

    /// Takes `bytes` if they are free; if not, returns how many are missing.
    fn missing(&self, bytes: u64) -> Option<u64> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit());
        let used = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).err()?;
        Some(used.saturating_add(bytes).saturating_sub(self.limit()).max(1))
    }
}

impl Lease {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more, or gives some back. Nobody is asked to give back for it. On an error the lease is what it was.
    pub(crate) fn resize(&mut self, what: &str, bytes: u64) -> Result<()> {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            if self.budget.missing(more).is_some() {
                let (what, available) = (what.to_owned(), self.budget.free());
                return Err(Error::Budget { what, needed: more, available });
            }
        } else {
            self.budget.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug)]
    struct Half(Mutex<Option<Lease>>);

    impl Reserve for Half {
        fn give_back(&self, bytes: u64) -> bool {
            let mut lease = self.0.lock().unwrap();
            let Some(lease) = lease.as_mut().filter(|l| l.bytes() >= 50 + bytes) else { return false };
            lease.resize("less", lease.bytes() - bytes).is_ok()
        }
    }

    #[test]
    fn the_reserve_is_asked_before_a_lease_is_refused() {
        let budget = Budget::new(100);
        let half = Arc::new(Half(Mutex::new(Some(budget.lease("all", 95).unwrap()))));
        let weak = Arc::downgrade(&half);
        budget.set_reserve(weak);
        let first = budget.lease("a", 30).unwrap();
        assert_eq!((budget.used(), half.0.lock().unwrap().as_ref().unwrap().bytes()), (100, 70));
        let error = budget.lease("b", 21).unwrap_err().to_string();
        assert!(error.contains("needs 21 bytes, budget leaves 0 bytes"), "{error}");
        let second = budget.lease("c", 20).unwrap();
        drop((first, second, half));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn never_above_the_limit_and_given_back() {
        let budget = Budget::new(100);
        let first = budget.lease("a", 60).unwrap();
        let error = budget.lease("b", 41).unwrap_err().to_string();
        assert!(error.contains("needs 41 bytes, budget leaves 40 bytes"), "{error}");
        assert!(budget.lease("c", u64::MAX).is_err());
        drop(first);
        assert_eq!(budget.used(), 0);
        let mut lease = budget.lease("e", 10).unwrap();
        assert!(lease.resize("f", 101).is_err());
        lease.resize("g", 100).unwrap();
        budget.set_limit(50);
        assert!(budget.lease("h", 1).is_err());
        lease.resize("i", 20).unwrap();
        assert_eq!((budget.used(), budget.limit()), (20, 50));
        drop(lease);
        budget.set_limit(100);
        assert_eq!(budget.used(), 0);
        budget.lease("d", 100).unwrap();
    }
}
