//! What a run never synced. Text for people.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use crate::explore::record::{NodeId, OpEffect, Recording};
use crate::explore::states::{CrashCandidate, FileTree, TreeEntry};

/// Files and directories that were not synced after a change, a line each. Lists only those that still have a
/// name at the end.
pub(crate) fn never_synced(recording: &Recording) -> Vec<String> {
    let end = recording.ops.len();
    let syncs = LastSyncs::of(recording);
    let (mut files, mut dirs) = (BTreeSet::new(), BTreeSet::new());
    for (index, op) in recording.ops.iter().enumerate() {
        match &op.effect {
            OpEffect::Write { node, .. } | OpEffect::Resize { node, .. } if !syncs.has(*node, index) => {
                files.insert(*node);
            }
            OpEffect::NameChanges(changes) => {
                let changed = changes.iter().map(|change| change.dir);
                dirs.extend(changed.filter(|dir| !syncs.has(*dir, index)));
            }
            _ => {}
        }
    }
    let remaining = RemainingNodes::of(&CrashCandidate::whole(end).tree(recording), recording);
    let files = files.into_iter().filter(|node| remaining.files.contains(node));
    let files = files.map(|node| format!("file      {}", recording.path_of(node, end).display()));
    let is_root = |dir: NodeId| (dir as usize) < recording.roots.len();
    let remains = |dir: &NodeId| is_root(*dir) || remaining.dirs.contains(&recording.path_of(*dir, end));
    let dirs = dirs.into_iter().filter(remains);
    let dirs = dirs.map(|dir| format!("directory {}", recording.path_of(dir, end).display()));
    files.chain(dirs).collect()
}

/// The last sync of each node, by the index of its operation.
struct LastSyncs {
    by_node: HashMap<NodeId, usize>,
    of_all: Option<usize>,
}

impl LastSyncs {
    fn of(recording: &Recording) -> LastSyncs {
        let mut syncs = LastSyncs { by_node: HashMap::new(), of_all: None };
        for (index, op) in recording.ops.iter().enumerate() {
            match op.effect {
                OpEffect::Sync { node, .. } => drop(syncs.by_node.insert(node, index)),
                OpEffect::SyncAll => syncs.of_all = Some(index),
                _ => {}
            }
        }
        syncs
    }

    /// Whether the node is synced after operation `index`.
    fn has(&self, node: NodeId, index: usize) -> bool {
        self.of_all.max(self.by_node.get(&node).copied()) >= Some(index)
    }
}

/// What has a name at the end.
struct RemainingNodes {
    files: BTreeSet<NodeId>,
    dirs: BTreeSet<PathBuf>,
}

impl RemainingNodes {
    fn of(tree: &FileTree, recording: &Recording) -> RemainingNodes {
        let mut remaining = RemainingNodes { files: BTreeSet::new(), dirs: BTreeSet::new() };
        for ((root, below), entry) in &tree.entries {
            match entry {
                TreeEntry::File { node, .. } => drop(remaining.files.insert(*node)),
                TreeEntry::Directory { .. } => {
                    remaining.dirs.insert(recording.roots[*root as usize].join(below));
                }
                _ => {}
            }
        }
        remaining
    }
}
