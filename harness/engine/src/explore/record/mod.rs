//! The first stage: records the file operations of one run as data. Knows nothing of crash states.

mod attribute_changes;
mod attributes;
mod content;
mod copy_file;
mod copy_tree;
mod directory_walk;
mod empty_directory;
mod format_boundaries;
mod gated_run;
mod initial_tree;
mod op_recorder;
mod outside_links;
mod recording;

use std::io::Error;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use scenarios::SandboxHint;

pub(super) use attributes::set_times;
pub use attributes::{FileAttributes, FileTime, UnsetAttributes};
pub use content::{ByteSource, ContentPiece, ContentReader, FileContent};
pub use copy_tree::{CopyReport, copy_tree};
pub(super) use empty_directory::empty_directory;
pub(super) use format_boundaries::aligned_neighbors;
pub use gated_run::{CommandRecording, GatedRun};
pub use initial_tree::WatchedRoot;
pub use op_recorder::{OpRecorder, RecorderConfig};
pub use recording::{
    AttributesId, CountedPaths, FileNode, FileNodeKind, NameChange, NodeId, Op, OpEffect, OpKind, Recording,
    RecordingGaps,
};

use self::outside_links::outside_links;
use super::error::ExploreError;
use crate::file_error::file_error;
use crate::sandbox::{BindMount, HostAccess, LaunchSpec, Sandbox, SandboxSpec, current_dir};

/// What to record.
#[derive(Debug, Clone)]
pub struct RecordSpec {
    /// Directories in which the target saves. Their paths contain no symbolic link, and none is inside another.
    /// One that does not exist begins empty.
    pub watched_dirs: Vec<PathBuf>,
    /// The command that is recorded.
    pub command: LaunchSpec,
    /// What of the host the command may touch.
    pub host_access: HostAccess,
    /// A line of the output that acknowledges a step as durable; the group `step` is its number.
    pub saved_pattern: Option<regex::Regex>,
    /// For a second crash: what the first crash left. `None`: the watched directories as they are now.
    pub first_crash: Option<FirstCrash>,
    /// An existing, empty directory for the sandbox and the payload log.
    pub work_dir: PathBuf,
    /// Polled during the run; `true` stops it.
    pub cancelled: fn() -> bool,
}

/// What a first crash left to the recovery that is recorded.
#[derive(Debug, Clone)]
pub struct FirstCrash {
    /// The directories with the files, in the order of the watched directories.
    pub dirs: Vec<PathBuf>,
    /// The step that was acknowledged before the crash.
    pub acknowledged: Option<u64>,
}

/// Runs the command once on copies of the watched directories and records its file operations.
///
/// # Errors
/// A copy, the payload log or the sandbox failed.
pub(super) fn record(spec: &RecordSpec) -> Result<CommandRecording, ExploreError> {
    let dir = spec.work_dir.join("recorded");
    let originals = spec.first_crash.as_ref().map_or(&spec.watched_dirs, |first| &first.dirs);
    let mut binds = Vec::new();
    let mut copies = CopyReport::default();
    for (number, (root, original)) in spec.watched_dirs.iter().zip(originals).enumerate() {
        let copy = dir.join("root").join(number.to_string());
        if original.exists() {
            copies.add(copy_tree(original, &copy)?);
        } else {
            std::fs::create_dir_all(&copy).map_err(file_error::<ExploreError>("create", &copy))?;
        }
        binds.push(BindMount { source: copy, mount_point: root.clone() });
    }
    let roots: Vec<WatchedRoot> = binds
        .iter()
        .map(|bind| WatchedRoot {
            seen_by_target: bind.mount_point.clone(),
            seen_by_harness: bind.source.clone(),
        })
        .collect();
    let sandbox = Sandbox::build(SandboxSpec {
        dir,
        mounts: Vec::new(),
        binds,
        memory_cgroup: false,
        shared_dir: None,
        distinct_pids: false,
        host_access: spec.host_access.clone(),
        cwd: spec.command.cwd.clone().map_or_else(current_dir, Ok)?,
    })?;
    let run = GatedRun {
        command: &spec.command,
        roots: &roots,
        originals,
        payload_log: &spec.work_dir.join("payload-log"),
        saved_pattern: spec.saved_pattern.clone(),
        internal_pattern: None,
        cancelled: spec.cancelled,
    };
    let mut recorded = run.record(&sandbox)?;
    let gaps = &mut recorded.recording.gaps;
    copies.add_to(gaps);
    gaps.sandbox_hints.extend(gaps.copy_hints());
    recorded.recording.acknowledged_before = spec.first_crash.as_ref().and_then(|first| first.acknowledged);
    let gaps = &mut recorded.recording.gaps;
    gaps.sandbox_hints.extend(sandbox.hints(&gaps.outside_paths)?);
    gaps.sandbox_hints.extend(outside_links(&roots));
    let is_private = |dir: &&PathBuf| !spec.host_access.writable.iter().any(|real| dir.starts_with(real));
    let renamed = gaps.renamed_dirs.iter().filter(is_private);
    let hint = |dir: &PathBuf| SandboxHint::CrossDeviceRename { path: dir.to_string_lossy().into_owned() };
    gaps.sandbox_hints.extend(renamed.map(hint).collect::<Vec<_>>());
    for root in &roots {
        empty(&root.seen_by_harness).map_err(file_error::<ExploreError>("empty", &root.seen_by_harness))?;
    }
    sandbox.close()?;
    Ok(recorded)
}

/// Empties a copy, so that the sandbox can remove it also where this user has no permission.
fn empty(dir: &Path) -> Result<(), Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(dir, flags, Mode::empty())?;
    empty_directory(dir, &mut |dir, name, _| Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?))
}
