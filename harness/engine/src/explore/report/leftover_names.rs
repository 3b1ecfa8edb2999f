//! Names that a save makes and removes again, such as a lock: a killed process leaves them. Pure.

use std::path::PathBuf;

use super::save_window::SaveWindow;
use crate::explore::record::{NameChange, NodeId, Op, OpEffect, Recording};
use crate::explore::states::{CrashCandidate, PersistUnit};

/// A crash state in which nothing is missing but names that the killed process has left.
pub(crate) struct WithoutLeftovers {
    pub(crate) candidate: CrashCandidate,
    /// The first of the names that are missing in it.
    pub(crate) first: PathBuf,
}

/// The same state without the names in it that each save makes and removes. `None`: there are none.
pub(crate) fn without_leftover_names(
    recording: &Recording,
    candidate: &CrashCandidate,
) -> Option<WithoutLeftovers> {
    let names = LeftoverNames { recording, candidate };
    let leftovers: Vec<usize> = (0..candidate.op_count as usize).filter(|op| names.is_left_by(*op)).collect();
    let first = names.set_by(*leftovers.first()?)?;
    let first = recording.path_of(first.dir, candidate.op_count as usize).join(&first.name);
    let units = leftovers.iter().flat_map(|op| {
        let parts = recording.ops[*op].name_changes().len();
        (0..parts).map(move |part| PersistUnit { op: *op as u32, part: part as u8 })
    });
    let mut lost: Vec<PersistUnit> = units.chain(candidate.lost.iter().copied()).collect();
    lost.sort_unstable();
    lost.dedup();
    Some(WithoutLeftovers { candidate: CrashCandidate { lost: lost.into(), ..candidate.clone() }, first })
}

struct LeftoverNames<'a> {
    recording: &'a Recording,
    candidate: &'a CrashCandidate,
}

impl LeftoverNames<'_> {
    /// The name that an operation sets.
    fn set_by(&self, op: usize) -> Option<&NameChange> {
        self.recording.ops[op].name_changes().iter().find(|change| change.node.is_some())
    }

    /// Whether the operation sets a name that is there at the crash point, and that the save itself removes. A name
    /// for a file that is older than the save, such as the checkpoint before, is no lock.
    fn is_left_by(&self, op: usize) -> bool {
        let Some(set) = self.set_by(op) else { return false };
        let is_lost = |index: usize| self.candidate.lost.iter().any(|unit| unit.op as usize == index);
        let crash = self.candidate.op_count as usize;
        let is_there =
            !is_lost(op) && !(op + 1..crash).any(|later| !is_lost(later) && self.changes(later, set));
        is_there && self.is_removed_by_its_save(op, set) && !self.is_of_older_file(op, set)
    }

    fn is_of_older_file(&self, op: usize, set: &NameChange) -> bool {
        let begin = SaveWindow::at(self.recording, op).start;
        set.node.is_some_and(|node| self.recording.name_of(node, begin).is_some())
    }

    fn changes(&self, op: usize, set: &NameChange) -> bool {
        let changes = self.recording.ops[op].name_changes().iter();
        changes.into_iter().any(|change| change.dir == set.dir && change.name == set.name)
    }

    /// Whether neither the name nor another name of its file is left when the next save is acknowledged. A lock of
    /// the whole run is made before the first save and removed after the last one.
    fn is_removed_by_its_save(&self, op: usize, set: &NameChange) -> bool {
        let ops = &self.recording.ops;
        let next = ops[op..].iter().position(Op::is_acknowledgement).map(|next| op + next);
        let is_first = !ops[..op].iter().any(Op::is_acknowledgement);
        next.is_some_and(|next| self.is_gone_at(next, op, set))
            || (is_first && self.is_gone_only_at_the_end(op, set))
    }

    fn is_gone_only_at_the_end(&self, op: usize, set: &NameChange) -> bool {
        let ops = &self.recording.ops;
        let last = ops.iter().rposition(Op::is_acknowledgement);
        last.is_some_and(|last| !self.is_gone_at(last, op, set)) && self.is_gone_at(ops.len(), op, set)
    }

    /// Whether the name, and every other name of its file, has been removed before operation `end`.
    fn is_gone_at(&self, end: usize, op: usize, set: &NameChange) -> bool {
        let mut names: Vec<(NodeId, &std::ffi::OsStr)> = Vec::new();
        for later in &self.recording.ops[op..end] {
            let OpEffect::NameChanges(changes) = &later.effect else { continue };
            for change in changes {
                let is_own = change.node.is_some() && change.node == set.node;
                names.retain(|(dir, name)| !(*dir == change.dir && *name == change.name));
                if is_own || (change.node.is_some() && change.dir == set.dir && change.name == set.name) {
                    names.push((change.dir, &change.name));
                }
            }
        }
        names.is_empty()
    }
}
