//! Unsafe calls: stops one thread of a process with ptrace.

use nix::errno::Errno;
use nix::libc;

/// Attaches to one thread and stops it. The others go on. It stays stopped as long as this process lives.
pub(crate) fn stop_thread(thread: i32) -> Result<(), Errno> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: both requests take no pointers, and concern another process.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) })?;
    // SAFETY: as the one before.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) })?;
    Ok(())
}
