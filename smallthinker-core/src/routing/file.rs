//! Trace files: version 1, little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 8 | magic `STROUTE` and a newline |
//! | 4 | version, 1 |
//! | 4, 4, 4 | layers, experts of each layer, experts that a token chooses (`top_k`) |
//! | 8 | bytes of a cache slot |
//! | 8 for each layer | bytes that are read from the model's file for one expert |
//! | 4, and so many | length of the model's file name, and the name in UTF-8 |
//! | 8 | number of passes |
//! | for each pass: 4, 4 | kind (0 prompt, 1 decode), tokens |
//! | 4 for each choice | chosen experts: for each layer, for each token, `top_k` in ascending order |
//! | 8 | FNV-1a hash (64 bits) of all before |

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::trace::{Fault, PassKind, Shape, Trace};
use crate::hash::Fnv;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"STROUTE\n";
const VERSION: u32 = 1;
/// Two million tokens of a 21B model.
const MAX_FILE: u64 = 2 << 30;
const HASH: usize = 8;

impl Trace {
    /// Reads a trace file. Errors: those of [`from_bytes`](Self::from_bytes), naming the file; [`Error::Io`].
    pub fn read(path: impl AsRef<Path>) -> Result<Trace> {
        let path = path.as_ref();
        let length = fs::metadata(path).map_err(|e| Error::io(path, "open trace", e))?.len();
        if length > MAX_FILE {
            return Err(Error::malformed(path, "file size", length, format!("at most {MAX_FILE} bytes")));
        }
        parse(&fs::read(path).map_err(|e| Error::io(path, "read trace", e))?, path)
    }

    /// Reads the contents of a trace file. Errors: [`Error::Malformed`] and [`Error::Unsupported`] naming the field.
    pub fn from_bytes(bytes: &[u8]) -> Result<Trace> {
        parse(bytes, Path::new("<memory>"))
    }

    /// Writes a trace file; it appears when it is complete. Errors: [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let fail = |source| Error::io(path, "write trace", source);
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
        file.write_all(&self.to_bytes()).map_err(fail)?;
        file.as_file().sync_all().map_err(fail)?;
        file.persist(path).map(|_: File| ()).map_err(|e| fail(e.error))
    }

    /// The contents of a trace file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let shape = self.shape();
        let mut out = MAGIC.to_vec();
        for n in [VERSION, shape.layers() as u32, shape.n_experts as u32, shape.top_k as u32] {
            out.extend(n.to_le_bytes());
        }
        for n in std::iter::once(&shape.slot_bytes).chain(&shape.expert_bytes) {
            out.extend(n.to_le_bytes());
        }
        out.extend((shape.model.len() as u32).to_le_bytes());
        out.extend(shape.model.as_bytes());
        out.extend((self.passes().len() as u64).to_le_bytes());
        for pass in self.passes() {
            out.extend((pass.kind() as u32).to_le_bytes());
            out.extend((pass.tokens() as u32).to_le_bytes());
            pass.choices().iter().for_each(|expert| out.extend(expert.to_le_bytes()));
        }
        let hash = hash(&out);
        out.extend(hash.to_le_bytes());
        out
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hash = Fnv::new();
    hash.update(bytes);
    hash.value()
}

fn parse(bytes: &[u8], path: &Path) -> Result<Trace> {
    let malformed = |f: Fault| Error::malformed(path, f.field, f.found, f.allowed);
    let mut input = Input { bytes, at: 0 };
    if input.array("magic").map_err(malformed)? != *MAGIC {
        return Err(malformed(Fault::new("magic", "other bytes", "a smallthinker routing trace")));
    }
    let version = input.u32("version").map_err(malformed)?;
    if version != VERSION {
        return Err(Error::unsupported(path, "version", version, VERSION.to_string()));
    }
    body(input, bytes).map_err(malformed)
}

/// What follows the version.
fn body(mut input: Input<'_>, bytes: &[u8]) -> Result<Trace, Fault> {
    let layers = input.u32("layers")? as usize;
    let n_experts = input.u32("experts per layer")? as usize;
    let top_k = input.u32("experts used")? as usize;
    let slot_bytes = input.u64("slot bytes")?;
    let expert_bytes = input.take("expert bytes", layers, 8)?;
    let expert_bytes = expert_bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
    let length = input.u32("model name")? as usize;
    let name = std::str::from_utf8(input.take("model name", length, 1)?);
    let name =
        name.map_err(|e| Fault::new("model name", format!("invalid byte {}", e.valid_up_to()), "UTF-8"))?;
    let shape = Shape { model: name.to_owned(), n_experts, top_k, slot_bytes, expert_bytes };
    shape.check()?;
    let mut trace = Trace::empty(shape);
    for _ in 0..input.u64("passes")? {
        let kind = match input.u32("kind of a pass")? {
            0 => PassKind::Prompt,
            1 => PassKind::Decode,
            n => return Err(Fault::new("kind of a pass", n, "0 (prompt) or 1 (decode)")),
        };
        let tokens = input.u32("tokens of a pass")? as usize;
        // Both are bounded by what the file holds; their product may not be.
        let count = tokens.saturating_mul(layers * top_k);
        let choices = input.take("choices of a pass", count, 4)?;
        let choices = choices.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        trace.add(kind, tokens, choices)?;
    }
    let end = input.at;
    let expected = input.u64("hash")?;
    if input.at != bytes.len() {
        return Err(Fault::new("file size", bytes.len(), format!("{}, where the trace ends", end + HASH)));
    }
    let found = hash(&bytes[..end]);
    if found != expected {
        return Err(Fault::new(
            "hash",
            format!("{found:016x}"),
            format!("{expected:016x}, as the file says"),
        ));
    }
    Ok(trace)
}

/// The bytes of a file and how far they are read.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    /// The next `count` items of `size` bytes.
    fn take(&mut self, field: &'static str, count: usize, size: usize) -> Result<&'a [u8], Fault> {
        let end = count.checked_mul(size).and_then(|n| self.at.checked_add(n));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            let allowed = format!("at most {}, what the file can hold", (self.bytes.len() - self.at) / size);
            return Err(Fault::new(field, format!("{count} items of {size} bytes"), allowed));
        };
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Fault> {
        let taken = self.take(field, 1, N)?;
        taken.try_into().map_err(|_| Fault::new(field, taken.len(), format!("{N} bytes")))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, Fault> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, Fault> {
        self.array(field).map(u64::from_le_bytes)
    }
}
