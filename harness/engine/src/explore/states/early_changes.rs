//! Changes that btrfs may write with the sync of another file, ahead of earlier ones. They are counted, and not
//! enumerated: which of them it writes depends on when the transaction was committed. Pure.
//!
//! Observed by `tests/real_disks`, and in `fs/btrfs/tree-log.c`: `btrfs_log_new_name` for the names of a file that was
//! synced before, and `log_new_dir_dentries` for the length of a file in a directory that is synced.

use std::collections::{HashMap, HashSet};

use super::persist_unit::PersistUnit;
use crate::explore::record::{FileNodeKind, NodeId, OpEffect, Recording};

/// The changes so far that may be on the disk early. Advances operation by operation.
pub(super) struct EarlyChanges {
    /// The files that were synced since everything was.
    synced: HashSet<NodeId>,
    /// The directory of each file.
    directories: HashMap<NodeId, NodeId>,
    units: Vec<PersistUnit>,
}

impl EarlyChanges {
    pub(super) fn new(recording: &Recording) -> EarlyChanges {
        let initial = recording.initial_names.iter();
        let directories = initial.flat_map(|(dir, names)| names.values().map(|node| (*node, *dir))).collect();
        EarlyChanges { synced: HashSet::new(), directories, units: Vec::new() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.units.len() as u64
    }

    /// Accounts for the operation with index `op`. `pending_from`: all operations before this one are durable.
    pub(super) fn advance(
        &mut self,
        recording: &Recording,
        op: usize,
        pending_from: usize,
        is_durable: impl Fn(PersistUnit) -> bool,
    ) {
        match &recording.ops[op].effect {
            OpEffect::NameChanges(changes) => {
                let named = || changes.iter().filter_map(|change| Some((change.node?, change.dir)));
                if named().any(|(node, _)| self.synced.contains(&node)) {
                    self.units.extend((0..changes.len()).map(|part| unit(op, part)));
                }
                self.directories.extend(named());
            }
            OpEffect::SyncAll => {
                self.synced.clear();
                self.units.clear();
            }
            OpEffect::Sync { node, .. } => {
                if matches!(recording.nodes[*node as usize].kind, FileNodeKind::Directory) {
                    let is_in_it = |op: &usize| match recording.ops[*op].effect {
                        OpEffect::Write { node: written, .. } | OpEffect::Resize { node: written, .. } => {
                            self.directories.get(&written) == Some(node)
                        }
                        _ => false,
                    };
                    self.units.extend((pending_from..op).filter(is_in_it).map(|op| unit(op, 0)));
                    self.units.sort_unstable();
                    self.units.dedup();
                } else {
                    self.synced.insert(*node);
                }
                self.units.retain(|unit| !is_durable(*unit));
            }
            _ => {}
        }
    }
}

fn unit(op: usize, part: usize) -> PersistUnit {
    PersistUnit { op: op as u32, part: part as u8 }
}
