//! How a pass comes to its experts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entries::Entry;
use super::queue::Urgency;
use super::slot::{ExpertId, ExpertSlot, State};
use super::{ExpertCache, POLL};
use crate::cancel::CancelFlag;
use crate::pool::Team;
use crate::{Error, Result};

/// Experts with their places in the list of those that were asked for.
type Found = Vec<(usize, Arc<ExpertSlot>)>;

impl ExpertCache {
    /// The expert's weights, waiting for its read if need be. It is not evicted while the `Arc` lives.
    pub(crate) fn acquire(
        &self,
        id: ExpertId,
        team: &Team<'_>,
        cancel: &CancelFlag,
    ) -> Result<Arc<ExpertSlot>> {
        let mut found = self.acquire_any(id.0, &[id.1], team, cancel)?;
        found.pop().map(|(_, slot)| slot).ok_or_else(|| Error::Internal { message: "no expert".into() })
    }

    /// Those of `experts` that are in memory, with their places in the list; waits until there is one. The team brings
    /// them into their layout.
    pub(crate) fn acquire_any(
        &self,
        layer: usize,
        experts: &[usize],
        team: &Team<'_>,
        cancel: &CancelFlag,
    ) -> Result<Found> {
        let mut waiting_since: Option<Instant> = None;
        loop {
            let mut state = self.shared.lock();
            if let Some((id, pieces, spare)) = state.take_raw(layer, experts) {
                drop(state);
                waiting_since.get_or_insert_with(Instant::now);
                self.arrange(id, pieces, spare, team);
                continue;
            }
            let (found, loads) = look(&mut state, layer, experts);
            let none = found.as_ref().is_ok_and(Vec::is_empty) && !experts.is_empty();
            if !none {
                state.stats.stall += waiting_since.map_or(Duration::ZERO, |since| since.elapsed());
            } else if loads == 0 && cancel.check().is_ok() {
                // Whatever comes of it is looked at anew.
                waiting_since.get_or_insert_with(Instant::now);
                let _ = self.shared.changed.wait_timeout(state, POLL);
                continue;
            }
            drop(state);
            // Before a wait: nothing comes of it if those that read don't know what to.
            self.shared.wake_readers(loads);
            if !none {
                return found;
            }
            cancel.check()?;
        }
    }
}

/// Those of a layer's experts that are ready; starts loading those that are absent, and tells how many that are.
fn look(state: &mut State, layer: usize, experts: &[usize]) -> (Result<Found>, usize) {
    let mut found = Vec::new();
    for (place, &expert) in experts.iter().enumerate() {
        if let Some(Entry::Ready(slot)) = state.entries.get((layer, expert)) {
            found.push((place, Arc::clone(slot)));
            state.acquired((layer, expert));
        }
    }
    let mut loads = 0;
    // While those are computed, the others can be read.
    for id in experts.iter().map(|&expert| (layer, expert)) {
        match state.entries.get(id) {
            Some(Entry::Failed(_)) => {
                if let Some(Entry::Failed(error)) = state.entries.remove(id) {
                    return (Err(*error), loads);
                }
            }
            Some(_) => {}
            None => {
                let urgency = if found.is_empty() { Urgency::Urgent } else { Urgency::Chosen };
                if state.load_chosen(id, urgency) {
                    loads += 1;
                } else if found.is_empty() && !state.is_loading() {
                    let message = "all expert slots are held and none is loading".into();
                    return (Err(Error::Internal { message }), loads);
                }
            }
        }
    }
    (Ok(found), loads)
}
