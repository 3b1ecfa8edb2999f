//! Why the recovery from a crash state fails: a known pattern of the save. Also describes crash states for
//! people. Pure, except for reading recorded bytes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::content::ContentReader;
use super::crash_candidate::{CrashCandidate, FileTree, Tear, TreeEntry};
use super::enumerate::{CrashKind, CrashState, Witness};
use super::fs_model::BYTES_PART;
use super::recording::{NodeId, Op, OpEffect, Recording};

/// A known pattern of a save that is not crash-safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// A file is changed under its final name.
    WrittenInPlace,
    /// The old checkpoint is deleted before the new one is complete.
    OldDeletedFirst,
    /// A small file that names the newest checkpoint is changed before that checkpoint exists.
    MarkerBeforeData,
    /// A list of files is complete before the files are, so that an unfinished checkpoint is resumed from.
    UnfinishedDirectoryTaken,
    /// The files of one checkpoint are replaced one after the other, so that they can come from two saves.
    MixedSaves,
    /// A rename reached the disk, but the bytes of the renamed file did not.
    NoFsyncBeforeRename,
    /// A save was acknowledged before its bytes were synced.
    AcknowledgedTooEarly,
    /// The bytes of a file reached the disk, but its name did not.
    DirectoryNotSynced,
    /// A later change reached the disk before an earlier one that it depends on.
    OrderNotEnforced,
    /// None of the above.
    Other,
}

impl Cause {
    /// The id in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Cause::WrittenInPlace => "written-in-place",
            Cause::OldDeletedFirst => "old-deleted-first",
            Cause::MarkerBeforeData => "marker-before-data",
            Cause::UnfinishedDirectoryTaken => "unfinished-directory-taken",
            Cause::MixedSaves => "mixed-saves",
            Cause::NoFsyncBeforeRename => "no-fsync-before-rename",
            Cause::AcknowledgedTooEarly => "acknowledged-too-early",
            Cause::DirectoryNotSynced => "directory-not-synced",
            Cause::OrderNotEnforced => "order-not-enforced",
            Cause::Other => "other",
        }
    }

    /// What to change in the trainer.
    pub fn advice(self) -> &'static str {
        match self {
            Cause::WrittenInPlace => {
                "write a temporary file next to it, fsync it, rename it over the file, fsync the directory"
            }
            Cause::OldDeletedFirst => {
                "delete the old checkpoint only after the new one is synced and has its final name"
            }
            Cause::MarkerBeforeData => {
                "replace the marker last, by a temporary file and a rename, after what it names is synced"
            }
            Cause::UnfinishedDirectoryTaken => {
                "write the manifest last, or write everything into a temporary directory and rename that"
            }
            Cause::MixedSaves => {
                "write the files of one checkpoint into one directory and rename the directory"
            }
            Cause::NoFsyncBeforeRename => "fsync the file before renaming it",
            Cause::AcknowledgedTooEarly => "fsync the file before announcing the save",
            Cause::DirectoryNotSynced => {
                "fsync the directory after creating, renaming or removing in it, before announcing the save"
            }
            Cause::OrderNotEnforced => {
                "fsync the file and the directory of the earlier change before making the later one"
            }
            Cause::Other => "repeat this state with its command and look at the files",
        }
    }
}

/// Finds the pattern that fits a failing crash state.
pub(super) fn cause_of(recording: &Recording, candidate: &CrashCandidate, crash: CrashKind) -> Cause {
    let window = SaveWindow::new(recording, candidate);
    match crash {
        CrashKind::Process => window.process_crash_cause(),
        CrashKind::PowerLoss(_) if candidate.lost.is_empty() && candidate.torn.is_none() => {
            window.process_crash_cause()
        }
        CrashKind::PowerLoss(_) => window.power_loss_cause(),
    }
}

/// The operations around a crash point, from the last acknowledged save before it to the next one after it.
struct SaveWindow<'a> {
    recording: &'a Recording,
    candidate: &'a CrashCandidate,
    op_count: usize,
    start: usize,
    end: usize,
}

impl<'a> SaveWindow<'a> {
    fn new(recording: &'a Recording, candidate: &'a CrashCandidate) -> SaveWindow<'a> {
        let op_count = candidate.op_count as usize;
        let is_acknowledgement = |op: &Op| matches!(op.effect, OpEffect::Output { saved_step: Some(_), .. });
        let start = recording.ops[..op_count].iter().rposition(is_acknowledgement).map_or(0, |op| op + 1);
        let end = recording.ops[op_count..]
            .iter()
            .position(is_acknowledgement)
            .map_or(recording.ops.len(), |op| op_count + op);
        SaveWindow { recording, candidate, op_count, start, end }
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
            .chain(self.candidate.torn.map(|(op, _)| op as usize))
            .filter_map(|op| match self.recording.ops[op].effect {
                OpEffect::Resize { node, .. } => Some((op, node)),
                _ => Some((op, self.recording.ops[op].data_node()?)),
            })
            .collect();
        if let Some((op, node)) = data.first() {
            return self.lost_data_cause(*op, *node);
        }
        let lost: BTreeSet<usize> = self.candidate.lost.iter().map(|unit| unit.op as usize).collect();
        let first = lost.first().copied().unwrap_or(self.op_count);
        let acknowledged_since = self.recording.ops[first..self.op_count]
            .iter()
            .any(|op| matches!(op.effect, OpEffect::Output { saved_step: Some(_), .. }));
        if acknowledged_since { Cause::DirectoryNotSynced } else { Cause::OrderNotEnforced }
    }

    fn lost_data_cause(&self, op: usize, node: NodeId) -> Cause {
        let renamed = self.recording.ops[op..self.op_count].iter().enumerate().any(|(after, later)| {
            let is_persisted = !self.candidate.lost.iter().any(|unit| unit.op as usize == op + after);
            is_persisted && later.kind() == "rename" && self.renames_node(later, node)
        });
        if renamed {
            return Cause::NoFsyncBeforeRename;
        }
        if self.existed(node, op) {
            return Cause::WrittenInPlace;
        }
        let acknowledged = self.recording.ops[op..self.op_count]
            .iter()
            .any(|op| matches!(op.effect, OpEffect::Output { saved_step: Some(_), .. }));
        let renamed_later = self.recording.ops[self.op_count..self.end]
            .iter()
            .any(|op| op.kind() == "rename" && self.renames_node(op, node));
        match (acknowledged, renamed_later) {
            (true, _) => Cause::AcknowledgedTooEarly,
            (false, true) => Cause::OrderNotEnforced,
            // The file is incomplete under the name that is read, and no save was acknowledged: no fsync
            // prevents that.
            (false, false) => self.names_missing_entry().unwrap_or(Cause::WrittenInPlace),
        }
    }

    /// Whether an operation gives a new name to the node or to a directory above it.
    fn renames_node(&self, op: &Op, node: NodeId) -> bool {
        let OpEffect::NameChanges(changes) = &op.effect else { return false };
        let mut next = Some(node);
        while let Some(current) = next {
            if changes.iter().any(|change| change.node == Some(current)) {
                return true;
            }
            next = self
                .recording
                .name_of(current, self.op_count)
                .map(|(dir, _)| dir)
                .filter(|dir| *dir != current);
            if (current as usize) < self.recording.roots.len() {
                return false;
            }
        }
        false
    }

    /// Whether the node had a name when the save began, or at operation `op` if that is earlier.
    fn existed(&self, node: NodeId, op: usize) -> bool {
        let start = self.start.min(op);
        let created = self.recording.ops[start..op].iter().any(|earlier| match &earlier.effect {
            OpEffect::NameChanges(changes) => changes.iter().any(|change| change.node == Some(node)),
            _ => false,
        });
        !created && self.recording.name_of(node, start).is_some()
    }

    /// Whether a file that is half written at the crash point keeps its name.
    fn writes_in_place(&self) -> bool {
        let changed_node = |op: &Op| match op.effect {
            OpEffect::Resize { node, .. } => Some(node),
            _ => op.data_node(),
        };
        let operations = &self.recording.ops[self.start..self.end];
        let (before, after) = operations.split_at(self.op_count - self.start);
        let torn = self.candidate.torn.and_then(|(op, _)| self.recording.ops[op as usize].data_node());
        // Half written: changed before and after the crash point, or created before it and filled after it.
        let is_half_written = |node: NodeId| {
            let begun = before.iter().any(|op| changed_node(op) == Some(node) || self.renames_node(op, node));
            begun && after.iter().any(|op| changed_node(op) == Some(node))
        };
        let nodes: BTreeSet<NodeId> = operations.iter().filter_map(changed_node).collect();
        nodes
            .into_iter()
            .filter(|node| torn == Some(*node) || is_half_written(*node))
            .any(|node| !after.iter().any(|op| op.kind() == "rename" && self.renames_node(op, node)))
    }

    /// Whether a directory that keeps its name exists, but not yet with everything in it.
    fn fills_directory_in_place(&self) -> bool {
        let created = |op: &Op| match (&op.effect, op.kind()) {
            (OpEffect::NameChanges(changes), "mkdir") => changes[0].node,
            _ => None,
        };
        let after = &self.recording.ops[self.op_count..self.end];
        let is_filled_later =
            |dir: NodeId| after.iter().flat_map(name_changes).any(|change| change.dir == dir);
        let is_renamed_later =
            |dir: NodeId| after.iter().any(|op| op.kind() == "rename" && self.renames_node(op, dir));
        let mut begun = self.recording.ops[self.start..self.op_count].iter().filter_map(created);
        begun.any(|dir| is_filled_later(dir) && !is_renamed_later(dir))
    }

    /// Whether a name that existed when the save began has been removed.
    fn deletes_old_first(&self) -> bool {
        let removed = self.recording.ops[self.start..self.op_count]
            .iter()
            .flat_map(name_changes)
            .filter(|change| change.node.is_none());
        let is_set_in_window = |dir: NodeId, name: &OsString| {
            self.recording.ops[self.start..self.op_count]
                .iter()
                .flat_map(name_changes)
                .any(|change| change.dir == dir && change.name == *name && change.node.is_some())
        };
        removed.into_iter().any(|change| !is_set_in_window(change.dir, &change.name))
    }

    /// Whether there are renames before and after the crash point.
    fn replaces_files_one_by_one(&self) -> bool {
        let has_rename =
            |range: std::ops::Range<usize>| self.recording.ops[range].iter().any(|op| op.kind() == "rename");
        has_rename(self.start..self.op_count) && has_rename(self.op_count..self.end)
    }

    /// Whether a file that was changed before the crash point contains a name that appears only after it.
    fn names_missing_entry(&self) -> Option<Cause> {
        let later_names: Vec<&OsString> = self.recording.ops[self.op_count..self.end]
            .iter()
            .flat_map(name_changes)
            .filter(|change| change.node.is_some())
            .map(|change| &change.name)
            .collect();
        let tree = self.candidate.tree(self.recording);
        let mut reader = ContentReader::new(self.recording).ok()?;
        let changed = tree.entries.iter().filter(|(_, entry)| match entry {
            TreeEntry::File { last_change, .. } => *last_change as usize > self.start,
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

fn name_changes(op: &Op) -> &[super::recording::NameChange] {
    match &op.effect {
        OpEffect::NameChanges(changes) => changes,
        _ => &[],
    }
}

/// The operations that lead to a crash state, from the last acknowledgement before the first loss. Marks
/// those that were lost or torn; the HTML report looks for these marks.
pub(super) fn describe_operations(recording: &Recording, candidate: &CrashCandidate) -> Vec<String> {
    let op_count = candidate.op_count as usize;
    let first_lost = candidate.lost.first().map_or(op_count, |unit| unit.op as usize);
    let start = recording.ops[..first_lost.min(op_count)]
        .iter()
        .rposition(|op| matches!(op.effect, OpEffect::Output { saved_step: Some(_), .. }))
        .unwrap_or(0);
    let mark = |op: usize| {
        if let Some((_, tear)) = candidate.torn.filter(|(torn, _)| *torn as usize == op) {
            return format!("  torn: {}", describe_tear(tear));
        }
        let lost: Vec<u8> =
            candidate.lost.iter().filter(|unit| unit.op as usize == op).map(|unit| unit.part).collect();
        match (&lost[..], &recording.ops[op].effect) {
            ([], _) => String::new(),
            ([part, ..], OpEffect::Write { .. }) if *part == BYTES_PART => "  zeroes".into(),
            (parts, OpEffect::NameChanges(changes)) if parts.len() < changes.len() => "  half lost".into(),
            _ => "  lost".into(),
        }
    };
    let mut lines: Vec<String> =
        (start..op_count).map(|op| format!("{op:>4}  {}{}", recording.ops[op].text, mark(op))).collect();
    const MAX_LINES: usize = 40;
    if lines.len() > MAX_LINES {
        let left_out = lines.len() - MAX_LINES;
        lines.splice(MAX_LINES / 2..MAX_LINES / 2 + left_out, [format!("      .. {left_out} operations ..")]);
    }
    lines
}

impl CrashState {
    /// The crash, its crash point and what it lost, in one line.
    pub fn describe(&self, recording: &Recording) -> String {
        let Some((crash, witness)) = self.strictest_witness() else { return "no crash".into() };
        let CrashCandidate { op_count, lost, torn } = &witness.candidate;
        let after = match op_count.checked_sub(1) {
            Some(op) => format!("after {}", recording.ops[op as usize].text),
            None => "before the first operation".into(),
        };
        let torn =
            torn.map(|(op, tear)| format!("of {} {}", recording.ops[op as usize].text, describe_tear(tear)));
        let lost = lost.first().map(|unit| {
            let is_zeroed = matches!(recording.ops[unit.op as usize].effect, OpEffect::Write { .. })
                && unit.part == BYTES_PART;
            let prefix = if is_zeroed { "the bytes of " } else { "" };
            let first = format!("{prefix}{}", recording.ops[unit.op as usize].text);
            if lost.len() == 1 {
                format!("{first} lost")
            } else {
                format!("{first} and {} more lost", lost.len() - 1)
            }
        });
        let losses: Vec<String> = [lost, torn].into_iter().flatten().collect();
        let losses = if losses.is_empty() { String::new() } else { format!(": {}", losses.join("; ")) };
        match crash {
            CrashKind::Process => format!("killed {after}{losses}"),
            CrashKind::PowerLoss(_) => {
                let models: Vec<&str> = self
                    .witnesses
                    .keys()
                    .filter_map(|crash| match crash {
                        CrashKind::PowerLoss(model) => Some(model.name()),
                        CrashKind::Process => None,
                    })
                    .collect();
                format!("power loss ({}) {after}{losses}", models.join(", "))
            }
        }
    }

    /// How the materialized files differ from those without the crash: the evidence of the fault.
    pub fn evidence(&self, recording: &Recording) -> String {
        let candidate = self.candidate();
        let entry_count = candidate.tree(recording).entries.len();
        let lines = tree_difference(recording, candidate);
        let more_count = lines.len().saturating_sub(5);
        let more = if more_count > 0 { format!("; {more_count} more") } else { String::new() };
        let lines: Vec<String> = lines.into_iter().take(5).collect();
        format!("{entry_count} files and directories materialized; differences: {}{more}", lines.join("; "))
    }

    /// The state that a process crash leaves.
    pub fn after_process_crash(recording: &Recording, candidate: CrashCandidate) -> CrashState {
        let digest = candidate.tree(recording).digest();
        let acknowledged = recording.acknowledged(candidate.op_count as usize);
        CrashState { witnesses: [(CrashKind::Process, Witness { candidate, acknowledged })].into(), digest }
    }
}

fn describe_tear(tear: Tear) -> String {
    match tear {
        Tear::Prefix(written) => format!("only its first {written} bytes"),
        Tear::ZeroTail(written) => format!("full length, but zeroes after {written} bytes"),
        Tear::GarbageTail(written) => format!("full length, but garbage after {written} bytes"),
        Tear::Hole(missing) => format!("the first {missing} bytes are zeroes"),
    }
}

/// How the tree of a candidate differs from the tree without the crash, a line for each file.
pub(super) fn tree_difference(recording: &Recording, candidate: &CrashCandidate) -> Vec<String> {
    let tree = candidate.tree(recording);
    let op_count = candidate.op_count as usize;
    let reference = if candidate.lost.is_empty() && candidate.torn.is_none() {
        // A process crash is compared with the tree at the last acknowledgement.
        let start = SaveWindow::new(recording, candidate).start;
        CrashCandidate::whole(start).tree(recording)
    } else {
        CrashCandidate::whole(op_count).tree(recording)
    };
    compare_trees(&tree, &reference)
}

fn compare_trees(tree: &FileTree, reference: &FileTree) -> Vec<String> {
    let shown = |path: &Path| path.display().to_string();
    let mut lines = Vec::new();
    let paths: BTreeSet<_> = tree.entries.keys().chain(reference.entries.keys()).collect();
    for key in paths {
        match (tree.entries.get(key), reference.entries.get(key)) {
            (Some(_), None) => lines.push(format!("+ {}", shown(&key.1))),
            (None, Some(_)) => lines.push(format!("- {}", shown(&key.1))),
            (Some(TreeEntry::File { content, .. }), Some(TreeEntry::File { content: expected, .. }))
                if content != expected =>
            {
                lines.push(format!(
                    "~ {}: {} bytes instead of {}",
                    shown(&key.1),
                    content.len(),
                    expected.len()
                ));
            }
            _ => {}
        }
    }
    lines.truncate(30);
    lines
}
