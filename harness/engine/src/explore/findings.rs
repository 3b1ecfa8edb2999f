//! Groups failing crash states by cause and shrinks one of each group. Does not know how states are tried.

use std::collections::{BTreeMap, BTreeSet};

use scenarios::Outcome;

use super::cause::{Cause, cause_of, describe_operations, tree_difference};
use super::crash_candidate::CrashCandidate;
use super::enumerate::CrashKind;
use super::fs_model::PersistUnit;
use super::pipeline::TriedState;
use super::recording::Recording;

/// How many times a failing state is tried again to make it smaller.
const MAX_SHRINK_ATTEMPTS: usize = 60;

/// Crash states with one cause from which the target does not recover.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Why the states fail.
    pub cause: Cause,
    /// What the target did.
    pub outcome: Outcome,
    /// Where the states can occur: `process`, and the names of models. Sorted.
    pub under: Vec<&'static str>,
    /// How many distinct states have this cause and outcome.
    pub state_count: usize,
    /// The smallest candidate that shows it.
    pub candidate: CrashCandidate,
    /// The operations that lead to that candidate; lost and torn ones are marked.
    pub operations: Vec<String>,
    /// How its files differ from those without the crash.
    pub difference: Vec<String>,
    /// The line of the recovery that explains the failure.
    pub message: String,
    /// The two operations between which the crash falls, or whose order was not kept.
    pub between: (String, String),
}

/// Whether an outcome is no finding. A documented refusal is acceptable.
pub(super) fn is_acceptable(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Recovered | Outcome::Refused)
}

/// A failing state, under one kind of crash.
struct FailingState<'t> {
    tried: &'t TriedState,
    crash: CrashKind,
    /// The candidate that explains the failure: a plain process crash if that fails in the same way.
    candidate: CrashCandidate,
    /// The kind of crash of that candidate.
    blamed_crash: CrashKind,
}

/// Groups the failing states and shrinks one of each group. `attempt` tries one more candidate and returns
/// its outcome.
pub(super) fn group_findings(
    recording: &Recording,
    tried: &[TriedState],
    mut attempt: impl FnMut(&CrashCandidate) -> Option<Outcome>,
) -> Vec<Finding> {
    // The key puts process crashes first: they are the shorter explanation.
    let mut groups: BTreeMap<(bool, Cause, Outcome), Vec<FailingState<'_>>> = BTreeMap::new();
    let process_outcomes = failing_process_crashes(tried);
    for tried_state in tried {
        for (crash, outcome) in tried_state.outcomes.iter().filter(|(_, outcome)| !is_acceptable(**outcome)) {
            let candidate = &tried_state.state.witnesses[crash].candidate;
            // If a process crash at the same point fails in the same way, the lost operations are not the
            // reason.
            let process_crash = CrashCandidate::whole(candidate.op_count as usize);
            let (candidate, blamed_crash) =
                match process_outcomes.get(&process_crash.tree(recording).digest()) {
                    Some(known) if *crash != CrashKind::Process && known == outcome => {
                        (process_crash, CrashKind::Process)
                    }
                    _ => (candidate.clone(), *crash),
                };
            let cause = cause_of(recording, &candidate, blamed_crash);
            let key = (blamed_crash != CrashKind::Process, cause, *outcome);
            groups.entry(key).or_default().push(FailingState {
                tried: tried_state,
                crash: *crash,
                candidate,
                blamed_crash,
            });
        }
    }
    let mut findings: Vec<(Finding, BTreeSet<[u8; 16]>)> = Vec::new();
    for ((_, _, outcome), group) in groups {
        let Some(smallest) = group.iter().min_by_key(|failing| candidate_size(&failing.candidate)) else {
            continue;
        };
        let candidate = shrink(&smallest.candidate, outcome, &mut attempt);
        let cause = cause_of(recording, &candidate, smallest.blamed_crash);
        let index = findings.iter().position(|(known, _)| known.cause == cause && known.outcome == outcome);
        let index = index.unwrap_or(findings.len());
        if index == findings.len() {
            let message = smallest.tried.result.message.clone();
            findings.push((new_finding(recording, cause, outcome, candidate, message), BTreeSet::new()));
        }
        let (finding, digests) = &mut findings[index];
        finding.under.extend(group.iter().map(|failing| crash_name(failing.crash)));
        finding.under.sort_unstable();
        finding.under.dedup();
        digests.extend(group.iter().map(|failing| failing.tried.state.digest));
        finding.state_count = digests.len();
    }
    let mut findings: Vec<Finding> = findings.into_iter().map(|(finding, _)| finding).collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.state_count));
    findings
}

/// The failing states that a process crash alone leaves, with their outcomes, by digest.
fn failing_process_crashes(tried: &[TriedState]) -> BTreeMap<[u8; 16], Outcome> {
    let failing = tried.iter().filter_map(|tried_state| {
        let outcome =
            tried_state.outcomes.get(&CrashKind::Process).filter(|outcome| !is_acceptable(**outcome))?;
        Some((tried_state.state.digest, *outcome))
    });
    failing.collect()
}

fn new_finding(
    recording: &Recording,
    cause: Cause,
    outcome: Outcome,
    candidate: CrashCandidate,
    message: String,
) -> Finding {
    Finding {
        cause,
        outcome,
        under: Vec::new(),
        state_count: 0,
        operations: describe_operations(recording, &candidate),
        difference: tree_difference(recording, &candidate),
        message,
        between: operations_between(recording, &candidate),
        candidate,
    }
}

fn crash_name(crash: CrashKind) -> &'static str {
    match crash {
        CrashKind::Process => "process",
        CrashKind::PowerLoss(model) => model.name(),
    }
}

/// Orders candidates: fewer lost units first, then an earlier crash point, then no torn write.
fn candidate_size(candidate: &CrashCandidate) -> (usize, u32, bool) {
    (candidate.lost.len(), candidate.op_count, candidate.torn.is_some())
}

/// Restores lost units, part by part, as long as the recovery still fails in the same way.
fn shrink(
    candidate: &CrashCandidate,
    outcome: Outcome,
    attempt: &mut impl FnMut(&CrashCandidate) -> Option<Outcome>,
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
            let smaller = CrashCandidate { lost: fewer, ..best.clone() };
            attempts_left -= 1;
            // A power loss that loses nothing is not a power loss.
            let loses_nothing = smaller.lost.is_empty() && smaller.torn.is_none();
            if !loses_nothing && attempt(&smaller) == Some(outcome) {
                best = smaller;
            } else {
                start += part;
            }
        }
        part /= 2;
    }
    shorten(best, outcome, attempt)
}

/// Moves the crash point earlier, if the recovery then fails in the same way.
fn shorten(
    best: CrashCandidate,
    outcome: Outcome,
    attempt: &mut impl FnMut(&CrashCandidate) -> Option<Outcome>,
) -> CrashCandidate {
    let last = best.lost.last().map(|unit| unit.op).max(best.torn.map(|(op, _)| op));
    let Some(last) = last else { return best };
    let op_counts = (last + 1..best.op_count).take(MAX_SHRINK_ATTEMPTS);
    let earlier = op_counts
        .map(|op_count| CrashCandidate { op_count, ..best.clone() })
        .find(|candidate| attempt(candidate) == Some(outcome));
    earlier.unwrap_or(best)
}

/// Without a loss: the last operation before the crash point, and the first after it. With lost units: the
/// first lost operation, and the last one before the crash point. With a torn write: that write, and the
/// operation after it.
fn operations_between(recording: &Recording, candidate: &CrashCandidate) -> (String, String) {
    let text = |op: Option<usize>| {
        op.and_then(|op| recording.ops.get(op)).map_or_else(|| "the end".into(), |op| op.text.clone())
    };
    let op_count = candidate.op_count as usize;
    match (candidate.lost.first(), candidate.torn) {
        (Some(unit), _) => (text(Some(unit.op as usize)), text(op_count.checked_sub(1))),
        (None, Some((op, _))) => (text(Some(op as usize)), text(Some(op as usize + 1))),
        (None, None) => (text(op_count.checked_sub(1)), text(Some(op_count))),
    }
}
