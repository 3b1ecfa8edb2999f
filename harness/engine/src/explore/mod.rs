//! Records the file operations of one run, builds every crash state that the models allow within the bounds,
//! runs the recovery on each, and groups the failures by cause. Builds on `gate` and `sandbox`; knows no
//! scenario.
//!
//! `docs/explore.md` shows how to run it. Not done: io_uring and libaio, and more than two crashes in a row.

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
pub use content::{ByteSource, ContentPiece, ContentReader, FileContent};
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
pub use recording::{FileNode, NameChange, NodeId, Op, OpEffect, Recording, RecordingGaps};
pub use recovery_worker::{BaselineRun, RecordingSpec, copy_tree};
pub use second_crash::explore_second_crashes;

use crate::sandbox::{LaunchSpec, SandboxError};

/// What to explore, and how.
#[derive(Clone)]
pub struct ExploreConfig {
    /// Directories in which the target saves. They exist, their paths contain no symbolic link, and none is
    /// inside another.
    pub watched_dirs: Vec<PathBuf>,
    /// For a second crash: the directories that the first crash left, in the order of `watched_dirs`, and the
    /// step that was acknowledged before it. `None`: the watched directories as they are now.
    pub after_crash: Option<(Vec<PathBuf>, Option<u64>)>,
    /// The command that is recorded.
    pub command: LaunchSpec,
    /// The command that recovers from a crash state.
    pub resume: LaunchSpec,
    /// A command that checks the recovered files. It must exit with 0.
    pub check: Option<LaunchSpec>,
    /// Reads the target's output and judges it.
    pub oracle: OutputOracle,
    /// Which crash states are enumerated.
    pub scope: ExploreScope,
    /// A recovery that takes longer is repeated with three times this limit. If that does not suffice, it is
    /// `hung`.
    pub timeout: Duration,
    /// How many recoveries run at the same time.
    pub jobs: usize,
    /// An existing, empty directory for the sandboxes and the payload log.
    pub work_dir: PathBuf,
    /// Python modules that a fork server imports once. Empty: each recovery is a new process.
    pub warm_modules: Vec<String>,
    /// Tries this state only.
    pub only_state: Option<CrashCandidate>,
    /// Seconds since 1970. The files of crash states get later modification times.
    pub began_unix_s: i64,
    /// Polled during the run; `true` stops it.
    pub cancelled: fn() -> bool,
}

/// Why an exploration gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ExploreError {
    /// The sandbox could not be built or used.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A file operation of the harness failed.
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    /// A system call of the harness failed: what it was for, and the error.
    #[error("could not {0}: {1}")]
    System(&'static str, std::io::Error),
    /// `--warm` is given, but the recovery is not a Python command.
    #[error(
        "`--warm` needs a recovery that is a Python command: `python script.py`, `python -m module`, or a \
         script whose `#!` line names a Python interpreter"
    )]
    NotPython,
    /// A recovery worker has no sandbox any more.
    #[error("a recovery worker was used after it had been closed")]
    WorkerClosed,
    /// The command changed no watched file. The command line exits with 3.
    #[error(
        "nothing was recorded: the command changed no file below the watched directories; check the paths \
         after `--watch`"
    )]
    NothingRecorded,
    /// The baseline run, or the recovery of undamaged files, did not succeed. The command line exits with 3.
    #[error("{0}")]
    BaselineFailed(String),
}

impl ExploreError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ExploreError + use<> {
        let path = path.to_path_buf();
        move |error| ExploreError::File { doing, path, error }
    }
}
