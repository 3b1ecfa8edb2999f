//! Steady state -> method -> recovery -> expectations, for one scenario and for many. Emits events; prints nothing.

mod file_events;
mod lines;
mod live;
mod probe;
mod stage;
mod steady;
mod suite;
mod trial;

use crate::faults::FaultError;
use crate::sandbox::SandboxError;
use crate::target::ProgramError;

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
    Program(#[from] ProgramError),
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: std::path::PathBuf, error: std::io::Error },
    #[error("could not watch `{path}` for file events: {error}; raise fs.inotify.max_user_watches or max_user_instances", path = .path.display())]
    Watch { path: std::path::PathBuf, error: nix::Error },
    #[error("the target's `{step}` command ended with {ending}: {words}")]
    Preparation { step: &'static str, ending: String, words: String },
}
