//! Tokens of a conversation. The template's control tokens are recognised in the rendered text, so a
//! message that contains `<|im_end|>` must not look as if the template had written it.
//!
//! Before rendering, a mark is put behind every character of a message that could begin a control token,
//! so that no control token is left in one piece, even if the template joins a message's end with text of
//! its own, or cuts pieces out of a message. After the control tokens are cut out of the rendered text, the
//! marks are deleted, and what remains is encoded as plain text, exactly what the message said. The mark
//! is a code point that occurs nowhere in the conversation.

use super::{ChatTemplate, Message};
use crate::error::{Error, Result};
use crate::tokenizer::{Segment, Specials, Tokenizer};

/// Roles that templates compare with; they are never marked.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

impl ChatTemplate {
    /// The tokens of a conversation, ready for the model; see [`ChatTemplate::render`].
    ///
    /// Messages are text: a control token written in one is encoded as the characters it is written
    /// with. BOS comes first once if the tokenizer asks for it or the template writes it, never twice.
    ///
    /// # Errors
    /// [`Error::Template`] as for rendering; those of [`Tokenizer::encode`].
    pub fn encode_chat(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let marker = Marker::new(tokenizer, self.source(), messages)?;
        let marked: Vec<Message> = messages.iter().map(|m| marker.message(m)).collect();
        let text = |id: Option<u32>| -> String {
            let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        let rendered = self.render(&marked, add_generation_prompt, &bos, &eos)?;
        let mut ids = Vec::with_capacity(rendered.len() / 3);
        for segment in tokenizer.segments(&rendered, Specials::Parse) {
            match segment {
                Segment::Token(id) => ids.push(id),
                Segment::Text(text) => {
                    let text: String = text.chars().filter(|&c| c != marker.mark).collect();
                    tokenizer.encode_text(&text, &mut ids)?;
                }
            }
        }
        if let Some(bos) = tokenizer.bos()
            && tokenizer.add_bos()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }
}

/// Puts marks into messages.
struct Marker {
    mark: char,
    // First characters of the control tokens.
    first: Vec<char>,
    controls: Vec<String>,
}

impl Marker {
    fn new(tokenizer: &Tokenizer, source: &str, messages: &[Message]) -> Result<Self> {
        // Noncharacters, which no text should contain, then private-use characters.
        let candidates = ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}');
        let used = |c: char| {
            source.contains(c) || messages.iter().any(|m| m.content.contains(c) || m.role.contains(c))
        };
        let mark = candidates.into_iter().find(|&c| !used(c)).ok_or_else(|| Error::Template {
            message: "the conversation uses every private-use character".into(),
        })?;
        let controls: Vec<String> = tokenizer.control_texts().map(str::to_owned).collect();
        let mut first: Vec<char> = controls.iter().filter_map(|t| t.chars().next()).collect();
        first.sort_unstable();
        first.dedup();
        Ok(Marker { mark, first, controls })
    }

    fn message(&self, message: &Message) -> Message {
        let known = ROLES.contains(&message.role.as_str());
        let role = if known { message.role.clone() } else { self.text(&message.role) };
        Message { role, content: self.text(&message.content) }
    }

    fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + text.len() / 8);
        // A message may also begin with the rest of a token whose beginning the template wrote. The mark
        // goes behind the first character, so that trimming still sees the white space before it.
        let start = text.len() - text.trim_start().len();
        let ends_token = self.ends_a_control_token(&text[start..]);
        for (at, c) in text.char_indices() {
            out.push(c);
            let begins_token = self.first.contains(&c) && !self.is_tag(&text[at..]);
            if begins_token || (at == start && ends_token) {
                out.push(self.mark);
            }
        }
        out
    }

    /// Whether `text` begins with the last part, two characters or more, of a control token.
    fn ends_a_control_token(&self, text: &str) -> bool {
        let parts = |t: &str| t.char_indices().skip(1).map(|(at, _)| at).collect::<Vec<_>>();
        self.controls.iter().any(|t| {
            let mut parts = parts(t);
            parts.pop();
            parts.into_iter().any(|at| text.starts_with(&t[at..]))
        })
    }

    /// Whether `text` begins with a tag such as `</think>` that is no control token: templates look for
    /// those in messages, so they stay in one piece.
    fn is_tag(&self, text: &str) -> bool {
        let Some(inside) = text.strip_prefix('<') else { return false };
        let name = inside.strip_prefix('/').unwrap_or(inside);
        let len = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
        let closed = len.is_some_and(|len| len > 0 && name[len..].starts_with('>'));
        closed && !self.controls.iter().any(|t| text.starts_with(t.as_str()))
    }
}
