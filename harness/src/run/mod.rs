//! Steady state -> method -> recovery -> expectations, for one scenario and for many. Emits events; prints nothing.

mod crash_states;
mod lines;
mod live;
mod probe;
mod sentry;
mod stage;
mod standing;
mod steady;
mod suite;
mod trial;

use crate::explore::ExploreError;
use crate::faults::FaultError;
use crate::sandbox::SandboxError;
use crate::target::ProgramError;

pub use stage::prepared_root;
pub use steady::SteadyCache;
pub use suite::{Cast, ScenarioEnd, Suite, SuiteEnd, run_suite};

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
