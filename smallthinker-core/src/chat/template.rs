//! Rendering of chat templates (Jinja sources from model files) as Hugging Face transformers does, without
//! trust in the source: a template can compute text and nothing else. It sees no files and no environment;
//! its size, its steps, its recursion and its output are limited. The engine has no limit on memory in
//! use: a template made for it could still double a string many times over within its steps.

use std::fmt;
use std::io;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};

use super::check::check_source;
use super::{Message, json};
use crate::error::{Error, Result};

/// The template used for files that have none: ChatML, the form SmallThinker models are trained on.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + \
     message.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}\
     {{ '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat_template";
/// Instructions a template may run: a base, so many per message, and a limit to what many messages add.
/// Published templates need some tens per message.
const FUEL: u64 = 50_000;
const FUEL_PER_MESSAGE: u64 = 2_000;
const FUEL_MAX: u64 = 500_000;
/// Depth of macro calls and recursive loops.
const RECURSION: usize = 64;
/// Bytes of output beyond those of the messages.
const OUTPUT: usize = 1 << 20;
/// Expressions and values nested by a hostile template are handled recursively, one stack frame a level.
/// With this much stack (reserved, not used up) the limits on source and instructions are reached first.
const STACK: usize = 256 << 20;

/// A parsed chat template. Immutable; share it between threads.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`Error::Template`] with the engine's message and the line, if the source is not valid Jinja, too
    /// long, or multiplies with `*`.
    pub fn new(source: &str) -> Result<Self> {
        check_source(source)?;
        let mut environment = Environment::new();
        // As transformers sets them.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_recursion_limit(RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // Built-ins whose result can be far larger than what they are given.
        for filter in ["batch", "format", "indent", "pprint", "slice"] {
            environment.remove_filter(filter);
        }
        environment.remove_global("debug");
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", |value: Value, options: Kwargs| {
            let indent: Option<usize> = options.get("indent")?;
            json::to_json(&value, indent)
        });
        on_large_stack(|| environment.add_template_owned(NAME, source.to_owned()))?
            .map_err(|e| template_error(&e))?;
        Ok(ChatTemplate { environment, source: source.to_owned() })
    }

    /// The template of [`CHATML`].
    ///
    /// # Errors
    /// None in practice; the type is that of [`ChatTemplate::new`].
    pub fn chatml() -> Result<Self> {
        ChatTemplate::new(CHATML)
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation. With `add_generation_prompt`, it ends with the opening of the
    /// assistant's turn. `bos` and `eos` are the texts of those tokens, empty if there are none.
    ///
    /// This text is for reading: to run a model on it, use [`ChatTemplate::encode_chat`], which keeps
    /// messages and control tokens apart.
    ///
    /// # Errors
    /// [`Error::Template`]: the template refuses the conversation (`raise_exception`), fails, or exceeds
    /// a limit.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
    ) -> Result<String> {
        let mut environment = self.environment.clone();
        let fuel = FUEL.saturating_add(FUEL_PER_MESSAGE.saturating_mul(messages.len() as u64));
        environment.set_fuel(Some(fuel.min(FUEL_MAX)));
        let variables = || {
            context! {
                messages => messages,
                add_generation_prompt => add_generation_prompt,
                bos_token => bos,
                eos_token => eos,
            }
        };
        let input: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let mut output = Limited { bytes: Vec::new(), limit: input.saturating_mul(4).saturating_add(OUTPUT) };
        on_large_stack(|| {
            let template = environment.get_template(NAME)?;
            // Values that the template made are dropped here, on this stack.
            template.render_captured_to(variables(), &mut output).map(drop)
        })?
        .map_err(|e| template_error(&e))?;
        String::from_utf8(output.bytes).map_err(|e| Error::Template { message: e.to_string() })
    }
}

/// Runs `work` on a thread of its own with a stack of [`STACK`] bytes.
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("chat-template".into()).stack_size(STACK);
        let worker = builder
            .spawn_scoped(scope, work)
            .map_err(|e| Error::Template { message: format!("cannot start a thread: {e}") })?;
        worker.join().map_err(|_| Error::Template { message: "the template engine panicked".into() })
    })
}

/// Output that refuses to grow past its limit.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(io::Error::other(format!("output exceeds {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The engine's message with the messages of its causes.
fn template_error(error: &minijinja::Error) -> Error {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    Error::Template { message }
}
