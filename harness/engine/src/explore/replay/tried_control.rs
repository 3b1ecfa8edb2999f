//! A recovery from undamaged files, and in what it differs from the baseline run. Knows no causes.

use scenarios::{ControlFiles, Outcome};

use super::output_oracle::{BaselineValues, RecoveryResult};
use super::tried_state::is_acceptable;
use crate::explore::states::CrashCandidate;

/// What a recovery from undamaged files did.
#[derive(Debug, Clone)]
pub(crate) struct TriedControl {
    pub(crate) files: ControlFiles,
    /// The state with these files. It has lost nothing.
    pub(crate) candidate: CrashCandidate,
    /// The acknowledged step at that time.
    pub(crate) acknowledged: Option<u64>,
    pub(crate) result: RecoveryResult,
    pub(crate) outcome: Outcome,
    /// What is wrong with one of several jobs, in words.
    pub(crate) job_fault: Option<String>,
    /// What differs from the baseline run, if the recovery ended well.
    pub(crate) difference: Option<ResumeDifference>,
    /// Whether it fails although the save is complete and nothing that a killed process left is in the way.
    pub(crate) fails_by_itself: bool,
}

impl TriedControl {
    pub(crate) fn is_failing(&self) -> bool {
        !is_acceptable(self.outcome)
    }
}

/// What of a recovery differs first from the baseline run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResumeDifference {
    /// What the first step after the resume consumed.
    FirstStepConsumed,
    /// What a later step consumed.
    LaterStepConsumed,
    /// The final value, although each step consumed the same.
    FinalValueOnly,
    /// The final value. What the steps consumed is not known.
    FinalValue,
    /// The check failed.
    Check,
    /// The last step.
    LastStep,
}

impl ResumeDifference {
    /// What differs in a recovery with this outcome. `None`: the outcome says it.
    pub(crate) fn of(
        result: &RecoveryResult,
        outcome: Outcome,
        baseline: &BaselineValues,
    ) -> Option<ResumeDifference> {
        match outcome {
            Outcome::EndedEarly => return Some(ResumeDifference::LastStep),
            Outcome::Corrupt => {}
            _ => return None,
        }
        let differs = |index: &usize| {
            let consumed = &result.consumed[*index];
            let expected = baseline.consumed.get(&consumed.step);
            expected.is_some_and(|expected| !expected.contains(&consumed.value))
        };
        Some(match (0..result.consumed.len()).find(differs) {
            Some(0) => ResumeDifference::FirstStepConsumed,
            Some(_) => ResumeDifference::LaterStepConsumed,
            None if result.final_value == baseline.final_value => ResumeDifference::Check,
            None if baseline.consumed.is_empty() => ResumeDifference::FinalValue,
            None => ResumeDifference::FinalValueOnly,
        })
    }
}
