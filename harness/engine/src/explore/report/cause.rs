//! Why the recovery from a crash state fails: a known pattern of the save. Pure, except for reading recorded
//! bytes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use scenarios::Cause;

use super::save_window::SaveWindow;
use crate::explore::record::{ContentReader, NodeId, Op, OpEffect, OpKind, Recording};
use crate::explore::states::{CrashCandidate, CrashKind, TreeEntry};

/// Finds the pattern that fits a failing crash state.
pub(super) fn cause_of(recording: &Recording, candidate: &CrashCandidate, crash: CrashKind) -> Cause {
    let failure = FailedSave { recording, candidate, window: SaveWindow::of(recording, candidate) };
    match crash {
        CrashKind::PowerLoss(_) if !candidate.lost_nothing() => failure.power_loss_cause(),
        CrashKind::Process | CrashKind::PowerLoss(_) => failure.process_crash_cause(),
    }
}

/// A crash state from which a target does not recover, with the save around its crash point.
struct FailedSave<'a> {
    recording: &'a Recording,
    candidate: &'a CrashCandidate,
    window: SaveWindow,
}

impl FailedSave<'_> {
    /// The operations of the save before the crash point.
    fn ops_before(&self) -> &[Op] {
        &self.recording.ops[self.window.start..self.window.op_count]
    }

    /// The operations of the save after the crash point.
    fn ops_after(&self) -> &[Op] {
        &self.recording.ops[self.window.op_count..self.window.end]
    }

    /// Whether a save was acknowledged between operation `from` and the crash point.
    fn acknowledged_since(&self, from: usize) -> bool {
        self.recording.ops[from..self.window.op_count].iter().any(Op::is_acknowledgement)
    }

    fn process_crash_cause(&self) -> Cause {
        if self.writes_in_place() {
            return Cause::WrittenInPlace;
        }
        if let Some(cause) = self.names_missing_entry() {
            return cause;
        }
        if self.deletes_old_first() {
            return Cause::OldDeletedFirst;
        }
        if self.fills_directory_in_place() {
            return Cause::WrittenInPlace;
        }
        if self.replaces_files_one_by_one() {
            return Cause::MixedSaves;
        }
        Cause::Other
    }

    fn power_loss_cause(&self) -> Cause {
        let data: Vec<(usize, NodeId)> = self
            .candidate
            .lost
            .iter()
            .map(|unit| unit.op as usize)
            .chain(self.candidate.torn.map(|torn| torn.op as usize))
            .filter_map(|op| match self.recording.ops[op].effect {
                OpEffect::Resize { node, .. } => Some((op, node)),
                _ => Some((op, self.recording.ops[op].data_node()?)),
            })
            .collect();
        if let Some((op, node)) = data.first() {
            return self.lost_data_cause(*op, *node);
        }
        let lost: BTreeSet<usize> = self.candidate.lost.iter().map(|unit| unit.op as usize).collect();
        let first = lost.first().copied().unwrap_or(self.window.op_count);
        let is_attributes = |op: &usize| self.recording.ops[*op].attribute_node().is_some();
        // A sync of a directory saves no attributes of the files in it.
        if lost.iter().all(is_attributes) && self.acknowledged_since(first) {
            return Cause::AcknowledgedTooEarly;
        }
        if self.acknowledged_since(first) { Cause::DirectoryNotSynced } else { Cause::OrderNotEnforced }
    }

    fn lost_data_cause(&self, op: usize, node: NodeId) -> Cause {
        let lineage = self.lineage(node);
        let renamed =
            self.recording.ops[op..self.window.op_count].iter().enumerate().any(|(after, later)| {
                let is_persisted = !self.candidate.lost.iter().any(|unit| unit.op as usize == op + after);
                is_persisted && is_rename_of(later, &lineage)
            });
        if renamed {
            return Cause::NoFsyncBeforeRename;
        }
        if self.existed(node, op) {
            return Cause::WrittenInPlace;
        }
        match (self.acknowledged_since(op), self.is_renamed_later(node)) {
            (true, _) => Cause::AcknowledgedTooEarly,
            (false, true) => Cause::OrderNotEnforced,
            // The file is incomplete under the name that is read, and no save was acknowledged: no fsync
            // prevents that.
            (false, false) => self.names_missing_entry().unwrap_or(Cause::WrittenInPlace),
        }
    }

    /// The node and the directories above it, by the names at the crash point.
    fn lineage(&self, node: NodeId) -> Vec<NodeId> {
        let mut lineage = vec![node];
        let mut current = node;
        // A watched directory has no name.
        while current as usize >= self.recording.roots.len()
            && let Some((dir, _)) = self.recording.name_of(current, self.window.op_count)
            && dir != current
        {
            lineage.push(dir);
            current = dir;
        }
        lineage
    }

    fn is_renamed_later(&self, node: NodeId) -> bool {
        let lineage = self.lineage(node);
        self.ops_after().iter().any(|op| is_rename_of(op, &lineage))
    }

    /// Whether the node had a name when the save began, or at operation `op` if that is earlier.
    fn existed(&self, node: NodeId, op: usize) -> bool {
        let start = self.window.start.min(op);
        let created = self.recording.ops[start..op]
            .iter()
            .flat_map(Op::name_changes)
            .any(|change| change.node == Some(node));
        !created && self.recording.name_of(node, start).is_some()
    }

    /// Whether a file that is half written at the crash point keeps its name.
    fn writes_in_place(&self) -> bool {
        let changed_node = |op: &Op| match op.effect {
            OpEffect::Resize { node, .. } => Some(node),
            _ => op.data_node(),
        };
        let (before, after) = (self.ops_before(), self.ops_after());
        let torn = self.candidate.torn.and_then(|torn| self.recording.ops[torn.op as usize].data_node());
        // Half written: changed before and after the crash point, or created before it and filled after it.
        let changed_after: BTreeSet<NodeId> = after.iter().filter_map(changed_node).collect();
        let is_half_written = |node: NodeId| {
            let lineage = self.lineage(node);
            let begins = |op: &Op| changed_node(op) == Some(node) || names_any(op, &lineage);
            before.iter().any(begins)
        };
        let nodes: BTreeSet<NodeId> = before.iter().chain(after).filter_map(changed_node).collect();
        nodes
            .into_iter()
            .filter(|node| torn == Some(*node) || (changed_after.contains(node) && is_half_written(*node)))
            .any(|node| !self.is_renamed_later(node))
    }

    /// Whether a directory that keeps its name exists, but not yet with everything in it.
    fn fills_directory_in_place(&self) -> bool {
        let is_filled_later =
            |dir: NodeId| self.ops_after().iter().flat_map(Op::name_changes).any(|change| change.dir == dir);
        let created = self.ops_before().iter().filter(|op| op.kind == OpKind::Mkdir);
        let mut created = created.filter_map(|op| op.name_changes().first()?.node);
        created.any(|dir| is_filled_later(dir) && !self.is_renamed_later(dir))
    }

    /// Whether a name that existed when the save began has been removed.
    fn deletes_old_first(&self) -> bool {
        let changes = || self.ops_before().iter().flat_map(Op::name_changes);
        let is_set = |dir: NodeId, name: &OsString| {
            changes().any(|change| change.dir == dir && change.name == *name && change.node.is_some())
        };
        let mut removed = changes().filter(|change| change.node.is_none());
        removed.any(|change| !is_set(change.dir, &change.name))
    }

    /// Whether there are renames before and after the crash point.
    fn replaces_files_one_by_one(&self) -> bool {
        let has_rename = |ops: &[Op]| ops.iter().any(|op| op.kind == OpKind::Rename);
        has_rename(self.ops_before()) && has_rename(self.ops_after())
    }

    /// Whether a file that was changed before the crash point contains a name that appears only after it.
    fn names_missing_entry(&self) -> Option<Cause> {
        let later_names: Vec<&OsString> = self
            .ops_after()
            .iter()
            .flat_map(Op::name_changes)
            .filter(|change| change.node.is_some())
            .map(|change| &change.name)
            .collect();
        let tree = self.candidate.tree(self.recording);
        let mut reader = ContentReader::new(self.recording).ok()?;
        let changed = tree.entries.iter().filter(|(_, entry)| match entry {
            TreeEntry::File { attributes, .. } => attributes.last_change as usize > self.window.start,
            _ => false,
        });
        for ((_, path), entry) in changed {
            let TreeEntry::File { content, .. } = entry else { continue };
            let head = content.head(&mut reader, 4096).ok()?;
            let is_in_head = |name: &&&OsString| {
                let bytes = name.as_bytes();
                bytes.len() > 1
                    && path.file_name() != Some(name)
                    && head.windows(bytes.len()).any(|window| window == bytes)
            };
            if let Some(name) = later_names.iter().find(is_in_head) {
                let is_marker = head.trim_ascii().len() <= name.len() + 16;
                return Some(if is_marker {
                    Cause::MarkerBeforeData
                } else {
                    Cause::UnfinishedDirectoryTaken
                });
            }
        }
        None
    }
}

/// Whether an operation gives a new name to one of the nodes.
fn names_any(op: &Op, nodes: &[NodeId]) -> bool {
    op.name_changes().iter().any(|change| change.node.is_some_and(|node| nodes.contains(&node)))
}

fn is_rename_of(op: &Op, lineage: &[NodeId]) -> bool {
    op.kind == OpKind::Rename && names_any(op, lineage)
}
