//! Tries crash states again, one at a time, after all have been tried: to make a finding smaller, and to confirm
//! one that hangs. Knows no causes.

use std::collections::HashMap;

use scenarios::Outcome;

use super::replay::{RecoveryLimit, RecoveryResult, RecoveryWorker, Replayer, TriedState, is_acceptable};
use super::report::{KnownFailure, StateAttempts, failure_message};
use super::states::CrashCandidate;

/// One worker that tries states again, and the results that are known.
pub(super) struct RepeatedStates<'a, 'r, 'w> {
    replayer: &'a Replayer<'r>,
    worker: &'a mut RecoveryWorker<'w>,
    /// By the digest of the tree.
    known: HashMap<[u8; 16], &'a RecoveryResult>,
    /// The same of those that were tried since.
    tried_again: HashMap<[u8; 16], RecoveryResult>,
    cancelled: fn() -> bool,
}

impl<'a, 'r, 'w> RepeatedStates<'a, 'r, 'w> {
    pub(super) fn new(
        replayer: &'a Replayer<'r>,
        worker: &'a mut RecoveryWorker<'w>,
        tried: &'a [TriedState],
        cancelled: fn() -> bool,
    ) -> RepeatedStates<'a, 'r, 'w> {
        let known = tried.iter().map(|tried| (tried.state.digest, &tried.result)).collect();
        RepeatedStates { replayer, worker, known, tried_again: HashMap::new(), cancelled }
    }

    /// The result of a candidate, if one with the same files was tried.
    fn known_result(&self, candidate: &CrashCandidate) -> Option<&RecoveryResult> {
        let digest = self.replayer.digest_of(candidate);
        self.known.get(&digest).copied().or_else(|| self.tried_again.get(&digest))
    }

    fn run(&mut self, candidate: &CrashCandidate) -> Option<Outcome> {
        if (self.cancelled)() {
            return None;
        }
        let result = self.replayer.result_of(self.worker, candidate, RecoveryLimit::Usual).ok()?;
        let outcome = self.replayer.judge_at_crash_point(&result, candidate);
        self.tried_again.insert(self.replayer.digest_of(candidate), result);
        Some(outcome)
    }
}

impl StateAttempts for RepeatedStates<'_, '_, '_> {
    fn outcome_of(&mut self, candidate: &CrashCandidate, wanted: Outcome) -> Option<Outcome> {
        match self.known_result(candidate) {
            Some(result) => Some(self.replayer.judge_at_crash_point(result, candidate)),
            // Each attempt that hangs as wanted would cost a whole time limit.
            None if wanted == Outcome::Hung => None,
            None => self.run(candidate),
        }
    }

    fn failure_of(&mut self, candidate: &CrashCandidate) -> Option<KnownFailure> {
        let result = self.known_result(candidate)?;
        let acknowledged = self.replayer.acknowledged(candidate);
        let judged = self.replayer.judge_with_jobs(result, candidate, acknowledged);
        let outcome = judged.outcome;
        let message = judged.fault.unwrap_or_else(|| failure_message(result, outcome, acknowledged));
        Some(KnownFailure { outcome, message })
    }

    fn recovers(&mut self, candidate: &CrashCandidate) -> Option<bool> {
        let outcome = match self.known_result(candidate) {
            Some(result) => Some(self.replayer.judge_at_crash_point(result, candidate)),
            None => self.run(candidate),
        };
        outcome.map(is_acceptable)
    }

    fn repeat_hung(&mut self, candidate: &CrashCandidate) -> Option<Outcome> {
        if (self.cancelled)() {
            return None;
        }
        self.replayer.outcome_of(self.worker, candidate, RecoveryLimit::Tripled).ok()
    }
}
