//! Finds a smaller crash state that fails in the same way, among those that the same file-system model allows: first
//! those that were tried, then those that a bound has left out.

use scenarios::Outcome;

use super::failing_state::FailingState;
use super::state_attempts::StateAttempts;
use crate::explore::record::Recording;
use crate::explore::states::{CrashCandidate, CrashKind, FsModel, PersistUnit, candidates_at};

/// How many smaller states are tried that a bound has left out.
const MAX_SHRINK_ATTEMPTS: usize = 40;

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

/// The smallest state of the same crash at the same crash point that loses a part of what this one loses, and fails in
/// the same way. Tries those that a bound has left out, the smallest first.
pub(super) fn shrink_untried(
    recording: &Recording,
    state: &FailingState<'_>,
    outcome: Outcome,
    attempts: &mut impl StateAttempts,
) -> CrashCandidate {
    let whole = &state.blamed.candidate;
    if whole.lost.len() < 2 {
        return whole.clone();
    }
    let all = candidates_at(recording, state.blamed.crash, whole.op_count as usize, attempts.cancelled());
    let is_part = |part: &CrashCandidate| {
        part.torn == whole.torn && !part.lost_nothing() && is_subset(&part.lost, &whole.lost)
    };
    let mut parts: Vec<CrashCandidate> = all.into_iter().filter(|part| is_part(part)).collect();
    parts.retain(|part| candidate_size(part) < candidate_size(whole));
    parts.sort_by_key(candidate_size);
    let mut parts = parts.into_iter().take(MAX_SHRINK_ATTEMPTS);
    parts.find(|part| attempts.outcome_of(part, outcome) == Some(outcome)).unwrap_or_else(|| whole.clone())
}

/// Whether all of `part` are in `whole`. Both are sorted.
fn is_subset(part: &[PersistUnit], whole: &[PersistUnit]) -> bool {
    let mut rest = whole.iter();
    part.len() <= whole.len() && part.iter().all(|unit| rest.any(|other| other == unit))
}
