//! What the sparse LM head loses and what it saves, on a text.

use std::cmp::Ordering;

use crate::session::BothHeads;
use crate::tokenizer::Specials;
use crate::{CancelFlag, Error, HeadPredictor, Model, Result};

/// Positions of a window of text, at most.
const WINDOW: usize = 2048;
/// How many of the likeliest tokens [`HeadQuality::recall`] looks for.
const LIKELIEST: usize = 20;

/// What to compare.
#[derive(Debug, Clone, Default)]
pub struct HeadOptions {
    /// Shares of the rows, above 0 and up to 1: for each, as many rows as that by estimate, whatever the estimates may be
    /// wrong by. For tables; the sparse head itself decides by position.
    pub shares: Vec<f64>,
    /// Positions of a window, at most the model's context. `None`: 2,048, or the context if that is less. Windows follow one
    /// another without overlap.
    pub context: Option<usize>,
}

/// The sparse head beside the full one, over all positions of the text.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeadQuality {
    /// Rows computed, per position.
    pub rows: f64,
    /// Rows computed at one position at most.
    pub most_rows: usize,
    /// Bytes read for them and for the predictor, over those of the whole head.
    pub bytes: f64,
    /// Share of the positions whose likeliest token is that of the full head.
    pub top1: f64,
    /// Share of the full head's 20 likeliest tokens whose logits were computed.
    pub recall: f64,
    /// Mean Kullback-Leibler divergence of the full head's distribution from the sparse one's, in nats: the negative
    /// logarithm of the probability of all tokens whose logits were computed. (The other way round it is infinite.)
    pub kl: f64,
    /// The largest of a position.
    pub worst_kl: f64,
}

/// A comparison.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HeadComparison {
    /// What picked the rows.
    pub predictor: HeadPredictor,
    /// Positions compared.
    pub positions: usize,
    /// Rows of the head.
    pub vocab: usize,
    /// Bytes of the head in memory.
    pub head_bytes: u64,
    /// Bytes that the predictor reads for a position.
    pub predictor_bytes: u64,
    /// The sparse head as generations use it.
    pub sparse: HeadQuality,
    /// As many rows as the options say, in their order.
    pub shares: Vec<(f64, HeadQuality)>,
}

/// Compares both heads at every position of `text`. `progress` is told positions done and in all, and returns whether to go on.
///
/// Errors: a model opened without the sparse head; a text without tokens; options outside their range;
/// [`Error::Cancelled`]; those of evaluation.
pub fn compare_heads(
    model: &Model,
    text: &str,
    options: &HeadOptions,
    cancel: &CancelFlag,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<HeadComparison> {
    let m = &model.inner;
    let Some(predictor) = &m.predictor else {
        return Err(Error::argument("model", "opened with the full head", "opened with lm_head \"sparse\""));
    };
    if let Some(share) = options.shares.iter().find(|share| !(**share > 0.0 && **share <= 1.0)) {
        return Err(Error::argument("shares", share, "above 0, up to 1"));
    }
    let limit = model.context_length();
    let context = options.context.unwrap_or(WINDOW.min(limit));
    if !(1..=limit).contains(&context) {
        return Err(Error::argument("context", context, format!("1 to {limit}, the model's own")));
    }
    let tokens = model.tokenizer().encode(text, Specials::Text)?;
    if tokens.is_empty() {
        return Err(Error::argument("text", "no tokens", "one token or more"));
    }
    let (vocab, head) = (m.h.vocab, m.weights.head.bytes());
    let counts: Vec<usize> = options
        .shares
        .iter()
        .map(|share| ((share * vocab as f64).round() as usize).clamp(1, vocab))
        .collect();
    let mut sums = vec![Sums::default(); counts.len() + 1];
    let mut session = model.session()?;
    session.set_cancel_flag(cancel.clone());
    let mut position = Position::default();
    let mut done = 0;
    // BOS takes a place where the model wants it.
    let room = context - usize::from(context > 1 && model.tokenizer().add_bos());
    for window in tokens.chunks(room) {
        session.rewind(0)?;
        session.append_tokens(window)?;
        session.each_head(&mut |heads| {
            position.set(&heads);
            position.add(heads.sparse.iter().map(|&logit| logit > f32::NEG_INFINITY), &mut sums[0]);
            for (sums, &count) in sums[1..].iter_mut().zip(&counts) {
                position.add(position.ranks.iter().map(|&rank| (rank as usize) < count), sums);
            }
            done += 1;
            if progress(done, tokens.len().max(done)) { Ok(()) } else { Err(Error::Cancelled) }
        })?;
    }
    let quality = |sums: &Sums| sums.quality(done, predictor.bytes() as f64, head as f64, vocab);
    Ok(HeadComparison {
        predictor: predictor.kind(),
        positions: done,
        vocab,
        head_bytes: head,
        predictor_bytes: predictor.bytes(),
        sparse: quality(&sums[0]),
        shares: options.shares.iter().copied().zip(sums[1..].iter().map(quality)).collect(),
    })
}

/// What is known of a position.
#[derive(Default)]
struct Position {
    /// The full head's probability of each token.
    probabilities: Vec<f64>,
    /// Place of each row in the order of estimates, the largest first.
    ranks: Vec<u32>,
    /// The likeliest tokens, best first.
    likeliest: Vec<u32>,
    order: Vec<u32>,
}

impl Position {
    fn set(&mut self, heads: &BothHeads<'_>) {
        let most = heads.full.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.probabilities.clear();
        self.probabilities.extend(heads.full.iter().map(|&l| (f64::from(l) - f64::from(most)).exp()));
        let total: f64 = self.probabilities.iter().sum();
        self.probabilities.iter_mut().for_each(|p| *p /= total);
        let by = |values: &[f32], a: &u32, b: &u32| {
            let [x, y] = [a, b].map(|&i| values[i as usize]);
            y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(b))
        };
        self.order.clear();
        self.order.extend(0..heads.full.len() as u32);
        self.order.sort_unstable_by(|a, b| by(heads.full, a, b));
        self.likeliest.clear();
        self.likeliest.extend(&self.order[..LIKELIEST.min(self.order.len())]);
        self.order.sort_unstable_by(|a, b| by(heads.estimates, a, b));
        self.ranks.resize(self.order.len(), 0);
        for (rank, &row) in (0..).zip(&self.order) {
            self.ranks[row as usize] = rank;
        }
    }

    /// Counts the position, with logits of the rows that `computed` says, one for each row.
    fn add(&self, computed: impl Iterator<Item = bool> + Clone, sums: &mut Sums) {
        let rows = computed.clone().filter(|&yes| yes).count();
        let mass: f64 =
            computed.clone().zip(&self.probabilities).filter(|(yes, _)| *yes).map(|(_, p)| p).sum();
        let computed: Vec<bool> = computed.collect();
        let found = |token: &&u32| computed[**token as usize];
        let kl = -mass.min(1.0).ln();
        sums.rows += rows;
        sums.most_rows = sums.most_rows.max(rows);
        sums.top1 += usize::from(self.likeliest.first().as_ref().is_some_and(found));
        sums.likeliest += self.likeliest.len();
        sums.recalled += self.likeliest.iter().filter(found).count();
        sums.kl += kl;
        sums.worst_kl = sums.worst_kl.max(kl);
    }
}

#[derive(Clone, Default)]
struct Sums {
    rows: usize,
    most_rows: usize,
    top1: usize,
    likeliest: usize,
    recalled: usize,
    kl: f64,
    worst_kl: f64,
}

impl Sums {
    fn quality(&self, positions: usize, predictor: f64, head: f64, vocab: usize) -> HeadQuality {
        let n = positions as f64;
        let rows = self.rows as f64 / n;
        HeadQuality {
            rows,
            most_rows: self.most_rows,
            bytes: predictor / head + rows / vocab as f64,
            top1: self.top1 as f64 / n,
            recall: self.recalled as f64 / self.likeliest as f64,
            kl: self.kl / n,
            worst_kl: self.worst_kl,
        }
    }
}
