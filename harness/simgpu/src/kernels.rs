//! The kernels that were compiled in: by name, with the sizes of their parameters. Unsafe: it reads the tables that the
//! C++ compiler wrote. It must not know what any kernel does.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

/// As in `host/simgpu_host.h`.
#[repr(C)]
struct Entry {
    name: *const c_char,
    run: Run,
    sizes: *const u32,
    count: u32,
}

// SAFETY: entries are constants of the image.
unsafe impl Sync for Entry {}

/// Runs one thread of a kernel on pointers to its parameters.
pub(crate) type Run = unsafe extern "C" fn(*mut *mut c_void);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) run: Run,
    /// Of its parameters, in bytes.
    pub(crate) sizes: &'static [u32],
}

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// By name: the trainer's kernels, and those that tests plant.
pub(crate) fn find(name: &str) -> Option<Kernel> {
    static KERNELS: OnceLock<HashMap<&'static str, Kernel>> = OnceLock::new();
    KERNELS.get_or_init(all).get(name).copied()
}

fn all() -> HashMap<&'static str, Kernel> {
    let entries = planted().0.iter().chain(trainer().0);
    entries.map(kernel).map(|kernel| (kernel.name, kernel)).collect()
}

fn kernel(entry: &'static Entry) -> Kernel {
    // SAFETY: the C++ compiler wrote a string literal here.
    let name = unsafe { CStr::from_ptr(entry.name) };
    // SAFETY: and here as many sizes as it counts.
    let sizes = unsafe { std::slice::from_raw_parts(entry.sizes, entry.count as usize) };
    Kernel { name: name.to_str().unwrap_or_default(), run: entry.run, sizes }
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
