//! The findings that controls show: the target does not recover from undamaged files. Knows which crash states
//! fail in the same way, so that only worse ones are reported as findings of their own. Text for people.

use std::collections::BTreeSet;

use scenarios::{
    Cause, Confirmation, ControlFiles, CrashModel, FailingControls, FailureSubject, Finding, Outcome,
};

use super::failure_kind::{FailureKind, OutcomeStates};
use super::failure_message::{FailureMessages, control_message, kind_of_message, state_message};
use super::removed_newest::{RemovedNewest, removed_newest};
use super::report_spec::ReportSpec;
use super::save_window::SaveWindow;
use super::state_attempts::StateAttempts;
use super::state_names::StateNames;
use super::state_text::{operation_lines, operations_between};
use crate::explore::record::{Op, Recording};
use crate::explore::replay::{ResumeDifference, TriedControl, TriedState};
use crate::explore::states::{CrashCandidate, CrashKind};

/// Controls that fail in one way, and the crash states that they explain.
struct ControlGroup<'c> {
    failure: FailureKind,
    cause: Cause,
    controls: Vec<&'c TriedControl>,
    under: BTreeSet<CrashKind>,
    digests: BTreeSet<[u8; 16]>,
    outcomes: OutcomeStates,
    messages: FailureMessages,
}

impl ControlGroup<'_> {
    /// What to change, by each thing that differs first in some control.
    fn advice(&self) -> String {
        let mut all: Vec<&str> = Vec::new();
        for control in &self.controls {
            let own = advice(self.cause, control.difference);
            if !all.contains(&own) {
                all.push(own);
            }
        }
        all.join(". And: ")
    }
}

/// The groups of an exploration's controls.
pub(super) struct ControlFindings<'c> {
    recording: &'c Recording,
    all: &'c [TriedControl],
    groups: Vec<ControlGroup<'c>>,
}

impl<'c> ControlFindings<'c> {
    pub(super) fn new(recording: &'c Recording, all: &'c [TriedControl]) -> ControlFindings<'c> {
        let mut groups: Vec<ControlGroup<'c>> = Vec::new();
        for control in all.iter().filter(|control| control.fails_by_itself) {
            let Some(failure) = FailureKind::of(control.outcome) else { continue };
            let cause = cause_of_control(recording, control, failure);
            let digest = control.candidate.tree(recording).digest();
            let message = control_message(control);
            let is_same = |group: &ControlGroup<'_>| group.failure == failure && group.cause == cause;
            let index = groups.iter().position(is_same).unwrap_or_else(|| {
                groups.push(ControlGroup {
                    failure,
                    cause,
                    controls: Vec::new(),
                    under: BTreeSet::new(),
                    digests: BTreeSet::new(),
                    outcomes: OutcomeStates::default(),
                    messages: FailureMessages::default(),
                });
                groups.len() - 1
            });
            groups[index].controls.push(control);
            groups[index].digests.insert(digest);
            groups[index].outcomes.add(control.outcome, digest);
            groups[index].messages.add(message, digest);
        }
        ControlFindings { recording, all, groups }
    }

    /// Counts a failing crash state with the controls that fail in the same way. Returns whether there are some.
    pub(super) fn explain(&mut self, tried: &TriedState, crash: CrashKind, outcome: Outcome) -> bool {
        let acknowledged = tried.state.witnesses[&crash].acknowledged;
        let message = state_message(tried, crash, outcome);
        let explains = |group: &ControlGroup<'_>| {
            FailureKind::of(outcome) == Some(group.failure)
                && self.is_alike(group, tried, acknowledged, &message)
        };
        let Some(index) = self.groups.iter().position(explains) else { return false };
        let group = &mut self.groups[index];
        group.under.insert(crash);
        group.digests.insert(tried.state.digest);
        group.outcomes.add(outcome, tried.state.digest);
        group.messages.add(message, tried.state.digest);
        true
    }

    /// Whether a state that fails as this group does so for the same reason.
    fn is_alike(
        &self,
        group: &ControlGroup<'_>,
        tried: &TriedState,
        acknowledged: Option<u64>,
        message: &str,
    ) -> bool {
        let kind = kind_of_message(message);
        let has_same_message = || {
            group.controls.iter().any(|control| {
                let own = control_message(control);
                kind_of_message(&own) == kind
            })
        };
        let some_save_recovers = self.all.iter().any(|control| is_of_save(control) && !control.is_failing());
        match group.failure {
            FailureKind::Crashes => has_same_message(),
            FailureKind::Hangs => !some_save_recovers,
            FailureKind::StartsOver => {
                let is_same_save =
                    |control: &&TriedControl| is_of_save(control) && control.acknowledged == acknowledged;
                !some_save_recovers || group.controls.iter().any(is_same_save)
            }
            FailureKind::EndsOtherwise => {
                let step = tried.result.resumed_step;
                let mut same_step =
                    self.all.iter().filter(|control| step.is_some() && control.result.resumed_step == step);
                match same_step.clone().next() {
                    Some(_) => same_step.any(|control| {
                        group.controls.iter().any(|failing| failing.candidate == control.candidate)
                    }),
                    None => {
                        !some_save_recovers
                            || group.controls.iter().any(|control| is_of_save(control))
                            || has_same_message()
                    }
                }
            }
        }
    }

    /// One finding for each group.
    pub(super) fn into_findings(
        self,
        spec: &ReportSpec,
        names: &mut StateNames<'_>,
        attempts: &mut impl StateAttempts,
    ) -> Vec<Finding> {
        let tried = self.all.len() as u64;
        let findings = self.groups.into_iter().filter_map(|group| {
            let first = group.controls.first()?;
            let mut under: Vec<CrashModel> = group.under.iter().map(|crash| crash.crash_model()).collect();
            under.sort_unstable_by_key(|model| model.name());
            let name = names.name(None, &first.candidate);
            // A control that hangs was repeated at once.
            let confirmation = match first.outcome {
                Outcome::Hung => Some(Confirmation { failed: 2, tried: 2, other: None }),
                outcome => attempts.confirm(&first.candidate, outcome),
            };
            Some(Finding {
                cause: group.cause,
                outcome: first.outcome,
                outcomes: group.outcomes.counts(),
                under,
                states: group.digests.len() as u64,
                confirmation,
                between: operations_between(self.recording, &first.candidate),
                operations: operation_lines(self.recording, &first.candidate),
                difference: Vec::new(),
                error: control_message(first),
                messages: group.messages.counts(),
                controls: Some(FailingControls {
                    failing: group.controls.len() as u64,
                    tried,
                    first: first.files,
                }),
                advice: group.advice(),
                state: name.to_string(),
                repeat: spec.repeat_command_for(&name),
            })
        });
        findings.collect()
    }
}

fn is_of_save(control: &TriedControl) -> bool {
    matches!(control.files, ControlFiles::Saved { .. })
}

fn cause_of_control(recording: &Recording, control: &TriedControl, failure: FailureKind) -> Cause {
    if failure == FailureKind::EndsOtherwise {
        return Cause::ResumeDiffers;
    }
    if failure == FailureKind::StartsOver && is_newest_pruned(recording, &control.candidate) {
        Cause::NewestPruned
    } else {
        Cause::DoesNotResume
    }
}

/// Whether the newest checkpoint was deleted by the save that was acknowledged last, or since then, while older ones
/// stayed.
pub(crate) fn is_newest_pruned(recording: &Recording, candidate: &CrashCandidate) -> bool {
    let op_count = candidate.op_count as usize;
    let acknowledged = recording.ops[..op_count].iter().rposition(Op::is_acknowledgement).unwrap_or(0);
    let from = SaveWindow::at(recording, acknowledged).start;
    removed_newest(recording, from, op_count) == Some(RemovedNewest::OlderStay)
}

/// What to change, by what differs first.
fn advice(cause: Cause, difference: Option<ResumeDifference>) -> &'static str {
    let (Cause::ResumeDiffers, Some(difference)) = (cause, difference) else {
        return cause.advice(FailureSubject::File);
    };
    match difference {
        ResumeDifference::FirstStepConsumed => {
            "the first step after the resume consumed something else: save and restore the position in the data and \
             the random states (of the sampler, Python, NumPy, the framework and loader workers)"
        }
        ResumeDifference::LaterStepConsumed => {
            "the first steps after the resume consumed the same, a later one did not: save and restore what the order \
             of later samples depends on, such as the epoch number and the seed of the next shuffle"
        }
        ResumeDifference::FinalValueOnly => {
            "each step consumed the same, but the result differs: save and restore the optimizer, the scheduler, the \
             random states of layers such as dropout, all weights and the best value"
        }
        ResumeDifference::FinalValue => {
            "the result differs: give --consumed to see whether the samples differ already. If not, save and restore \
             the optimizer, the scheduler, all weights and the best value"
        }
        ResumeDifference::Check => {
            "the check command fails on undamaged files: look at what it says, and at what the resume changes"
        }
        ResumeDifference::LastStep => {
            "the resumed run ended too early: save and restore the position (epoch, step, place in the epoch) as it \
             is after the saved step, and not one epoch further"
        }
    }
}
