//! A sketch of the LM head that was trained, in a file's metadata, which other programs pass over:
//!
//! | key `smallthinker.head_sketch.` | type | |
//! |---|---|---|
//! | `directions` | f32 array | `[count][hidden]`: the coordinates of a state are its products with these |
//! | `signs` | u8 array | `[vocab][count / 8]`: bit `j % 8` of byte `j / 8` of a row is set where coordinate `j` is added |
//! | `scales` | f32 array | `[vocab]`: what the sum is multiplied by |
//! | `mean` | f32 array | `[hidden]`: its product with the state is added to all estimates, which makes them ones of the logits |
//! | `margin` | f32 | rows are computed whose estimate is at most this below the largest logit of the rows with the largest estimates |

use crate::gguf::Gguf;
use crate::kernels::signs::{MAX_WORDS, WORD};
use crate::model::hparams::Hparams;
use crate::{Error, Result};

use super::sketch::STEP;

/// The sketch as the file has it, checked.
pub(crate) struct Stored<'a> {
    pub(super) directions: &'a [f32],
    pub(super) signs: &'a [u8],
    /// One per row of the head.
    pub(super) scales: &'a [f32],
    /// What all rows have in common.
    pub(super) mean: &'a [f32],
    pub(super) margin: f32,
    /// Directions.
    pub(super) count: usize,
}

const PARTS: [&str; 5] = ["directions", "signs", "scales", "mean", "margin"];

/// A part that cannot be: its name, what was found and what is allowed.
type Wrong = (&'static str, String, String);

impl<'a> Stored<'a> {
    /// The sketch of a head for states of the size `hidden`, with `vocab` rows.
    pub(crate) fn checked(
        (directions, signs, scales, mean, margin): (&'a [f32], &'a [u8], &'a [f32], &'a [f32], f32),
        hidden: usize,
        vocab: usize,
    ) -> std::result::Result<Stored<'a>, Wrong> {
        let (count, most) = (directions.len() / hidden.max(1), MAX_WORDS * WORD);
        if !(STEP..=most).contains(&count)
            || !count.is_multiple_of(STEP)
            || directions.len() != count * hidden
        {
            let allowed = format!(
                "{hidden} for each direction, of which there are a multiple of {STEP}, {most} at most"
            );
            return Err(("directions", format!("{} values", directions.len()), allowed));
        }
        let lengths = [
            ("signs", signs.len(), vocab.saturating_mul(count / 8)),
            ("scales", scales.len(), vocab),
            ("mean", mean.len(), hidden),
        ];
        if let Some((name, found, allowed)) = lengths.into_iter().find(|(_, found, allowed)| found != allowed)
        {
            return Err((name, format!("{found} values"), allowed.to_string()));
        }
        // Four-bit blocks have scales in half precision.
        let largest = half::f16::MAX.to_f32();
        if let Some(value) = directions.iter().find(|v| v.is_nan() || v.abs() > largest) {
            return Err(("directions", value.to_string(), format!("finite numbers up to {largest}")));
        }
        if let Some(value) = scales.iter().find(|v| !v.is_finite() || **v < 0.0) {
            return Err(("scales", value.to_string(), "finite numbers from zero on".into()));
        }
        if let Some(value) = mean.iter().find(|v| !v.is_finite()) {
            return Err(("mean", value.to_string(), "finite numbers".into()));
        }
        if !margin.is_finite() || margin < 0.0 {
            return Err(("margin", margin.to_string(), "a finite number from zero on".into()));
        }
        Ok(Stored { directions, signs, scales, mean, margin, count })
    }
}

/// The sketch that the file brings, if any. Errors name the key.
pub(super) fn find<'g>(gguf: &'g Gguf, h: &Hparams) -> Result<Option<Stored<'g>>> {
    let key = |name: &str| format!("smallthinker.head_sketch.{name}");
    if PARTS.iter().all(|name| gguf.get(&key(name)).is_none()) {
        return Ok(None);
    }
    let wrong = |name, found, allowed| Error::malformed(gguf.path(), key(name), found, allowed);
    let missing =
        |name| move || wrong(name, "no such key".to_owned(), format!("all of {}", PARTS.join(", ")));
    let values = (
        gguf.get_f32_array(&key("directions"))?.ok_or_else(missing("directions"))?,
        gguf.get_u8_array(&key("signs"))?.ok_or_else(missing("signs"))?,
        gguf.get_f32_array(&key("scales"))?.ok_or_else(missing("scales"))?,
        gguf.get_f32_array(&key("mean"))?.ok_or_else(missing("mean"))?,
        gguf.get_f32(&key("margin"))?.ok_or_else(missing("margin"))?,
    );
    let checked = Stored::checked(values, h.hidden, h.vocab);
    checked.map(Some).map_err(|(name, found, allowed)| wrong(name, found, allowed))
}
