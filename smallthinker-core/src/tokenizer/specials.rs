//! Finds special tokens in text: leftmost first, the longest among those that start at one place.

use super::vocab::TokenBytes;

/// A set of special tokens. Their texts are those of the vocabulary, which every lookup is given. At each byte of the
/// text it costs at most a binary search for each byte of the longest token.
#[derive(Debug)]
pub(super) struct SpecialSet {
    /// Ascending by text; none is empty, which would be found everywhere.
    ids: Vec<u32>,
    /// Bytes that begin some token, to pass over ordinary text quickly.
    first: [bool; 256],
}

impl SpecialSet {
    pub(super) fn new(ids: impl Iterator<Item = u32>, texts: &TokenBytes) -> Self {
        let mut first = [false; 256];
        let text = |id: &u32| texts.get(*id).unwrap_or_default();
        let mut ids: Vec<u32> = ids.filter(|id| !text(id).is_empty()).collect();
        ids.sort_unstable_by_key(|id| text(id));
        ids.shrink_to_fit();
        ids.iter().for_each(|id| first[usize::from(text(id)[0])] = true);
        SpecialSet { ids, first }
    }

    /// Bytes in use besides the struct itself.
    pub(super) fn memory_bytes(&self) -> usize {
        self.ids.capacity() * size_of::<u32>()
    }

    /// The first special token of `text`: byte range and id.
    pub(super) fn find(&self, text: &str, texts: &TokenBytes) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        for start in 0..bytes.len() {
            if self.first[usize::from(bytes[start])]
                && let Some((len, id)) = self.longest_at(&bytes[start..], texts)
            {
                return Some((start, start + len, id));
            }
        }
        None
    }

    fn longest_at(&self, bytes: &[u8], texts: &TokenBytes) -> Option<(usize, u32)> {
        let text = |id: &u32| texts.get(*id).unwrap_or_default();
        // Those that begin as `bytes` does, a byte more in each round; the shortest of them comes first.
        let mut same = &self.ids[..];
        let mut best = None;
        for (i, &byte) in bytes.iter().enumerate() {
            let from = same.partition_point(|id| text(id).get(i) < Some(&byte));
            let to = same.partition_point(|id| text(id).get(i) <= Some(&byte));
            same = &same[from..to];
            let Some(shortest) = same.first() else { break };
            if text(shortest).len() == i + 1 {
                best = Some((i + 1, *shortest));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::alphabet::Alphabet;
    use super::super::vocab::Kind;
    use super::*;
    use crate::tokenizer::TokenizerSpec;

    /// A text, and what is found in it.
    type Case<'t> = (&'t str, Option<(usize, usize, u32)>);

    fn check(tokens: &[&str], cases: &[Case<'_>]) {
        let spec = TokenizerSpec { tokens: tokens.iter().collect(), ..TokenizerSpec::default() };
        let kinds = vec![Kind::Added; tokens.len()];
        let texts = TokenBytes::new(&spec, &kinds, &Alphabet::new(), Path::new("m.gguf")).unwrap();
        let set = SpecialSet::new(0..tokens.len() as u32, &texts);
        for (text, found) in cases {
            assert_eq!(set.find(text, &texts), *found, "{text:?}");
        }
    }

    #[test]
    fn leftmost_then_longest() {
        check(
            &["<|a|>", "<|a|>b", "<", "é", ""],
            &[
                ("x<|a|>c", Some((1, 6, 0))),
                ("x<|a|>b", Some((1, 7, 1))),
                ("x<|a|", Some((1, 2, 2))),
                ("xè né", Some((5, 7, 3))),
                ("plain", None),
            ],
        );
        check(&[], &[("<|a|>", None)]);
    }
}
