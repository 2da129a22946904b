//! Conversations to tokens: the model's chat template, rendered by a sandboxed engine, and an encoding in
//! which what a message says can never become a control token.

mod check;
mod encode;
mod json;
mod template;

pub use template::{CHATML, ChatTemplate};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`, or another role that the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

#[cfg(test)]
mod tests;
