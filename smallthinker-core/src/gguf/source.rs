//! The open file (or shards) behind a model: positional reads only, so any number of threads may read
//! at once without sharing a cursor.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::direct::{ALIGN, DirectFile, forget, lies_in_memory};
use crate::arena::{Arena, Slab};
use crate::error::{Error, Result};
use crate::tensor::DType;
use crate::tensor::packed::Layout;
use crate::tensor::scales::{bad_packed_scale, bad_scale};

/// The open files of one model. Reads name a shard (0 for a single file) and an absolute byte offset in it.
#[derive(Debug)]
pub struct Source {
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    len: u64,
    data: Data,
}

#[derive(Debug)]
enum Data {
    File(OpenFile),
    Memory(Vec<u8>),
    /// Whatever a test makes of it.
    #[cfg(test)]
    Double(Box<dyn Double>),
}

/// What stands in for a file in tests.
#[cfg(test)]
pub(crate) trait Double: std::fmt::Debug + Send + Sync {
    /// As a file's `read_at`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// As a source's `lies_in_memory`.
    fn lies_in_memory(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// For direct reads, once they have been asked for; `None` where there are none.
    direct: OnceLock<Option<DirectFile>>,
    /// A direct read was refused after all.
    direct_refused: AtomicBool,
}

impl OpenFile {
    fn new(file: File) -> OpenFile {
        OpenFile { file, direct: OnceLock::new(), direct_refused: AtomicBool::new(false) }
    }
}

impl Source {
    /// Opens one file. Anything but a regular file is refused before it is opened: opening a named pipe
    /// would block.
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if !meta.is_file() {
            let kind = if meta.is_dir() { "a directory" } else { "a special file" };
            return Err(Error::malformed(path, "file type", kind, "a regular file"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let len = file.metadata().map_err(|e| Error::io(path, "read the length of", e))?.len();
        Ok(Source {
            shards: vec![Shard { path: path.to_owned(), len, data: Data::File(OpenFile::new(file)) }],
        })
    }

    /// A source over bytes in memory, named `path` in errors.
    pub(crate) fn from_bytes(path: &Path, bytes: Vec<u8>) -> Source {
        let len = bytes.len() as u64;
        Source { shards: vec![Shard { path: path.to_owned(), len, data: Data::Memory(bytes) }] }
    }

    /// The same shards, of which each is what `double` makes of its path, its length and its place.
    #[cfg(test)]
    pub(crate) fn doubled(&self, double: impl Fn(&Path, u64, usize) -> Box<dyn Double>) -> Source {
        let shard = |(i, s): (usize, &Shard)| {
            let data = Data::Double(double(&s.path, s.len, i));
            Shard { path: s.path.clone(), len: s.len, data }
        };
        Source { shards: self.shards.iter().enumerate().map(shard).collect() }
    }

    /// Appends the shards of `other`.
    pub(crate) fn append(&mut self, other: Source) {
        self.shards.extend(other.shards);
    }

    /// Number of shards; 1 for a single file.
    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// Path of a shard; empty for a shard that does not exist.
    pub fn path(&self, shard: usize) -> &Path {
        self.shards.get(shard).map_or(Path::new(""), |s| &s.path)
    }

    /// Length of a shard in bytes when it was opened; 0 for a shard that does not exist.
    pub fn len(&self, shard: usize) -> u64 {
        self.shards.get(shard).map_or(0, |s| s.len)
    }

    /// Whether all shards together hold no byte.
    pub fn is_empty(&self) -> bool {
        self.total_len() == 0
    }

    /// Bytes of all shards together.
    pub fn total_len(&self) -> u64 {
        self.shards.iter().fold(0, |sum, s| sum.saturating_add(s.len))
    }

    /// Fills `buf` from byte `offset` of `shard`.
    ///
    /// # Errors
    /// [`Error::ShortRead`] if the file ends first (it may have been truncated since it was opened),
    /// [`Error::Io`] if the system refuses the read, [`Error::Internal`] for a shard that does not exist.
    pub fn read_exact_at(&self, shard: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.shard(shard)?.read_exact_at(offset, buf)
    }

    fn shard(&self, shard: usize) -> Result<&Shard> {
        self.shards.get(shard).ok_or_else(|| {
            let message = format!("read from shard {shard} of {}", self.shards.len());
            Error::Internal { message }
        })
    }
}

/// How ranges of weights are read while a model is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Through the system's page cache, which may keep them.
    Cached,
    /// Past the page cache; where that can't be had, through it, and then it is told to forget them.
    Direct,
}

/// Memory for [`Source::read_range`]: one per thread that reads.
pub(crate) struct ReadBuffer(Slab);

impl ReadBuffer {
    /// For ranges of up to `len` bytes.
    pub(crate) fn new(len: usize) -> Result<ReadBuffer> {
        let bytes = ReadBuffer::bytes(len);
        let full = || Error::Internal { message: "a read buffer has no room".into() };
        // The start of a mapping is the start of a page.
        Ok(ReadBuffer(Arena::new(bytes, "a read buffer")?.take(bytes).ok_or_else(full)?))
    }

    /// What a buffer for ranges of up to `len` bytes takes.
    pub(crate) const fn bytes(len: usize) -> usize {
        // A range may begin and end inside of a block.
        len.next_multiple_of(ALIGN) + ALIGN
    }
}

impl Deref for ReadBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for ReadBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Source {
    /// Reads `len` bytes from byte `offset` of `shard`, and tells where in `memory` they are. Reads are direct only if
    /// the memory is [aligned](READ_ALIGN) and has room for the whole blocks that they lie in. Errors: those of
    /// [`read_exact_at`](Self::read_exact_at).
    pub(crate) fn read_range(
        &self,
        reads: Reads,
        shard: usize,
        offset: u64,
        len: usize,
        memory: &mut [u8],
    ) -> Result<Range<usize>> {
        let file = self.shard(shard)?;
        if reads == Reads::Direct
            && (memory.as_ptr() as usize).is_multiple_of(ALIGN)
            && let Some(range) = file.read_direct(offset, len, memory)
        {
            return Ok(range);
        }
        let Some(place) = memory.get_mut(..len) else {
            return Err(Error::Internal { message: format!("{len} bytes into less memory") });
        };
        file.read_exact_at(offset, place)?;
        if reads == Reads::Direct {
            file.forget(offset, len);
        }
        Ok(0..len)
    }

    /// Whether all shards lie in memory, so that reading them is work for the CPU and no wait for a device.
    pub(crate) fn lies_in_memory(&self) -> bool {
        self.shards.iter().all(|shard| match &shard.data {
            Data::File(open) => lies_in_memory(&open.file),
            Data::Memory(_) => true,
            #[cfg(test)]
            Data::Double(double) => double.lies_in_memory(),
        })
    }

    /// Whether direct reads work on all shards.
    pub(crate) fn reads_directly(&self) -> bool {
        self.shards.iter().all(|shard| shard.direct().is_some())
    }

    /// Refuses blocks of weights, read from byte `offset` of `shard`, that can't be packed.
    ///
    /// # Errors
    /// [`Error::Malformed`] if a block's scale is not a finite number.
    pub(crate) fn check_blocks(&self, dtype: DType, shard: usize, offset: u64, buf: &[u8]) -> Result<()> {
        bad_scale(dtype, buf).map_or(Ok(()), |at| Err(self.bad_scale(dtype, shard, offset, buf, at)))
    }

    /// As [`check_blocks`](Self::check_blocks), of a matrix of this shape that is packed already.
    pub(crate) fn check_packed(
        &self,
        (dtype, layout): (DType, Layout),
        (rows, cols): (usize, usize),
        shard: usize,
        offset: u64,
        buf: &[u8],
    ) -> Result<()> {
        let bad = bad_packed_scale(dtype, layout, rows, cols, buf);
        bad.map_or(Ok(()), |at| Err(self.bad_scale(dtype, shard, offset, buf, at)))
    }

    fn bad_scale(&self, dtype: DType, shard: usize, offset: u64, buf: &[u8], at: usize) -> Error {
        let scale = buf.get(at..at + 2).map_or(0, |d| u16::from_le_bytes([d[0], d[1]]));
        let field = format!("scale of a {dtype} block at offset {}", offset + at as u64);
        Error::malformed(self.path(shard), field, half::f16::from_bits(scale), "finite numbers")
    }
}

impl Shard {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut got = 0;
        while got < buf.len() {
            let step = match offset.checked_add(got as u64) {
                Some(at) => self.read_at(at, &mut buf[got..]),
                None => Ok(0), // past the largest offset there is: nothing to read
            };
            match step {
                Ok(0) => {
                    return Err(Error::ShortRead {
                        path: self.path.clone(),
                        offset,
                        expected: buf.len() as u64,
                        got: got as u64,
                    });
                }
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(&self.path, "read", e)),
            }
        }
        Ok(())
    }

    /// The file for direct reads, which are tried out when it is asked for the first time.
    fn direct(&self) -> Option<&DirectFile> {
        let open = match &self.data {
            Data::File(open) if !open.direct_refused.load(Ordering::Relaxed) => open,
            _ => return None,
        };
        let direct = open.direct.get_or_init(|| {
            let mut probe = ReadBuffer::new(0).ok()?;
            DirectFile::open(&self.path, &open.file, &mut probe)
        });
        direct.as_ref()
    }

    /// Reads a range by whole blocks. `None` if that fails for any reason: a buffered read then finds out whether the range
    /// can be read at all, and why not.
    fn read_direct(&self, offset: u64, len: usize, buffer: &mut [u8]) -> Option<Range<usize>> {
        let direct = self.direct()?;
        let skip = usize::try_from(offset % ALIGN as u64).ok()?;
        let blocks = buffer.get_mut(..(skip + len).next_multiple_of(ALIGN))?;
        let (from, mut got) = (offset - skip as u64, 0);
        while got < skip + len {
            match direct.read_at(from + got as u64, &mut blocks[got..]) {
                // After the end of the file, or after a part of a block, there is no next whole block.
                Ok(n) if n > 0 && (got + n >= skip + len || n % ALIGN == 0) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                    // Stricter about alignment than the probe found.
                    if let Data::File(open) = &self.data {
                        open.direct_refused.store(true, Ordering::Relaxed);
                    }
                    return None;
                }
                _ => return None,
            }
        }
        Some(skip..skip + len)
    }

    fn forget(&self, offset: u64, len: usize) {
        if let Data::File(open) = &self.data {
            forget(&open.file, offset, len);
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match &self.data {
            Data::File(open) => file_read_at(&open.file, buf, offset),
            #[cfg(test)]
            Data::Double(double) => double.read_at(offset, buf),
            Data::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let n = buf.len().min(bytes.len() - start);
                buf[..n].copy_from_slice(&bytes[start..start + n]);
                Ok(n)
            }
        }
    }
}

#[cfg(unix)]
pub(super) fn file_read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, offset)
}

#[cfg(windows)]
pub(super) fn file_read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buf, offset)
}
