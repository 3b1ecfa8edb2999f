//! Why the recovery from a crash state fails: a known pattern of the save, the most specific one first. Pure,
//! except for reading recorded bytes. Whether a lock or a promise is to blame is found out by trying states
//! again, in `findings`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use scenarios::{Cause, FailureSubject, Outcome};

use super::removed_newest::{RemovedNewest, removed_newest};
use super::save_window::SaveWindow;
use crate::explore::record::{ContentReader, FileContent, NodeId, Op, OpEffect, OpKind, Recording};
use crate::explore::states::{CrashCandidate, CrashKind, TreeEntry};

/// A pointer to a checkpoint is not larger than this, in bytes.
const MAX_POINTER_BYTES: u64 = 256;
/// In this much of a file, names of other files are looked for, in bytes.
const MAX_MANIFEST_BYTES: u64 = 4096;
/// This much of two files is compared, in bytes.
const COMPARED_BYTES: u64 = 4096;

/// A pattern, and what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) cause: Cause,
    pub(super) subject: FailureSubject,
}

impl Pattern {
    fn of_file(cause: Cause) -> Pattern {
        Pattern { cause, subject: FailureSubject::File }
    }

    fn of_directory(cause: Cause) -> Pattern {
        Pattern { cause, subject: FailureSubject::Directory }
    }
}

/// Finds the pattern that fits a failing crash state.
pub(super) fn pattern_of(
    recording: &Recording,
    candidate: &CrashCandidate,
    crash: CrashKind,
    outcome: Outcome,
) -> Pattern {
    let window = SaveWindow::of(recording, candidate);
    let failure = FailedSave { recording, candidate, window, outcome };
    match crash {
        CrashKind::PowerLoss(_) if !candidate.lost_nothing() => failure.power_loss_pattern(),
        CrashKind::Process | CrashKind::PowerLoss(_) => failure.process_crash_pattern(),
    }
}

/// A crash state from which a target does not recover, with the save around its crash point.
struct FailedSave<'a> {
    recording: &'a Recording,
    candidate: &'a CrashCandidate,
    window: SaveWindow,
    outcome: Outcome,
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

    fn process_crash_pattern(&self) -> Pattern {
        // Something older was resumed from, or nothing was found: a deletion explains that better.
        if matches!(self.outcome, Outcome::LostWork | Outcome::Restarted)
            && let Some(removed) = self.removed_newest()
        {
            return removed;
        }
        if self.copies_to_final_name() {
            return Pattern::of_file(Cause::RenameFallsBackToCopy);
        }
        if self.unfinished_directory().is_some() {
            let cause = self.names_missing_entry().unwrap_or(Cause::UnfinishedDirectoryTaken);
            return Pattern::of_directory(cause);
        }
        if let Some(node) = self.written_in_place() {
            let is_pointer = self.is_pointer(node);
            let subject = if is_pointer { FailureSubject::Pointer } else { FailureSubject::File };
            return Pattern { cause: Cause::WrittenInPlace, subject };
        }
        if let Some(cause) = self.names_missing_entry() {
            return Pattern::of_file(cause);
        }
        if let Some(removed) = self.removed_newest() {
            return removed;
        }
        if self.deletes_old_first() {
            return Pattern::of_file(Cause::OldDeletedFirst);
        }
        if self.fills_directory_in_place() {
            return Pattern::of_directory(Cause::WrittenInPlace);
        }
        if self.replaces_files_one_by_one() {
            return Pattern::of_file(Cause::MixedSaves);
        }
        Pattern::of_file(Cause::Other)
    }

    fn removed_newest(&self) -> Option<Pattern> {
        let cause = match removed_newest(self.recording, self.window.start, self.window.op_count)? {
            RemovedNewest::OlderStay => Cause::NewestPruned,
            RemovedNewest::NoneStay => Cause::OldDeletedFirst,
        };
        Some(Pattern::of_file(cause))
    }

    fn power_loss_pattern(&self) -> Pattern {
        let cause = self.power_loss_cause();
        let subject = match cause {
            Cause::UnfinishedDirectoryTaken => FailureSubject::Directory,
            _ => FailureSubject::File,
        };
        Pattern { cause, subject }
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
        if (self.existed(node, op) || !self.acknowledged_since(op)) && self.is_copied_from_removed(node) {
            return Cause::RenameFallsBackToCopy;
        }
        if self.existed(node, op) {
            return Cause::WrittenInPlace;
        }
        match (self.acknowledged_since(op), self.is_renamed_later(node)) {
            (true, _) => Cause::AcknowledgedTooEarly,
            (false, true) => Cause::OrderNotEnforced,
            // The file is incomplete under the name that is read, and no save was acknowledged: no fsync
            // prevents that.
            (false, false) => {
                self.names_missing_entry().unwrap_or_else(|| match self.is_in_new_checkpoint(node) {
                    true => Cause::UnfinishedDirectoryTaken,
                    false => Cause::WrittenInPlace,
                })
            }
        }
    }

    /// The node and the directories above it, by the names at the crash point.
    fn lineage(&self, node: NodeId) -> Vec<NodeId> {
        self.lineage_at(node, self.window.op_count)
    }

    fn lineage_at(&self, node: NodeId, op_count: usize) -> Vec<NodeId> {
        let mut lineage = vec![node];
        let mut current = node;
        // A watched directory has no name.
        while current as usize >= self.recording.roots.len()
            && let Some((dir, _)) = self.recording.name_of(current, op_count)
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

    /// A file that is half written at the crash point and keeps its name.
    fn written_in_place(&self) -> Option<NodeId> {
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
            .find(|node| !self.is_renamed_later(*node))
    }

    /// The content of a file after the first `op_count` operations.
    fn content_at(&self, node: NodeId, op_count: usize) -> Option<FileContent> {
        let tree = CrashCandidate::whole(op_count).tree(self.recording);
        tree.entries.into_values().find_map(|entry| match entry {
            TreeEntry::File { node: other, content, .. } if other == node => Some(content),
            _ => None,
        })
    }

    fn head_at(&self, node: NodeId, op_count: usize, max_bytes: u64) -> Option<Vec<u8>> {
        let mut reader = ContentReader::new(self.recording).ok()?;
        self.content_at(node, op_count)?.head(&mut reader, max_bytes).ok()
    }

    /// Whether the file is small and has one line with the name of something else when the save is complete.
    fn is_pointer(&self, node: NodeId) -> bool {
        let end = self.window.end;
        if self.content_at(node, end).is_none_or(|content| content.len() > MAX_POINTER_BYTES) {
            return false;
        }
        let Some(head) = self.head_at(node, end, MAX_POINTER_BYTES) else { return false };
        if head.trim_ascii().contains(&b'\n') {
            return false;
        }
        let own_path = self.recording.path_of(node, end);
        let tree = CrashCandidate::whole(end).tree(self.recording);
        tree.entries
            .keys()
            .filter_map(|(_, path)| path.file_name())
            .any(|name| own_path.file_name() != Some(name) && contains_name(&head, name.as_bytes()))
    }

    /// Whether a file is written under its final name as a copy of another one, which is removed after that.
    fn copies_to_final_name(&self) -> bool {
        self.written_in_place().is_some_and(|copy| self.is_copied_from_removed(copy))
    }

    /// Whether the bytes of a file are those of another one, which is removed after that.
    fn is_copied_from_removed(&self, copy: NodeId) -> bool {
        let ops = &self.recording.ops;
        let last_write =
            (self.window.start..self.window.end).rev().find(|op| changed_node(&ops[*op]) == Some(copy));
        let Some(last_write) = last_write else { return false };
        let Some(bytes) = self.head_at(copy, last_write + 1, COMPARED_BYTES) else { return false };
        let len_bytes = self.recording.size_before(copy, last_write + 1);
        (last_write + 1..self.window.end).filter(|op| ops[*op].kind == OpKind::Unlink).any(|op| {
            let change = ops[op].name_changes().first();
            let removed = change.and_then(|change| self.recording.node_named(change.dir, &change.name, op));
            removed.is_some_and(|source| {
                source != copy
                    && len_bytes > 0
                    && self.recording.size_before(source, op) == len_bytes
                    && self.head_at(source, op, COMPARED_BYTES).as_ref() == Some(&bytes)
            })
        })
    }

    /// A directory of one checkpoint, with a number in its name, that this save has made, that keeps its name, and
    /// in which something is still missing or torn.
    fn unfinished_directory(&self) -> Option<NodeId> {
        let torn = self.candidate.torn.and_then(|torn| self.recording.ops[torn.op as usize].data_node());
        let is_filled_later = |dir: NodeId| {
            let in_dir = |node: NodeId| self.lineage_at(node, self.window.end).contains(&dir);
            let changed = self.ops_after().iter().any(|op| {
                changed_node(op).is_some_and(in_dir)
                    || op
                        .name_changes()
                        .iter()
                        .any(|change| change.node.is_some() && (change.dir == dir || in_dir(change.dir)))
            });
            changed || torn.is_some_and(in_dir)
        };
        let created = self.ops_before().iter().filter(|op| op.kind == OpKind::Mkdir);
        let mut dirs = created.filter_map(|op| {
            let change = op.name_changes().first()?;
            has_number(&change.name).then_some(change.node?)
        });
        dirs.find(|dir| {
            is_filled_later(*dir) && !self.is_renamed_later(*dir) && self.is_left_alone_after_save(*dir)
        })
    }

    /// Whether nothing in the directory is changed once the save is complete, as it is in one of a whole run.
    fn is_left_alone_after_save(&self, dir: NodeId) -> bool {
        let end = self.window.end;
        let in_dir = |node: NodeId| self.lineage_at(node, end).contains(&dir);
        !self.recording.ops[end..].iter().any(|op| {
            changed_node(op).is_some_and(in_dir)
                || op.name_changes().iter().any(|change| change.node.is_some() && in_dir(change.dir))
        })
    }

    /// Whether the file lies in a directory of one checkpoint that this save has made.
    fn is_in_new_checkpoint(&self, node: NodeId) -> bool {
        let lineage = self.lineage(node);
        self.ops_before()
            .iter()
            .filter(|op| op.kind == OpKind::Mkdir)
            .flat_map(Op::name_changes)
            .any(|change| has_number(&change.name) && change.node.is_some_and(|dir| lineage.contains(&dir)))
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

    /// Whether there are renames before and after the crash point, or old files that are written before and others
    /// that are written after it.
    fn replaces_files_one_by_one(&self) -> bool {
        let has_rename = |ops: &[Op]| ops.iter().any(|op| op.kind == OpKind::Rename);
        let rewritten = |ops: &[Op]| -> BTreeSet<NodeId> {
            let nodes = ops.iter().filter_map(changed_node);
            nodes.filter(|node| self.existed(*node, self.window.start)).collect()
        };
        let (before, after) = (rewritten(self.ops_before()), rewritten(self.ops_after()));
        (has_rename(self.ops_before()) && has_rename(self.ops_after()))
            || (!before.is_empty() && after.difference(&before).next().is_some())
    }

    /// Whether the save has truncated a file to nothing.
    fn is_emptied(&self, node: NodeId) -> bool {
        let empties =
            |op: &Op| matches!(op.effect, OpEffect::Resize { node: of, size_bytes: 0 } if of == node);
        self.ops_before().iter().any(empties)
    }

    /// Whether a file that was changed before the crash point contains a name that appears only after it.
    fn names_missing_entry(&self) -> Option<Cause> {
        let unfinished = self.unfinished_directory();
        let unfinished = unfinished.and_then(|dir| self.recording.name_of(dir, self.window.op_count));
        let unfinished = unfinished.map(|named| named.1);
        let later_names: Vec<&OsString> = self
            .ops_after()
            .iter()
            .flat_map(Op::name_changes)
            .filter(|change| change.node.is_some())
            .map(|change| &change.name)
            .chain(&unfinished)
            .collect();
        let tree = self.candidate.tree(self.recording);
        let mut reader = ContentReader::new(self.recording).ok()?;
        let changed = tree.entries.iter().filter(|(_, entry)| match entry {
            // What is renamed later says nothing yet.
            TreeEntry::File { node, attributes, .. } => {
                attributes.last_change as usize > self.window.start && !self.is_renamed_later(*node)
            }
            _ => false,
        });
        for ((_, path), entry) in changed {
            let TreeEntry::File { node, content, .. } = entry else { continue };
            let head = content.head(&mut reader, MAX_MANIFEST_BYTES).ok()?;
            let is_in_head =
                |name: &&&OsString| path.file_name() != Some(name) && contains_name(&head, name.as_bytes());
            if let Some(name) = later_names.iter().find(is_in_head) {
                let is_pointer = head.trim_ascii().len() <= name.len() + 16;
                if is_pointer {
                    return Some(Cause::MarkerBeforeData);
                }
                if self.is_in_new_checkpoint(*node) {
                    return Some(Cause::UnfinishedDirectoryTaken);
                }
                // A manifest is made anew. A log, which names what will be saved, grows.
                if !self.existed(*node, self.window.start) || self.is_emptied(*node) {
                    return Some(Cause::MarkerBeforeData);
                }
            }
        }
        None
    }
}

/// The file whose bytes or length an operation changes.
fn changed_node(op: &Op) -> Option<NodeId> {
    match op.effect {
        OpEffect::Resize { node, .. } => Some(node),
        _ => op.data_node(),
    }
}

fn contains_name(bytes: &[u8], name: &[u8]) -> bool {
    name.len() > 1 && bytes.windows(name.len()).any(|window| window == name)
}

fn has_number(name: &OsString) -> bool {
    name.as_bytes().iter().any(u8::is_ascii_digit)
}

/// Whether an operation gives a new name to one of the nodes.
fn names_any(op: &Op, nodes: &[NodeId]) -> bool {
    op.name_changes().iter().any(|change| change.node.is_some_and(|node| nodes.contains(&node)))
}

fn is_rename_of(op: &Op, lineage: &[NodeId]) -> bool {
    op.kind == OpKind::Rename && names_any(op, lineage)
}
