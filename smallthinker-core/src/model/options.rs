//! How to open a model.

use crate::experts::CacheOptions;
use crate::model::hparams::{Gating, Hparams};
use crate::model::plan::Plan;
use crate::model::predictor::LmHead;
use crate::{CachePolicy, CancelFlag, Error, KvType, Result};

/// Told the bytes loaded so far and in all.
pub type Progress = Box<dyn FnMut(u64, u64) + Send>;

/// Options of [`Model::open_with`](crate::Model::open_with). The default is right for most callers.
#[derive(Default)]
#[non_exhaustive]
pub struct ModelOptions {
    /// Bytes that weights, KV caches, scratch and tokenizer may take together. Default: what the model needs
    /// with four sessions at the full context, or what the machine and the enclosing cgroups leave free less a
    /// margin, whichever is less.
    pub memory_budget: Option<u64>,
    /// Compute threads, 1 to 1024. Default: physical cores within affinity mask and cgroup quota.
    pub threads: Option<usize>,
    /// Kernel set by name (see [`Kernels::available`](crate::kernels::Kernels::available)). Default: the best.
    pub kernels: Option<String>,
    /// Positions of a session at most. Default: the model's context length.
    pub context_length: Option<usize>,
    /// Element type of KV caches.
    pub kv_type: KvType,
    /// Positions evaluated at once during prefill, 1 to 8192. Default 512. Does not change any result.
    pub chunk: Option<usize>,
    /// What the expert cache evicts under a budget that does not hold all experts. Does not change any result.
    pub cache_policy: CachePolicy,
    /// Whether to read the experts that the next layers are expected to choose, under a budget that does not hold all
    /// experts. Default: yes. Does not change any result.
    pub look_ahead: Option<bool>,
    /// Read experts through the system's page cache also under a budget that does not hold all of them. It may keep
    /// what the budget has no room for, in memory that others could use. By default they are read past it, where the
    /// file system allows that.
    pub buffered_reads: bool,
    /// How logits are made, unless a generation says otherwise. [`LmHead::Sparse`] makes a sketch of the head while
    /// loading, or reads the predictor that the file brings; without it, no generation can ask for the sparse head.
    pub lm_head: LmHead,
    /// Router weights, where the file says it wrongly or not at all.
    pub gating: Option<Gating>,
    /// Called while loading.
    pub progress: Option<Progress>,
    /// Stops loading when set; the open then returns [`Error::Cancelled`].
    pub cancel: CancelFlag,
}

/// What [`ModelOptions::look_ahead`] is if it is not set.
pub(crate) const LOOK_AHEAD: bool = true;

/// Threads that read experts, at least and at most: enough to keep a disk's queue filled.
const READERS: (usize, usize) = (4, 8);

/// Threads beyond this are surely a mistake.
const MAX_THREADS: usize = 1024;
const MAX_CHUNK: usize = 8192;
const DEFAULT_CHUNK: usize = 512;

impl ModelOptions {
    pub(crate) fn resolved_threads(&self) -> Result<usize> {
        match self.threads {
            None => Ok(crate::platform::default_threads()),
            Some(n @ 1..=MAX_THREADS) => Ok(n),
            Some(n) => Err(Error::argument("threads", n, format!("1 to {MAX_THREADS}"))),
        }
    }

    /// Threads that read experts.
    pub(crate) fn readers(&self) -> Result<usize> {
        Ok(self.resolved_threads()?.clamp(READERS.0, READERS.1))
    }

    /// How the expert cache works under a plan.
    pub(crate) fn cache(&self, plan: &Plan) -> Result<CacheOptions> {
        Ok(CacheOptions {
            slots: plan.expert_slots as usize,
            least: plan.working_set as usize,
            policy: self.cache_policy,
            readers: self.readers()?,
            buffered: self.buffered_reads,
        })
    }

    pub(crate) fn resolved_context(&self, h: &Hparams) -> Result<usize> {
        match self.context_length {
            None => Ok(h.context_length),
            Some(n) if (1..=h.context_length).contains(&n) => Ok(n),
            Some(n) => {
                let allowed = format!("1 to {}, the model's own", h.context_length);
                Err(Error::argument("context_length", n, allowed))
            }
        }
    }

    pub(crate) fn resolved_chunk(&self) -> Result<usize> {
        match self.chunk {
            None => Ok(DEFAULT_CHUNK),
            Some(n @ 1..=MAX_CHUNK) => Ok(n),
            Some(n) => Err(Error::argument("chunk", n, format!("1 to {MAX_CHUNK}"))),
        }
    }
}

/// Reads a number of bytes such as `8GiB`, `512 MiB`, `2G` or `1000000`. `K`, `M`, `G` and `T`, with or without
/// `iB`, are powers of 1024; `KB`, `MB`, `GB` and `TB` powers of 1000.
///
/// ```
/// assert_eq!(smallthinker_core::parse_bytes("8GiB")?, 8 << 30);
/// assert_eq!(smallthinker_core::parse_bytes("1.5 MB")?, 1_500_000);
/// assert!(smallthinker_core::parse_bytes("lots").is_err());
/// # Ok::<(), smallthinker_core::Error>(())
/// ```
pub fn parse_bytes(text: &str) -> Result<u64> {
    let refuse =
        || Error::argument("byte count", text, "a number with an optional unit, such as 8GiB or 512M");
    let t = text.trim();
    let split = t.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(t.len());
    let (number, unit) = t.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let (exponent, base): (i32, f64) = match unit.as_str() {
        "" | "b" => (0, 1.0),
        "k" | "kib" => (1, 1024.0),
        "m" | "mib" => (2, 1024.0),
        "g" | "gib" => (3, 1024.0),
        "t" | "tib" => (4, 1024.0),
        "kb" => (1, 1000.0),
        "mb" => (2, 1000.0),
        "gb" => (3, 1000.0),
        "tb" => (4, 1000.0),
        _ => return Err(refuse()),
    };
    if exponent == 0 {
        return number.parse().map_err(|_| refuse());
    }
    let value = number.parse::<f64>().map_err(|_| refuse())? * base.powi(exponent);
    if value.is_finite() && value < u64::MAX as f64 { Ok(value as u64) } else { Err(refuse()) }
}
