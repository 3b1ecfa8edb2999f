//! Judges a recovery by its output and its exit status. Pure; does not know how the recovery was run.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use scenarios::{BaselineProgress, FailedRun, Outcome, OutputLine, OutputStream, RecoveryCheck};

use super::recorded_jobs::RecordedJobs;
use crate::announcements::{Announcement, AnnouncementPatterns, error_line, plain_line};
use crate::explore::record::{Op, OpEffect, Recording};
use crate::judge::{JobLedger, RecoveryFault};
use crate::sandbox::{CompletedCommand, ProcessExit};

/// The last step of a run that ended before the end that the baseline run reached.
struct LastSteps {
    step: u64,
    baseline: u64,
}

/// The outcome of a recovery of several jobs.
pub(crate) struct JudgedJobs {
    pub(crate) outcome: Outcome,
    /// What is wrong with a job, in words.
    pub(crate) fault: Option<String>,
}

/// How the output of a target is judged. Each pattern is applied line by line.
#[derive(Debug, Clone, Default)]
pub struct JudgeSpec {
    /// A line that acknowledges a step as durable; with a group `step`.
    pub saved: Option<Regex>,
    /// A line that reports the step that a recovery resumed from; with a group `step`.
    pub resumed: Option<Regex>,
    /// A line that reports a trained step; with a group `step`.
    pub step: Option<Regex>,
    /// A line with one group: a value that must be the same at the end as in the baseline run.
    pub same: Option<Regex>,
    /// A line that reports what a step consumed, such as a digest of its batch; with groups `step` and
    /// `value`.
    pub consumed: Option<Regex>,
    /// Exit codes by which the target refuses to resume, as documented.
    pub refused_exits: Vec<i32>,
    /// Whether the command is known to do several jobs, even if the recorded run had only one to do.
    pub has_several_jobs: bool,
}

/// What one step consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumedStep {
    /// The number of the step.
    pub step: u64,
    /// Such as a digest of its batch.
    pub value: String,
}

/// The values of the baseline run with which recoveries are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaselineValues {
    /// The last value that the pattern `same` found.
    pub final_value: Option<String>,
    /// What each step consumed. Several jobs and several processes have steps with the same numbers.
    pub consumed: BTreeMap<u64, BTreeSet<String>>,
    /// The last step that it trained.
    pub last_step: Option<u64>,
}

/// What the recovery from one crash state did.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveryResult {
    /// How it ended. `None`: it exceeded its time limit.
    pub ended: Option<ProcessExit>,
    /// The step that it reported to resume from.
    pub resumed_step: Option<u64>,
    /// The first step that it trained.
    pub first_step: Option<u64>,
    /// The last step that it trained.
    pub last_step: Option<u64>,
    /// The last value that the pattern `same` found.
    pub final_value: Option<String>,
    /// What each step consumed, in the order of the output.
    pub consumed: Vec<ConsumedStep>,
    /// The first step that it left out or did again, in words.
    pub order_fault: Option<String>,
    /// What it announced of its jobs, if the recorded run did several.
    pub announcements: Vec<Announcement>,
    /// How the check ended. `None`: no check was run.
    pub check_ended: Option<ProcessExit>,
    /// Whether processes of the recovery were still running when the wait for them was over. They were killed.
    pub left_processes: bool,
    /// The line of the output that best explains the result; it may be empty.
    pub message: String,
    /// The last lines of the recovery, or of its check, if one of them did not exit with 0. Else empty.
    pub last_lines: Vec<OutputLine>,
}

impl JudgeSpec {
    /// The lines that tell how far a run has come.
    fn announcements(&self) -> AnnouncementPatterns {
        AnnouncementPatterns {
            step: self.step.clone().or_else(|| self.consumed.clone()),
            resumed: self.resumed.clone(),
            ..AnnouncementPatterns::default()
        }
    }

    /// The lines that tell what becomes of several jobs.
    fn job_announcements(&self) -> AnnouncementPatterns {
        AnnouncementPatterns { saved: self.saved.clone(), same: self.same.clone(), ..self.announcements() }
    }

    /// Follows a run that printed this text.
    fn follow<'a>(&self, text: &str, baseline: &'a BaselineProgress) -> JobLedger<'a> {
        let patterns = self.announcements();
        let mut ledger = JobLedger::new(baseline);
        ledger.on_start(1);
        let announced = text.lines().flat_map(|line| patterns.parse(line));
        announced.for_each(|announcement| ledger.on_announcement(&announcement));
        ledger
    }

    /// All patterns.
    pub fn patterns(&self) -> Vec<Regex> {
        let JudgeSpec { saved, resumed, step, same, consumed, .. } = self;
        [saved, resumed, step, same, consumed].into_iter().flatten().cloned().collect()
    }

    /// What each step consumed, in the order of the output.
    fn consumed(&self, text: &str) -> Vec<ConsumedStep> {
        let Some(pattern) = &self.consumed else { return Vec::new() };
        let matches = text.lines().filter_map(|line| pattern.captures(line));
        matches
            .filter_map(|captures| {
                let step = captures.name("step")?.as_str().parse().ok()?;
                Some(ConsumedStep { step, value: captures.name("value")?.as_str().to_owned() })
            })
            .collect()
    }

    /// The last step that was trained, by a line about the step or about what it consumed.
    fn last_step(&self, text: &str) -> Option<u64> {
        let pattern = self.step.as_ref().or(self.consumed.as_ref())?;
        let captures = text.lines().rev().find_map(|line| pattern.captures(line))?;
        captures.name("step")?.as_str().parse().ok()
    }

    /// The last value that the pattern `same` finds.
    fn final_value(&self, text: &str) -> Option<String> {
        let pattern = self.same.as_ref()?;
        let captures = text.lines().rev().find_map(|line| pattern.captures(line))?;
        let group = captures.name("value").or_else(|| captures.get(1)).or_else(|| captures.get(0))?;
        Some(group.as_str().to_owned())
    }
}

/// Judges recoveries by comparing them with the baseline run.
#[derive(Debug, Clone, Default)]
pub struct OutputOracle {
    spec: JudgeSpec,
    baseline: BaselineValues,
    progress: BaselineProgress,
    /// The jobs of the baseline run, if it did several.
    jobs: Option<RecordedJobs>,
    /// Whether anything but the exit code can tell whether a recovery is right.
    has_checks: bool,
}

impl OutputOracle {
    /// An oracle that compares recoveries with a run that printed `baseline_output`. `checks`: what can tell
    /// whether a recovery is right. Without any, no recovery is judged by its exit code 0 alone.
    pub fn new(spec: JudgeSpec, checks: &[RecoveryCheck], baseline_output: &str) -> OutputOracle {
        let baseline_output = &plain_line(baseline_output);
        let progress = spec.follow(baseline_output, &BaselineProgress::default()).into_progress();
        let mut consumed: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for ConsumedStep { step, value } in spec.consumed(baseline_output) {
            consumed.entry(step).or_default().insert(value);
        }
        let (final_value, last_step) = (spec.final_value(baseline_output), spec.last_step(baseline_output));
        let baseline = BaselineValues { final_value, consumed, last_step };
        OutputOracle { spec, baseline, progress, jobs: None, has_checks: !checks.is_empty() }
    }

    /// The same for this recorded run: if it did several jobs, each is held to its own promises.
    pub(crate) fn with_jobs_of(self, recording: &Recording) -> OutputOracle {
        let (patterns, is_known) = (self.spec.job_announcements(), self.spec.has_several_jobs);
        OutputOracle { jobs: RecordedJobs::of(recording, patterns, is_known), ..self }
    }

    /// Whether the baseline run did several jobs.
    pub(crate) fn has_several_jobs(&self) -> bool {
        self.jobs.is_some()
    }

    /// The patterns of the lines by which a recovery is judged.
    pub(super) fn line_patterns(&self) -> Vec<String> {
        self.spec.patterns().iter().map(|pattern| pattern.as_str().to_owned()).collect()
    }

    /// The values of the baseline run.
    pub fn baseline(&self) -> &BaselineValues {
        &self.baseline
    }

    /// An option with the pattern of values that the baseline run did not print. `may_be_done`: it is a recovery,
    /// which may have had no step left to do.
    pub fn option_without_values(&self, may_be_done: bool) -> Option<&'static str> {
        if self.spec.step.is_some() && self.progress.first_step.is_none() && !may_be_done {
            return Some("--step");
        }
        if self.spec.same.is_some() && self.baseline.final_value.is_none() {
            return Some("--same");
        }
        let lacks_consumed = self.spec.consumed.is_some() && self.baseline.consumed.is_empty();
        lacks_consumed.then_some("--consumed")
    }

    /// Reads what a recovery and its check printed.
    pub fn observe(&self, recovery: &CompletedCommand, check: Option<&CompletedCommand>) -> RecoveryResult {
        let output = recovery.watched_lines.join("\n");
        let first_step_of = |pattern: &Option<Regex>| {
            let captures = output.lines().find_map(|line| pattern.as_ref()?.captures(line))?;
            Some(captures.name("step").map_or(Ok(0), |step| step.as_str().parse()).unwrap_or(0))
        };
        let failed_check = check.filter(|check| check.exit != Some(ProcessExit::Exited(0)));
        let explaining = failed_check.unwrap_or(recovery);
        let message = error_line(&explaining.stdout, &explaining.stderr);
        let failed = failed_check.or(Some(recovery).filter(|run| run.exit != Some(ProcessExit::Exited(0))));
        RecoveryResult {
            ended: recovery.exit,
            resumed_step: first_step_of(&self.spec.resumed),
            first_step: first_step_of(&self.spec.step),
            last_step: self.spec.last_step(&output),
            final_value: self.spec.final_value(&output),
            consumed: self.spec.consumed(&output),
            announcements: self.jobs.as_ref().map(|jobs| jobs.announcements(&output)).unwrap_or_default(),
            order_fault: self.order_fault(&output).filter(|_| recovery.watched_left_out == 0),
            check_ended: check.and_then(|check| check.exit.or(Some(ProcessExit::Signalled(9)))),
            left_processes: recovery.exit.is_some() && recovery.left_processes,
            message,
            last_lines: failed.map(last_lines).unwrap_or_default(),
        }
    }

    /// The first step that was left out or done again since the resume.
    fn order_fault(&self, output: &str) -> Option<String> {
        Some(self.spec.follow(output, &self.progress).order_fault()?.to_string())
    }

    /// The first step that consumed something else than in the baseline run: samples were repeated or
    /// skipped.
    fn first_divergence<'r>(&self, result: &'r RecoveryResult) -> Option<&'r ConsumedStep> {
        let diverges = |consumed: &&ConsumedStep| {
            let expected = self.baseline.consumed.get(&consumed.step);
            expected.is_some_and(|expected| !expected.contains(&consumed.value))
        };
        result.consumed.iter().find(diverges)
    }

    /// The last step, if it is before the one with which the baseline run ended. A recovery that says nothing of
    /// its steps may have had nothing left to do.
    fn early_end(&self, result: &RecoveryResult) -> Option<LastSteps> {
        let (step, baseline) = (result.last_step.max(result.resumed_step)?, self.baseline.last_step?);
        (step < baseline).then_some(LastSteps { step, baseline })
    }

    /// Replaces the message where the recovery ended with exit code 0, but not as the baseline run.
    pub(super) fn with_explanation(&self, result: RecoveryResult) -> RecoveryResult {
        let finals = (&result.final_value, &self.baseline.final_value);
        let message = match (self.first_divergence(&result), finals) {
            _ if result.ended != Some(ProcessExit::Exited(0)) => None,
            (None, _) if self.jobs.is_some() => result.order_fault.clone(),
            (Some(ConsumedStep { step, value }), _) => {
                let expected: Vec<&str> = self.baseline.consumed[step].iter().map(String::as_str).collect();
                let expected = expected.join("` or `");
                Some(format!("step {step} consumed `{value}`, but `{expected}` in the baseline run"))
            }
            (None, (Some(value), Some(expected))) if value != expected => {
                Some(format!("ended with `{value}`, but with `{expected}` in the baseline run"))
            }
            _ => self
                .early_end(&result)
                .map(|early| {
                    format!(
                        "ended after step {}, and the baseline run after step {}",
                        early.step, early.baseline
                    )
                })
                .or_else(|| result.order_fault.clone()),
        };
        match message {
            Some(message) => RecoveryResult { message, ..result },
            None => result,
        }
    }

    /// Takes the final value from the output before the crash if the recovery printed none: it may have found
    /// nothing left to do.
    pub(super) fn with_value_before_crash(
        &self,
        result: RecoveryResult,
        recording: &Recording,
        op_count: usize,
    ) -> RecoveryResult {
        if result.final_value.is_some() || self.spec.same.is_none() || self.jobs.is_some() {
            return result;
        }
        let value = |op: &Op| match &op.effect {
            OpEffect::Output { line, on_stdio: true, .. } => self.spec.final_value(line),
            _ => None,
        };
        let final_value = recording.ops[..op_count].iter().rev().find_map(value);
        RecoveryResult { final_value, ..result }
    }

    /// The outcome of a recovery. `acknowledged`: the acknowledged step at the crash point.
    pub fn judge(&self, result: &RecoveryResult, acknowledged: Option<u64>) -> Outcome {
        let outcome = self.bad_end(result).unwrap_or_else(|| self.compare(result, acknowledged));
        self.as_far_as_checked(outcome)
    }

    /// The outcome of a recovery from a crash after `op_count` operations, and what is wrong with one of its jobs if
    /// the baseline run did several.
    pub(super) fn judge_jobs(&self, result: &RecoveryResult, op_count: usize) -> Option<JudgedJobs> {
        let jobs = self.jobs.as_ref()?;
        let fault = match self.bad_end(result) {
            Some(outcome) => return Some(JudgedJobs { outcome, fault: None }),
            None => jobs.fault(&result.announcements, op_count),
        };
        Some(match fault {
            Some(RecoveryFault { outcome, what }) => JudgedJobs { outcome, fault: Some(what) },
            None if result.order_fault.is_some() => JudgedJobs { outcome: Outcome::Corrupt, fault: None },
            None => JudgedJobs { outcome: self.as_far_as_checked(Outcome::Recovered), fault: None },
        })
    }

    fn as_far_as_checked(&self, outcome: Outcome) -> Outcome {
        if outcome == Outcome::Recovered && !self.has_checks { Outcome::NotJudged } else { outcome }
    }

    /// The outcome that no promise and no final value can change.
    fn bad_end(&self, result: &RecoveryResult) -> Option<Outcome> {
        match result.ended {
            None => return Some(Outcome::Hung),
            Some(ProcessExit::Exited(0)) => {}
            Some(ProcessExit::Exited(code)) if self.spec.refused_exits.contains(&code) => {
                return Some(Outcome::Refused);
            }
            Some(_) => return Some(Outcome::Crashed),
        }
        let has_failed_check = result.check_ended.is_some_and(|check| check != ProcessExit::Exited(0));
        (has_failed_check || self.first_divergence(result).is_some()).then_some(Outcome::Corrupt)
    }

    /// The outcome of a recovery that ended well, as far as it was checked.
    fn compare(&self, result: &RecoveryResult, acknowledged: Option<u64>) -> Outcome {
        // A value that is missing at an end that comes too early is no wrong value.
        let is_missing = result.final_value.is_none() && self.early_end(result).is_some();
        if self.spec.same.is_some() && result.final_value != self.baseline.final_value && !is_missing {
            return Outcome::Corrupt;
        }
        match acknowledged.map(|acknowledged| self.compare_resume(result, acknowledged)) {
            None | Some(Outcome::Recovered) if self.early_end(result).is_some() => Outcome::EndedEarly,
            None | Some(Outcome::Recovered) if result.order_fault.is_some() => Outcome::Corrupt,
            None => Outcome::Recovered,
            Some(outcome) => outcome,
        }
    }

    /// The outcome by the step that the recovery resumed from.
    fn compare_resume(&self, result: &RecoveryResult, acknowledged: u64) -> Outcome {
        if self.spec.resumed.is_none() {
            return Outcome::Recovered;
        }
        // Without a line about resuming, the first trained step shows it. No trained step: nothing was left
        // to do.
        let resumed = match (result.resumed_step, &self.spec.step) {
            (None, Some(_)) => result.first_step.map_or(Some(acknowledged), |step| step.checked_sub(1)),
            (resumed, _) => resumed,
        };
        match resumed {
            None | Some(0) if acknowledged > 0 => Outcome::Restarted,
            Some(step) if step < acknowledged => Outcome::LostWork,
            _ => Outcome::Recovered,
        }
    }
}

/// The last lines of both outputs.
fn last_lines(completed: &CompletedCommand) -> Vec<OutputLine> {
    let outputs = [(OutputStream::Stdout, &completed.stdout), (OutputStream::Stderr, &completed.stderr)];
    let lines = outputs.into_iter().flat_map(|(stream, output)| {
        output.lines().map(move |line| OutputLine { stream, line: line.to_owned() })
    });
    FailedRun::last_of(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oracle(step: Option<&str>) -> OutputOracle {
        let regex = |text| Regex::new(text).ok();
        let spec = JudgeSpec {
            resumed: regex(r"resumed (?<step>\d+)"),
            step: step.and_then(regex),
            same: regex(r"sum (\w+)"),
            consumed: regex(r"^step (?<step>\d+) batch (?<value>\w+)"),
            refused_exits: vec![12],
            ..JudgeSpec::default()
        };
        OutputOracle::new(spec, &RecoveryCheck::ALL, "step 11 batch b11\nstep 12 batch b12\nsum abc")
    }

    fn completed(stdout: &str, exit: Option<ProcessExit>) -> CompletedCommand {
        let watched_lines = stdout.lines().map(str::to_owned).collect();
        let (stdout, stderr) = (stdout.into(), String::new());
        CompletedCommand { exit, stdout, stderr, watched_lines, watched_left_out: 0, left_processes: false }
    }

    fn check(stdout: &str, exit: Option<ProcessExit>, outcome: Outcome) {
        let completed = completed(stdout, exit);
        let oracle = oracle(None);
        let result = oracle.observe(&completed, None);
        assert_eq!(oracle.judge(&result, Some(10)), outcome, "{stdout}");
    }

    #[test]
    fn each_exit_and_output_gives_its_outcome() {
        let success = Some(ProcessExit::Exited(0));
        check("resumed 12\nsum abc", success, Outcome::Recovered);
        check("resumed 10\nstep 12 batch b12\nsum abc", success, Outcome::Corrupt);
        check(
            "resumed 10\nstep 11 batch b11\nstep 11 batch b11\nstep 12 batch b12\nsum abc",
            success,
            Outcome::Corrupt,
        );
        check("resumed 10\nsum abc", success, Outcome::EndedEarly);
        check("resumed 5\nsum abc", success, Outcome::LostWork);
        check("sum abc", success, Outcome::Restarted);
        check("resumed 0\nsum abc", success, Outcome::Restarted);
        check("resumed 10\nsum abd", success, Outcome::Corrupt);
        check("resumed 12", success, Outcome::Corrupt);
        check("", Some(ProcessExit::Exited(12)), Outcome::Refused);
        check("", Some(ProcessExit::Exited(1)), Outcome::Crashed);
        check("", Some(ProcessExit::Signalled(11)), Outcome::Crashed);
        check("", None, Outcome::Hung);
        check("resumed 10\nstep 11 batch b11\nstep 12 batch b12\nsum abc", success, Outcome::Recovered);
        check("resumed 10\nstep 11 batch b12\nsum abc", success, Outcome::Corrupt);
        check("resumed 10\nstep 11 batch b11\nsum abc", success, Outcome::EndedEarly);
        check("resumed 10\nstep 11 batch b11", success, Outcome::EndedEarly);
    }

    #[test]
    fn exit_code_0_alone_is_not_judged_and_every_other_ending_is() {
        let spec = JudgeSpec { refused_exits: vec![12], ..JudgeSpec::default() };
        let outcome = |checks: &[RecoveryCheck], exit| {
            let oracle = OutputOracle::new(spec.clone(), checks, "");
            oracle.judge(&oracle.observe(&completed("", exit), None), Some(3))
        };
        let exited = |code| Some(ProcessExit::Exited(code));
        assert_eq!(outcome(&[], exited(0)), Outcome::NotJudged);
        assert_eq!(outcome(&[RecoveryCheck::CheckCommand], exited(0)), Outcome::Recovered);
        for checks in [&[][..], &RecoveryCheck::ALL] {
            assert_eq!(outcome(checks, exited(1)), Outcome::Crashed);
            assert_eq!(outcome(checks, Some(ProcessExit::Signalled(9))), Outcome::Crashed);
            assert_eq!(outcome(checks, exited(12)), Outcome::Refused);
            assert_eq!(outcome(checks, None), Outcome::Hung);
        }
    }

    #[test]
    fn with_a_step_pattern_a_silent_restart_differs_from_a_finished_run() {
        let oracle = oracle(Some(r"^step (?<step>\d+)"));
        let outcome = |stdout: &str| {
            let completed = completed(stdout, Some(ProcessExit::Exited(0)));
            oracle.judge(&oracle.observe(&completed, None), Some(10))
        };
        assert_eq!(outcome("sum abc"), Outcome::Recovered);
        assert_eq!(outcome("step 11\nstep 12\nsum abc"), Outcome::Recovered);
        assert_eq!(outcome("step 11\nsum abc"), Outcome::EndedEarly);
        assert_eq!(outcome("step 6\nsum abc"), Outcome::LostWork);
        assert_eq!(outcome("step 1\nsum abc"), Outcome::Restarted);
        assert_eq!(outcome("resumed 10\nstep 11\nstep 12\nsum abc"), Outcome::Recovered);
    }
}
