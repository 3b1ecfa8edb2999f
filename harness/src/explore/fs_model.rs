//! What a power loss may leave behind, by file system. Pure.
//!
//! Sources: POSIX.1-2024 `fsync`; Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), table 1;
//! ext4: kernel documentation `filesystems/ext4/journal.rst` (data=ordered, delayed allocation, `auto_da_alloc`);
//! xfs: kernel documentation `filesystems/xfs/xfs-delayed-logging-design.rst`; btrfs: its `fsync` log tree, wiki "FAQ: does
//! btrfs support data ordering"; Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI 2018).
//!
//! Each model answers two questions: what a sync makes durable, and in which order the rest may reach the disk.

use super::recording::{NodeId, Op, OpEffect, Recording};

/// A file system, as far as it matters after a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FsModel {
    /// Only what POSIX promises: any unsynced change may be lost, in any order; a rename may be half done.
    Posix,
    /// data=ordered: names and sizes in order, by journal; a sync of anything changed commits all before it; a rename over an
    /// existing file carries the new file's size along. Its bytes may still be zeroes: blocks are taken as unwritten ones and
    /// count only once the disk has them (`dioread_nolock`, the default since Linux 5.6). Seen on Linux 6.18, `tests/ext4`.
    Ext4,
    /// Names and sizes in order, by log; a rename carries no data along.
    Xfs,
    /// Names in order, but a sync brings only its own file and its names ahead of the others.
    Btrfs,
    /// A journal as ext4's, on a disk that says "synced" and keeps it in a cache that the power takes. Such caches drain by
    /// themselves within seconds: what had been written before the last save but one was announced is on the disk.
    Lying,
}

/// How ends of files may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsBehavior {
    /// Names may be lost in any order, not only from the end.
    pub unordered_names: bool,
    /// The parts of a rename may be torn from one another.
    pub torn_rename: bool,
    /// A file may have its new size and zeroes or garbage in it.
    pub size_before_data: bool,
    /// Overwritten sectors may be new while others are old.
    pub torn_overwrite: bool,
    /// A file may have its new size and zeroes in it, but nothing else that was not written.
    pub unwritten_zeroes: bool,
    /// A rename over an existing file makes the size of the new one durable with it.
    pub replace_persists_size: bool,
}

impl FsModel {
    /// Those that are tried unless one is chosen: a lying disk is a broken one, and asked for by name.
    pub const ALL: [FsModel; 4] = [FsModel::Posix, FsModel::Ext4, FsModel::Xfs, FsModel::Btrfs];

    pub fn name(self) -> &'static str {
        match self {
            FsModel::Posix => "posix",
            FsModel::Ext4 => "ext4",
            FsModel::Xfs => "xfs",
            FsModel::Btrfs => "btrfs",
            FsModel::Lying => "lying",
        }
    }

    pub fn from_name(name: &str) -> Option<FsModel> {
        FsModel::ALL.into_iter().chain([FsModel::Lying]).find(|model| model.name() == name)
    }

    pub fn behavior(self) -> FsBehavior {
        let journalled = FsBehavior {
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
            FsModel::Ext4 => FsBehavior { unwritten_zeroes: true, replace_persists_size: true, ..journalled },
            // The journal's checksums hold, but the data that it waited for may have been in the cache that was lost.
            FsModel::Lying => FsBehavior { size_before_data: true, ..journalled },
            FsModel::Xfs => journalled,
            FsModel::Btrfs => FsBehavior { torn_overwrite: false, ..journalled },
        }
    }
}

/// One part of an operation that can reach the disk by itself: the operation's index, and which of its name changes; or, of a
/// write, all of it (0) or only its bytes ([`BYTES`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersistUnit {
    pub op: u32,
    pub part: u8,
}

/// Part of a write: its length is there, and zeroes in it.
pub(super) const BYTES_PART: u8 = 1;

/// The units of an operation.
pub(super) fn persist_units(op: u32, what: &OpEffect) -> impl Iterator<Item = PersistUnit> + use<> {
    let parts = match what {
        OpEffect::NameChanges(changes) => changes.len(),
        OpEffect::Write { .. } | OpEffect::Resize { .. } | OpEffect::Zero { .. } => 1,
        OpEffect::Sync { .. } | OpEffect::SyncAll | OpEffect::Output { .. } => 0,
    };
    (0..parts).map(move |part| PersistUnit { op, part: part as u8 })
}

/// What is certainly on the disk, kept up operation by operation.
pub(super) struct DurableSet<'a> {
    recording: &'a Recording,
    model: FsModel,
    /// By operation and part.
    durable_parts: Vec<[bool; 3]>,
    /// Up to which operation a sync of everything has been.
    pub(super) pending_from: usize,
    /// Where a save was announced last.
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

    /// Operation `k` has happened.
    pub(super) fn advance(&mut self, k: usize) {
        match &self.recording.ops[k].effect {
            OpEffect::Output { saved_step: Some(_), .. } if self.model == FsModel::Lying => {
                self.mark_durable(self.drained_until, |_, _| true);
                self.drained_until = k;
            }
            _ if self.model == FsModel::Lying => {}
            OpEffect::SyncAll => self.mark_durable(k, |_, _| true),
            OpEffect::Sync { node, data_only } => self.apply_sync(k, *node, *data_only),
            _ => {}
        }
        while self.pending_from < k && self.is_op_durable(self.pending_from) {
            self.pending_from += 1;
        }
    }

    fn is_op_durable(&self, op: usize) -> bool {
        persist_units(op as u32, &self.recording.ops[op].effect).all(|unit| self.contains(unit))
    }

    fn mark_durable(&mut self, before: usize, which: impl Fn(&Op, u8) -> bool) {
        for op in self.pending_from..before {
            for unit in persist_units(op as u32, &self.recording.ops[op].effect) {
                if which(&self.recording.ops[op], unit.part) {
                    self.durable_parts[op][unit.part as usize] = true;
                }
            }
        }
    }

    fn apply_sync(&mut self, k: usize, node: NodeId, data_only: bool) {
        let commits = self.commits_journal(k, node, data_only);
        self.mark_durable(k, |op, _| is_data_of(op, node));
        match self.model {
            FsModel::Posix => self.mark_durable(k, |op, part| is_entry_in(op, part, node)),
            FsModel::Btrfs => {
                let ancestors = self.ancestors(node, k);
                self.mark_durable(k, |op, _| {
                    any_name_change(op, |change| change.dir == node || ancestors.contains(&change.node))
                });
            }
            FsModel::Ext4 | FsModel::Xfs if commits => {
                self.mark_durable(k, |op, _| {
                    !matches!(op.effect, OpEffect::Write { .. } | OpEffect::Zero { .. })
                });
            }
            FsModel::Ext4 | FsModel::Xfs | FsModel::Lying => {}
        }
    }

    /// Whether the journal has to be written: something of this node is in it that is not on the disk yet.
    fn commits_journal(&self, k: usize, node: NodeId, data_only: bool) -> bool {
        (self.pending_from..k).any(|op| {
            let pending =
                persist_units(op as u32, &self.recording.ops[op].effect).any(|unit| !self.contains(unit));
            let of_node = match &self.recording.ops[op].effect {
                OpEffect::NameChanges(changes) => {
                    changes.iter().any(|change| change.dir == node || change.node == Some(node))
                }
                OpEffect::Resize { node: of, .. } => *of == node,
                // Its time of modification, which a sync of data alone need not write; a larger size it must.
                OpEffect::Write { node: of, .. } | OpEffect::Zero { node: of, .. } => *of == node,
                _ => false,
            };
            let matters = !data_only || !matches!(self.recording.ops[op].effect, OpEffect::NameChanges(_));
            pending && of_node && matters
        })
    }

    /// The node and the folders above it that a sync of it has to make reachable.
    fn ancestors(&self, node: NodeId, k: usize) -> Vec<Option<NodeId>> {
        let mut found = vec![Some(node)];
        let mut at = node;
        while (at as usize) >= self.recording.roots.len()
            && let Some((dir, _)) = self.recording.name_of(at, k)
        {
            found.push(Some(dir));
            at = dir;
        }
        found
    }
}

impl Recording {
    /// The node that a rename put into the place of an existing file.
    pub(super) fn replacing_node(&self, op: usize) -> Option<NodeId> {
        let OpEffect::NameChanges(changes) = &self.ops[op].effect else { return None };
        let set = changes.first().filter(|_| changes.len() > 1)?;
        let was = self.ops[..op]
            .iter()
            .rev()
            .find_map(|op| match &op.effect {
                OpEffect::NameChanges(changes) => {
                    changes.iter().find(|one| one.dir == set.dir && one.name == set.name).map(|one| one.node)
                }
                _ => None,
            })
            .unwrap_or_else(|| self.initial_names.get(&set.dir)?.get(&set.name).copied());
        was.and(set.node)
    }
}

pub(super) fn is_data_of(op: &Op, node: NodeId) -> bool {
    match op.effect {
        OpEffect::Write { node: of, .. }
        | OpEffect::Zero { node: of, .. }
        | OpEffect::Resize { node: of, .. } => of == node,
        _ => false,
    }
}

fn is_entry_in(op: &Op, part: u8, node: NodeId) -> bool {
    match &op.effect {
        OpEffect::NameChanges(changes) => changes[part as usize].dir == node,
        _ => false,
    }
}

fn any_name_change(op: &Op, which: impl Fn(&super::recording::NameChange) -> bool) -> bool {
    match &op.effect {
        OpEffect::NameChanges(changes) => changes.iter().any(which),
        _ => false,
    }
}
