//! What is recorded, as data. Does not know how.

use std::path::PathBuf;
use std::time::Duration;

use crate::sandbox::{HostAccess, LaunchSpec};

/// What to record.
#[derive(Debug, Clone)]
pub struct RecordSpec {
    /// Directories in which the target saves. Their paths contain no symbolic link, and none is inside another.
    /// One that does not exist begins empty.
    pub watched_dirs: Vec<PathBuf>,
    /// Where their files are, in the same order. `None`: in the watched directories themselves.
    pub originals: Option<Vec<PathBuf>>,
    /// The command that is recorded.
    pub command: LaunchSpec,
    /// What of the host the command may touch.
    pub host_access: HostAccess,
    /// A line of the output that acknowledges a step as durable; the group `step` is its number.
    pub saved_pattern: Option<regex::Regex>,
    /// Further lines that are recorded however long the output is: those by which recoveries are judged.
    pub announced: Vec<regex::Regex>,
    /// Files and directories, as the target sees them, of which changes that could not be followed are accepted. Each
    /// is, or lies in, a watched directory.
    pub unfollowed: Vec<PathBuf>,
    /// For a second crash: what the first crash left, in place of the originals.
    pub first_crash: Option<FirstCrash>,
    /// A watched directory with more bytes is not copied: the target sees it as an overlay. Usually
    /// [`MAX_COPIED_BYTES`](super::MAX_COPIED_BYTES).
    pub max_copied_bytes: u64,
    /// An existing, empty directory for the sandbox and the payload log.
    pub work_dir: PathBuf,
    /// The run is stopped after this time. `None`: it may take any time.
    pub time_limit: Option<Duration>,
    /// Polled during the run; `true` stops it.
    pub cancelled: fn() -> bool,
}

/// What a first crash left to the recovery that is recorded.
#[derive(Debug, Clone)]
pub struct FirstCrash {
    /// The directories with the files, in the order of the watched directories.
    pub dirs: Vec<PathBuf>,
    /// What lies below each of them, as in [`Recording::lower_layers`](super::Recording::lower_layers).
    pub lower_layers: Vec<Vec<PathBuf>>,
    /// The step that was acknowledged before the crash.
    pub acknowledged: Option<u64>,
}

impl RecordSpec {
    /// Where the files of a watched directory can be read that were there before the run: in its layers, the
    /// topmost first.
    pub(super) fn original_layers(&self, number: usize) -> Vec<PathBuf> {
        match &self.first_crash {
            None => vec![self.originals.as_ref().unwrap_or(&self.watched_dirs)[number].clone()],
            Some(first) => {
                let lowers = first.lower_layers.get(number).into_iter().flatten();
                std::iter::once(&first.dirs[number]).chain(lowers).cloned().collect()
            }
        }
    }
}
