//! The system calls of the sandbox that need unsafe code, each behind a safe function.

use std::io::Error;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid};

use super::{ProcessExit, SeccompFilter};

/// Takes ownership of a descriptor that a system call has just returned.
pub(super) fn own_fd(raw: RawFd) -> OwnedFd {
    // SAFETY: callers pass a descriptor that the kernel has just created for them, so nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Takes ownership of standard input, which is init's socket.
pub(super) fn own_stdin() -> OwnedFd {
    // SAFETY: called once, at the start of init. Nothing else in that process uses descriptor 0.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Forks. Only for a process that has one thread.
pub(super) fn fork() -> Result<ForkResult, Error> {
    // SAFETY: called only by init's parent, which has one thread, so the child may call any function.
    unsafe { nix::unistd::fork() }.map_err(Error::from)
}

/// Makes the command start in its own session, in the given cgroup, and behind the given filter, whose
/// listener is sent through the socket.
pub(super) fn configure_child(
    command: &mut Command,
    cgroup_procs: Option<PathBuf>,
    filter: Option<(SeccompFilter, OwnedFd)>,
) {
    let prepare_child = move || {
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
    // SAFETY: init has one thread, so no other thread can hold a lock that the child needs to allocate or
    // write.
    unsafe { command.pre_exec(prepare_child) };
}

/// Installs a seccomp filter for the calling thread and its later children. Returns the listener for their
/// calls.
fn install_filter(filter: &SeccompFilter) -> Result<OwnedFd, Error> {
    nix::sys::prctl::set_no_new_privs()?;
    let mut instructions: Vec<libc::sock_filter> =
        filter.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(Error::other)?,
        filter: instructions.as_mut_ptr(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: `program` points to `len` instructions that are live during the call. The kernel copies and
    // checks them.
    let listener =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let listener = Errno::result(listener)?;
    Ok(own_fd(i32::try_from(listener).map_err(Error::other)?))
}

/// Reaps one child. Returns its pid, exit and peak resident bytes, or `None` if no child has ended. Fails
/// with ECHILD if there are no children.
pub(super) fn reap_child(block: bool) -> Result<Option<(Pid, ProcessExit, u64)>, Errno> {
    let mut status = 0;
    let options = if block { 0 } else { libc::WNOHANG };
    // SAFETY: `rusage` consists of integers, for which all zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to a live local `c_int` and a live local `rusage`, which is what wait4 fills.
    let pid = unsafe { libc::wait4(-1, &raw mut status, options, &raw mut usage) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => {
            let exit = if libc::WIFSIGNALED(status) {
                ProcessExit::Signalled(libc::WTERMSIG(status))
            } else {
                ProcessExit::Exited(libc::WEXITSTATUS(status))
            };
            Ok(Some((Pid::from_raw(pid), exit, u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024)))
        }
    }
}

/// Opens a pidfd of a child that has not been reaped yet.
pub(super) fn open_pidfd(pid: u32) -> Result<OwnedFd, Error> {
    // SAFETY: pidfd_open takes two numbers and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    Ok(own_fd(i32::try_from(Errno::result(fd)?).map_err(Error::other)?))
}
