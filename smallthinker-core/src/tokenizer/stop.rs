//! Stop strings in streamed text, however the text is cut into pieces.

use crate::error::{Error, Result};

/// Passes text on until one of its stop strings is complete.
///
/// The stop string that is complete first wins; of several complete at the same character, the longest.
/// Text that could be the beginning of a stop string is held back until that is decided.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Pattern>,
    held: String,
    matched: bool,
}

/// One stop string with its place in the search (Knuth, Morris, Pratt 1977).
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    // For each prefix, the length of its longest proper prefix that is also its suffix.
    fallback: Vec<usize>,
    // How many bytes of the pattern the text ends with.
    state: usize,
}

impl Pattern {
    fn new(text: String) -> Self {
        let bytes = text.into_bytes();
        let mut fallback = vec![0; bytes.len()];
        let mut len = 0;
        for i in 1..bytes.len() {
            while len > 0 && bytes[i] != bytes[len] {
                len = fallback[len - 1];
            }
            if bytes[i] == bytes[len] {
                len += 1;
            }
            fallback[i] = len;
        }
        Pattern { bytes, fallback, state: 0 }
    }

    /// Takes one byte of text; true when the pattern is complete.
    fn advance(&mut self, byte: u8) -> bool {
        while self.state > 0 && byte != self.bytes[self.state] {
            self.state = self.fallback[self.state - 1];
        }
        if byte == self.bytes[self.state] {
            self.state += 1;
        }
        self.state == self.bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for any of `stops`; with none, all text passes at once.
    ///
    /// # Errors
    /// A stop string is empty.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if let Some(i) = stops.iter().position(String::is_empty) {
            return Err(Error::argument(
                "stop",
                format!("an empty string at index {i}"),
                "non-empty strings",
            ));
        }
        let stops = stops.into_iter().map(Pattern::new).collect();
        Ok(StopMatcher { stops, held: String::new(), matched: false })
    }

    /// Takes the next piece of text. Returns the text that is now certain to come before any stop
    /// string, and whether a stop string is complete; once it is, later pieces are dropped.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        if self.matched {
            return (String::new(), true);
        }
        let start = self.held.len();
        self.held.push_str(text);
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            let mut longest = 0;
            for stop in &mut self.stops {
                if stop.advance(byte) {
                    longest = longest.max(stop.bytes.len());
                }
            }
            if longest > 0 {
                self.matched = true;
                // A stop string starts at a character, so this cut falls between characters.
                self.held.truncate(start + i + 1 - longest);
                return (std::mem::take(&mut self.held), true);
            }
        }
        let undecided = self.stops.iter().map(|s| s.state).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - undecided);
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// Ends the text: returns what was held back, since no stop string can complete any more.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|s| s.state = 0);
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(ToString::to_string).collect()).unwrap()
    }

    #[test]
    fn holds_back_and_cuts() {
        let mut m = matcher(&["</s>", "\nUser:"]);
        assert_eq!(m.push("Hi <"), ("Hi ".into(), false));
        assert_eq!(m.push("/b> \n"), ("</b> ".into(), false));
        assert_eq!(m.push("Us"), (String::new(), false));
        assert_eq!(m.push("er: more"), (String::new(), true));
        assert_eq!(m.push("more"), (String::new(), true));
        assert_eq!(m.finish(), "");
    }

    #[test]
    fn self_overlapping_and_nested_stops() {
        assert_eq!(matcher(&["aab"]).push("aaab!"), ("a".into(), true));
        assert_eq!(matcher(&["b", "abc", "ab"]).push("xabc"), ("x".into(), true));
        let mut m = matcher(&["中文"]);
        assert_eq!(m.push("a中"), ("a".into(), false));
        assert_eq!(m.finish(), "中");
    }

    #[test]
    fn empty_stop_is_refused() {
        assert!(StopMatcher::new(vec![String::new()]).unwrap_err().to_string().contains("stop"));
        assert_eq!(matcher(&[]).push("all"), ("all".into(), false));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn any_cut_gives_the_same_text(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let whole = pieces.concat();
            // By definition: the first character position at which some stop string is complete.
            let cut = (0..=whole.len()).filter(|&i| whole.is_char_boundary(i)).find_map(|end| {
                let complete = stops.iter().filter(|s| whole[..end].ends_with(s.as_str()));
                complete.map(|s| s.len()).max().map(|longest| end - longest)
            });
            let mut m = StopMatcher::new(stops).unwrap();
            let mut text = String::new();
            for piece in &pieces {
                text += &m.push(piece).0;
            }
            text += &m.finish();
            prop_assert_eq!(text, &whole[..cut.unwrap_or(whole.len())]);
            prop_assert_eq!(m.matched, cut.is_some());
        }
    }
}
