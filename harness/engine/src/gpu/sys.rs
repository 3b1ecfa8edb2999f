//! Loads a library whose contents are unknown, and calls the functions that a driver or the shim exports.
//! Only a probe's process may use this.

use std::ffi::{CStr, CString, NulError, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// The code with which functions of the CUDA driver report success.
const CUDA_SUCCESS: c_int = 0;

/// Why a library can't be loaded, or its functions can't be called.
#[derive(Debug, thiserror::Error)]
pub(super) enum LibraryError {
    /// The path can't be passed to the loader.
    #[error(transparent)]
    Path(#[from] NulError),
    /// The dynamic loader failed, and gave this reason.
    #[error("{reason}")]
    NotLoaded { reason: String },
    /// The library is no driver.
    #[error("the driver does not export `{function}`")]
    MissingFunction { function: String },
    /// A function of the driver failed.
    #[error("{function} fails with error {code}")]
    Failed { function: &'static str, code: i32 },
}

/// A loaded library. It is never unloaded.
pub(super) struct LoadedLibrary {
    handle: *mut c_void,
}

impl LoadedLibrary {
    /// Loads a library by path or file name.
    pub(super) fn open(path: &Path) -> Result<LoadedLibrary, LibraryError> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: `name` is a C string. The library's initialisers run arbitrary code, so this runs in a
        // process whose only purpose is the probe.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(LibraryError::NotLoaded { reason: last_error() });
        }
        Ok(LoadedLibrary { handle })
    }

    fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: `handle` is of a library that is never closed, and `name` is a C string.
        let symbol = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    }

    /// The number of kernels compiled into the shim. Returns `None` if this library is not the shim.
    pub(super) fn kernel_count(&self) -> Option<usize> {
        let symbol = self.symbol(c"simgpu_kernels")?;
        // SAFETY: the pointer is not null. Only the shim exports this symbol, and there it is a function of
        // this type.
        let kernels: extern "C" fn() -> c_int = unsafe { std::mem::transmute(symbol) };
        usize::try_from(kernels()).ok()
    }

    /// The reason why the shim has no kernels.
    pub(super) fn missing_kernels_reason(&self) -> Option<String> {
        let symbol = self.symbol(c"simgpu_why")?;
        // SAFETY: the pointer is not null. Only the shim exports this symbol, and there it is a function of
        // this type.
        let reason_function: extern "C" fn() -> *const c_char = unsafe { std::mem::transmute(symbol) };
        let text = reason_function();
        // SAFETY: if it is not null, the shim returns a static C string, and the library stays loaded.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// The number of devices that a driver reports.
    pub(super) fn device_count(&self) -> Result<usize, LibraryError> {
        let required_symbol = |name: &CStr| {
            let missing = || LibraryError::MissingFunction { function: name.to_string_lossy().into() };
            self.symbol(name).ok_or_else(missing)
        };
        let (initialise, count_devices) =
            (required_symbol(c"cuInit")?, required_symbol(c"cuDeviceGetCount")?);
        // SAFETY: the pointer is not null, and a library that exports cuInit is a CUDA driver, whose cuda.h
        // declares it with this type.
        let initialise: extern "C" fn(c_uint) -> c_int = unsafe { std::mem::transmute(initialise) };
        // SAFETY: the pointer is not null, and cuda.h declares cuDeviceGetCount with this type. `count`, to
        // which it writes, is live during the call below.
        let count_devices: extern "C" fn(*mut c_int) -> c_int = unsafe { std::mem::transmute(count_devices) };
        let mut count = 0;
        let (initialised, counted) = (initialise(0), count_devices(&raw mut count));
        match (initialised, counted) {
            (CUDA_SUCCESS, CUDA_SUCCESS) => Ok(usize::try_from(count).unwrap_or(0)),
            (CUDA_SUCCESS, code) => Err(LibraryError::Failed { function: "cuDeviceGetCount", code }),
            (code, _) => Err(LibraryError::Failed { function: "cuInit", code }),
        }
    }
}

/// The text of the loader's last error.
fn last_error() -> String {
    // SAFETY: dlerror takes no arguments, and its result belongs to this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the dynamic loader gave no reason".into();
    }
    // SAFETY: dlerror returned a C string that is valid until this thread calls the loader again, which it
    // has not done.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
