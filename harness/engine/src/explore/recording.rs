//! The file operations of one run as data: names, contents, and the output lines between them. Does not know
//! how they were recorded.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Identifies a file, directory or symbolic link that existed at some point of the recording: an index into
/// [`Recording::nodes`].
pub type NodeId = u32;

/// A file, directory or symbolic link. `mode` holds the permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileNode {
    Directory {
        mode: u32,
    },
    /// Its length before the recording; 0 if it did not exist.
    File {
        mode: u32,
        initial_len_bytes: u64,
    },
    Symlink {
        target: PathBuf,
    },
}

/// A change of one directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameChange {
    /// The directory.
    pub dir: NodeId,
    /// The name in it.
    pub name: OsString,
    /// What the name refers to afterwards. `None`: the name is removed.
    pub node: Option<NodeId>,
}

/// What an operation changed.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// A line that the target printed, with the step that it acknowledges. With `on_stdio` false: a line that
    /// one process of the target sent to another through a pipe.
    Output { line: String, saved_step: Option<u64>, on_stdio: bool },
}

/// One operation of the recorded run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// For programs.
    pub effect: OpEffect,
    /// For people: `rename(step-5.tmp, step-5)`.
    pub text: String,
}

/// What the recording does not cover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordingGaps {
    /// Features, such as io_uring, that were answered with an error so that the target uses ordinary calls.
    pub refused_calls: Vec<String>,
    /// Paths outside the watched directories that were opened for writing.
    pub outside_paths: Vec<PathBuf>,
    /// Files with a writable shared mapping: their changes are recorded only at syncs, at renames and at the
    /// end.
    pub mapped_paths: Vec<PathBuf>,
    /// How many operations were on files that the recorder does not know.
    pub unknown_files: u64,
}

/// The recording of one run.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The watched directories, as the target names them. They are the first nodes, in this order.
    pub roots: Vec<PathBuf>,
    /// By [`NodeId`].
    pub nodes: Vec<FileNode>,
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
            *counts.entry(op.kind()).or_insert(0) += 1;
        }
        counts
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
}

impl Op {
    /// The name of the call, such as `rename`; `other` for output lines.
    pub fn kind(&self) -> &'static str {
        let call_name = self.text.split('(').next().unwrap_or_default();
        const KINDS: [&str; 16] = [
            "create",
            "mkdir",
            "rename",
            "exchange",
            "link",
            "symlink",
            "unlink",
            "rmdir",
            "write",
            "truncate",
            "allocate",
            "fsync",
            "fdatasync",
            "sync",
            "punch",
            "mapped-write",
        ];
        KINDS.iter().find(|kind| **kind == call_name).copied().unwrap_or("other")
    }

    /// The file whose bytes the operation changes.
    pub fn data_node(&self) -> Option<NodeId> {
        match self.effect {
            OpEffect::Write { node, .. } | OpEffect::Zero { node, .. } => Some(node),
            _ => None,
        }
    }
}

impl Recording {
    /// Files and directories that were not synced after a change, a line each. Lists only those that still
    /// have a name at the end.
    pub fn never_synced(&self) -> Vec<String> {
        let end = self.ops.len();
        let mut lines = Vec::new();
        let mut files = std::collections::BTreeSet::new();
        let mut dirs = std::collections::BTreeSet::new();
        for (index, op) in self.ops.iter().enumerate() {
            let is_synced_later = |node: NodeId| {
                self.ops[index..].iter().any(|later| match later.effect {
                    OpEffect::Sync { node: synced, .. } => synced == node,
                    OpEffect::SyncAll => true,
                    _ => false,
                })
            };
            match &op.effect {
                OpEffect::Write { node, .. } | OpEffect::Resize { node, .. } if !is_synced_later(*node) => {
                    files.insert(*node);
                }
                OpEffect::NameChanges(changes) => {
                    dirs.extend(changes.iter().map(|change| change.dir).filter(|dir| !is_synced_later(*dir)));
                }
                _ => {}
            }
        }
        let tree = super::CrashCandidate::whole(end).tree(self);
        let file_remains = |node: NodeId| {
            tree.entries
                .values()
                .any(|entry| matches!(entry, super::TreeEntry::File { node: file, .. } if *file == node))
        };
        for node in files.into_iter().filter(|node| file_remains(*node)) {
            lines.push(format!("file      {}", self.path_of(node, end).display()));
        }
        let dir_remains = |dir: NodeId| {
            let path = self.path_of(dir, end);
            (dir as usize) < self.roots.len()
                || tree.entries.iter().any(|((root, below), entry)| {
                    matches!(entry, super::TreeEntry::Directory { .. })
                        && self.roots[*root as usize].join(below) == path
                })
        };
        for dir in dirs.into_iter().filter(|dir| dir_remains(*dir)) {
            lines.push(format!("directory {}", self.path_of(dir, end).display()));
        }
        lines
    }
}
