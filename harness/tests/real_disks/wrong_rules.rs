//! A wrong model, which the comparison with real disks must catch: each sync that has something to commit makes
//! all changes before it durable. Knows no disk.

use engine::explore::{NodeId, OpEffect, Recording, persist_units};

use crate::admission::DurableUnits;
use crate::file_history::changed_file;

/// The units that are durable after `ended` operations if a sync commits everything.
pub(crate) fn durable_if_a_sync_commits_all(recording: &Recording, ended: usize) -> DurableUnits {
    let mut durable = DurableUnits::new();
    for (index, op) in recording.ops[..ended].iter().enumerate() {
        let (synced, data_only) = match op.effect {
            OpEffect::SyncAll => (None, false),
            OpEffect::Sync { node, data_only } => (Some(node), data_only),
            _ => continue,
        };
        let commits =
            synced.is_none_or(|node| has_pending_change(recording, index, node, data_only, &durable));
        for (earlier, op) in recording.ops[..index].iter().enumerate() {
            let is_of_synced = synced.is_none_or(|node| changed_file(&op.effect) == Some(node));
            let is_in_journal = op.data_node().is_none();
            if is_of_synced || (commits && is_in_journal) {
                durable.extend(persist_units(earlier as u32, &op.effect));
            }
        }
    }
    durable
}

fn has_pending_change(
    recording: &Recording,
    before: usize,
    node: NodeId,
    data_only: bool,
    durable: &DurableUnits,
) -> bool {
    recording.ops[..before].iter().enumerate().any(|(index, op)| {
        let is_pending = persist_units(index as u32, &op.effect).any(|unit| !durable.contains(&unit));
        let changes_name =
            op.name_changes().iter().any(|change| change.dir == node || change.node == Some(node));
        is_pending && (changed_file(&op.effect) == Some(node) || (!data_only && changes_name))
    })
}
