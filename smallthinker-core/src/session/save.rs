//! Session files: tokens and KV cache, versioned, checked against the model and against damage.
//!
//! Layout, little-endian: magic, version `u32`, model fingerprint `u64`, element bytes `u32`, number of
//! tokens `u64`, evaluated tokens `u64`, the tokens as `u32`; then per layer the keys and the values of
//! every position that is still needed, `[position][kv head][head_dim]`; last the FNV-1a hash of all before. Of an 8-bit cache
//! ("element bytes" 1) elements are blocks of Q8_0. Of a 4-bit one (3) they are rotated, see `forward::hadamard`, in blocks of 18
//! bytes: a half-precision scale, then 16 bytes whose lower halves are the codes of the first 16 elements, the upper halves those of the others;
//! `c` stands for `2c - 15` times the scale.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use crate::forward::Pass;
use crate::forward::kv_cache::PAGE;
use crate::forward::kv_page::Part;
use crate::hash::Fnv;
use crate::model::Model;
use crate::session::Session;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"STSESSN\n";
const VERSION: u32 = 1;

pub(super) fn save(session: &Session, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = |source| Error::io(path, "write session", source);
    // Readable by its owner alone, as temporary files are: it holds a conversation.
    let file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    let mut out = Hashing { inner: BufWriter::new(file), hash: Fnv::new() };
    write_session(session, &mut out).map_err(fail)?;
    let hash = out.hash.value();
    out.inner.write_all(&hash.to_le_bytes()).map_err(fail)?;
    let file = out.inner.into_inner().map_err(|e| fail(e.into_error()))?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

fn write_session(s: &Session, out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&s.model.inner.fingerprint.to_le_bytes())?;
    out.write_all(&s.kv.kind().code().to_le_bytes())?;
    out.write_all(&(s.tokens.len() as u64).to_le_bytes())?;
    out.write_all(&(s.kv.len() as u64).to_le_bytes())?;
    for token in &s.tokens {
        out.write_all(&token.to_le_bytes())?;
    }
    let heads = s.kv.n_kv_heads();
    let mut bytes = Vec::new();
    for (i, layer) in s.kv.layers.iter().enumerate() {
        for position in s.kv.oldest_needed(i)..s.kv.len() {
            let page = layer.page(position);
            bytes.clear();
            for part in [Part::Keys, Part::Values] {
                (0..heads).for_each(|head| page.append_bytes(head, part, position % PAGE, &mut bytes));
            }
            out.write_all(&bytes)?;
        }
    }
    Ok(())
}

pub(super) fn load(model: &Model, path: &Path) -> Result<Session> {
    let file = File::open(path).map_err(|e| Error::io(path, "open session", e))?;
    let length = file.metadata().map_err(|e| Error::io(path, "open session", e))?.len();
    let mut input = Input { inner: BufReader::new(file), hash: Fnv::new(), at: 0, path };
    if &input.array::<8>()? != MAGIC {
        return Err(Error::malformed(path, "magic", "other bytes", "a smallthinker session file"));
    }
    let version = u32::from_le_bytes(input.array()?);
    if version != VERSION {
        return Err(Error::unsupported(path, "version", version, VERSION.to_string()));
    }
    let fingerprint = u64::from_le_bytes(input.array()?);
    if fingerprint != model.inner.fingerprint {
        let allowed = format!("{:016x}, that of {}", model.inner.fingerprint, model.path().display());
        return Err(Error::unsupported(path, "model fingerprint", format!("{fingerprint:016x}"), allowed));
    }
    let mut session = Session::new(model.clone())?;
    let element = u32::from_le_bytes(input.array()?);
    if element != session.kv.kind().code() {
        let allowed = format!("{}, as the model was opened", session.kv.kind().code());
        return Err(Error::unsupported(path, "KV element bytes", element, allowed));
    }
    let count = u64::from_le_bytes(input.array()?);
    if count > model.context_length() as u64 {
        return Err(Error::malformed(path, "tokens", count, format!("at most {}", model.context_length())));
    }
    let evaluated = u64::from_le_bytes(input.array()?);
    if evaluated > count {
        return Err(Error::malformed(path, "evaluated tokens", evaluated, format!("at most {count}")));
    }
    for _ in 0..count {
        session.tokens.push(u32::from_le_bytes(input.array()?));
    }
    Pass::check_tokens(model.hparams(), "tokens", session.tokens.iter().copied())
        .map_err(|e| Error::malformed(path, "tokens", e, "ids of the vocabulary"))?;
    read_kv(&mut session, evaluated as usize, length, &mut input)?;
    let hash = input.hash.value();
    if u64::from_le_bytes(input.array()?) != hash {
        return Err(Error::malformed(path, "hash", "another value", "the hash of the contents"));
    }
    Ok(session)
}

fn read_kv(session: &mut Session, evaluated: usize, length: u64, input: &mut Input<'_>) -> Result<()> {
    let heads = session.kv.n_kv_heads();
    let head_bytes = session.kv.kind().row_bytes(session.kv.head_dim());
    let windows: Vec<usize> =
        session.model.hparams().attention.iter().map(|a| a.window.unwrap_or(usize::MAX)).collect();
    let positions: u64 = windows.iter().map(|&w| evaluated.min(w) as u64).sum();
    // Checked before any page is allocated.
    let wanted = input.at + positions * 2 * (heads * head_bytes) as u64 + 8;
    if wanted != length {
        return Err(Error::malformed(input.path, "file size", length, wanted.to_string()));
    }
    session.kv.restore(evaluated)?;
    let mut bytes = vec![0; head_bytes];
    for (layer, window) in windows.into_iter().enumerate() {
        for position in evaluated - evaluated.min(window)..evaluated {
            for part in [Part::Keys, Part::Values] {
                for head in 0..heads {
                    input.read(&mut bytes)?;
                    if let Some(page) = session.kv.page_mut(layer, position) {
                        page.set_bytes(head, part, position % PAGE, &bytes);
                    }
                }
            }
        }
    }
    Ok(())
}

struct Hashing<W> {
    inner: W,
    hash: Fnv,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

struct Input<'p> {
    inner: BufReader<File>,
    hash: Fnv,
    at: u64,
    path: &'p Path,
}

impl Input<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.inner.read_exact(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::malformed(
                self.path,
                "file size",
                format!("ends after byte {}", self.at),
                "a complete session",
            ),
            _ => Error::io(self.path, "read session", e),
        })?;
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }
}
