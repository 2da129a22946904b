//! Who holds what: a model and its sessions, each session used by one caller at a time.
//!
//! A caller takes the session out of its slot, works on it without any lock, and puts it back. Whoever comes
//! meanwhile gets an error instead of waiting.

use std::sync::{Arc, Mutex, Weak};

use pyo3::prelude::*;
use smallthinker_core as core;
use smallthinker_core::Error;

use crate::enter::{Stop, lock};
use crate::errors;

/// A model that can be closed, and the sessions to close with it.
pub(crate) struct Handle {
    model: Mutex<Option<core::Model>>,
    slots: Mutex<Vec<Weak<Slot>>>,
}

impl Handle {
    pub(crate) fn new(model: core::Model) -> Arc<Handle> {
        Arc::new(Handle { model: Mutex::new(Some(model)), slots: Mutex::default() })
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.model).is_none()
    }

    /// The model, unless it was closed.
    pub(crate) fn model(&self) -> PyResult<core::Model> {
        lock(&self.model).clone().ok_or_else(|| errors::misuse("the model is closed"))
    }

    /// Releases the model. Idle sessions are closed; busy ones are cancelled and closed when they end.
    pub(crate) fn close(&self) {
        drop(lock(&self.model).take());
        let slots = std::mem::take(&mut *lock(&self.slots));
        slots.iter().filter_map(Weak::upgrade).for_each(|slot| slot.close());
    }

    /// Keeps `session` in a slot of this model.
    pub(crate) fn keep(self: &Arc<Self>, session: core::Session) -> Arc<Slot> {
        let stop = Stop::new(session.cancel_flag());
        let state = Mutex::new(State::Idle(Box::new(session)));
        let slot = Arc::new(Slot { state, stop, handle: Arc::clone(self) });
        let mut slots = lock(&self.slots);
        slots.retain(|s| s.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        drop(slots);
        if self.is_closed() {
            // Closed between making the session and noting it.
            slot.close();
        }
        slot
    }
}

enum State {
    Idle(Box<core::Session>),
    Busy,
    Closed,
}

/// The place of one session.
pub(crate) struct Slot {
    state: Mutex<State>,
    pub(crate) stop: Stop,
    pub(crate) handle: Arc<Handle>,
}

impl Slot {
    /// Takes the session out until the lease is dropped.
    pub(crate) fn take(self: &Arc<Self>) -> PyResult<Lease> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Busy) {
            State::Idle(session) => {
                self.stop.clear();
                Ok(Lease { slot: Arc::clone(self), session: Some(session) })
            }
            State::Busy => Err(errors::misuse(
                "the session is in use by another thread or an unfinished stream (finish or close the stream)",
            )),
            State::Closed => {
                *state = State::Closed;
                Err(self.closed_error())
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(*lock(&self.state), State::Closed)
    }

    pub(crate) fn closed_error(&self) -> PyErr {
        errors::misuse(if self.handle.is_closed() { "the model is closed" } else { "the session is closed" })
    }

    pub(crate) fn close(&self) {
        let before = std::mem::replace(&mut *lock(&self.state), State::Closed);
        if let State::Busy = before {
            self.stop.request();
        }
    }

    fn give_back(&self, session: Box<core::Session>) {
        let mut state = lock(&self.state);
        if let State::Busy = *state {
            *state = State::Idle(session);
        } else {
            drop(state); // dropping a session can end a model, which takes a while
            drop(session);
        }
    }
}

/// A session in use.
pub(crate) struct Lease {
    pub(crate) slot: Arc<Slot>,
    session: Option<Box<core::Session>>,
}

impl Lease {
    /// Works on the session.
    pub(crate) fn with<T>(
        &mut self,
        work: impl FnOnce(&mut core::Session) -> core::Result<T>,
    ) -> core::Result<T> {
        match &mut self.session {
            Some(session) => work(session),
            None => Err(Error::Internal { message: "a lease without session".into() }),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.slot.give_back(session);
        }
    }
}
