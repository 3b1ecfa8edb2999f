//! Why a daemon exits with an error, and why a file of the inbox was not accepted.

use std::path::PathBuf;

use crate::durable::DurableError;
use crate::exit::Exit;
use crate::file_error::FileError;

/// Why a daemon exits with an error.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon holds the root's lock. `holder` is what that daemon wrote into the lock file.
    #[error(
        "root `{root}` is in use by another daemon ({holder}); stop that daemon first",
        root = .root.display()
    )]
    Locked { root: PathBuf, holder: String },
    /// A write failed.
    #[error(transparent)]
    Disk(#[from] DurableError),
    /// A directory of the root can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of the inbox can't be accepted.
    #[error("could not read `{path}`", path = .path.display())]
    Accept { path: PathBuf, source: AcceptError },
    /// The worker process can't be started.
    #[error("could not start a worker: {0}; the job stays in the queue")]
    WorkerStart(#[source] std::io::Error),
    /// A worker exited for a reason that stops the daemon too.
    #[error("{reason}")]
    Stopped { exit: Exit, reason: String },
}

impl DaemonError {
    /// The exit code for this error.
    pub fn exit(&self) -> Exit {
        match self {
            DaemonError::Locked { .. } => Exit::Locked,
            DaemonError::Disk(_) => Exit::Disk,
            DaemonError::Stopped { exit, .. } => *exit,
            DaemonError::File(_) | DaemonError::Accept { .. } | DaemonError::WorkerStart(_) => Exit::Failed,
        }
    }
}

/// Why a file of the inbox could neither be accepted nor rejected.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The file can't be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// Its copy, or the reason of its rejection, can't be written.
    #[error(transparent)]
    Write(#[from] DurableError),
}

impl AcceptError {
    /// Whether the file is no longer in the inbox.
    pub(super) fn is_vanished(&self) -> bool {
        matches!(self, AcceptError::Read(error) if error.kind() == std::io::ErrorKind::NotFound)
    }
}
