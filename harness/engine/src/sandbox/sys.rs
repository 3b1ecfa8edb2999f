//! The system calls of the sandbox that need unsafe code, each behind a safe function.

use std::ffi::CString;
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{AddressFamily, ControlMessageOwned, SockFlag, SockType, socket};
use nix::unistd::{ForkResult, Pid};

use super::protocol::ProcessExit;
use crate::seccomp::{SeccompInstruction, SeccompProgram};

/// The pid with which waitpid waits for any child.
const ANY_CHILD: i32 = -1;

/// Takes ownership of a descriptor that a system call has just returned.
fn own_fd(raw: RawFd) -> OwnedFd {
    // SAFETY: this is private to the file, and each call of it passes a descriptor that the kernel has just
    // created for this process. So the descriptor is open, and nothing else owns it yet.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// The descriptors attached to a packet that has just been received.
pub(super) fn received_fds(message: ControlMessageOwned) -> Vec<OwnedFd> {
    match message {
        // The kernel has created them for this message, which is used up here.
        ControlMessageOwned::ScmRights(fds) => fds.into_iter().map(own_fd).collect(),
        _ => Vec::new(),
    }
}

nix::ioctl_read_bad!(
    /// Puts the number of bytes that wait in a pipe into the integer.
    read_waiting_bytes,
    libc::FIONREAD,
    libc::c_int
);

/// How many bytes wait in a pipe. `output` must be open, otherwise the kernel reports EBADF.
pub(super) fn bytes_to_read(output: RawFd) -> Result<i32, Errno> {
    let mut waiting = 0;
    // SAFETY: the request writes one integer, which lives until the call returns.
    unsafe { read_waiting_bytes(output, &mut waiting) }?;
    Ok(waiting)
}

/// Closes every descriptor above standard error. Those that the harness has inherited from its own parent
/// would lead a target out of the sandbox. Only for init, before it opens any.
pub(super) fn close_inherited_fds() -> Result<(), Errno> {
    // SAFETY: init calls this first, when it owns no descriptor but its standard ones. The call accesses no
    // memory of ours.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    Errno::result(closed).map(drop)
}

/// Gives this process an empty session keyring in place of the one that it has inherited. Where the kernel has
/// no keyrings, or does not permit more of them, the process keeps what it has.
pub(super) fn leave_session_keyring() -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: libc::c_ulong = 1;
    // SAFETY: this operation takes the name of a keyring, where a null pointer stands for a new one without a
    // name, and accesses no memory of ours.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    match Errno::result(joined) {
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EDQUOT | Errno::EACCES) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets a write beyond the limit on the size of files fail, instead of ending this process. Programs that it
/// starts get the usual behaviour again.
pub(super) fn survive_file_size_limit() -> Result<(), Errno> {
    extern "C" fn do_nothing(_signal: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, so it may interrupt anything.
    unsafe { sigaction(Signal::SIGXFSZ, &action) }.map(drop)
}

/// Gives the signals that this process ignores because its parent did, as `nohup` and shells in the background do,
/// their usual effect on the programs that it starts. Only for pid 1, which they cannot end.
pub(super) fn restore_ignored_signals() -> Result<(), Errno> {
    // SIGPIPE is ignored by every Rust program, and given back to those that it starts. The other three cannot be
    // changed, or are set elsewhere.
    let kept = [Signal::SIGPIPE, Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGXFSZ];
    let usual = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|signal| !kept.contains(signal)) {
        // SAFETY: neither action runs code of ours that was not installed before.
        let before = unsafe { sigaction(signal, &usual) }?;
        if !matches!(before.handler(), SigHandler::SigIgn) {
            // SAFETY: this is the action that the signal had.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    Ok(())
}

/// Takes a capability from every program that this process starts from now on. The process itself keeps it.
pub(super) fn deny_to_programs(capability: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: this request takes a number, and accesses no memory of ours.
    let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability) };
    Errno::result(dropped).map(drop)
}

/// Takes ownership of standard input, which is init's socket.
pub(super) fn own_stdin() -> OwnedFd {
    // SAFETY: init, or what serves a file system, calls this once, when it starts. Descriptor 0 is open, because the
    // harness starts both with a socket as their standard input, and nothing else in that process uses it.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Forks. Only for a process that has one thread.
pub(super) fn fork() -> Result<ForkResult, Error> {
    // SAFETY: only init's parent forks in this way, and it has one thread. So no lock is held in the child by
    // a thread that does not exist there, and the child may call any function.
    unsafe { nix::unistd::fork() }.map_err(Error::from)
}

/// Makes the command call `prepare` in the new process, before the program starts, which then has no signal blocked,
/// although init has. Only for init.
pub(super) fn before_exec(
    command: &mut Command,
    mut prepare: impl FnMut() -> Result<(), Error> + Send + Sync + 'static,
) {
    let prepare = move || {
        SigSet::empty().thread_set_mask()?;
        prepare()
    };
    // SAFETY: the function runs between fork and exec. Only init starts programs in this way, and init has
    // one thread: no other thread can hold a lock that `prepare` needs to allocate or write.
    unsafe { command.pre_exec(prepare) };
}

/// Installs a seccomp filter for the calling thread and its later children. Returns the listener for their
/// calls.
pub(super) fn install_filter(filter: &SeccompProgram) -> Result<OwnedFd, Error> {
    nix::sys::prctl::set_no_new_privs()?;
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    Ok(own_fd(add_filter(filter, flags)?))
}

/// Installs a seccomp filter without a listener for the calling thread and its later children, whose privileges
/// stay as they are. Needs `CAP_SYS_ADMIN`, which init has.
pub(super) fn install_quiet_filter(filter: &SeccompProgram) -> Result<(), Error> {
    // The filter is no protection from the program itself, so the kernel need not slow it down.
    add_filter(filter, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW).map(drop)
}

/// Adds a seccomp filter. Returns what the call returns: with a listener, its descriptor.
fn add_filter(filter: &SeccompProgram, flags: libc::c_ulong) -> Result<RawFd, Error> {
    let raw_instruction = |instruction: &SeccompInstruction| libc::sock_filter {
        code: instruction.code,
        jt: instruction.jump_if_true,
        jf: instruction.jump_if_false,
        k: instruction.operand,
    };
    let mut instructions: Vec<libc::sock_filter> = filter.iter().map(raw_instruction).collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(Error::other)?,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: `program` points to `len` instructions that are live during the call. The kernel copies and
    // checks them.
    let added =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    i32::try_from(Errno::result(added)?).map_err(Error::other)
}

/// A child that has ended and was reaped.
pub(super) struct ReapedChild {
    pub(super) pid: Pid,
    pub(super) exit: ProcessExit,
}

/// Reaps one child. Returns `None` if no child has ended. Fails with ECHILD if there are no children.
pub(super) fn reap_child(block: bool) -> Result<Option<ReapedChild>, Errno> {
    let mut status = 0;
    let options = if block { 0 } else { libc::WNOHANG };
    // SAFETY: the pointer is to a live local `c_int`, which is what waitpid fills.
    let pid = unsafe { libc::waitpid(ANY_CHILD, &raw mut status, options) };
    Ok(match Errno::result(pid)? {
        0 => None,
        pid => Some(ReapedChild { pid: Pid::from_raw(pid), exit: ProcessExit::from_wait_status(status) }),
    })
}

/// Opens a pidfd of a child that has not been reaped yet.
pub(super) fn open_pidfd(pid: u32) -> Result<OwnedFd, Error> {
    // SAFETY: pidfd_open takes two numbers, accesses no memory of ours, and returns a new descriptor or an
    // error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    Ok(own_fd(i32::try_from(Errno::result(fd)?).map_err(Error::other)?))
}

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
    Ok(own_fd(fd))
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

/// Brings up the loopback interface of this process's network namespace.
pub(super) fn bring_up_loopback() -> Result<(), Errno> {
    let any_socket: OwnedFd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: `request` is a whole `ifreq` with a NUL-terminated name, which is what this request reads, and
    // it is live during the call.
    let changed = unsafe { libc::ioctl(any_socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(changed).map(drop)
}

/// The number of a resource, one of the `RLIMIT_*` constants.
pub(super) type ResourceNumber = libc::__rlimit_resource_t;

/// The soft and the hard limit of a process. `pid` 0: the process that calls this.
pub(super) fn resource_limit(pid: libc::pid_t, resource: ResourceNumber) -> Result<(u64, u64), Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer for the old limits is to a live local `rlimit64`; no new ones are passed.
    let result = unsafe { libc::prlimit64(pid, resource, std::ptr::null(), &raw mut limit) };
    Errno::result(result).map(|_| (limit.rlim_cur, limit.rlim_max))
}

/// Sets the limits of a process. `pid` 0: the process that calls this.
pub(super) fn set_resource_limit(
    pid: libc::pid_t,
    resource: ResourceNumber,
    soft: u64,
    hard: u64,
) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the pointer for the new limits is to a live local `rlimit64`; the old ones are not asked for.
    let result = unsafe { libc::prlimit64(pid, resource, &raw const limit, std::ptr::null_mut()) };
    Errno::result(result).map(drop)
}
