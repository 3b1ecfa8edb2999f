//! A crash point with its persisted set: what had happened, and what of it was lost or torn. Computes the
//! file tree that is left. Pure; does not know which candidates a model allows.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::content::{ByteSource, FileContent};
use super::fs_model::{BYTES_PART, PersistUnit};
use super::recording::{FileNode, NodeId, OpEffect, Recording};

/// How a write reached the disk in part. The numbers are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tear {
    /// Only its first bytes are written.
    Prefix(u64),
    /// The length is right, but the bytes from here on are zeroes.
    ZeroTail(u64),
    /// The length is right, but the bytes from here on are what those blocks held before.
    GarbageTail(u64),
    /// The length is right, but the first bytes are zeroes.
    Hole(u64),
}

/// A crash point, and what did not reach the disk of the operations before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CrashCandidate {
    /// The crash point: how many operations have happened.
    pub op_count: u32,
    /// The units that did not reach the disk. Sorted.
    pub lost: Vec<PersistUnit>,
    /// The write that reached the disk in part, by its index.
    pub torn: Option<(u32, Tear)>,
}

/// What a path of a [`FileTree`] refers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TreeEntry {
    /// `last_change`: the 1-based operation that last changed its names; 0 for none.
    Directory { last_change: u32 },
    /// `last_change`: the 1-based operation that last changed its content; 0 for none.
    File { node: NodeId, content: FileContent, last_change: u32 },
    /// With its target.
    Symlink(PathBuf),
}

/// The files that a crash leaves, by the index of the watched directory and the path below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileTree {
    /// In the order of the paths.
    pub entries: BTreeMap<(u32, PathBuf), TreeEntry>,
}

impl CrashCandidate {
    /// A crash after `op_count` operations that lost nothing.
    pub fn whole(op_count: usize) -> CrashCandidate {
        CrashCandidate { op_count: op_count as u32, lost: Vec::new(), torn: None }
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
        if let Some((op, tear)) = self.torn {
            let (letter, len_bytes) = match tear {
                Tear::Prefix(len_bytes) => ('p', len_bytes),
                Tear::ZeroTail(len_bytes) => ('z', len_bytes),
                Tear::GarbageTail(len_bytes) => ('g', len_bytes),
                Tear::Hole(len_bytes) => ('h', len_bytes),
            };
            name += &format!("~{op}{letter}{len_bytes}");
        }
        name
    }

    /// Parses what [`name`](CrashCandidate::name) returns. `None`: not a name of a crash state.
    pub fn parse(name: &str) -> Option<CrashCandidate> {
        let (rest, torn) = match name.split_once('~') {
            None => (name, None),
            Some((rest, torn)) => {
                let letter = torn.find(|letter: char| letter.is_ascii_alphabetic())?;
                let len_bytes = torn[letter + 1..].parse().ok()?;
                let tear = match &torn[letter..=letter] {
                    "p" => Tear::Prefix(len_bytes),
                    "z" => Tear::ZeroTail(len_bytes),
                    "g" => Tear::GarbageTail(len_bytes),
                    "h" => Tear::Hole(len_bytes),
                    _ => return None,
                };
                (rest, Some((torn[..letter].parse().ok()?, tear)))
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

    /// Computes the file tree that this crash leaves.
    pub fn tree(&self, recording: &Recording) -> FileTree {
        let mut names = recording.initial_names.clone();
        let (mut contents, mut last_changes) = (HashMap::new(), HashMap::new());
        let mut frozen_files = Vec::new();
        for (index, op) in recording.ops[..self.op_count as usize].iter().enumerate() {
            match &op.effect {
                OpEffect::NameChanges(changes) => {
                    let persisted =
                        changes.iter().enumerate().filter(|(part, _)| !self.is_lost(index, *part));
                    for (_, change) in persisted {
                        last_changes.insert(change.dir, index as u32 + 1);
                        let directory = names.entry(change.dir).or_default();
                        match change.node {
                            Some(node) => drop(directory.insert(change.name.clone(), node)),
                            None => drop(directory.remove(&change.name)),
                        }
                    }
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
                    let tear = self.torn.filter(|(op, _)| *op as usize == index).map(|(_, tear)| tear);
                    write_torn(content, *offset, *len_bytes, *payload_offset, tear);
                }
                _ => {}
            }
        }
        // The entries are collected in the order of the paths, so that the map can be built in one pass.
        let mut entries = Vec::new();
        for root in 0..recording.roots.len() {
            let mut walk = TreeWalk {
                recording,
                names: &names,
                contents: &mut contents,
                last_changes: &last_changes,
                entries: &mut entries,
            };
            walk.walk_directory(root as u32, root as NodeId, &PathBuf::new());
        }
        FileTree { entries: entries.into_iter().collect() }
    }
}

fn write_torn(
    content: &mut FileContent,
    offset: u64,
    len_bytes: u64,
    payload_offset: u64,
    tear: Option<Tear>,
) {
    match tear {
        None => content.put(offset, len_bytes, ByteSource::PayloadLog(payload_offset)),
        Some(Tear::Prefix(written)) => {
            content.put(offset, written.min(len_bytes), ByteSource::PayloadLog(payload_offset))
        }
        Some(Tear::ZeroTail(written)) => {
            content.put(offset, len_bytes, ByteSource::Zeroes);
            content.put(offset, written.min(len_bytes), ByteSource::PayloadLog(payload_offset));
        }
        Some(Tear::GarbageTail(written)) => {
            content.put(offset, len_bytes, ByteSource::Garbage);
            content.put(offset, written.min(len_bytes), ByteSource::PayloadLog(payload_offset));
        }
        Some(Tear::Hole(missing)) => {
            let missing = missing.min(len_bytes);
            content.put(offset, missing, ByteSource::Zeroes);
            content.put(
                offset + missing,
                len_bytes - missing,
                ByteSource::PayloadLog(payload_offset + missing),
            );
        }
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
    match recording.nodes.get(node as usize) {
        Some(FileNode::File { initial_len_bytes, .. }) => FileContent::initial(node, *initial_len_bytes),
        _ => FileContent::default(),
    }
}

/// Collects the entries that can be reached from the watched directories.
struct TreeWalk<'w> {
    recording: &'w Recording,
    names: &'w BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    contents: &'w mut HashMap<NodeId, FileContent>,
    last_changes: &'w HashMap<NodeId, u32>,
    entries: &'w mut Vec<((u32, PathBuf), TreeEntry)>,
}

impl TreeWalk<'_> {
    fn walk_directory(&mut self, root: u32, dir: NodeId, path: &Path) {
        for (name, &node) in self.names.get(&dir).into_iter().flatten() {
            let path = path.join(name);
            let last_change = self.last_changes.get(&node).copied().unwrap_or(0);
            let entry = match &self.recording.nodes[node as usize] {
                FileNode::Directory { .. } => TreeEntry::Directory { last_change },
                FileNode::Symlink { target } => TreeEntry::Symlink(target.clone()),
                FileNode::File { .. } => {
                    let content = content_mut(self.contents, self.recording, node).clone();
                    TreeEntry::File { node, content, last_change }
                }
            };
            let is_directory = matches!(entry, TreeEntry::Directory { .. });
            self.entries.push(((root, path.clone()), entry));
            if is_directory {
                self.walk_directory(root, node, &path);
            }
        }
    }
}

impl FileTree {
    /// Equal digests mean equal trees, byte for byte.
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
        for ((root, path), entry) in &self.entries {
            append(&[&root.to_le_bytes(), path.as_os_str().as_bytes()]);
            match entry {
                TreeEntry::Directory { .. } => append(&[b"d"]),
                TreeEntry::Symlink(target) => append(&[b"l", target.as_os_str().as_bytes()]),
                TreeEntry::File { content, .. } => append(&[b"f", &content.structure()]),
            }
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
        digest
    }
}

impl FileContent {
    /// A digest of the structure. Equal digests mean equal bytes; contents with different digests may also be
    /// equal.
    pub fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(&self.structure()).as_bytes()[..16]);
        digest
    }

    fn structure(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.pieces() {
            let (kind, a, b) = match piece.source {
                ByteSource::PayloadLog(offset) => (0u8, offset, 0),
                ByteSource::Initial(node, offset) => (1, offset, u64::from(node)),
                ByteSource::Zeroes => (2, 0, 0),
                ByteSource::Garbage => (3, 0, 0),
            };
            bytes.push(kind);
            [a, b, piece.len_bytes].iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parsed_name_gives_the_same_candidate() {
        let unit = |op, part| PersistUnit { op, part };
        for torn in [None, Some((7, Tear::Prefix(4096))), Some((3, Tear::Hole(8)))] {
            let candidate = CrashCandidate { op_count: 12, lost: vec![unit(3, 0), unit(9, 1)], torn };
            assert_eq!(CrashCandidate::parse(&candidate.name()), Some(candidate));
        }
        assert_eq!(CrashCandidate::parse("12-x"), None);
    }
}
