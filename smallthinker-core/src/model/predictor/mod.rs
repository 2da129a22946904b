//! What tells the sparse LM head which rows are worth computing.
//!
//! A file of the report's own engine may bring a trained predictor ([`trained`]). Any other head gets a [`sketch`] of its
//! rows, a bit per direction and a scale per row: the trained one that the file brings ([`stored`]), or one that is made from
//! the head alone while the model is loaded.

mod directions;
mod sketch;
mod stored;
#[cfg(test)]
mod tests;
mod trained;

use std::fmt;
use std::str::FromStr;

use crate::cancel::CancelFlag;
use crate::gguf::Gguf;
use crate::kernels::Kernels;
use crate::model::hparams::Hparams;
use crate::model::weights::{Resident, expect_tensor, resident_bytes};
use crate::pool::Team;
use crate::{Error, Result};

pub(crate) use sketch::{Rule, Sketch};
pub(crate) use stored::Stored;
pub(crate) use trained::Trained;

/// How the logits of a generation are made. Log probabilities, [`Session::logits`](crate::Session::logits) and
/// [`perplexity`](fn@crate::perplexity) are always from the full head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LmHead {
    /// All of them.
    #[default]
    Full,
    /// Those of the rows that a predictor picks, at least 16; all others are minus infinity. Reads a small part of the
    /// head for each token.
    Sparse,
}

impl LmHead {
    /// Every way.
    pub const ALL: [LmHead; 2] = [LmHead::Full, LmHead::Sparse];

    /// Its name: "full" or "sparse".
    pub const fn name(self) -> &'static str {
        match self {
            LmHead::Full => "full",
            LmHead::Sparse => "sparse",
        }
    }
}

impl fmt::Display for LmHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LmHead {
    type Err = Error;

    fn from_str(name: &str) -> Result<LmHead> {
        LmHead::ALL.into_iter().find(|h| h.name() == name).ok_or_else(|| {
            let names = LmHead::ALL.map(LmHead::name).join(", ");
            Error::argument("lm_head", format!("{name:?}"), names)
        })
    }
}

/// What picks the rows of the sparse head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeadPredictor {
    /// The trained predictor that the file brings (`lm_head_profiler.weight`, or a sketch in `smallthinker.head_sketch.*`).
    File,
    /// A sketch of the head's rows, made when the model was opened.
    Sketch,
}

impl HeadPredictor {
    /// Its name: "file" or "sketch".
    pub const fn name(self) -> &'static str {
        match self {
            HeadPredictor::File => "file",
            HeadPredictor::Sketch => "sketch",
        }
    }
}

/// A predictor in memory.
pub(crate) enum Predictor {
    Trained(Trained),
    Sketch(Sketch),
}

/// Rows that are computed at least, as far as there are so many.
pub(crate) const LEAST_ROWS: usize = 64;
/// With a trained sketch: its margin makes sure of the others.
pub(crate) const LEAST_ROWS_TRAINED: usize = 16;

impl Predictor {
    pub(crate) fn kind(&self) -> HeadPredictor {
        match self {
            Predictor::Trained(_) => HeadPredictor::File,
            Predictor::Sketch(p) => match p.rule {
                Rule::Margin(_) => HeadPredictor::File,
                Rule::Error { .. } => HeadPredictor::Sketch,
            },
        }
    }

    /// Bytes that it reads for a token.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Predictor::Trained(p) => p.bytes(),
            Predictor::Sketch(p) => p.bytes(),
        }
    }

    /// Reads the file's predictor, or makes a sketch of the head.
    pub(crate) fn load(
        gguf: &Gguf,
        h: &Hparams,
        head: &Resident,
        kernels: &Kernels,
        team: &Team<'_>,
        cancel: &CancelFlag,
    ) -> Result<Predictor> {
        if let Some(info) = gguf.tensor(trained::TENSOR) {
            return trained::load(gguf, h, info, cancel).map(Predictor::Trained);
        }
        match stored::find(gguf, h)? {
            Some(stored) => Sketch::from_stored(&stored, h.hidden),
            None => {
                check_width(gguf, h)?;
                Sketch::new(&head.view(), kernels, team, cancel)
            }
        }
        .map(Predictor::Sketch)
    }
}

fn check_width(gguf: &Gguf, h: &Hparams) -> Result<()> {
    if h.hidden <= sketch::MOST_HIDDEN {
        return Ok(());
    }
    let allowed = format!("up to {} for the sparse LM head", sketch::MOST_HIDDEN);
    Err(Error::unsupported(gguf.path(), "smallthinker.embedding_length", h.hidden, allowed))
}

/// Bytes that the predictor of a file will take in memory.
pub(crate) fn predictor_bytes(gguf: &Gguf, h: &Hparams) -> Result<u64> {
    if let Some(info) = gguf.tensor(trained::TENSOR) {
        return trained::size(gguf, h, info).map(|size| size.bytes() as u64);
    }
    if let Some(stored) = stored::find(gguf, h)? {
        return Ok(sketch::footprint(h.vocab, h.hidden, stored.count) as u64);
    }
    check_width(gguf, h)?;
    let name = if gguf.tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" };
    let info = expect_tensor(gguf, name, &[h.hidden, h.vocab])?;
    let head = resident_bytes(gguf, name, info, h.vocab, h.hidden)?;
    Ok(sketch::bytes(h.vocab, h.hidden, head) as u64)
}
