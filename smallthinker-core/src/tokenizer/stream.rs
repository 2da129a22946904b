//! Text from tokens that arrive one at a time: a token may end in the middle of a character.

/// Turns the bytes of tokens into text, never splitting a character.
///
/// An unfinished character (at most 3 bytes) waits for the next push; bytes that cannot belong to any
/// character become U+FFFD, one for each maximal invalid sequence, as in [`String::from_utf8_lossy`].
#[derive(Debug, Clone, Default)]
pub struct DecodeStream {
    pending: Vec<u8>,
}

impl DecodeStream {
    /// An empty stream.
    pub fn new() -> Self {
        DecodeStream::default()
    }

    /// Takes the bytes of the next token and returns the text that is now complete, possibly none.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = done + invalid.len() == self.pending.len();
            // Without an error length, the bytes could still become a character.
            if at_end && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                done += invalid.len();
            }
        }
        self.pending.drain(..done);
        text
    }

    /// Ends the stream: an unfinished character becomes U+FFFD. The stream is empty afterwards.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holds_back_half_a_character() {
        let mut stream = DecodeStream::new();
        assert_eq!(stream.push(b"a\xf0\x9f"), "a");
        assert_eq!(stream.push(b"\x98"), "");
        assert_eq!(stream.push(b"\x80b"), "😀b");
        assert_eq!(stream.push(b"\xe4\xb8"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn an_impossible_byte_does_not_wait() {
        let mut stream = DecodeStream::new();
        assert_eq!(stream.push(b"\xff"), "\u{fffd}");
        assert_eq!(stream.push(b"\xe4x"), "\u{fffd}x");
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_lossy_text(
            parts in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..4),
                "[aé中😀]{0,3}".prop_flat_map(|s| {
                    let n = s.len();
                    (Just(s), 0..=n).prop_map(|(s, cut)| s.into_bytes()[..cut].to_vec())
                }),
            ], 0..12)
        ) {
            let mut stream = DecodeStream::new();
            let mut text = String::new();
            for part in &parts {
                text += &stream.push(part);
                prop_assert!(stream.pending.len() <= 3);
            }
            text += &stream.finish();
            let whole = parts.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
