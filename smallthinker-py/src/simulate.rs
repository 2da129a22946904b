//! The function `simulate`.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use smallthinker_core::routing::{self, ComputeTimes, SimOptions, Simulation, Storage, Trace};
use smallthinker_core::{CachePolicy, CancelFlag, Error, Stage};

use crate::enter::{self, Stop};
use crate::{args, dicts, errors, routing as traces};

/// Cache sizes of a simulation that names none, in percent of all experts.
const SHARES: [u32; 6] = [5, 10, 20, 30, 50, 100];

/// Decodes a file of trace() in virtual time, as a machine with other storage would. No thread, sleep or clock: the same
/// result on every machine.
///
/// compute is a measurement of profile() or bench() of the same model with all experts in memory. storage are devices:
/// texts such as "1.5GB/s" or "1.5GB/s@120us", the latency of a read, of which those of queue_depth reads pass at the same
/// time. budgets are sizes of the cache: bytes, texts such as "2GiB", or shares of all experts such as "25%". readers threads
/// read, and the threads of the measurement together rearrange pack_rate bytes per second of it (bytes or a text such as "5GB").
/// look_ahead is the share of the guesses, three for four of a layer's choices, that are right; None does not look ahead.
#[pyfunction]
#[pyo3(signature = (path, *, compute, storage, budgets=None, policy=None, readers=4, queue_depth=32, pack_rate=None,
    look_ahead=None))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn simulate<'py>(
    py: Python<'py>,
    path: PathBuf,
    compute: &Bound<'py, PyDict>,
    storage: Vec<String>,
    budgets: Option<Vec<Bound<'py, PyAny>>>,
    policy: Option<&str>,
    readers: i128,
    queue_depth: i128,
    pack_rate: Option<Bound<'py, PyAny>>,
    look_ahead: Option<f64>,
) -> PyResult<Bound<'py, PyDict>> {
    let budgets = traces::sizes(budgets, &SHARES)?;
    let threads = threads(compute)?;
    let policy: CachePolicy = policy.map_or(Ok(CachePolicy::default()), str::parse).map_err(errors::to_py)?;
    let mut options = SimOptions::new(0, Storage::new(1.0), compute_times(compute)?);
    options.policy = routing::ReplayPolicy::Cache(policy);
    options.readers = args::at_least("readers", readers, 1)?;
    if let Some(rate) = args::byte_count("pack_rate", pack_rate.as_ref())? {
        options.pack_bytes_per_second = rate as f64;
    }
    options.look_ahead = look_ahead;
    let mut devices = Vec::new();
    for text in storage {
        let mut device: Storage = text.parse().map_err(errors::to_py)?;
        device.queue_depth = args::at_least("queue_depth", queue_depth, 1)?;
        devices.push((text, device));
    }
    let cancel = CancelFlag::new();
    let (trace, found) = enter::interruptible(py, &Stop::new(cancel.clone()), || {
        let trace = Trace::read(&path)?;
        let mut found = Vec::new();
        for slots in traces::all_slots(&trace, &budgets) {
            for (name, storage) in &devices {
                if cancel.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                (options.slots, options.storage) = (slots, *storage);
                found.push((slots, name, routing::simulate(&trace, &options)?));
            }
        }
        Ok((trace, found))
    })?;
    let dict = traces::described(py, &trace)?;
    dict.set_item("policy", policy.name())?;
    dict.set_item("threads", threads)?;
    dict.set_item("compute_tok_s", 1.0 / options.compute.total().as_secs_f64())?;
    let bytes = trace.shape().slot_bytes;
    let found = found.iter().map(|(slots, name, one)| simulation(py, bytes, *slots, name, one));
    dict.set_item("simulations", PyList::new(py, found.collect::<PyResult<Vec<_>>>()?)?)?;
    Ok(dict)
}

fn simulation<'py>(
    py: Python<'py>,
    slot_bytes: u64,
    slots: usize,
    storage: &str,
    found: &Simulation,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("storage", storage)?;
    dict.set_item("expert_slots", slots)?;
    dict.set_item("cache_bytes", (slots as u64).saturating_mul(slot_bytes))?;
    dict.set_item("decode_tok_s", found.tokens_per_second())?;
    dict.set_item("hit_rate", found.hit_rate())?;
    dict.set_item("stall_share", found.stall_share())?;
    dict.set_item("read_bytes_per_token", found.bytes_per_token())?;
    dict.set_item("look_ahead", dicts::look_ahead(py, &found.look_ahead)?)?;
    Ok(dict)
}

/// What a decoded token took in a measurement.
fn compute_times(found: &Bound<'_, PyDict>) -> PyResult<ComputeTimes> {
    let total = milliseconds(found, "decode_ms_per_token")?;
    let stages = item(found, "stages")?;
    let stages = stages.cast::<PyDict>()?;
    let mut times = [Duration::ZERO; Stage::ALL.len()];
    for (time, stage) in times.iter_mut().zip(Stage::ALL) {
        if let Some(cost) = stages.get_item(stage.name())? {
            *time = milliseconds(cost.cast()?, "decode_ms_per_token")?;
        }
    }
    let compute = ComputeTimes::by_stage(total, |stage| times[stage as usize]);
    if total.is_zero() || compute.total().is_zero() {
        return Err(errors::argument("compute.decode_ms_per_token", 0, "above 0"));
    }
    Ok(compute)
}

fn threads(found: &Bound<'_, PyDict>) -> PyResult<usize> {
    args::at_least("compute.threads", item(found, "threads")?.extract()?, 1)
}

fn milliseconds(dict: &Bound<'_, PyDict>, key: &str) -> PyResult<Duration> {
    let ms: f64 = item(dict, key)?.extract()?;
    Duration::try_from_secs_f64(ms / 1e3)
        .map_err(|_| errors::argument(&format!("compute.{key}"), ms, "milliseconds, 0 or more"))
}

fn item<'py>(dict: &Bound<'py, PyDict>, key: &str) -> PyResult<Bound<'py, PyAny>> {
    let missing =
        || errors::argument(&format!("compute.{key}"), "nothing", "what profile() or bench() returns");
    dict.get_item(key)?.ok_or_else(missing)
}
