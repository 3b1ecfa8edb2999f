//! What a recorder is told before it starts.

use std::path::{Path, PathBuf};

use regex::Regex;

use super::forward_waits::PhaseLines;
use super::initial_tree::WatchedRoot;
use crate::gate::FileId;

/// What an [`OpRecorder`](super::OpRecorder) needs to start.
pub struct RecorderConfig<'a> {
    /// The watched directories.
    pub roots: &'a [WatchedRoot],
    /// For each, the unchanged, readable directories whose files it shows, the topmost first.
    pub originals: &'a [Vec<PathBuf>],
    /// The file to create for all written bytes.
    pub payload_log: &'a Path,
    /// The pipes behind the target's standard output and standard error.
    pub output_pipes: Vec<FileId>,
    /// A line of the target's output that acknowledges a step; the group `step` is its number.
    pub saved_pattern: Option<Regex>,
    /// Further lines that are recorded however long the output is: those by which recoveries are judged.
    pub announced: Vec<Regex>,
    /// A phase whose crash states are wanted.
    pub phase: Option<PhaseLines>,
}
