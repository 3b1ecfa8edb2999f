//! Compares recoveries that were forked with new processes, while others are tried. Knows no causes.

use std::sync::Mutex;

use super::comparison_sample::ComparisonSample;
use super::error::ExploreError;
use super::record::Recording;
use super::replay::{RecoveryLimit, RecoveryResult, RecoveryWorker, Replayer, TriedState};
use super::report::kind_of_message;
use super::states::CrashCandidate;
use super::warm_news::ColdReason;
use crate::locks::LockExt;
use crate::sandbox::ProcessExit;

/// Compares a sample of the recoveries, one at a time.
pub(super) struct StartComparison<'a> {
    /// Whose recoveries are new processes.
    cold: &'a Replayer<'a>,
    /// The number of the worker that runs them.
    worker_number: usize,
    sample: Mutex<ComparisonSample<'a>>,
    /// Those that were chosen and not yet compared.
    pending: Mutex<Vec<TriedState>>,
    /// `None`: it was not needed yet.
    worker: Mutex<Option<RecoveryWorker<'a>>>,
    progress: Mutex<ComparisonProgress>,
}

#[derive(Default)]
struct ComparisonProgress {
    compared_recovered: u64,
    difference: Option<ColdReason>,
    failure: Option<ExploreError>,
}

/// What the comparison showed.
pub(super) struct ComparedStarts {
    /// How many recoveries that are no finding did the same as new processes.
    pub(super) recovered: u64,
    /// In what a forked recovery differed.
    pub(super) difference: Option<ColdReason>,
}

impl<'a> StartComparison<'a> {
    pub(super) fn new(
        cold: &'a Replayer<'a>,
        recording: &'a Recording,
        worker_number: usize,
    ) -> StartComparison<'a> {
        StartComparison {
            cold,
            worker_number,
            sample: Mutex::new(ComparisonSample::new(recording)),
            pending: Mutex::default(),
            worker: Mutex::default(),
            progress: Mutex::default(),
        }
    }

    /// Compares this recovery if it is chosen. Returns whether forked recoveries go on.
    pub(super) fn go_on(&self, tried: &TriedState) -> bool {
        if self.sample.locked().takes(tried) {
            self.pending.locked().push(tried.clone());
        }
        // Who finds that another one compares tries the next state; what is pending then waits.
        if let Ok(mut worker) = self.worker.try_lock() {
            self.compare_pending(&mut worker);
        }
        !self.progress.locked().is_ended()
    }

    fn compare_pending(&self, worker: &mut Option<RecoveryWorker<'a>>) {
        while !self.progress.locked().is_ended() && !self.cold.is_over() {
            let Some(tried) = self.pending.locked().pop() else { return };
            let difference = self.compare(worker, &tried);
            let mut progress = self.progress.locked();
            match difference {
                Ok(None) => progress.compared_recovered += u64::from(!tried.is_failing()),
                Ok(difference) => progress.difference = difference,
                Err(error) => progress.failure = Some(error),
            }
        }
    }

    fn compare(
        &self,
        worker: &mut Option<RecoveryWorker<'a>>,
        tried: &TriedState,
    ) -> Result<Option<ColdReason>, ExploreError> {
        let candidate = tried.state.candidate();
        let new = self.new_process(worker, candidate)?;
        self.difference_in(worker, ComparedRecovery { candidate, forked: &tried.result, new: &new })
    }

    /// In what a recovery differs from a new process. `None`: in nothing that counts, or by chance, as new processes
    /// do among themselves.
    ///
    /// # Errors
    /// A sandbox failed, or a file could not be written.
    pub(super) fn difference(
        &self,
        compared: ComparedRecovery<'_>,
    ) -> Result<Option<ColdReason>, ExploreError> {
        self.difference_in(&mut self.worker.locked(), compared)
    }

    fn difference_in(
        &self,
        worker: &mut Option<RecoveryWorker<'a>>,
        compared: ComparedRecovery<'_>,
    ) -> Result<Option<ColdReason>, ExploreError> {
        let Some(reason) = compared.difference(self.cold) else { return Ok(None) };
        let new = self.new_process(worker, compared.candidate)?;
        let again = ComparedRecovery { new: &new, ..compared };
        Ok(again.difference(self.cold).map(|_| reason))
    }

    fn new_process(
        &self,
        worker: &mut Option<RecoveryWorker<'a>>,
        candidate: &CrashCandidate,
    ) -> Result<RecoveryResult, ExploreError> {
        let worker = match worker {
            Some(worker) => worker,
            None => worker.insert(self.cold.worker(self.worker_number)?),
        };
        self.cold.result_of(worker, candidate, RecoveryLimit::Usual)
    }

    /// Compares what is still pending, and ends.
    ///
    /// # Errors
    /// A sandbox failed, or a file could not be written, although nothing was cancelled.
    pub(super) fn finish(self) -> Result<ComparedStarts, ExploreError> {
        self.compare_pending(&mut self.worker.locked());
        let ComparisonProgress { compared_recovered, difference, failure } = self.progress.into_unlocked();
        let closed = self.worker.into_unlocked().map_or(Ok(()), RecoveryWorker::close);
        match failure {
            Some(error) if !self.cold.is_cancelled() => return Err(error),
            _ => closed?,
        }
        Ok(ComparedStarts { recovered: compared_recovered, difference })
    }
}

impl ComparisonProgress {
    fn is_ended(&self) -> bool {
        self.difference.is_some() || self.failure.is_some()
    }
}

/// A forked recovery and a new process from the same files.
#[derive(Clone, Copy)]
pub(super) struct ComparedRecovery<'a> {
    pub(super) candidate: &'a CrashCandidate,
    pub(super) forked: &'a RecoveryResult,
    pub(super) new: &'a RecoveryResult,
}

impl ComparedRecovery<'_> {
    fn difference(&self, replayer: &Replayer<'_>) -> Option<ColdReason> {
        let ComparedRecovery { candidate, forked, new } = self;
        let kinds = [forked, new].map(|result| message_kind(result));
        let outcomes = [forked, new].map(|result| replayer.judge_at_crash_point(result, candidate));
        let deeds = [forked, new].map(|result| deeds_of(result));
        if outcomes[0] == outcomes[1] && deeds[0] == deeds[1] && kinds[0] == kinds[1] {
            return None;
        }
        let text = |nth: usize| {
            let different: Vec<String> = (0..deeds[nth].len())
                .filter(|deed| deeds[0][*deed] != deeds[1][*deed])
                .map(|deed| deeds[nth][deed].clone())
                .collect();
            let message = [forked, new][nth].message.trim();
            let message =
                (kinds[0] != kinds[1] && !message.is_empty()).then(|| format!("prints `{message}`"));
            let parts: Vec<String> = different.into_iter().chain(message).collect();
            let parts = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
            format!("is `{}`{parts}", outcomes[nth])
        };
        Some(ColdReason::Differs { state: candidate.name(), forked: text(0), new_process: text(1) })
    }
}

/// The message of a recovery that fails, as far as it counts.
fn message_kind(result: &RecoveryResult) -> String {
    match result.ended {
        Some(ProcessExit::Exited(0)) => String::new(),
        _ => kind_of_message(&result.message),
    }
}

/// What a recovery did, in words: always the same number of parts.
fn deeds_of(result: &RecoveryResult) -> [String; 5] {
    let step = |what: &str, step: Option<u64>| match step {
        Some(step) => format!("{what} {step}"),
        None => format!("{what} unknown"),
    };
    [
        format!("ends with {}", ProcessExit::describe(result.ended)),
        step("resumed step", result.resumed_step),
        step("first step", result.first_step),
        step("last step", result.last_step),
        result.check_ended.map_or_else(|| "no check".into(), |ended| format!("the check ends with {ended}")),
    ]
}
