//! What the recoveries of one exploration have in common.

use std::path::PathBuf;
use std::time::Duration;

use crate::sandbox::{HostAccess, LaunchSpec};

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
    /// Python modules that a fork server imports once. Empty: each recovery is a new process.
    pub warm_modules: Vec<String>,
    /// An existing directory for the sandboxes.
    pub work_dir: PathBuf,
    /// Seconds since 1970. The files of crash states get later modification times.
    pub began_unix_s: i64,
    /// Polled between two states; `true` stops the replay.
    pub cancelled: fn() -> bool,
}
