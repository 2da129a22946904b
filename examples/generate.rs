//! Generates text from a prompt, or answers a question with `--chat`.
//!
//! ```text
//! cargo run --release -p smallthinker-examples --bin generate -- MODEL.gguf "Once upon a time" [TOKENS]
//! cargo run --release -p smallthinker-examples --bin generate -- --chat MODEL.gguf "What is 23 plus 45?"
//! ```
//!
//! The model that ships with the Python package is in `smallthinker-py/python/smallthinker/models/`.
//! With `--ids` the token ids are printed instead of the text.

use std::io::Write;
use std::process::ExitCode;

use smallthinker_core::{GenerateOptions, Message, Model};

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut flag = |name: &str| {
        let before = args.len();
        args.retain(|a| a != name);
        args.len() < before
    };
    let (chat, ids) = (flag("--chat"), flag("--ids"));
    let tokens = args.get(2).map_or(Ok(200), |n| n.parse());
    let (Some(path), Some(prompt), Ok(tokens)) = (args.first(), args.get(1), tokens) else {
        eprintln!("usage: generate [--chat] [--ids] MODEL.gguf PROMPT [TOKENS]");
        return ExitCode::from(2);
    };
    match run(path, prompt, tokens, chat, ids) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(
    path: &str,
    prompt: &str,
    tokens: usize,
    chat: bool,
    ids: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::open(path)?;
    let mut session = model.session()?;
    if chat {
        session.set_chat(&[Message::new("user", prompt)])?;
    } else {
        session.append(prompt)?;
    }
    let mut generation = session.generate(GenerateOptions::max_tokens(tokens))?;
    let mut out = std::io::stdout().lock();
    for piece in generation.by_ref() {
        let piece = piece?;
        match piece.token {
            Some(token) if ids => write!(out, "{token} ")?,
            _ if ids => {}
            _ => write!(out, "{}", piece.text)?,
        }
        out.flush()?;
    }
    writeln!(out)?;
    let stats = generation.stats();
    eprintln!(
        "{} tokens, {:.1} tokens/s, {:.1} GB/s of weights, {} kernels, {} threads",
        stats.generated_tokens,
        stats.decode_tokens_per_second(),
        stats.bandwidth() / 1e9,
        stats.kernels,
        stats.threads
    );
    Ok(())
}
