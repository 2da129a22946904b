//! Pointers from C: checked for NULL and turned into references and slices; memory handed to C.
//!
//! All functions here are unsafe for one reason: they trust the caller's pointers as the header's
//! introduction demands (valid, of the type and length stated, not written by anyone else meanwhile).

use std::ffi::{CStr, OsStr, c_char};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::{ptr, slice};

use crate::status::{Failure, Result, st_status};

/// A handle that is only looked at.
pub(crate) unsafe fn required<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: not NULL, so by the caller's contract a live handle or struct.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// Where a result goes. Checked before any work, written after all of it.
pub(crate) unsafe fn output<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut MaybeUninit<T>> {
    // SAFETY: not NULL, so by the caller's contract writable room for a `T`, initialised or not.
    unsafe { pointer.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| null(name))
}

/// As [`output`], for results that the caller may not want.
pub(crate) unsafe fn optional_output<'a, T>(pointer: *mut T) -> Option<&'a mut MaybeUninit<T>> {
    // SAFETY: as in `output`.
    unsafe { pointer.cast::<MaybeUninit<T>>().as_mut() }
}

/// `count` elements; NULL stands for none if `count` is 0.
pub(crate) unsafe fn array<'a, T>(data: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(null(name));
    }
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        let allowed = format!("at most {} elements", isize::MAX as usize / size_of::<T>().max(1));
        return Err(Failure::argument(name, format_args!("{count} elements"), &allowed));
    }
    // SAFETY: not NULL and the size does not wrap; by the caller's contract `count` elements lie there.
    Ok(unsafe { slice::from_raw_parts(data, count) })
}

/// `length` bytes of UTF-8.
pub(crate) unsafe fn text<'a>(data: *const c_char, length: usize, name: &str) -> Result<&'a str> {
    // SAFETY: the caller's contract.
    let bytes = unsafe { array(data.cast::<u8>(), length, name) }?;
    utf8(bytes, name)
}

/// UTF-8 up to a NUL.
pub(crate) unsafe fn c_text<'a>(data: *const c_char, name: &str) -> Result<&'a str> {
    if data.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, so by the caller's contract NUL-terminated.
    utf8(unsafe { CStr::from_ptr(data) }.to_bytes(), name)
}

/// A file name up to a NUL: the system's bytes on Unix, UTF-8 elsewhere.
pub(crate) unsafe fn path(data: *const c_char, name: &str) -> Result<PathBuf> {
    if data.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, so by the caller's contract NUL-terminated.
    let bytes = unsafe { CStr::from_ptr(data) }.to_bytes();
    #[cfg(unix)]
    let path = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes);
    #[cfg(not(unix))]
    let path = OsStr::new(utf8(bytes, name)?);
    Ok(PathBuf::from(path))
}

/// Copies `items` to memory of the C allocator, with a zeroed element after them.
pub(crate) fn give<T: Copy>(items: &[T]) -> Result<*mut T> {
    let bytes = size_of_val(items) + size_of::<T>();
    // SAFETY: calloc has no preconditions; `bytes` can't wrap, a slice's size is at most isize::MAX.
    let data = unsafe { libc::calloc(1, bytes) }.cast::<T>();
    if data.is_null() {
        let message = format!("out of memory: a result needs {bytes} bytes");
        return Err(Failure { status: st_status::ST_BUDGET, message });
    }
    // SAFETY: `data` is fresh, aligned for any C type and holds `items.len() + 1` elements.
    unsafe { ptr::copy_nonoverlapping(items.as_ptr(), data, items.len()) };
    Ok(data)
}

/// As [`give`], for text; NUL-terminated.
pub(crate) fn give_text(text: &str) -> Result<*mut c_char> {
    give(text.as_bytes()).map(|data| data.cast())
}

/// Takes back what [`give`] gave.
pub(crate) unsafe fn take_back<T>(data: *mut T) {
    // SAFETY: NULL, or from calloc in `give` and, by the caller's contract, not freed yet.
    unsafe { libc::free(data.cast()) }
}

pub(crate) fn null(name: &str) -> Failure {
    Failure::argument(name, "NULL", "a pointer that is not NULL")
}

fn utf8<'a>(bytes: &'a [u8], name: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let byte = bytes.get(at).copied().unwrap_or_default();
        Failure::argument(name, format_args!("byte {byte:#04x} at offset {at}"), "UTF-8")
    })
}
