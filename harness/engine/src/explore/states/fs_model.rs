//! The file-system models: what a sync makes durable, and in which order other changes may reach the disk.
//! Pure.
//!
//! Attributes (permission bits, owner, times, extended attributes) belong to the inode. A change of them is
//! durable after an fsync of the file, and in journaling models after a sync that commits the journal; fdatasync
//! need not write it. Before that it may be persisted or lost. To keep the number of states small it reaches the
//! disk together with the next change of a name or a size. Under `posix`, states that lose only the changes of
//! attributes are tried too.
//!
//! Sources. POSIX.1-2024, `fsync` and `fdatasync`. Pillai et al., "All File Systems Are Not Created Equal" (OSDI
//! 2014), table 1. Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI
//! 2018). Linux 6.18:
//! - ext4: `fs/ext4/fsync.c` (`ext4_sync_file` commits up to `i_sync_tid`, for `fdatasync` up to
//!   `i_datasync_tid`), `ext4_update_inode_fsync_trans` for what sets them, `filesystems/ext4/journal.rst`.
//! - xfs: `fs/xfs/xfs_file.c` (`xfs_file_fsync` forces the log up to `ili_commit_seq`),
//!   `filesystems/xfs/xfs-delayed-logging-design.rst`.
//! - btrfs: `fs/btrfs/tree-log.c` (`btrfs_log_inode_parent`, `btrfs_log_new_name`), `fs/btrfs/file.c`.
//!
//! `tests/real_disks` compares the models with real ext4, xfs and btrfs.

use std::collections::HashMap;

use scenarios::CrashModel;

use super::allocated_blocks::AllocatedBlocks;
use super::early_changes::EarlyChanges;
use super::persist_unit::{PersistUnit, persist_units};
use crate::explore::record::{FileNodeKind, NameChange, NodeId, Op, OpEffect, OpKind, Recording};

/// What a file system guarantees after a power loss. This file names the sources at its top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FsModel {
    /// Only what POSIX guarantees: any change that was not synced may be lost, in any order; a rename may be
    /// half done.
    Posix,
    /// `data=ordered`: the journal keeps names and sizes in order. It may be committed at any time. A sync of a
    /// file commits it up to the last change of that file's metadata, and `fdatasync` up to the last change of
    /// its size or of its blocks. Later changes of other files may be lost. A rename over an existing file also
    /// commits the size of the new file, but not its bytes: they may still be zeroes, because new blocks are
    /// allocated as unwritten and count only after the disk has them (`dioread_nolock`, the default since Linux
    /// 5.6). Observed on Linux 6.18, see `tests/real_disks`.
    Ext4,
    /// The log keeps names and sizes in order, and a sync commits it as on ext4. A rename commits no size.
    Xfs,
    /// Names are in order, but a sync commits only its own file and its names, ahead of the other changes: it
    /// writes them to the log tree. The sync of a directory logs its own entries: of a rename to it from another
    /// directory only the new name, so that the file may keep its old name as well. `sync` and `syncfs` commit
    /// everything. More is allowed than btrfs does: it also logs a file whose name the synced file has taken.
    Btrfs,
    /// A journal like that of ext4, on a disk that reports a sync as done while the data is in a volatile
    /// cache. Such caches are written out within seconds: everything before the last acknowledged save but
    /// one is on the disk.
    Lying,
}

/// What a model allows for changes that are not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsBehavior {
    /// Names may be lost in any order, not only from the end.
    pub unordered_names: bool,
    /// The two name changes of a rename may be separated.
    pub torn_rename: bool,
    /// A file may have its new size and contain zeroes or garbage.
    pub size_before_data: bool,
    /// Some overwritten sectors may be new while others are old.
    pub torn_overwrite: bool,
    /// A file may have its new size and contain zeroes, but no garbage.
    pub unwritten_zeroes: bool,
    /// A rename over an existing file also makes the size of the new file durable.
    pub replace_persists_size: bool,
}

impl FsModel {
    /// The models that are used by default. `Lying` describes a defective disk and must be asked for by name.
    pub const ALL: [FsModel; 4] = [FsModel::Posix, FsModel::Ext4, FsModel::Xfs, FsModel::Btrfs];

    /// The same model as scenarios and results name it.
    pub fn crash_model(self) -> CrashModel {
        match self {
            FsModel::Posix => CrashModel::Posix,
            FsModel::Ext4 => CrashModel::Ext4,
            FsModel::Xfs => CrashModel::Xfs,
            FsModel::Btrfs => CrashModel::Btrfs,
            FsModel::Lying => CrashModel::Lying,
        }
    }

    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        self.crash_model().name()
    }

    /// The model with this name.
    pub fn from_name(name: &str) -> Option<FsModel> {
        FsModel::ALL.into_iter().chain([FsModel::Lying]).find(|model| model.name() == name)
    }

    /// What the model allows for changes that are not durable.
    pub fn behavior(self) -> FsBehavior {
        let journaled = FsBehavior {
            unordered_names: false,
            torn_rename: false,
            size_before_data: false,
            torn_overwrite: true,
            unwritten_zeroes: false,
            replace_persists_size: false,
        };
        match self {
            FsModel::Posix => FsBehavior {
                unordered_names: true,
                torn_rename: true,
                size_before_data: true,
                torn_overwrite: true,
                unwritten_zeroes: true,
                replace_persists_size: false,
            },
            FsModel::Ext4 => FsBehavior { unwritten_zeroes: true, replace_persists_size: true, ..journaled },
            // The journal is intact, but the data that it waited for may have been in the lost cache.
            FsModel::Lying => FsBehavior { size_before_data: true, ..journaled },
            FsModel::Xfs => journaled,
            FsModel::Btrfs => FsBehavior { torn_overwrite: false, ..journaled },
        }
    }
}

/// Up to where the journal must be committed for the syncs of one node, as numbers of operations.
#[derive(Debug, Clone, Copy, Default)]
struct JournalPosition {
    /// `fsync`: all operations up to the last one that certainly changed the inode.
    metadata: usize,
    /// `fdatasync`: up to the last one that changed its size or its blocks.
    data: usize,
}

/// The units that are durable at a crash point. Advances operation by operation.
pub struct DurableSet<'a> {
    recording: &'a Recording,
    model: FsModel,
    /// By operation and part.
    durable_parts: Vec<[bool; 3]>,
    /// All operations before this index are durable.
    pub(super) pending_from: usize,
    /// The index of the last acknowledgement, for the model `Lying`.
    drained_until: usize,
    journal_positions: HashMap<NodeId, JournalPosition>,
    allocated_blocks: HashMap<NodeId, AllocatedBlocks>,
    /// The changes of names, sizes and attributes before this index are committed.
    committed_until: usize,
    /// `None` under other models than `Btrfs`.
    early: Option<EarlyChanges>,
}

impl<'a> DurableSet<'a> {
    /// Nothing is durable before the first operation.
    pub fn new(recording: &'a Recording, model: FsModel) -> DurableSet<'a> {
        DurableSet {
            recording,
            model,
            durable_parts: vec![[false; 3]; recording.ops.len()],
            pending_from: 0,
            drained_until: 0,
            journal_positions: HashMap::new(),
            allocated_blocks: HashMap::new(),
            committed_until: 0,
            early: (model == FsModel::Btrfs).then(|| EarlyChanges::new(recording)),
        }
    }

    /// How many changes may be on the disk ahead of earlier ones, in states that are not enumerated.
    pub(super) fn early_changes(&self) -> u64 {
        self.early.as_ref().map_or(0, EarlyChanges::len)
    }

    /// Whether the unit is on the disk, whatever else is lost.
    pub fn contains(&self, unit: PersistUnit) -> bool {
        self.durable_parts[unit.op as usize][unit.part as usize]
    }

    /// Accounts for the operation with index `op`. Operations are passed in order.
    pub fn advance(&mut self, op: usize) {
        match &self.recording.ops[op].effect {
            OpEffect::Output { saved_step: Some(_), .. } if self.model == FsModel::Lying => {
                self.mark_durable(self.drained_until, |_, _| true);
                self.drained_until = op;
            }
            _ if self.model == FsModel::Lying => {}
            OpEffect::SyncAll => {
                self.mark_durable(op, |_, _| true);
                self.committed_until = op;
            }
            OpEffect::Sync { node, data_only } => self.apply_sync(op, *node, *data_only),
            OpEffect::Output { .. } => {}
            _ if matches!(self.model, FsModel::Ext4 | FsModel::Xfs) => self.note_journaled_changes(op),
            _ => {}
        }
        if let Some(mut early) = self.early.take() {
            early.advance(self.recording, op, self.pending_from, |unit| self.contains(unit));
            self.early = Some(early);
        }
        while self.pending_from < op && self.is_op_durable(self.pending_from) {
            self.pending_from += 1;
        }
    }

    fn is_op_durable(&self, op: usize) -> bool {
        persist_units(op as u32, &self.recording.ops[op].effect).all(|unit| self.contains(unit))
    }

    /// Marks the selected units of the operations before `end` as durable.
    fn mark_durable(&mut self, end: usize, selects: impl Fn(&Op, u8) -> bool) {
        for op in self.pending_from..end {
            for unit in persist_units(op as u32, &self.recording.ops[op].effect) {
                if selects(&self.recording.ops[op], unit.part) {
                    self.durable_parts[op][unit.part as usize] = true;
                }
            }
        }
    }

    fn apply_sync(&mut self, op_count: usize, node: NodeId, data_only: bool) {
        self.mark_durable(op_count, |op, _| {
            is_data_of(op, node) || (!data_only && op.attribute_node() == Some(node))
        });
        match self.model {
            FsModel::Posix => self.mark_durable(op_count, |op, part| is_entry_in(op, part, node)),
            FsModel::Btrfs => {
                let logged = self.ancestors(node, op_count);
                self.mark_durable(op_count, |op, part| {
                    let is_logged =
                        |change: &NameChange| change.node.is_some_and(|named| logged.contains(&named));
                    is_entry_in(op, part, node) || any_name_change(op, is_logged)
                });
            }
            FsModel::Ext4 | FsModel::Xfs => self.commit_journal(node, data_only),
            FsModel::Lying => {}
        }
    }

    /// Commits what a sync of this node waits for. A sync of a directory commits its names in both forms.
    fn commit_journal(&mut self, node: NodeId, data_only: bool) {
        let position = self.journal_positions.get(&node).copied().unwrap_or_default();
        let is_directory = matches!(self.recording.nodes[node as usize].kind, FileNodeKind::Directory);
        let end = if data_only && !is_directory { position.data } else { position.metadata };
        for op in self.committed_until.max(self.pending_from)..end {
            if self.recording.ops[op].data_node().is_none() {
                let units = persist_units(op as u32, &self.recording.ops[op].effect);
                units.for_each(|unit| self.durable_parts[op][unit.part as usize] = true);
            }
        }
        self.committed_until = self.committed_until.max(end);
    }

    /// Notes whose syncs have to commit this operation.
    ///
    /// A write over existing blocks does not count. It changes only the modification time, and that only if the
    /// clock of the kernel has ticked since the write before it (every 1 to 10 ms). If the journal was committed
    /// between the two, `fsync` has nothing to commit. Observed on ext4 and xfs.
    fn note_journaled_changes(&mut self, op: usize) {
        match &self.recording.ops[op].effect {
            OpEffect::NameChanges(changes) => {
                for change in changes {
                    self.note_metadata_change(change.dir, op);
                    if let Some(node) = change.node {
                        self.note_metadata_change(node, op);
                    }
                }
                if self.recording.ops[op].kind == OpKind::Create {
                    changes
                        .iter()
                        .filter_map(|change| change.node)
                        .for_each(|node| self.note_data_change(node, op));
                }
            }
            OpEffect::SetAttributes { node, .. } => self.note_metadata_change(*node, op),
            OpEffect::Resize { node, size_bytes } => {
                if self.allocated_blocks_mut(*node).resize(*size_bytes) {
                    self.note_data_change(*node, op);
                } else {
                    self.note_metadata_change(*node, op);
                }
            }
            OpEffect::Zero { node, offset, len_bytes } => {
                self.note_data_change(*node, op);
                self.allocated_blocks_mut(*node).free(*offset, *len_bytes);
            }
            OpEffect::Write { node, offset, len_bytes, .. } => {
                if self.allocated_blocks_mut(*node).write(*offset, *len_bytes) {
                    self.note_data_change(*node, op);
                }
            }
            OpEffect::Sync { .. } | OpEffect::SyncAll | OpEffect::Output { .. } => {}
        }
    }

    fn note_metadata_change(&mut self, node: NodeId, op: usize) {
        self.journal_positions.entry(node).or_default().metadata = op + 1;
    }

    fn note_data_change(&mut self, node: NodeId, op: usize) {
        self.journal_positions.insert(node, JournalPosition { metadata: op + 1, data: op + 1 });
    }

    fn allocated_blocks_mut(&mut self, node: NodeId) -> &mut AllocatedBlocks {
        let recording = self.recording;
        self.allocated_blocks.entry(node).or_insert_with(|| match recording.nodes[node as usize].kind {
            FileNodeKind::File { initial_len_bytes } => AllocatedBlocks::of_file(initial_len_bytes),
            _ => AllocatedBlocks::default(),
        })
    }

    /// The node and the directories above it, which a sync of the node must make reachable.
    fn ancestors(&self, node: NodeId, op_count: usize) -> Vec<NodeId> {
        let mut ancestors = vec![node];
        let mut current = node;
        while (current as usize) >= self.recording.roots.len()
            && let Some((dir, _)) = self.recording.name_of(current, op_count)
        {
            ancestors.push(dir);
            current = dir;
        }
        ancestors
    }
}

fn is_data_of(op: &Op, node: NodeId) -> bool {
    match op.effect {
        OpEffect::Write { node: changed, .. }
        | OpEffect::Zero { node: changed, .. }
        | OpEffect::Resize { node: changed, .. } => changed == node,
        _ => false,
    }
}

fn is_entry_in(op: &Op, part: u8, node: NodeId) -> bool {
    op.name_changes().get(part as usize).is_some_and(|change| change.dir == node)
}

fn any_name_change(op: &Op, predicate: impl Fn(&NameChange) -> bool) -> bool {
    op.name_changes().iter().any(predicate)
}
