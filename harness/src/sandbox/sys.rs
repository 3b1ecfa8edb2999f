//! The calls that the compiler can't check, each behind a safe face.

use std::io::Error;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid};

use super::{ProcessExit, SeccompFilter};

/// Takes over a descriptor that has just been received.
pub(super) fn own_fd(raw: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us in `recvmsg`; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Takes over standard input as a socket.
pub(super) fn own_stdin() -> OwnedFd {
    // SAFETY: called once, first thing in a warden, whose standard input was made for it and is read by nobody else.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Forks a process that has only one thread.
pub(super) fn fork() -> Result<ForkResult, Error> {
    // SAFETY: only called by a warden before it has started any thread, so the child may do what it likes.
    unsafe { nix::unistd::fork() }.map_err(Error::from)
}

/// Puts the command into a session of its own, and into a cgroup if one is named, and behind a filter if one is given:
/// its listener goes out through the socket.
pub(super) fn configure_child(
    command: &mut Command,
    cgroup_procs: Option<PathBuf>,
    filter: Option<(SeccompFilter, OwnedFd)>,
) {
    let prepare = move || {
        nix::unistd::setsid()?;
        if let Some(procs) = &cgroup_procs {
            std::fs::write(procs, "0")?;
        }
        match &filter {
            Some((filter, socket)) => {
                let listener = install_filter(filter)?;
                super::protocol::send_fd(socket.as_fd(), listener.as_fd())
            }
            None => Ok(()),
        }
    };
    // SAFETY: the warden has one thread, so no lock can be held by another one when the child allocates or writes.
    unsafe { command.pre_exec(prepare) };
}

/// Lays a filter over this thread and all that come from it; whoever reads the listener decides over their calls.
fn install_filter(filter: &SeccompFilter) -> Result<OwnedFd, Error> {
    nix::sys::prctl::set_no_new_privs()?;
    let mut program: Vec<libc::sock_filter> =
        filter.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(Error::other)?,
        filter: program.as_mut_ptr(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: the program is live for the whole call, its length is right, and the kernel copies and checks it.
    let listener =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let listener = Errno::result(listener)?;
    Ok(own_fd(i32::try_from(listener).map_err(Error::other)?))
}

/// Reaps one child. `None`: there are some, but none has ended. ECHILD: there is none.
pub(super) fn reap_child(block: bool) -> Result<Option<(Pid, ProcessExit, u64)>, Errno> {
    let mut status = 0;
    let options = if block { 0 } else { libc::WNOHANG };
    // SAFETY: all zeroes are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live local values of the right types.
    let pid = unsafe { libc::wait4(-1, &raw mut status, options, &raw mut usage) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => {
            let ended = if libc::WIFSIGNALED(status) {
                ProcessExit::Signalled(libc::WTERMSIG(status))
            } else {
                ProcessExit::Exited(libc::WEXITSTATUS(status))
            };
            Ok(Some((Pid::from_raw(pid), ended, u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024)))
        }
    }
}

/// A handle on a child that has not been waited for.
pub(super) fn open_pidfd(pid: u32) -> Result<OwnedFd, Error> {
    // SAFETY: takes two numbers and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    Ok(own_fd(i32::try_from(Errno::result(fd)?).map_err(Error::other)?))
}
