//! Text about crash states and operations for people. Nothing reads it back.

use std::collections::BTreeSet;
use std::path::Path;

use scenarios::{Fate, OperationLine};

use super::save_window::SaveWindow;
use crate::explore::record::{Op, OpEffect, Recording};
use crate::explore::states::{
    BYTES_PART, CrashCandidate, CrashKind, CrashState, EntryAttributes, FileTree, PersistUnit, Tear,
    TreeEntry,
};

/// At most this many operations of a finding are listed.
const MAX_OPERATION_LINES: usize = 40;
/// At most this many differences of a finding are listed.
const MAX_DIFFERENCE_LINES: usize = 30;
/// At most this many differences are part of the evidence.
const MAX_EVIDENCE_DIFFERENCES: usize = 5;

/// The crash, its crash point and what it lost, in one line.
pub fn describe_state(recording: &Recording, state: &CrashState) -> String {
    let Some((crash, witness)) = state.strictest_witness() else { return "no crash".into() };
    let CrashCandidate { op_count, lost, torn } = &witness.candidate;
    let after = match op_count.checked_sub(1) {
        Some(op) => format!("after {}", recording.ops[op as usize].text),
        None => "before the first operation".into(),
    };
    let torn =
        torn.map(|torn| format!("of {} {}", recording.ops[torn.op as usize].text, describe_tear(torn.tear)));
    let lost = lost.first().map(|unit| {
        let first = describe_lost(recording, *unit);
        match lost.len() - 1 {
            0 => format!("{first} lost"),
            more => format!("{first} and {more} more lost"),
        }
    });
    let losses: Vec<String> = [lost, torn].into_iter().flatten().collect();
    let losses = if losses.is_empty() { String::new() } else { format!(": {}", losses.join("; ")) };
    match crash {
        CrashKind::Process => format!("killed {after}{losses}"),
        CrashKind::PowerLoss(_) => {
            let models: Vec<&str> = state
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

fn describe_lost(recording: &Recording, unit: PersistUnit) -> String {
    let op = &recording.ops[unit.op as usize];
    let is_zeroed = matches!(op.effect, OpEffect::Write { .. }) && unit.part == BYTES_PART;
    let prefix = if is_zeroed { "the bytes of " } else { "" };
    format!("{prefix}{}", op.text)
}

fn describe_tear(tear: Tear) -> String {
    match tear {
        Tear::Prefix(written) => format!("only its first {written} bytes"),
        Tear::ZeroTail(written) => format!("full length, but zeroes after {written} bytes"),
        Tear::GarbageTail(written) => format!("full length, but garbage after {written} bytes"),
        Tear::Hole(missing) => format!("full length, but without its first {missing} bytes"),
        Tear::Gap { from, to } => format!("full length, but without its bytes {from} to {to}"),
    }
}

/// How the materialized files differ from those without the crash: the evidence of the fault.
pub fn describe_evidence(recording: &Recording, state: &CrashState) -> String {
    let candidate = state.candidate();
    let tree = candidate.tree(recording);
    let lines = compare_trees(recording, &tree, &reference_tree(recording, candidate));
    let more_count = lines.len().saturating_sub(MAX_EVIDENCE_DIFFERENCES);
    let more = if more_count > 0 { format!("; {more_count} more") } else { String::new() };
    let lines: Vec<String> = lines.into_iter().take(MAX_EVIDENCE_DIFFERENCES).collect();
    format!(
        "{} files and directories materialized; differences: {}{more}",
        tree.entries.len(),
        lines.join("; ")
    )
}

/// The operations that lead to a crash state, from the last acknowledgement before the first lost or torn one.
pub(super) fn operation_lines(recording: &Recording, candidate: &CrashCandidate) -> Vec<OperationLine> {
    let op_count = candidate.op_count as usize;
    let lost = candidate.lost.first().map(|unit| unit.op as usize);
    let torn = candidate.torn.map(|torn| torn.op as usize);
    let first_damaged = lost.into_iter().chain(torn).chain([op_count]).min().unwrap_or(op_count);
    let start = recording.ops[..first_damaged].iter().rposition(Op::is_acknowledgement).unwrap_or(0);
    let mut lines: Vec<OperationLine> =
        (start..op_count).map(|op| operation_line(recording, candidate, op)).collect();
    if lines.len() > MAX_OPERATION_LINES {
        let left_out = lines.len() - MAX_OPERATION_LINES;
        let text = format!("      .. {left_out} operations ..");
        let middle = MAX_OPERATION_LINES / 2;
        lines.splice(middle..middle + left_out, [OperationLine { text, fate: Fate::Omitted }]);
    }
    lines
}

fn operation_line(recording: &Recording, candidate: &CrashCandidate, op: usize) -> OperationLine {
    let text = &recording.ops[op].text;
    let torn = candidate.torn.filter(|torn| torn.op as usize == op);
    let fate = if torn.is_some() { Fate::Torn } else { fate_of(recording, candidate, op) };
    let mark = match fate {
        Fate::Happened | Fate::Omitted => String::new(),
        Fate::Lost => "  lost".into(),
        Fate::HalfLost => "  half lost".into(),
        Fate::Zeroes => "  zeroes".into(),
        Fate::Torn => torn.map_or_else(String::new, |torn| format!("  torn: {}", describe_tear(torn.tear))),
    };
    OperationLine { text: format!("{op:>4}  {text}{mark}"), fate }
}

/// What became of an operation that is not torn.
fn fate_of(recording: &Recording, candidate: &CrashCandidate, op: usize) -> Fate {
    let lost: Vec<u8> =
        candidate.lost.iter().filter(|unit| unit.op as usize == op).map(|unit| unit.part).collect();
    match (&lost[..], &recording.ops[op].effect) {
        ([], _) => Fate::Happened,
        ([part, ..], OpEffect::Write { .. }) if *part == BYTES_PART => Fate::Zeroes,
        (parts, OpEffect::NameChanges(changes)) if parts.len() < changes.len() => Fate::HalfLost,
        _ => Fate::Lost,
    }
}

/// The two operations between which the crash falls, or whose order was not kept. Without a loss: the last
/// operation before the crash point, and the first after it. With lost units: the first lost operation, and
/// the last one before the crash point. With a torn write: that write, and the operation after it.
pub(super) fn operations_between(recording: &Recording, candidate: &CrashCandidate) -> [String; 2] {
    let text = |op: Option<usize>| {
        op.and_then(|op| recording.ops.get(op)).map_or_else(|| "the end".into(), |op| op.text.clone())
    };
    let op_count = candidate.op_count as usize;
    match (candidate.lost.first(), candidate.torn) {
        (Some(unit), _) => [text(Some(unit.op as usize)), text(op_count.checked_sub(1))],
        (None, Some(torn)) => [text(Some(torn.op as usize)), text(Some(torn.op as usize + 1))],
        (None, None) => [text(op_count.checked_sub(1)), text(Some(op_count))],
    }
}

/// How the tree of a candidate differs from the tree without the crash, a line for each file.
pub(super) fn tree_difference(recording: &Recording, candidate: &CrashCandidate) -> Vec<String> {
    compare_trees(recording, &candidate.tree(recording), &reference_tree(recording, candidate))
}

/// The tree without the crash. For a process crash, that is the tree at the last acknowledgement.
fn reference_tree(recording: &Recording, candidate: &CrashCandidate) -> FileTree {
    let point = if candidate.lost_nothing() {
        SaveWindow::of(recording, candidate).start
    } else {
        candidate.op_count as usize
    };
    CrashCandidate::whole(point).tree(recording)
}

fn compare_trees(recording: &Recording, tree: &FileTree, reference: &FileTree) -> Vec<String> {
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
                let sizes = match (content.len(), expected.len()) {
                    (len_bytes, expected) if len_bytes == expected => {
                        format!("{len_bytes} bytes as before, but others")
                    }
                    (len_bytes, expected) => format!("{len_bytes} bytes instead of {expected}"),
                };
                lines.push(format!("~ {}: {sizes}", shown(&key.1)));
            }
            (Some(entry), Some(expected)) => {
                let difference = attribute_difference(recording, entry.attributes(), expected.attributes());
                lines.extend(difference.map(|difference| format!("~ {}: {difference}", shown(&key.1))));
            }
            (None, None) => {}
        }
    }
    lines.truncate(MAX_DIFFERENCE_LINES);
    lines
}

/// How the attributes of two entries differ. Times do not count: nearly every entry has another one.
fn attribute_difference(
    recording: &Recording,
    found: EntryAttributes,
    expected: EntryAttributes,
) -> Option<String> {
    let (found, expected) = (recording.attributes(found.set), recording.attributes(expected.set));
    if found.mode != expected.mode {
        return Some(format!("mode {:04o} instead of {:04o}", found.mode, expected.mode));
    }
    if (found.uid, found.gid) != (expected.uid, expected.gid) {
        let (uid, gid) = (expected.uid, expected.gid);
        return Some(format!("owner {}:{} instead of {uid}:{gid}", found.uid, found.gid));
    }
    (found.xattrs != expected.xattrs).then(|| "other extended attributes".into())
}
