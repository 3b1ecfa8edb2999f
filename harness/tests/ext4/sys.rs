//! The `ioctl` that shuts an ext4 file system down: no crate wraps it. Knows nothing of the test.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;

/// What the file system does before it shuts down (`EXT4_GOING_FLAGS_*` in the kernel's `fs/ext4/ext4.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShutdownMode {
    /// It writes the journal first.
    LogFlush = 1,
    /// It writes nothing.
    NoLogFlush = 2,
}

/// `_IOR('X', 125, __u32)` in the kernel's `fs/ext4/ext4.h`.
const EXT4_IOC_SHUTDOWN: nix::libc::c_ulong = 0x8004_587d;

/// Shuts the file system of the file down: it answers `EIO`, and what it has in memory never reaches the
/// disk.
pub(crate) fn shut_down(file: &File, mode: ShutdownMode) -> Result<(), Error> {
    let flags: u32 = mode as u32;
    // SAFETY: `file` keeps the descriptor open, and the pointer is valid for the one u32 that the kernel
    // reads.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), EXT4_IOC_SHUTDOWN, std::ptr::from_ref(&flags)) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
