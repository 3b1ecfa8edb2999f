//! The system calls about mounts that need unsafe code, each behind a safe function: clones of mounts, their
//! attachment, and read-only mounts.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// `AT_RECURSIVE` of linux/fcntl.h: the call is about a mount and everything that is mounted below it.
const AT_RECURSIVE: u32 = 0x8000;

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// A copy of the mount that shows `path`, with everything mounted below it. The copy is attached nowhere yet,
/// and `path` is its root.
pub(super) fn clone_mount(path: &Path) -> Result<OwnedFd, Errno> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC as u32;
    // SAFETY: `path` is a NUL-terminated string that is live during the call, and the call accesses no other
    // memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created the descriptor for this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a mount that [`clone_mount`] has returned at `mount_point`.
pub(super) fn attach_mount(mount: &OwnedFd, mount_point: &Path) -> Result<(), Errno> {
    let mount_point = c_path(mount_point)?;
    // SAFETY: both strings are NUL-terminated and live during the call, and the call accesses no other memory
    // of ours.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            mount_point.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(moved).map(drop)
}

/// Makes a mount read-only, with everything mounted below it.
pub(super) fn make_read_only(mount: impl AsFd) -> Result<(), Errno> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty, NUL-terminated string, `attributes` is live during the call, and its size
    // is the one that is passed.
    let changed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH as u32 | AT_RECURSIVE,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    Errno::result(changed).map(drop)
}
