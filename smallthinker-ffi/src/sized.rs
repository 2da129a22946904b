//! Structs that start with their size, so that they can grow without breaking compiled programs.

use std::ptr;

use crate::handle::null;
use crate::status::{Failure, Result};

/// A struct whose first field is `size: usize`.
///
/// # Safety
/// `repr(C)`, no padding, and every bit pattern is a value (numbers, raw pointers, optional functions).
pub(crate) unsafe trait Growing: Copy {
    /// What a caller gets who sets nothing.
    fn defaults() -> Self;
}

/// No struct of ours will be larger: a larger size is an uninitialised one.
const MAX_SIZE: usize = 4096;

/// Reads a caller's struct of any version; NULL gives the defaults. Fields beyond the caller's size take
/// their defaults. Fields that this version does not know must be zero: it could not do what they ask.
pub(crate) unsafe fn read_sized<T: Growing>(pointer: *const T, name: &str) -> Result<T> {
    let mut value = T::defaults();
    if pointer.is_null() {
        return Ok(value);
    }
    let bytes = pointer.cast::<u8>();
    // SAFETY: not NULL, so by the caller's contract a struct that begins with its size.
    let size = check_size(unsafe { pointer.cast::<usize>().read() }, name)?;
    let known = size_of::<T>();
    for offset in known..size {
        // SAFETY: the caller's struct has `size` bytes; those past the fields known here are its own fields.
        if unsafe { bytes.add(offset).read() } != 0 {
            let allowed = format!("zero from offset {known} on, fields unknown to version {}", VERSION);
            return Err(Failure::argument(name, format_args!("non-zero byte at offset {offset}"), &allowed));
        }
    }
    // SAFETY: both have that many bytes, and any bytes make a `T`.
    unsafe { ptr::copy_nonoverlapping(bytes, (&raw mut value).cast::<u8>(), size.min(known)) };
    Ok(value)
}

/// Where a struct of the caller's version goes; its `size` is read now, the rest written by
/// [`SizedOutput::write`].
pub(crate) struct SizedOutput<T> {
    pointer: *mut T,
    size: usize,
}

impl<T: Copy> SizedOutput<T> {
    /// `pointer` is not NULL and its struct begins with a size, set by the caller.
    pub(crate) unsafe fn new(pointer: *mut T, name: &str) -> Result<SizedOutput<T>> {
        if pointer.is_null() {
            return Err(null(name));
        }
        // SAFETY: not NULL, so by the caller's contract a struct that begins with its size.
        let size = check_size(unsafe { pointer.cast::<usize>().read() }, name)?;
        Ok(SizedOutput { pointer, size })
    }

    /// Writes what the caller's struct has room for and zeroes fields unknown here. `value` has no padding.
    pub(crate) fn write(self, value: &T) {
        let (bytes, head) = (self.pointer.cast::<u8>(), size_of::<usize>());
        let known = size_of::<T>().min(self.size);
        // SAFETY: the caller's struct has `self.size` bytes (contract of `new`) and `known` is at most that;
        // the size field stays as the caller set it.
        unsafe {
            ptr::write_bytes(bytes.add(head), 0, self.size - head);
            ptr::copy_nonoverlapping(
                (&raw const *value).cast::<u8>().add(head),
                bytes.add(head),
                known - head,
            );
        }
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn check_size(size: usize, name: &str) -> Result<usize> {
    let step = size_of::<usize>();
    if size < step || size > MAX_SIZE || !size.is_multiple_of(step) {
        let allowed = "sizeof of the struct: set it, or call the struct's init function";
        return Err(Failure::argument(&format!("{name}.size"), size, allowed));
    }
    Ok(size)
}

/// Writes the defaults of the first `size` bytes.
pub(crate) unsafe fn init<T: Growing>(pointer: *mut T, size: usize) -> Result<()> {
    if pointer.is_null() {
        return Err(null("options"));
    }
    let size = check_size(size, "options")?;
    // SAFETY: by the caller's contract `size` bytes are writable, and they hold a size first.
    let output = unsafe {
        pointer.cast::<usize>().write(size);
        SizedOutput::new(pointer, "options")
    }?;
    output.write(&T::defaults());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct V1 {
        size: usize,
        a: u64,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct V2 {
        size: usize,
        a: u64,
        b: u32,
        c: f32,
    }

    // SAFETY: repr(C), no padding, numbers.
    unsafe impl Growing for V1 {
        fn defaults() -> V1 {
            V1 { size: size_of::<V1>(), a: 10 }
        }
    }

    // SAFETY: repr(C), no padding, numbers.
    unsafe impl Growing for V2 {
        fn defaults() -> V2 {
            V2 { size: size_of::<V2>(), a: 10, b: 20, c: 30.0 }
        }
    }

    #[test]
    fn an_old_program_gets_defaults_for_new_fields() {
        let old = V1 { size: size_of::<V1>(), a: 1 };
        // SAFETY: 16 bytes, as its size says.
        let read = unsafe { read_sized((&raw const old).cast::<V2>(), "o") };
        assert_eq!(read.ok(), Some(V2 { size: 16, a: 1, b: 20, c: 30.0 }));
    }

    #[test]
    fn a_new_program_may_not_use_what_an_old_library_lacks() {
        let mut new = V2 { size: size_of::<V2>(), a: 1, b: 0, c: 0.0 };
        // SAFETY: 24 bytes, as its size says.
        let read = |v: &V2| unsafe { read_sized((&raw const *v).cast::<V1>(), "o") };
        assert_eq!(read(&new).map(|v| v.a).ok(), Some(1));
        new.c = 1.0;
        let message = read(&new).map_err(|f| f.message).err().unwrap_or_default();
        assert!(message.contains("invalid argument o: found non-zero byte at offset 2"), "{message}");
    }

    #[test]
    fn sizes_that_no_struct_has_are_refused() {
        for size in [0, 7, 9, 4104, usize::MAX] {
            let mut v = V2 { size, a: 1, b: 2, c: 3.0 };
            // SAFETY: a struct that begins with a size; nothing more is read for these sizes.
            let read = unsafe { read_sized(&raw const v, "o") };
            assert!(read.is_err_and(|f| f.message.contains("o.size")), "{size}");
            // SAFETY: as above; nothing is written.
            let output = unsafe { SizedOutput::new(&raw mut v, "o") };
            assert!(output.is_err(), "{size}");
        }
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { read_sized(ptr::null::<V2>(), "o") }.ok(), Some(V2::defaults()));
    }

    #[test]
    fn writing_stays_inside_the_callers_struct() {
        let mut old = [V1 { size: 16, a: 1 }, V1 { size: 99, a: 99 }];
        // SAFETY: 16 bytes are writable.
        let output = unsafe { SizedOutput::new(old.as_mut_ptr().cast::<V2>(), "o") };
        output.unwrap_or_else(|f| panic!("{}", f.message)).write(&V2 { size: 24, a: 5, b: 6, c: 7.0 });
        assert_eq!(old, [V1 { size: 16, a: 5 }, V1 { size: 99, a: 99 }]);

        let mut new = V2 { size: 24, a: 1, b: 2, c: 3.0 };
        // SAFETY: 24 bytes are writable.
        let output = unsafe { SizedOutput::new((&raw mut new).cast::<V1>(), "o") };
        output.unwrap_or_else(|f| panic!("{}", f.message)).write(&V1 { size: 16, a: 5 });
        assert_eq!(new, V2 { size: 24, a: 5, b: 0, c: 0.0 });
    }

    #[test]
    fn init_writes_the_callers_part_of_the_defaults() {
        let mut old = [V1 { size: 0, a: 1 }, V1 { size: 99, a: 99 }];
        // SAFETY: 16 bytes are writable.
        let done = unsafe { init(old.as_mut_ptr().cast::<V2>(), 16) };
        assert!(done.is_ok());
        assert_eq!(old, [V1 { size: 16, a: 10 }, V1 { size: 99, a: 99 }]);
    }
}
