//! Why the harness could not run a scenario, a baseline or a trial.

use scenarios::FailedRun;

use crate::explore::ExploreError;
use crate::faults::FaultError;
use crate::file_error::FileError;
use crate::gate::GateFailure;
use crate::sandbox::SandboxError;
use crate::target::ProgramError;

/// Why the harness could not do its work. A target that fails is an outcome, never an `Err`.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A fault could not be injected or reverted.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// The recording of a run failed.
    #[error(transparent)]
    Explore(#[from] ExploreError),
    /// A call of the target could not be followed, so that it is not known what the run did.
    #[error("a call of the target could not be followed")]
    NotFollowed(#[source] GateFailure),
    /// What a program of the target prints could not be read.
    #[error("could not read what the target prints")]
    Output(#[source] std::io::Error),
    /// The target's program was not found or could not be built.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A file operation of the harness itself failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A run without any fault did not end well. The scenario is inconclusive; the harness did its work.
    #[error("{0}")]
    TargetFailed(Box<FailedRun>),
    /// The baseline run, which several scenarios share, could not be made. One of them has the error itself.
    #[error("the baseline run, which was run once for several scenarios, failed: {reason}")]
    SharedBaseline { reason: String },
}
