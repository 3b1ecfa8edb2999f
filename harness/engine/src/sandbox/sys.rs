//! The system calls of the sandbox that need unsafe code, each behind a safe function.

use std::io::Error;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::ControlMessageOwned;
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

/// Takes ownership of standard input, which is init's socket.
pub(super) fn own_stdin() -> OwnedFd {
    // SAFETY: init calls this once, when it starts. Descriptor 0 is open, because the harness starts init with
    // a socket as its standard input, and nothing else in that process uses it.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Forks. Only for a process that has one thread.
pub(super) fn fork() -> Result<ForkResult, Error> {
    // SAFETY: only init's parent forks in this way, and it has one thread. So no lock is held in the child by
    // a thread that does not exist there, and the child may call any function.
    unsafe { nix::unistd::fork() }.map_err(Error::from)
}

/// Makes the command call `prepare` in the new process, before the program starts. Only for init.
pub(super) fn before_exec(
    command: &mut Command,
    prepare: impl FnMut() -> Result<(), Error> + Send + Sync + 'static,
) {
    // SAFETY: the function runs between fork and exec. Only init starts programs in this way, and init has
    // one thread: no other thread can hold a lock that `prepare` needs to allocate or write.
    unsafe { command.pre_exec(prepare) };
}

/// Installs a seccomp filter for the calling thread and its later children. Returns the listener for their
/// calls.
pub(super) fn install_filter(filter: &SeccompProgram) -> Result<OwnedFd, Error> {
    nix::sys::prctl::set_no_new_privs()?;
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
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: `program` points to `len` instructions that are live during the call. The kernel copies and
    // checks them.
    let listener =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let listener = Errno::result(listener)?;
    Ok(own_fd(i32::try_from(listener).map_err(Error::other)?))
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
