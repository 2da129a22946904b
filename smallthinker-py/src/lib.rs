//! The Python extension module `smallthinker._smallthinker`: thin classes over `smallthinker-core`.
//!
//! [`enter`] is the way into long work, [`slot`] says who may use a session, [`errors`] maps errors;
//! the rest translates arguments and results.

mod args;
mod bench;
mod dicts;
mod enter;
mod errors;
mod files;
mod generation;
mod heads;
mod methods;
mod model;
mod perplexity;
mod routing;
mod session;
mod simulate;
mod slot;

use pyo3::prelude::*;

/// Native part of the package smallthinker.
#[pymodule]
mod _smallthinker {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::bench::{bench, profile};
    #[pymodule_export]
    use crate::files::{convert, inspect, pack, plan, quantize};
    #[pymodule_export]
    use crate::generation::{Generation, Stream, TokenLogprobs};
    #[pymodule_export]
    use crate::heads::heads;
    #[pymodule_export]
    use crate::model::Model;
    #[pymodule_export]
    use crate::perplexity::perplexity;
    #[pymodule_export]
    use crate::routing::{policies, routing_profile, trace};
    #[pymodule_export]
    use crate::session::Session;
    #[pymodule_export]
    use crate::simulate::simulate;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::forward_log(module.py())
    }
}

/// Messages of the library go to Python's `logging`, under the logger "smallthinker".
fn forward_log(py: Python<'_>) -> PyResult<()> {
    let logger = pyo3_log::Logger::new(py, pyo3_log::Caching::Nothing)?
        .set_prefix("smallthinker")
        .filter(log::LevelFilter::Off)
        .filter_target("smallthinker_core".to_owned(), log::LevelFilter::Info);
    // Fails only if a logger is installed already: a second interpreter of this process.
    let _ = logger.install();
    Ok(())
}
