//! Groups failing crash states by cause and shrinks one of each group. Does not know how states are tried.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use scenarios::{Cause, CrashModel, Finding, Outcome};

use super::cause::cause_of;
use super::shrink::{candidate_size, shrink};
use super::state_attempts::StateAttempts;
use super::state_text::{operation_lines, operations_between, tree_difference};
use crate::explore::record::Recording;
use crate::explore::replay::{TriedState, is_acceptable};
use crate::explore::states::{CrashCandidate, CrashKind};

/// How findings are reported.
#[derive(Debug, Clone, Default)]
pub struct ReportSpec {
    /// The command that tries one state, with the word `STATE` in place of the state's name.
    pub repeat_command: String,
}

impl ReportSpec {
    fn repeat_command_for(&self, candidate: &CrashCandidate) -> String {
        self.repeat_command.replacen("--state STATE", &format!("--state '{}'", candidate.name()), 1)
    }
}

/// The failing states with one explanation. In the order in which they are reported: process crashes first,
/// because they are the shorter explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FailureGroup {
    is_power_loss: bool,
    cause: Cause,
    outcome: Outcome,
}

/// A failing state, under one kind of crash.
struct FailingState<'t> {
    tried: &'t TriedState,
    crash: CrashKind,
    /// What explains the failure.
    blamed: Blamed,
}

/// The crash that explains a failure: a plain process crash if that fails in the same way.
struct Blamed {
    candidate: CrashCandidate,
    crash: CrashKind,
}

/// A finding that is being put together, with the digests of its states.
struct OpenFinding {
    finding: Finding,
    digests: BTreeSet<[u8; 16]>,
}

impl OpenFinding {
    fn add(&mut self, failing: &[FailingState<'_>]) {
        let under: &mut Vec<CrashModel> = &mut self.finding.under;
        under.extend(failing.iter().map(|failing| failing.crash.crash_model()));
        under.sort_unstable_by_key(|model| model.name());
        under.dedup();
        self.digests.extend(failing.iter().map(|failing| failing.tried.state.digest));
        self.finding.states = self.digests.len() as u64;
    }
}

/// Groups the failing states and shrinks one of each group. One state of each finding that hangs is repeated.
pub(crate) fn group_findings(
    spec: &ReportSpec,
    recording: &Recording,
    tried: &[TriedState],
    attempts: &mut impl StateAttempts,
) -> Vec<Finding> {
    let mut findings: Vec<OpenFinding> = Vec::new();
    for (FailureGroup { outcome, .. }, failing) in group_by_cause(recording, tried) {
        let smallest = failing.iter().min_by_key(|failing| candidate_size(&failing.blamed.candidate));
        let Some(smallest) = smallest else { continue };
        let candidate = shrink(&smallest.blamed.candidate, outcome, attempts);
        let cause = cause_of(recording, &candidate, smallest.blamed.crash);
        let is_same = |open: &OpenFinding| open.finding.cause == cause && open.finding.outcome == outcome;
        let index = findings.iter().position(is_same).unwrap_or_else(|| {
            let finding = Finding {
                cause,
                outcome,
                under: Vec::new(),
                states: 0,
                repeated: if outcome == Outcome::Hung { attempts.repeat_hung(&candidate) } else { None },
                between: operations_between(recording, &candidate),
                operations: operation_lines(recording, &candidate),
                difference: tree_difference(recording, &candidate),
                error: smallest.tried.result.message.clone(),
                advice: cause.advice().into(),
                state: candidate.name(),
                repeat: spec.repeat_command_for(&candidate),
            };
            findings.push(OpenFinding { finding, digests: BTreeSet::new() });
            findings.len() - 1
        });
        findings[index].add(&failing);
    }
    let mut findings: Vec<Finding> = findings.into_iter().map(|open| open.finding).collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.states));
    findings
}

fn group_by_cause<'t>(
    recording: &Recording,
    tried: &'t [TriedState],
) -> BTreeMap<FailureGroup, Vec<FailingState<'t>>> {
    let mut groups: BTreeMap<FailureGroup, Vec<FailingState<'_>>> = BTreeMap::new();
    let mut process_crashes = ProcessCrashes::new(recording, tried);
    for tried_state in tried {
        for (crash, outcome) in tried_state.outcomes.iter().filter(|(_, outcome)| !is_acceptable(**outcome)) {
            let candidate = &tried_state.state.witnesses[crash].candidate;
            let blamed = process_crashes.blame(candidate, *crash, *outcome);
            let cause = cause_of(recording, &blamed.candidate, blamed.crash);
            let is_power_loss = blamed.crash != CrashKind::Process;
            let group = FailureGroup { is_power_loss, cause, outcome: *outcome };
            groups.entry(group).or_default().push(FailingState { tried: tried_state, crash: *crash, blamed });
        }
    }
    groups
}

/// The failing states that a process crash alone leaves.
struct ProcessCrashes<'a> {
    recording: &'a Recording,
    /// By the digest of the tree.
    outcomes: HashMap<[u8; 16], Outcome>,
    /// The digests of the trees without a loss, by crash point, as far as they were needed.
    digests: HashMap<u32, [u8; 16]>,
}

impl<'a> ProcessCrashes<'a> {
    fn new(recording: &'a Recording, tried: &[TriedState]) -> ProcessCrashes<'a> {
        let failing = tried.iter().filter_map(|tried_state| {
            let outcome = tried_state.outcomes.get(&CrashKind::Process)?;
            (!is_acceptable(*outcome)).then_some((tried_state.state.digest, *outcome))
        });
        ProcessCrashes { recording, outcomes: failing.collect(), digests: HashMap::new() }
    }

    /// If a process crash at the same point fails in the same way, the lost operations are not the reason.
    fn blame(&mut self, candidate: &CrashCandidate, crash: CrashKind, outcome: Outcome) -> Blamed {
        if crash != CrashKind::Process {
            let whole = CrashCandidate::whole(candidate.op_count as usize);
            let digest =
                self.digests.entry(candidate.op_count).or_insert_with(|| whole.tree(self.recording).digest());
            if self.outcomes.get(digest) == Some(&outcome) {
                return Blamed { candidate: whole, crash: CrashKind::Process };
            }
        }
        Blamed { candidate: candidate.clone(), crash }
    }
}
