//! The arguments and results of functions that C calls. Unsafe: reads and writes through the caller's
//! pointers. Must not know any function.

use std::ffi::{CStr, c_char};

use crate::codes;

/// Writes an output value. Returns the code of the call.
///
/// # Safety
/// `out` is null or valid for a write.
pub(crate) unsafe fn write_out<T>(out: *mut T, value: T) -> u32 {
    if out.is_null() {
        return codes::INVALID_VALUE;
    }
    // SAFETY: `out` is not null, so the caller promises that it is valid for a write. It need not be aligned.
    unsafe { out.write_unaligned(value) };
    codes::SUCCESS
}

/// Reads a C string. Returns `None` for null and for text that is not UTF-8.
///
/// # Safety
/// `string` is null or a C string that outlives the result.
pub(super) unsafe fn c_str<'a>(string: *const c_char) -> Option<&'a str> {
    // SAFETY: `string` is not null here, so the caller promises that it is a C string.
    (!string.is_null()).then(|| unsafe { CStr::from_ptr(string) }.to_str().ok()).flatten()
}

/// Writes a string and its NUL, cut to `length` bytes.
///
/// # Safety
/// `out` is null or has room for `length` bytes.
pub(crate) unsafe fn write_c_str(out: *mut c_char, length: usize, value: &str) -> u32 {
    if out.is_null() || length == 0 {
        return codes::INVALID_VALUE;
    }
    let len_bytes = value.len().min(length - 1);
    // SAFETY: `out` is not null, so the caller promises `length` bytes, and at most `length` bytes are
    // written.
    unsafe {
        std::ptr::copy_nonoverlapping(value.as_ptr().cast(), out, len_bytes);
        out.add(len_bytes).write(0);
    }
    codes::SUCCESS
}

/// Converts a result to the code that a function returns.
pub(super) fn result_code(result: Result<(), u32>) -> u32 {
    result.err().unwrap_or(codes::SUCCESS)
}
