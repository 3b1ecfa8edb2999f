//! Replays the operations of a crash candidate: the file tree that the crash leaves. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::PathBuf;

use super::crash_candidate::{CrashCandidate, TornWrite};
use super::file_tree::{
    DigestedName, EntryAttributes, EntryView, FileTree, TreeDigester, TreeEntry, ViewedEntry,
};
use super::persist_unit::{BYTES_PART, PersistUnit};
use crate::explore::record::{
    AttributesId, ByteSource, FileContent, FileNodeKind, NameChange, NodeId, OpEffect, Recording,
};

impl CrashCandidate {
    /// Computes the file tree that this crash leaves.
    pub fn tree(&self, recording: &Recording) -> FileTree {
        TreeReplay::of(self, recording).tree()
    }

    /// The digest of that tree.
    pub(super) fn tree_digest(&self, recording: &Recording) -> [u8; 16] {
        TreeReplay::of(self, recording).digest()
    }
}

/// The digests of the trees of crashes that lose nothing but the end of the last operation, each from the one before
/// it. They are in the order of the numbers of operations that have happened in full.
pub(super) fn digests_of_prefixes(recording: &Recording, crashes: &[&CrashCandidate]) -> Vec<[u8; 16]> {
    let mut replay = TreeReplay::new(recording);
    let mut happened = 0;
    let digests = crashes.iter().map(|crash| {
        while happened < crash.whole_op_count() {
            replay.apply_whole(happened);
            happened += 1;
        }
        if crash.torn.is_none() { replay.digest() } else { replay.digest_with(crash, happened) }
    });
    digests.collect()
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct NodeName<'r> {
    dir: NodeId,
    name: &'r OsStr,
}

/// The attributes of a node at a crash point.
#[derive(Debug, Clone, Copy)]
struct SetAttributes {
    set: AttributesId,
    /// The 1-based operation that set them; 0 for none.
    since: u32,
}

/// The names, the contents and the attributes that a crash leaves.
struct TreeReplay<'r> {
    recording: &'r Recording,
    /// By directory.
    names: BTreeMap<NodeId, BTreeMap<&'r OsStr, NodeId>>,
    /// Old names of renames that are half done.
    leftovers: HashSet<NodeName<'r>>,
    /// By node. `None`: as before the recording.
    contents: Vec<Option<FileContent>>,
    /// By node: the 1-based operation that last changed it; 0 for none.
    last_changes: Vec<u32>,
    attributes: HashMap<NodeId, SetAttributes>,
    /// Files that have lost a truncation.
    frozen_files: HashSet<NodeId>,
}

/// The units of one operation that are lost.
#[derive(Clone, Copy)]
struct LostParts<'c> {
    units: &'c [PersistUnit],
}

impl LostParts<'_> {
    fn has(self, part: usize) -> bool {
        self.units.iter().any(|unit| usize::from(unit.part) == part)
    }
}

impl<'r> TreeReplay<'r> {
    /// Nothing has happened.
    fn new(recording: &'r Recording) -> TreeReplay<'r> {
        let borrowed = |names: &'r BTreeMap<_, NodeId>| -> BTreeMap<&'r OsStr, NodeId> {
            names.iter().map(|(name, node): (&'r std::ffi::OsString, _)| (name.as_os_str(), *node)).collect()
        };
        TreeReplay {
            recording,
            names: recording.initial_names.iter().map(|(dir, names)| (*dir, borrowed(names))).collect(),
            leftovers: HashSet::new(),
            contents: vec![None; recording.nodes.len()],
            last_changes: vec![0; recording.nodes.len()],
            attributes: HashMap::new(),
            frozen_files: HashSet::new(),
        }
    }

    /// Replays everything that reached the disk.
    fn of(candidate: &CrashCandidate, recording: &'r Recording) -> TreeReplay<'r> {
        let mut replay = TreeReplay::new(recording);
        let mut lost = &candidate.lost[..];
        for (index, op) in recording.ops[..candidate.op_count as usize].iter().enumerate() {
            let of_op = lost.iter().take_while(|unit| unit.op as usize == index).count();
            let (units, rest) = lost.split_at(of_op);
            lost = rest;
            replay.apply(candidate.torn, index, &op.effect, LostParts { units });
        }
        replay
    }

    /// Replays one operation, of which nothing is lost.
    fn apply_whole(&mut self, index: usize) {
        self.apply(None, index, &self.recording.ops[index].effect, LostParts { units: &[] });
    }

    /// The digest after one more write, which is torn. The write is taken back after that.
    fn digest_with(&mut self, crash: &CrashCandidate, index: usize) -> [u8; 16] {
        let effect = &self.recording.ops[index].effect;
        let OpEffect::Write { node, .. } = effect else { return crash.tree_digest(self.recording) };
        let before = (self.contents[*node as usize].clone(), self.last_changes[*node as usize]);
        self.apply(crash.torn, index, effect, LostParts { units: &[] });
        let digest = self.digest();
        (self.contents[*node as usize], self.last_changes[*node as usize]) = before;
        digest
    }

    fn apply(&mut self, torn: Option<TornWrite>, index: usize, effect: &'r OpEffect, lost: LostParts<'_>) {
        let number = index as u32 + 1;
        match effect {
            OpEffect::NameChanges(changes) => self.apply_name_changes(number, changes, lost),
            OpEffect::Resize { node, .. } | OpEffect::Write { node, .. } | OpEffect::Zero { node, .. }
                if !self.frozen_files.is_empty() && self.frozen_files.contains(node) => {}
            // If a truncation is lost, the file keeps its old blocks, so that no later change of it is
            // visible.
            OpEffect::Resize { node, .. } if lost.has(0) => drop(self.frozen_files.insert(*node)),
            OpEffect::Resize { node, size_bytes } => self.changed(*node, number).resize(*size_bytes),
            OpEffect::Zero { node, offset, len_bytes } if !lost.has(0) => {
                self.changed(*node, number).put(*offset, *len_bytes, ByteSource::Zeroes);
            }
            OpEffect::Write { node, offset, len_bytes, payload_offset } if !lost.has(0) => {
                let content = self.changed(*node, number);
                match torn.filter(|torn| torn.op as usize == index) {
                    // Old blocks keep their bytes, new ones are zeroes.
                    _ if lost.has(BYTES_PART.into()) => content.extend_to(offset + len_bytes),
                    Some(torn) => torn.tear.put(content, *offset, *len_bytes, *payload_offset),
                    None => content.put(*offset, *len_bytes, ByteSource::PayloadLog(*payload_offset)),
                }
            }
            OpEffect::SetAttributes { node, attributes: set, touches } if !lost.has(0) => {
                self.attributes.insert(*node, SetAttributes { set: *set, since: number });
                if *touches {
                    self.last_changes[*node as usize] = number;
                }
            }
            _ => {}
        }
    }

    fn apply_name_changes(&mut self, number: u32, changes: &'r [NameChange], lost: LostParts<'_>) {
        for (_, change) in changes.iter().enumerate().filter(|(part, _)| !lost.has(*part)) {
            self.last_changes[change.dir as usize] = number;
            let directory = self.names.entry(change.dir).or_default();
            let name = change.name.as_os_str();
            match change.node {
                Some(node) => drop(directory.insert(name, node)),
                None => drop(directory.remove(name)),
            }
            if !self.leftovers.is_empty() {
                self.leftovers.remove(&NodeName { dir: change.dir, name });
            }
        }
        if let [_, old] = changes
            && old.node.is_none()
            && lost.has(1)
            && !lost.has(0)
        {
            self.leftovers.insert(NodeName { dir: old.dir, name: &old.name });
        }
    }

    /// The content of a file, which this operation changes.
    fn changed(&mut self, node: NodeId, number: u32) -> &mut FileContent {
        self.last_changes[node as usize] = number;
        let recording = self.recording;
        self.contents[node as usize].get_or_insert_with(|| initial_content(recording, node))
    }

    fn attributes_of(&self, node: NodeId) -> EntryAttributes {
        let last_change = self.last_changes[node as usize];
        let at_first = || SetAttributes { set: self.recording.nodes[node as usize].attributes, since: 0 };
        let SetAttributes { set, since } = self.attributes.get(&node).copied().unwrap_or_else(at_first);
        let has_time = self.recording.attributes(set).modified.is_some();
        EntryAttributes { set, keeps_time: has_time && last_change <= since, last_change }
    }

    fn roots(&self) -> Vec<EntryAttributes> {
        (0..self.recording.roots.len() as NodeId).map(|root| self.attributes_of(root)).collect()
    }

    /// The tree.
    fn tree(&self) -> FileTree {
        // The entries are collected in the order of the paths, so that the map can be built in one pass.
        let mut entries: Vec<((u32, PathBuf), TreeEntry)> = Vec::new();
        let mut leftover_names = BTreeSet::new();
        self.walk(&mut |name, viewed| {
            let place = (name.root, name.path.to_path_buf());
            if name.is_leftover {
                leftover_names.insert(place.clone());
            }
            entries.push((place, viewed.to_entry()));
        });
        FileTree { roots: self.roots(), entries: entries.into_iter().collect(), leftover_names }
    }

    /// The digest of the tree.
    fn digest(&self) -> [u8; 16] {
        let mut digester = TreeDigester::new(&self.roots());
        self.walk(&mut |name, viewed| digester.add(name, viewed));
        digester.digest()
    }

    /// Visits the entries that can be reached from the watched directories.
    fn walk(&self, visit: &mut impl FnMut(DigestedName<'_>, ViewedEntry<'_>)) {
        let mut path = PathBuf::new();
        for root in 0..self.recording.roots.len() as u32 {
            self.walk_directory(root, root, &mut path, visit);
        }
    }

    fn walk_directory(
        &self,
        root: u32,
        dir: NodeId,
        path: &mut PathBuf,
        visit: &mut impl FnMut(DigestedName<'_>, ViewedEntry<'_>),
    ) {
        for (name, &node) in self.names.get(&dir).into_iter().flatten() {
            path.push(name);
            let initial;
            let entry = match &self.recording.nodes[node as usize].kind {
                FileNodeKind::Directory => EntryView::Directory,
                FileNodeKind::Symlink { target } => EntryView::Symlink { node, target },
                FileNodeKind::Pipe => EntryView::Pipe { node },
                FileNodeKind::File { .. } => match &self.contents[node as usize] {
                    Some(content) => EntryView::File { node, content },
                    None => {
                        initial = initial_content(self.recording, node);
                        EntryView::File { node, content: &initial }
                    }
                },
            };
            let is_leftover = !self.leftovers.is_empty() && self.leftovers.contains(&NodeName { dir, name });
            let viewed = ViewedEntry { attributes: self.attributes_of(node), entry };
            visit(DigestedName { root, path: path.as_path(), is_leftover }, viewed);
            if matches!(entry, EntryView::Directory) {
                self.walk_directory(root, node, path, visit);
            }
            path.pop();
        }
    }
}

fn initial_content(recording: &Recording, node: NodeId) -> FileContent {
    match recording.nodes.get(node as usize).map(|node| &node.kind) {
        Some(FileNodeKind::File { initial_len_bytes }) => FileContent::initial(node, *initial_len_bytes),
        _ => FileContent::default(),
    }
}
