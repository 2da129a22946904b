//! C interface of smallthinker. The header `include/smallthinker.h` is generated from this crate; each
//! exported function is documented where it is defined, and the rules that all of them share are in
//! `header_intro.txt`, which begins the header.
//!
//! Every export does its work inside `guard`, which turns errors and panics into a status and a message.
//! Pointers from the caller become references only in `handle.rs` and `options.rs`.

// The names are those of C, so that the header says what the source says.
#![allow(non_camel_case_types)]
// One contract holds for the pointers of all functions: the header's introduction.
#![allow(clippy::missing_safety_doc)]

#[cfg(panic = "abort")]
compile_error!("a C program must survive a panic of the library: build with panic = \"unwind\"");

mod generate;
mod guard;
mod handle;
mod model;
mod options;
mod session;
mod sized;
mod stats;
mod status;
mod version;

pub use generate::*;
pub use model::*;
pub use options::*;
pub use session::*;
pub use stats::*;
pub use status::{st_last_error_message, st_status, st_status_name};
pub use version::*;
