//! stub
use crate::{Result, tokenizer::Tokenizer};
pub struct Message { pub role: String, pub content: String }
pub struct ChatTemplate;
pub const CHATML: &str = "";
impl ChatTemplate {
 pub fn new(_: &str) -> Result<ChatTemplate> { Ok(ChatTemplate) }
 pub fn encode_chat(&self, _: &Tokenizer, _: &[Message], _: bool) -> Result<Vec<u32>> { Ok(vec![]) }
}
