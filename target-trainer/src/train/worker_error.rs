//! Why a worker exits before the job is done, and with which exit code.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::engine::{NonFinite, ParityMismatch, RestoreError, SampleReadError, StepError};
use crate::device::DeviceError;
use crate::exit::Exit;
use crate::intake::DataError;
use crate::model::{AdapterMismatch, BaseModelError};
use crate::store::{ResumeError, SaveError, TensorError};

/// Why a worker exits before the job is done. [`WorkerError::exit`] gives the exit code.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    /// The base model can't be read.
    #[error(transparent)]
    Base(#[from] BaseModelError),
    /// The base model is not the one of the job. Both are digests.
    #[error(
        "the job was accepted with base {accepted}, and this root's base is {found}; restore the original \
         base model, or move the job out of the queue"
    )]
    OtherBase { accepted: String, found: String },
    /// The job's data can't be opened.
    #[error("`{path}`", path = .path.display())]
    OpenData { path: PathBuf, source: std::io::Error },
    /// The job's data can't be read.
    #[error("`{path}` could not be read", path = .path.display())]
    ReadData { path: PathBuf, source: std::io::Error },
    /// The job's data is not valid.
    #[error("`{path}`", path = .path.display())]
    Data { path: PathBuf, source: DataError },
    /// The id is made from the data, so other data under this id must not be trained on.
    #[error("`{path}`: changed since it was accepted; submit the data again", path = .path.display())]
    DataChanged { path: PathBuf },
    /// A sample can't be read when it is trained on.
    #[error(transparent)]
    Samples(SampleReadError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The thread that saves can't be started.
    #[error("could not start the saver thread")]
    SaverThread(#[source] std::io::Error),
    /// The thread that saves has ended, so that no save would ever be made.
    #[error("the saver thread has ended")]
    SaverEnded,
    /// All steps are done, and the adapter is the one of the start.
    #[error(
        "nothing was learned in {steps} steps with {updates} updates; check the data, its weights and \
         `recipe.context`"
    )]
    NothingLearned { steps: u64, updates: u64 },
    /// All steps are done, and the adapter is of no use.
    #[error("tensor `{name}` of the adapter has values that are not finite; lower `recipe.learning_rate`")]
    AdapterNotFinite { name: String },
    /// There are checkpoints, and none can be resumed from.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// The job was saved, and nothing of that is left.
    #[error(
        "steps of this job were saved, and `{dir}` has no checkpoint, and there is no snapshot; nothing was \
         deleted; restore the directory and move the job from failed/ to queue/processing/, or submit the \
         data again to start at step 0",
        dir = .dir.display()
    )]
    CheckpointsLost { dir: PathBuf },
    /// The newest valid checkpoint does not fit the model.
    #[error(transparent)]
    Restore(#[from] AdapterMismatch),
    /// The GPU computes other results than the CPU.
    #[error("the GPU disagrees with the CPU: {0}")]
    Parity(ParityMismatch),
    /// The GPU has gone wrong too often.
    #[error("the GPU has {fault} {count} times")]
    GpuFaults { fault: GpuFault, count: usize },
    /// The memory of the machine has gone wrong too often.
    #[error("the frozen weights have changed {count} times in the memory of this machine; test its memory")]
    MemoryFaults { count: usize },
    /// A step was not finite, and the settings do not allow to skip it.
    #[error("step {step}: non-finite {part} (loss {loss}); {count} such steps, {budget} are allowed")]
    NonFinite { step: u64, part: NonFinite, loss: f32, count: usize, budget: usize },
    /// A signal requested a stop. Holds the step of the last save.
    #[error("stopped by a signal; saved step {0}")]
    Interrupted(u64),
    /// The file system is read-only, and the guard `read_only_wait` is off.
    #[error(transparent)]
    ReadOnly(SaveError),
    /// The last step could not be saved in time.
    #[error("could not save step {0}, the last step")]
    LastSave(u64),
    /// The finished adapter can't be encoded.
    #[error(transparent)]
    ResultTensors(#[from] TensorError),
    /// The finished adapter can't be written.
    #[error("the result can't be written")]
    ResultFiles(#[from] SaveError),
}

/// What a GPU may do wrong a few times before the worker gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GpuFault {
    /// It computed one batch twice, and the results differ.
    ResultsDiffer,
    /// The frozen weights in its memory have changed.
    WeightsChanged,
}

impl std::fmt::Display for GpuFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GpuFault::ResultsDiffer => "computed one batch twice and got different results",
            GpuFault::WeightsChanged => "changed frozen weights",
        })
    }
}

impl WorkerError {
    /// Whether another attempt may succeed: the data is there, but the machine does not let it be read.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            WorkerError::OpenData { source, .. } => {
                !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::InvalidData)
            }
            WorkerError::ReadData { .. } => true,
            _ => false,
        }
    }

    /// The exit code for this error.
    pub(super) fn exit(&self) -> Exit {
        match self {
            WorkerError::Base(_) | WorkerError::OtherBase { .. } => Exit::BaseModel,
            error @ (WorkerError::OpenData { .. } | WorkerError::ReadData { .. }) if error.may_pass() => {
                Exit::Machine
            }
            WorkerError::SaverThread(_) | WorkerError::Samples(SampleReadError::Read(_)) => Exit::Machine,
            WorkerError::OpenData { .. }
            | WorkerError::ReadData { .. }
            | WorkerError::Data { .. }
            | WorkerError::DataChanged { .. }
            | WorkerError::Samples(SampleReadError::Changed)
            | WorkerError::SaverEnded => Exit::Failed,
            WorkerError::Device(error) => device_exit(error),
            WorkerError::Resume(ResumeError::NoneValid(_))
            | WorkerError::CheckpointsLost { .. }
            | WorkerError::Restore(_) => Exit::NoValidCheckpoint,
            WorkerError::Resume(
                ResumeError::Machine { .. } | ResumeError::List(_) | ResumeError::NoneReadable { .. },
            ) => Exit::Machine,
            WorkerError::Resume(ResumeError::NewerFormat { .. }) => Exit::NewerFormat,
            WorkerError::Resume(ResumeError::OtherBase { .. } | ResumeError::OtherRecipe) => Exit::BaseModel,
            WorkerError::Parity(_) | WorkerError::GpuFaults { .. } => Exit::GpuWrongResult,
            WorkerError::MemoryFaults { .. } => Exit::Machine,
            WorkerError::NonFinite { .. }
            | WorkerError::AdapterNotFinite { .. }
            | WorkerError::NothingLearned { .. } => Exit::NonFinite,
            WorkerError::Interrupted(_) => Exit::Interrupted,
            WorkerError::ReadOnly(_)
            | WorkerError::LastSave(_)
            | WorkerError::ResultTensors(_)
            | WorkerError::ResultFiles(_) => Exit::Disk,
        }
    }
}

fn device_exit(error: &DeviceError) -> Exit {
    match error {
        DeviceError::Unavailable { code: Some(_), .. } => Exit::GpuMissing,
        DeviceError::Unavailable { code: None, .. } | DeviceError::Incompatible { .. } => {
            Exit::GpuUnsupported
        }
        DeviceError::ContextLost { .. }
        | DeviceError::OutOfMemory { .. }
        | DeviceError::CallFailed { .. } => Exit::GpuFailed,
    }
}

impl From<StepError> for WorkerError {
    fn from(error: StepError) -> WorkerError {
        match error {
            StepError::Device(error) => WorkerError::Device(error),
            StepError::Samples(error) => WorkerError::Samples(error),
        }
    }
}

impl From<RestoreError> for WorkerError {
    fn from(error: RestoreError) -> WorkerError {
        match error {
            RestoreError::ShapeMismatch(error) => WorkerError::Restore(error),
            RestoreError::Device(error) => WorkerError::Device(error),
        }
    }
}
