//! Failing states gathered by what broke: each cause once, with the shortest way to it.

use std::collections::{BTreeMap, BTreeSet};

use scenarios::Outcome;

use super::cause::{Cause, cause_of, describe_operations, tree_difference};
use super::crash_candidate::CrashCandidate;
use super::enumerate::CrashKind;
use super::fs_model::PersistUnit;
use super::pipeline::TriedState;
use super::recording::Recording;

/// Attempts at making one failing state smaller.
const MAX_SHRINK_ATTEMPTS: usize = 60;

/// Something that the target does not come back from.
#[derive(Debug, Clone)]
pub struct Finding {
    pub cause: Cause,
    pub outcome: Outcome,
    /// `process`, or the models under which it can happen.
    pub under: Vec<&'static str>,
    /// How many distinct states show it.
    pub state_count: usize,
    /// The smallest of them.
    pub candidate: CrashCandidate,
    /// What leads to it; lost operations are marked.
    pub operations: Vec<String>,
    /// Files that set the state apart.
    pub difference: Vec<String>,
    /// What the target said.
    pub message: String,
    /// The two operations between which the promise breaks.
    pub between: (String, String),
}

/// Outcomes that are no finding: a documented refusal is shown, and fine.
pub(super) fn is_acceptable(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Recovered | Outcome::Refused)
}

/// A failing state, under one kind of crash.
struct FailingState<'t> {
    tried: &'t TriedState,
    crash: CrashKind,
    /// The moment and the loss that are to blame, and the crash that they amount to.
    candidate: CrashCandidate,
    blamed_crash: CrashKind,
}

/// Gathers and shrinks. `attempt` tries one more state: its outcome with what had been promised at that moment.
pub(super) fn group_findings(
    recording: &Recording,
    tried: &[TriedState],
    mut attempt: impl FnMut(&CrashCandidate) -> Option<Outcome>,
) -> Vec<Finding> {
    // What a kill alone can do comes first: it is the shorter story.
    let mut groups: BTreeMap<(bool, Cause, Outcome), Vec<FailingState<'_>>> = BTreeMap::new();
    let killed = failing_process_crashes(tried);
    for one in tried {
        for (crash, outcome) in one.outcomes.iter().filter(|(_, outcome)| !is_acceptable(**outcome)) {
            let candidate = &one.state.witnesses[crash].candidate;
            // Where a kill at the same moment does the same, that is the reason, not what was lost beside it.
            let whole = CrashCandidate::whole(candidate.op_count as usize);
            let (candidate, of) = match killed.get(&whole.tree(recording).digest()) {
                Some(known) if *crash != CrashKind::Process && known == outcome => {
                    (whole, CrashKind::Process)
                }
                _ => (candidate.clone(), *crash),
            };
            let cause = cause_of(recording, &candidate, of);
            let key = (of != CrashKind::Process, cause, *outcome);
            groups.entry(key).or_default().push(FailingState {
                tried: one,
                crash: *crash,
                candidate,
                blamed_crash: of,
            });
        }
    }
    let mut findings: Vec<(Finding, BTreeSet<[u8; 16]>)> = Vec::new();
    for ((_, _, outcome), group) in groups {
        let Some(smallest) = group.iter().min_by_key(|one| candidate_size(&one.candidate)) else {
            continue;
        };
        let candidate = shrink(&smallest.candidate, outcome, &mut attempt);
        let cause = cause_of(recording, &candidate, smallest.blamed_crash);
        let at = findings.iter().position(|(known, _)| known.cause == cause && known.outcome == outcome);
        let at = at.unwrap_or(findings.len());
        if at == findings.len() {
            let words = smallest.tried.result.message.clone();
            findings.push((new_finding(recording, cause, outcome, candidate, words), BTreeSet::new()));
        }
        let (finding, digests) = &mut findings[at];
        finding.under.extend(group.iter().map(|one| crash_name(one.crash)));
        finding.under.sort_unstable();
        finding.under.dedup();
        digests.extend(group.iter().map(|one| one.tried.state.digest));
        finding.state_count = digests.len();
    }
    let mut findings: Vec<Finding> = findings.into_iter().map(|(finding, _)| finding).collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.state_count));
    findings
}

/// States that a kill alone leads to and that are not come back from.
fn failing_process_crashes(tried: &[TriedState]) -> BTreeMap<[u8; 16], Outcome> {
    let bad = tried.iter().filter_map(|one| {
        let outcome = one.outcomes.get(&CrashKind::Process).filter(|outcome| !is_acceptable(**outcome))?;
        Some((one.state.digest, *outcome))
    });
    bad.collect()
}

fn new_finding(
    recording: &Recording,
    cause: Cause,
    outcome: Outcome,
    candidate: CrashCandidate,
    words: String,
) -> Finding {
    Finding {
        cause,
        outcome,
        under: Vec::new(),
        state_count: 0,
        operations: describe_operations(recording, &candidate),
        difference: tree_difference(recording, &candidate),
        message: words,
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

fn candidate_size(candidate: &CrashCandidate) -> (usize, u32, bool) {
    (candidate.lost.len(), candidate.op_count, candidate.torn.is_some())
}

/// Gives back what was lost, piece by piece, for as long as it still fails in the same way.
fn shrink(
    candidate: &CrashCandidate,
    outcome: Outcome,
    attempt: &mut impl FnMut(&CrashCandidate) -> Option<Outcome>,
) -> CrashCandidate {
    let mut best = candidate.clone();
    let mut left = MAX_SHRINK_ATTEMPTS;
    let mut part = best.lost.len().div_ceil(2);
    while part > 0 && left > 0 {
        let mut at = 0;
        while at < best.lost.len() && left > 0 {
            let fewer: Vec<PersistUnit> = best
                .lost
                .iter()
                .enumerate()
                .filter(|(index, _)| *index < at || *index >= at + part)
                .map(|(_, unit)| *unit)
                .collect();
            let smaller = CrashCandidate { lost: fewer, ..best.clone() };
            left -= 1;
            // Nothing lost is no power loss any more.
            let vacuous = smaller.lost.is_empty() && smaller.torn.is_none();
            if !vacuous && attempt(&smaller) == Some(outcome) {
                best = smaller;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    shorten(best, outcome, attempt)
}

/// Ends the story sooner, where that fails in the same way.
fn shorten(
    best: CrashCandidate,
    outcome: Outcome,
    attempt: &mut impl FnMut(&CrashCandidate) -> Option<Outcome>,
) -> CrashCandidate {
    let last = best.lost.last().map(|unit| unit.op).max(best.torn.map(|(op, _)| op));
    let Some(last) = last else { return best };
    let tries = (last + 1..best.op_count).take(MAX_SHRINK_ATTEMPTS);
    let sooner = tries
        .map(|k| CrashCandidate { op_count: k, ..best.clone() })
        .find(|one| attempt(one) == Some(outcome));
    sooner.unwrap_or(best)
}

/// The last operation that is there, and the first one that is missing.
fn operations_between(recording: &Recording, candidate: &CrashCandidate) -> (String, String) {
    let text = |op: Option<usize>| {
        op.and_then(|op| recording.ops.get(op)).map_or_else(|| "the end".into(), |op| op.text.clone())
    };
    let k = candidate.op_count as usize;
    match (candidate.lost.first(), candidate.torn) {
        (Some(unit), _) => (text(Some(unit.op as usize)), text(k.checked_sub(1))),
        (None, Some((op, _))) => (text(Some(op as usize)), text(Some(op as usize + 1))),
        (None, None) => (text(k.checked_sub(1)), text(Some(k))),
    }
}
