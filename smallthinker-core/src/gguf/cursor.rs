//! A little-endian reader over the head of a file, bounded by the file's length: nothing is allocated for
//! a length that the rest of the file cannot hold.

use super::source::Source;
use crate::error::{Error, Result};

/// Bytes fetched per read. A vocabulary's header is a few megabytes; a tiny file is read in one piece.
const CHUNK: u64 = 256 * 1024;

pub(super) struct Cursor<'a> {
    source: &'a Source,
    len: u64,
    /// File bytes `start..start + buf.len()`, of which `buf[pos..]` are not consumed yet.
    buf: Vec<u8>,
    start: u64,
    pos: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at byte 0 of the source's only file.
    pub(super) fn new(source: &'a Source) -> Self {
        Cursor { source, len: source.len(0), buf: Vec::new(), start: 0, pos: 0 }
    }

    /// Byte offset of the next read.
    pub(super) fn position(&self) -> u64 {
        self.start + self.pos as u64
    }

    /// Bytes from here to the end of the file.
    pub(super) fn remaining(&self) -> u64 {
        self.len - self.position()
    }

    /// An error saying that `field` has the wrong value.
    pub(super) fn malformed(&self, field: &str, found: impl ToString, allowed: impl Into<String>) -> Error {
        Error::malformed(self.source.path(0), field, found, allowed)
    }

    /// An error saying that `field` has a value that is legal but not served.
    pub(super) fn unsupported(&self, field: &str, found: impl ToString, allowed: impl Into<String>) -> Error {
        Error::unsupported(self.source.path(0), field, found, allowed)
    }

    /// Checks that `count` items of at least `each` bytes can follow, and returns `count` as a `usize`.
    pub(super) fn check_count(&self, field: &str, count: u64, each: u64, max: u64) -> Result<usize> {
        let room = (self.remaining() / each).min(max);
        match usize::try_from(count) {
            Ok(n) if count <= room => Ok(n),
            _ => Err(self.malformed(
                field,
                count,
                format!("at most {room} (limit, or what the file can hold)"),
            )),
        }
    }

    /// The next `n` bytes, which belong to `field`.
    pub(super) fn take(&mut self, n: usize, field: &str) -> Result<&[u8]> {
        if n as u64 > self.remaining() {
            let found = format!("end of file at byte {}", self.len);
            return Err(self.malformed(field, found, format!("{n} bytes from byte {}", self.position())));
        }
        let have = self.buf.len() - self.pos;
        if have < n {
            self.buf.drain(..self.pos);
            self.start += self.pos as u64;
            self.pos = 0;
            let unread = self.len - self.start - have as u64;
            // `unread >= n - have`, so the buffer holds at least `n` bytes afterwards.
            let fetch = unread.min(CHUNK.max((n - have) as u64)) as usize;
            self.buf.resize(have + fetch, 0);
            let at = self.start + have as u64;
            self.source.read_exact_at(0, at, &mut self.buf[have..])?;
        }
        let from = self.pos;
        self.pos += n;
        Ok(&self.buf[from..self.pos])
    }

    /// The next `N` bytes as an array.
    pub(super) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, field)?);
        Ok(out)
    }

    pub(super) fn u8(&mut self, field: &str) -> Result<u8> {
        Ok(self.array::<1>(field)?[0])
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A length-prefixed UTF-8 string of at most `max` bytes.
    pub(super) fn str(&mut self, field: &str, max: u64) -> Result<&str> {
        let len = self.u64(field)?;
        let room = self.remaining().min(max);
        let n = match usize::try_from(len) {
            Ok(n) if len <= room => n,
            _ => {
                let allowed = format!("at most {room} bytes (limit, or what the file can hold)");
                return Err(self.malformed(field, format!("string of {len} bytes"), allowed));
            }
        };
        self.take(n, field)?;
        std::str::from_utf8(&self.buf[self.pos - n..self.pos]).map_err(|e| {
            let found = format!("invalid byte {} of a string", e.valid_up_to());
            self.malformed(field, found, "UTF-8")
        })
    }

    /// The same, copied.
    pub(super) fn string(&mut self, field: &str, max: u64) -> Result<String> {
        self.str(field, max).map(str::to_owned)
    }
}
