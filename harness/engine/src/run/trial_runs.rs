//! Runs the trials of one scenario in parallel: with new processes, or with a target that is forked where that is faster
//! and makes no difference. Starts no more of them once one has shown enough. Gives no verdict.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use scenarios::{Event, TrialStarts, TrialsPlanned};

use crate::explore::{ColdReason, WarmStart};
use crate::locks::LockExt;
use crate::observe::Reporter;
use crate::plan::Trial;
use crate::run::error::RunError;
use crate::run::forked_envs::{ChosenStart, ForkedEnvs, ForkedTrialsSpec, fork_failure};
use crate::run::trial::{FinishedTrial, TrialContext, run_trial};
use crate::run::trial_comparison::TrialComparison;

/// How often a trial is tried that does not reach the call of its fault.
const MAX_ATTEMPTS: u32 = 3;

/// The trials of one scenario.
#[derive(Clone, Copy)]
pub(super) struct TrialRuns<'a> {
    pub(super) context: TrialContext<'a>,
    pub(super) planned: TrialsPlanned,
    pub(super) warm: &'a WarmStart,
    pub(super) jobs: usize,
    /// Once it returns `true`, no trial starts any more.
    pub(super) cancelled: fn() -> bool,
    /// Whether what this trial shows is enough, so that no other one has to start.
    pub(super) is_enough: &'a (dyn Fn(&FinishedTrial) -> bool + Sync),
    /// A directory of the scenario, by its name.
    pub(super) dir: &'a (dyn Fn(&str) -> PathBuf + Sync),
    pub(super) reporter: &'a Reporter,
}

/// The trials that have ended.
pub(super) struct EndedTrials {
    pub(super) trials: Vec<FinishedTrial>,
    /// The one that shows enough. Those that had not started by then do not run.
    pub(super) enough: Option<u32>,
}

/// What is known of the trials that are forked.
struct ForkedRuns<'a, 'e> {
    runs: TrialRuns<'a>,
    envs: &'a ForkedEnvs<'e>,
    comparison: TrialComparison<'a>,
    progress: Mutex<ForkedProgress>,
}

#[derive(Default)]
struct ForkedProgress {
    compared: u64,
    /// Why forks are not to be trusted.
    refused: Option<ColdReason>,
}

impl TrialRuns<'_> {
    /// Runs the trials until they are cancelled or one shows enough. Of a trial that was cut off nothing is known.
    ///
    /// # Errors
    /// If the harness cannot do its work.
    pub(super) fn run(self, trials: &[Trial]) -> Result<EndedTrials, RunError> {
        let chosen = match self.context.recorded {
            Some(recorded) => ForkedTrialsSpec {
                scenario: self.context.scenario,
                config: self.context.config,
                recorded,
                warm: self.warm,
                baseline_seconds: self.context.baseline.facts.seconds,
                trials: trials.len(),
                jobs: self.jobs,
            }
            .choose((self.dir)("forked"))?,
            None => ChosenStart::NewProcesses { why: None },
        };
        let trials: Vec<&Trial> = trials.iter().collect();
        match chosen {
            ChosenStart::Forked(envs) => self.run_forked(&trials, envs),
            ChosenStart::NewProcesses { why } => {
                let ended = self.run_new(&trials)?;
                why.into_iter().for_each(|why| self.emit_new_processes(&why, 0));
                Ok(ended)
            }
        }
    }

    /// Runs the trials side by side. `run` gives none for a trial of which nothing is known.
    fn run_side_by_side(
        self,
        trials: &[&Trial],
        run: impl Fn(&Trial) -> Result<Option<FinishedTrial>, RunError> + Sync,
    ) -> Result<EndedTrials, RunError> {
        let enough = OnceLock::new();
        let run = |trial: &&Trial| {
            let finished = run(trial)?;
            // Of two at the same time, one is named.
            let is_first = |finished: &&FinishedTrial| enough.get().is_none() && (self.is_enough)(finished);
            if let Some(first) = finished.as_ref().filter(is_first) {
                let _ = enough.set(first.number);
            }
            Ok(finished)
        };
        let may_start = |_: &&&Trial| !(self.cancelled)() && enough.get().is_none();
        let ended = trials.par_iter().filter(may_start).map(run).collect::<Result<Vec<_>, RunError>>()?;
        Ok(EndedTrials { trials: ended.into_iter().flatten().collect(), enough: enough.into_inner() })
    }

    fn emit_new_processes(self, why: &ColdReason, discarded: u64) {
        let starts = TrialStarts::NewProcesses { why: why.to_string(), discarded };
        self.reporter.emit(Event::TrialStarts(starts));
    }

    /// Runs each trial with new processes.
    fn run_new(self, trials: &[&Trial]) -> Result<EndedTrials, RunError> {
        self.run_side_by_side(trials, |trial| {
            let finished = self.run_until_reached(trial, |attempt, reporter| {
                let dir = (self.dir)(&format!("{}-{attempt}", trial.number));
                run_trial(dir, self.context, trial, None, reporter)
            });
            self.unless_cut_off(finished)
        })
    }

    /// Runs each trial with a forked target, and all of them again if that makes a difference.
    fn run_forked(self, trials: &[&Trial], envs: ForkedEnvs<'_>) -> Result<EndedTrials, RunError> {
        let TrialContext { scenario, baseline, .. } = self.context;
        let forked = ForkedRuns {
            runs: TrialRuns { ..self },
            envs: &envs,
            comparison: TrialComparison::new(scenario, &baseline.facts, self.planned),
            progress: Mutex::default(),
        };
        let ended = self.run_side_by_side(trials, |trial| forked.run(trial));
        let ForkedProgress { compared, refused } = forked.progress.into_unlocked();
        envs.close()?;
        let ended = ended?;
        let count = ended.trials.len() as u64;
        let Some(why) = refused else {
            self.reporter.emit(Event::TrialStarts(TrialStarts::Forked { trials: count, compared }));
            return Ok(ended);
        };
        let discard =
            |trial: &FinishedTrial| self.reporter.for_trial(trial.number).emit(Event::TrialDiscarded);
        ended.trials.iter().for_each(discard);
        let ended = self.run_new(trials)?;
        self.emit_new_processes(&why, count);
        Ok(ended)
    }

    /// Runs a trial until it reaches the calls of its faults, and emits its end. With threads, the n-th call may not
    /// come in each attempt.
    fn run_until_reached(
        self,
        trial: &Trial,
        run: impl Fn(u32, &Reporter) -> Result<FinishedTrial, RunError>,
    ) -> Result<FinishedTrial, RunError> {
        let mut attempt = 1;
        loop {
            let reporter = self.reporter.for_trial(trial.number);
            let finished = run(attempt, &reporter)?;
            let not_reached = finished.facts.not_effective.iter().find(|fault| fault.not_reached);
            match not_reached.filter(|_| attempt < MAX_ATTEMPTS) {
                Some(fault) => reporter.emit(Event::TrialRepeated { why: fault.to_string() }),
                None => {
                    reporter.emit(Event::TrialEnded(Box::new(finished.facts.clone())));
                    return Ok(finished);
                }
            }
            attempt += 1;
        }
    }

    /// The trial. `None`: it was cut off by an interruption, so nothing is known of it.
    fn unless_cut_off(self, run: Result<FinishedTrial, RunError>) -> Result<Option<FinishedTrial>, RunError> {
        match run {
            Err(_) if (self.cancelled)() => Ok(None),
            run => run.map(Some),
        }
    }
}

impl ForkedRuns<'_, '_> {
    /// Runs one trial with a forked target, and with new processes if it is compared. `None`: there is no result, because
    /// forks are not to be trusted or the trial was cut off.
    fn run(&self, trial: &Trial) -> Result<Option<FinishedTrial>, RunError> {
        if self.progress.locked().refused.is_some() {
            return Ok(None);
        }
        let reporter = self.runs.reporter.for_trial(trial.number);
        let dir = (self.runs.dir)(&format!("{}-forked", trial.number));
        let finished = run_trial(dir, self.runs.context, trial, Some(self.envs), &reporter);
        let finished = match finished {
            Err(_) if (self.runs.cancelled)() => return Ok(None),
            Err(error) => {
                let why = fork_failure(error)?;
                reporter.emit(Event::TrialRepeated { why: why.to_string() });
                self.progress.locked().refused.get_or_insert(why);
                return Ok(None);
            }
            Ok(finished) => finished,
        };
        reporter.emit(Event::TrialEnded(Box::new(finished.facts.clone())));
        if self.comparison.takes(&finished) && !(self.runs.cancelled)() {
            match self.compare(trial, &finished) {
                Err(_) if (self.runs.cancelled)() => {}
                compared => compared?,
            }
        }
        Ok(Some(finished))
    }

    fn compare(&self, trial: &Trial, forked: &FinishedTrial) -> Result<(), RunError> {
        let difference = self.comparison.difference(forked, |nth| {
            let dir = (self.runs.dir)(&format!("{}-compared-{nth}", trial.number));
            run_trial(dir, self.runs.context, trial, None, &self.runs.reporter.for_unreported_run())
        })?;
        let mut progress = self.progress.locked();
        match difference {
            None => progress.compared += 1,
            Some(why) => drop(progress.refused.get_or_insert(why)),
        }
        Ok(())
    }
}
