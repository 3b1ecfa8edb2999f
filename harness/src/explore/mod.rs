//! Records one run's file operations, builds every state that a crash may leave of them, runs the recovery on each, and
//! says what it does not come back from. On top of `gate` and `sandbox`; knows no scenario.

mod candidate;
mod cause;
mod content;
mod expedition;
mod findings;
mod kept;
mod landmarks;
mod layout;
mod model;
mod outcome;
mod record;
mod recording;
mod second;
mod stage;
mod states;
mod warm;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use candidate::{Candidate, Leaf, Tear, Tree};
pub use cause::Cause;
pub use content::{Content, Reader};
pub use expedition::{Explored, Progress, Tried, explore};
pub use findings::Finding;
pub use layout::lay_out;
pub use model::Model;
pub use outcome::{Ear, Expected, Found};
pub use record::{Recorder, Start};
pub use recording::{Blind, Node, NodeId, Op, Recording, What};
pub use second::second;
pub use stage::{Tape, Undisturbed, copy_tree};
pub use states::{Counted, Crash, Scope, State, States, Way, enumerate};

use crate::sandbox::{Launch, SandboxError};

/// What is to be explored, and how.
#[derive(Clone)]
pub struct Orders {
    /// Existing folders, with no link in their paths, none inside another.
    pub watch: Vec<PathBuf>,
    /// Files that an earlier crash left, in the order of `watch`, and the newest step that had been called saved then; none: the watched
    /// folders as they are.
    pub after: Option<(Vec<PathBuf>, Option<u64>)>,
    pub command: Launch,
    pub resume: Launch,
    pub check: Option<Launch>,
    pub ear: Ear,
    pub scope: Scope,
    /// A recovery that takes longer is hung.
    pub timeout: Duration,
    pub jobs: usize,
    /// Existing, empty folder for rooms and the tape.
    pub dir: PathBuf,
    /// Python modules that a fork server imports once; none: each recovery starts anew.
    pub warm: Vec<String>,
    /// Only this state.
    pub only: Option<Candidate>,
    /// Seconds since 1970; files of states are dated after it.
    pub began: i64,
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
    Closed,
    /// Exit code 3.
    #[error("nothing was recorded: the command changed no file below the watched folders; is --watch right?")]
    NothingRecorded,
    /// The command itself did not do what it does when nothing disturbs it. Exit code 3.
    #[error("{0}")]
    Undisturbed(String),
}

impl ExploreError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ExploreError + use<> {
        let path = path.to_path_buf();
        move |error| ExploreError::File { doing, path, error }
    }
}
