//! The system calls of the gate that need unsafe code, each behind a safe function.

use std::ffi::CStr;
use std::io::{Error, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// Makes `pidfd_open` open a thread: `PIDFD_THREAD` of linux/pidfd.h.
pub(super) const PIDFD_THREAD: i32 = libc::O_EXCL;
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` of linux/seccomp.h.
const SYNCHRONOUS_WAKE_UP: u64 = 1;

/// `ERESTARTNOHAND` of linux/errno.h.
const RESTART_IF_NO_HANDLER: i32 = 514;
/// Bytes of an `itimerspec`.
const TIMER_BYTES: usize = std::mem::size_of::<libc::itimerspec>();

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// The bit of `CAP_FSETID` in the first set.
pub(super) const CAP_FSETID: u32 = 1 << 4;

/// A `__user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// A `__user_cap_data_struct` of linux/capability.h: half of the capabilities.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// A `seccomp_notif`: an intercepted call. `id` identifies it until a response is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Notification {
    pub(super) id: u64,
    pub(super) tid: i32,
    /// An `AUDIT_ARCH_*` value: of which kind of program the call is.
    pub(super) architecture: u32,
    pub(super) number: i64,
    pub(super) args: [u64; 6],
}

/// A `seccomp_notif_resp`: the response to a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotificationResponse {
    /// The kernel performs the call.
    Continue,
    /// The call returns this value.
    Value(i64),
    /// The call fails with this errno.
    Fail(Errno),
    /// A signal waits for the thread: the kernel delivers it, and the call fails with EINTR if a handler runs for it.
    /// Else it is made again.
    Interrupted,
}

/// Takes ownership of a descriptor that a system call returned.
fn owned_fd(result: i64) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: this is private to the file, and each call of it passes what a system call that creates a
    // descriptor has just returned. So the descriptor is open, and nothing else owns it yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes the kernel wake the target and the supervisor on the same core. Needs Linux 6.6; has no effect
/// before.
pub(super) fn set_synchronous_wakeup(listener: BorrowedFd<'_>) {
    // SAFETY: the request takes a plain number and accesses no memory of ours.
    unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNCHRONOUS_WAKE_UP);
    }
}

/// Receives the next notification. Fails with ENOENT if a kill or a signal withdrew it.
pub(super) fn receive_notification(listener: BorrowedFd<'_>) -> Result<Notification, Errno> {
    // SAFETY: `seccomp_notif` consists of integers, for which all zeroes are valid. The kernel requires
    // zeroes.
    let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local `seccomp_notif`, which is what the request fills.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notif) };
    Errno::result(result)?;
    Ok(Notification {
        id: notif.id,
        tid: notif.pid as i32,
        architecture: notif.data.arch,
        number: i64::from(notif.data.nr),
        args: notif.data.args,
    })
}

/// Sends a response. Fails with ENOENT if the call no longer waits for one.
pub(super) fn send_response(
    listener: BorrowedFd<'_>,
    id: u64,
    response: NotificationResponse,
) -> Result<(), Errno> {
    let (val, error, flags) = match response {
        NotificationResponse::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        NotificationResponse::Value(value) => (value, 0, 0),
        NotificationResponse::Fail(errno) => (0, -(errno as i32), 0),
        NotificationResponse::Interrupted => (0, -RESTART_IF_NO_HANDLER, 0),
    };
    let mut raw_response = libc::seccomp_notif_resp { id, val, error, flags };
    // SAFETY: the pointer is to a live local `seccomp_notif_resp`, which is what the request reads.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut raw_response) };
    Errno::result(result).map(drop)
}

/// Installs a copy of `file` in the target and makes its number the result of the call.
pub(super) fn send_fd_response(
    listener: BorrowedFd<'_>,
    id: u64,
    file: BorrowedFd<'_>,
    close_on_exec: bool,
) -> Result<(), Errno> {
    let mut request = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: file.as_raw_fd() as u32,
        newfd: 0,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    // SAFETY: the pointer is to a live local `seccomp_notif_addfd`, which is what the request reads.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut request) };
    Errno::result(result).map(drop)
}

/// Whether the call still waits for a response. Only then does memory read from its thread belong to this
/// call.
pub(super) fn is_notification_valid(listener: BorrowedFd<'_>, id: u64) -> Result<bool, Errno> {
    // SAFETY: the pointer is to a live local `u64`, which is what the request reads.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
    match Errno::result(result) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Copies the target's memory into `bytes`. Returns how many bytes could be read.
pub(super) fn read_memory(tid: i32, address: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the local range is exactly `bytes`, which is live and writable. The kernel checks the remote
    // range.
    let read = unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) };
    Errno::result(read).map(|read| read as usize)
}

/// Copies `bytes` into the target's memory. Returns how many could be written.
pub(super) fn write_memory(tid: i32, address: u64, bytes: &[u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the local range is exactly `bytes`, which is live and only read. The kernel checks the remote
    // range.
    let written = unsafe { libc::process_vm_writev(tid, &raw const local, 1, &raw const remote, 1, 0) };
    Errno::result(written).map(|written| written as usize)
}

/// Opens a pidfd of a process, or with `PIDFD_THREAD` of a thread.
pub(super) fn open_pidfd(id: i32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two numbers, accesses no memory of ours, and returns a new descriptor or an
    // error.
    owned_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) })
}

/// Duplicates a descriptor of the target. The duplicate shares file offset and status flags with the
/// original.
pub(super) fn duplicate_fd(thread: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_getfd takes three numbers, accesses no memory of ours, and returns a new descriptor or an error.
    owned_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, thread.as_raw_fd(), fd, 0) })
}

/// Calls openat2 without `RESOLVE_*` flags.
pub(super) fn openat2(dir: BorrowedFd<'_>, path: &CStr, flags: u64, mode: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: `open_how` consists of integers, for which all zeroes are valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags;
    how.mode = mode;
    let size = std::mem::size_of::<libc::open_how>();
    // SAFETY: `path` is a C string and `how` an `open_how` of `size` bytes; both are live during the call.
    owned_fd(unsafe {
        libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), &raw const how, size)
    })
}

/// Calls statx on a name in a directory, or on the descriptor itself if the name is empty. Does not follow
/// symbolic links.
pub(super) fn statx(dir: BorrowedFd<'_>, name: &CStr) -> Result<libc::statx, Errno> {
    // SAFETY: `libc::statx` consists of integers, for which all zeroes are valid.
    let mut raw_stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    // SAFETY: `name` is a C string, and the pointer is to a live local `libc::statx`, which is what the call
    // fills.
    let result = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut raw_stat) };
    Errno::result(result)?;
    Ok(raw_stat)
}

/// Writes bytes as pwritev2 does. `offset`: `None` for the descriptor's own. Returns how many were written.
pub(super) fn pwritev2(
    fd: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    offset: Option<i64>,
    flags: i32,
) -> Result<usize, Errno> {
    let count = i32::try_from(parts.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: an `IoSlice` is an `iovec`, and all parts are live and only read.
    let written =
        unsafe { libc::pwritev2(fd.as_raw_fd(), parts.as_ptr().cast(), count, offset.unwrap_or(-1), flags) };
    Errno::result(written).map(|written| written as usize)
}

/// Reads bytes as preadv2 does. `offset`: `None` for the descriptor's own. Returns how many were read.
pub(super) fn preadv2(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    offset: Option<i64>,
    flags: i32,
) -> Result<usize, Errno> {
    let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let count = if bytes.is_empty() { 0 } else { 1 };
    // SAFETY: the only part is exactly `bytes`, which is live and writable.
    let read = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, count, offset.unwrap_or(-1), flags) };
    Errno::result(read).map(|read| read as usize)
}

/// Copies bytes between two files as copy_file_range does. Returns how many were copied.
pub(super) fn copy_file_range(
    from: BorrowedFd<'_>,
    mut from_offset: Option<&mut i64>,
    to: BorrowedFd<'_>,
    mut to_offset: Option<&mut i64>,
    len_bytes: usize,
    flags: u32,
) -> Result<usize, Errno> {
    let address = |offset: &mut Option<&mut i64>| {
        offset.as_deref_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut)
    };
    let (from_address, to_address) = (address(&mut from_offset), address(&mut to_offset));
    // SAFETY: each offset is null or the address of an integer that is borrowed for the whole function.
    let copied = unsafe {
        libc::copy_file_range(from.as_raw_fd(), from_address, to.as_raw_fd(), to_address, len_bytes, flags)
    };
    Errno::result(copied).map(|copied| copied as usize)
}

/// Shares a range of another file's blocks, as the FICLONERANGE request of ioctl does.
pub(super) fn clone_range(to: BorrowedFd<'_>, range: &CloneRange) -> Result<(), Errno> {
    // SAFETY: the pointer is to a live `file_clone_range`, which is what the request reads.
    let result = unsafe { libc::ioctl(to.as_raw_fd(), u64::from(super::calls::FICLONERANGE) as _, range) };
    Errno::result(result).map(drop)
}

/// A `file_clone_range` of linux/fs.h. `len_bytes` 0: to the end of the source.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CloneRange {
    pub(super) source_fd: i64,
    pub(super) source_offset: u64,
    pub(super) len_bytes: u64,
    pub(super) offset: u64,
}

/// Creates a file, pipe, socket or device, as mknodat does.
pub(super) fn mknodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32, device: u64) -> Result<(), Errno> {
    // SAFETY: `name` is a C string that is live during the call.
    Errno::result(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device) }).map(drop)
}

/// A soft limit of a process, one of the `RLIMIT_*` constants.
pub(super) fn soft_limit(tid: i32, resource: libc::__rlimit_resource_t) -> Result<u64, Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer for the old limits is to a live local `rlimit64`; no new ones are passed.
    let result = unsafe { libc::prlimit64(tid, resource, std::ptr::null(), &raw mut limit) };
    Errno::result(result).map(|_| limit.rlim_cur)
}

/// Sets a timerfd. Takes and returns an `itimerspec` as bytes: the new values and the old ones.
pub(super) fn set_timer(
    timer: BorrowedFd<'_>,
    flags: i32,
    new: &[u8; TIMER_BYTES],
) -> Result<[u8; TIMER_BYTES], Errno> {
    let mut old = [0; TIMER_BYTES];
    let (new, old_address) = (new.as_ptr(), old.as_mut_ptr());
    // SAFETY: both pointers are to as many live bytes as an `itimerspec` has. The kernel copies bytes, so they need no
    // alignment.
    let result =
        unsafe { libc::syscall(libc::SYS_timerfd_settime, timer.as_raw_fd(), flags, new, old_address) };
    Errno::result(result).map(|_| old)
}

/// Whether a file is on a proc file system.
pub(super) fn is_on_procfs(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    nix::sys::statfs::fstatfs(file).map(|stat| stat.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// Takes `CAP_FSETID` from the calling thread, if it has it.
pub(super) fn drop_fsetid() -> Result<(), Errno> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut sets = [CapabilitySets::default(); 2];
    // SAFETY: the header is live and has the version with two sets, and the kernel fills these two.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    Errno::result(result)?;
    sets[0].effective &= !CAP_FSETID;
    // SAFETY: the header is live and has the version with two sets, and the kernel reads these two. Fewer
    // capabilities of this thread allow nothing new.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Sets the supplementary groups of the calling thread. The function of the C library would set those of all threads.
pub(super) fn set_thread_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the pointer is to `groups.len()` group ids, which the kernel reads. Groups change no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Gives the calling thread its own umask and working directory.
pub(super) fn unshare_fs() -> Result<(), Error> {
    // SAFETY: unshare takes a number and accesses no memory. CLONE_FS changes only the calling thread.
    Errno::result(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop).map_err(Error::from)
}
