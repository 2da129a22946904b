//! Parses arbitrary bytes as a routing trace and, where that succeeds, writes and replays it. Nothing may panic, and
//! what is written is what was read.
//!
//! From `smallthinker-core`: `cargo +nightly fuzz run trace_open -- -malloc_limit_mb=256 -max_len=65536`

#![no_main]

use libfuzzer_sys::fuzz_target;
use smallthinker_core::routing::{ReplayPolicy, Trace, replay};

fuzz_target!(|data: &[u8]| {
    let Ok(trace) = Trace::from_bytes(data) else { return };
    assert_eq!(trace.to_bytes(), data);
    for policy in ReplayPolicy::all() {
        replay(&trace, policy, trace.shape().top_k).expect("a cache of one choice is enough");
    }
});
