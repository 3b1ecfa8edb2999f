//! What cudarc asks of NVRTC by unsafe functions only: whether it is there, and which one. Unsafe.

use cudarc::nvrtc::sys;

/// Of the NVRTC that the loader finds; nothing where it finds none.
pub(crate) fn nvrtc_version() -> Option<(i32, i32)> {
    // SAFETY: loads a library by its public names and closes it again; NVRTC's start-up code asks for nothing.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there, and both pointers are to live integers.
    let answer = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    (answer == sys::nvrtcResult::NVRTC_SUCCESS).then_some((major, minor))
}
