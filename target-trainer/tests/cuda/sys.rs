//! Unsafe look-up of a function that only the simulated driver has.

/// Returns the number of kernels that the simulated driver was built with, or `None` if the driver is a real
/// one.
pub(crate) fn simulated_kernel_count() -> Option<u32> {
    // SAFETY: loads libcuda by its public names and closes it again; its initialisers have no preconditions.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return None;
    }
    // SAFETY: the check above has found the library.
    let library = unsafe { cudarc::driver::sys::culib() };
    // SAFETY: only the simulated driver has a function of this name, and it has this type.
    let count = unsafe { library.get::<unsafe extern "C" fn() -> u32>(b"simgpu_kernels") }.ok()?;
    // SAFETY: the function takes no arguments and has no preconditions. The library stays loaded.
    Some(unsafe { count() })
}
