//! The calls that the compiler can't check, each behind a safe face.

use std::io::Error;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

use super::Ended;

/// Takes over a descriptor that has just been received.
pub(super) fn own(raw: RawFd) -> OwnedFd {
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

/// Puts the command into a session of its own, and into a cgroup if one is named.
pub(super) fn detached(command: &mut Command, cgroup_procs: Option<PathBuf>) {
    let prepare = move || {
        nix::unistd::setsid()?;
        match &cgroup_procs {
            Some(procs) => std::fs::write(procs, "0"),
            None => Ok(()),
        }
    };
    // SAFETY: the warden has one thread, so no lock can be held by another one when the child allocates or writes.
    unsafe { command.pre_exec(prepare) };
}

/// Reaps one child. `None`: there are some, but none has ended. ECHILD: there is none.
pub(super) fn reap(block: bool) -> Result<Option<(Pid, Ended, u64)>, Errno> {
    let mut status = 0;
    let options = if block { 0 } else { nix::libc::WNOHANG };
    // SAFETY: all zeroes are a valid `rusage`.
    let mut usage: nix::libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live local values of the right types.
    let pid = unsafe { nix::libc::wait4(-1, &raw mut status, options, &raw mut usage) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => {
            let ended = if nix::libc::WIFSIGNALED(status) {
                Ended::Signalled(nix::libc::WTERMSIG(status))
            } else {
                Ended::Exited(nix::libc::WEXITSTATUS(status))
            };
            Ok(Some((Pid::from_raw(pid), ended, u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024)))
        }
    }
}
