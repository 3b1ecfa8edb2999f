//! Finds a smaller crash state that fails in the same way, among those that the same file-system model allows and
//! that were tried. Tries nothing.

use scenarios::Outcome;

use super::failing_state::FailingState;
use crate::explore::states::{CrashCandidate, CrashKind, FsModel, PersistUnit};

/// Orders candidates: fewer lost units first, then an earlier crash point, then no torn write.
pub(super) fn candidate_size(candidate: &CrashCandidate) -> (usize, u32, bool) {
    (candidate.lost.len(), candidate.op_count, candidate.torn.is_some())
}

/// Orders crashes by what shows more: what an ordinary file system may leave, then what only POSIX allows, then what
/// only a defective disk leaves.
pub(super) fn realism(crash: CrashKind) -> u8 {
    match crash {
        CrashKind::Process | CrashKind::PowerLoss(FsModel::Ext4 | FsModel::Xfs | FsModel::Btrfs) => 0,
        CrashKind::PowerLoss(FsModel::Posix) => 1,
        CrashKind::PowerLoss(FsModel::Lying) => 2,
    }
}

/// The smallest of `failing` that loses a part of what this state loses, and nothing else, under the same model.
/// Each is a state of the enumeration: what is left of a larger loss need not be one that the model allows.
pub(super) fn shrink<'s, 't>(
    state: &'s FailingState<'t>,
    outcome: Outcome,
    failing: impl Iterator<Item = (Outcome, &'s FailingState<'t>)>,
) -> &'s FailingState<'t> {
    let whole = &state.blamed.candidate;
    if whole.lost_nothing() {
        return state;
    }
    let is_part = |other: &FailingState<'_>| {
        let part = &other.blamed.candidate;
        other.blamed.crash == state.blamed.crash
            && part.torn == whole.torn
            && part.op_count <= whole.op_count
            && !part.lost_nothing()
            && is_subset(&part.lost, &whole.lost)
    };
    let parts = failing.filter(|(other, part)| *other == outcome && is_part(part)).map(|(_, part)| part);
    parts.chain([state]).min_by_key(|part| candidate_size(&part.blamed.candidate)).unwrap_or(state)
}

/// Whether all of `part` are in `whole`. Both are sorted.
fn is_subset(part: &[PersistUnit], whole: &[PersistUnit]) -> bool {
    let mut rest = whole.iter();
    part.len() <= whole.len() && part.iter().all(|unit| rest.any(|other| other == unit))
}
