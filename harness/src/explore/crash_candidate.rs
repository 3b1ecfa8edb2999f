//! One way in which a crash can leave the files: what had happened, and which of it was lost or torn. And the tree that it makes.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::content::{ByteSource, FileContent};
use super::fs_model::{BYTES_PART, PersistUnit};
use super::recording::{FileNode, NodeId, OpEffect, Recording};

/// What became of a write that was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tear {
    /// Only its first bytes.
    Prefix(u64),
    /// Whole in length, but from here on zeroes.
    ZeroTail(u64),
    /// Whole in length, but from here on whatever was in those blocks.
    GarbageTail(u64),
    /// Whole in length, but the first bytes are missing.
    Hole(u64),
}

/// A moment, and what of the operations before it did not reach the disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CrashCandidate {
    /// So many operations have happened.
    pub op_count: u32,
    /// Sorted.
    pub lost: Vec<PersistUnit>,
    pub torn: Option<(u32, Tear)>,
}

/// What a name stands for in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TreeEntry {
    /// With the operation that changed its names last, 1-based; 0: none did.
    Directory {
        last_change: u32,
    },
    /// With the operation that changed its content last.
    File {
        node: NodeId,
        content: FileContent,
        last_change: u32,
    },
    Symlink(PathBuf),
}

/// The files that a candidate leaves: by number of the watched folder and path below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileTree {
    pub entries: BTreeMap<(u32, PathBuf), TreeEntry>,
}

impl CrashCandidate {
    /// Everything up to `k` is there.
    pub fn whole(k: usize) -> CrashCandidate {
        CrashCandidate { op_count: k as u32, lost: Vec::new(), torn: None }
    }

    fn is_lost(&self, op: usize, part: usize) -> bool {
        self.lost.binary_search(&PersistUnit { op: op as u32, part: part as u8 }).is_ok()
    }

    /// Short text by which a state is named and repeated: `k`, then what was lost, then what was torn.
    pub fn name(&self) -> String {
        let mut name = self.op_count.to_string();
        for unit in &self.lost {
            name += &format!("-{}", unit.op);
            if unit.part > 0 {
                name += &format!(".{}", unit.part);
            }
        }
        if let Some((op, tear)) = self.torn {
            let (letter, at) = match tear {
                Tear::Prefix(at) => ('p', at),
                Tear::ZeroTail(at) => ('z', at),
                Tear::GarbageTail(at) => ('g', at),
                Tear::Hole(at) => ('h', at),
            };
            name += &format!("~{op}{letter}{at}");
        }
        name
    }

    /// Reads a name back.
    pub fn parse(name: &str) -> Option<CrashCandidate> {
        let (rest, torn) = match name.split_once('~') {
            None => (name, None),
            Some((rest, torn)) => {
                let letter = torn.find(|letter: char| letter.is_ascii_alphabetic())?;
                let at = torn[letter + 1..].parse().ok()?;
                let tear = match &torn[letter..=letter] {
                    "p" => Tear::Prefix(at),
                    "z" => Tear::ZeroTail(at),
                    "g" => Tear::GarbageTail(at),
                    "h" => Tear::Hole(at),
                    _ => return None,
                };
                (rest, Some((torn[..letter].parse().ok()?, tear)))
            }
        };
        let mut parts = rest.split('-');
        let k = parts.next()?.parse().ok()?;
        let unit = |text: &str| -> Option<PersistUnit> {
            let (op, part) = text.split_once('.').unwrap_or((text, "0"));
            Some(PersistUnit { op: op.parse().ok()?, part: part.parse().ok()? })
        };
        let mut lost = parts.map(unit).collect::<Option<Vec<PersistUnit>>>()?;
        lost.sort_unstable();
        Some(CrashCandidate { op_count: k, lost, torn })
    }

    /// The tree that it leaves.
    pub fn tree(&self, recording: &Recording) -> FileTree {
        let mut names = recording.initial_names.clone();
        let (mut contents, mut touched) = (HashMap::new(), HashMap::new());
        let mut stopped = Vec::new();
        for (index, op) in recording.ops[..self.op_count as usize].iter().enumerate() {
            match &op.effect {
                OpEffect::NameChanges(changes) => {
                    let kept = changes.iter().enumerate().filter(|(part, _)| !self.is_lost(index, *part));
                    for (_, change) in kept {
                        touched.insert(change.dir, index as u32 + 1);
                        let folder = names.entry(change.dir).or_default();
                        match change.node {
                            Some(node) => drop(folder.insert(change.name.clone(), node)),
                            None => drop(folder.remove(&change.name)),
                        }
                    }
                }
                OpEffect::Resize { node, .. }
                | OpEffect::Write { node, .. }
                | OpEffect::Zero { node, .. }
                    if stopped.contains(node) => {}
                // Blocks that a lost truncation would have freed are still the old ones: nothing later shows.
                OpEffect::Resize { node, .. } if self.is_lost(index, 0) => stopped.push(*node),
                OpEffect::Resize { node, size_bytes: size } => {
                    touched.insert(*node, index as u32 + 1);
                    content_mut(&mut contents, recording, *node).resize(*size);
                }
                OpEffect::Zero { node, offset, len_bytes: bytes } if !self.is_lost(index, 0) => {
                    touched.insert(*node, index as u32 + 1);
                    content_mut(&mut contents, recording, *node).put(*offset, *bytes, ByteSource::Zeroes);
                }
                OpEffect::Write { node, offset, len_bytes: bytes, payload_offset: at }
                    if !self.is_lost(index, 0) =>
                {
                    touched.insert(*node, index as u32 + 1);
                    let content = content_mut(&mut contents, recording, *node);
                    if self.is_lost(index, BYTES_PART.into()) {
                        content.put(*offset, *bytes, ByteSource::Zeroes);
                        continue;
                    }
                    let tear = self.torn.filter(|(op, _)| *op as usize == index).map(|(_, tear)| tear);
                    write_torn(content, *offset, *bytes, *at, tear);
                }
                _ => {}
            }
        }
        // In the order of a tree's paths, so that the map is built at once.
        let mut leaves = Vec::new();
        for root in 0..recording.roots.len() {
            let mut walk = TreeWalk {
                recording,
                names: &names,
                contents: &mut contents,
                last_changes: &touched,
                entries: &mut leaves,
            };
            walk.walk_directory(root as u32, root as NodeId, &PathBuf::new());
        }
        FileTree { entries: leaves.into_iter().collect() }
    }
}

fn write_torn(content: &mut FileContent, offset: u64, bytes: u64, at: u64, tear: Option<Tear>) {
    match tear {
        None => content.put(offset, bytes, ByteSource::PayloadLog(at)),
        Some(Tear::Prefix(kept)) => content.put(offset, kept.min(bytes), ByteSource::PayloadLog(at)),
        Some(Tear::ZeroTail(kept)) => {
            content.put(offset, bytes, ByteSource::Zeroes);
            content.put(offset, kept.min(bytes), ByteSource::PayloadLog(at));
        }
        Some(Tear::GarbageTail(kept)) => {
            content.put(offset, bytes, ByteSource::Garbage);
            content.put(offset, kept.min(bytes), ByteSource::PayloadLog(at));
        }
        Some(Tear::Hole(missing)) => {
            let missing = missing.min(bytes);
            content.put(offset, missing, ByteSource::Zeroes);
            content.put(offset + missing, bytes - missing, ByteSource::PayloadLog(at + missing));
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
        Some(FileNode::File { initial_len_bytes: initial, .. }) => FileContent::initial(node, *initial),
        _ => FileContent::default(),
    }
}

/// Collects what can be reached from the watched folders.
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
            let touched = self.last_changes.get(&node).copied().unwrap_or(0);
            let leaf = match &self.recording.nodes[node as usize] {
                FileNode::Directory { .. } => TreeEntry::Directory { last_change: touched },
                FileNode::Symlink { target: text } => TreeEntry::Symlink(text.clone()),
                FileNode::File { .. } => {
                    let content = content_mut(self.contents, self.recording, node).clone();
                    TreeEntry::File { node, content, last_change: touched }
                }
            };
            let is_folder = matches!(leaf, TreeEntry::Directory { .. });
            self.entries.push(((root, path.clone()), leaf));
            if is_folder {
                self.walk_directory(root, node, &path);
            }
        }
    }
}

impl FileTree {
    /// Two trees with the same digest are the same, byte for byte.
    pub fn digest(&self) -> [u8; 16] {
        use std::os::unix::ffi::OsStrExt;
        // One long text: hashing many short ones costs several times as much.
        let mut text = Vec::with_capacity(self.entries.len() * 64);
        let mut piece = |parts: &[&[u8]]| {
            for part in parts {
                text.extend_from_slice(&(part.len() as u32).to_le_bytes());
                text.extend_from_slice(part);
            }
        };
        for ((root, path), leaf) in &self.entries {
            piece(&[&root.to_le_bytes(), path.as_os_str().as_bytes()]);
            match leaf {
                TreeEntry::Directory { .. } => piece(&[b"d"]),
                TreeEntry::Symlink(text) => piece(&[b"l", text.as_os_str().as_bytes()]),
                TreeEntry::File { content, .. } => piece(&[b"f", &content.structure()]),
            }
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(&text).as_bytes()[..16]);
        digest
    }
}

impl FileContent {
    /// By structure: equal digests mean equal bytes; unequal ones may.
    pub fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(&self.structure()).as_bytes()[..16]);
        digest
    }

    fn structure(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for piece in self.pieces() {
            let (kind, a, b) = match piece.source {
                ByteSource::PayloadLog(at) => (0u8, at, 0),
                ByteSource::Initial(node, at) => (1, at, u64::from(node)),
                ByteSource::Zeroes => (2, 0, 0),
                ByteSource::Garbage => (3, 0, 0),
            };
            text.push(kind);
            [a, b, piece.len_bytes].iter().for_each(|number| text.extend_from_slice(&number.to_le_bytes()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_as_the_candidate_that_it_was() {
        let unit = |op, part| PersistUnit { op, part };
        for torn in [None, Some((7, Tear::Prefix(4096))), Some((3, Tear::Hole(8)))] {
            let candidate = CrashCandidate { op_count: 12, lost: vec![unit(3, 0), unit(9, 1)], torn };
            assert_eq!(CrashCandidate::parse(&candidate.name()), Some(candidate));
        }
        assert_eq!(CrashCandidate::parse("12-x"), None);
    }
}
