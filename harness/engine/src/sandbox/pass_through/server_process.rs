//! The process that serves a pass-through file system: a child of the harness, outside of the sandbox's pids, so that
//! nothing in the sandbox ends it. It ends when the file system is no longer mounted, or when the harness has closed
//! its socket.
//!
//! The harness does not serve it in a thread of its own: a thread that waits for a file of the file system could then
//! not end when the harness is killed, because the kernel waits for the answer.

use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};

use super::file_system::FileSystem;
use super::handles::Handles;
use super::inodes::Inodes;
use super::traits::{FileSystemTraits, GivenTimes};
use crate::sandbox::packet::{Packet, receive_message, send_message};
use crate::sandbox::sys;

/// What the harness asks the process for. Attached: the opened FUSE device, the directory below, and the sandbox's user
/// namespace.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServeRequest {
    pub(super) traits: FileSystemTraits,
}

/// What the process says to the harness.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ServerMessage {
    /// It answers requests.
    Ready,
    /// It cannot.
    Failed(String),
    /// A process of the target met a trait of the file system.
    Met(String),
}

/// Messages about what the target met. Later ones say nothing new, and the harness may not read for a while.
const MAX_EVIDENCE: usize = 16;

/// Entry point of the process. Never returns.
pub(in crate::sandbox) fn main() -> ! {
    let closed = sys::close_inherited_fds();
    let socket = Arc::new(sys::own_stdin());
    let served = closed.map_err(Error::from).and_then(|()| serve(&socket));
    if let Err(error) = &served {
        // This fails if the harness has ended; then nothing needs to be reported.
        let _ = send_message(socket.as_fd(), &ServerMessage::Failed(error.to_string()), &[]);
    }
    std::process::exit(i32::from(served.is_err()))
}

/// Serves until the file system is no longer mounted.
fn serve(socket: &Arc<OwnedFd>) -> Result<(), Error> {
    let Some(Packet::<ServeRequest> { message, fds }) = receive_message(socket.as_fd())? else {
        return Ok(());
    };
    let fds: Result<[OwnedFd; 3], _> = fds.try_into();
    let [device, directory, users] = fds.map_err(|_| Error::other("a descriptor is missing"))?;
    // What it may do with files is what root of the sandbox may do.
    setns(&users, CloneFlags::CLONE_NEWUSER)?;
    // The kernel has applied the mask of whoever makes a file.
    umask(Mode::empty());
    // One descriptor for each file that the kernel knows.
    let (_, max) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, max, max)?;
    let file_system = FileSystem {
        traits: message.traits,
        inodes: Inodes::below(directory)?,
        handles: Handles::default(),
        given_times: GivenTimes::default(),
        on_evidence: evidence_sender(socket),
    };
    let session = Session::from_fd(file_system, device, SessionACL::All, Config::default())?;
    send_message(socket.as_fd(), &ServerMessage::Ready, &[])?;
    let harness = Arc::clone(socket);
    std::thread::spawn(move || {
        // The harness sends nothing more: the message is its end.
        let _ = receive_message::<ServeRequest>(harness.as_fd());
        std::process::exit(0)
    });
    session.run()
}

fn evidence_sender(socket: &Arc<OwnedFd>) -> Box<dyn Fn(String) + Send + Sync> {
    let (socket, sent) = (Arc::clone(socket), std::sync::atomic::AtomicUsize::new(0));
    Box::new(move |text| {
        if sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < MAX_EVIDENCE {
            // Without a harness nobody asks.
            let _ = send_message(socket.as_fd(), &ServerMessage::Met(text), &[]);
        }
    })
}
