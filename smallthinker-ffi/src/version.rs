//! Which library this is.

use std::ffi::{CStr, c_char};

/// Version of the binary interface. Functions may be added and structs with a `size` may grow under the same
/// number; anything that breaks a compiled program raises it.
pub const ST_ABI_VERSION: u32 = 1;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"unknown",
};

/// Version of the library that runs, such as "0.1.0"; compare with ST_VERSION, that of the header.
///
/// Never NULL; static memory. Can be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn st_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Binary interface of the library that runs. A program compiled with this header needs it to be equal to
/// ST_ABI_VERSION. Can be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn st_abi_version() -> u32 {
    ST_ABI_VERSION
}
