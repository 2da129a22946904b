//! What threads of the cache share, from the standard library or, when all their interleavings are tried out, from
//! the model checker.

#[cfg(not(smallthinker_loom))]
pub(super) use std::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

#[cfg(smallthinker_loom)]
pub(super) use loom::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};
