//! What a recovery did with a state, judged from what it said and how it ended. Pure.

use std::collections::BTreeMap;

use regex::Regex;
use scenarios::Outcome;

use super::recording::{Op, OpEffect, Recording};
use crate::sandbox::{CompletedCommand, ProcessExit};

/// By what a target is judged.
#[derive(Debug, Clone, Default)]
pub struct OutputOracle {
    /// With a group `step`; says that this step is durable now.
    pub saved: Option<Regex>,
    /// With a group `step`; says where it goes on from.
    pub resumed: Option<Regex>,
    /// With a group `step`; says that this step was trained.
    pub step: Option<Regex>,
    /// One group: a value that must be the undisturbed run's at the end.
    pub same: Option<Regex>,
    /// With groups `step` and `value`: what a step consumed, such as a digest of its batch.
    pub consumed: Option<Regex>,
    /// Exit codes of a documented refusal.
    pub refused_exits: Vec<i32>,
}

/// What the undisturbed run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaselineValues {
    pub final_value: Option<String>,
    /// By step.
    pub consumed: BTreeMap<u64, String>,
}

/// What was found out about one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryResult {
    pub ended: Option<ProcessExit>,
    pub resumed_step: Option<u64>,
    /// The first one that it trained.
    pub first_step: Option<u64>,
    pub final_value: Option<String>,
    /// Steps with what they consumed.
    pub consumed: Vec<(u64, String)>,
    /// None: there is no check.
    pub check_ended: Option<ProcessExit>,
    /// The last words of what went wrong, if something did.
    pub message: String,
}

impl OutputOracle {
    pub fn observe(&self, called: &CompletedCommand, check: Option<&CompletedCommand>) -> RecoveryResult {
        let both = format!("{}\n{}", called.stdout, called.stderr);
        let first = |pattern: &Option<Regex>| {
            let found = both.lines().find_map(|line| pattern.as_ref()?.captures(line))?;
            Some(found.name("step").map_or(Ok(0), |step| step.as_str().parse()).unwrap_or(0))
        };
        let check_failed = check.filter(|check| check.exit != Some(ProcessExit::Exited(0)));
        let words = check_failed.map_or_else(|| error_line(called), error_line);
        RecoveryResult {
            ended: called.exit,
            resumed_step: first(&self.resumed),
            first_step: first(&self.step),
            final_value: self.final_value(&both),
            consumed: self.consumed(&both),
            check_ended: check.and_then(|check| check.exit.or(Some(ProcessExit::Signalled(9)))),
            message: words,
        }
    }

    /// What was consumed, step by step.
    pub fn consumed(&self, text: &str) -> Vec<(u64, String)> {
        let Some(pattern) = &self.consumed else { return Vec::new() };
        let found = text.lines().filter_map(|line| pattern.captures(line));
        found
            .filter_map(|found| {
                let step = found.name("step")?.as_str().parse().ok()?;
                Some((step, found.name("value")?.as_str().to_owned()))
            })
            .collect()
    }

    /// A step that did not consume what it did undisturbed: samples were repeated or skipped.
    fn first_divergence(
        &self,
        found: &RecoveryResult,
        expected: &BTreeMap<u64, String>,
    ) -> Option<(u64, String)> {
        let strays = |(step, value): &&(u64, String)| expected.get(step).is_some_and(|was| was != value);
        found.consumed.iter().find(strays).cloned()
    }

    /// Where it ended well, and yet not as undisturbed, the words say so.
    pub(super) fn with_explanation(
        &self,
        found: RecoveryResult,
        expected: &BaselineValues,
    ) -> RecoveryResult {
        let words = match (
            self.first_divergence(&found, &expected.consumed),
            &found.final_value,
            &expected.final_value,
        ) {
            _ if found.ended != Some(ProcessExit::Exited(0)) => None,
            (Some((step, value)), ..) => {
                let was = &expected.consumed[&step];
                Some(format!("step {step} consumed `{value}`, and undisturbed `{was}`"))
            }
            (None, Some(same), Some(was)) if same != was => {
                Some(format!("ended with `{same}`, and undisturbed with `{was}`"))
            }
            _ => None,
        };
        RecoveryResult { message: words.unwrap_or(found.message), ..found }
    }

    /// The last value that `same` finds.
    pub fn final_value(&self, text: &str) -> Option<String> {
        let pattern = self.same.as_ref()?;
        let found = text.lines().rev().find_map(|line| pattern.captures(line))?;
        let group = found.name("value").or_else(|| found.get(1)).or_else(|| found.get(0))?;
        Some(group.as_str().to_owned())
    }

    /// What had been found before the crash stands, where the recovery found nothing left to do.
    pub(super) fn with_value_before_crash(
        &self,
        found: RecoveryResult,
        recording: &Recording,
        k: usize,
    ) -> RecoveryResult {
        if found.final_value.is_some() || self.same.is_none() {
            return found;
        }
        let value = |op: &Op| match &op.effect {
            OpEffect::Output { line, on_stdio: true, .. } => self.final_value(line),
            _ => None,
        };
        let same = recording.ops[..k].iter().rev().find_map(value);
        RecoveryResult { final_value: same, ..found }
    }

    /// `promised`: the newest step that had been called saved.
    pub fn judge(
        &self,
        found: &RecoveryResult,
        promised: Option<u64>,
        undisturbed: &BaselineValues,
    ) -> Outcome {
        match found.ended {
            None => return Outcome::Hung,
            Some(ProcessExit::Exited(0)) => {}
            Some(ProcessExit::Exited(code)) if self.refused_exits.contains(&code) => return Outcome::Refused,
            Some(_) => return Outcome::Crashed,
        }
        if found.check_ended.is_some_and(|check| check != ProcessExit::Exited(0)) {
            return Outcome::Corrupt;
        }
        if self.first_divergence(found, &undisturbed.consumed).is_some() {
            return Outcome::Corrupt;
        }
        if self.same.is_some() && found.final_value != undisturbed.final_value {
            return Outcome::Corrupt;
        }
        let Some(promised) = promised.filter(|_| self.resumed.is_some()) else { return Outcome::Recovered };
        // Without a word on where it goes on from, the first step that it trains tells; none: nothing was left to do.
        let resumed = match (found.resumed_step, &self.step) {
            (None, Some(_)) => found.first_step.map_or(Some(promised), |step| step.checked_sub(1)),
            (resumed, _) => resumed,
        };
        match resumed {
            None | Some(0) if promised > 0 => Outcome::Restarted,
            Some(step) if step < promised => Outcome::LostWork,
            _ => Outcome::Recovered,
        }
    }
}

/// The line that says most: what a panic said, or the last line of standard error, or of standard output.
fn error_line(called: &CompletedCommand) -> String {
    let lines: Vec<&str> = called.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let panic = lines.iter().rposition(|line| line.contains("panicked at")).map(|at| at + 1);
    let last =
        |text: &str| text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    let words = panic.and_then(|at| lines.get(at).map(|line| (*line).to_owned()));
    let words = words.or_else(|| last(&called.stderr)).or_else(|| last(&called.stdout)).unwrap_or_default();
    words.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oracle() -> OutputOracle {
        let regex = |text| Regex::new(text).ok();
        OutputOracle {
            saved: regex(r"saved (?<step>\d+)"),
            resumed: regex(r"resumed (?<step>\d+)"),
            step: None,
            same: regex(r"sum (\w+)"),
            consumed: regex(r"^step (?<step>\d+) batch (?<value>\w+)"),
            refused_exits: vec![12],
        }
    }

    fn baseline() -> BaselineValues {
        let consumed = [(11, "b11".to_owned()), (12, "b12".to_owned())];
        BaselineValues { final_value: Some("abc".into()), consumed: consumed.into() }
    }

    fn check(stdout: &str, ended: Option<ProcessExit>, outcome: Outcome) {
        let called = CompletedCommand {
            exit: ended,
            stdout: stdout.into(),
            stderr: String::new(),
            left_processes: false,
        };
        let found = oracle().observe(&called, None);
        assert_eq!(oracle().judge(&found, Some(10), &baseline()), outcome, "{stdout}");
    }

    #[test]
    fn each_ending_has_its_outcome() {
        let good = Some(ProcessExit::Exited(0));
        check("resumed 10\nsum abc", good, Outcome::Recovered);
        check("resumed 5\nsum abc", good, Outcome::LostWork);
        check("sum abc", good, Outcome::Restarted);
        check("resumed 0\nsum abc", good, Outcome::Restarted);
        check("resumed 10\nsum abd", good, Outcome::Corrupt);
        check("resumed 10", good, Outcome::Corrupt);
        check("", Some(ProcessExit::Exited(12)), Outcome::Refused);
        check("", Some(ProcessExit::Exited(1)), Outcome::Crashed);
        check("", Some(ProcessExit::Signalled(11)), Outcome::Crashed);
        check("", None, Outcome::Hung);
        check("resumed 10\nstep 11 batch b11\nstep 12 batch b12\nsum abc", good, Outcome::Recovered);
        check("resumed 10\nstep 11 batch b12\nsum abc", good, Outcome::Corrupt);
    }

    #[test]
    fn where_steps_are_told_a_silent_start_from_scratch_is_known_from_one_with_nothing_to_do() {
        let ear = OutputOracle { step: Regex::new(r"^step (?<step>\d+)").ok(), ..oracle() };
        let of = |stdout: &str| {
            let ended = Some(ProcessExit::Exited(0));
            let called = CompletedCommand {
                exit: ended,
                stdout: stdout.into(),
                stderr: String::new(),
                left_processes: false,
            };
            ear.judge(&ear.observe(&called, None), Some(10), &baseline())
        };
        assert_eq!(of("sum abc"), Outcome::Recovered);
        assert_eq!(of("step 11\nsum abc"), Outcome::Recovered);
        assert_eq!(of("step 6\nsum abc"), Outcome::LostWork);
        assert_eq!(of("step 1\nsum abc"), Outcome::Restarted);
        assert_eq!(of("resumed 10\nstep 11\nsum abc"), Outcome::Recovered);
    }
}
