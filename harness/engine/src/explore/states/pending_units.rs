//! What is not durable at a crash point. Advances operation by operation. Pure; asks the model only what is
//! durable.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::file_mask::{FileMask, PendingWrites};
use super::fs_model::{DurableSet, FsBehavior};
use super::page_masks::distinct_sets;
use super::persist_unit::{PersistUnit, persist_units};
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
    /// By file: the last operation that wrote to it or gave it a name.
    last_touches: Vec<u32>,
    /// The indexes of the files whose masks are not computed yet.
    changed_files: BTreeSet<usize>,
    /// By file: how many tears of ends it and those before it have.
    torn_ends: Vec<u64>,
    /// Of all files. The counts of allowed sets are not summed up.
    pub(super) page_sets: PageSetCounts,
    /// The largest number of sets in which all of one file is lost.
    pub(super) most_whole: u64,
    /// Whether files or writes were taken away since the sets were counted.
    must_recount: bool,
    /// How many units there are in the groups, without the open one.
    group_units: usize,
    /// The units of those that have several.
    divisible: Vec<PersistUnit>,
    /// How many have one.
    single_groups: u64,
    /// How many pending writes there are.
    write_units: usize,
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
            last_touches: Vec::new(),
            changed_files: BTreeSet::new(),
            torn_ends: Vec::new(),
            page_sets: PageSetCounts::default(),
            most_whole: 0,
            must_recount: false,
            group_units: 0,
            divisible: Vec::new(),
            single_groups: 0,
            write_units: 0,
        }
    }

    /// Accounts for the operation with index `op`, for which `durable` has accounted too.
    pub(super) fn advance(&mut self, op: usize, durable: &DurableSet<'_>) {
        let named = self.index.recording.ops[op].name_changes().iter().filter_map(|change| change.node);
        for file in named.filter_map(|node| self.file_indexes.get(&node)) {
            self.last_touches[*file] = op as u32;
        }
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
            (self.group_units, self.single_groups) = (0, 0);
            self.divisible.clear();
            self.open_group.clear();
            self.attributes.clear();
            self.joined_attributes = 0;
            let ops = &self.index.recording.ops;
            let of_names = (durable.pending_from..op_count).filter(|op| ops[*op].data_node().is_none());
            of_names.for_each(|op| self.add(op, durable));
        }
        let (index, behavior) = (self.index, self.behavior);
        for (number, file) in self.files.iter_mut().enumerate() {
            if file.writes.retain(|unit| !durable.contains(unit), index, behavior) {
                self.changed_files.insert(number);
                self.must_recount = true;
            }
        }
        if self.files.iter().any(|file| file.writes.len() == 0) {
            self.remove_durable_files(op_count);
        }
        self.write_units = self.files.iter().map(|file| file.writes.len()).sum();
    }

    /// Takes away the files without pending writes.
    fn remove_durable_files(&mut self, op_count: usize) {
        let changed: HashSet<NodeId> = self.changed_files.iter().map(|file| self.files[*file].node).collect();
        self.files.retain(|file| file.writes.len() > 0);
        let nodes = || self.files.iter().map(|file| file.node).enumerate();
        self.file_indexes = nodes().map(|(index, node)| (node, index)).collect();
        self.changed_files =
            nodes().filter(|(_, node)| changed.contains(node)).map(|(index, _)| index).collect();
        self.last_touches = self.files.iter().map(|file| self.last_touch(file, op_count)).collect();
        self.torn_ends.clear();
        self.must_recount = true;
    }

    /// The last operation before `op_count` that wrote to a file or gave it a name.
    fn last_touch(&self, file: &PendingFile, op_count: usize) -> u32 {
        let naming = self.index.naming_ops(file.node);
        let named = naming.partition_point(|op| (*op as usize) < op_count).checked_sub(1);
        file.writes.last_op().max(named.map(|last| naming[last])).unwrap_or(0)
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
            self.group_units += group.len();
            match group.len() {
                1 => self.single_groups += 1,
                _ => self.divisible.extend_from_slice(&group),
            }
            self.groups.push(group);
            return;
        };
        let file = *self.file_indexes.entry(node).or_insert(self.files.len());
        if file == self.files.len() {
            self.files.push(PendingFile::new(node));
            self.last_touches.push(index as u32);
        }
        self.last_touches[file] = index as u32;
        self.changed_files.insert(file);
        for unit in pending {
            self.files[file].writes.push(unit, self.index, self.behavior);
            self.write_units += 1;
        }
    }

    /// Computes the masks of the files that have changed.
    pub(super) fn update_masks(&mut self) {
        let first = self.changed_files.first().copied().unwrap_or(self.files.len()).min(self.torn_ends.len());
        for number in std::mem::take(&mut self.changed_files) {
            let file = &mut self.files[number];
            let before = file.page_sets;
            file.torn_ends = file.writes.torn_ends(self.index, self.behavior);
            file.fine = file.writes.fine_masks(self.index, self.behavior);
            file.count_page_sets(FileMask::whole(self.behavior));
            let PageSetCounts { whole, torn, .. } = file.page_sets;
            self.must_recount |= whole < before.whole || torn < before.torn;
            self.page_sets.whole += whole.saturating_sub(before.whole);
            self.page_sets.torn += torn.saturating_sub(before.torn);
            self.most_whole = self.most_whole.max(whole);
        }
        if std::mem::take(&mut self.must_recount) {
            let files = || self.files.iter().map(|file| file.page_sets);
            self.page_sets.whole = files().map(|sets| sets.whole).sum();
            self.page_sets.torn = files().map(|sets| sets.torn).sum();
            self.most_whole = files().map(|sets| sets.whole).max().unwrap_or(0);
        }
        self.torn_ends.truncate(first);
        let mut end = self.torn_ends.last().copied().unwrap_or(0);
        for file in &self.files[first..] {
            end += file.torn_ends.len() as u64;
            self.torn_ends.push(end);
        }
    }

    /// By file: how many tears of ends it and those before it have.
    pub(super) fn torn_ends(&self) -> &[u64] {
        &self.torn_ends
    }

    /// The indexes of the files that were written to, or got a name, from this operation on.
    pub(super) fn touched_from(&self, op: u32) -> Vec<usize> {
        let touches = self.last_touches.iter().enumerate();
        touches.filter_map(|(file, last)| (*last >= op).then_some(file)).collect()
    }

    /// How many units there are in groups that have several.
    pub(super) fn divisible_len(&self) -> usize {
        self.divisible.len() + if self.open_group.len() > 1 { self.open_group.len() } else { 0 }
    }

    /// A unit of those groups.
    pub(super) fn divisible(&self, index: usize) -> PersistUnit {
        index
            .checked_sub(self.divisible.len())
            .map_or_else(|| self.divisible[index], |rest| self.open_group[rest])
    }

    /// How many groups have one unit.
    pub(super) fn single_groups(&self) -> u64 {
        self.single_groups + u64::from(self.open_group.len() == 1)
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
        self.group_units + self.open_group.len() + self.write_units
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
