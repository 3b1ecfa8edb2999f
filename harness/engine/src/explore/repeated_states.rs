//! Runs recoveries from crash states again, one at a time, after all states have been tried: to explain a finding, and
//! to confirm it. Each is a new process, so that nothing that recoveries share decides. Knows no causes.

use std::collections::HashMap;

use scenarios::{Confirmation, Outcome};

use super::error::ExploreError;
use super::replay::{
    CompletedRecovery, RecoveryLimit, RecoveryResult, RecoveryWorker, Replayer, TriedState, WorkerName,
    is_acceptable,
};
use super::report::{KnownFailure, StateAttempts, failure_message};
use super::start_comparison::ComparedRecovery;
use super::states::CrashCandidate;
use super::warm_news::ColdReason;

/// If the recovery of a finding does something else when it is repeated, it is run this often in all.
const MAX_RECOVERIES: u64 = 4;

/// One worker that tries states again, and the results that are known.
pub(super) struct RepeatedStates<'a, 'r> {
    replayer: &'a Replayer<'r>,
    /// `None`: it was not needed yet.
    worker: Option<RecoveryWorker<'a>>,
    /// By the digest of the tree.
    known: HashMap<[u8; 16], &'a RecoveryResult>,
    /// The same of those that were tried since.
    tried_again: HashMap<[u8; 16], RecoveryResult>,
    /// What confirmed findings.
    confirming: Vec<ConfirmingRecovery>,
    /// Why the first recovery could not be run that could not.
    failure: Option<ExploreError>,
    cancelled: fn() -> bool,
}

/// A recovery with the same outcome as the one that a finding shows.
struct ConfirmingRecovery {
    candidate: CrashCandidate,
    result: RecoveryResult,
}

impl<'a, 'r> RepeatedStates<'a, 'r> {
    /// Nothing is repeated yet.
    pub(super) fn new(
        replayer: &'a Replayer<'r>,
        tried: &'a [TriedState],
        cancelled: fn() -> bool,
    ) -> RepeatedStates<'a, 'r> {
        let known = tried.iter().map(|tried| (tried.state.digest, &tried.result)).collect();
        RepeatedStates {
            replayer,
            worker: None,
            known,
            tried_again: HashMap::new(),
            confirming: Vec::new(),
            failure: None,
            cancelled,
        }
    }

    /// Removes the worker.
    ///
    /// # Errors
    /// A recovery could not be run although nothing was cancelled, or the sandbox could not be removed.
    pub(super) fn close(self) -> Result<(), ExploreError> {
        let closed = self.worker.map_or(Ok(()), RecoveryWorker::close);
        self.failure.filter(|_| !(self.cancelled)()).map_or(closed, Err)
    }

    /// Runs the recovery from a candidate alone, for its output. `None`: it was cancelled.
    ///
    /// # Errors
    /// The sandbox failed, or a file could not be written.
    pub(super) fn run_with_whole_output(
        &mut self,
        candidate: &CrashCandidate,
    ) -> Result<Option<CompletedRecovery>, ExploreError> {
        let completed = self.with_worker(|_, worker| worker.run_with_whole_output(candidate));
        match completed {
            _ if (self.cancelled)() => Ok(None),
            completed => completed.map(Some),
        }
    }

    /// In what the recoveries that confirmed findings differ from the forked ones that the findings show: two of them, or
    /// it may be chance.
    pub(super) fn difference_of_confirmed(&mut self) -> Option<ColdReason> {
        let confirming = std::mem::take(&mut self.confirming);
        confirming.into_iter().find_map(|ConfirmingRecovery { candidate, result }| {
            let forked = self.known.get(&self.replayer.digest_of(&candidate)).copied()?;
            let compared = ComparedRecovery { candidate: &candidate, forked, new: &result };
            let reason = compared.difference(self.replayer)?;
            let again = self.run(&candidate, RecoveryLimit::Usual)?;
            ComparedRecovery { new: &again, ..compared }.difference(self.replayer).map(|_| reason)
        })
    }

    /// Does something with the worker, which is built if there is none.
    fn with_worker<T>(
        &mut self,
        action: impl FnOnce(&Replayer<'r>, &mut RecoveryWorker<'a>) -> Result<T, ExploreError>,
    ) -> Result<T, ExploreError> {
        match &mut self.worker {
            Some(worker) => action(self.replayer, worker),
            None => {
                let worker = self.worker.insert(self.replayer.worker(WorkerName::Repeat)?);
                action(self.replayer, worker)
            }
        }
    }

    /// Runs the recovery from a candidate with files that were not tried, and keeps the result.
    fn run_once(&mut self, candidate: &CrashCandidate) -> Option<Outcome> {
        let result = self.run(candidate, RecoveryLimit::Usual)?;
        let outcome = self.replayer.judge_at_crash_point(&result, candidate);
        self.tried_again.insert(self.replayer.digest_of(candidate), result);
        Some(outcome)
    }

    /// The result of a candidate, if one with the same files was tried.
    fn known_result(&self, candidate: &CrashCandidate) -> Option<&RecoveryResult> {
        let digest = self.replayer.digest_of(candidate);
        self.known.get(&digest).copied().or_else(|| self.tried_again.get(&digest))
    }

    fn run(&mut self, candidate: &CrashCandidate, limit: RecoveryLimit) -> Option<RecoveryResult> {
        if (self.cancelled)() || self.failure.is_some() {
            return None;
        }
        match self.with_worker(|replayer, worker| replayer.result_of(worker, candidate, limit)) {
            Ok(result) => Some(result).filter(|_| !(self.cancelled)()),
            Err(error) => {
                self.failure = Some(error);
                None
            }
        }
    }
}

impl StateAttempts for RepeatedStates<'_, '_> {
    fn known_outcome(&mut self, candidate: &CrashCandidate) -> Option<Outcome> {
        let result = self.known_result(candidate)?;
        Some(self.replayer.judge_at_crash_point(result, candidate))
    }

    fn outcome_of(&mut self, candidate: &CrashCandidate, wanted: Outcome) -> Option<Outcome> {
        match self.known_outcome(candidate) {
            Some(outcome) => Some(outcome),
            // Each attempt that hangs as wanted would cost a whole time limit.
            None if wanted == Outcome::Hung => None,
            None => self.run_once(candidate),
        }
    }

    fn cancelled(&self) -> fn() -> bool {
        self.cancelled
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
        if let Some(outcome) = self.known_outcome(candidate) {
            return Some(is_acceptable(outcome));
        }
        self.run_once(candidate).map(is_acceptable)
    }

    fn confirm(&mut self, candidate: &CrashCandidate, outcome: Outcome) -> Option<Confirmation> {
        // A recovery that exceeds its time limit may be slow because the machine was busy.
        let limit = if outcome == Outcome::Hung { RecoveryLimit::Tripled } else { RecoveryLimit::Usual };
        let mut seen = Confirmation { failed: 1, tried: 1, other: None };
        let enough = |seen: Confirmation| match seen.other {
            None => seen.tried == 2,
            // To wait for each of several once more would take as long as many states.
            Some(_) => outcome == Outcome::Hung || seen.tried == MAX_RECOVERIES,
        };
        while !enough(seen) {
            let Some(result) = self.run(candidate, limit) else { break };
            let found = self.replayer.judge_at_crash_point(&result, candidate);
            seen.tried += 1;
            match found == outcome {
                true => {
                    seen.failed += 1;
                    self.confirming.push(ConfirmingRecovery { candidate: candidate.clone(), result });
                }
                false => seen.other = Some(found),
            }
        }
        (seen.tried > 1).then_some(seen)
    }
}
