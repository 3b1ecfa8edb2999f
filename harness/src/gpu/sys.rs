//! A library of which nothing is known before it is loaded: the calls that the compiler can't check.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// A loaded library; it stays loaded.
pub(super) struct LoadedLibrary {
    handle: *mut c_void,
}

impl LoadedLibrary {
    pub(super) fn open(path: &Path) -> Result<LoadedLibrary, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: the name is a C string; what the library's own start does is why this runs in a process of its own.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() { Err(last_error()) } else { Ok(LoadedLibrary { handle }) }
    }

    fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle is of a library that is never closed.
        let symbol = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    }

    /// Kernels that a stand-in has compiled in; none where this is not one.
    pub(super) fn kernel_count(&self) -> Option<usize> {
        let symbol = self.symbol(c"simgpu_kernels")?;
        // SAFETY: only the stand-in has a symbol of this name, and there it is a function of this type.
        let kernels: extern "C" fn() -> c_int = unsafe { std::mem::transmute(symbol) };
        usize::try_from(kernels()).ok()
    }

    /// Why a stand-in has none.
    pub(super) fn missing_kernels_reason(&self) -> Option<String> {
        let symbol = self.symbol(c"simgpu_why")?;
        // SAFETY: as above.
        let why: extern "C" fn() -> *const c_char = unsafe { std::mem::transmute(symbol) };
        let text = why();
        // SAFETY: where it is not null, it is a C string that lives as long as the library.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// Devices that a driver tells of.
    pub(super) fn device_count(&self) -> Result<usize, String> {
        let needed = |name: &CStr| {
            self.symbol(name).ok_or_else(|| format!("the driver has no `{}`", name.to_string_lossy()))
        };
        let (initialise, count_devices) = (needed(c"cuInit")?, needed(c"cuDeviceGetCount")?);
        // SAFETY: a driver's functions of these names have these types, by cuda.h.
        let initialise: extern "C" fn(c_uint) -> c_int = unsafe { std::mem::transmute(initialise) };
        // SAFETY: as above.
        let count_devices: extern "C" fn(*mut c_int) -> c_int = unsafe { std::mem::transmute(count_devices) };
        let mut count = 0;
        match (initialise(0), count_devices(&raw mut count)) {
            (0, 0) => Ok(usize::try_from(count).unwrap_or(0)),
            (0, code) => Err(format!("cuDeviceGetCount fails with error {code}")),
            (code, _) => Err(format!("cuInit fails with error {code}")),
        }
    }
}

fn last_error() -> String {
    // SAFETY: takes nothing; what it returns is a C string of this thread until the next call of the loader.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader does not say why".into();
    }
    // SAFETY: not null, and nothing has called the loader since.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
