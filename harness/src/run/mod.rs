//! Steady state -> method -> recovery -> expectations, for one scenario and for many. Emits events; prints nothing.

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

/// The harness could not do its work. What a target does wrong is never an `Err`.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Fault(#[from] FaultError),
    #[error(transparent)]
    Explore(#[from] ExploreError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: std::path::PathBuf, error: std::io::Error },
    #[error("the target's `{step}` command ended with {ending}: {words}")]
    Preparation { step: &'static str, ending: String, words: String },
}
