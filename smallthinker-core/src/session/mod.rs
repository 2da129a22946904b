//! One conversation: tokens so far, their KV cache, and generation from them.

mod generate;
mod heads;
mod metrics;
mod save;
mod score;

use std::path::Path;

use crate::budget::Lease;
use crate::cancel::CancelFlag;
use crate::chat::Message;
use crate::forward::clock::StageTimes;
use crate::forward::kv_cache::KvCache;
use crate::forward::{Pass, Scratch, Want};
use crate::model::{LmHead, Model, scratch_bytes};
use crate::routing::{PassKind, Trace};
use crate::tokenizer::Specials;
use crate::{Error, Result};

pub use generate::{Completion, FinishReason, GenerateOptions, Generation, Generator, Piece};
pub(crate) use heads::BothHeads;
pub use metrics::GenerationStats;

/// A conversation with a model. Used by one thread at a time; any number of sessions share a model.
///
/// Appending only notes tokens; they are evaluated by the next generation (or [`evaluate`](Self::evaluate)).
pub struct Session {
    model: Model,
    /// The text so far. The first `kv.len()` tokens are evaluated.
    tokens: Vec<u32>,
    kv: KvCache,
    scratch: Scratch,
    logits: Vec<f32>,
    cancel: CancelFlag,
    detailed: bool,
    routing: Option<Trace>,
    /// Active neurons and neurons of each layer, while routing is recorded.
    neurons: Vec<[u64; 2]>,
    /// How the next generation step makes its logits.
    lm_head: LmHead,
    /// Rows of the head that a sparse one computes in any case.
    head_rows: Vec<u32>,
    _lease: Lease,
    /// Dropped after all else, when what this session held is free.
    _regrow: Regrow,
}

/// Lets the expert cache have what a session leaves behind.
struct Regrow(Model);

impl Drop for Regrow {
    fn drop(&mut self) {
        self.0.inner.cache.regrow();
    }
}

/// What evaluating tokens took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Evaluated {
    pub(crate) tokens: usize,
    pub(crate) stages: StageTimes,
    /// Rows of the head.
    pub(crate) head_rows: usize,
}

impl Session {
    pub(crate) fn new(model: Model) -> Result<Session> {
        let m = &model.inner;
        let lease = m
            .budget
            .lease("session buffers", scratch_bytes(&m.h, m.chunk, m.pool.threads(), m.context_length))?;
        let kv = KvCache::new(&m.h, m.kv_type, m.chunk, m.budget.clone());
        Ok(Session {
            tokens: Vec::new(),
            kv,
            scratch: Scratch::default(),
            logits: Vec::new(),
            cancel: CancelFlag::new(),
            detailed: false,
            routing: None,
            neurons: Vec::new(),
            lm_head: LmHead::Full,
            head_rows: Vec::new(),
            _lease: lease,
            _regrow: Regrow(model.clone()),
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens so far, prompts and generated ones.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Stops a generation or evaluation in progress, from any thread, within one layer's time.
    pub fn cancel_flag(&self) -> CancelFlag {
        self.cancel.clone()
    }

    /// Whether decode times the experts' gate and up projections one by one ([`Stage::Gate`](crate::Stage::Gate) and
    /// [`Stage::Up`](crate::Stage::Up)) and not together ([`Stage::GateUp`](crate::Stage::GateUp)). Off at first: it
    /// costs a few percent of the speed. Changes no result. Rows of up are requested from memory while gate computes,
    /// so a part of their reading counts as gate's. Prefill, and models that store the down projection by neuron,
    /// always give both together.
    pub fn set_detailed_timing(&mut self, on: bool) {
        self.detailed = on;
    }

    /// Records from now on which experts tokens choose, until [`take_routing`](Self::take_routing). Takes four bytes for
    /// each expert chosen (about 1.2 kB per token of the 21B), which no budget counts. A recording in progress is begun
    /// anew; a fork does not go on with it.
    ///
    /// Errors: [`Error::InvalidArgument`] for a model with more experts than a [`Trace`] can have.
    pub fn record_routing(&mut self) -> Result<()> {
        self.routing = Some(Trace::of(&self.model.inner)?);
        self.neurons.clear();
        Ok(())
    }

    /// Ends a recording and returns it; `None` if there was none. Passes that failed are not in it.
    pub fn take_routing(&mut self) -> Option<Trace> {
        self.routing.take()
    }

    /// Of each layer's neurons, how many were active and how many there were, of the tokens that were evaluated one by one since
    /// the recording began.
    pub(crate) fn active_neurons(&self) -> &[[u64; 2]] {
        &self.neurons
    }

    /// Obeys a flag that others share, from now on.
    pub(crate) fn set_cancel_flag(&mut self, flag: CancelFlag) {
        self.cancel = flag;
    }

    /// Adds text. Special tokens written in it stay ordinary text.
    ///
    /// Errors: [`Error::ContextOverflow`] if the conversation would not fit; nothing is added then.
    pub fn append(&mut self, text: &str) -> Result<()> {
        let tokens = self.model.tokenizer().encode(text, Specials::Text)?;
        self.append_tokens(&tokens)
    }

    /// Adds tokens. At the start of a conversation BOS goes before them, if the model wants one.
    ///
    /// Errors: as [`append`](Self::append); a token id outside the vocabulary.
    pub fn append_tokens(&mut self, tokens: &[u32]) -> Result<()> {
        Pass::check_tokens(self.model.hparams(), "tokens", tokens.iter().copied())?;
        let tokenizer = self.model.tokenizer();
        let bos = tokenizer.bos().filter(|_| self.tokens.is_empty() && tokenizer.add_bos());
        let bos = bos.filter(|bos| tokens.first() != Some(bos));
        self.check_room(self.tokens.len() + tokens.len() + usize::from(bos.is_some()))?;
        self.tokens.extend(bos);
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Makes the last token, which must not be evaluated yet, another one.
    pub(crate) fn replace_last(&mut self, token: u32) -> Result<()> {
        Pass::check_tokens(self.model.hparams(), "text", [token].into_iter())?;
        if let Some(last) = self.tokens.last_mut() {
            *last = token;
        }
        Ok(())
    }

    /// Makes the conversation `messages`, rendered by the model's chat template and ready for the
    /// assistant's turn. What it shares with the conversation so far is not evaluated again.
    ///
    /// Text of messages never becomes a special token, so it can't forge a turn.
    pub fn set_chat(&mut self, messages: &[Message]) -> Result<()> {
        let tokens = self.model.chat_template()?.encode_chat(self.model.tokenizer(), messages, true)?;
        Pass::check_tokens(self.model.hparams(), "messages", tokens.iter().copied())?;
        self.check_room(tokens.len())?;
        let shared = self.tokens.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        self.rewind(shared)?;
        self.tokens.extend_from_slice(&tokens[shared..]);
        Ok(())
    }

    /// Goes back to the first `position` tokens.
    ///
    /// If window layers no longer hold what that position sees, the text is evaluated again when needed: the
    /// continuation is always that of the shorter text.
    pub fn rewind(&mut self, position: usize) -> Result<()> {
        if position > self.tokens.len() {
            let allowed = format!("0 to {}, the tokens so far", self.tokens.len());
            return Err(Error::argument("position", position, allowed));
        }
        self.tokens.truncate(position);
        self.kv.truncate(position);
        Ok(())
    }

    /// A second conversation with the same past. Memory is shared until one of them goes on.
    pub fn fork(&self) -> Result<Session> {
        let mut fork = Session::new(self.model.clone())?;
        fork.tokens.clone_from(&self.tokens);
        fork.detailed = self.detailed;
        fork.kv = self.kv.clone();
        Ok(fork)
    }

    /// Evaluates the tokens that were appended since the last evaluation, so that a later generation
    /// starts at once.
    pub fn evaluate(&mut self) -> Result<()> {
        self.cancel.reset();
        self.evaluate_as(PassKind::Prompt)
    }

    /// As [`evaluate`](Self::evaluate), recorded as `kind`; obeys a cancel flag that is set already.
    pub(crate) fn evaluate_as(&mut self, kind: PassKind) -> Result<()> {
        self.evaluate_pending(Want::None, kind).map(|_| ())
    }

    /// Logits after every position of the conversation so far: `[tokens][vocab]`, in one vector.
    /// Always the full head. Evaluates the whole conversation again.
    ///
    /// The result is the caller's and not part of the budget. Errors: [`Error::Budget`] if the machine has no
    /// room for it.
    pub fn logits(&mut self) -> Result<Vec<f32>> {
        self.cancel.reset();
        let m = &self.model.inner;
        let values = self.tokens.len() * m.h.vocab;
        let bytes = 4 * values as u64;
        let available = crate::platform::available_memory().unwrap_or(u64::MAX);
        let refused = Error::Budget { what: "logits of every position".into(), needed: bytes, available };
        self.logits.clear();
        if bytes > available || self.logits.try_reserve_exact(values).is_err() {
            return Err(refused);
        }
        self.kv.truncate(0);
        self.evaluate_pending(Want::All, PassKind::Prompt)?;
        Ok(std::mem::take(&mut self.logits))
    }

    /// Writes the conversation and its KV cache to a file; the file appears when it is complete.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        save::save(self, path.as_ref())
    }

    /// Reads a conversation written by [`save`](Self::save) with the same model file and KV type.
    pub fn load(model: &Model, path: impl AsRef<Path>) -> Result<Session> {
        save::load(model, path.as_ref())
    }

    /// Starts a generation; iterate over it to get the text.
    ///
    /// Errors: options outside their range; no text to continue; [`Error::ContextOverflow`] if the context is
    /// full already.
    pub fn generate(&mut self, options: GenerateOptions) -> Result<Generation<'_>> {
        let generator = self.start(options)?;
        Ok(Generation::new(self, generator))
    }

    /// As [`generate`](Self::generate), for callers that can't keep a borrow of the session (bindings):
    /// the generator's `step` takes the session each time.
    pub fn start(&mut self, options: GenerateOptions) -> Result<Generator> {
        if self.tokens.is_empty() {
            return Err(Error::argument("prompt", "no tokens", "at least one token to continue"));
        }
        self.check_room(self.tokens.len() + 1)?;
        self.cancel.reset();
        Generator::new(self, options)
    }

    fn check_room(&self, tokens: usize) -> Result<()> {
        let limit = self.model.context_length();
        if tokens > limit { Err(Error::ContextOverflow { needed: tokens, limit }) } else { Ok(()) }
    }

    /// Evaluates what is pending, in chunks; `logits` then holds what `want` asks for.
    fn evaluate_pending(&mut self, want: Want, kind: PassKind) -> Result<Evaluated> {
        let m = &self.model.inner;
        let pending = self.tokens.get(self.kv.len()..).unwrap_or(&[]);
        let mut done = Evaluated { tokens: pending.len(), ..Evaluated::default() };
        if want != Want::Last {
            self.logits.clear();
        }
        let chunks = pending.chunks(m.chunk);
        let last = chunks.len().saturating_sub(1);
        for (i, chunk) in chunks.enumerate() {
            // Taken per chunk: sessions alternate.
            let team = m.pool.team(&self.cancel)?;
            let mut pass = Pass {
                detailed: self.detailed,
                routing: self.routing.as_ref().map(|_| Vec::new()),
                predictor: m.predictor.as_ref().filter(|_| self.lm_head == LmHead::Sparse),
                head_rows: &self.head_rows,
                ..m.pass(&team, &self.cancel)
            };
            let want = if want == Want::Last && i != last { Want::None } else { want };
            pass.run(chunk, want, &mut self.kv, &mut self.scratch, &mut self.logits)?;
            done.stages.add(&pass.clock.times);
            done.head_rows += pass.rows_done;
            self.neurons.resize(pass.neurons.len().max(self.neurons.len()), [0; 2]);
            for (all, found) in self.neurons.iter_mut().zip(&pass.neurons) {
                all.iter_mut().zip(found).for_each(|(all, found)| *all += found);
            }
            if let Some((trace, choices)) = self.routing.as_mut().zip(pass.routing.take()) {
                trace.push(kind, chunk.len(), choices)?;
            }
        }
        Ok(done)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("model", &self.model.path())
            .field("tokens", &self.tokens.len())
            .field("evaluated", &self.kv.len())
            .finish()
    }
}
