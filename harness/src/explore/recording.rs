//! One run's file operations as data: names, contents, what was said in between. Knows nothing of how it was recorded.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// A file, folder or link that existed at some time of the recording.
pub type NodeId = u32;

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileNode {
    Directory { mode: u32 },
    File { mode: u32, initial_len_bytes: u64 },
    Symlink { target: PathBuf },
}

/// A name in a folder that comes to mean a node, or nothing any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameChange {
    pub dir: NodeId,
    pub name: OsString,
    pub node: Option<NodeId>,
}

/// What one operation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpEffect {
    /// Names that change together: one for a creation, up to three for a rename.
    NameChanges(Vec<NameChange>),
    /// The bytes lie on the tape from `at` on.
    Write {
        node: NodeId,
        offset: u64,
        len_bytes: u64,
        payload_offset: u64,
    },
    Resize {
        node: NodeId,
        size_bytes: u64,
    },
    /// Reads as zeroes from now on.
    Zero {
        node: NodeId,
        offset: u64,
        len_bytes: u64,
    },
    Sync {
        node: NodeId,
        data_only: bool,
    },
    SyncAll,
    /// A line of the target's output; with the step that it calls saved. Or one (`own`: false) that one process of the
    /// target says to another.
    Output {
        line: String,
        saved_step: Option<u64>,
        on_stdio: bool,
    },
}

/// One operation, in the order in which they happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub effect: OpEffect,
    /// As a person would write it: `rename(step-5.tmp, step-5)`.
    pub text: String,
}

/// What the recording can't show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordingGaps {
    /// Ways to write that were answered with an error, so that the target used others.
    pub refused_calls: Vec<String>,
    /// Paths that were opened for writing outside of the watched folders.
    pub outside_paths: Vec<PathBuf>,
    /// Files that were changed through shared mappings: seen only at syncs, renames and the end.
    pub mapped_paths: Vec<PathBuf>,
    /// Operations whose file was not known.
    pub unknown_files: u64,
}

/// A whole recording.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The watched folders, as the target names them; the first nodes in this order.
    pub roots: Vec<PathBuf>,
    pub nodes: Vec<FileNode>,
    pub initial_names: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    /// Where initial files' contents can be read.
    pub initial_paths: BTreeMap<NodeId, PathBuf>,
    pub ops: Vec<Op>,
    /// The file that holds all written bytes.
    pub payload_log: PathBuf,
    pub gaps: RecordingGaps,
    /// Of writes, by operation: where the format changes its meaning, in bytes from the write's beginning.
    pub format_boundaries: BTreeMap<u32, Vec<u64>>,
    /// The newest step that had been called saved before it began.
    pub acknowledged_before: Option<u64>,
}

impl Recording {
    /// Operations that change or sync something.
    pub fn file_operations(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(|op| !matches!(op.effect, OpEffect::Output { .. }))
    }

    /// How many of each kind.
    pub fn count_by_kind(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for op in self.file_operations() {
            *counts.entry(op.kind()).or_insert(0) += 1;
        }
        counts
    }

    /// The newest step that was called saved before operation `k`.
    pub fn acknowledged(&self, k: usize) -> Option<u64> {
        let here = self.ops[..k].iter().rev().find_map(|op| match op.effect {
            OpEffect::Output { saved_step: saved, .. } => saved,
            _ => None,
        });
        here.or(self.acknowledged_before)
    }

    /// Whether a node had a name before operation `k`, and which: the last one given.
    pub fn name_of(&self, node: NodeId, k: usize) -> Option<(NodeId, OsString)> {
        let given = self.ops[..k].iter().rev().find_map(|op| match &op.effect {
            OpEffect::NameChanges(changes) => changes
                .iter()
                .find(|change| change.node == Some(node))
                .map(|change| (change.dir, change.name.clone())),
            _ => None,
        });
        given.or_else(|| {
            self.initial_names.iter().find_map(|(dir, names)| {
                names.iter().find(|(_, of)| **of == node).map(|(name, _)| (*dir, name.clone()))
            })
        })
    }

    /// Path of a node below the watched folders, as it was named last before `k`.
    pub fn path_of(&self, node: NodeId, k: usize) -> PathBuf {
        if (node as usize) < self.roots.len() {
            return self.roots[node as usize].clone();
        }
        match self.name_of(node, k) {
            Some((dir, name)) => self.path_of(dir, k).join(name),
            None => PathBuf::from(format!("(file {node})")),
        }
    }
}

impl Op {
    /// Its kind in one word.
    pub fn kind(&self) -> &'static str {
        let word = self.text.split('(').next().unwrap_or_default();
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
        KINDS.iter().find(|kind| **kind == word).copied().unwrap_or("other")
    }

    /// The node whose content it changes.
    pub fn data_node(&self) -> Option<NodeId> {
        match self.effect {
            OpEffect::Write { node, .. } | OpEffect::Zero { node, .. } => Some(node),
            _ => None,
        }
    }
}

impl Recording {
    /// What was never synced although it was called saved, or never at all; a line each. Only what still has a name at the end.
    pub fn never_synced(&self) -> Vec<String> {
        let end = self.ops.len();
        let mut lines = Vec::new();
        let mut files = std::collections::BTreeSet::new();
        let mut folders = std::collections::BTreeSet::new();
        for (index, op) in self.ops.iter().enumerate() {
            let synced = |node: NodeId| {
                self.ops[index..].iter().any(|later| match later.effect {
                    OpEffect::Sync { node: of, .. } => of == node,
                    OpEffect::SyncAll => true,
                    _ => false,
                })
            };
            match &op.effect {
                OpEffect::Write { node, .. } | OpEffect::Resize { node, .. } if !synced(*node) => {
                    files.insert(*node);
                }
                OpEffect::NameChanges(changes) => {
                    folders.extend(changes.iter().map(|change| change.dir).filter(|dir| !synced(*dir)));
                }
                _ => {}
            }
        }
        let tree = super::CrashCandidate::whole(end).tree(self);
        let alive = |node: NodeId| {
            tree.entries
                .values()
                .any(|leaf| matches!(leaf, super::TreeEntry::File { node: of, .. } if *of == node))
        };
        for node in files.into_iter().filter(|node| alive(*node)) {
            lines.push(format!("file   {}", self.path_of(node, end).display()));
        }
        let stands = |dir: NodeId| {
            let path = self.path_of(dir, end);
            (dir as usize) < self.roots.len()
                || tree.entries.iter().any(|((root, below), leaf)| {
                    matches!(leaf, super::TreeEntry::Directory { .. })
                        && self.roots[*root as usize].join(below) == path
                })
        };
        for dir in folders.into_iter().filter(|dir| stands(*dir)) {
            lines.push(format!("folder {}", self.path_of(dir, end).display()));
        }
        lines
    }
}
