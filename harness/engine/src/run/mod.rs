//! Runs scenarios: the baseline run, then one trial for each planned fault, then the verdict.
//!
//! The entry is [`run_suite`], with a [`Suite`] and a [`Reporter`](crate::observe::Reporter). Results are
//! emitted as events; this module prints nothing and knows no command-line arguments. Not done: repeating one
//! trial until its outcome is stable.

mod active_fault;
mod baseline;
mod call_injector;
mod crash_state_trials;
mod output_lines;
mod probe;
mod suite;
mod target_run;
mod trial;
mod trial_env;

use crate::explore::ExploreError;
use crate::faults::FaultError;
use crate::sandbox::SandboxError;
use crate::target::ProgramError;

pub use baseline::BaselineCache;
pub use suite::{PreparedScenario, ScenarioResult, Suite, SuiteResult, run_suite};
pub use trial_env::prepared_root;

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
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: std::path::PathBuf, error: std::io::Error },
    /// A command that must succeed before the first trial did not.
    #[error("the target's `{command}` command ended with {ending}: {output}")]
    Preparation { command: &'static str, ending: String, output: String },
}
