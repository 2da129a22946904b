//! The open file (or shards) behind a model: positional reads only, so any number of threads may read
//! at once without sharing a cursor.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tensor::DType;
use crate::tensor::packed::bad_scale;

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
    File(File),
    Memory(Vec<u8>),
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
        Ok(Source { shards: vec![Shard { path: path.to_owned(), len, data: Data::File(file) }] })
    }

    /// A source over bytes in memory, named `path` in errors.
    pub(crate) fn from_bytes(path: &Path, bytes: Vec<u8>) -> Source {
        let len = bytes.len() as u64;
        Source { shards: vec![Shard { path: path.to_owned(), len, data: Data::Memory(bytes) }] }
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
        let Some(file) = self.shards.get(shard) else {
            let message = format!("read from shard {shard} of {}", self.shards.len());
            return Err(Error::Internal { message });
        };
        let mut got = 0;
        while got < buf.len() {
            let step = match offset.checked_add(got as u64) {
                Some(at) => file.read_at(at, &mut buf[got..]),
                None => Ok(0), // past the largest offset there is: nothing to read
            };
            match step {
                Ok(0) => {
                    return Err(Error::ShortRead {
                        path: file.path.clone(),
                        offset,
                        expected: buf.len() as u64,
                        got: got as u64,
                    });
                }
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(&file.path, "read", e)),
            }
        }
        Ok(())
    }
}

impl Source {
    /// As [`read_exact_at`](Self::read_exact_at), for whole blocks of weights that will be packed.
    ///
    /// # Errors
    /// Those, and [`Error::Malformed`] if a block's scale is not a finite number.
    pub(crate) fn read_blocks_at(
        &self,
        dtype: DType,
        shard: usize,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        self.read_exact_at(shard, offset, buf)?;
        let Some(at) = bad_scale(dtype, buf) else { return Ok(()) };
        let scale = buf.get(at..at + 2).map_or(0, |d| u16::from_le_bytes([d[0], d[1]]));
        let field = format!("scale of a {dtype} block at offset {}", offset + at as u64);
        Err(Error::malformed(self.path(shard), field, half::f16::from_bits(scale), "finite numbers"))
    }
}

impl Shard {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match &self.data {
            Data::File(file) => file_read_at(file, buf, offset),
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
fn file_read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, offset)
}

#[cfg(windows)]
fn file_read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buf, offset)
}
