//! The `qwen2` pre-tokenizer: cuts text into the pieces inside which BPE merges. It does what this
//! pattern of the published tokenizer does, written by hand because the pattern's look-ahead needs a
//! backtracking engine, whose step limit gives wrong pieces for long runs of spaces:
//!
//! ```text
//! (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//! ```

use regex_syntax::hir::{Class, HirKind};

use crate::error::{Error, Result};

/// Cuts text into pieces; holds the letters and numbers (Unicode categories L and N). `std` has no test
/// for L, and both must come from one version of Unicode, so the tables of `regex-syntax` are asked.
#[derive(Debug)]
pub(super) struct Qwen2Splitter {
    letters: CharSet,
    numbers: CharSet,
}

/// A set of characters, one bit for each code point.
#[derive(Debug)]
struct CharSet(Vec<u64>);

impl CharSet {
    const WORDS: usize = 0x11_0000 / 64;

    /// The characters of the class `pattern`.
    fn new(pattern: &str) -> Result<Self> {
        let internal =
            |reason: String| Error::Internal { message: format!("character class {pattern}: {reason}") };
        let hir = regex_syntax::parse(pattern).map_err(|e| internal(e.to_string()))?;
        let HirKind::Class(Class::Unicode(class)) = hir.kind() else {
            return Err(internal("not a class".to_owned()));
        };
        let mut bits = vec![0u64; CharSet::WORDS];
        for c in class.iter().flat_map(|range| range.start()..=range.end()) {
            bits[c as usize / 64] |= 1 << (c as usize % 64);
        }
        Ok(CharSet(bits))
    }

    fn contains(&self, c: char) -> bool {
        self.0[c as usize / 64] >> (c as usize % 64) & 1 == 1
    }
}

impl Qwen2Splitter {
    pub(super) fn new() -> Result<Self> {
        Ok(Qwen2Splitter { letters: CharSet::new(r"\p{L}")?, numbers: CharSet::new(r"\p{N}")? })
    }

    /// Bytes that a splitter takes besides the struct itself.
    pub(super) const HEAP_BYTES: usize = 2 * CharSet::WORDS * size_of::<u64>();

    /// The pieces of `text`, in order; joined they are `text`.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (piece, tail) = rest.split_at(self.piece_len(rest));
            rest = tail;
            Some(piece)
        })
    }

    fn is_letter(&self, c: char) -> bool {
        self.letters.contains(c)
    }

    /// Neither letter nor number nor space: punctuation, symbols, marks, controls.
    fn is_other(&self, c: char) -> bool {
        !c.is_whitespace() && !self.is_letter(c) && !self.numbers.contains(c)
    }

    /// Bytes of the piece at the start of `text`, which is not empty: the alternatives in their order.
    fn piece_len(&self, text: &str) -> usize {
        let mut chars = text.chars();
        let Some(first) = chars.next() else { return 0 };
        let after_first = chars.as_str();
        let second = chars.next();
        if first == '\''
            && let Some(len) = contraction(after_first)
        {
            return 1 + len;
        }
        if self.is_letter(first) {
            return run(text, |c| self.is_letter(c));
        }
        if self.numbers.contains(first) {
            return first.len_utf8();
        }
        if !is_newline(first) && second.is_some_and(|c| self.is_letter(c)) {
            return first.len_utf8() + run(after_first, |c| self.is_letter(c));
        }
        let space = usize::from(first == ' ');
        let others = run(&text[space..], |c| self.is_other(c));
        if others > 0 {
            let end = space + others;
            return end + run(&text[end..], is_newline);
        }
        // What is left is white space.
        let spaces = run(text, char::is_whitespace);
        let blank = &text[..spaces];
        if let Some(newline) = blank.rfind(is_newline) {
            return newline + 1;
        }
        let last = blank.chars().next_back().map_or(0, char::len_utf8);
        // The last space goes with the word that follows, unless it is the only one.
        if spaces == text.len() || spaces == last { spaces } else { spaces - last }
    }
}

fn is_newline(c: char) -> bool {
    c == '\r' || c == '\n'
}

/// Bytes of the longest start of `text` whose characters all satisfy `keep`.
fn run(text: &str, keep: impl Fn(char) -> bool) -> usize {
    text.find(|c| !keep(c)).unwrap_or(text.len())
}

/// Bytes of an English contraction's ending (without its apostrophe) at the start of `text`.
fn contraction(text: &str) -> Option<usize> {
    let mut chars = text.chars();
    let first = chars.next()?;
    let second = chars.next().map(|c| c.to_ascii_lowercase());
    match (first.to_ascii_lowercase(), second) {
        // U+017F, long s, equals s when case is ignored.
        ('s' | 'ſ' | 't' | 'm' | 'd', _) => Some(first.len_utf8()),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::utils::SysRegex;

    use super::*;

    const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn by_pattern(text: &str) -> Vec<&str> {
        let regex = SysRegex::new(PATTERN).unwrap();
        regex.find_iter(text).map(|(start, end)| &text[start..end]).collect()
    }

    fn check(splitter: &Qwen2Splitter, text: &str) {
        assert_eq!(splitter.pieces(text).collect::<Vec<_>>(), by_pattern(text), "{text:?}");
    }

    #[test]
    fn every_character_is_classified_as_by_the_pattern() {
        let splitter = Qwen2Splitter::new().unwrap();
        let regex = SysRegex::new(PATTERN).unwrap();
        // The planes without assigned characters are left out.
        for c in ('\0'..'\u{32000}').chain('\u{e0000}'..'\u{e0200}') {
            // Between letters, digits and spaces, each class of character shows.
            let text = String::from_iter(['a', c, ' ', c, '1', c, c, '\n']);
            let expected = regex.find_iter(&text).map(|(start, end)| &text[start..end]);
            assert!(splitter.pieces(&text).eq(expected), "U+{:04X}", c as u32);
        }
    }

    #[test]
    fn spaces_beyond_a_backtracking_limit() {
        let splitter = Qwen2Splitter::new().unwrap();
        let text = " ".repeat(3_000_000) + "x";
        let pieces: Vec<_> = splitter.pieces(&text).collect();
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[1], " x");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn pieces_are_those_of_the_pattern(
            text in "([ \t\r\n\u{a0}\u{3000}]{0,3}('|'S|'lL|'rE|'vx|'ſ|[a-zé中]{1,3}|[0-9½Ⅷ٣]|[.,!(\u{301}\u{200d}😀]|\\PC)){0,12}[ \n\t]{0,3}"
        ) {
            thread_local!(static SPLITTER: Qwen2Splitter = Qwen2Splitter::new().unwrap());
            SPLITTER.with(|splitter| check(splitter, &text));
        }
    }
}
