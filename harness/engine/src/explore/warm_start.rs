//! The warm start of Python recoveries: decides whether recoveries are forked from an interpreter with imported
//! libraries, and builds the first worker that does so. Knows no causes.

use scenarios::ControlFiles;

use super::controls::Controls;
use super::error::ExploreError;
use super::explore_config::ExploreConfig;
use super::noted_start::NotedStart;
use super::record::{OpEffect, Recording};
use super::replay::{
    ForkedPython, NotedRecovery, OutputOracle, RecoveryLimit, RecoveryStart, RecoveryWorker, Replayer,
    ServerImports, WarmStart, WorkerName, is_acceptable,
};
use super::start_comparison::{ComparedRecovery, StartComparison};
use super::states::CrashCandidate;
use super::warm_news::{ColdReason, WarmNews};
use crate::sandbox::{ProcessExit, SandboxError};

/// All recoveries together must be expected to take this long, or their first one is not worth noting.
const MIN_SECONDS: f64 = 5.0;
/// If they take this long, the user is told why they are not forked.
const MIN_SECONDS_EXPLAINED: f64 = 30.0;

/// What the automatic warm start of an exploration needs.
#[derive(Clone, Copy)]
pub(super) struct WarmStarter<'a> {
    pub(super) config: &'a ExploreConfig,
    pub(super) recording: &'a Recording,
    pub(super) oracle: &'a OutputOracle,
    pub(super) recording_seconds: f64,
    pub(super) tell: &'a (dyn Fn(WarmNews) + Sync),
}

impl WarmStarter<'_> {
    /// Whether a first recovery is to note what it imports, because all recoveries together would take long.
    pub(super) fn is_noting(self, states: usize) -> bool {
        let replay = &self.config.replay;
        let seconds = self.recording_seconds * states as f64 / replay.jobs.max(1) as f64;
        let is_single =
            self.config.enumerate.only_state.is_some() || self.config.record.first_crash.is_some();
        let is_worth_it = seconds >= MIN_SECONDS && !replay.is_over();
        if replay.warm != WarmStart::Automatic || is_single || !is_worth_it {
            return false;
        }
        let is_python =
            ForkedPython::of(&replay.resume, &ServerImports::Noting, &replay.watched_dirs).is_some();
        if !is_python && seconds >= MIN_SECONDS_EXPLAINED {
            self.tell_cold(ColdReason::NotPython);
        }
        is_python
    }

    /// Runs a first recovery that notes what it imports. `None`: the recoveries will be new processes.
    ///
    /// # Errors
    /// A sandbox failed, or a file could not be written.
    pub(super) fn note(self) -> Result<Option<NotedStart>, ExploreError> {
        let noting = RecoveryStart::Forked(ServerImports::Noting);
        let replayer = Replayer::new(&self.config.replay, self.oracle, self.recording).with_start(noting);
        let noted = match replayer.worker(WorkerName::Imports) {
            Ok(worker) => self.note_in(worker),
            Err(error) => Err(error),
        };
        match noted {
            Ok(noted) => Ok(self.noted_start(&replayer, noted)),
            Err(error) => self.give_up(error).map(|()| None),
        }
    }

    fn note_in(self, mut worker: RecoveryWorker<'_>) -> Result<NotedRecovery, ExploreError> {
        let noted = worker.try_noting(&self.first_candidate(), RecoveryLimit::Usual)?;
        worker.close()?;
        Ok(noted)
    }

    /// The files of the first recovery: those of the recorded run, or those after its first save.
    fn first_candidate(self) -> CrashCandidate {
        let ops = &self.recording.ops;
        let is_save = |effect: &OpEffect| matches!(effect, OpEffect::Output { saved_step: Some(_), .. });
        CrashCandidate::whole(match self.config.resumes_with_command() {
            true => 0,
            false => ops.iter().position(|op| is_save(&op.effect)).map_or(ops.len(), |index| index + 1),
        })
    }

    fn noted_start(self, replayer: &Replayer<'_>, noted: NotedRecovery) -> Option<NotedStart> {
        let NotedRecovery { result, notes } = noted;
        let candidate = self.first_candidate();
        let Some(notes) = notes else {
            self.tell_cold(ColdReason::NothingNoted);
            return None;
        };
        let repeats_recording = self.config.resumes_with_command()
            && result.ended == Some(ProcessExit::Exited(0))
            && is_acceptable(replayer.judge_at_crash_point(&result, &candidate));
        Some(NotedStart { candidate, result, notes, repeats_recording })
    }

    /// How recoveries start that are forked. `None`: each is a new process.
    pub(super) fn forked_start(self, noted: Option<&NotedStart>) -> Option<RecoveryStart> {
        let imports = match &self.config.replay.warm {
            WarmStart::Never => None,
            WarmStart::Automatic => noted.map(|noted| ServerImports::Noted(noted.notes.clone())),
            WarmStart::Noted(notes) => Some(ServerImports::Noted(notes.clone())),
            WarmStart::Modules(modules) => Some(ServerImports::Named(modules.clone())),
        };
        imports.map(RecoveryStart::Forked)
    }

    /// The workers with forked recoveries, if the first does what new processes do. `None`: the recoveries will be new
    /// processes.
    ///
    /// # Errors
    /// A sandbox failed, a file could not be written, or the modules that the user has named cannot be imported.
    pub(super) fn workers<'r>(
        self,
        forked: ForkedStart<'r>,
        controls: &Controls,
        comparison: &StartComparison<'_>,
    ) -> Result<Option<Vec<RecoveryWorker<'r>>>, ExploreError> {
        let workers = match forked.workers {
            Err(error @ ExploreError::WarmNotStarted { .. }) if self.has_named_modules() => {
                return Err(error);
            }
            workers => workers,
        };
        let compared = workers.and_then(|mut workers| {
            let first = workers.first_mut().ok_or(ExploreError::WorkerClosed)?;
            let difference = self.compare_good(forked.replayer, first, controls, comparison)?;
            Ok(ComparedWorkers { workers, difference })
        });
        match compared {
            Ok(ComparedWorkers { workers, difference: None }) => Ok(Some(workers)),
            Ok(ComparedWorkers { workers, difference: Some(reason) }) => {
                close_all(workers)?;
                self.tell_cold(reason);
                Ok(None)
            }
            Err(error) => self.give_up(error).map(|()| None),
        }
    }

    fn has_named_modules(self) -> bool {
        matches!(self.config.replay.warm, WarmStart::Modules(_))
    }

    /// Compares a forked recovery with a new process, from undamaged files.
    fn compare_good(
        self,
        replayer: &Replayer<'_>,
        worker: &mut RecoveryWorker<'_>,
        controls: &Controls,
        comparison: &StartComparison<'_>,
    ) -> Result<Option<ColdReason>, ExploreError> {
        let is_saved = |files: ControlFiles| matches!(files, ControlFiles::Saved { .. });
        let saved = controls.tried.iter().find(|control| is_saved(control.files));
        let Some(control) = saved.or(controls.tried.last()) else { return Ok(None) };
        let forked = replayer.result_of(worker, &control.candidate, RecoveryLimit::Usual)?;
        let (candidate, new) = (&control.candidate, &control.result);
        comparison.difference(ComparedRecovery { candidate, forked: &forked, new })
    }

    /// Goes on with new processes after an error of a forked recovery.
    ///
    /// # Errors
    /// The error, if it is not the fork server's, or if the exploration is stopped.
    fn give_up(self, error: ExploreError) -> Result<(), ExploreError> {
        self.tell_cold(self.reason_of(error)?);
        Ok(())
    }

    /// Why recoveries cannot be forked after this error.
    ///
    /// # Errors
    /// Those of [`give_up`](WarmStarter::give_up).
    pub(super) fn reason_of(self, error: ExploreError) -> Result<ColdReason, ExploreError> {
        match error {
            error if (self.config.replay.cancelled)() => Err(error),
            ExploreError::WarmNotStarted { detail }
            | ExploreError::Sandbox(SandboxError::Init { detail, .. }) => {
                Ok(ColdReason::ServerFailed(detail))
            }
            error @ ExploreError::Sandbox(_) => {
                Ok(ColdReason::ServerFailed(crate::file_error::chain(&error)))
            }
            error => Err(error),
        }
    }

    /// Says that each recovery is a new process, before any was forked.
    fn tell_cold(self, reason: ColdReason) {
        self.tell_discarded(reason, 0, 0);
    }

    /// Says that each recovery is a new process. `discarded`: how many were forked; `withdrawn`: how many lines about
    /// unconfirmed failures they have led to.
    pub(super) fn tell_discarded(self, reason: ColdReason, discarded: usize, withdrawn: usize) {
        let seconds = self.recording_seconds;
        (self.tell)(WarmNews::NewProcesses { seconds, reason, discarded, withdrawn });
    }
}

/// Recoveries that can be forked.
pub(super) struct ForkedStart<'a> {
    pub(super) replayer: &'a Replayer<'a>,
    /// Their interpreters have imported the libraries. At least one.
    pub(super) workers: Result<Vec<RecoveryWorker<'a>>, ExploreError>,
}

impl<'a> ForkedStart<'a> {
    /// Builds as many workers as will run at the same time.
    pub(super) fn build(replayer: &'a Replayer<'a>, jobs: usize) -> ForkedStart<'a> {
        let built: Vec<_> = std::thread::scope(|scope| {
            let names = (0..jobs.max(1)).map(WorkerName::State);
            let threads: Vec<_> = names.map(|name| scope.spawn(move || replayer.worker(name))).collect();
            let built =
                threads.into_iter().map(|thread| thread.join().unwrap_or(Err(ExploreError::WorkerClosed)));
            built.collect()
        });
        let (mut workers, mut failure) = (Vec::new(), None);
        for worker in built {
            match worker {
                Ok(worker) => workers.push(worker),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let workers = match failure {
            None => Ok(workers),
            Some(error) => close_all(workers).and(Err(error)),
        };
        ForkedStart { replayer, workers }
    }

    /// Removes the workers.
    ///
    /// # Errors
    /// A sandbox could not be removed.
    pub(super) fn close(self) -> Result<(), ExploreError> {
        self.workers.map_or(Ok(()), close_all)
    }
}

/// Removes workers.
///
/// # Errors
/// A sandbox could not be removed.
pub(super) fn close_all(workers: Vec<RecoveryWorker<'_>>) -> Result<(), ExploreError> {
    let closed: Vec<_> = workers.into_iter().map(RecoveryWorker::close).collect();
    closed.into_iter().collect()
}

struct ComparedWorkers<'a> {
    workers: Vec<RecoveryWorker<'a>>,
    difference: Option<ColdReason>,
}
