//! The names of all nodes at the present moment of a recording, and where each node was last. Knows no operation.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;

use super::recording::{NameChange, NodeId};

/// The names that exist now.
pub(super) struct CurrentNames {
    /// The paths of the watched directories for the target. They are the first nodes.
    roots: Vec<PathBuf>,
    by_directory: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    /// The name that each node got last. It may have lost it since.
    last_places: HashMap<NodeId, NamePlace>,
}

/// A name in a directory.
struct NamePlace {
    dir: NodeId,
    name: OsString,
}

impl CurrentNames {
    /// The names before the recording.
    pub(super) fn new(
        roots: Vec<PathBuf>,
        by_directory: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    ) -> CurrentNames {
        let mut last_places = HashMap::new();
        for (dir, names) in &by_directory {
            for (name, node) in names {
                last_places.entry(*node).or_insert_with(|| NamePlace { dir: *dir, name: name.clone() });
            }
        }
        CurrentNames { roots, by_directory, last_places }
    }

    /// The names, by directory.
    pub(super) fn by_directory(&self) -> &BTreeMap<NodeId, BTreeMap<OsString, NodeId>> {
        &self.by_directory
    }

    /// What a name refers to.
    pub(super) fn node_at(&self, dir: NodeId, name: &OsString) -> Option<NodeId> {
        self.by_directory.get(&dir)?.get(name).copied()
    }

    /// Adds a directory without names.
    pub(super) fn add_directory(&mut self, dir: NodeId) {
        self.by_directory.insert(dir, BTreeMap::new());
    }

    /// Changes a name.
    pub(super) fn apply(&mut self, change: &NameChange) {
        let names = self.by_directory.entry(change.dir).or_default();
        match change.node {
            Some(node) => {
                names.insert(change.name.clone(), node);
                self.last_places.insert(node, NamePlace { dir: change.dir, name: change.name.clone() });
            }
            None => drop(names.remove(&change.name)),
        }
    }

    /// The path of a node for the target, by the name that it got last.
    pub(super) fn path_of(&self, node: NodeId) -> PathBuf {
        if let Some(root) = self.roots.get(node as usize) {
            return root.clone();
        }
        match self.last_places.get(&node) {
            Some(NamePlace { dir, name }) => self.path_of(*dir).join(name),
            None => PathBuf::from(format!("(file {node})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_path_follows_the_newest_name_of_a_node_and_of_its_directories() {
        let initial = [(0, [("old".into(), 1)].into()), (1, [("file".into(), 2)].into())].into();
        let mut names = CurrentNames::new(vec!["/runs".into()], initial);
        let change = |dir, name: &str, node| NameChange { dir, name: name.into(), node };
        assert_eq!(names.path_of(2), Path::new("/runs/old/file"));
        [change(0, "new", Some(1)), change(0, "old", None)].iter().for_each(|change| names.apply(change));
        assert_eq!(names.path_of(2), Path::new("/runs/new/file"));
        names.apply(&change(1, "file", None));
        assert_eq!(names.node_at(1, &"file".into()), None);
        assert_eq!(names.path_of(2), Path::new("/runs/new/file"), "where it was last");
        assert_eq!([names.path_of(0), names.path_of(9)], [PathBuf::from("/runs"), "(file 9)".into()]);
    }
}
