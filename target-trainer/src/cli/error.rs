//! Why a command fails, and with which exit code.

use std::path::PathBuf;

use crate::consolidate::ConsolidateError;
use crate::daemon::DaemonError;
use crate::device::DeviceError;
use crate::durable::DurableError;
use crate::exit::Exit;
use crate::intake::LineProblem;
use crate::make_data::TextError;
use crate::model::BaseModelError;
use crate::settings::SettingsError;
use crate::store::{SaveError, TensorError};
use crate::submission::SubmissionError;
use crate::train::StepError;

/// Why a command fails. [`CliError::exit`] gives the exit code.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The settings of the root, or a change of them, are not valid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// `init` never overwrites a root.
    #[error("`{root}` is already a trainer root; choose another directory", root = .root.display())]
    AlreadyRoot { root: PathBuf },
    /// The file to submit has no name that can be printed.
    #[error("`{path}`: the file's name is not UTF-8", path = .path.display())]
    NameNotUtf8 { path: PathBuf },
    /// The data does not get into the inbox.
    #[error(transparent)]
    Submission(#[from] SubmissionError),
    /// The file to submit can't be opened.
    #[error("`{path}`", path = .path.display())]
    OpenSubmitted { path: PathBuf, source: std::io::Error },
    /// The file to submit is not complete.
    #[error("`{path}` is still being written; submit it again when its writer is done", path = .path.display())]
    StillWritten { path: PathBuf },
    /// The file to submit can't be read.
    #[error(transparent)]
    ReadSubmitted(std::io::Error),
    /// A write failed.
    #[error(transparent)]
    Disk(#[from] DurableError),
    /// The adapter can't be merged.
    #[error(transparent)]
    Consolidate(#[from] ConsolidateError),
    /// The random base model can't be encoded.
    #[error(transparent)]
    Preset(TensorError),
    /// The base model can't be read.
    #[error(transparent)]
    Base(#[from] BaseModelError),
    /// There is no status file.
    #[error("`{path}`: {source}; `target-trainer daemon` writes it", path = .path.display())]
    Status { path: PathBuf, source: std::io::Error },
    /// A stop signal can't be handled.
    #[error(transparent)]
    Signal(std::io::Error),
    /// The worker can't ask the kernel to end with its daemon.
    #[error(transparent)]
    ParentDeath(#[from] nix::errno::Errno),
    /// The daemon exited while it started this worker.
    #[error("the daemon has exited; start it again")]
    DaemonGone,
    /// The threads that compute can't be started.
    #[error("no thread can be started; raise the limit on threads or processes")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The thread that reports heartbeats can't be started.
    #[error("no thread can be started; raise the limit on threads or processes")]
    HeartbeatThread(#[source] std::io::Error),
    /// The daemon has not passed its settings on, because it exited.
    #[error("the daemon's settings can't be read")]
    WorkerSettings(#[source] std::io::Error),
    /// The daemon failed, or another one uses the root.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The directory has no texts.
    #[error(transparent)]
    Text(#[from] TextError),
    /// `bench` measures the device that it is told.
    #[error("`bench` needs a device: `--device cpu` or `--device cuda:N`")]
    BenchDevice,
    /// `bench` can't make samples of this size.
    #[error("{0}")]
    BenchSample(LineProblem),
    /// The device that `bench` measures failed.
    #[error(transparent)]
    BenchDeviceFailed(#[from] DeviceError),
    /// A step of `bench` failed.
    #[error(transparent)]
    BenchStep(#[from] StepError),
    /// `bench` could not save a checkpoint.
    #[error(transparent)]
    BenchSave(#[from] SaveError),
    /// `bench` could not start the thread that saves.
    #[error("could not start the saver thread")]
    SaverThread(#[source] std::io::Error),
    /// The thread that saves has ended.
    #[error("the saver thread has ended")]
    SaverEnded,
}

impl CliError {
    /// The exit code for this error.
    pub(super) fn exit(&self) -> Exit {
        match self {
            CliError::Settings(_)
            | CliError::AlreadyRoot { .. }
            | CliError::NameNotUtf8 { .. }
            | CliError::Submission(SubmissionError::Name { .. })
            | CliError::OpenSubmitted { .. }
            | CliError::StillWritten { .. }
            | CliError::BenchDevice
            | CliError::BenchSample(_) => Exit::Usage,
            CliError::ReadSubmitted(_)
            | CliError::Submission(SubmissionError::Read(_))
            | CliError::Status { .. }
            | CliError::Signal(_)
            | CliError::ParentDeath(_)
            | CliError::DaemonGone
            | CliError::WorkerSettings(_)
            | CliError::Text(_)
            | CliError::SaverThread(_)
            | CliError::SaverEnded => Exit::Failed,
            CliError::Consolidate(error) => error.exit(),
            CliError::Threads(_) | CliError::HeartbeatThread(_) => Exit::Machine,
            CliError::Disk(_) | CliError::Submission(SubmissionError::Disk(_)) | CliError::BenchSave(_) => {
                Exit::Disk
            }
            CliError::Preset(_) | CliError::Base(_) => Exit::BaseModel,
            CliError::Daemon(error) => error.exit(),
            CliError::BenchStep(_) | CliError::BenchDeviceFailed(_) => Exit::GpuFailed,
        }
    }
}
