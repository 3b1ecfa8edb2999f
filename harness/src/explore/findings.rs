//! Failing states gathered by what broke: each cause once, with the shortest way to it.

use std::collections::{BTreeMap, BTreeSet};

use scenarios::Outcome;

use super::candidate::Candidate;
use super::cause::{Cause, cause_of, difference, story};
use super::expedition::Tried;
use super::model::Unit;
use super::recording::Recording;
use super::states::Crash;

/// Attempts at making one failing state smaller.
const SHRINK: usize = 60;

/// Something that the target does not come back from.
#[derive(Debug, Clone)]
pub struct Finding {
    pub cause: Cause,
    pub outcome: Outcome,
    /// `process`, or the models under which it can happen.
    pub under: Vec<&'static str>,
    /// How many distinct states show it.
    pub states: usize,
    /// The smallest of them.
    pub candidate: Candidate,
    /// What leads to it; lost operations are marked.
    pub operations: Vec<String>,
    /// Files that set the state apart.
    pub difference: Vec<String>,
    /// What the target said.
    pub words: String,
    /// The two operations between which the promise breaks.
    pub between: (String, String),
}

/// Outcomes that are no finding: a documented refusal is shown, and fine.
pub(super) fn is_good(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Recovered | Outcome::Refused)
}

/// A failing state, under one kind of crash.
struct Failing<'t> {
    tried: &'t Tried,
    crash: Crash,
    /// The moment and the loss that are to blame, and the crash that they amount to.
    candidate: Candidate,
    of: Crash,
}

/// Gathers and shrinks. `attempt` tries one more state: its outcome with what had been promised at that moment.
pub(super) fn gather(
    recording: &Recording,
    tried: &[Tried],
    mut attempt: impl FnMut(&Candidate) -> Option<Outcome>,
) -> Vec<Finding> {
    // What a kill alone can do comes first: it is the shorter story.
    let mut groups: BTreeMap<(bool, Cause, Outcome), Vec<Failing<'_>>> = BTreeMap::new();
    let killed = failing_kills(tried);
    for one in tried {
        for (crash, outcome) in one.outcomes.iter().filter(|(_, outcome)| !is_good(**outcome)) {
            let candidate = &one.state.ways[crash].candidate;
            // Where a kill at the same moment does the same, that is the reason, not what was lost beside it.
            let whole = Candidate::whole(candidate.k as usize);
            let (candidate, of) = match killed.get(&whole.tree(recording).digest()) {
                Some(known) if *crash != Crash::Process && known == outcome => (whole, Crash::Process),
                _ => (candidate.clone(), *crash),
            };
            let cause = cause_of(recording, &candidate, of);
            let key = (of != Crash::Process, cause, *outcome);
            groups.entry(key).or_default().push(Failing { tried: one, crash: *crash, candidate, of });
        }
    }
    let mut findings: Vec<(Finding, BTreeSet<[u8; 16]>)> = Vec::new();
    for ((_, _, outcome), group) in groups {
        let Some(smallest) = group.iter().min_by_key(|one| size(&one.candidate)) else {
            continue;
        };
        let candidate = shrunk(&smallest.candidate, outcome, &mut attempt);
        let cause = cause_of(recording, &candidate, smallest.of);
        let at = findings.iter().position(|(known, _)| known.cause == cause && known.outcome == outcome);
        let at = at.unwrap_or(findings.len());
        if at == findings.len() {
            let words = smallest.tried.found.words.clone();
            findings.push((told(recording, cause, outcome, candidate, words), BTreeSet::new()));
        }
        let (finding, digests) = &mut findings[at];
        finding.under.extend(group.iter().map(|one| name_of(one.crash)));
        finding.under.sort_unstable();
        finding.under.dedup();
        digests.extend(group.iter().map(|one| one.tried.state.digest));
        finding.states = digests.len();
    }
    let mut findings: Vec<Finding> = findings.into_iter().map(|(finding, _)| finding).collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.states));
    findings
}

/// States that a kill alone leads to and that are not come back from.
fn failing_kills(tried: &[Tried]) -> BTreeMap<[u8; 16], Outcome> {
    let bad = tried.iter().filter_map(|one| {
        let outcome = one.outcomes.get(&Crash::Process).filter(|outcome| !is_good(**outcome))?;
        Some((one.state.digest, *outcome))
    });
    bad.collect()
}

fn told(
    recording: &Recording,
    cause: Cause,
    outcome: Outcome,
    candidate: Candidate,
    words: String,
) -> Finding {
    Finding {
        cause,
        outcome,
        under: Vec::new(),
        states: 0,
        operations: story(recording, &candidate),
        difference: difference(recording, &candidate),
        words,
        between: between(recording, &candidate),
        candidate,
    }
}

fn name_of(crash: Crash) -> &'static str {
    match crash {
        Crash::Process => "process",
        Crash::Power(model) => model.name(),
    }
}

fn size(candidate: &Candidate) -> (usize, u32, bool) {
    (candidate.lost.len(), candidate.k, candidate.torn.is_some())
}

/// Gives back what was lost, piece by piece, for as long as it still fails in the same way.
fn shrunk(
    candidate: &Candidate,
    outcome: Outcome,
    attempt: &mut impl FnMut(&Candidate) -> Option<Outcome>,
) -> Candidate {
    let mut best = candidate.clone();
    let mut left = SHRINK;
    let mut part = best.lost.len().div_ceil(2);
    while part > 0 && left > 0 {
        let mut at = 0;
        while at < best.lost.len() && left > 0 {
            let fewer: Vec<Unit> = best
                .lost
                .iter()
                .enumerate()
                .filter(|(index, _)| *index < at || *index >= at + part)
                .map(|(_, unit)| *unit)
                .collect();
            let smaller = Candidate { lost: fewer, ..best.clone() };
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
    earlier(best, outcome, attempt)
}

/// Ends the story sooner, where that fails in the same way.
fn earlier(
    best: Candidate,
    outcome: Outcome,
    attempt: &mut impl FnMut(&Candidate) -> Option<Outcome>,
) -> Candidate {
    let last = best.lost.last().map(|unit| unit.op).max(best.torn.map(|(op, _)| op));
    let Some(last) = last else { return best };
    let tries = (last + 1..best.k).take(SHRINK);
    let sooner = tries.map(|k| Candidate { k, ..best.clone() }).find(|one| attempt(one) == Some(outcome));
    sooner.unwrap_or(best)
}

/// The last operation that is there, and the first one that is missing.
fn between(recording: &Recording, candidate: &Candidate) -> (String, String) {
    let text = |op: Option<usize>| {
        op.and_then(|op| recording.ops.get(op)).map_or_else(|| "the end".into(), |op| op.text.clone())
    };
    let k = candidate.k as usize;
    match (candidate.lost.first(), candidate.torn) {
        (Some(unit), _) => (text(Some(unit.op as usize)), text(k.checked_sub(1))),
        (None, Some((op, _))) => (text(Some(op as usize)), text(Some(op as usize + 1))),
        (None, None) => (text(k.checked_sub(1)), text(Some(k))),
    }
}
