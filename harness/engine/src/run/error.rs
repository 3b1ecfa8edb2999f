//! Why the harness could not run a scenario, a baseline or a trial.

use crate::explore::ExploreError;
use crate::faults::FaultError;
use crate::file_error::FileError;
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
    /// The target's program was not found or could not be built.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A file operation of the harness itself failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A command that must succeed before the first trial did not.
    #[error("the target's `{command}` command ended with {ending}: {output}")]
    Preparation { command: &'static str, ending: String, output: String },
}
