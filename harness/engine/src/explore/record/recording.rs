//! The file operations of one run as data: names, contents, and the output lines between them. Does not know
//! how they were recorded, nor what a crash leaves of them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use scenarios::{ExplorationNote, SandboxHint};
use serde::{Deserialize, Serialize};

use super::attributes::FileAttributes;
use crate::gate::ConnectionLog;

/// Identifies a file, directory, symbolic link or named pipe that existed at some point of the recording: an
/// index into [`Recording::nodes`].
pub type NodeId = u32;

/// Identifies a set of attributes: an index into [`Recording::attribute_sets`]. Equal sets have equal ids.
pub type AttributesId = u32;

/// A file, directory, symbolic link or named pipe, with the attributes that it had before the recording or when
/// it was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileNode {
    pub attributes: AttributesId,
    pub kind: FileNodeKind,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileNodeKind {
    Directory,
    /// Its length before the recording; 0 if it did not exist.
    File {
        initial_len_bytes: u64,
    },
    Symlink {
        #[serde(with = "super::recorded_path")]
        target: PathBuf,
    },
    Pipe,
}

impl FileNode {
    /// A directory with the first set of attributes.
    pub fn directory() -> FileNode {
        FileNode { attributes: 0, kind: FileNodeKind::Directory }
    }

    /// A file that the recorded run created, with the first set of attributes.
    pub fn new_file() -> FileNode {
        FileNode { attributes: 0, kind: FileNodeKind::File { initial_len_bytes: 0 } }
    }
}

/// A change of one directory entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameChange {
    /// The directory.
    pub dir: NodeId,
    /// The name in it.
    pub name: OsString,
    /// What the name refers to afterwards. `None`: the name is removed.
    pub node: Option<NodeId>,
}

/// What an operation changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpEffect {
    /// Names that change together: one for a creation, two for a rename.
    NameChanges(Vec<NameChange>),
    /// The bytes start at `payload_offset` in the payload log.
    Write { node: NodeId, offset: u64, len_bytes: u64, payload_offset: u64 },
    /// A truncation or an extension.
    Resize { node: NodeId, size_bytes: u64 },
    /// A punched hole: the range reads as zeroes.
    Zero { node: NodeId, offset: u64, len_bytes: u64 },
    /// `fsync`, or `fdatasync` if `data_only`.
    Sync { node: NodeId, data_only: bool },
    /// `sync` or `syncfs`.
    SyncAll,
    /// The node has these attributes from now on. `touches`: its modification time became the time of the call.
    SetAttributes { node: NodeId, attributes: AttributesId, touches: bool },
    /// A line that the target printed, with the step that it acknowledges. With `on_stdio` false: a line that
    /// one process of the target sent to another through a pipe.
    Output { line: String, saved_step: Option<u64>, on_stdio: bool },
}

/// Which call an operation was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OpKind {
    /// `fallocate` or a similar call that extended a file.
    Allocate,
    /// A change of permission bits.
    Chmod,
    /// A change of owner or group.
    Chown,
    /// A new file.
    Create,
    /// `renameat2` with `RENAME_EXCHANGE`.
    Exchange,
    /// `fdatasync`, or a write with `O_DSYNC`.
    Fdatasync,
    /// `fsync`.
    Fsync,
    /// A new name of a file.
    Link,
    /// A change through a shared mapping, seen at a sync, a rename or the end.
    MappedWrite,
    /// A new directory.
    Mkdir,
    /// A line of output.
    Output,
    /// A hole in a file.
    Punch,
    /// A rename.
    Rename,
    /// A directory removed.
    Rmdir,
    /// A change of an extended attribute.
    SetXattr,
    /// A new symbolic link.
    Symlink,
    /// `sync` or `syncfs`.
    Sync,
    /// A truncation or an extension.
    Truncate,
    /// A name of a file removed.
    Unlink,
    /// A change of times.
    Utimes,
    /// A write.
    Write,
}

impl OpKind {
    /// The name in results, such as `rename`.
    pub fn name(self) -> &'static str {
        match self {
            OpKind::Allocate => "allocate",
            OpKind::Chmod => "chmod",
            OpKind::Chown => "chown",
            OpKind::Create => "create",
            OpKind::Exchange => "exchange",
            OpKind::Fdatasync => "fdatasync",
            OpKind::Fsync => "fsync",
            OpKind::Link => "link",
            OpKind::MappedWrite => "mapped-write",
            OpKind::Mkdir => "mkdir",
            OpKind::Output => "output",
            OpKind::Punch => "punch",
            OpKind::Rename => "rename",
            OpKind::Rmdir => "rmdir",
            OpKind::SetXattr => "setxattr",
            OpKind::Symlink => "symlink",
            OpKind::Sync => "sync",
            OpKind::Truncate => "truncate",
            OpKind::Unlink => "unlink",
            OpKind::Utimes => "utimes",
            OpKind::Write => "write",
        }
    }
}

/// One operation of the recorded run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Which call it was.
    pub kind: OpKind,
    /// What it changed.
    pub effect: OpEffect,
    /// Only shown, never parsed: `rename(step-5.tmp, step-5)`.
    pub text: String,
}

impl Op {
    /// The file whose bytes the operation changes.
    pub fn data_node(&self) -> Option<NodeId> {
        match self.effect {
            OpEffect::Write { node, .. } | OpEffect::Zero { node, .. } => Some(node),
            _ => None,
        }
    }

    /// The node whose attributes the operation changes.
    pub fn attribute_node(&self) -> Option<NodeId> {
        match self.effect {
            OpEffect::SetAttributes { node, .. } => Some(node),
            _ => None,
        }
    }

    /// The directory entries that the operation changes.
    pub fn name_changes(&self) -> &[NameChange] {
        match &self.effect {
            OpEffect::NameChanges(changes) => changes,
            _ => &[],
        }
    }

    /// Whether the operation is a line of output that acknowledges a step.
    pub fn is_acknowledgement(&self) -> bool {
        matches!(self.effect, OpEffect::Output { saved_step: Some(_), .. })
    }
}

/// What the recording does not cover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordingGaps {
    /// Features, such as io_uring, that were answered with an error so that the target uses ordinary calls.
    pub refused_calls: Vec<String>,
    /// Paths outside the watched directories that were opened for writing.
    pub outside_paths: Vec<PathBuf>,
    /// What the target met in the sandbox.
    pub sandbox_hints: Vec<SandboxHint>,
    /// Connections that the target tried to make.
    pub connections: ConnectionLog,
    /// Directories of the host, outside of the watched ones, that the target renamed or tried to rename.
    pub renamed_dirs: Vec<PathBuf>,
    /// Directories in watched ones that are shown as overlays, which refuse to rename them.
    pub refused_renames: Vec<PathBuf>,
    /// Files with a writable shared mapping: their changes are recorded only at syncs, at renames and at the
    /// end.
    pub mapped_paths: Vec<PathBuf>,
    /// How many operations were on files that the recorder does not know.
    pub unknown_files: u64,
    /// Files and directories that have this user as their owner in crash states, because it may not set the
    /// real one.
    pub owners_not_kept: CountedPaths,
    /// Files and directories without some of their extended attributes in crash states.
    pub xattrs_not_kept: CountedPaths,
    /// Sockets and devices, which are in no crash state.
    pub files_left_out: CountedPaths,
    /// What limits what a result shows.
    pub notes: Vec<ExplorationNote>,
    /// How long after its main process the last process of the run ended by itself.
    pub outlived: Duration,
}

impl RecordingGaps {
    /// What the copies of the watched directories lack, for people.
    pub fn copy_hints(&self) -> Vec<SandboxHint> {
        let hint = |paths: &CountedPaths, hint: fn(String, u64) -> SandboxHint| {
            paths.first.as_ref().map(|first| hint(first.display().to_string(), paths.count))
        };
        let hints = [
            hint(&self.owners_not_kept, |path, count| SandboxHint::OwnerNotKept { path, count }),
            hint(&self.xattrs_not_kept, |path, count| SandboxHint::AttributeNotKept { path, count }),
            hint(&self.files_left_out, |path, count| SandboxHint::FileLeftOut { path, count }),
        ];
        hints.into_iter().flatten().collect()
    }
}

/// How many paths something concerns, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CountedPaths {
    /// How many there are.
    pub count: u64,
    /// The first one.
    pub first: Option<PathBuf>,
}

impl CountedPaths {
    /// Counts a path.
    pub fn add(&mut self, path: impl FnOnce() -> PathBuf) {
        self.count += 1;
        self.first.get_or_insert_with(path);
    }
}

/// The recording of one run.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The watched directories, as the target names them. They are the first nodes, in this order.
    pub roots: Vec<PathBuf>,
    /// By [`NodeId`].
    pub nodes: Vec<FileNode>,
    /// By [`AttributesId`]. No two are equal.
    pub attribute_sets: Vec<FileAttributes>,
    /// The names before the run, by directory.
    pub initial_names: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    /// Where the contents of files that existed before the run can be read.
    pub initial_paths: BTreeMap<NodeId, PathBuf>,
    /// The operations, in the order in which they happened.
    pub ops: Vec<Op>,
    /// The file with all written bytes.
    pub payload_log: PathBuf,
    /// What the recording does not cover.
    pub gaps: RecordingGaps,
    /// By the index of a write: offsets in it, in bytes, at which a checkpoint format has a boundary.
    pub format_boundaries: BTreeMap<u32, Vec<u64>>,
    /// The acknowledged step when the recording began.
    pub acknowledged_before: Option<u64>,
    /// For each watched directory that the target saw as an overlay, its lower layers, the topmost first: a
    /// crash state of it is only the layer above them. Empty for the others.
    pub lower_layers: Vec<Vec<PathBuf>>,
}

impl Recording {
    /// The operations that change or sync files: all but output lines.
    pub fn file_operations(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(|op| !matches!(op.effect, OpEffect::Output { .. }))
    }

    /// How many operations of each kind there are.
    pub fn count_by_kind(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for op in self.file_operations() {
            *counts.entry(op.kind.name()).or_insert(0) += 1;
        }
        counts
    }

    /// How many operations acknowledge a step.
    pub fn save_count(&self) -> usize {
        self.ops.iter().filter(|op| op.is_acknowledgement()).count()
    }

    /// The acknowledged step after the first `op_count` operations.
    pub fn acknowledged(&self, op_count: usize) -> Option<u64> {
        let in_recording = self.ops[..op_count].iter().rev().find_map(|op| match op.effect {
            OpEffect::Output { saved_step, .. } => saved_step,
            _ => None,
        });
        in_recording.or(self.acknowledged_before)
    }

    /// The name that the node got last within the first `op_count` operations, with its directory. `None`: it
    /// never had one.
    pub fn name_of(&self, node: NodeId, op_count: usize) -> Option<(NodeId, OsString)> {
        let recorded = self.ops[..op_count].iter().rev().find_map(|op| match &op.effect {
            OpEffect::NameChanges(changes) => changes
                .iter()
                .find(|change| change.node == Some(node))
                .map(|change| (change.dir, change.name.clone())),
            _ => None,
        });
        recorded.or_else(|| {
            self.initial_names.iter().find_map(|(dir, names)| {
                names.iter().find(|(_, named)| **named == node).map(|(name, _)| (*dir, name.clone()))
            })
        })
    }

    /// What a name in a directory refers to after the first `op_count` operations.
    pub fn node_named(&self, dir: NodeId, name: &OsStr, op_count: usize) -> Option<NodeId> {
        let is_same = |change: &&NameChange| change.dir == dir && change.name == *name;
        let mut changes = self.ops[..op_count].iter().rev();
        let recorded = changes.find_map(|op| op.name_changes().iter().find(is_same));
        match recorded {
            Some(change) => change.node,
            None => self.initial_names.get(&dir)?.get(name).copied(),
        }
    }

    /// The path of a node for the target, by the names after the first `op_count` operations.
    pub fn path_of(&self, node: NodeId, op_count: usize) -> PathBuf {
        if (node as usize) < self.roots.len() {
            return self.roots[node as usize].clone();
        }
        match self.name_of(node, op_count) {
            Some((dir, name)) => self.path_of(dir, op_count).join(name),
            None => PathBuf::from(format!("(file {node})")),
        }
    }

    /// The node that operation `op` renamed over an existing file.
    pub fn replacing_node(&self, op: usize) -> Option<NodeId> {
        let changes = self.ops[op].name_changes();
        let new_name = changes.first().filter(|_| changes.len() > 1)?;
        let is_same = |change: &&NameChange| change.dir == new_name.dir && change.name == new_name.name;
        let replaced = self.ops[..op]
            .iter()
            .rev()
            .find_map(|op| op.name_changes().iter().find(is_same).map(|change| change.node))
            .unwrap_or_else(|| self.initial_names.get(&new_name.dir)?.get(&new_name.name).copied());
        replaced.and(new_name.node)
    }

    /// The lower layers of a watched directory. Empty if its crash states are whole.
    pub fn lower_layers_of(&self, root: usize) -> &[PathBuf] {
        self.lower_layers.get(root).map_or(&[], Vec::as_slice)
    }

    /// A set of attributes.
    pub fn attributes(&self, id: AttributesId) -> &FileAttributes {
        &self.attribute_sets[id as usize]
    }

    /// The size of a file before operation `op`, in bytes.
    pub fn size_before(&self, node: NodeId, op: usize) -> u64 {
        let mut size = match self.nodes[node as usize].kind {
            FileNodeKind::File { initial_len_bytes } => initial_len_bytes,
            _ => 0,
        };
        for earlier in &self.ops[..op] {
            match earlier.effect {
                OpEffect::Write { node: changed, offset, len_bytes, .. } if changed == node => {
                    size = size.max(offset + len_bytes)
                }
                OpEffect::Resize { node: changed, size_bytes } if changed == node => size = size_bytes,
                _ => {}
            }
        }
        size
    }
}
