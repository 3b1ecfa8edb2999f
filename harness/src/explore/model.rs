//! What a power loss may leave behind, by file system. Pure.
//!
//! Sources: POSIX.1-2024 `fsync`; Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), table 1;
//! ext4: kernel documentation `filesystems/ext4/journal.rst` (data=ordered, delayed allocation, `auto_da_alloc`);
//! xfs: kernel documentation `filesystems/xfs/xfs-delayed-logging-design.rst`; btrfs: its `fsync` log tree, wiki "FAQ: does
//! btrfs support data ordering"; Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI 2018).
//!
//! Each model answers two questions: what a sync makes durable, and in which order the rest may reach the disk.

use super::recording::{NodeId, Op, Recording, What};

/// A file system, as far as it matters after a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Model {
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
pub struct Traits {
    /// Names may be lost in any order, not only from the end.
    pub any_order: bool,
    /// The parts of a rename may be torn from one another.
    pub torn_rename: bool,
    /// A file may have its new size and zeroes or garbage in it.
    pub size_before_data: bool,
    /// Overwritten sectors may be new while others are old.
    pub torn_overwrite: bool,
    /// A file may have its new size and zeroes in it, but nothing else that was not written.
    pub unwritten_zeroes: bool,
    /// A rename over an existing file makes the size of the new one durable with it.
    pub replace_carries_size: bool,
}

impl Model {
    /// Those that are tried unless one is chosen: a lying disk is a broken one, and asked for by name.
    pub const ALL: [Model; 4] = [Model::Posix, Model::Ext4, Model::Xfs, Model::Btrfs];

    pub fn name(self) -> &'static str {
        match self {
            Model::Posix => "posix",
            Model::Ext4 => "ext4",
            Model::Xfs => "xfs",
            Model::Btrfs => "btrfs",
            Model::Lying => "lying",
        }
    }

    pub fn named(name: &str) -> Option<Model> {
        Model::ALL.into_iter().chain([Model::Lying]).find(|model| model.name() == name)
    }

    pub fn traits(self) -> Traits {
        let journalled = Traits {
            any_order: false,
            torn_rename: false,
            size_before_data: false,
            torn_overwrite: true,
            unwritten_zeroes: false,
            replace_carries_size: false,
        };
        match self {
            Model::Posix => Traits {
                any_order: true,
                torn_rename: true,
                size_before_data: true,
                torn_overwrite: true,
                unwritten_zeroes: true,
                replace_carries_size: false,
            },
            Model::Ext4 => Traits { unwritten_zeroes: true, replace_carries_size: true, ..journalled },
            // The journal's checksums hold, but the data that it waited for may have been in the cache that was lost.
            Model::Lying => Traits { size_before_data: true, ..journalled },
            Model::Xfs => journalled,
            Model::Btrfs => Traits { torn_overwrite: false, ..journalled },
        }
    }
}

/// One part of an operation that can reach the disk by itself: the operation's index, and which of its name changes; or, of a
/// write, all of it (0) or only its bytes ([`BYTES`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unit {
    pub op: u32,
    pub part: u8,
}

/// Part of a write: its length is there, and zeroes in it.
pub(super) const BYTES: u8 = 1;

/// The units of an operation.
pub(super) fn units(op: u32, what: &What) -> impl Iterator<Item = Unit> + use<> {
    let parts = match what {
        What::Names(changes) => changes.len(),
        What::Write { .. } | What::Resize { .. } | What::Zero { .. } => 1,
        What::Sync { .. } | What::SyncAll | What::Said { .. } => 0,
    };
    (0..parts).map(move |part| Unit { op, part: part as u8 })
}

/// What is certainly on the disk, kept up operation by operation.
pub(super) struct Durable<'a> {
    recording: &'a Recording,
    model: Model,
    /// By operation and part.
    certain: Vec<[bool; 3]>,
    /// Up to which operation a sync of everything has been.
    pub(super) pending_from: usize,
    /// Where a save was announced last.
    drained: usize,
}

impl<'a> Durable<'a> {
    pub(super) fn new(recording: &'a Recording, model: Model) -> Durable<'a> {
        let certain = vec![[false; 3]; recording.ops.len()];
        Durable { recording, model, certain, pending_from: 0, drained: 0 }
    }

    pub(super) fn has(&self, unit: Unit) -> bool {
        self.certain[unit.op as usize][unit.part as usize]
    }

    /// Operation `k` has happened.
    pub(super) fn happened(&mut self, k: usize) {
        match &self.recording.ops[k].what {
            What::Said { saved: Some(_), .. } if self.model == Model::Lying => {
                self.mark(self.drained, |_, _| true);
                self.drained = k;
            }
            _ if self.model == Model::Lying => {}
            What::SyncAll => self.mark(k, |_, _| true),
            What::Sync { node, data_only } => self.synced(k, *node, *data_only),
            _ => {}
        }
        while self.pending_from < k && self.whole(self.pending_from) {
            self.pending_from += 1;
        }
    }

    fn whole(&self, op: usize) -> bool {
        units(op as u32, &self.recording.ops[op].what).all(|unit| self.has(unit))
    }

    fn mark(&mut self, before: usize, which: impl Fn(&Op, u8) -> bool) {
        for op in self.pending_from..before {
            for unit in units(op as u32, &self.recording.ops[op].what) {
                if which(&self.recording.ops[op], unit.part) {
                    self.certain[op][unit.part as usize] = true;
                }
            }
        }
    }

    fn synced(&mut self, k: usize, node: NodeId, data_only: bool) {
        let commits = self.commits(k, node, data_only);
        self.mark(k, |op, _| is_data_of(op, node));
        match self.model {
            Model::Posix => self.mark(k, |op, part| entry_in(op, part, node)),
            Model::Btrfs => {
                let ancestors = self.ancestors(node, k);
                self.mark(k, |op, _| {
                    names(op, |change| change.dir == node || ancestors.contains(&change.node))
                });
            }
            Model::Ext4 | Model::Xfs if commits => {
                self.mark(k, |op, _| !matches!(op.what, What::Write { .. } | What::Zero { .. }));
            }
            Model::Ext4 | Model::Xfs | Model::Lying => {}
        }
    }

    /// Whether the journal has to be written: something of this node is in it that is not on the disk yet.
    fn commits(&self, k: usize, node: NodeId, data_only: bool) -> bool {
        (self.pending_from..k).any(|op| {
            let pending = units(op as u32, &self.recording.ops[op].what).any(|unit| !self.has(unit));
            let of_node = match &self.recording.ops[op].what {
                What::Names(changes) => {
                    changes.iter().any(|change| change.dir == node || change.node == Some(node))
                }
                What::Resize { node: of, .. } => *of == node,
                // Its time of modification, which a sync of data alone need not write; a larger size it must.
                What::Write { node: of, .. } | What::Zero { node: of, .. } => *of == node,
                _ => false,
            };
            let matters = !data_only || !matches!(self.recording.ops[op].what, What::Names(_));
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
    pub(super) fn replaced_by(&self, op: usize) -> Option<NodeId> {
        let What::Names(changes) = &self.ops[op].what else { return None };
        let set = changes.first().filter(|_| changes.len() > 1)?;
        let was = self.ops[..op]
            .iter()
            .rev()
            .find_map(|op| match &op.what {
                What::Names(changes) => {
                    changes.iter().find(|one| one.dir == set.dir && one.name == set.name).map(|one| one.node)
                }
                _ => None,
            })
            .unwrap_or_else(|| self.initial.get(&set.dir)?.get(&set.name).copied());
        was.and(set.node)
    }
}

pub(super) fn is_data_of(op: &Op, node: NodeId) -> bool {
    match op.what {
        What::Write { node: of, .. } | What::Zero { node: of, .. } | What::Resize { node: of, .. } => {
            of == node
        }
        _ => false,
    }
}

fn entry_in(op: &Op, part: u8, node: NodeId) -> bool {
    match &op.what {
        What::Names(changes) => changes[part as usize].dir == node,
        _ => false,
    }
}

fn names(op: &Op, which: impl Fn(&super::recording::NameChange) -> bool) -> bool {
    match &op.what {
        What::Names(changes) => changes.iter().any(which),
        _ => false,
    }
}
