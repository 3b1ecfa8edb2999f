//! The kernels that were compiled in: by name, with the sizes of their parameters. Unsafe: it reads the tables that the
//! C++ compiler wrote. It must not know what any kernel does.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

/// As in `host/simgpu_host.h`.
#[repr(C)]
struct Entry {
    name: *const c_char,
    function: KernelFn,
    parameter_sizes: *const u32,
    parameter_count: u32,
}

// SAFETY: entries are constants of the image.
unsafe impl Sync for Entry {}

/// Runs one thread of a kernel on pointers to its parameters.
pub(crate) type KernelFn = unsafe extern "C" fn(*mut *mut c_void);

#[derive(Debug, Clone, Copy)]
pub(crate) struct CompiledKernel {
    pub(crate) name: &'static str,
    pub(crate) function: KernelFn,
    /// Of its parameters, in bytes.
    pub(crate) parameter_sizes: &'static [u32],
}

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// By name: the trainer's kernels, and those that tests plant.
pub(crate) fn find_kernel(name: &str) -> Option<CompiledKernel> {
    static KERNELS: OnceLock<HashMap<&'static str, CompiledKernel>> = OnceLock::new();
    KERNELS.get_or_init(all_kernels).get(name).copied()
}

fn all_kernels() -> HashMap<&'static str, CompiledKernel> {
    let entries = planted().0.iter().chain(trainer().0);
    entries.map(compiled_kernel).map(|kernel| (kernel.name, kernel)).collect()
}

fn compiled_kernel(entry: &'static Entry) -> CompiledKernel {
    // SAFETY: the C++ compiler wrote a string literal here.
    let name = unsafe { CStr::from_ptr(entry.name) };
    // SAFETY: and here as many sizes as it counts.
    let sizes = unsafe { std::slice::from_raw_parts(entry.parameter_sizes, entry.parameter_count as usize) };
    CompiledKernel {
        name: name.to_str().unwrap_or_default(),
        function: entry.function,
        parameter_sizes: sizes,
    }
}

/// How many kernels of the trainer were compiled in.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn simgpu_kernels() -> u32 {
    trainer().0.len() as u32
}

/// Why there are none; an empty string when there are.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn simgpu_why() -> *const c_char {
    static WHY: OnceLock<std::ffi::CString> = OnceLock::new();
    WHY.get_or_init(|| std::ffi::CString::new(trainer().1).unwrap_or_default()).as_ptr()
}
