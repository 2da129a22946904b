//! Reads that go past the system's page cache (`O_DIRECT`): they copy nothing, and leave alone what other programs
//! have in the cache.

use std::fs::File;
use std::io;
use std::path::Path;

/// Offsets, lengths and addresses of direct reads are multiples of this: what every disk so far asks for, or a multiple.
pub(crate) const ALIGN: usize = 4096;

/// A second handle of an open file, for direct reads.
#[derive(Debug)]
pub(super) struct DirectFile(File);

impl DirectFile {
    /// Opens `path`, which `file` is open on, for direct reads. `None` where the system or the file system has none, as a
    /// read into `probe` shows: some accept the flag and refuse the reads. `probe` is one aligned block.
    pub(super) fn open(path: &Path, file: &File, probe: &mut [u8]) -> Option<DirectFile> {
        let direct = DirectFile(open(path)?);
        (same_file(file, &direct.0) && direct.read_at(0, probe).is_ok()).then_some(direct)
    }

    /// Reads whole blocks, at most up to the end of the file.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        super::source::file_read_at(&self.0, buffer, offset)
    }
}

#[cfg(target_os = "linux")]
fn open(path: &Path) -> Option<File> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = i32::try_from((OFlags::DIRECT | OFlags::CLOEXEC).bits()).ok()?;
    File::options().read(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open(_: &Path) -> Option<File> {
    None
}

/// Whether the path still leads to the file that is open: another one may have taken its name.
#[cfg(unix)]
fn same_file(a: &File, b: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &File, _: &File) -> bool {
    false
}

/// Tells the system that these bytes of a file need not stay in its cache.
#[cfg(target_os = "linux")]
pub(super) fn forget(file: &File, offset: u64, len: usize) {
    // A hint: if it is refused, the cache keeps what it likes.
    let len = std::num::NonZeroU64::new(len as u64);
    let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn forget(_: &File, _: u64, _: usize) {}

/// Whether the file lies in memory: on tmpfs (unless the system has swapped it out, which is slower but not wrong) or ramfs.
#[cfg(target_os = "linux")]
pub(super) fn lies_in_memory(file: &File) -> bool {
    // statfs(2)
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58f6;
    rustix::fs::fstatfs(file).is_ok_and(|fs| [TMPFS, RAMFS].contains(&(fs.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn lies_in_memory(_: &File) -> bool {
    false
}
