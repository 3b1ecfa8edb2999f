//! The unsafe calls behind the check for open writers: a file lease of the kernel.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

/// `fcntl`'s command that chooses the signal of a broken lease, from `asm-generic/fcntl.h`.
const F_SETSIG: libc::c_int = 10;

/// Takes a read lease on the file and gives it back at once. The kernel grants one only if no process has
/// the file open for writing.
///
/// # Errors
/// `EAGAIN` if a process has the file open for writing. Other codes if the file system or the permissions do
/// not allow leases.
pub(super) fn try_read_lease(file: &File) -> Result<(), Errno> {
    let fd = file.as_raw_fd();
    // SAFETY: the descriptor is open as long as `file` is borrowed, and F_SETSIG takes an integer. A writer
    // that opens the file while the lease is held makes the kernel send this signal. The default one would
    // end the process; SIGURG is ignored by default.
    Errno::result(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: the descriptor is open as long as `file` is borrowed, and F_SETLEASE takes an integer.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) })?;
    // SAFETY: as for taking the lease: an open descriptor and an integer.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) }).map(drop)
}
