//! System calls of the programs under test that no crate wraps. Knows nothing of the test.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;

/// What the file system does before it shuts down (`EXT4_GOING_FLAGS_*` in the kernel's `fs/ext4/ext4.h`; the
/// same numbers in `fs/xfs/libxfs/xfs_fs.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShutdownMode {
    /// It writes the journal first.
    LogFlush = 1,
    /// It writes nothing.
    NoLogFlush = 2,
}

/// `_IOR('X', 125, __u32)` in the kernel's `fs/ext4/ext4.h` and `fs/xfs/libxfs/xfs_fs.h`.
const FS_IOC_SHUTDOWN: nix::libc::c_ulong = 0x8004_587d;

/// Shuts the file system of the file down: it answers `EIO`, and what it has in memory never reaches the
/// disk.
pub(crate) fn shut_down(file: &File, mode: ShutdownMode) -> Result<(), Error> {
    let flags: u32 = mode as u32;
    // SAFETY: `file` keeps the descriptor open, and the pointer is valid for the one u32 that the kernel
    // reads.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), FS_IOC_SHUTDOWN, std::ptr::from_ref(&flags)) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Writes the bytes of a range to the disk, and waits for it. Makes nothing durable.
pub(crate) fn write_range(file: &File, offset: u64, len_bytes: u64) -> Result<(), Error> {
    let flags = nix::libc::SYNC_FILE_RANGE_WRITE | nix::libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: `file` keeps the descriptor open, and no pointer is passed.
    let result =
        unsafe { nix::libc::sync_file_range(file.as_raw_fd(), offset as i64, len_bytes as i64, flags) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
