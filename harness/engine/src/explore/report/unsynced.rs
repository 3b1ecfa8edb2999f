//! What a run never synced. Text for people.

use std::collections::BTreeSet;

use crate::explore::record::{NodeId, OpEffect, Recording};
use crate::explore::states::{CrashCandidate, FileTree, TreeEntry};

/// Files and directories that were not synced after a change, a line each. Lists only those that still have a
/// name at the end.
pub(crate) fn never_synced(recording: &Recording) -> Vec<String> {
    let end = recording.ops.len();
    let (mut files, mut dirs) = (BTreeSet::new(), BTreeSet::new());
    for (index, op) in recording.ops.iter().enumerate() {
        match &op.effect {
            OpEffect::Write { node, .. } | OpEffect::Resize { node, .. }
                if !is_synced_later(recording, index, *node) =>
            {
                files.insert(*node);
            }
            OpEffect::NameChanges(changes) => {
                let changed = changes.iter().map(|change| change.dir);
                dirs.extend(changed.filter(|dir| !is_synced_later(recording, index, *dir)));
            }
            _ => {}
        }
    }
    let tree = CrashCandidate::whole(end).tree(recording);
    let files = files.into_iter().filter(|node| file_remains(&tree, *node));
    let files = files.map(|node| format!("file      {}", recording.path_of(node, end).display()));
    let dirs = dirs.into_iter().filter(|dir| dir_remains(recording, &tree, *dir));
    let dirs = dirs.map(|dir| format!("directory {}", recording.path_of(dir, end).display()));
    files.chain(dirs).collect()
}

fn is_synced_later(recording: &Recording, index: usize, node: NodeId) -> bool {
    recording.ops[index..].iter().any(|later| match later.effect {
        OpEffect::Sync { node: synced, .. } => synced == node,
        OpEffect::SyncAll => true,
        _ => false,
    })
}

fn file_remains(tree: &FileTree, node: NodeId) -> bool {
    let is_file = |entry: &TreeEntry| matches!(entry, TreeEntry::File { node: file, .. } if *file == node);
    tree.entries.values().any(is_file)
}

fn dir_remains(recording: &Recording, tree: &FileTree, dir: NodeId) -> bool {
    let path = recording.path_of(dir, recording.ops.len());
    (dir as usize) < recording.roots.len()
        || tree.entries.iter().any(|((root, below), entry)| {
            matches!(entry, TreeEntry::Directory { .. })
                && recording.roots[*root as usize].join(below) == path
        })
}
