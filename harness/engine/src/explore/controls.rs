//! Controls: recoveries from undamaged files, before any crash state is tried. A target that does not recover
//! from these would fail in crash states too, and not because of the crash. Each starts a new process, except one
//! that has noted its imports. Several run at the same time; one that fails is run again alone. Knows no causes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use scenarios::{Control, ControlFiles, FailedRun, Outcome, RecoveryCheck, UndisturbedCommand};

use super::error::{ExploreBaselineError, ExploreError, ValueDifference};
use super::explore_config::ExploreConfig;
use super::record::{Op, OpEffect, Recording};
use super::replay::{
    OutputOracle, RecoveryLimit, RecoveryResult, RecoveryWorker, ReplaySpec, Replayer, ResumeDifference,
    TriedControl, WarmStart, WorkerName, is_acceptable,
};
use super::report::{is_newest_pruned, kind_of_message, without_leftover_names};
use super::states::{CrashCandidate, StateName};
use crate::locks::LockExt;
use crate::sandbox::ProcessExit;

/// At most this many saves have a control: the first, the last, and some between them.
const MAX_SAVE_CONTROLS: usize = 5;
/// At most this many later moments are tried to see whether a save was only acknowledged too early: until the next
/// one is acknowledged.
const MAX_LATER_MOMENTS: usize = 6;
/// And at most this many after that.
const MAX_MUCH_LATER_MOMENTS: usize = 4;

/// The controls of an exploration.
#[derive(Debug, Default)]
pub(super) struct Controls {
    pub(super) tried: Vec<TriedControl>,
    /// How many saves have no control.
    pub(super) left_out: usize,
}

impl Controls {
    /// The controls as they are stored and reported.
    pub(super) fn reported(&self) -> Vec<Control> {
        let reported = self.tried.iter().map(|control| Control {
            files: control.files,
            outcome: control.outcome,
            state: StateName { crash: None, candidate: control.candidate.clone(), contents: None }
                .to_string(),
        });
        reported.collect()
    }
}

/// What the controls of an exploration are made from.
#[derive(Clone, Copy)]
pub(super) struct ControlSpec<'a> {
    pub(super) config: &'a ExploreConfig,
    pub(super) recording: &'a Recording,
    pub(super) oracle: &'a OutputOracle,
    /// Whether the recorded run printed a line about resuming, so that the pattern is known to be right.
    pub(super) baseline_reports_resume: bool,
}

/// Recoveries from undamaged files that did what they should, by the digest of the files.
pub(super) type KnownRecoveries = HashMap<[u8; 16], RecoveryResult>;

impl ControlSpec<'_> {
    /// Runs the controls beside each other, to spare time: those that do what they should are then known. With
    /// `is_noting`, the recovery from the first files runs elsewhere.
    ///
    /// # Errors
    /// A sandbox failed, or a file could not be written.
    pub(super) fn run_early(self, jobs: usize, is_noting: bool) -> Result<KnownRecoveries, ExploreError> {
        let ops = self.moments().chosen.into_iter().map(|moment| moment.op_count);
        let start = Some(0).filter(|_| !is_noting && self.checks_start());
        let replay = self.replay();
        let replayer = Replayer::new(&replay, self.oracle, self.recording);
        let mut digests = BTreeSet::new();
        let all = start.into_iter().chain(ops).map(CrashCandidate::whole);
        let all = all.map(|candidate| (replayer.digest_of(&candidate), candidate));
        let different: Vec<_> = all.filter(|(digest, _)| digests.insert(*digest)).collect();
        let jobs = jobs.min(different.len());
        let (waiting, known) = (Mutex::new(different.into_iter()), Mutex::new(HashMap::new()));
        let has_failing = AtomicBool::new(false);
        let work = |number: usize| -> Result<(), ExploreError> {
            let mut worker = replayer.worker(WorkerName::Control(number))?;
            loop {
                let next = waiting.locked().next();
                let is_over = replayer.is_over() || has_failing.load(Ordering::Relaxed);
                let Some((digest, candidate)) = next.filter(|_| !is_over) else { break };
                let result = replayer.result_of(&mut worker, &candidate, RecoveryLimit::Usual)?;
                if is_acceptable(replayer.judge_at_crash_point(&result, &candidate)) {
                    known.locked().insert(digest, result);
                } else {
                    // It may be the first of many.
                    has_failing.store(true, Ordering::Relaxed);
                }
            }
            worker.close()
        };
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (0..jobs).map(|number| scope.spawn(move || work(number))).collect();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<(), ExploreError>>| {
                thread.join().unwrap_or(Err(ExploreError::WorkerClosed))
            };
            threads.into_iter().try_for_each(ended)
        })?;
        Ok(known.into_unlocked())
    }

    fn replay(self) -> ReplaySpec {
        ReplaySpec { warm: WarmStart::Never, jobs: 1, ..self.config.replay.clone() }
    }

    /// Whether the command has to give the same result twice.
    fn checks_start(self) -> bool {
        self.config.enumerate.only_state.is_none() && self.config.resumes_with_command()
    }

    /// Runs the controls. `known`: recoveries that have already run.
    ///
    /// # Errors
    /// `BaselineFailed`: the recovery does not even succeed from the files before the run, or nothing tells
    /// whether recoveries resume. Every other error: the harness failed.
    pub(super) fn run(self, known: KnownRecoveries) -> Result<Controls, ExploreError> {
        let moments = self.moments();
        if moments.chosen.is_empty() {
            return Ok(Controls::default());
        }
        let replay = self.replay();
        let replayer = Replayer::new(&replay, self.oracle, self.recording);
        let mut run = ControlRun { spec: self, replayer: &replayer, worker: None, known };
        let is_whole = self.config.enumerate.only_state.is_none();
        if self.checks_start() {
            run.check_start()?;
        }
        let mut tried = Vec::new();
        for moment in &moments.chosen {
            tried.push(run.try_control(*moment)?);
        }
        if is_whole {
            run.check_resume_command(&tried)?;
            self.check_resume_is_reported(&tried)?;
        }
        run.find_own_failures(&mut tried)?;
        run.worker.map_or(Ok(()), RecoveryWorker::close)?;
        Ok(Controls { tried, left_out: moments.left_out })
    }

    /// The moments at which the files are undamaged and the target has to recover from them.
    fn moments(self) -> ControlMoments {
        let ops = &self.recording.ops;
        let saves = ops.iter().enumerate().filter_map(|(index, op)| match op.effect {
            OpEffect::Output { saved_step: Some(step), .. } => {
                Some(ControlMoment { op_count: index + 1, files: ControlFiles::Saved { step } })
            }
            _ => None,
        });
        let saves: Vec<ControlMoment> = saves.collect();
        let finished = ControlMoment { op_count: ops.len(), files: ControlFiles::Finished };
        if let Some(state) = &self.config.enumerate.only_state {
            let mut all = saves.into_iter().chain([finished]);
            let only = all.find(|moment| CrashCandidate::whole(moment.op_count) == state.candidate);
            return ControlMoments { chosen: only.into_iter().collect(), left_out: 0 };
        }
        if self.config.record.first_crash.is_some() {
            return ControlMoments { chosen: Vec::new(), left_out: 0 };
        }
        let chosen = spread(saves.len(), MAX_SAVE_CONTROLS);
        let left_out = saves.len() - chosen.len();
        let chosen = chosen.into_iter().map(|index| saves[index]).chain([finished]).collect();
        ControlMoments { chosen, left_out }
    }

    /// Without any line about resuming, a recovery that resumes and one that starts over look alike.
    fn check_resume_is_reported(self, tried: &[TriedControl]) -> Result<(), ExploreError> {
        let is_needed = self.config.checks().contains(&RecoveryCheck::ResumedStep)
            && self.config.judge.step.is_none()
            && !self.baseline_reports_resume;
        let mut ended_well =
            tried.iter().filter(|control| control.result.ended == Some(ProcessExit::Exited(0))).peekable();
        let is_silent =
            ended_well.peek().is_some() && ended_well.all(|control| control.result.resumed_step.is_none());
        match is_needed && is_silent && self.recording.save_count() > 0 {
            true => Err(ExploreBaselineError::ResumeNotReported.into()),
            false => Ok(()),
        }
    }
}

/// A moment of the recorded run.
#[derive(Debug, Clone, Copy)]
struct ControlMoment {
    op_count: usize,
    files: ControlFiles,
}

struct ControlMoments {
    chosen: Vec<ControlMoment>,
    left_out: usize,
}

/// At most `max` of the indexes below `count`: the first, the last, and others at equal distances.
fn spread(count: usize, max: usize) -> BTreeSet<usize> {
    match count <= max {
        true => (0..count).collect(),
        false => (0..max).map(|nth| nth * (count - 1) / (max - 1).max(1)).collect(),
    }
}

/// Whether a recovery ended with exit code 0, but not as the baseline run.
fn ends_otherwise(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Corrupt | Outcome::EndedEarly)
}

/// Whether a command that ends in this way was probably not understood: the exit codes of a shell that cannot find or
/// start a program, and those for wrong arguments (of most programs, and EX_USAGE of `sysexits.h`).
fn is_unusable_command(ended: ProcessExit) -> bool {
    matches!(ended, ProcessExit::Exited(126 | 127 | 2 | 64))
}

/// The worker of the controls, and what they did.
struct ControlRun<'s, 'a, 'r> {
    spec: ControlSpec<'s>,
    replayer: &'a Replayer<'r>,
    /// `None`: it was not needed yet.
    worker: Option<RecoveryWorker<'a>>,
    known: KnownRecoveries,
}

impl ControlRun<'_, '_, '_> {
    /// What the recovery from these files does. One that exceeds its time limit gets three times the limit.
    fn result_of(&mut self, candidate: &CrashCandidate) -> Result<RecoveryResult, ExploreError> {
        let digest = self.replayer.digest_of(candidate);
        if let Some(known) = self.known.get(&digest) {
            return Ok(known.clone());
        }
        let worker = match &mut self.worker {
            Some(worker) => worker,
            None => self.worker.insert(self.replayer.worker(WorkerName::Control(0))?),
        };
        let mut result = self.replayer.result_of(worker, candidate, RecoveryLimit::Usual)?;
        if result.ended.is_none() {
            result = self.replayer.result_of(worker, candidate, RecoveryLimit::Tripled)?;
        }
        self.known.insert(digest, result.clone());
        Ok(result)
    }

    fn try_control(&mut self, moment: ControlMoment) -> Result<TriedControl, ExploreError> {
        let candidate = CrashCandidate::whole(moment.op_count);
        let result = self.result_of(&candidate)?;
        let acknowledged = self.spec.recording.acknowledged(moment.op_count);
        let judged = self.replayer.judge_with_jobs(&result, &candidate, acknowledged);
        let outcome = judged.outcome;
        let difference = ResumeDifference::of(&result, outcome, self.spec.oracle.baseline());
        Ok(TriedControl {
            files: moment.files,
            acknowledged,
            job_fault: judged.fault,
            candidate,
            result,
            outcome,
            difference,
            fails_by_itself: !is_acceptable(outcome),
        })
    }

    /// Checks that the command gives the same result twice. If it does not, nothing can be compared.
    fn check_start(&mut self) -> Result<(), ExploreError> {
        let candidate = CrashCandidate::whole(0);
        let result = self.result_of(&candidate)?;
        let outcome = self.replayer.judge_at_crash_point(&result, &candidate);
        if !(ends_otherwise(outcome) || matches!(outcome, Outcome::Crashed | Outcome::Hung)) {
            return Ok(());
        }
        let baseline = self.spec.oracle.baseline().final_value.clone();
        let values = ValueDifference { recovery: result.final_value, baseline };
        let difference = Some(values).filter(|values| values.recovery != values.baseline);
        let run = Box::new(FailedRun {
            last_lines: result.last_lines,
            sandbox_hints: self.spec.recording.gaps.sandbox_hints.clone(),
            ..FailedRun::new(UndisturbedCommand::Recovery, ProcessExit::ending(result.ended), Vec::new())
        });
        let files = "the files before the run";
        Err(ExploreBaselineError::RecoveryFailed { files, outcome, run, difference }.into())
    }

    /// Checks that the command of `--resume` does something. If it ends at once, and in the same way without any file,
    /// it is the command that is wrong, and not what the trainer does with its files.
    fn check_resume_command(&mut self, tried: &[TriedControl]) -> Result<(), ExploreError> {
        let Some(first) = tried.first().filter(|_| !self.spec.config.resumes_with_command()) else {
            return Ok(());
        };
        let Some(ending) = first.result.ended.filter(|ended| is_unusable_command(*ended)) else {
            return Ok(());
        };
        let is_alike = |result: &RecoveryResult| {
            result.ended == Some(ending)
                && kind_of_message(&result.message) == kind_of_message(&first.result.message)
        };
        if !tried.iter().all(|control| control.outcome == Outcome::Crashed && is_alike(&control.result)) {
            return Ok(());
        }
        let without_files = self.result_of(&CrashCandidate::whole(0))?;
        match is_alike(&without_files) {
            true => Err(ExploreError::ResumeCommandFails {
                ending: ProcessExit::ending(Some(ending)),
                message: first.result.message.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Finds out which controls do not fail by themselves. One control stands for all with its outcome.
    fn find_own_failures(&mut self, tried: &mut [TriedControl]) -> Result<(), ExploreError> {
        // Then the target does resume, and a save that it does not find before has only been promised too early.
        let finds_save = |control: &TriedControl| {
            !control.is_failing()
                && control.acknowledged.is_some_and(|step| control.result.resumed_step >= Some(step))
        };
        let last_found = tried.iter().rposition(finds_save);
        let recovers = |control: &TriedControl| {
            !control.is_failing() && matches!(control.files, ControlFiles::Saved { .. })
        };
        let some_save_recovers = tried.iter().any(recovers);
        let mut own_failures: HashMap<Outcome, bool> = HashMap::new();
        for (index, control) in tried.iter_mut().enumerate().filter(|(_, control)| control.is_failing()) {
            let starts_over = matches!(control.outcome, Outcome::LostWork | Outcome::Restarted);
            control.fails_by_itself = match control.files {
                ControlFiles::Saved { .. } if starts_over && Some(index) < last_found => {
                    is_newest_pruned(self.spec.recording, &control.candidate)
                }
                ControlFiles::Saved { .. } => match own_failures.get(&control.outcome) {
                    Some(own) => *own,
                    None => {
                        let own = self.fails_by_itself(control)?;
                        own_failures.insert(control.outcome, own);
                        own
                    }
                },
                // The saves were good, so something has changed them since: that is for the crash states to show.
                ControlFiles::Finished => !(some_save_recovers && starts_over),
            };
        }
        Ok(())
    }

    /// Whether neither a name that a killed process has left, nor a promise before the end of the save explains
    /// that this control fails.
    fn fails_by_itself(&mut self, control: &TriedControl) -> Result<bool, ExploreError> {
        if let Some(leftover) = without_leftover_names(self.spec.recording, &control.candidate) {
            let result = self.result_of(&leftover.candidate)?;
            if is_acceptable(self.replayer.judge_at_crash_point(&result, &leftover.candidate)) {
                return Ok(false);
            }
        }
        for op_count in self.later_moments(control) {
            let candidate = CrashCandidate::whole(op_count);
            let result = self.result_of(&candidate)?;
            let is_kept = match result.resumed_step {
                Some(step) => Some(step) == control.acknowledged,
                None => !ends_otherwise(control.outcome),
            };
            let outcome = self.replayer.judge(&result, &candidate, control.acknowledged);
            if is_kept && is_acceptable(outcome) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moments after file operations: until the next save is acknowledged, then a few until the end.
    fn later_moments(&self, control: &TriedControl) -> Vec<usize> {
        let ops = &self.spec.recording.ops;
        let start = control.candidate.op_count as usize;
        let next = ops[start..].iter().position(Op::is_acknowledgement);
        let end = next.map_or(ops.len(), |next| start + next);
        let chosen = |from: usize, to: usize, max: usize| {
            let is_change = |index: &usize| !matches!(ops[*index].effect, OpEffect::Output { .. });
            let later: Vec<usize> = (from..to).filter(is_change).map(|index| index + 1).collect();
            spread(later.len(), max).into_iter().map(move |index| later[index]).collect::<Vec<_>>()
        };
        [chosen(start, end, MAX_LATER_MOMENTS), chosen(end, ops.len(), MAX_MUCH_LATER_MOMENTS)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_first_the_last_and_some_between_are_chosen() {
        let chosen = |count, max| spread(count, max).into_iter().collect::<Vec<_>>();
        assert_eq!(chosen(0, 5), [0; 0]);
        assert_eq!(chosen(5, 5), [0, 1, 2, 3, 4]);
        assert_eq!(chosen(101, 5), [0, 25, 50, 75, 100]);
    }
}
