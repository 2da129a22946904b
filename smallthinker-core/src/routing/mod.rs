//! Which experts tokens choose: recorded from a session, kept in a file, and replayed against cache policies.
//!
//! ```no_run
//! use smallthinker_core::routing::{self, RecordOptions, ReplayPolicy, Trace};
//! use smallthinker_core::{CachePolicy, CancelFlag, Model};
//!
//! let model = Model::open("model.gguf")?;
//! let options = RecordOptions { max_tokens: 200, ..Default::default() };
//! routing::record(&model, "Once upon a time", options, &CancelFlag::new())?.write("story.trace")?;
//!
//! let trace = Trace::read("story.trace")?;
//! let slots = trace.shape().slots("25%".parse()?);
//! for policy in [ReplayPolicy::Cache(CachePolicy::Lru), ReplayPolicy::Belady] {
//!     let found = routing::replay(&trace, policy, slots)?;
//!     println!("{policy}: {:.1} % hits, {} bytes per token", 100.0 * found.hit_rate(), found.bytes_per_token());
//! }
//! # Ok::<(), smallthinker_core::Error>(())
//! ```

mod belady;
mod budget;
mod contents;
mod file;
mod guesses;
mod machine;
mod profile;
mod record;
mod replay;
mod simulate;
#[cfg(test)]
mod simulate_tests;
mod storage;
#[cfg(test)]
mod tests;
mod trace;

pub use budget::CacheBudget;
pub use profile::{RoutingProfile, profile};
pub use record::{RecordOptions, record};
pub use replay::{Accesses, Replay, ReplayPolicy, replay};
pub use simulate::{ComputeTimes, SimOptions, Simulation, simulate};
pub use storage::Storage;
pub use trace::{PassKind, Shape, Trace, TracedPass};
