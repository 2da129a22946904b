//! The model: immutable, shared, thread-safe.

pub(crate) mod expert_index;
pub(crate) mod hparams;
mod options;
pub(crate) mod pack_format;
mod plan;
pub(crate) mod predictor;
mod stats;
pub(crate) mod weights;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::budget::{Budget, Lease};
use crate::cancel::CancelFlag;
use crate::chat::ChatTemplate;
use crate::experts::{CachePolicy, ExpertCache};
use crate::forward::Pass;
use crate::forward::clock::Clock;
use crate::forward::kv_cache::KvType;
use crate::gguf::{Gguf, Source};
use crate::kernels::Kernels;
use crate::pool::{Pool, Team};
use crate::session::Session;
use crate::tokenizer::{Tokenizer, TokenizerSpec};
use crate::{Error, Result};

use expert_index::ExpertIndex;
pub use hparams::{Gating, Hparams, LayerAttention};
pub use options::{ModelOptions, Progress, parse_bytes};
pub use plan::Plan;
pub(crate) use plan::scratch_bytes;
use predictor::Predictor;
pub use predictor::{HeadPredictor, LmHead};
pub use stats::{ExpertKernel, ModelStats};
use weights::Weights;

/// A loaded model. Clones share the weights, the expert cache and the compute threads.
///
/// ```no_run
/// use smallthinker_core::{GenerateOptions, Model};
/// let model = Model::open("model.gguf")?;
/// let mut session = model.session()?;
/// session.append("Once upon a time")?;
/// for piece in session.generate(GenerateOptions::default())? {
///     print!("{}", piece?.text);
/// }
/// # Ok::<(), smallthinker_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Model {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) path: PathBuf,
    name: Option<String>,
    pub(crate) h: Hparams,
    pub(crate) weights: Weights,
    /// What the sparse head needs, if the model was opened with it.
    pub(crate) predictor: Option<Predictor>,
    pub(crate) cache: ExpertCache,
    pub(crate) source: Arc<Source>,
    pub(crate) kernels: &'static Kernels,
    pub(crate) pool: Pool,
    pub(crate) tokenizer: Tokenizer,
    /// Or why the file's template can't be used.
    template: std::result::Result<ChatTemplate, String>,
    pub(crate) budget: Arc<Budget>,
    plan: Plan,
    /// Tells apart models whose sessions must not be mixed.
    pub(crate) fingerprint: u64,
    cache_policy: CachePolicy,
    look_ahead: bool,
    pub(crate) chunk: usize,
    pub(crate) kv_type: KvType,
    pub(crate) context_length: usize,
    load_time: Duration,
    /// What the model itself holds of the budget, without the cache.
    lease: Lease,
}

impl Model {
    /// Opens a GGUF file (any shard of a sharded one) with default options.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        Model::open_with(path, ModelOptions::default())
    }

    /// Changes the memory budget while the model is in use: experts are evicted at once if it is smaller, and room for
    /// more of them is made if it is larger. Sessions keep what they have. Waits for the token or the part of a prompt that
    /// is being computed. Does not change any result.
    ///
    /// Errors: [`Error::Budget`], and nothing is changed, if the budget is below the model's floor or does not hold what
    /// the sessions have.
    pub fn set_memory_budget(&self, bytes: u64) -> Result<()> {
        let m = &*self.inner;
        let _between_passes = m.pool.team(&CancelFlag::new())?;
        let (slots, slot) = (m.cache.slots() as u64, m.plan.expert_slot);
        let before = m.budget.limit();
        // At once, so that no session takes what there will not be.
        m.budget.set_limit(bytes);
        let sessions = m.budget.used().saturating_sub(m.lease.bytes() + slots * slot);
        let plan = m.plan.with_budget(bytes, sessions);
        let done = plan.and_then(|plan| m.cache.resize(plan.expert_slots as usize));
        if done.is_err() {
            m.budget.set_limit(before);
        }
        done
    }

    /// Opens a GGUF file. Weights are read into memory as far as the budget allows; the rest is read when
    /// it is needed.
    ///
    /// Errors: the file can't be read, is malformed or of an unsupported kind; the budget is below the
    /// model's floor; the load was cancelled.
    pub fn open_with(path: impl AsRef<Path>, options: ModelOptions) -> Result<Model> {
        Model::open_gguf(Gguf::open(path)?, options)
    }

    pub(crate) fn open_gguf(mut gguf: Gguf, mut options: ModelOptions) -> Result<Model> {
        let began = Instant::now();
        let kernels = pick_kernels(options.kernels.as_deref())?;
        let (threads, chunk) = (options.resolved_threads()?, options.resolved_chunk()?);
        let Directory { tokenizer, h, index } = Directory::read(&gguf, options.gating)?;
        TokenizerSpec::forget_arrays(&mut gguf);
        let context_length = options.resolved_context(&h)?;
        let plan = plan::plan(&gguf, &h, &index, tokenizer.memory_bytes(), &options)?;
        warn_below_one_token(&gguf, &plan);
        let budget = Budget::new(plan.budget);
        let lease = budget.lease("weights", plan.fixed())?;

        let total =
            weights::resident_file_bytes(&gguf, &h)? + if plan.fits() { expert_bytes(&index) } else { 0 };
        let mut done = 0;
        let mut progress = options.progress.take();
        let mut loaded = |bytes: u64| {
            done += bytes;
            if let Some(progress) = &mut progress {
                progress(done.min(total), total);
            }
        };
        // A template that can't be used must not keep the model from continuing plain text.
        let template = ChatTemplate::new(tokenizer.chat_template().unwrap_or(crate::chat::CHATML))
            .map_err(|e| format!("{}: tokenizer.chat_template: {e}", gguf.path().display()));
        if let Err(reason) = &template {
            warn!("{reason}");
        }
        let weights = weights::load(&gguf, &h, &options.cancel, &mut loaded)?;
        let fingerprint = fingerprint(&gguf, &h, &weights);
        let pool = Pool::new(threads)?;
        let predictor = match options.lm_head {
            LmHead::Full => None,
            LmHead::Sparse => {
                let team = pool.team(&options.cancel)?;
                Some(Predictor::load(&gguf, &h, &weights.head, kernels, &team, &options.cancel)?)
            }
        };
        let source = Arc::clone(gguf.source());
        let cache = ExpertCache::new(index, Arc::clone(&source), options.cache(&plan)?, &budget)?;
        if plan.fits() {
            cache.preload(&*pool.team(&options.cancel)?, &options.cancel, &mut loaded)?;
        }
        let load_time = began.elapsed();
        info!("{}: loaded in {load_time:?}, {threads} threads, {}", gguf.path().display(), kernels.name());
        Ok(Model {
            inner: Arc::new(Inner {
                path: gguf.path().to_owned(),
                name: gguf.get_str("general.name")?.map(str::to_owned),
                h,
                weights,
                predictor,
                cache,
                source,
                kernels,
                pool,
                tokenizer,
                template,
                budget,
                fingerprint,
                cache_policy: options.cache_policy,
                look_ahead: options.look_ahead.unwrap_or(options::LOOK_AHEAD),
                chunk,
                kv_type: options.kv_type,
                context_length,
                plan,
                load_time,
                lease,
            }),
        })
    }

    /// What a file takes under these options, without loading its weights.
    pub fn plan_for(path: impl AsRef<Path>, options: &ModelOptions) -> Result<Plan> {
        let gguf = Gguf::open(path)?;
        let Directory { tokenizer, h, index } = Directory::read(&gguf, options.gating)?;
        plan::plan(&gguf, &h, &index, tokenizer.memory_bytes(), options)
    }

    /// The plan that this model was loaded with.
    pub fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    /// A new, empty conversation.
    pub fn session(&self) -> Result<Session> {
        Session::new(self.clone())
    }

    /// The file (the first shard of a sharded model).
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// `general.name` of the file.
    pub fn name(&self) -> Option<&str> {
        self.inner.name.as_deref()
    }

    /// The model's shape.
    pub fn hparams(&self) -> &Hparams {
        &self.inner.h
    }

    /// Positions of a session at most.
    pub fn context_length(&self) -> usize {
        self.inner.context_length
    }

    /// The file's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The file's chat template; ChatML if it has none.
    ///
    /// Errors: [`Error::Template`] if the file has one that can't be used.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.inner.template.as_ref().map_err(|reason| Error::Template { message: reason.clone() })
    }
}

impl Inner {
    /// Whether experts are read that the next layer is expected to choose: not if all are in memory.
    pub(crate) fn looks_ahead(&self) -> bool {
        self.look_ahead && !self.cache.is_complete()
    }
}

impl Inner {
    /// A forward pass of this model on these threads.
    pub(crate) fn pass<'a>(&'a self, team: &'a Team<'a>, cancel: &'a CancelFlag) -> Pass<'a> {
        Pass {
            h: &self.h,
            weights: &self.weights,
            cache: &self.cache,
            source: &self.source,
            kernels: self.kernels,
            team,
            cancel,
            clock: Clock::start(),
            detailed: false,
            routing: None,
            neurons: Vec::new(),
            look_ahead: self.looks_ahead(),
            guess: Vec::new(),
            predictor: None,
            head_rows: &[],
            rows_done: 0,
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("path", &self.inner.path).field("hparams", &self.inner.h).finish()
    }
}

/// What the file's header says, checked.
pub(crate) struct Directory {
    tokenizer: Tokenizer,
    h: Hparams,
    pub(crate) index: ExpertIndex,
}

impl Directory {
    pub(crate) fn read(gguf: &Gguf, gating: Option<Gating>) -> Result<Directory> {
        // The architecture first: a file of another one should be told so, not that a key is missing.
        let architecture = gguf.require_str("general.architecture")?;
        if architecture != "smallthinker" {
            return Err(Error::unsupported(
                gguf.path(),
                "general.architecture",
                architecture,
                "smallthinker",
            ));
        }
        let spec = TokenizerSpec::from_gguf(gguf)?;
        let h = Hparams::from_gguf(gguf, spec.tokens.len(), gating)?;
        refuse_unknown_tensors(gguf, &h)?;
        let index = ExpertIndex::new(gguf, &h)?;
        let tokenizer = Tokenizer::new(spec, gguf.path())?;
        Ok(Directory { tokenizer, h, index })
    }
}

fn pick_kernels(name: Option<&str>) -> Result<&'static Kernels> {
    let Some(name) = name else { return Ok(Kernels::detect()) };
    Kernels::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = Kernels::available().iter().map(|k| k.name()).collect();
        Error::argument("kernels", name, format!("on this CPU: {}", names.join(", ")))
    })
}

/// A tensor that the forward pass would ignore may well change the result: a bias, a norm of another variant.
fn refuse_unknown_tensors(gguf: &Gguf, h: &Hparams) -> Result<()> {
    const LAYER_PARTS: [&str; 7] =
        ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate_inp"];
    const EXPERTS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
    let experts: &[&str] = if pack_format::is_packed(gguf)? { &[pack_format::TENSOR] } else { &EXPERTS };
    // The predictor of the sparse LM head changes speed, not the full head's logits.
    const WHOLE: [&str; 4] =
        ["token_embd.weight", "output.weight", "output_norm.weight", "lm_head_profiler.weight"];
    let known = |name: &str| {
        WHOLE.contains(&name)
            || name.strip_prefix("blk.").and_then(|n| n.strip_suffix(".weight")).is_some_and(|n| {
                n.split_once('.').is_some_and(|(layer, part)| {
                    let number = layer.parse::<usize>().ok().filter(|l| *l < h.n_layers);
                    number.is_some_and(|l| l.to_string() == layer)
                        && (LAYER_PARTS.contains(&part) || experts.contains(&part))
                })
            })
    };
    match gguf.tensors().iter().find(|t| !known(&t.name)) {
        Some(t) => Err(Error::unsupported(
            gguf.path(),
            "tensor",
            &t.name,
            "the tensors of architecture smallthinker",
        )),
        None => Ok(()),
    }
}

fn warn_below_one_token(gguf: &Gguf, plan: &Plan) {
    if plan.expert_slots < plan.experts && plan.budget < plan.per_token {
        warn!(
            "{}: budget {} is below the {} bytes that one token touches: every expert is read for every token",
            gguf.path().display(),
            plan.budget,
            plan.per_token
        );
    }
}

fn expert_bytes(index: &ExpertIndex) -> u64 {
    index.layers.iter().map(|l| l.expert_bytes() * index.n_experts as u64).sum()
}

/// FNV-1a of shape, tensor directory, file sizes, norms and routers: tells fine-tunes of one model apart
/// without reading all weights again.
fn fingerprint(gguf: &Gguf, h: &Hparams, weights: &Weights) -> u64 {
    let mut hash = crate::hash::Fnv::new();
    hash.update(format!("{h:?} {}", gguf.file_bytes()).as_bytes());
    for t in gguf.tensors() {
        hash.update(format!("{} {} {:?} {} {}", t.name, t.dtype, t.dims, t.shard, t.offset).as_bytes());
    }
    let mut values = |values: &[f32]| values.iter().for_each(|v| hash.update(&v.to_le_bytes()));
    values(&weights.output_norm);
    for layer in &weights.layers {
        values(&layer.attn_norm);
        values(&layer.ffn_norm);
    }
    for layer in &weights.layers {
        hash.update(layer.router.view().data);
    }
    hash.value()
}
