//! What the files of a recorded program contained and how they were named after each operation. Knows no crash.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;

use engine::explore::{NodeId, OpEffect};

use crate::random_program::RecordedProgram;

/// A name in a directory.
pub(crate) type Names = BTreeMap<NodeId, BTreeMap<OsString, NodeId>>;

/// Where a node is named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NamePlace {
    pub(crate) dir: NodeId,
    pub(crate) name: OsString,
}

/// The content of one file after one of the operations that changed it.
struct ContentVersion {
    /// After how many operations.
    since: usize,
    bytes: Vec<u8>,
}

/// Everything that a program's files were.
pub(crate) struct FileHistory {
    contents: HashMap<NodeId, Vec<ContentVersion>>,
    /// By the number of operations.
    names: Vec<Names>,
}

impl FileHistory {
    pub(crate) fn of(program: &RecordedProgram) -> FileHistory {
        let recording = &program.recording;
        let mut contents: HashMap<NodeId, Vec<ContentVersion>> = HashMap::new();
        let mut names = vec![recording.initial_names.clone()];
        for (index, op) in recording.ops.iter().enumerate() {
            let mut now = names[index].clone();
            for change in op.name_changes() {
                let directory = now.entry(change.dir).or_default();
                match change.node {
                    Some(node) => drop(directory.insert(change.name.clone(), node)),
                    None => drop(directory.remove(&change.name)),
                }
            }
            names.push(now);
            let Some(node) = changed_file(&op.effect) else { continue };
            let versions = contents.entry(node).or_default();
            let mut bytes = versions.last().map_or(Vec::new(), |version| version.bytes.clone());
            match op.effect {
                OpEffect::Write { offset, len_bytes, payload_offset, .. } => {
                    let (start, end) = (offset as usize, (offset + len_bytes) as usize);
                    bytes.resize(bytes.len().max(end), 0);
                    let from = payload_offset as usize;
                    bytes[start..end].copy_from_slice(&program.payload[from..from + end - start]);
                }
                OpEffect::Resize { size_bytes, .. } => bytes.resize(size_bytes as usize, 0),
                _ => {}
            }
            versions.push(ContentVersion { since: index + 1, bytes });
        }
        FileHistory { contents, names }
    }

    /// The bytes of a file after `op_count` operations.
    pub(crate) fn content(&self, node: NodeId, op_count: usize) -> &[u8] {
        let versions = self.contents.get(&node).map_or(&[][..], Vec::as_slice);
        versions.iter().rev().find(|version| version.since <= op_count).map_or(&[], |version| &version.bytes)
    }

    /// The names after `op_count` operations.
    pub(crate) fn names(&self, op_count: usize) -> &Names {
        &self.names[op_count]
    }

    /// The names of one node after `op_count` operations.
    pub(crate) fn names_of(&self, node: NodeId, op_count: usize) -> BTreeSet<NamePlace> {
        let in_directory = |(dir, names): (&NodeId, &BTreeMap<OsString, NodeId>)| -> Vec<NamePlace> {
            let named = names.iter().filter(|(_, named)| **named == node);
            named.map(|(name, _)| NamePlace { dir: *dir, name: name.clone() }).collect()
        };
        self.names[op_count].iter().flat_map(in_directory).collect()
    }

    /// The nodes that can be reached after `op_count` operations, by their paths below the watched directory.
    pub(crate) fn paths(&self, op_count: usize) -> BTreeMap<PathBuf, NodeId> {
        let mut paths = BTreeMap::new();
        let mut to_visit = vec![(0, PathBuf::new())];
        while let Some((dir, path)) = to_visit.pop() {
            for (name, node) in self.names[op_count].get(&dir).into_iter().flatten() {
                let path = path.join(name);
                to_visit.push((*node, path.clone()));
                paths.insert(path, *node);
            }
        }
        paths
    }
}

/// The file whose bytes an operation changes.
pub(crate) fn changed_file(effect: &OpEffect) -> Option<NodeId> {
    match effect {
        OpEffect::Write { node, .. } | OpEffect::Resize { node, .. } => Some(*node),
        _ => None,
    }
}
