//! What the recoveries of one exploration have in common.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::python_fork_server::ImportNotes;
use crate::sandbox::{HostAccess, LaunchSpec};

/// Whether the recoveries of a Python program are forked from an interpreter that has imported modules once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarmStart {
    /// Each recovery is a new process.
    Never,
    /// From an interpreter that has imported these modules.
    Modules(Vec<String>),
    /// From one that has imported the libraries that a first recovery imports, if recoveries take long.
    Automatic,
    /// From one that has imported what a recovery has noted.
    Noted(ImportNotes),
}

impl WarmStart {
    /// What the options choose: the modules of `--warm`, and `--no-warm`.
    pub fn of_options(modules: &[String], is_never: bool) -> WarmStart {
        match modules {
            _ if is_never => WarmStart::Never,
            [] => WarmStart::Automatic,
            modules => WarmStart::Modules(modules.to_vec()),
        }
    }
}

/// How to run recoveries.
#[derive(Debug, Clone)]
pub struct ReplaySpec {
    /// The directories in which crash states are materialized, as the target names them.
    pub watched_dirs: Vec<PathBuf>,
    /// The command that recovers from a crash state.
    pub resume: LaunchSpec,
    /// A command that checks the recovered files. It must exit with 0.
    pub check: Option<LaunchSpec>,
    /// What of the host the recovery and the check may touch.
    pub host_access: HostAccess,
    /// A recovery that takes longer is `hung`. One state of each such finding is repeated with three times this
    /// limit.
    pub timeout: Duration,
    /// How many recoveries run at the same time.
    pub jobs: usize,
    /// Whether recoveries are forked from a Python that has imported modules.
    pub warm: WarmStart,
    /// An existing directory for the sandboxes.
    pub work_dir: PathBuf,
    /// Seconds since 1970. The files of crash states get later modification times.
    pub began_unix_s: i64,
    /// Polled between two states; `true` stops the replay.
    pub cancelled: fn() -> bool,
    /// No crash state is tried after this time. `None`: any time.
    pub deadline: Option<Instant>,
}

impl ReplaySpec {
    /// Whether no more crash states are to be tried.
    pub(crate) fn is_over(&self) -> bool {
        (self.cancelled)() || self.is_late()
    }

    /// Whether the time is over.
    pub(crate) fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}
