//! Unsafe calls of cudarc: whether NVRTC is present, and its version.

use cudarc::nvrtc::sys;

/// Returns the version of the NVRTC that the loader finds, or `None` if it finds none.
pub(crate) fn nvrtc_version() -> Option<(i32, i32)> {
    // SAFETY: loads NVRTC by its public names and closes it again; its initialisers have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the check above has found the library, and both pointers are to live integers.
    let answer = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    (answer == sys::nvrtcResult::NVRTC_SUCCESS).then_some((major, minor))
}
