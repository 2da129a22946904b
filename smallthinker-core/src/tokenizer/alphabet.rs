//! The byte-level alphabet: one printable character for each byte, so that a vocabulary of any byte
//! strings can be written as text (Radford et al., "Language models are unsupervised multitask
//! learners", 2019). Printable Latin-1 characters stand for themselves; the other bytes, in order, are
//! the characters from U+0100 on.

/// The conversion in both directions.
#[derive(Debug, Clone)]
pub(super) struct Alphabet {
    chars: [char; 256],
    // Index: character code. The largest character in use is U+0143.
    bytes: [Option<u8>; 0x144],
}

impl Alphabet {
    pub(super) fn new() -> Self {
        let mut chars = ['\0'; 256];
        let mut bytes = [None; 0x144];
        let mut shifted = 0x100u32;
        for byte in 0..=255u8 {
            let code = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
                _ => {
                    shifted += 1;
                    shifted - 1
                }
            };
            chars[usize::from(byte)] = char::from_u32(code).unwrap_or('\0');
            if let Some(slot) = bytes.get_mut(code as usize) {
                *slot = Some(byte);
            }
        }
        Alphabet { chars, bytes }
    }

    /// The character that stands for `byte`.
    pub(super) fn char(&self, byte: u8) -> char {
        self.chars[usize::from(byte)]
    }

    /// Appends the bytes that `text` stands for; a character outside the alphabet stands for its own
    /// UTF-8 bytes, and then so does the whole text.
    pub(super) fn append_bytes(&self, text: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for c in text.chars() {
            match self.bytes.get(c as usize).copied().flatten() {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let alphabet = Alphabet::new();
        let all: Vec<u8> = (0..=255).collect();
        let text: String = all.iter().map(|&b| alphabet.char(b)).collect();
        assert_eq!(text.chars().count(), 256);
        let mut bytes = Vec::new();
        alphabet.append_bytes(&text, &mut bytes);
        assert_eq!(bytes, all);
    }

    #[test]
    fn known_characters() {
        let alphabet = Alphabet::new();
        // As every GPT-2 style vocabulary writes them.
        assert_eq!(alphabet.char(b' '), 'Ġ');
        assert_eq!(alphabet.char(b'\n'), 'Ċ');
        assert_eq!(alphabet.char(b'a'), 'a');
        assert_eq!(alphabet.char(0xad), 'Ń');
    }

    #[test]
    fn text_outside_the_alphabet_is_itself() {
        let mut out = b"x".to_vec();
        Alphabet::new().append_bytes("Ġa b", &mut out);
        assert_eq!(out, "xĠa b".as_bytes());
    }
}
