//! The kernels that were compiled into the library: by name, with the sizes of their parameters. Unsafe: it
//! reads tables that the C++ compiler wrote. Must not know what any kernel does.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

/// One entry of a table: `simgpu_kernel` in `host/simgpu_host.h`.
#[repr(C)]
struct KernelEntry {
    name: *const c_char,
    function: KernelFn,
    parameter_sizes: *const u32,
    parameter_count: u32,
}

// SAFETY: entries are constants of the loaded image, which nothing writes to.
unsafe impl Sync for KernelEntry {}

/// Runs one thread of a kernel on pointers to its parameters.
pub(crate) type KernelFn = unsafe extern "C" fn(*mut *mut c_void);

/// A kernel that can be launched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompiledKernel {
    pub(crate) name: &'static str,
    pub(crate) function: KernelFn,
    /// Sizes of the parameters in bytes.
    pub(crate) parameter_sizes: &'static [u32],
}

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// Finds a kernel by name: one of the trainer's, or one of the test kernels.
pub(crate) fn find_kernel(name: &str) -> Option<CompiledKernel> {
    static KERNELS: OnceLock<HashMap<&'static str, CompiledKernel>> = OnceLock::new();
    KERNELS.get_or_init(all_kernels).get(name).copied()
}

fn all_kernels() -> HashMap<&'static str, CompiledKernel> {
    let entries = planted().0.iter().chain(trainer().0);
    entries.map(compiled_kernel).map(|kernel| (kernel.name, kernel)).collect()
}

fn compiled_kernel(entry: &'static KernelEntry) -> CompiledKernel {
    // SAFETY: `SIMGPU_KERNEL` stores a string literal in `name`.
    let name = unsafe { CStr::from_ptr(entry.name) };
    // SAFETY: `simgpu_entry` stores an array with at least `parameter_count` sizes.
    let sizes = unsafe { std::slice::from_raw_parts(entry.parameter_sizes, entry.parameter_count as usize) };
    CompiledKernel {
        name: name.to_str().unwrap_or_default(),
        function: entry.function,
        parameter_sizes: sizes,
    }
}

/// Returns how many of the trainer's kernels were compiled in.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn simgpu_kernels() -> u32 {
    trainer().0.len() as u32
}

/// Returns the reason if no kernels were compiled in, else an empty string.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn simgpu_why() -> *const c_char {
    static REASON: OnceLock<std::ffi::CString> = OnceLock::new();
    REASON.get_or_init(|| std::ffi::CString::new(trainer().1).unwrap_or_default()).as_ptr()
}
