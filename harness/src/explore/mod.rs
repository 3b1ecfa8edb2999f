//! Records one run's file operations, builds every state that a crash may leave of them, runs the recovery on each, and
//! says what it does not come back from. On top of `gate` and `sandbox`; knows no scenario.

mod cause;
mod content;
mod crash_candidate;
mod enumerate;
mod findings;
mod format_boundaries;
mod fs_model;
mod materialize;
mod op_recorder;
mod output_oracle;
mod persisted_set;
mod pipeline;
mod python_fork_server;
mod recording;
mod recovery_worker;
mod second_crash;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cause::Cause;
pub use content::{ContentReader, FileContent};
pub use crash_candidate::{CrashCandidate, FileTree, Tear, TreeEntry};
pub use enumerate::{
    CrashKind, CrashState, Enumeration, EnumerationCounts, ExploreScope, Witness, enumerate,
};
pub use findings::Finding;
pub use fs_model::FsModel;
pub use materialize::materialize;
pub use op_recorder::{OpRecorder, RecorderConfig};
pub use output_oracle::{BaselineValues, OutputOracle, RecoveryResult};
pub use pipeline::{ExploreProgress, ExploreResult, TriedState, explore};
pub use recording::{FileNode, NodeId, Op, OpEffect, Recording, RecordingGaps};
pub use recovery_worker::{BaselineRun, RecordingSpec, copy_tree};
pub use second_crash::explore_second_crashes;

use crate::sandbox::{LaunchSpec, SandboxError};

/// What is to be explored, and how.
#[derive(Clone)]
pub struct ExploreConfig {
    /// Existing folders, with no link in their paths, none inside another.
    pub watched_dirs: Vec<PathBuf>,
    /// Files that an earlier crash left, in the order of `watch`, and the newest step that had been called saved then; none: the watched
    /// folders as they are.
    pub after_crash: Option<(Vec<PathBuf>, Option<u64>)>,
    pub command: LaunchSpec,
    pub resume: LaunchSpec,
    pub check: Option<LaunchSpec>,
    pub oracle: OutputOracle,
    pub scope: ExploreScope,
    /// A recovery that takes longer is hung.
    pub timeout: Duration,
    pub jobs: usize,
    /// Existing, empty folder for rooms and the tape.
    pub work_dir: PathBuf,
    /// Python modules that a fork server imports once; none: each recovery starts anew.
    pub warm_modules: Vec<String>,
    /// Only this state.
    pub only_state: Option<CrashCandidate>,
    /// Seconds since 1970; files of states are dated after it.
    pub began_unix_s: i64,
    /// Asked now and then whether to stop.
    pub cancelled: fn() -> bool,
}

/// Why exploring came to no result.
#[derive(Debug, thiserror::Error)]
pub enum ExploreError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("could not {0}: {1}")]
    System(&'static str, std::io::Error),
    #[error(
        "--warm needs a recovery that is a Python command: `python script.py`, `python -m module`, or a script that begins with `#!` and a python"
    )]
    NotPython,
    #[error("a booth was used after its end")]
    WorkerClosed,
    /// Exit code 3.
    #[error("nothing was recorded: the command changed no file below the watched folders; is --watch right?")]
    NothingRecorded,
    /// The command itself did not do what it does when nothing disturbs it. Exit code 3.
    #[error("{0}")]
    BaselineFailed(String),
}

impl ExploreError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ExploreError + use<> {
        let path = path.to_path_buf();
        move |error| ExploreError::File { doing, path, error }
    }
}
