//! What is not durable at a crash point. Advances operation by operation. Pure; asks the model only what is
//! durable.

use std::collections::HashMap;

use super::file_mask::{FileMask, PendingWrites};
use super::fs_model::{DurableSet, FsBehavior, PersistUnit, persist_units};
use super::page_masks::distinct_sets;
use super::recording_index::RecordingIndex;
use super::write_pages::allowed_sets;
use crate::explore::record::{NodeId, OpEffect};

/// The units that are not durable at a crash point.
pub(super) struct PendingUnits<'a> {
    pub(super) index: &'a RecordingIndex<'a>,
    pub(super) behavior: FsBehavior,
    /// Changes of names and sizes, by operation, in order. Each with the changes of attributes since the one
    /// before it.
    groups: Vec<Vec<PersistUnit>>,
    /// Changes of attributes after the last of the groups.
    open_group: Vec<PersistUnit>,
    /// Changes of attributes.
    pub(super) attributes: Vec<PersistUnit>,
    /// How many changes of attributes are in a group with a change of a name or a size.
    pub(super) joined_attributes: u64,
    /// The files with pending writes.
    files: Vec<PendingFile>,
    file_indexes: HashMap<NodeId, usize>,
}

/// A file with pending writes.
pub(super) struct PendingFile {
    pub(super) node: NodeId,
    pub(super) writes: PendingWrites,
    /// Tears of its first and its last write.
    pub(super) torn_ends: Vec<FileMask>,
    /// Further masks, which are tried while the file is new.
    pub(super) fine: Vec<FileMask>,
    pub(super) page_sets: PageSetCounts,
}

/// How many sets of pages of a file there are.
#[derive(Default, Clone, Copy)]
pub(super) struct PageSetCounts {
    /// Those that the model allows.
    pub(super) allowed: u64,
    /// Those in which all is lost.
    pub(super) whole: u64,
    /// Those and those of the torn ends.
    pub(super) torn: u64,
    /// Those of all masks.
    pub(super) fine: u64,
}

impl<'a> PendingUnits<'a> {
    pub(super) fn new(index: &'a RecordingIndex<'a>, behavior: FsBehavior) -> PendingUnits<'a> {
        PendingUnits {
            index,
            behavior,
            groups: Vec::new(),
            open_group: Vec::new(),
            attributes: Vec::new(),
            joined_attributes: 0,
            files: Vec::new(),
            file_indexes: HashMap::new(),
        }
    }

    /// Accounts for the operation with index `op`, for which `durable` has accounted too.
    pub(super) fn advance(&mut self, op: usize, durable: &DurableSet<'_>) {
        match self.index.recording.ops[op].effect {
            OpEffect::Sync { .. } | OpEffect::SyncAll | OpEffect::Output { saved_step: Some(_), .. } => {
                self.take_durable(op + 1, durable);
            }
            OpEffect::Output { .. } => {}
            _ => self.add(op, durable),
        }
    }

    /// Takes away what has become durable.
    fn take_durable(&mut self, op_count: usize, durable: &DurableSet<'_>) {
        let names = (0..self.group_count()).flat_map(|index| self.group(index));
        if names.chain(&self.attributes).any(|unit| durable.contains(*unit)) {
            self.groups.clear();
            self.open_group.clear();
            self.attributes.clear();
            self.joined_attributes = 0;
            let ops = &self.index.recording.ops;
            let of_names = (durable.pending_from..op_count).filter(|op| ops[*op].data_node().is_none());
            of_names.for_each(|op| self.add(op, durable));
        }
        let (index, behavior) = (self.index, self.behavior);
        let files = self.files.iter_mut();
        files.for_each(|file| file.writes.retain(|unit| !durable.contains(unit), index, behavior));
        if self.files.iter().any(|file| file.writes.len() == 0) {
            self.files.retain(|file| file.writes.len() > 0);
            let indexes = self.files.iter().enumerate().map(|(index, file)| (file.node, index));
            self.file_indexes = indexes.collect();
        }
    }

    fn add(&mut self, index: usize, durable: &DurableSet<'_>) {
        let op = &self.index.recording.ops[index];
        let mut pending =
            persist_units(index as u32, &op.effect).filter(|unit| !durable.contains(*unit)).peekable();
        if pending.peek().is_none() {
            return;
        }
        if op.attribute_node().is_some() {
            for unit in pending {
                self.attributes.push(unit);
                self.open_group.push(unit);
            }
            return;
        }
        let Some(node) = op.data_node() else {
            self.joined_attributes += self.open_group.len() as u64;
            let mut group = std::mem::take(&mut self.open_group);
            group.extend(pending);
            self.groups.push(group);
            return;
        };
        let file = *self.file_indexes.entry(node).or_insert(self.files.len());
        if file == self.files.len() {
            self.files.push(PendingFile::new(node));
        }
        for unit in pending {
            self.files[file].writes.push(unit, self.index, self.behavior);
        }
    }

    /// Computes the masks of the files that have changed.
    pub(super) fn update_masks(&mut self) {
        for file in self.files.iter_mut().filter_map(|file| file.writes.take_has_changed().then_some(file)) {
            file.torn_ends = file.writes.torn_ends(self.index, self.behavior);
            file.fine = file.writes.fine_masks(self.index, self.behavior);
            file.count_page_sets(FileMask::whole(self.behavior));
        }
    }

    /// How many groups of changes of names and sizes there are.
    pub(super) fn group_count(&self) -> usize {
        self.groups.len() + usize::from(!self.open_group.is_empty())
    }

    /// A group of changes of names and sizes.
    pub(super) fn group(&self, index: usize) -> &[PersistUnit] {
        self.groups.get(index).map_or(&self.open_group, Vec::as_slice)
    }

    /// The units of the groups from `first` on.
    pub(super) fn groups_from(&self, first: usize) -> Vec<PersistUnit> {
        (first..self.group_count()).flat_map(|index| self.group(index)).copied().collect()
    }

    /// The files with pending writes.
    pub(super) fn files(&self) -> &[PendingFile] {
        &self.files
    }

    /// How many units there are.
    pub(super) fn len(&self) -> usize {
        let names: usize = (0..self.group_count()).map(|index| self.group(index).len()).sum();
        names + self.files.iter().map(|file| file.writes.len()).sum::<usize>()
    }
}

impl PendingFile {
    fn new(node: NodeId) -> PendingFile {
        PendingFile {
            node,
            writes: PendingWrites::default(),
            torn_ends: Vec::new(),
            fine: Vec::new(),
            page_sets: PageSetCounts::default(),
        }
    }

    fn count_page_sets(&mut self, whole: &[FileMask]) {
        let pages = self.writes.pages();
        let torn = || whole.iter().chain(&self.torn_ends);
        self.page_sets = PageSetCounts {
            allowed: allowed_sets(pages),
            whole: distinct_sets(pages, whole.iter()),
            torn: distinct_sets(pages, torn()),
            fine: distinct_sets(pages, torn().chain(&self.fine)),
        };
    }
}
