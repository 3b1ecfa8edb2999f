//! Makes a failing candidate smaller. Does not know how candidates are tried.

use scenarios::Outcome;

use super::state_attempts::StateAttempts;
use crate::explore::states::{CrashCandidate, PersistUnit};

/// How many times a failing state is tried again to make it smaller.
const MAX_SHRINK_ATTEMPTS: usize = 60;

/// Orders candidates: fewer lost units first, then an earlier crash point, then no torn write.
pub(super) fn candidate_size(candidate: &CrashCandidate) -> (usize, u32, bool) {
    (candidate.lost.len(), candidate.op_count, candidate.torn.is_some())
}

/// Restores lost units, part by part, as long as the recovery still fails in the same way.
pub(super) fn shrink(
    candidate: &CrashCandidate,
    outcome: Outcome,
    attempts: &mut impl StateAttempts,
) -> CrashCandidate {
    let mut best = candidate.clone();
    let mut attempts_left = MAX_SHRINK_ATTEMPTS;
    let mut part = best.lost.len().div_ceil(2);
    while part > 0 && attempts_left > 0 {
        let mut start = 0;
        while start < best.lost.len() && attempts_left > 0 {
            let fewer: Vec<PersistUnit> = best
                .lost
                .iter()
                .enumerate()
                .filter(|(index, _)| *index < start || *index >= start + part)
                .map(|(_, unit)| *unit)
                .collect();
            let smaller = CrashCandidate { lost: fewer.into(), ..best.clone() };
            attempts_left -= 1;
            // A power loss that loses nothing is not a power loss.
            if !smaller.lost_nothing() && attempts.outcome_of(&smaller, outcome) == Some(outcome) {
                best = smaller;
            } else {
                start += part;
            }
        }
        part /= 2;
    }
    shorten(best, outcome, attempts)
}

/// Moves the crash point earlier, if the recovery then fails in the same way.
fn shorten(best: CrashCandidate, outcome: Outcome, attempts: &mut impl StateAttempts) -> CrashCandidate {
    let last = best.lost.last().map(|unit| unit.op).max(best.torn.map(|torn| torn.op));
    let Some(last) = last else { return best };
    let op_counts = (last + 1..best.op_count).take(MAX_SHRINK_ATTEMPTS);
    let earlier = op_counts
        .map(|op_count| CrashCandidate { op_count, ..best.clone() })
        .find(|candidate| attempts.outcome_of(candidate, outcome) == Some(outcome));
    earlier.unwrap_or(best)
}
