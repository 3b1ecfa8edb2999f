//! Why a daemon exits with an error, and why a file of the inbox was not accepted.

use std::path::PathBuf;

use nix::errno::Errno;

use crate::durable::{DeferReason, DurableError};
use crate::exit::Exit;
use crate::file_error::FileError;
use crate::model::BaseModelError;
use crate::monitor::ListenError;

/// Why a daemon exits with an error.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon holds the root's lock. `holder` is what that daemon wrote into the lock file.
    #[error(
        "root `{root}` is in use by another daemon ({holder}); stop that daemon first",
        root = .root.display()
    )]
    Locked { root: PathBuf, holder: String },
    /// The daemon of another root holds the lock of the checkpoint directory that the settings name.
    #[error(
        "checkpoint directory `{dir}` is in use by another daemon ({holder}); stop that daemon, or set another \
         `train.checkpoint_dir`",
        dir = .dir.display()
    )]
    CheckpointsLocked { dir: PathBuf, holder: String },
    /// A directory of the root is a link to somewhere else.
    #[error(transparent)]
    Link(DurableError),
    /// A write failed.
    #[error(transparent)]
    Disk(#[from] DurableError),
    /// A directory of the root can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of the inbox can't be accepted, and a guard is off.
    #[error("could not accept `{path}`", path = .path.display())]
    Accept { path: PathBuf, source: AcceptError },
    /// Data files or jobs are left that can't be worked on, and there is nothing else to do.
    #[error("{reason}")]
    Stuck { exit: Exit, reason: String },
    /// The worker process can't be started.
    #[error("could not start a worker: {0}; the job stays in the queue")]
    WorkerStart(#[source] std::io::Error),
    /// The monitor can't listen at its port, and no other one may be used.
    #[error(transparent)]
    Monitor(#[from] ListenError),
    /// A worker exited for a reason that stops the daemon too.
    #[error("{reason}")]
    Stopped { exit: Exit, reason: String },
}

impl DaemonError {
    /// The exit code for this error.
    pub fn exit(&self) -> Exit {
        match self {
            DaemonError::Locked { .. } | DaemonError::CheckpointsLocked { .. } => Exit::Locked,
            DaemonError::Monitor(_) => Exit::PortTaken,
            DaemonError::Link(_) => Exit::Usage,
            DaemonError::Disk(_) => Exit::Disk,
            DaemonError::Stopped { exit, .. } | DaemonError::Stuck { exit, .. } => *exit,
            DaemonError::WorkerStart(_) => Exit::Machine,
            DaemonError::File(_) | DaemonError::Accept { .. } => Exit::Failed,
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
    /// There is no room for its copy, or only for that of another file.
    #[error(transparent)]
    NoRoom(#[from] DeferReason),
    /// It is no data file, and the reason can't be written.
    #[error("the file is rejected, and the reason can't be written")]
    Reject(#[source] DurableError),
    /// The queue has a job of the same content that can't be read.
    #[error("the queue has a job `{id}` of the same content that can't be read; repair or remove it")]
    BrokenJob { id: String, source: std::io::Error },
    /// A newer version has trained the same content.
    #[error("there is a result of the same content that can't be read")]
    OtherResult(#[source] FileError),
    /// It can't be told whether its content is known.
    #[error(transparent)]
    Known(#[from] FileError),
    /// The base model, which is part of the job's id, can't be read.
    #[error(transparent)]
    Base(#[from] BaseModelError),
    /// No thread can be started.
    #[error("no thread can be started")]
    Thread(#[source] std::io::Error),
    /// The file was read, but can't be taken out of the inbox.
    #[error(transparent)]
    Remove(DurableError),
}

impl AcceptError {
    /// Whether the file is no longer in the inbox.
    pub(super) fn is_vanished(&self) -> bool {
        match self {
            AcceptError::Read(error) => error.kind() == std::io::ErrorKind::NotFound,
            AcceptError::Remove(error) => error.is_not_found(),
            AcceptError::Write(_)
            | AcceptError::NoRoom(_)
            | AcceptError::Reject(_)
            | AcceptError::BrokenJob { .. }
            | AcceptError::OtherResult(_)
            | AcceptError::Known(_)
            | AcceptError::Base(_)
            | AcceptError::Thread(_) => false,
        }
    }

    /// The exit code of a drain that ends because this error does not pass.
    pub(super) fn exit(&self) -> Exit {
        match self {
            AcceptError::Base(_) => Exit::BaseModel,
            AcceptError::Write(_) | AcceptError::NoRoom(_) | AcceptError::Known(_) => Exit::Disk,
            AcceptError::Thread(_) => Exit::Machine,
            AcceptError::Read(_) if self.concerns_all_files() => Exit::Machine,
            AcceptError::Read(_)
            | AcceptError::Reject(_)
            | AcceptError::BrokenJob { .. }
            | AcceptError::OtherResult(_)
            | AcceptError::Remove(_) => Exit::JobsFailed,
        }
    }

    /// Whether the next file would meet the same error: it is one of the root or of this process.
    pub(super) fn concerns_all_files(&self) -> bool {
        match self {
            AcceptError::Read(error) => matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
            ),
            AcceptError::Write(_) | AcceptError::Known(_) | AcceptError::Base(_) | AcceptError::Thread(_) => {
                true
            }
            AcceptError::NoRoom(reason) => !matches!(reason, DeferReason::NoSpace { .. }),
            AcceptError::Remove(_)
            | AcceptError::Reject(_)
            | AcceptError::BrokenJob { .. }
            | AcceptError::OtherResult(_) => false,
        }
    }
}
