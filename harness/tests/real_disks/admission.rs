//! Decides by the rules of a model whether a power loss may leave a file tree: is there a set of persisted
//! operations, and are there pages of the versions of each file, that together give it? Enumerates no states.
//!
//! What the model says comes from the engine: the units that are durable, and what may happen to the others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use engine::explore::{
    DurableSet, FileNodeKind, FsModel, NameChange, NodeId, OpEffect, PersistUnit, Recording, persist_units,
};

use crate::file_history::{FileHistory, NamePlace, changed_file};
use crate::random_program::RecordedProgram;

/// The unit in which files get their blocks, in bytes.
const PAGE_BYTES: usize = 4096;
/// The unit in which a disk may tear a write, in bytes.
const SECTOR_BYTES: usize = 512;

/// A file or directory of a real file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundFile {
    /// `None`: a directory.
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) inode: u64,
}

/// A tree of a real file system, by path.
pub(crate) type FoundTree = BTreeMap<PathBuf, FoundFile>;

/// When the power was lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CrashMoment {
    /// How many operations had ended. Their syncs count.
    pub(crate) ended: usize,
    /// How many had begun. They may have reached the disk.
    pub(crate) begun: usize,
}

/// Which units are durable at a moment. The engine's model, or a wrong one.
pub(crate) type DurableUnits = BTreeSet<PersistUnit>;

/// The units that the engine's model calls durable after `ended` operations.
pub(crate) fn durable_units(recording: &Recording, model: FsModel, ended: usize) -> DurableUnits {
    let mut durable = DurableSet::new(recording, model);
    (0..ended).for_each(|op| durable.advance(op));
    let ops = recording.ops[..ended].iter().enumerate();
    let units = ops.flat_map(|(index, op)| persist_units(index as u32, &op.effect));
    units.filter(|unit| durable.contains(*unit)).collect()
}

/// The question: may this crash of this program leave that tree?
pub(crate) struct Admission<'a> {
    pub(crate) program: &'a RecordedProgram,
    pub(crate) history: &'a FileHistory,
    pub(crate) model: FsModel,
    pub(crate) durable: &'a DurableUnits,
    pub(crate) moment: CrashMoment,
    pub(crate) found: &'a FoundTree,
}

/// The versions of a file that may have reached the disk, as numbers of operations.
#[derive(Debug, Clone, Copy)]
struct FileWindow {
    node: NodeId,
    /// Truncations, lengths and new blocks are those of this version or of an earlier one.
    metadata: usize,
    /// Bytes of blocks that the file had then are at most from this version.
    last: usize,
}

/// Why each commit does not give the tree.
#[derive(Default)]
struct Refusals {
    text: String,
    last: String,
}

impl Refusals {
    fn add(&mut self, op_count: usize, refusal: String) {
        if refusal != self.last {
            self.text += &format!("commit after {op_count} operations: {refusal}\n");
            self.last = refusal;
        }
    }
}

impl Admission<'_> {
    /// Why no admissible crash leaves the tree. `None`: one does.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self.model {
            FsModel::Btrfs => self.refusal_by_inodes(),
            _ => self.refusal_in_order(),
        }
    }

    fn recording(&self) -> &Recording {
        &self.program.recording
    }

    fn is_durable(&self, op: usize) -> bool {
        let units = persist_units(op as u32, &self.recording().ops[op].effect);
        units.into_iter().any(|unit| self.durable.contains(&unit))
    }

    /// All writes to the file before this number of operations are on the disk.
    fn writes_durable_until(&self, node: NodeId) -> usize {
        let is_durable_write = |op: &usize| {
            let effect = &self.recording().ops[*op].effect;
            let is_write = matches!(effect, OpEffect::Write { .. });
            is_write && changed_file(effect) == Some(node) && self.is_durable(*op)
        };
        (0..self.moment.ended).rfind(is_durable_write).map_or(0, |op| op + 1)
    }

    /// Names and lengths are persisted in order: up to some operation, and none after it.
    fn refusal_in_order(&self) -> Option<String> {
        let is_in_journal = |op: &usize| match self.recording().ops[*op].effect {
            OpEffect::NameChanges(_) => true,
            OpEffect::Resize { node, .. } => {
                self.history.content(node, *op).len() != self.history.content(node, op + 1).len()
            }
            _ => false,
        };
        let first = (0..self.moment.ended)
            .rfind(|op| is_in_journal(op) && self.is_durable(*op))
            .map_or(0, |op| op + 1);
        let mut refusals = Refusals::default();
        for metadata in first..=self.moment.begun {
            match self.refusal_at(metadata) {
                None => return None,
                Some(refusal) => refusals.add(metadata, refusal),
            }
        }
        Some(refusals.text)
    }

    fn refusal_at(&self, metadata: usize) -> Option<String> {
        let paths = self.history.paths(metadata);
        if !paths.keys().eq(self.found.keys()) {
            return Some(format!("{:?} instead of {:?}", self.found.keys(), paths.keys()));
        }
        paths.iter().zip(self.found.values()).find_map(|((path, node), found)| {
            let window = FileWindow { node: *node, metadata, last: self.moment.begun };
            self.content_refusal(window, found).map(|refusal| format!("{}: {refusal}", path.display()))
        })
    }

    /// Each inode is as it was at the last commit or, if files were synced after that, at a later moment: a rename
    /// of a file that is in the log tree changes the log tree, which any program's next sync writes.
    fn refusal_by_inodes(&self) -> Option<String> {
        let ops = &self.recording().ops;
        let is_commit = |op: &usize| matches!(ops[*op].effect, OpEffect::SyncAll);
        let first = (0..self.moment.ended).rfind(is_commit).map_or(0, |op| op + 1);
        let mut refusals = Refusals::default();
        for committed in first..=self.moment.begun {
            let has_synced =
                (committed..self.moment.begun).any(|op| matches!(ops[op].effect, OpEffect::Sync { .. }));
            let logged = if has_synced { self.moment.begun } else { committed };
            match self.refusal_between(committed, logged) {
                None => return None,
                Some(refusal) => refusals.add(committed, refusal),
            }
        }
        Some(refusals.text)
    }

    fn refusal_between(&self, committed: usize, logged: usize) -> Option<String> {
        let mut found_names: BTreeMap<NodeId, BTreeSet<NamePlace>> = BTreeMap::new();
        let mut files = Vec::new();
        for (path, found) in self.found {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let dir = match parent {
                None => Some(0),
                Some(parent) => self.node_of_inode(self.found[parent].inode),
            };
            let (Some(dir), Some(node)) = (dir, self.node_of_inode(found.inode)) else {
                return Some(format!("{}: a file of no known inode", path.display()));
            };
            let name = path.file_name().unwrap().to_owned();
            found_names.entry(node).or_default().insert(NamePlace { dir, name });
            files.push((path, node, found));
        }
        let taken: BTreeSet<NamePlace> = found_names.values().flatten().cloned().collect();
        for node in 1..self.recording().nodes.len() as NodeId {
            let found = found_names.remove(&node).unwrap_or_default();
            if let Some(refusal) = self.names_refusal(node, &found, &taken, committed..=logged) {
                return Some(format!("node {node} has the names {found:?}: {refusal}"));
            }
        }
        files.into_iter().find_map(|(path, node, found)| {
            // The sync of a directory logs the length of a file without its bytes.
            let window = |metadata| FileWindow { node, metadata, last: metadata };
            let mut lengths = (committed..=logged).map(|moment| self.length_refusal(window(moment), found));
            let mut bytes = (committed..=logged).map(|moment| self.bytes_refusal(window(moment), found));
            let is_allowed =
                lengths.any(|refusal| refusal.is_none()) && bytes.any(|refusal| refusal.is_none());
            let refusal = || self.content_refusal(window(logged), found).unwrap_or_default();
            (!is_allowed).then(|| format!("{}: {}", path.display(), refusal()))
        })
    }

    /// In each directory the node has the names of one moment, without those that another file has taken: a sync of
    /// a directory logs what happened in it, not what happened elsewhere. A file that always had a name has one.
    fn names_refusal(
        &self,
        node: NodeId,
        found: &BTreeSet<NamePlace>,
        taken: &BTreeSet<NamePlace>,
        moments: RangeInclusive<usize>,
    ) -> Option<String> {
        let names_at = |op_count: usize| self.history.names_of(node, op_count);
        let is_lost = found.is_empty() && moments.clone().all(|at| !names_at(at).is_empty());
        if is_lost {
            return Some("it is lost".to_owned());
        }
        let dirs: BTreeSet<NodeId> =
            (0..=self.moment.begun).flat_map(names_at).chain(found.clone()).map(|name| name.dir).collect();
        dirs.into_iter().find_map(|dir| {
            let first = (*moments.start()).max(self.names_durable_until(node, dir));
            let is_as_found = |op_count: usize| {
                let names = names_at(op_count);
                let mut here = names.iter().filter(|name| name.dir == dir);
                let mut found = found.iter().filter(|name| name.dir == dir);
                here.all(|name| taken.contains(name)) && found.all(|name| names.contains(name))
            };
            let is_possible = (first..=*moments.end()).any(is_as_found);
            (!is_possible).then(|| format!("not those in directory {dir} since {first}..={}", moments.end()))
        })
    }

    /// Numbers of inodes are not used again on btrfs.
    fn node_of_inode(&self, inode: u64) -> Option<NodeId> {
        self.program.nodes_by_inode.get(&inode)?.last().copied()
    }

    /// All names in the directory that the node got or lost before this number of operations are so on the disk. A
    /// file that was replaced by a synced one may still have an older name. So may a synced file that was removed
    /// later: that takes it out of the log tree.
    fn names_durable_until(&self, node: NodeId, dir: NodeId) -> usize {
        let is_durable = |op: &usize| {
            let names = self.history.names(*op).get(&dir);
            let changes = self.recording().ops[*op].name_changes().iter().enumerate();
            changes.filter(|(_, change)| change.dir == dir).any(|(part, change)| {
                let is_removed =
                    change.node.is_none() && names.and_then(|names| names.get(&change.name)) == Some(&node);
                let unit = PersistUnit { op: *op as u32, part: part as u8 };
                (change.node == Some(node) || is_removed) && self.durable.contains(&unit)
            })
        };
        let removes = |op: usize| {
            let changes = self.recording().ops[op].name_changes();
            let names = self.history.names(op).get(&dir);
            let is_removed = |change: &NameChange| {
                change.dir == dir && names.and_then(|names| names.get(&change.name)) == Some(&node)
            };
            changes.iter().any(is_removed) && !changes.iter().any(|change| change.node == Some(node))
        };
        match (0..self.moment.ended).rfind(is_durable) {
            Some(op) if !(op + 1..self.moment.begun).any(removes) => op + 1,
            _ => 0,
        }
    }

    /// Why the file cannot have this content. `None`: it can.
    fn content_refusal(&self, window: FileWindow, found: &FoundFile) -> Option<String> {
        self.length_refusal(window, found).or_else(|| self.bytes_refusal(window, found))
    }

    fn bytes_refusal(&self, window: FileWindow, found: &FoundFile) -> Option<String> {
        let mut pages = found.bytes.as_deref()?.chunks(PAGE_BYTES).enumerate();
        pages.find_map(|(page, bytes)| self.page_refusal(window, page, bytes))
    }

    /// The length is that of a version since the last persisted truncation, or ends at a page between two.
    fn length_refusal(&self, window: FileWindow, found: &FoundFile) -> Option<String> {
        let is_directory =
            matches!(self.recording().nodes[window.node as usize].kind, FileNodeKind::Directory);
        let bytes = match &found.bytes {
            Some(_) if is_directory => return Some("a file instead of a directory".to_owned()),
            None if !is_directory => return Some("a directory instead of a file".to_owned()),
            None => return None,
            Some(bytes) => bytes,
        };
        let first = self.length_durable_since(window);
        let length = |op_count: usize| self.history.content(window.node, op_count).len();
        let (shortest, longest) = (length(first), length(window.metadata));
        let is_between = (shortest..=longest).contains(&bytes.len());
        let is_of_a_version = (first..=window.metadata).any(|op_count| length(op_count) == bytes.len());
        let is_allowed = is_of_a_version || (is_between && bytes.len().is_multiple_of(PAGE_BYTES));
        (!is_allowed).then(|| format!("{} bytes, not {shortest}..={longest}", bytes.len()))
    }

    fn length_durable_since(&self, window: FileWindow) -> usize {
        let recording = self.recording();
        let is_resize = |op: &usize| match recording.ops[*op].effect {
            OpEffect::Resize { node, .. } => node == window.node,
            _ => false,
        };
        let replaces = |op: &usize| {
            self.model.behavior().replace_persists_size && recording.replacing_node(*op) == Some(window.node)
        };
        let resized = (0..window.metadata).rfind(is_resize).map_or(0, |op| op + 1);
        let replaced = (0..window.metadata).rfind(replaces).unwrap_or(0);
        let durable = self.writes_durable_until(window.node).min(window.metadata);
        resized.max(replaced).max(durable)
    }

    /// Each sector of the page is that of an admissible version, or zeroes if the page may have no block.
    fn page_refusal(&self, window: FileWindow, page: usize, bytes: &[u8]) -> Option<String> {
        let recording = self.recording();
        let start_of_page = page * PAGE_BYTES;
        let frees = |op: &usize| match recording.ops[*op].effect {
            OpEffect::Resize { node, size_bytes } => {
                node == window.node && size_bytes as usize <= start_of_page
            }
            _ => false,
        };
        let writes = |op: &usize| match recording.ops[*op].effect {
            OpEffect::Write { node, offset, len_bytes, .. } => {
                node == window.node
                    && (offset as usize) < start_of_page + PAGE_BYTES
                    && (offset + len_bytes) as usize > start_of_page
            }
            _ => false,
        };
        let freed = (0..window.metadata).rfind(frees).map_or(0, |op| op + 1);
        let last = (window.metadata..window.last).find(frees).unwrap_or(window.last);
        let durable = self.writes_durable_until(window.node);
        let is_allocated = (freed..window.metadata).any(|op| writes(&op));
        let must_be_allocated = (freed..durable.min(window.metadata)).any(|op| writes(&op));
        let versions = if is_allocated { freed.max(durable).min(last)..last + 1 } else { 0..0 };
        for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            let start = start_of_page + number * SECTOR_BYTES;
            let is_of_version = |op_count: usize| {
                let content = self.history.content(window.node, op_count);
                (0..sector.len()).all(|at| sector[at] == content.get(start + at).copied().unwrap_or(0))
            };
            let may_be_missing = !is_allocated || self.model.behavior().unwritten_zeroes;
            let is_missing = may_be_missing && !must_be_allocated && sector.iter().all(|byte| *byte == 0);
            if !is_missing && !versions.clone().any(is_of_version) {
                let zeroes = sector.iter().filter(|byte| **byte == 0).count();
                return Some(format!(
                    "byte {start} and the {} after it ({zeroes} zeroes) are of none of the versions {versions:?}",
                    sector.len()
                ));
            }
        }
        None
    }
}
