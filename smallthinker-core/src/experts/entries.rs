//! What the cache knows of each expert.

use std::sync::Arc;

use super::slot::{ExpertId, ExpertSlot, PieceMemory, Slot};
use crate::Error;

/// The state of an expert that is not absent. What is seldom there is boxed: the smaller the others are, the fewer lines of memory
/// a token's look at a layer takes.
pub(super) enum Entry {
    /// On its way; the queue and the readers own the pieces that have not arrived.
    Loading(Box<Loading>),
    /// In memory, but some of it as in the file: [`arrange`](super::arrange) makes it ready.
    Raw(Slot),
    Ready(Arc<ExpertSlot>),
    /// The read failed. The first to ask gets the reason; the request after that reads again.
    Failed(Box<Error>),
}

const _: () = assert!(size_of::<Option<Entry>>() <= 32);

/// An expert on its way.
pub(super) struct Loading {
    /// What came back: with weights in it, unless something failed.
    pub(super) arrived: Vec<Option<PieceMemory>>,
    pub(super) failed: Option<Error>,
    /// A later pass than the one that began it wants it too. What failed before that pass had asked for anything is
    /// no failure of its own, so it is tried again.
    pub(super) again: bool,
}

impl Loading {
    /// With `pieces` pieces, none of which is here.
    pub(super) fn of(pieces: usize) -> Loading {
        Loading { arrived: (0..pieces).map(|_| None).collect(), failed: None, again: false }
    }
}

/// An entry or none for every expert, those of a layer side by side: every token looks at some of each layer, and has pushed
/// them out of the caches until it comes round to the layer again.
pub(super) struct Entries {
    experts: usize,
    all: Vec<Option<Entry>>,
}

impl Entries {
    /// None for `layers` layers of `experts` experts.
    pub(super) fn new(layers: usize, experts: usize) -> Entries {
        Entries { experts, all: (0..layers * experts).map(|_| None).collect() }
    }

    /// Its place, if there is such an expert.
    fn place(&self, (layer, expert): ExpertId) -> Option<usize> {
        layer.checked_mul(self.experts)?.checked_add(expert).filter(|_| expert < self.experts)
    }

    pub(super) fn get(&self, id: ExpertId) -> Option<&Entry> {
        self.all.get(self.place(id)?)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: ExpertId) -> Option<&mut Entry> {
        let place = self.place(id)?;
        self.all.get_mut(place)?.as_mut()
    }

    pub(super) fn contains(&self, id: ExpertId) -> bool {
        self.get(id).is_some()
    }

    /// Replaces the entry and returns what it was. Of an expert that there isn't, nothing is kept.
    pub(super) fn insert(&mut self, id: ExpertId, entry: Entry) -> Option<Entry> {
        let place = self.place(id)?;
        self.all.get_mut(place)?.replace(entry)
    }

    pub(super) fn remove(&mut self, id: ExpertId) -> Option<Entry> {
        let place = self.place(id)?;
        self.all.get_mut(place)?.take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.all.iter().flatten()
    }
}

#[cfg(all(test, not(smallthinker_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_expert_has_a_place_of_its_own() {
        let mut entries = Entries::new(2, 3);
        let failed = |what: &str| Entry::Failed(Box::new(Error::Internal { message: what.into() }));
        let ids = || (0..2).flat_map(|layer| (0..3).map(move |expert| (layer, expert)));
        for id in ids() {
            assert!(!entries.contains(id) && entries.insert(id, failed(&format!("{id:?}"))).is_none());
        }
        assert_eq!(entries.iter().count(), 6);
        for id in ids() {
            let Some(Entry::Failed(error)) = entries.remove(id) else { panic!("{id:?}") };
            assert!(error.to_string().contains(&format!("{id:?}")), "{error}");
            assert!(entries.get(id).is_none() && entries.get_mut(id).is_none());
        }
        // The fourth expert of a layer is not the first of the next one.
        for none in [(0, 3), (2, 0), (usize::MAX, 0)] {
            assert!(entries.insert(none, failed("")).is_none() && !entries.contains(none), "{none:?}");
        }
        assert_eq!(entries.iter().count(), 0);
    }
}
