//! The arguments and results of functions that C calls. Unsafe: reads and writes through the caller's
//! pointers. Must not know any function.

use std::ffi::{CStr, c_char, c_void};

use crate::codes;

/// An output argument: null, or valid for a write of a `T`, which need not be aligned.
///
/// CUDA and NVML require this of their callers. Safe code can make only the null argument. C passes all
/// others to an entry point, or they are made with the unsafe [`Out::from_pointer`]. No entry point keeps one
/// after it has returned. This is why a write is safe, also in an entry point that is not declared `unsafe`.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Out<T> {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// # Safety
    /// `pointer` is null, or valid for a write of a `T` for as long as the result lives.
    pub(crate) unsafe fn from_pointer(pointer: *mut T) -> Out<T> {
        Out(pointer)
    }

    /// An argument that the caller does not want.
    pub(super) fn null() -> Out<T> {
        Out(std::ptr::null_mut())
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes a value. Returns false if the argument is null.
    pub(crate) fn try_write(self, value: T) -> bool {
        if !self.is_null() {
            // SAFETY: the pointer is not null, so it is from C or from `from_pointer`. Both promise that it
            // is valid for a write of a `T`, which need not be aligned.
            unsafe { self.0.write_unaligned(value) };
        }
        !self.is_null()
    }

    /// Writes a value. Returns the driver's code of the call.
    pub(super) fn write(self, value: T) -> u32 {
        if self.try_write(value) { codes::SUCCESS } else { codes::INVALID_VALUE }
    }

    /// Writes a value if there is one. Returns the driver's code of the call.
    pub(super) fn write_result(self, result: Result<T, u32>) -> u32 {
        result.map_or_else(|code| code, |value| self.write(value))
    }

    /// Reads the value.
    ///
    /// # Safety
    /// It is not null, and was written before.
    pub(crate) unsafe fn read(self) -> T {
        // SAFETY: the pointer is not null and a `T` stands there, as this function requires. It need not be
        // aligned.
        unsafe { self.0.read_unaligned() }
    }
}

/// A text argument: null, or a C string.
///
/// CUDA and NVML require this of their callers. Safe code cannot make a value: C passes it to an entry point,
/// or it is made with the unsafe [`TextArgument::from_pointer`]. No entry point keeps one after it has
/// returned. This is why reading is safe, also in an entry point that is not declared `unsafe`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct TextArgument(*const c_char);

impl TextArgument {
    /// # Safety
    /// `pointer` is null, or a C string that outlives the result.
    pub(crate) unsafe fn from_pointer(pointer: *const c_char) -> TextArgument {
        TextArgument(pointer)
    }

    /// Returns `None` for null and for text that is not UTF-8.
    pub(crate) fn as_str(&self) -> Option<&str> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the pointer is not null, so it is from C or from `from_pointer`. Both promise a C string
        // that lives during the call.
        unsafe { CStr::from_ptr(self.0) }.to_str().ok()
    }
}

/// A function of the program, with its argument (`cuLaunchHostFunc`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostCall {
    function: HostFunction,
    data: usize,
}

/// `CUhostFn`.
pub(super) type HostFunction = unsafe extern "C" fn(*mut c_void);

impl HostCall {
    /// # Safety
    /// The function accepts the data at any later time and on any thread.
    pub(super) unsafe fn new(function: HostFunction, data: *mut c_void) -> HostCall {
        HostCall { function, data: data as usize }
    }

    pub(super) fn run(self) {
        // SAFETY: who made this value promised that the function accepts the data at any time.
        unsafe { (self.function)(self.data as *mut c_void) };
    }
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
