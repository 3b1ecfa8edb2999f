//! The one system call of these tests that no crate wraps.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;

/// What a file system does before it goes away (`EXT4_GOING_FLAGS_*` of the kernel's `fs/ext4/ext4.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShutdownMode {
    /// The journal is written out first.
    LogFlush = 1,
    /// Nothing is.
    NoLogFlush = 2,
}

/// `_IOR('X', 125, __u32)` of the kernel's `fs/ext4/ext4.h`.
const EXT4_IOC_SHUTDOWN: nix::libc::c_ulong = 0x8004_587d;

/// From now on the file system that the file lies in answers `EIO`, and what it had in memory never reaches the disk.
pub(crate) fn shut_down(file: &File, going: ShutdownMode) -> Result<(), Error> {
    let flags: u32 = going as u32;
    // SAFETY: the descriptor is open for as long as `file` lives, and the kernel reads one u32 behind the pointer.
    let answer = unsafe { nix::libc::ioctl(file.as_raw_fd(), EXT4_IOC_SHUTDOWN, std::ptr::from_ref(&flags)) };
    if answer == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
