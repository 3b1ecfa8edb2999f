//! Finds the names of a tree that are names of one file. Pure: looks at no file.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;

use crate::explore::record::NodeId;
use crate::explore::states::{FileTree, TreeEntry};

/// The names of a tree that are names of one file, as far as they are materialized.
pub(super) struct LinkedNames {
    /// The nodes with several names.
    pub(super) nodes: HashSet<NodeId>,
    pub(super) first_names: HashMap<NodeId, CString>,
}

impl LinkedNames {
    pub(super) fn of(tree: &FileTree) -> LinkedNames {
        let (mut seen, mut nodes) = (HashSet::new(), HashSet::new());
        for entry in tree.entries.values() {
            if let TreeEntry::File { node, .. }
            | TreeEntry::Symlink { node, .. }
            | TreeEntry::Pipe { node, .. } = entry
                && !seen.insert(*node)
            {
                nodes.insert(*node);
            }
        }
        LinkedNames { nodes, first_names: HashMap::new() }
    }
}
