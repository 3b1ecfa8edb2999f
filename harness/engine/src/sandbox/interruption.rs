//! The early end of all sandboxes of this process, for a command that is interrupted. Knows no signal, and
//! nothing of what runs in a sandbox.
//!
//! Signals belong to the process, so this is a part of the process too: whoever waits for a sandbox, at
//! whatever depth, gets [`SandboxError::Interrupted`] at once.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::socket::{Shutdown, shutdown};

use super::error::SandboxError;
use crate::locks::LockExt;

/// Set once, before any sandbox is ended. A result that was complete before it was set is a result.
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The connections to the sandboxes that exist.
static CONNECTIONS: Mutex<Vec<OpenConnection>> = Mutex::new(Vec::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A duplicate of the socket of one sandbox. Without the connection the sandbox ends.
struct OpenConnection {
    id: u64,
    socket: OwnedFd,
}

/// Keeps a sandbox among those that [`interrupt_sandboxes`] ends. Dropped with the sandbox.
pub(super) struct RegisteredConnection {
    id: u64,
}

impl Drop for RegisteredConnection {
    fn drop(&mut self) {
        CONNECTIONS.locked().retain(|connection| connection.id != self.id);
    }
}

/// Registers the connection of a new sandbox.
///
/// # Errors
/// If the sandboxes have been interrupted, or the descriptor cannot be duplicated.
pub(super) fn register(socket: &OwnedFd) -> Result<RegisteredConnection, SandboxError> {
    let socket = socket.try_clone().map_err(SandboxError::system("duplicate a socket"))?;
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let mut connections = CONNECTIONS.locked();
    // Asked behind the lock: a connection that is added later would be missed.
    if is_interrupted() {
        return Err(SandboxError::Interrupted);
    }
    connections.push(OpenConnection { id, socket });
    Ok(RegisteredConnection { id })
}

/// Ends every sandbox of this process, with all processes in it, and lets no new one be built. Whoever waits
/// for one gets [`SandboxError::Interrupted`]. Returns how many there were. Their directories are removed by
/// their owners, as always.
pub fn interrupt_sandboxes() -> usize {
    let connections = CONNECTIONS.locked();
    IS_INTERRUPTED.store(true, Ordering::SeqCst);
    for connection in connections.iter() {
        // This fails if the sandbox has ended already.
        let _ = shutdown(connection.socket.as_raw_fd(), Shutdown::Both);
    }
    connections.len()
}

/// Whether [`interrupt_sandboxes`] was called. What a sandbox did after that says nothing.
pub fn is_interrupted() -> bool {
    IS_INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails if [`interrupt_sandboxes`] was called: a target may have ended for this reason alone.
///
/// # Errors
/// [`SandboxError::Interrupted`].
pub fn fail_if_interrupted() -> Result<(), SandboxError> {
    if is_interrupted() { Err(SandboxError::Interrupted) } else { Ok(()) }
}
