//! A crash point with its persisted set: what had happened, and what of it was lost or torn. Computes the
//! file tree that is left. Pure; does not know which candidates a model allows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::fs_model::{BYTES_PART, PersistUnit};
use super::tear::Tear;
use crate::explore::record::{
    AttributesId, ByteSource, FileContent, FileNodeKind, NameChange, NodeId, OpEffect, Recording,
};

/// A write that reached the disk in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TornWrite {
    /// The index of the operation.
    pub op: u32,
    /// What reached the disk.
    pub tear: Tear,
}

/// A crash point, and what did not reach the disk of the operations before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CrashCandidate {
    /// The crash point: how many operations have happened.
    pub op_count: u32,
    /// The units that did not reach the disk. Sorted.
    pub lost: Vec<PersistUnit>,
    /// The write that reached the disk in part.
    pub torn: Option<TornWrite>,
}

/// The attributes of an entry of a [`FileTree`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct EntryAttributes {
    /// All attributes but the modification time.
    pub set: AttributesId,
    /// Whether the modification time is that of the set. If not, it is the time of `last_change`.
    pub keeps_time: bool,
    /// The 1-based operation that last changed the content, the names in the directory, or the modification
    /// time; 0 for none.
    pub last_change: u32,
}

/// What a path of a [`FileTree`] refers to. Entries of one `node` are names of one file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TreeEntry {
    Directory { attributes: EntryAttributes },
    File { node: NodeId, content: FileContent, attributes: EntryAttributes },
    Symlink { node: NodeId, target: PathBuf, attributes: EntryAttributes },
    Pipe { node: NodeId, attributes: EntryAttributes },
}

/// The files that a crash leaves, by the index of the watched directory and the path below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileTree {
    /// The attributes of the watched directories.
    pub roots: Vec<EntryAttributes>,
    /// In the order of the paths.
    pub entries: BTreeMap<(u32, PathBuf), TreeEntry>,
    /// Old names of renames that are half done. They are files of their own, not further names of the renamed
    /// files.
    pub leftover_names: BTreeSet<(u32, PathBuf)>,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct NodeName {
    dir: NodeId,
    name: OsString,
}

/// All names at a crash point.
struct TreeNames {
    by_dir: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    /// Old names of renames that are half done.
    leftovers: HashSet<NodeName>,
}

/// The attributes of a node at a crash point.
#[derive(Debug, Clone, Copy)]
struct SetAttributes {
    set: AttributesId,
    /// The 1-based operation that set them; 0 for none.
    since: u32,
}

impl TreeEntry {
    /// The attributes.
    pub fn attributes(&self) -> EntryAttributes {
        match self {
            TreeEntry::Directory { attributes }
            | TreeEntry::File { attributes, .. }
            | TreeEntry::Symlink { attributes, .. }
            | TreeEntry::Pipe { attributes, .. } => *attributes,
        }
    }
}

impl CrashCandidate {
    /// A crash after `op_count` operations that lost nothing.
    pub fn whole(op_count: usize) -> CrashCandidate {
        CrashCandidate { op_count: op_count as u32, lost: Vec::new(), torn: None }
    }

    /// Whether every operation before the crash point is persisted in full.
    pub fn lost_nothing(&self) -> bool {
        self.lost.is_empty() && self.torn.is_none()
    }

    fn is_lost(&self, op: usize, part: usize) -> bool {
        self.lost.binary_search(&PersistUnit { op: op as u32, part: part as u8 }).is_ok()
    }

    /// The name that `--state` takes: `op_count`, then the lost units, then the torn write, as in
    /// `12-3-9.1~7p4096`.
    pub fn name(&self) -> String {
        let mut name = self.op_count.to_string();
        for unit in &self.lost {
            name += &format!("-{}", unit.op);
            if unit.part > 0 {
                name += &format!(".{}", unit.part);
            }
        }
        if let Some(torn) = self.torn {
            name += &format!("~{}{}", torn.op, torn.tear.name());
        }
        name
    }

    /// Parses what [`name`](CrashCandidate::name) returns. `None`: not a name of a crash state.
    pub fn parse(name: &str) -> Option<CrashCandidate> {
        let (rest, torn) = match name.split_once('~') {
            None => (name, None),
            Some((rest, torn)) => {
                let letter = torn.find(|letter: char| letter.is_ascii_alphabetic())?;
                let (op, tear) = torn.split_at(letter);
                (rest, Some(TornWrite { op: op.parse().ok()?, tear: Tear::parse(tear)? }))
            }
        };
        let mut parts = rest.split('-');
        let op_count = parts.next()?.parse().ok()?;
        let unit = |text: &str| -> Option<PersistUnit> {
            let (op, part) = text.split_once('.').unwrap_or((text, "0"));
            Some(PersistUnit { op: op.parse().ok()?, part: part.parse().ok()? })
        };
        let mut lost = parts.map(unit).collect::<Option<Vec<PersistUnit>>>()?;
        lost.sort_unstable();
        Some(CrashCandidate { op_count, lost, torn })
    }

    fn apply_name_changes(
        &self,
        op: usize,
        changes: &[NameChange],
        names: &mut TreeNames,
        last_changes: &mut HashMap<NodeId, u32>,
    ) {
        for (_, change) in changes.iter().enumerate().filter(|(part, _)| !self.is_lost(op, *part)) {
            last_changes.insert(change.dir, op as u32 + 1);
            let directory = names.by_dir.entry(change.dir).or_default();
            match change.node {
                Some(node) => drop(directory.insert(change.name.clone(), node)),
                None => drop(directory.remove(&change.name)),
            }
            names.leftovers.remove(&NodeName { dir: change.dir, name: change.name.clone() });
        }
        if let [_, old] = changes
            && old.node.is_none()
            && self.is_lost(op, 1)
            && !self.is_lost(op, 0)
        {
            names.leftovers.insert(NodeName { dir: old.dir, name: old.name.clone() });
        }
    }

    /// Computes the file tree that this crash leaves.
    pub fn tree(&self, recording: &Recording) -> FileTree {
        let mut names = TreeNames { by_dir: recording.initial_names.clone(), leftovers: HashSet::new() };
        let (mut contents, mut last_changes) = (HashMap::new(), HashMap::new());
        let mut attributes = HashMap::new();
        let mut frozen_files = Vec::new();
        for (index, op) in recording.ops[..self.op_count as usize].iter().enumerate() {
            match &op.effect {
                OpEffect::NameChanges(changes) => {
                    self.apply_name_changes(index, changes, &mut names, &mut last_changes);
                }
                OpEffect::Resize { node, .. }
                | OpEffect::Write { node, .. }
                | OpEffect::Zero { node, .. }
                    if frozen_files.contains(node) => {}
                // If a truncation is lost, the file keeps its old blocks, so that no later change of it is
                // visible.
                OpEffect::Resize { node, .. } if self.is_lost(index, 0) => frozen_files.push(*node),
                OpEffect::Resize { node, size_bytes } => {
                    last_changes.insert(*node, index as u32 + 1);
                    content_mut(&mut contents, recording, *node).resize(*size_bytes);
                }
                OpEffect::Zero { node, offset, len_bytes } if !self.is_lost(index, 0) => {
                    last_changes.insert(*node, index as u32 + 1);
                    content_mut(&mut contents, recording, *node).put(*offset, *len_bytes, ByteSource::Zeroes);
                }
                OpEffect::Write { node, offset, len_bytes, payload_offset } if !self.is_lost(index, 0) => {
                    last_changes.insert(*node, index as u32 + 1);
                    let content = content_mut(&mut contents, recording, *node);
                    if self.is_lost(index, BYTES_PART.into()) {
                        content.put(*offset, *len_bytes, ByteSource::Zeroes);
                        continue;
                    }
                    match self.torn.filter(|torn| torn.op as usize == index) {
                        Some(torn) => torn.tear.put(content, *offset, *len_bytes, *payload_offset),
                        None => content.put(*offset, *len_bytes, ByteSource::PayloadLog(*payload_offset)),
                    }
                }
                OpEffect::SetAttributes { node, attributes: set, touches } if !self.is_lost(index, 0) => {
                    let since = index as u32 + 1;
                    attributes.insert(*node, SetAttributes { set: *set, since });
                    if *touches {
                        last_changes.insert(*node, since);
                    }
                }
                _ => {}
            }
        }
        // The entries are collected in the order of the paths, so that the map can be built in one pass.
        let mut walk = TreeWalk {
            recording,
            names: &names.by_dir,
            contents: &mut contents,
            last_changes: &last_changes,
            attributes: &attributes,
            leftovers: &names.leftovers,
            entries: Vec::new(),
            leftover_names: BTreeSet::new(),
        };
        for root in 0..recording.roots.len() {
            walk.walk_directory(root as u32, root as NodeId, &PathBuf::new());
        }
        let roots = (0..recording.roots.len() as NodeId).map(|root| walk.attributes_of(root)).collect();
        let TreeWalk { entries, leftover_names, .. } = walk;
        FileTree { roots, entries: entries.into_iter().collect(), leftover_names }
    }
}

fn content_mut<'c>(
    contents: &'c mut HashMap<NodeId, FileContent>,
    recording: &Recording,
    node: NodeId,
) -> &'c mut FileContent {
    contents.entry(node).or_insert_with(|| initial_content(recording, node))
}

fn initial_content(recording: &Recording, node: NodeId) -> FileContent {
    match recording.nodes.get(node as usize).map(|node| &node.kind) {
        Some(FileNodeKind::File { initial_len_bytes }) => FileContent::initial(node, *initial_len_bytes),
        _ => FileContent::default(),
    }
}

/// Collects the entries that can be reached from the watched directories.
struct TreeWalk<'w> {
    recording: &'w Recording,
    names: &'w BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    contents: &'w mut HashMap<NodeId, FileContent>,
    last_changes: &'w HashMap<NodeId, u32>,
    /// Of the nodes whose attributes were set.
    attributes: &'w HashMap<NodeId, SetAttributes>,
    leftovers: &'w HashSet<NodeName>,
    entries: Vec<((u32, PathBuf), TreeEntry)>,
    leftover_names: BTreeSet<(u32, PathBuf)>,
}

impl TreeWalk<'_> {
    fn attributes_of(&self, node: NodeId) -> EntryAttributes {
        let last_change = self.last_changes.get(&node).copied().unwrap_or(0);
        let at_first = || SetAttributes { set: self.recording.nodes[node as usize].attributes, since: 0 };
        let SetAttributes { set, since } = self.attributes.get(&node).copied().unwrap_or_else(at_first);
        let has_time = self.recording.attributes(set).modified.is_some();
        EntryAttributes { set, keeps_time: has_time && last_change <= since, last_change }
    }

    fn walk_directory(&mut self, root: u32, dir: NodeId, path: &Path) {
        for (name, &node) in self.names.get(&dir).into_iter().flatten() {
            let path = path.join(name);
            let attributes = self.attributes_of(node);
            let entry = match &self.recording.nodes[node as usize].kind {
                FileNodeKind::Directory => TreeEntry::Directory { attributes },
                FileNodeKind::Symlink { target } => {
                    TreeEntry::Symlink { node, target: target.clone(), attributes }
                }
                FileNodeKind::Pipe => TreeEntry::Pipe { node, attributes },
                FileNodeKind::File { .. } => {
                    let content = content_mut(self.contents, self.recording, node).clone();
                    TreeEntry::File { node, content, attributes }
                }
            };
            let is_directory = matches!(entry, TreeEntry::Directory { .. });
            if !self.leftovers.is_empty() && self.leftovers.contains(&NodeName { dir, name: name.clone() }) {
                self.leftover_names.insert((root, path.clone()));
            }
            self.entries.push(((root, path.clone()), entry));
            if is_directory {
                self.walk_directory(root, node, &path);
            }
        }
    }
}

impl FileTree {
    /// The length of all files together, in bytes.
    pub fn len_bytes(&self) -> u64 {
        let len_bytes = |entry: &TreeEntry| match entry {
            TreeEntry::File { content, .. } => content.len(),
            TreeEntry::Directory { .. } | TreeEntry::Symlink { .. } | TreeEntry::Pipe { .. } => 0,
        };
        self.entries.values().map(len_bytes).sum()
    }

    /// Equal digests mean equal trees: names, bytes, attributes, and which names are names of one file. A
    /// modification time that follows from the operations does not count, nor whether that of a directory does.
    pub fn digest(&self) -> [u8; 16] {
        use std::os::unix::ffi::OsStrExt;
        // One hash over one buffer: many small updates cost several times as much.
        let mut bytes = Vec::with_capacity(self.entries.len() * 64);
        let mut append = |parts: &[&[u8]]| {
            for part in parts {
                bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
                bytes.extend_from_slice(part);
            }
        };
        let attributes_key = |attributes: EntryAttributes| {
            let [a, b, c, d] = attributes.set.to_le_bytes();
            [a, b, c, d, u8::from(attributes.keeps_time)]
        };
        self.roots.iter().for_each(|root| append(&[&root.set.to_le_bytes()]));
        let mut first_names: HashMap<NodeId, u32> = HashMap::with_capacity(self.entries.len());
        for (index, ((root, path), entry)) in (0..).zip(&self.entries) {
            append(&[&root.to_le_bytes(), path.as_os_str().as_bytes()]);
            let is_leftover =
                !self.leftover_names.is_empty() && self.leftover_names.contains(&(*root, path.clone()));
            let mut first_name = |node: &NodeId| match is_leftover {
                true => [0; 4],
                false => (index - *first_names.entry(*node).or_insert(index)).to_le_bytes(),
            };
            match entry {
                TreeEntry::Directory { attributes } => append(&[b"d", &attributes.set.to_le_bytes()]),
                TreeEntry::Symlink { node, target, attributes } => {
                    append(&[
                        b"l",
                        target.as_os_str().as_bytes(),
                        &attributes_key(*attributes),
                        &first_name(node),
                    ]);
                }
                TreeEntry::Pipe { node, attributes } => {
                    append(&[b"p", &attributes_key(*attributes), &first_name(node)]);
                }
                TreeEntry::File { node, content, attributes } => {
                    append(&[b"f", &content.structure(), &attributes_key(*attributes), &first_name(node)]);
                }
            }
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsed_name_gives_the_same_candidate() {
        let unit = |op, part| PersistUnit { op, part };
        let torn = |op, tear| Some(TornWrite { op, tear });
        for torn in [None, torn(7, Tear::Prefix(4096)), torn(3, Tear::Hole(8))] {
            let candidate = CrashCandidate { op_count: 12, lost: vec![unit(3, 0), unit(9, 1)], torn };
            assert_eq!(CrashCandidate::parse(&candidate.name()), Some(candidate));
        }
        for name in ["12-x", "12~7", "12~7x1", "12~p1"] {
            assert_eq!(CrashCandidate::parse(name), None, "{name}");
        }
    }
}
