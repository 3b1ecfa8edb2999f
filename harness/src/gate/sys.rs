//! The calls that the compiler can't check, each behind a safe face.

use std::ffi::CStr;
use std::io::Error;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// A stopped call. `id` names it until it is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Notification {
    pub(super) id: u64,
    pub(super) tid: i32,
    pub(super) number: i64,
    pub(super) args: [u64; 6],
}

/// The answer to a stopped call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotificationResponse {
    Continue,
    Value(i64),
    Fail(Errno),
}

fn owned_fd(result: i64) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Wakes the other side on the same core, where the kernel (6.6 on) can.
pub(super) fn set_synchronous_wakeup(listener: BorrowedFd<'_>) {
    // SAFETY: takes a number; an old kernel refuses it and nothing changes.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, 1u64) };
}

/// The next stopped call. ENOENT: it was withdrawn, by a kill or a signal.
pub(super) fn receive_notification(listener: BorrowedFd<'_>) -> Result<Notification, Errno> {
    // SAFETY: all zeroes are a valid `seccomp_notif`, and what the kernel wants to be given.
    let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local value of the type that the call fills.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notif) };
    Errno::result(result)?;
    Ok(Notification {
        id: notif.id,
        tid: notif.pid as i32,
        number: i64::from(notif.data.nr),
        args: notif.data.args,
    })
}

/// Answers. ENOENT: nobody waits for it any more.
pub(super) fn send_response(
    listener: BorrowedFd<'_>,
    id: u64,
    answer: NotificationResponse,
) -> Result<(), Errno> {
    let (val, error, flags) = match answer {
        NotificationResponse::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        NotificationResponse::Value(value) => (value, 0, 0),
        NotificationResponse::Fail(errno) => (0, -(errno as i32), 0),
    };
    let mut response = libc::seccomp_notif_resp { id, val, error, flags };
    // SAFETY: the pointer is to a live local value of the type that the call reads.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    Errno::result(result).map(drop)
}

/// Puts a descriptor into the target as the result of the call.
pub(super) fn send_fd_response(
    listener: BorrowedFd<'_>,
    id: u64,
    file: BorrowedFd<'_>,
    close_on_exec: bool,
) -> Result<(), Errno> {
    let mut added = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: file.as_raw_fd() as u32,
        newfd: 0,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    // SAFETY: the pointer is to a live local value of the type that the call reads.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut added) };
    Errno::result(result).map(drop)
}

/// Whether the call still waits: only then does what was read from its thread belong to it.
pub(super) fn is_notification_valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the pointer is to a live local number.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
    result == 0
}

/// Copies the target's memory into `bytes`; how much could be read.
pub(super) fn read_memory(tid: i32, at: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the local range is `bytes`, live and writable; the remote one is checked by the kernel.
    let read = unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) };
    Errno::result(read).map(|read| read as usize)
}

/// Copies `bytes` into the target's memory.
pub(super) fn write_memory(tid: i32, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the local range is `bytes`, live and only read; the remote one is checked by the kernel.
    let written = unsafe { libc::process_vm_writev(tid, &raw const local, 1, &raw const remote, 1, 0) };
    if Errno::result(written)? == bytes.len() as isize { Ok(()) } else { Err(Errno::EFAULT) }
}

/// A handle on one thread, or on its process where the kernel is older than 6.9.
pub(super) fn open_thread(tid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and returns a new descriptor or an error.
    let thread = owned_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, libc::O_EXCL) });
    match thread {
        Err(Errno::EINVAL) => {
            let process = super::target_thread::process_id_of(tid).ok_or(Errno::ESRCH)?;
            // SAFETY: as above.
            owned_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })
        }
        thread => thread,
    }
}

/// A duplicate of one of its descriptors; it shares offset and flags.
pub(super) fn duplicate_fd(thread: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers and returns a new descriptor or an error.
    owned_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, thread.as_raw_fd(), fd, 0) })
}

/// `openat2`: resolved as if `root` were the root folder.
pub(super) fn openat2(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> Result<OwnedFd, Errno> {
    // SAFETY: all zeroes are a valid `open_how`.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.mode = u64::from(mode);
    how.resolve = resolve;
    let size = std::mem::size_of::<libc::open_how>();
    // SAFETY: path and struct are live for the call, and the size is the struct's.
    owned_fd(unsafe {
        libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size)
    })
}

/// What is known of a file: key, mount, size, whether it is a folder or a pipe.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileStat {
    pub(super) file_id: super::FileId,
    pub(super) mount_id: u64,
    pub(super) size_bytes: u64,
    pub(super) mode: u32,
}

/// `statx` of a name in a folder, or of the descriptor itself where the name is empty. Links are not followed.
pub(super) fn statx(dir: BorrowedFd<'_>, name: &CStr) -> Result<FileStat, Errno> {
    // SAFETY: all zeroes are a valid `statx`.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    // SAFETY: the name is live, and the pointer is to a live local value of the type that the call fills.
    let result = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut found) };
    Errno::result(result)?;
    let dev = u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor);
    Ok(FileStat {
        file_id: super::FileId { dev, ino: found.stx_ino },
        mount_id: found.stx_mnt_id,
        size_bytes: found.stx_size,
        mode: u32::from(found.stx_mode),
    })
}

/// From here on this thread has a umask and a working folder of its own.
pub(super) fn unshare_fs() -> Result<(), Error> {
    // SAFETY: takes a number; only the calling thread is changed.
    Errno::result(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop).map_err(Error::from)
}
