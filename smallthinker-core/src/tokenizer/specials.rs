//! Finds special tokens in text: leftmost first, the longest among those that start at one place.

use std::collections::HashMap;

/// A set of special tokens as a byte trie. A lookup costs at most the length of the longest token at
/// each byte of the text, whatever the number of tokens.
#[derive(Debug, Default)]
pub(super) struct SpecialSet {
    // (node, byte) → child; node 0 is the root.
    children: HashMap<(u32, u8), u32>,
    // Token that ends at each node.
    tokens: Vec<Option<u32>>,
    // Bytes that begin some token, to pass over ordinary text quickly.
    first: Vec<bool>,
}

impl SpecialSet {
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut set = SpecialSet { children: HashMap::new(), tokens: vec![None], first: vec![false; 256] };
        for (text, id) in tokens {
            let mut node = 0;
            for &byte in text.as_bytes() {
                node = *set.children.entry((node, byte)).or_insert_with(|| {
                    set.tokens.push(None);
                    (set.tokens.len() - 1) as u32
                });
            }
            // An empty token would be found everywhere.
            if node != 0 {
                set.tokens[node as usize] = Some(id);
                set.first[usize::from(text.as_bytes()[0])] = true;
            }
        }
        set
    }

    /// Bytes of memory in use, estimated: a hash map is 7/8 full at most, with a byte beside each slot.
    pub(super) fn memory_bytes(&self) -> usize {
        let slot = size_of::<((u32, u8), u32)>() + 1;
        self.children.capacity() * slot * 8 / 7
            + self.tokens.capacity() * size_of::<Option<u32>>()
            + self.first.capacity()
    }

    /// The first special token of `text`: byte range and id.
    pub(super) fn find(&self, text: &str) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        for start in 0..bytes.len() {
            if self.first[usize::from(bytes[start])]
                && let Some((len, id)) = self.longest_at(&bytes[start..])
            {
                return Some((start, start + len, id));
            }
        }
        None
    }

    fn longest_at(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let mut node = 0;
        let mut best = None;
        for (i, &byte) in bytes.iter().enumerate() {
            match self.children.get(&(node, byte)) {
                Some(&child) => node = child,
                None => break,
            }
            if let Some(id) = self.tokens[node as usize] {
                best = Some((i + 1, id));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftmost_then_longest() {
        let tokens = ["<|a|>", "<|a|>b", "<", "é", ""];
        let set = SpecialSet::new(tokens.into_iter().zip(0..));
        assert_eq!(set.find("x<|a|>c"), Some((1, 6, 0)));
        assert_eq!(set.find("x<|a|>b"), Some((1, 7, 1)));
        assert_eq!(set.find("x<|a|"), Some((1, 2, 2)));
        assert_eq!(set.find("xè né"), Some((5, 7, 3)));
        assert_eq!(set.find("plain"), None);
        assert_eq!(SpecialSet::new(std::iter::empty()).find("<|a|>"), None);
    }
}
