//! Byte-pair encoding (Sennrich et al., 2016, arXiv 1508.07909) of one piece of text: starting from its bytes, the pair
//! of neighbours whose merge has the lowest rank becomes one token, the leftmost such pair first, until no pair merges.
//!
//! Our own because of memory: the model of the `tokenizers` crate takes 45 MB for a vocabulary of 151,936 tokens, in a
//! million small blocks; the tables here take 5 MB in a few large ones. That crate is the oracle of the tests.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

use super::TokenizerSpec;
use super::alphabet::Alphabet;
use super::vocab::{Kind, MERGES, TOKENS};
use crate::error::{Error, Result};

/// The merges of a vocabulary, by their left token.
#[derive(Debug)]
pub(super) struct Bpe {
    /// The token of each byte, where it has one.
    of_byte: [Option<u32>; 256],
    /// Token `t` is the left one of `merges[starts[t]..starts[t + 1]]`, which ascend by their right token.
    starts: Vec<u32>,
    merges: Vec<Merge>,
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    right: u32,
    rank: u32,
    /// What the two become.
    token: u32,
}

/// Buffers of [`Bpe::encode`], to be used again for the next piece.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    /// Merges that were possible when they were put here: rank and the left symbol.
    possible: BinaryHeap<Reverse<(u32, usize)>>,
}

/// A token of the piece while it is merged, in a linked list by index.
struct Symbol {
    token: u32,
    previous: usize,
    next: usize,
    /// Rank and result of the merge with the next symbol.
    merge: Option<(u32, u32)>,
}

/// Before the first symbol and after the last.
const NO_SYMBOL: usize = usize::MAX;

impl Bpe {
    /// Of text and added tokens. Control and unused tokens are left out, so that no sequence of merges can produce one.
    pub(super) fn new(
        spec: &TokenizerSpec,
        kinds: &[Kind],
        alphabet: &Alphabet,
        path: &Path,
    ) -> Result<Self> {
        let ids = ids_by_text(spec, kinds, path)?;
        let text_id =
            |text: &str| ids.get(text).copied().filter(|&id| kinds.get(id as usize) != Some(&Kind::Control));

        let mut all = Vec::with_capacity(spec.merges.len());
        let mut joined = String::new();
        for (rank, merge) in (0u32..).zip(spec.merges.iter()) {
            let malformed = |found: String, allowed: &str| {
                Error::malformed(path, format!("{MERGES}[{rank}]"), found, allowed)
            };
            let parts = merge.split_once(' ');
            let Some((left, right)) =
                parts.filter(|(l, r)| !l.is_empty() && !r.is_empty() && !r.contains(' '))
            else {
                return Err(malformed(format!("{merge:?}"), "two tokens separated by one space"));
            };
            joined.clear();
            joined.extend([left, right]);
            let known = |text: &str| {
                let found = || format!("{merge:?}, where {text:?} is not a text token");
                let allowed = "merges of text tokens into a text token of tokenizer.ggml.tokens";
                text_id(text).ok_or_else(|| malformed(found(), allowed))
            };
            let (left, right, token) = (known(left)?, known(right)?, known(&joined)?);
            all.push((left, Merge { right, rank, token }));
        }
        all.sort_unstable_by_key(|(left, merge)| (*left, merge.right, merge.rank));
        let pair = |(left, merge): &(u32, Merge)| (*left, merge.right);
        let again = all.windows(2).filter(|two| pair(&two[0]) == pair(&two[1])).map(|two| two[1].1.rank);
        if let Some(rank) = again.min() {
            let found = format!("{:?} again", spec.merges.get(rank as usize).unwrap_or_default());
            return Err(Error::malformed(path, format!("{MERGES}[{rank}]"), found, "distinct merges"));
        }
        let mut starts = vec![0u32; kinds.len() + 1];
        for (left, _) in &all {
            starts[*left as usize + 1] += 1;
        }
        for token in 0..kinds.len() {
            starts[token + 1] += starts[token];
        }
        let of_byte = std::array::from_fn(|b| text_id(alphabet.char(b as u8).encode_utf8(&mut [0; 4])));
        let mut merges: Vec<Merge> = all.into_iter().map(|(_, merge)| merge).collect();
        // Collecting keeps the larger block of `all`.
        merges.shrink_to_fit();
        Ok(Bpe { of_byte, starts, merges })
    }

    /// Whether a byte has a token: text with one that has none can't be encoded.
    pub(super) fn has(&self, byte: u8) -> bool {
        self.of_byte[usize::from(byte)].is_some()
    }

    /// Appends the tokens of `piece`; bytes without a token are left out. Time grows with `n log n`.
    pub(super) fn encode(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { symbols, possible } = scratch;
        symbols.clear();
        possible.clear();
        for token in piece.iter().filter_map(|&b| self.of_byte[usize::from(b)]) {
            let at = symbols.len();
            symbols.push(Symbol {
                token,
                previous: at.checked_sub(1).unwrap_or(NO_SYMBOL),
                next: at + 1,
                merge: None,
            });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NO_SYMBOL;
        for at in 0..symbols.len() {
            self.find_merge(symbols, possible, at);
        }
        while let Some(Reverse((rank, at))) = possible.pop() {
            // One of the two may have been merged with another since.
            let Some((_, token)) = symbols[at].merge.filter(|(current, _)| *current == rank) else {
                continue;
            };
            let gone = symbols[at].next;
            let (previous, next) = (symbols[at].previous, symbols[gone].next);
            symbols[gone].merge = None;
            symbols[at].token = token;
            symbols[at].next = next;
            if next != NO_SYMBOL {
                symbols[next].previous = at;
            }
            self.find_merge(symbols, possible, at);
            if previous != NO_SYMBOL {
                self.find_merge(symbols, possible, previous);
            }
        }
        let mut at = 0;
        while let Some(symbol) = symbols.get(at) {
            ids.push(symbol.token);
            at = symbol.next;
        }
    }

    /// Notes the merge of symbol `at` with the one after it.
    fn find_merge(
        &self,
        symbols: &mut [Symbol],
        possible: &mut BinaryHeap<Reverse<(u32, usize)>>,
        at: usize,
    ) {
        let next = symbols.get(symbols[at].next).map(|s| s.token);
        symbols[at].merge = next.and_then(|right| self.merge_of(symbols[at].token, right));
        possible.extend(symbols[at].merge.map(|(rank, _)| Reverse((rank, at))));
    }

    /// Rank and result of merging two tokens.
    fn merge_of(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let range = *self.starts.get(left as usize)? as usize..*self.starts.get(left as usize + 1)? as usize;
        let merges = self.merges.get(range)?;
        let at = merges.binary_search_by_key(&right, |m| m.right).ok()?;
        merges.get(at).map(|m| (m.rank, m.token))
    }

    /// Bytes in use besides the struct itself.
    pub(super) fn memory_bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u32>() + self.merges.capacity() * size_of::<Merge>()
    }
}

/// Ids of all tokens but the unused ones. Errors: a text that two tokens have.
fn ids_by_text<'s>(spec: &'s TokenizerSpec, kinds: &[Kind], path: &Path) -> Result<HashMap<&'s str, u32>> {
    // Room for the vocabularies there are; a hostile file may have many more equal tokens, and room can't be refused.
    let mut ids = HashMap::with_capacity(kinds.len().min(1 << 20));
    for ((text, kind), id) in spec.tokens.iter().zip(kinds).zip(0u32..) {
        if *kind == Kind::Unused {
            continue;
        }
        if let Some(first) = ids.insert(text, id) {
            let found = format!("{text:?}, the same as token {first}");
            return Err(Error::malformed(path, format!("{TOKENS}[{id}]"), found, "distinct tokens"));
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::Model as _;
    use tokenizers::models::bpe;

    use super::*;

    /// A vocabulary over three letters with random merges, ranked at random: what a training run gives is a
    /// special case of it.
    fn any_vocabulary() -> impl Strategy<Value = TokenizerSpec> {
        let picks = prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..24);
        let parts = picks.prop_map(|picks| {
            let mut tokens: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
            let mut merges: Vec<String> = Vec::new();
            for (left, right) in picks {
                let (left, right) = (left.get(&tokens).clone(), right.get(&tokens).clone());
                let (merge, joined) = (format!("{left} {right}"), format!("{left}{right}"));
                if joined.len() <= 9 && !merges.contains(&merge) {
                    merges.push(merge);
                    if !tokens.contains(&joined) {
                        tokens.push(joined);
                    }
                }
            }
            (tokens, merges)
        });
        parts.prop_flat_map(|(tokens, merges)| (Just(tokens), Just(merges).prop_shuffle())).prop_map(
            |(tokens, merges)| {
                let (tokens, merges) = (tokens.iter().collect(), merges.iter().collect());
                TokenizerSpec { tokens, merges, ..TokenizerSpec::default() }
            },
        )
    }

    fn by_the_crate(spec: &TokenizerSpec, piece: &str) -> Vec<u32> {
        let vocab = spec.tokens.iter().zip(0..).map(|(t, id)| (t.to_owned(), id)).collect();
        let pair = |merge: &str| merge.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned()));
        let merges = spec.merges.iter().filter_map(pair).collect();
        let model = bpe::BPE::builder().vocab_and_merges::<bpe::Vocab>(vocab, merges).build().unwrap();
        model.tokenize(piece).unwrap().iter().map(|t| t.id).collect()
    }

    fn build(spec: &TokenizerSpec) -> Bpe {
        let kinds = vec![Kind::Text; spec.tokens.len()];
        Bpe::new(spec, &kinds, &Alphabet::new(), Path::new("m.gguf")).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn tokens_are_those_of_the_published_implementation(
            spec in any_vocabulary(),
            pieces in prop::collection::vec("[abc]{0,30}", 1..4),
        ) {
            let (bpe, mut scratch) = (build(&spec), Scratch::default());
            for piece in pieces {
                let mut ids = Vec::new();
                bpe.encode(piece.as_bytes(), &mut scratch, &mut ids);
                prop_assert_eq!(&ids, &by_the_crate(&spec, &piece), "{:?} {:?} {}", spec.tokens, spec.merges, piece);
            }
        }
    }

    #[test]
    fn a_piece_of_megabytes_takes_no_quadratic_time() {
        let tokens = ["a", "aa", "aaaa"].into_iter().collect();
        let spec = TokenizerSpec {
            tokens,
            merges: ["a a", "aa aa"].into_iter().collect(),
            ..TokenizerSpec::default()
        };
        let mut ids = Vec::new();
        build(&spec).encode(&[b'a'; 2_000_003], &mut Scratch::default(), &mut ids);
        assert_eq!(ids.len(), 500_002);
        assert_eq!(ids[ids.len() - 2..], [1, 0]);
    }
}
