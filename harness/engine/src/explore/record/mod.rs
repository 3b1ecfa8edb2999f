//! The first stage: records the file operations of one run as data. Knows nothing of crash states.

mod attribute_changes;
mod attributes;
mod background_file;
mod content;
mod content_difference;
mod content_patch;
mod copy_file;
mod copy_tree;
mod current_names;
mod directory_walk;
mod empty_directory;
mod final_tree;
mod format_boundaries;
mod forward_waits;
mod gated_run;
mod initial_tree;
mod kept_recording;
mod op_recorder;
mod outside_links;
mod payload_log;
mod pinned_files;
mod record_spec;
mod recorded_effects;
mod recorded_lines;
mod recorded_path;
mod recorder_config;
mod recording;
mod run_watch;
mod tree_size;
mod unfollowed_calls;
mod unseen_writes;
mod watched_views;

use std::path::PathBuf;

use scenarios::SandboxHint;

pub(super) use attributes::set_times;
pub use attributes::{FileAttributes, FileTime, UnsetAttributes};
pub use content::{ByteSource, ContentPiece, ContentReader, FileContent};
pub(super) use content_patch::ContentPatch;
pub use copy_tree::{CopyReport, copy_tree};
pub(super) use empty_directory::{empty_directory, open_subdirectory};
pub(super) use format_boundaries::aligned_neighbors;
pub use forward_waits::PhaseLines;
pub use gated_run::{CommandRecording, GatedRun, RECORDING_FACTOR};
pub use initial_tree::WatchedRoot;
pub use kept_recording::{KeepRecordingSpec, KeptRecording};
pub(super) use kept_recording::{keep_recording, read_recording};
pub use op_recorder::OpRecorder;
pub use record_spec::{FirstCrash, RecordSpec};
pub use recorder_config::RecorderConfig;
pub use recording::{
    AttributesId, CountedPaths, FileNode, FileNodeKind, NameChange, NodeId, Op, OpEffect, OpKind, Recording,
    RecordingGaps,
};
pub use run_watch::RecordingProgress;
pub use tree_size::OverlayObstacle;
pub use watched_views::{LargeTreeProgress, MAX_COPIED_BYTES};

use self::outside_links::outside_links;
use self::watched_views::WatchedViews;
use super::error::ExploreError;
use crate::sandbox::{NetworkAccess, Sandbox, SandboxSpec, current_dir};

/// The progress of [`record`].
pub(super) enum RecordProgress {
    /// A watched directory is large.
    LargeTree(LargeTreeProgress),
    /// The command is running.
    Running(RecordingProgress),
}

/// Runs the command once on copies of the watched directories, or on overlays of large ones, and records its
/// file operations.
///
/// # Errors
/// A copy, the payload log or the sandbox failed.
pub(super) fn record(
    spec: &RecordSpec,
    report: &dyn Fn(RecordProgress),
) -> Result<CommandRecording, ExploreError> {
    let dir = spec.work_dir.join("recorded");
    let views = WatchedViews::prepare(spec, &dir, &|progress| report(RecordProgress::LargeTree(progress)))?;
    let sandbox_spec = SandboxSpec {
        dir,
        mounts: Vec::new(),
        binds: views.binds(),
        cgroups: Vec::new(),
        visible_root: None,
        distinct_pids: false,
        host_access: spec.host_access.clone(),
        cwd: spec.command.cwd.clone().map_or_else(current_dir, Ok)?,
    };
    let sandbox = Sandbox::build_with_overlays(sandbox_spec, views.overlays())?;
    let roots = views.roots(&sandbox);
    let originals: Vec<Vec<PathBuf>> =
        (0..spec.watched_dirs.len()).map(|number| spec.original_layers(number)).collect();
    let run = GatedRun {
        command: &spec.command,
        roots: &roots,
        originals: &originals,
        payload_log: &spec.work_dir.join("payload-log"),
        saved_pattern: spec.saved_pattern.clone(),
        announced: spec.announced.clone(),
        phase: None,
        unfollowed: &spec.unfollowed,
        notes_connections: spec.host_access.network == NetworkAccess::Private,
        time_limit: spec.time_limit,
        cancelled: spec.cancelled,
    };
    let mut recorded =
        run.record_reporting(&sandbox, &|progress| report(RecordProgress::Running(progress)))?;
    recorded.recording.lower_layers = views.lower_layers();
    recorded.recording.acknowledged_before = spec.first_crash.as_ref().and_then(|first| first.acknowledged);
    let gaps = &mut recorded.recording.gaps;
    views.copies.clone().add_to(gaps);
    gaps.sandbox_hints.extend(gaps.copy_hints());
    gaps.sandbox_hints.extend(gaps.connections.named_in(sandbox.hints(&gaps.outside_paths)?));
    gaps.sandbox_hints.extend(outside_links(&roots));
    let is_private = |dir: &&PathBuf| !spec.host_access.writable.iter().any(|real| dir.starts_with(real));
    let renamed = gaps.renamed_dirs.iter().filter(is_private);
    let text = |dir: &PathBuf| dir.to_string_lossy().into_owned();
    let hints = renamed.map(|dir| SandboxHint::CrossDeviceRename { path: text(dir) });
    let refused = gaps.refused_renames.iter().map(|dir| SandboxHint::WatchedRename { path: text(dir) });
    gaps.sandbox_hints.extend(hints.chain(refused).collect::<Vec<_>>());
    views.empty()?;
    sandbox.close()?;
    Ok(recorded)
}
