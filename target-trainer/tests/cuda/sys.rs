//! What is asked of the simulated driver by its name only. Unsafe.

/// How many of our kernels it was built with; nothing where the driver is a real one.
pub(crate) fn simulated_kernel_count() -> Option<u32> {
    // SAFETY: loads a library by its public names and closes it again.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return None;
    }
    // SAFETY: the library is there.
    let library = unsafe { cudarc::driver::sys::culib() };
    // SAFETY: the simulated driver's own function has this type, and no other driver has it.
    let count = unsafe { library.get::<unsafe extern "C" fn() -> u32>(b"simgpu_kernels") }.ok()?;
    // SAFETY: as above.
    Some(unsafe { count() })
}
