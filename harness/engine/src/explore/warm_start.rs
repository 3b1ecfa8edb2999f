//! The automatic warm start of Python recoveries: decides whether recoveries are forked from an interpreter with
//! imported libraries, and compares such recoveries with new processes. Knows no causes.

use std::fmt::{Display, Formatter};
use std::sync::Mutex;

use scenarios::{ControlFiles, Outcome};

use super::controls::Controls;
use super::error::ExploreError;
use super::explore_config::ExploreConfig;
use super::noted_start::NotedStart;
use super::record::{OpEffect, Recording};
use super::replay::{
    ForkedPython, NotedRecovery, OutputOracle, RecoveryLimit, RecoveryResult, RecoveryStart, RecoveryWorker,
    Replayer, ServerImports, TriedState, WarmStart, is_acceptable,
};
use super::report::kind_of_message;
use super::states::CrashCandidate;
use crate::locks::LockExt;
use crate::sandbox::ProcessExit;

/// All recoveries together must be expected to take this long, or their first one is not worth noting.
const MIN_SECONDS: f64 = 5.0;
/// If they take this long, the user is told why they are not forked.
const MIN_SECONDS_EXPLAINED: f64 = 30.0;

/// How recoveries start, if `Automatic` has a choice.
#[derive(Debug, Clone, PartialEq)]
pub enum WarmNews {
    /// They are forked from an interpreter that has imported the libraries.
    Forked {
        /// How many modules the first recovery had imported from the standard library and from packages.
        modules: usize,
    },
    /// Each is a new process.
    NewProcesses {
        /// How long the recorded run took.
        seconds: f64,
        /// Why.
        reason: ColdReason,
    },
}

/// Why recoveries that take long are new processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColdReason {
    /// The command does not start Python directly.
    NotPython,
    /// The first recovery did not end as a Python program does.
    NothingNoted,
    /// The interpreter could not be started or has ended; why.
    ServerFailed(String),
    /// A forked recovery did something else than a new process.
    Differs {
        /// The crash state.
        state: String,
        /// What the forked recovery did.
        forked: String,
        /// What the new process did.
        new_process: String,
    },
}

impl Display for WarmNews {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            WarmNews::Forked { modules } => write!(
                f,
                "recoveries are forked from a Python that has imported the libraries ({modules} modules)"
            ),
            WarmNews::NewProcesses { seconds, reason } => {
                write!(f, "each recovery is a new process, of about {seconds:.1} s: {reason}")
            }
        }
    }
}

impl Display for ColdReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            ColdReason::NotPython => f.write_str(
                "the command does not start `python` itself; if the trainer is a Python program, name `python` and \
                 its script in the command, and recoveries are forked",
            ),
            ColdReason::NothingNoted => {
                f.write_str("the first recovery did not end as a Python program does, so its imports are unknown")
            }
            ColdReason::ServerFailed(detail) => {
                write!(f, "a Python that has imported the libraries could not be used ({detail})")
            }
            ColdReason::Differs { state, forked, new_process } => write!(
                f,
                "forked from a Python that has imported the libraries, the recovery from state {state} {forked}; as \
                 a new process it {new_process}"
            ),
        }
    }
}

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
    /// Runs a first recovery that notes what it imports, if all recoveries together would take long. `None`: the
    /// recoveries will be new processes.
    ///
    /// # Errors
    /// A sandbox failed, or a file could not be written.
    pub(super) fn note(self, states: usize) -> Result<Option<NotedStart>, ExploreError> {
        let replay = &self.config.replay;
        let seconds = self.recording_seconds * states as f64 / replay.jobs.max(1) as f64;
        let is_single =
            self.config.enumerate.only_state.is_some() || self.config.record.first_crash.is_some();
        if replay.warm != WarmStart::Automatic || is_single || seconds < MIN_SECONDS {
            return Ok(None);
        }
        let noting = RecoveryStart::Forked(ServerImports::Noting);
        if ForkedPython::of(&replay.resume, &ServerImports::Noting, &replay.watched_dirs).is_none() {
            if seconds >= MIN_SECONDS_EXPLAINED {
                self.tell_cold(ColdReason::NotPython);
            }
            return Ok(None);
        }
        let replayer = Replayer::new(replay, self.oracle, self.recording).with_start(noting);
        // Those of the replay and of the controls have smaller numbers.
        let noted = match replayer.worker(replay.jobs + 1) {
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

    /// Builds a worker with forked recoveries. `None`: the recoveries will be new processes.
    ///
    /// # Errors
    /// A sandbox failed, or a file could not be written.
    pub(super) fn worker<'r>(
        self,
        replayer: &'r Replayer<'_>,
        noted: &NotedStart,
        controls: &Controls,
    ) -> Result<Option<RecoveryWorker<'r>>, ExploreError> {
        let worker = replayer.worker(0).and_then(|mut worker| {
            let difference = self.compare_good(replayer, &mut worker, controls)?;
            Ok(ComparedWorker { worker, difference })
        });
        match worker {
            Ok(ComparedWorker { worker, difference: None }) => {
                (self.tell)(WarmNews::Forked { modules: noted.notes.module_count() });
                Ok(Some(worker))
            }
            Ok(ComparedWorker { worker, difference: Some(reason) }) => {
                worker.close()?;
                self.tell_cold(reason);
                Ok(None)
            }
            Err(error) => self.give_up(error).map(|()| None),
        }
    }

    /// Compares a forked recovery with a new process, from undamaged files.
    fn compare_good(
        self,
        replayer: &Replayer<'_>,
        worker: &mut RecoveryWorker<'_>,
        controls: &Controls,
    ) -> Result<Option<ColdReason>, ExploreError> {
        let is_saved = |files: ControlFiles| matches!(files, ControlFiles::Saved { .. });
        let saved = controls.tried.iter().find(|control| is_saved(control.files));
        let Some(control) = saved.or(controls.tried.last()) else { return Ok(None) };
        let forked = replayer.result_of(worker, &control.candidate, RecoveryLimit::Usual)?;
        let difference = StartDifference {
            replayer,
            candidate: &control.candidate,
            forked: &forked,
            new: &control.result,
        };
        Ok(difference.reason())
    }

    /// Goes on with new processes after an error of a forked recovery.
    ///
    /// # Errors
    /// The error, if it is not the fork server's, or if the exploration is stopped.
    pub(super) fn give_up(self, error: ExploreError) -> Result<(), ExploreError> {
        match error {
            error if (self.config.replay.cancelled)() => Err(error),
            ExploreError::WarmNotStarted { .. } | ExploreError::Sandbox(_) => {
                self.tell_cold(ColdReason::ServerFailed(crate::file_error::chain(&error)));
                Ok(())
            }
            error => Err(error),
        }
    }

    pub(super) fn tell_cold(self, reason: ColdReason) {
        (self.tell)(WarmNews::NewProcesses { seconds: self.recording_seconds, reason });
    }
}

struct ComparedWorker<'a> {
    worker: RecoveryWorker<'a>,
    difference: Option<ColdReason>,
}

/// A forked recovery and a new process from the same files.
struct StartDifference<'a> {
    replayer: &'a Replayer<'a>,
    candidate: &'a CrashCandidate,
    forked: &'a RecoveryResult,
    new: &'a RecoveryResult,
}

impl StartDifference<'_> {
    /// In what they differ. `None`: in nothing that counts.
    fn reason(&self) -> Option<ColdReason> {
        let StartDifference { replayer, candidate, forked, new } = self;
        let outcomes = [forked, new].map(|result| replayer.judge_at_crash_point(result, candidate));
        let essence = |result: &RecoveryResult, outcome: Outcome| {
            let message = match result.ended {
                Some(ProcessExit::Exited(0)) => String::new(),
                _ => kind_of_message(&result.message),
            };
            let steps = [result.resumed_step, result.first_step, result.last_step];
            (outcome, result.ended, steps, result.check_ended, message)
        };
        if essence(forked, outcomes[0]) == essence(new, outcomes[1]) {
            return None;
        }
        let text = |result: &RecoveryResult, outcome: Outcome| {
            let message =
                if result.message.is_empty() { String::new() } else { format!(", `{}`", result.message) };
            format!("is `{outcome}` ({}{message})", ProcessExit::describe(result.ended))
        };
        Some(ColdReason::Differs {
            state: candidate.name(),
            forked: text(forked, outcomes[0]),
            new_process: text(new, outcomes[1]),
        })
    }
}

/// Compares the first recovery that fails with a new process.
pub(super) struct FailingComparison<'a> {
    /// Whose recoveries are new processes.
    cold: &'a Replayer<'a>,
    /// The number of the worker that runs them.
    worker_number: usize,
    progress: Mutex<ComparisonProgress>,
}

#[derive(Default)]
struct ComparisonProgress {
    has_begun: bool,
    difference: Option<ColdReason>,
}

impl<'a> FailingComparison<'a> {
    pub(super) fn new(cold: &'a Replayer<'a>, worker_number: usize) -> FailingComparison<'a> {
        FailingComparison { cold, worker_number, progress: Mutex::default() }
    }

    /// Whether the forked recoveries go on. The first that fails is compared here; one that hangs is not, because
    /// that would take as long as its time limit.
    pub(super) fn go_on(&self, tried: &TriedState) -> bool {
        let is_compared = tried.is_failing() && tried.result.ended.is_some();
        {
            let mut progress = self.progress.locked();
            if !is_compared || progress.has_begun {
                return progress.difference.is_none();
            }
            progress.has_begun = true;
        }
        let difference = self.compare(tried).unwrap_or_default();
        let goes_on = difference.is_none();
        self.progress.locked().difference = difference;
        goes_on
    }

    fn compare(&self, tried: &TriedState) -> Result<Option<ColdReason>, ExploreError> {
        let mut worker = self.cold.worker(self.worker_number)?;
        let candidate = tried.state.candidate();
        let new = self.cold.result_of(&mut worker, candidate, RecoveryLimit::Usual)?;
        worker.close()?;
        let difference = StartDifference { replayer: self.cold, candidate, forked: &tried.result, new: &new };
        Ok(difference.reason())
    }

    /// In what the forked recovery differed.
    pub(super) fn into_difference(self) -> Option<ColdReason> {
        self.progress.into_unlocked().difference
    }
}
