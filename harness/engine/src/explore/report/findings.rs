//! Groups failing crash states by cause and shrinks one of each group. Does not know how states are tried.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use scenarios::{Cause, CrashModel, FailureSubject, Finding, Outcome};

use super::blame::{Blamed, WholeStates};
use super::cause::{Pattern, pattern_of};
use super::control_findings::ControlFindings;
use super::failing_state::FailingState;
use super::failure_kind::{FailureKind, OutcomeStates};
use super::failure_message::{FailureMessages, state_message};
use super::leftover_names::without_leftover_names;
use super::report_spec::ReportSpec;
use super::save_window::SaveWindow;
use super::shrink::{candidate_size, realism, shrink, shrink_untried};
use super::state_attempts::{KnownFailure, StateAttempts};
use super::state_names::StateNames;
use super::state_text::{operation_lines, operations_between, tree_difference};
use crate::explore::record::Recording;
use crate::explore::replay::{TriedControl, TriedState, is_acceptable};
use crate::explore::states::{CrashCandidate, CrashKind, crash_points};

/// At most this many earlier crash points are looked at.
const MAX_EARLIER_POINTS: usize = 60;

/// What the findings of an exploration are made from.
#[derive(Clone, Copy)]
pub(crate) struct FindingsSource<'a> {
    pub(crate) spec: &'a ReportSpec,
    pub(crate) recording: &'a Recording,
    /// Recoveries from undamaged files.
    pub(crate) controls: &'a [TriedControl],
    /// Recoveries from crash states.
    pub(crate) tried: &'a [TriedState],
    /// Whether process crashes were tried. If not, states that lose nothing are shown under a power loss.
    pub(crate) has_process_crashes: bool,
}

/// The failing states with one explanation. In the order in which they are reported: process crashes first,
/// because they are the shorter explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FailureGroup {
    is_power_loss: bool,
    /// Whether there are names that a killed process has left.
    has_leftovers: bool,
    cause: Cause,
    subject: FailureSubject,
    outcome: Outcome,
}

/// A cause, with what to do about it.
struct Explanation {
    cause: Cause,
    advice: String,
}

impl Explanation {
    fn of(pattern: Pattern) -> Explanation {
        Explanation { cause: pattern.cause, advice: pattern.cause.advice(pattern.subject).into() }
    }
}

/// A finding that is being put together, with the digests of its states.
struct OpenFinding {
    finding: Finding,
    kind: Option<FailureKind>,
    digests: BTreeSet<[u8; 16]>,
    outcomes: OutcomeStates,
    messages: FailureMessages,
}

impl OpenFinding {
    fn new(finding: Finding) -> OpenFinding {
        let (outcomes, messages) = (OutcomeStates::default(), FailureMessages::default());
        let kind = FailureKind::of(finding.outcome);
        OpenFinding { finding, kind, digests: BTreeSet::new(), outcomes, messages }
    }

    fn add(&mut self, outcome: Outcome, failing: &[FailingState<'_>]) {
        let under: &mut Vec<CrashModel> = &mut self.finding.under;
        under.extend(failing.iter().map(|failing| failing.crash.crash_model()));
        under.sort_unstable_by_key(|model| model.name());
        under.dedup();
        for failing in failing {
            let digest = failing.tried.state.digest;
            self.digests.insert(digest);
            self.outcomes.add(outcome, digest);
            self.messages.add(failing.message.clone(), digest);
        }
        self.finding.states = self.digests.len() as u64;
    }

    fn into_finding(self) -> Finding {
        Finding { outcomes: self.outcomes.counts(), messages: self.messages.counts(), ..self.finding }
    }
}

/// Groups the failing states, and shows the smallest of each group. States that fail as controls do belong to the
/// findings of these. The state that is shown of each finding is repeated.
pub(crate) fn group_findings(source: FindingsSource<'_>, attempts: &mut impl StateAttempts) -> Vec<Finding> {
    let FindingsSource { spec, recording, .. } = source;
    let mut control_findings = ControlFindings::new(recording, source.controls);
    let mut names = StateNames::new(recording);
    let mut findings: Vec<OpenFinding> = Vec::new();
    let groups = group_by_cause(source, &mut control_findings);
    for (FailureGroup { outcome, .. }, failing) in &groups {
        let outcome = *outcome;
        let shown_first = |failing: &&FailingState<'_>| {
            (realism(failing.blamed.crash), candidate_size(&failing.blamed.candidate))
        };
        let Some(smallest) = failing.iter().min_by_key(shown_first) else { continue };
        let all = groups.iter().flat_map(|(group, failing)| failing.iter().map(|one| (group.outcome, one)));
        let shown = shrink(smallest, outcome, all);
        let candidate = match shown.blamed.candidate.lost_nothing() {
            true => begin_of_failure(recording, shown, outcome, attempts),
            // With `--state`, it is this state that is asked for.
            false if source.tried.len() == 1 => shown.blamed.candidate.clone(),
            false => shrink_untried(recording, shown, outcome, attempts),
        };
        let explanation = explain(recording, &candidate, shown, outcome, attempts);
        let is_same = |open: &OpenFinding| {
            open.finding.cause == explanation.cause && open.kind == FailureKind::of(outcome)
        };
        let index = findings.iter().position(is_same).unwrap_or_else(|| {
            let known = attempts.failure_of(&candidate);
            let known = known.filter(|known| FailureKind::of(known.outcome) == FailureKind::of(outcome));
            let known = known.unwrap_or_else(|| KnownFailure { outcome, message: shown.message.clone() });
            let name = names.name(Some(shown.shown_crash(source.has_process_crashes)), &candidate);
            let finding = Finding {
                cause: explanation.cause,
                outcome: known.outcome,
                outcomes: Vec::new(),
                under: Vec::new(),
                states: 0,
                confirmation: attempts.confirm(&candidate, known.outcome),
                between: operations_between(recording, &candidate),
                operations: operation_lines(recording, &candidate),
                difference: tree_difference(recording, &candidate),
                error: known.message,
                messages: Vec::new(),
                controls: None,
                advice: explanation.advice,
                state: name.to_string(),
                repeat: spec.repeat_command_for(&name),
            };
            findings.push(OpenFinding::new(finding));
            findings.len() - 1
        });
        findings[index].add(outcome, failing);
    }
    let mut findings: Vec<Finding> = findings.into_iter().map(OpenFinding::into_finding).collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.states));
    // What fails without any crash comes first.
    control_findings.into_findings(spec, &mut names, attempts).into_iter().chain(findings).collect()
}

/// The first crash point of the same save from which on nothing is lost, and all fail in this way and with this
/// pattern. Equal trees are tried once, and not always at the first crash point that leaves them.
fn begin_of_failure(
    recording: &Recording,
    shown: &FailingState<'_>,
    outcome: Outcome,
    attempts: &mut impl StateAttempts,
) -> CrashCandidate {
    let Blamed { candidate, crash, .. } = &shown.blamed;
    let pattern = pattern_of(recording, candidate, *crash, outcome);
    let start = SaveWindow::of(recording, candidate).start;
    let is_alike = |earlier: &CrashCandidate| {
        attempts.known_outcome(earlier) == Some(outcome)
            && pattern_of(recording, earlier, *crash, outcome) == pattern
    };
    let is_of_save = |point: &usize| *point > start && *point < candidate.op_count as usize;
    let earlier = crash_points(recording).into_iter().rev().filter(is_of_save).take(MAX_EARLIER_POINTS);
    let earlier = earlier.map(CrashCandidate::whole).take_while(is_alike).last();
    earlier.unwrap_or_else(|| candidate.clone())
}

/// Finds out by further attempts what explains a failing state best: a name that the killed process has left, a
/// promise that came too early, or the pattern of the save.
fn explain(
    recording: &Recording,
    candidate: &CrashCandidate,
    failing: &FailingState<'_>,
    outcome: Outcome,
    attempts: &mut impl StateAttempts,
) -> Explanation {
    if can_be_of_lock(outcome)
        && let Some(leftover) = without_leftover_names(recording, candidate)
        && attempts.recovers(&leftover.candidate) == Some(true)
    {
        let (cause, name) = (Cause::StaleLock, leftover.first.display());
        let advice = cause.advice(FailureSubject::File);
        return Explanation {
            cause,
            advice: format!("without `{name}`, which the killed process has left, it recovers: {advice}"),
        };
    }
    if failing.blamed.fails_when_acknowledged {
        let cause = Cause::AcknowledgedTooEarly;
        return Explanation { cause, advice: cause.advice(FailureSubject::File).into() };
    }
    Explanation::of(pattern_of(recording, candidate, failing.blamed.crash, outcome))
}

/// Whether a trainer that finds a lock can end in this way: it gives up, or waits.
fn can_be_of_lock(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Crashed | Outcome::Hung)
}

/// The groups in the order in which they are reported. Of those that may become one finding, the largest comes first:
/// one of its states is shown.
fn group_by_cause<'t>(
    source: FindingsSource<'t>,
    control_findings: &mut ControlFindings<'_>,
) -> Vec<(FailureGroup, Vec<FailingState<'t>>)> {
    let FindingsSource { recording, tried, .. } = source;
    let mut groups: BTreeMap<FailureGroup, Vec<FailingState<'_>>> = BTreeMap::new();
    let mut whole_states = WholeStates::new(recording, tried);
    let mut patterns: HashMap<BlamedCrash, StatePattern> = HashMap::new();
    for tried_state in tried {
        for (crash, outcome) in tried_state.outcomes.iter().filter(|(_, outcome)| !is_acceptable(**outcome)) {
            if control_findings.explain(tried_state, *crash, *outcome) {
                continue;
            }
            let witness = &tried_state.state.witnesses[crash];
            let blamed = whole_states.blame(&witness.candidate, *crash, *outcome);
            let key =
                BlamedCrash { candidate: blamed.candidate.clone(), crash: blamed.crash, outcome: *outcome };
            let found =
                *patterns.entry(key).or_insert_with(|| StatePattern::of(recording, &blamed, *outcome));
            let group = FailureGroup {
                is_power_loss: blamed.crash != CrashKind::Process,
                has_leftovers: found.has_leftovers,
                cause: found.pattern.cause,
                subject: found.pattern.subject,
                outcome: *outcome,
            };
            let message = state_message(tried_state, *crash, *outcome);
            let failing = FailingState { tried: tried_state, crash: *crash, blamed, message };
            groups.entry(group).or_default().push(failing);
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(group, failing)| {
        let cause = (group.is_power_loss, group.has_leftovers, group.cause, group.subject);
        (cause, FailureKind::of(group.outcome), std::cmp::Reverse(failing.len()))
    });
    groups
}

/// A crash that is blamed for a failure. Many states have the same one.
#[derive(PartialEq, Eq, Hash)]
struct BlamedCrash {
    candidate: CrashCandidate,
    crash: CrashKind,
    outcome: Outcome,
}

/// What can be told from the recording alone.
#[derive(Clone, Copy)]
struct StatePattern {
    pattern: Pattern,
    has_leftovers: bool,
}

impl StatePattern {
    fn of(recording: &Recording, blamed: &Blamed, outcome: Outcome) -> StatePattern {
        let pattern = match blamed.fails_when_acknowledged {
            true => Pattern { cause: Cause::AcknowledgedTooEarly, subject: FailureSubject::File },
            false => pattern_of(recording, &blamed.candidate, blamed.crash, outcome),
        };
        let has_leftovers =
            can_be_of_lock(outcome) && without_leftover_names(recording, &blamed.candidate).is_some();
        StatePattern { pattern, has_leftovers }
    }
}
