//! How a pass comes to its experts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue::Urgency;
use super::slot::{Entry, ExpertId, ExpertSlot, State};
use super::{ExpertCache, POLL};
use crate::cancel::CancelFlag;
use crate::pool::Team;
use crate::{Error, Result};

/// Experts with their places in the list of those that were asked for.
type Found = Vec<(usize, Arc<ExpertSlot>)>;

/// What a look at some experts came to.
enum Look {
    /// These are here, or one has failed.
    Done(Result<Found>),
    /// One is here, but raw.
    Raw,
    /// None is here yet.
    None,
}

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
            let began = Instant::now();
            if self.arrange(layer, experts, team) {
                waiting_since.get_or_insert(began);
            }
            let mut state = self.shared.lock();
            let (look, loads) = look(&mut state, layer, experts);
            if let Look::Done(_) = look {
                state.stats.stall += waiting_since.map_or(Duration::ZERO, |since| since.elapsed());
            }
            // Nothing comes of a wait before those that read know what to.
            if loads == 0 && matches!(look, Look::None) && cancel.check().is_ok() {
                waiting_since.get_or_insert_with(Instant::now);
                let _ = self.shared.changed.wait_timeout(state, POLL);
                continue;
            }
            drop(state);
            self.shared.wake_readers(loads);
            if let Look::Done(found) = look {
                return found;
            }
            cancel.check()?;
        }
    }
}

/// Looks for experts of a layer, and starts loading those that are absent. Returns how many that are.
fn look(state: &mut State, layer: usize, experts: &[usize]) -> (Look, usize) {
    let mut found = Vec::new();
    for (place, &expert) in experts.iter().enumerate() {
        if let Some(Entry::Ready(slot)) = state.entries.get(&(layer, expert)) {
            found.push((place, Arc::clone(slot)));
            state.acquired((layer, expert));
        }
    }
    let ids = || experts.iter().map(|&expert| (layer, expert));
    let raw = ids().any(|id| matches!(state.entries.get(&id), Some(Entry::Raw(_))));
    let mut loads = 0;
    // While those are computed, the others can be read.
    for id in ids() {
        match state.entries.get(&id) {
            Some(Entry::Failed(_)) => {
                if let Some(Entry::Failed(error)) = state.entries.remove(&id) {
                    return (Look::Done(Err(error)), loads);
                }
            }
            Some(_) => {}
            None => {
                let urgency = if found.is_empty() && !raw { Urgency::Urgent } else { Urgency::Chosen };
                if state.load_chosen(id, urgency) {
                    loads += 1;
                } else if found.is_empty() && !raw && state.loading() == 0 {
                    let message = "all expert slots are held and none is loading".into();
                    return (Look::Done(Err(Error::Internal { message })), loads);
                }
            }
        }
    }
    let look = match () {
        _ if !found.is_empty() || experts.is_empty() => Look::Done(Ok(found)),
        _ if raw => Look::Raw,
        _ => Look::None,
    };
    (look, loads)
}
