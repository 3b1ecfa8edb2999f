//! Why a state can't be come back from: which promise is broken, between which two operations. Pure.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::content::ContentReader;
use super::crash_candidate::{CrashCandidate, FileTree, Tear, TreeEntry};
use super::enumerate::{CrashKind, CrashState, Witness};
use super::fs_model::BYTES_PART;
use super::recording::{NodeId, Op, OpEffect, Recording};

/// A known pattern of a broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// A file under its final name is changed where it lies.
    WrittenInPlace,
    /// The old one goes before the new one is there.
    OldDeletedFirst,
    /// A small file that names the newest one is changed before that one is there.
    MarkerBeforeData,
    /// A list of files is complete before the files are.
    UnfinishedDirectoryTaken,
    /// Files that belong together are replaced one after the other.
    MixedSaves,
    /// The new name reached the disk, the bytes behind it did not.
    NoFsyncBeforeRename,
    /// Bytes that were called saved were not synced.
    AcknowledgedTooEarly,
    /// The bytes are there, their name is not.
    DirectoryNotSynced,
    /// Later changes reached the disk before earlier ones that they need.
    OrderNotEnforced,
    /// None of these.
    Other,
}

impl Cause {
    pub fn name(self) -> &'static str {
        match self {
            Cause::WrittenInPlace => "written-in-place",
            Cause::OldDeletedFirst => "old-deleted-first",
            Cause::MarkerBeforeData => "marker-written-first",
            Cause::UnfinishedDirectoryTaken => "manifest-before-data",
            Cause::MixedSaves => "files-replaced-one-by-one",
            Cause::NoFsyncBeforeRename => "no-fsync-before-rename",
            Cause::AcknowledgedTooEarly => "not-synced-before-promise",
            Cause::DirectoryNotSynced => "folder-not-synced",
            Cause::OrderNotEnforced => "order-not-enforced",
            Cause::Other => "other",
        }
    }

    pub fn advice(self) -> &'static str {
        match self {
            Cause::WrittenInPlace => {
                "write to a temporary name beside it, fsync it, rename it over the old one, fsync the folder"
            }
            Cause::OldDeletedFirst => {
                "delete the old one only after the new one is complete under its name and synced"
            }
            Cause::MarkerBeforeData => {
                "change the marker last, by write-aside and rename, after what it names is synced"
            }
            Cause::UnfinishedDirectoryTaken => {
                "write the manifest last, or write everything into a temporary folder and rename that"
            }
            Cause::MixedSaves => "put files that belong together into one folder and rename the folder",
            Cause::NoFsyncBeforeRename => "fsync the file before renaming it",
            Cause::AcknowledgedTooEarly => "fsync the file before saying that it is saved",
            Cause::DirectoryNotSynced => {
                "fsync the folder after creating, renaming or removing in it, before saying that it is saved"
            }
            Cause::OrderNotEnforced => {
                "fsync file and folder of the earlier change before making the later one"
            }
            Cause::Other => "look at the state with the command that repeats it",
        }
    }
}

/// Finds the pattern that fits a failing state.
pub(super) fn cause_of(recording: &Recording, candidate: &CrashCandidate, crash: CrashKind) -> Cause {
    let view = SaveWindow::new(recording, candidate);
    match crash {
        CrashKind::Process => view.process_crash_cause(),
        CrashKind::PowerLoss(_) if candidate.lost.is_empty() && candidate.torn.is_none() => {
            view.process_crash_cause()
        }
        CrashKind::PowerLoss(_) => view.power_loss_cause(),
    }
}

/// The save in which a moment lies: after the last promise, to the next one.
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
        let promise = |op: &Op| matches!(op.effect, OpEffect::Output { saved_step: Some(_), .. });
        let start = recording.ops[..op_count].iter().rposition(promise).map_or(0, |at| at + 1);
        let end = recording.ops[op_count..]
            .iter()
            .position(promise)
            .map_or(recording.ops.len(), |at| op_count + at);
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
        let promised_since = self.recording.ops[first..self.op_count]
            .iter()
            .any(|op| matches!(op.effect, OpEffect::Output { saved_step: Some(_), .. }));
        if promised_since { Cause::DirectoryNotSynced } else { Cause::OrderNotEnforced }
    }

    fn lost_data_cause(&self, op: usize, node: NodeId) -> Cause {
        let renamed = self.recording.ops[op..self.op_count].iter().enumerate().any(|(after, later)| {
            let kept = !self.candidate.lost.iter().any(|unit| unit.op as usize == op + after);
            kept && later.kind() == "rename" && self.renames_node(later, node)
        });
        if renamed {
            return Cause::NoFsyncBeforeRename;
        }
        if self.existed(node, op) {
            return Cause::WrittenInPlace;
        }
        let promised = self.recording.ops[op..self.op_count]
            .iter()
            .any(|op| matches!(op.effect, OpEffect::Output { saved_step: Some(_), .. }));
        let renamed_later = self.recording.ops[self.op_count..self.end]
            .iter()
            .any(|op| op.kind() == "rename" && self.renames_node(op, node));
        match (promised, renamed_later) {
            (true, _) => Cause::AcknowledgedTooEarly,
            (false, true) => Cause::OrderNotEnforced,
            // Half of it lies under the name that is read, and nothing was promised yet: no sync mends that.
            (false, false) => self.names_missing_entry().unwrap_or(Cause::WrittenInPlace),
        }
    }

    /// Whether an operation gives a new name to the node or to a folder above it.
    fn renames_node(&self, op: &Op, node: NodeId) -> bool {
        let OpEffect::NameChanges(changes) = &op.effect else { return false };
        let mut at = Some(node);
        while let Some(one) = at {
            if changes.iter().any(|change| change.node == Some(one)) {
                return true;
            }
            at = self.recording.name_of(one, self.op_count).map(|(dir, _)| dir).filter(|dir| *dir != one);
            if (one as usize) < self.recording.roots.len() {
                return false;
            }
        }
        false
    }

    /// Had a name when the save began, or when operation `op` came, whichever is earlier.
    fn existed(&self, node: NodeId, op: usize) -> bool {
        let start = self.start.min(op);
        let created = self.recording.ops[start..op].iter().any(|one| match &one.effect {
            OpEffect::NameChanges(changes) => changes.iter().any(|change| change.node == Some(node)),
            _ => false,
        });
        !created && self.recording.name_of(node, start).is_some()
    }

    /// The write under way is to a file that keeps its name.
    fn writes_in_place(&self) -> bool {
        let touched = |op: &Op| match op.effect {
            OpEffect::Resize { node, .. } => Some(node),
            _ => op.data_node(),
        };
        let around = &self.recording.ops[self.start..self.end];
        let (before, after) = around.split_at(self.op_count - self.start);
        let torn = self.candidate.torn.and_then(|(op, _)| self.recording.ops[op as usize].data_node());
        // Half written: touched on both sides of the moment, or created before it and filled after it.
        let half = |node: NodeId| {
            let begun = before.iter().any(|op| touched(op) == Some(node) || self.renames_node(op, node));
            begun && after.iter().any(|op| touched(op) == Some(node))
        };
        let nodes: BTreeSet<NodeId> = around.iter().filter_map(touched).collect();
        nodes
            .into_iter()
            .filter(|node| torn == Some(*node) || half(*node))
            .any(|node| !after.iter().any(|op| op.kind() == "rename" && self.renames_node(op, node)))
    }

    /// A folder that keeps its name is there, and not yet everything in it.
    fn fills_directory_in_place(&self) -> bool {
        let created = |op: &Op| match (&op.effect, op.kind()) {
            (OpEffect::NameChanges(changes), "mkdir") => changes[0].node,
            _ => None,
        };
        let after = &self.recording.ops[self.op_count..self.end];
        let filled = |folder: NodeId| after.iter().flat_map(name_changes).any(|one| one.dir == folder);
        let renamed =
            |folder: NodeId| after.iter().any(|op| op.kind() == "rename" && self.renames_node(op, folder));
        let mut begun = self.recording.ops[self.start..self.op_count].iter().filter_map(created);
        begun.any(|folder| filled(folder) && !renamed(folder))
    }

    /// A name that was there when the save began is gone, and comes again, or nothing has come instead yet.
    fn deletes_old_first(&self) -> bool {
        let gone = self.recording.ops[self.start..self.op_count]
            .iter()
            .flat_map(name_changes)
            .filter(|one| one.node.is_none());
        let set_before = |dir: NodeId, name: &OsString| {
            self.recording.ops[self.start..self.op_count]
                .iter()
                .flat_map(name_changes)
                .any(|one| one.dir == dir && one.name == *name && one.node.is_some())
        };
        gone.into_iter().any(|one| !set_before(one.dir, &one.name))
    }

    fn replaces_files_one_by_one(&self) -> bool {
        let renamed =
            |range: std::ops::Range<usize>| self.recording.ops[range].iter().any(|op| op.kind() == "rename");
        renamed(self.start..self.op_count) && renamed(self.op_count..self.end)
    }

    /// A file changed before the moment speaks of a name that comes only after it.
    fn names_missing_entry(&self) -> Option<Cause> {
        let coming: Vec<&OsString> = self.recording.ops[self.op_count..self.end]
            .iter()
            .flat_map(name_changes)
            .filter(|one| one.node.is_some())
            .map(|one| &one.name)
            .collect();
        let tree = self.candidate.tree(self.recording);
        let mut reader = ContentReader::new(self.recording).ok()?;
        let changed = tree.entries.iter().filter(|(_, leaf)| match leaf {
            TreeEntry::File { last_change: touched, .. } => *touched as usize > self.start,
            _ => false,
        });
        for ((_, path), leaf) in changed {
            let TreeEntry::File { content, .. } = leaf else { continue };
            let head = content.head(&mut reader, 4096).ok()?;
            let names = |name: &&&OsString| {
                let bytes = name.as_bytes();
                bytes.len() > 1
                    && path.file_name() != Some(name)
                    && head.windows(bytes.len()).any(|at| at == bytes)
            };
            if let Some(name) = coming.iter().find(names) {
                let bare = head.trim_ascii().len() <= name.len() + 16;
                return Some(if bare { Cause::MarkerBeforeData } else { Cause::UnfinishedDirectoryTaken });
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

/// The operations that lead to a state, those that were lost marked: from the last promise that holds in it.
pub(super) fn describe_operations(recording: &Recording, candidate: &CrashCandidate) -> Vec<String> {
    let k = candidate.op_count as usize;
    let first_lost = candidate.lost.first().map_or(k, |unit| unit.op as usize);
    let from = recording.ops[..first_lost.min(k)]
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
        (from..k).map(|op| format!("{op:>4}  {}{}", recording.ops[op].text, mark(op))).collect();
    const MOST: usize = 40;
    if lines.len() > MOST {
        let left_out = lines.len() - MOST;
        lines.splice(MOST / 2..MOST / 2 + left_out, [format!("      .. {left_out} operations ..")]);
    }
    lines
}

impl CrashState {
    /// Which crash, where, and what it took: one line.
    pub fn describe(&self, recording: &Recording) -> String {
        let Some((crash, way)) = self.strictest_witness() else { return "nothing".into() };
        let CrashCandidate { op_count: k, lost, torn } = &way.candidate;
        let after = match k.checked_sub(1) {
            Some(at) => format!("after {}", recording.ops[at as usize].text),
            None => "before anything was written".into(),
        };
        let torn =
            torn.map(|(op, tear)| format!("of {} {}", recording.ops[op as usize].text, describe_tear(tear)));
        let lost = lost.first().map(|unit| {
            let zeroes = matches!(recording.ops[unit.op as usize].effect, OpEffect::Write { .. })
                && unit.part == BYTES_PART;
            let zeroes = if zeroes { "the bytes of " } else { "" };
            let first = format!("{zeroes}{}", recording.ops[unit.op as usize].text);
            if lost.len() == 1 {
                format!("{first} lost")
            } else {
                format!("{first} and {} more lost", lost.len() - 1)
            }
        });
        let took: Vec<String> = [lost, torn].into_iter().flatten().collect();
        let took = if took.is_empty() { String::new() } else { format!(": {}", took.join("; ")) };
        match crash {
            CrashKind::Process => format!("killed {after}{took}"),
            CrashKind::PowerLoss(_) => {
                let models: Vec<&str> = self
                    .witnesses
                    .keys()
                    .filter_map(|crash| match crash {
                        CrashKind::PowerLoss(model) => Some(model.name()),
                        CrashKind::Process => None,
                    })
                    .collect();
                format!("power loss ({}) {after}{took}", models.join(", "))
            }
        }
    }

    /// What shows that it is another state than the one before the crash.
    pub fn evidence(&self, recording: &Recording) -> String {
        let candidate = self.candidate();
        let files = candidate.tree(recording).entries.len();
        let lines = tree_difference(recording, candidate);
        let more = lines.len().saturating_sub(5);
        let more = if more > 0 { format!("; {more} more") } else { String::new() };
        let lines: Vec<String> = lines.into_iter().take(5).collect();
        format!("{files} files and folders laid out; set apart by: {}{more}", lines.join("; "))
    }

    /// The one that a kill leaves.
    pub fn after_process_crash(recording: &Recording, candidate: CrashCandidate) -> CrashState {
        let digest = candidate.tree(recording).digest();
        let promised = recording.acknowledged(candidate.op_count as usize);
        CrashState {
            witnesses: [(CrashKind::Process, Witness { candidate, acknowledged: promised })].into(),
            digest,
        }
    }
}

fn describe_tear(tear: Tear) -> String {
    match tear {
        Tear::Prefix(kept) => format!("only its first {kept} bytes"),
        Tear::ZeroTail(kept) => format!("whole in length, zeroes after {kept} bytes"),
        Tear::GarbageTail(kept) => format!("whole in length, garbage after {kept} bytes"),
        Tear::Hole(missing) => format!("the first {missing} bytes are zeroes"),
    }
}

/// What sets a tree apart from the one that there would have been without the fault.
pub(super) fn tree_difference(recording: &Recording, candidate: &CrashCandidate) -> Vec<String> {
    let there = candidate.tree(recording);
    let k = candidate.op_count as usize;
    let reference = if candidate.lost.is_empty() && candidate.torn.is_none() {
        // A process crash: what the last promise left.
        let from = SaveWindow::new(recording, candidate).start;
        CrashCandidate::whole(from).tree(recording)
    } else {
        CrashCandidate::whole(k).tree(recording)
    };
    compare_trees(&there, &reference)
}

fn compare_trees(there: &FileTree, reference: &FileTree) -> Vec<String> {
    let shown = |path: &Path| path.display().to_string();
    let mut lines = Vec::new();
    let paths: BTreeSet<_> = there.entries.keys().chain(reference.entries.keys()).collect();
    for key in paths {
        match (there.entries.get(key), reference.entries.get(key)) {
            (Some(_), None) => lines.push(format!("+ {}", shown(&key.1))),
            (None, Some(_)) => lines.push(format!("- {}", shown(&key.1))),
            (Some(TreeEntry::File { content, .. }), Some(TreeEntry::File { content: was, .. }))
                if content != was =>
            {
                lines.push(format!("~ {}: {} bytes instead of {}", shown(&key.1), content.len(), was.len()));
            }
            _ => {}
        }
    }
    lines.truncate(30);
    lines
}
