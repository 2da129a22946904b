//! Which expert to evict. Pure: knows ids and the order of use, nothing of slots or files.

use std::collections::HashMap;

use super::slot::ExpertId;

/// Least recently used, the policy of the technical report.
#[derive(Default)]
pub(super) struct Lru {
    last_use: HashMap<ExpertId, u64>,
    clock: u64,
}

impl Lru {
    /// Notes a use.
    pub(super) fn touch(&mut self, id: ExpertId) {
        self.clock += 1;
        self.last_use.insert(id, self.clock);
    }

    /// The id whose last use is longest ago, among those that `may_go`.
    pub(super) fn victim(&self, may_go: impl Fn(&ExpertId) -> bool) -> Option<ExpertId> {
        self.last_use.iter().filter(|(id, _)| may_go(id)).min_by_key(|(_, used)| **used).map(|(id, _)| *id)
    }

    /// Drops an id that was evicted.
    pub(super) fn forget(&mut self, id: ExpertId) {
        self.last_use.remove(&id);
    }
}
