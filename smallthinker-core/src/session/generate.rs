//! Generation: an iterator over pieces of text.

use std::fmt;
use std::time::{Duration, Instant};

use crate::experts::ExpertStats;
use crate::forward::clock::StageTimes;
use crate::forward::{Pass, Want};
use crate::model::LmHead;
use crate::routing::PassKind;
use crate::sample::{Sampler, SamplingParams, TokenLogprobs, top_logprobs};
use crate::session::{GenerationStats, Session};
use crate::tokenizer::{DecodeStream, StopMatcher};
use crate::{Error, Result};

/// What to generate.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Tokens at most; `None` goes on to a stop or the end of the context.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen. The default is greedy.
    pub sampling: SamplingParams,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the generation, besides the file's own.
    pub stop_tokens: Vec<u32>,
    /// Go on after the file's own stop tokens, as if they were ordinary ones. For measuring speed.
    pub ignore_stop_tokens: bool,
    /// Report log probabilities: of each chosen token and of this many most likely ones.
    pub logprobs: Option<usize>,
    /// How logits are made; `None`: as the model was opened. With log probabilities always [`LmHead::Full`].
    pub lm_head: Option<LmHead>,
}

impl GenerateOptions {
    /// Greedy, at most `n` tokens.
    pub fn max_tokens(n: usize) -> Self {
        GenerateOptions { max_tokens: Some(n), ..Default::default() }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    Context,
    /// The cancel flag was set.
    Cancelled,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Context => "context",
            FinishReason::Cancelled => "cancelled",
        })
    }
}

/// One step of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Text that became certain: whole characters, no part of a stop string. May be empty.
    pub text: String,
    /// The token of this step; `None` for text that was held back to the end.
    pub token: Option<u32>,
    /// Its log probabilities, if asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// A finished generation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Log probabilities of each token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How fast it was.
    pub stats: GenerationStats,
}

/// The state of a generation, apart from its session.
pub struct Generator {
    sampler: Sampler,
    stop: StopMatcher,
    utf8: DecodeStream,
    max_tokens: usize,
    stop_tokens: Vec<u32>,
    logprobs: Option<usize>,
    lm_head: LmHead,
    /// Tokens with a bias: a sparse head computes their logits too.
    head_rows: Vec<u32>,
    finish: Option<FinishReason>,
    failed: bool,
    /// The rest of the text was handed out.
    flushed: bool,
    began: Instant,
    first: Option<Instant>,
    last: Instant,
    experts_before: ExpertStats,
    experts_at_first: ExpertStats,
    stats: GenerationStats,
}

impl Generator {
    pub(super) fn new(session: &Session, options: GenerateOptions) -> Result<Generator> {
        let tokenizer = session.model.tokenizer();
        // Before the prompt is evaluated, which can take minutes.
        let h = session.model.hparams();
        Pass::check_tokens(h, "stop_tokens", options.stop_tokens.iter().copied())?;
        Pass::check_tokens(h, "logit_bias", options.sampling.logit_bias.iter().map(|(id, _)| *id))?;
        let mut stop_tokens = options.stop_tokens;
        if !options.ignore_stop_tokens {
            stop_tokens.extend_from_slice(tokenizer.stop_ids());
        }
        let model = session.model.stats();
        let lm_head = match (options.lm_head.unwrap_or(model.lm_head), options.logprobs) {
            (_, Some(_)) | (LmHead::Full, _) => LmHead::Full,
            (LmHead::Sparse, None) if model.head_predictor.is_none() => {
                let allowed = "\"full\", as the model was opened without the sparse head";
                return Err(Error::argument("lm_head", "\"sparse\"", allowed));
            }
            (LmHead::Sparse, None) => LmHead::Sparse,
        };
        let head_rows = options.sampling.logit_bias.iter().map(|(id, _)| *id).collect();
        let sampler = Sampler::new(options.sampling)?;
        let now = Instant::now();
        let stats = GenerationStats {
            prompt_tokens: session.tokens.len(),
            cached_tokens: session.kv.len().min(session.tokens.len() - 1),
            generated_tokens: 0,
            prefill_time: Duration::ZERO,
            decode_time: Duration::ZERO,
            time_to_first_token: Duration::ZERO,
            decode_steps: 0,
            prefill_stages: StageTimes::default(),
            decode_stages: StageTimes::default(),
            experts: ExpertStats::default(),
            decode_experts: ExpertStats::default(),
            kernels: model.kernels,
            threads: model.threads,
            lm_head,
            head_rows: 0,
            seed: sampler.seed(),
        };
        Ok(Generator {
            sampler,
            stop: StopMatcher::new(options.stop)?,
            utf8: DecodeStream::new(),
            max_tokens: options.max_tokens.unwrap_or(usize::MAX),
            stop_tokens,
            logprobs: options.logprobs,
            lm_head,
            head_rows,
            finish: None,
            failed: false,
            flushed: false,
            began: now,
            first: None,
            last: now,
            experts_before: model.experts,
            experts_at_first: ExpertStats::default(),
            stats,
        })
    }

    /// Why the generation ended; `None` while it goes on, or after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Figures so far.
    pub fn stats(&self) -> &GenerationStats {
        &self.stats
    }

    /// The next piece; `None` after the last. `session` is the one that made this generator. After an error
    /// the generation is over; the session keeps its text and can be used again.
    pub fn step(&mut self, session: &mut Session) -> Option<Result<Piece>> {
        if self.failed {
            return None;
        }
        if self.finish.is_some() {
            return self.flush().map(Ok);
        }
        let result = match self.advance(session) {
            Err(Error::Cancelled) => {
                self.finish = Some(FinishReason::Cancelled);
                Ok(None)
            }
            other => other,
        };
        match result {
            Ok(Some(piece)) => Some(Ok(piece)),
            Ok(None) => self.flush().map(Ok),
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }

    /// Evaluates and samples one token; `None` if the generation ended instead.
    fn advance(&mut self, session: &mut Session) -> Result<Option<Piece>> {
        if self.stats.generated_tokens >= self.max_tokens {
            self.finish = Some(FinishReason::Length);
            return Ok(None);
        }
        if session.tokens.len() >= session.model.context_length() {
            self.finish = Some(FinishReason::Context);
            return Ok(None);
        }
        self.evaluate(session)?;
        let token = self.sampler.sample(&session.logits, &session.tokens).map_err(|error| {
            // The model's fault, not that of the caller's numbers. Minus infinity rules a token out.
            let layer = session.model.hparams().n_layers;
            let wrong = |x: &f32| x.is_nan() || *x == f32::INFINITY;
            let any = session.logits.iter().any(wrong);
            if any { Error::NotFinite { layer, what: "a logit" } } else { error }
        })?;
        self.note_time(session);
        if self.stop_tokens.contains(&token) {
            self.finish = Some(FinishReason::Stop);
            return Ok(None);
        }
        let logprobs = self.logprobs.map(|n| top_logprobs(&session.logits, token, n)).transpose()?;
        session.tokens.push(token);
        self.stats.generated_tokens += 1;
        let tokenizer = session.model.tokenizer();
        let bytes = if tokenizer.is_special(token) { None } else { tokenizer.token_bytes(token) };
        let (text, stopped) = self.stop.push(&self.utf8.push(bytes.unwrap_or_default()));
        if stopped {
            (self.finish, self.flushed) = (Some(FinishReason::Stop), true);
        }
        Ok(Some(Piece { text, token: Some(token), logprobs }))
    }

    /// Makes the logits of the next token.
    fn evaluate(&mut self, session: &mut Session) -> Result<()> {
        let prefill = self.first.is_none();
        if session.tokens.is_empty() {
            return Err(Error::argument(
                "session",
                "no tokens",
                "the session that the generation was started on",
            ));
        }
        if session.kv.len() >= session.tokens.len() {
            // All is evaluated, but the logits are gone: the last token again.
            session.kv.truncate(session.tokens.len() - 1);
        }
        session.lm_head = self.lm_head;
        session.head_rows.clone_from(&self.head_rows);
        let began = Instant::now();
        let kind = if prefill { PassKind::Prompt } else { PassKind::Decode };
        let done = session.evaluate_pending(Want::Last, kind)?;
        if prefill {
            self.stats.cached_tokens = self.stats.prompt_tokens.saturating_sub(done.tokens);
            self.stats.prefill_time = began.elapsed();
            self.stats.prefill_stages.add(&done.stages);
        } else {
            self.stats.decode_steps += done.tokens;
            self.stats.decode_stages.add(&done.stages);
            self.stats.head_rows += done.head_rows;
        }
        Ok(())
    }

    fn note_time(&mut self, session: &Session) {
        self.last = Instant::now();
        let experts = session.model.inner.cache.stats();
        let first = *self.first.get_or_insert_with(|| {
            self.experts_at_first = experts.clone();
            self.last
        });
        self.stats.time_to_first_token = first - self.began;
        self.stats.decode_time = self.last - first;
        self.stats.decode_experts = experts.since(&self.experts_at_first);
        self.stats.experts = experts.since(&self.experts_before);
    }

    /// What the UTF-8 and stop-string buffers still hold.
    fn flush(&mut self) -> Option<Piece> {
        if std::mem::replace(&mut self.flushed, true) {
            return None;
        }
        let (mut text, stopped) = self.stop.push(&self.utf8.finish());
        if !stopped {
            text += &self.stop.finish();
        }
        (!text.is_empty()).then_some(Piece { text, token: None, logprobs: None })
    }
}

/// A generation in progress: an iterator over its pieces.
pub struct Generation<'s> {
    session: &'s mut Session,
    generator: Generator,
}

impl<'s> Generation<'s> {
    pub(super) fn new(session: &'s mut Session, generator: Generator) -> Self {
        Generation { session, generator }
    }

    /// Why it ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.generator.finish_reason()
    }

    /// Figures so far.
    pub fn stats(&self) -> &GenerationStats {
        self.generator.stats()
    }

    /// Runs to the end and gathers everything.
    pub fn complete(mut self) -> Result<Completion> {
        let (mut text, mut tokens, mut logprobs) = (String::new(), Vec::new(), Vec::new());
        for piece in self.by_ref() {
            let piece = piece?;
            text += &piece.text;
            tokens.extend(piece.token);
            logprobs.extend(piece.logprobs);
        }
        let finish_reason = self.finish_reason().unwrap_or(FinishReason::Stop);
        Ok(Completion { text, tokens, logprobs, finish_reason, stats: self.generator.stats })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;
    fn next(&mut self) -> Option<Self::Item> {
        self.generator.step(self.session)
    }
}
