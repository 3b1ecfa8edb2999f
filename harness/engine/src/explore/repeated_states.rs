//! Tries crash states again, one at a time, after all have been tried: to make a finding smaller, and to confirm
//! one that hangs. Knows no causes.

use std::collections::HashMap;

use scenarios::Outcome;

use super::replay::{RecoveryLimit, RecoveryResult, RecoveryWorker, Replayer, TriedState, is_acceptable};
use super::report::StateAttempts;
use super::states::CrashCandidate;

/// One worker that tries states again, and the results that are known.
pub(super) struct RepeatedStates<'a, 'r, 'w> {
    replayer: &'a Replayer<'r>,
    worker: &'a mut RecoveryWorker<'w>,
    /// By the digest of the tree.
    known: HashMap<[u8; 16], &'a RecoveryResult>,
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
        RepeatedStates { replayer, worker, known, cancelled }
    }

    fn run(&mut self, candidate: &CrashCandidate, limit: RecoveryLimit) -> Option<Outcome> {
        if (self.cancelled)() {
            return None;
        }
        self.replayer.outcome_of(self.worker, candidate, limit).ok()
    }
}

impl StateAttempts for RepeatedStates<'_, '_, '_> {
    fn outcome_of(&mut self, candidate: &CrashCandidate, wanted: Outcome) -> Option<Outcome> {
        match self.known.get(&self.replayer.digest_of(candidate)) {
            Some(result) => Some(self.replayer.judge_at_crash_point(result, candidate)),
            // Each attempt that hangs as wanted would cost a whole time limit.
            None if wanted == Outcome::Hung => None,
            None => self.run(candidate, RecoveryLimit::Usual),
        }
    }

    fn recovers(&mut self, candidate: &CrashCandidate) -> Option<bool> {
        let outcome = match self.known.get(&self.replayer.digest_of(candidate)) {
            Some(result) => Some(self.replayer.judge_at_crash_point(result, candidate)),
            None => self.run(candidate, RecoveryLimit::Usual),
        };
        outcome.map(is_acceptable)
    }

    fn repeat_hung(&mut self, candidate: &CrashCandidate) -> Option<Outcome> {
        self.run(candidate, RecoveryLimit::Tripled)
    }
}
