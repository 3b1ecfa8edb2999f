//! The file-system models: what a sync makes durable, and in which order other changes may reach the disk.
//! Pure.
//!
//! Attributes (permission bits, owner, times, extended attributes) belong to the inode. A change of them is
//! durable after an fsync of the file, and in journaling models after a sync that commits the journal; fdatasync
//! need not write it. Before that it may be persisted or lost. To keep the number of states small it reaches the
//! disk together with the next change of a name or a size. Under `posix`, states that lose only the changes of
//! attributes are tried too.

use scenarios::CrashModel;

use crate::explore::record::{NameChange, NodeId, Op, OpEffect, Recording};

/// What a file system guarantees after a power loss.
///
/// Sources: POSIX.1-2024 `fsync`; Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), table
/// 1; Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI 2018); ext4:
/// kernel documentation `filesystems/ext4/journal.rst` (data=ordered, delayed allocation, `auto_da_alloc`);
/// xfs: kernel documentation `filesystems/xfs/xfs-delayed-logging-design.rst`; btrfs: its `fsync` log tree,
/// wiki "FAQ: does btrfs support data ordering".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FsModel {
    /// Only what POSIX guarantees: any change that was not synced may be lost, in any order; a rename may be
    /// half done.
    Posix,
    /// `data=ordered`: the journal keeps names and sizes in order, and a sync of anything that is not yet
    /// committed commits everything before it. A rename over an existing file also commits the size of the
    /// new file, but not its bytes: they may still be zeroes, because new blocks are allocated as unwritten
    /// and count only after the disk has them (`dioread_nolock`, the default since Linux 5.6). Observed on
    /// Linux 6.18, see `tests/ext4`.
    Ext4,
    /// The log keeps names and sizes in order. A rename commits no size.
    Xfs,
    /// Names are in order, but a sync commits only its own file and its names, ahead of the other changes.
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

/// A part of an operation that can reach the disk separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersistUnit {
    /// The index of the operation.
    pub op: u32,
    /// The index of a name change. For a write, 0 is the whole write and `BYTES_PART` only its bytes.
    pub part: u8,
}

/// The bytes of a write without its length. If they are lost, the range reads as zeroes.
pub(crate) const BYTES_PART: u8 = 1;

/// The units of an operation that can reach the disk separately.
pub(super) fn persist_units(op: u32, effect: &OpEffect) -> impl Iterator<Item = PersistUnit> + use<> {
    let parts = match effect {
        OpEffect::NameChanges(changes) => changes.len(),
        OpEffect::Write { .. }
        | OpEffect::Resize { .. }
        | OpEffect::Zero { .. }
        | OpEffect::SetAttributes { .. } => 1,
        OpEffect::Sync { .. } | OpEffect::SyncAll | OpEffect::Output { .. } => 0,
    };
    (0..parts).map(move |part| PersistUnit { op, part: part as u8 })
}

/// The units that are durable at a crash point. Advances operation by operation.
pub(super) struct DurableSet<'a> {
    recording: &'a Recording,
    model: FsModel,
    /// By operation and part.
    durable_parts: Vec<[bool; 3]>,
    /// All operations before this index are durable.
    pub(super) pending_from: usize,
    /// The index of the last acknowledgement, for the model `Lying`.
    drained_until: usize,
}

impl<'a> DurableSet<'a> {
    pub(super) fn new(recording: &'a Recording, model: FsModel) -> DurableSet<'a> {
        let durable_parts = vec![[false; 3]; recording.ops.len()];
        DurableSet { recording, model, durable_parts, pending_from: 0, drained_until: 0 }
    }

    pub(super) fn contains(&self, unit: PersistUnit) -> bool {
        self.durable_parts[unit.op as usize][unit.part as usize]
    }

    /// Accounts for the operation with index `op`.
    pub(super) fn advance(&mut self, op: usize) {
        match &self.recording.ops[op].effect {
            OpEffect::Output { saved_step: Some(_), .. } if self.model == FsModel::Lying => {
                self.mark_durable(self.drained_until, |_, _| true);
                self.drained_until = op;
            }
            _ if self.model == FsModel::Lying => {}
            OpEffect::SyncAll => self.mark_durable(op, |_, _| true),
            OpEffect::Sync { node, data_only } => self.apply_sync(op, *node, *data_only),
            _ => {}
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
        let commits = self.commits_journal(op_count, node, data_only);
        self.mark_durable(op_count, |op, _| {
            is_data_of(op, node) || (!data_only && op.attribute_node() == Some(node))
        });
        match self.model {
            FsModel::Posix => self.mark_durable(op_count, |op, part| is_entry_in(op, part, node)),
            FsModel::Btrfs => {
                let ancestors = self.ancestors(node, op_count);
                self.mark_durable(op_count, |op, _| {
                    any_name_change(op, |change| change.dir == node || ancestors.contains(&change.node))
                });
            }
            FsModel::Ext4 | FsModel::Xfs if commits => {
                self.mark_durable(op_count, |op, _| {
                    !matches!(op.effect, OpEffect::Write { .. } | OpEffect::Zero { .. })
                });
            }
            FsModel::Ext4 | FsModel::Xfs | FsModel::Lying => {}
        }
    }

    /// Whether the sync commits the journal: some change of this node is in the journal and not yet on the
    /// disk.
    fn commits_journal(&self, op_count: usize, node: NodeId, data_only: bool) -> bool {
        (self.pending_from..op_count).any(|op| {
            let pending =
                persist_units(op as u32, &self.recording.ops[op].effect).any(|unit| !self.contains(unit));
            let concerns_node = match &self.recording.ops[op].effect {
                OpEffect::NameChanges(changes) => {
                    changes.iter().any(|change| change.dir == node || change.node == Some(node))
                }
                OpEffect::Resize { node: changed, .. } | OpEffect::SetAttributes { node: changed, .. } => {
                    *changed == node
                }
                // These change the modification time, which `fdatasync` need not commit, and the size, which
                // it must.
                OpEffect::Write { node: changed, .. } | OpEffect::Zero { node: changed, .. } => {
                    *changed == node
                }
                _ => false,
            };
            let is_needed_for_data = !matches!(
                self.recording.ops[op].effect,
                OpEffect::NameChanges(_) | OpEffect::SetAttributes { .. }
            );
            let must_commit = !data_only || is_needed_for_data;
            pending && concerns_node && must_commit
        })
    }

    /// The node and the directories above it, which a sync of the node must make reachable.
    fn ancestors(&self, node: NodeId, op_count: usize) -> Vec<Option<NodeId>> {
        let mut ancestors = vec![Some(node)];
        let mut current = node;
        while (current as usize) >= self.recording.roots.len()
            && let Some((dir, _)) = self.recording.name_of(current, op_count)
        {
            ancestors.push(Some(dir));
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
