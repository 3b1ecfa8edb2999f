//! Compares recoveries that were forked with new processes, each as soon as it is chosen. Knows no causes.

use std::sync::Mutex;

use super::comparison_sample::ComparisonSample;
use super::error::ExploreError;
use super::record::Recording;
use super::replay::{RecoveryLimit, RecoveryResult, RecoveryWorker, Replayer, TriedState, WorkerName};
use super::report::kind_of_message;
use super::states::CrashCandidate;
use super::warm_news::ColdReason;
use crate::locks::LockExt;
use crate::sandbox::ProcessExit;

/// Compares a sample of the recoveries.
pub(super) struct StartComparison<'a> {
    /// Whose recoveries are new processes.
    cold: &'a Replayer<'a>,
    sample: Mutex<ComparisonSample<'a>>,
    workers: Mutex<Workers<'a>>,
    progress: Mutex<ComparisonProgress>,
}

#[derive(Default)]
struct Workers<'a> {
    /// Those that run nothing now.
    idle: Vec<RecoveryWorker<'a>>,
    built: usize,
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
    pub(super) fn new(cold: &'a Replayer<'a>, recording: &'a Recording) -> StartComparison<'a> {
        StartComparison {
            cold,
            sample: Mutex::new(ComparisonSample::new(recording)),
            workers: Mutex::default(),
            progress: Mutex::default(),
        }
    }

    /// Compares this recovery if it is chosen. Returns whether forked recoveries go on.
    pub(super) fn go_on(&self, tried: &TriedState) -> bool {
        let is_wanted = !self.progress.locked().is_ended() && !self.cold.is_over();
        if is_wanted && self.sample.locked().takes(tried) {
            let difference = self.compare(tried);
            let mut progress = self.progress.locked();
            match difference {
                Ok(None) => progress.compared_recovered += u64::from(!tried.is_failing()),
                Ok(difference) => progress.difference = difference,
                Err(error) => progress.failure = Some(error),
            }
        }
        !self.progress.locked().is_ended()
    }

    fn compare(&self, tried: &TriedState) -> Result<Option<ColdReason>, ExploreError> {
        let candidate = tried.state.candidate();
        let new = self.new_process(candidate)?;
        self.difference(ComparedRecovery { candidate, forked: &tried.result, new: &new })
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
        let Some(reason) = compared.difference(self.cold) else { return Ok(None) };
        let new = self.new_process(compared.candidate)?;
        let again = ComparedRecovery { new: &new, ..compared };
        Ok(again.difference(self.cold).map(|_| reason))
    }

    fn new_process(&self, candidate: &CrashCandidate) -> Result<RecoveryResult, ExploreError> {
        let mut worker = self.worker()?;
        let result = self.cold.result_of(&mut worker, candidate, RecoveryLimit::Usual);
        self.workers.locked().idle.push(worker);
        result
    }

    fn worker(&self) -> Result<RecoveryWorker<'a>, ExploreError> {
        let mut workers = self.workers.locked();
        if let Some(worker) = workers.idle.pop() {
            return Ok(worker);
        }
        let name = WorkerName::Comparison(workers.built);
        workers.built += 1;
        drop(workers);
        self.cold.worker(name)
    }

    /// Removes the workers.
    ///
    /// # Errors
    /// A sandbox failed, or a file could not be written, although nothing was cancelled.
    pub(super) fn finish(self) -> Result<ComparedStarts, ExploreError> {
        let ComparisonProgress { compared_recovered, difference, failure } = self.progress.into_unlocked();
        let idle = self.workers.into_unlocked().idle;
        let closed: Vec<_> = idle.into_iter().map(RecoveryWorker::close).collect();
        match failure {
            Some(error) if !self.cold.is_cancelled() => return Err(error),
            _ => closed.into_iter().collect::<Result<(), _>>()?,
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
    /// In what they differ. `None`: in nothing that counts.
    pub(super) fn difference(&self, replayer: &Replayer<'_>) -> Option<ColdReason> {
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
