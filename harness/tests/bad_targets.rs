//! Every detector has a known-bad target: a small trainer with exactly one defect must be caught. A correct
//! trainer must raise no alarm.

#![expect(clippy::unwrap_used, reason = "a failed expectation must stop the test")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::process::ExitCode;

use scenarios::{Outcome, Verdict};
use support::command::workspace;
use support::machine::{GATE, missing};
use support::scenario_run::{ScenarioFiles, ScenarioRun};

const TARGET: &str = r"
version: 1
id: stub
title: a few lines of shell
program: SCRIPT
places: {checkpoints: ckpt}
prepare: [[mkdir, -p, '{checkpoints}']]
start: ['{program}', STYLE, '{root}']
announces:
  step: '^step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
phases: {checkpoint-save: {begins: '^step \d+', ends: '^saved step \d+', place: checkpoints}}
same: '^finished with (?<value>\d+)'
timeouts: {stall: 2 s, finish: 20 s}
";

const SCENARIO: &str = r"
version: 1
id: fs-01
title: a stub under test
severity: extra
target: {use: target.yaml}
method: [METHOD]
expect:
  - always: {outcome: [recovered]}
  - always: {lost-steps: {max: 3}}
  - always: same-as-baseline
  - always: leaves-no-process
";

const CRASH: &str = "crash: {when: {call: {during: checkpoint-save, at: every}}}";
const TERMINATE: &str = "signal: {which: [TERM], to: main, for: 150 ms, when: {step: 4}}";
/// Longer than the target's `stall`: a stop must not be taken for a hang.
const STOP: &str = "signal: {which: [STOP], to: every-process, for: 2500 ms, when: {step: 4}}";

fn main() -> ExitCode {
    support::trial::run(trials![
        missing(&GATE);
        a_correct_trainer_raises_no_alarm,
        a_trainer_that_tears_its_checkpoint_is_caught,
        a_trainer_that_deletes_the_old_checkpoint_first_is_caught,
        a_trainer_that_acknowledges_before_it_has_saved_is_caught,
        a_trainer_that_silently_starts_from_scratch_is_caught,
        a_trainer_that_hangs_on_resume_is_caught,
        a_trainer_that_ignores_sigterm_is_caught,
        a_trainer_that_discards_its_work_after_a_pause_is_caught,
        a_trainer_that_a_signal_kills_is_started_again,
        a_signal_that_comes_too_late_is_never_a_failure_of_the_harness,
        a_trainer_that_leaves_a_process_behind_is_caught_although_it_recovers,
    ])
}

/// Runs the stub in the given style.
fn run(style: &str, method: &str) -> ScenarioRun {
    let script = workspace().join("harness/tests/targets/stub.sh");
    let target = TARGET.replace("SCRIPT", script.to_str().unwrap()).replace("STYLE", style);
    ScenarioFiles { target, scenario: SCENARIO.replace("METHOD", method) }.run()
}

/// Runs the stub in the given style. Returns the exit code of the command and the outcomes of the trials.
fn outcomes(style: &str, method: &str) -> (i32, Vec<Outcome>) {
    let run = run(style, method);
    (run.code, run.outcomes())
}

/// Asserts that the scenario is violated, with the expected outcome in one of its trials.
fn assert_caught(style: &str, method: &str, expected: Outcome) {
    let (code, outcomes) = outcomes(style, method);
    assert_eq!(code, 1, "{style}: violated, {outcomes:?}");
    assert!(outcomes.contains(&expected), "{style}: {outcomes:?}");
}

fn a_correct_trainer_raises_no_alarm() {
    for method in [CRASH, TERMINATE, STOP] {
        let (code, outcomes) = outcomes("sound", method);
        assert_eq!(code, 0, "{method}: {outcomes:?}");
        assert!(
            !outcomes.is_empty() && outcomes.iter().all(|outcome| *outcome == Outcome::Recovered),
            "{outcomes:?}"
        );
    }
}

fn a_trainer_that_tears_its_checkpoint_is_caught() {
    assert_caught("torn", CRASH, Outcome::Corrupt);
}

fn a_trainer_that_deletes_the_old_checkpoint_first_is_caught() {
    assert_caught("deletes-first", CRASH, Outcome::Restarted);
}

fn a_trainer_that_acknowledges_before_it_has_saved_is_caught() {
    assert_caught("acknowledges-early", "crash: {when: {output: '^saved step 6'}}", Outcome::LostWork);
}

/// The final value is right, but the trainer never announces from which step it resumes.
fn a_trainer_that_silently_starts_from_scratch_is_caught() {
    assert_caught("forgets", "crash: {when: {step: 8}}", Outcome::Restarted);
}

fn a_trainer_that_hangs_on_resume_is_caught() {
    assert_caught("hangs", "crash: {when: {step: 8}}", Outcome::Hung);
}

fn a_trainer_that_ignores_sigterm_is_caught() {
    let method = "signal: {which: [TERM], for: 60 ms, when: {step: 4}}";
    assert_caught("ignores-sigterm", method, Outcome::Hung);
}

/// A pause of the whole machine is no reason to give up work: virtual machines are suspended and migrated.
fn a_trainer_that_discards_its_work_after_a_pause_is_caught() {
    assert_caught("distrusts-pauses", STOP, Outcome::Restarted);
}

/// Neither signal asks the trainer to exit. This trainer handles neither, so each of them kills it. Each has
/// a trial of its own.
fn a_trainer_that_a_signal_kills_is_started_again() {
    let (code, outcomes) = outcomes("sound", "signal: {which: [HUP, USR1], when: {step: 4}}");
    assert_eq!((code, outcomes), (0, vec![Outcome::Recovered; 2]));
}

/// The signal and the exit race. A signal that nobody received is no evidence, and no failure of the harness.
fn a_signal_that_comes_too_late_is_never_a_failure_of_the_harness() {
    for recipient in ["main", "every-process"] {
        let method = format!(
            "signal: {{which: [TERM, USR1], to: {recipient}, for: 5 s, when: {{output: '^finished'}}}}"
        );
        let (code, outcomes) = outcomes("sound", &method);
        assert!(matches!(code, 0 | 3), "{recipient}: {code}");
        assert_eq!(outcomes.len(), 2, "{recipient}: every trial has a result: {outcomes:?}");
    }
}

/// Because of the process, and of nothing else.
fn a_trainer_that_leaves_a_process_behind_is_caught_although_it_recovers() {
    let run = run("leaks-a-child", "crash: {when: {step: 8}}");
    assert_eq!((run.code, run.outcomes()), (1, vec![Outcome::Recovered]), "{}", run.printed);
    let Verdict::Violated { reasons } = run.verdict() else { panic!("{}", run.printed) };
    let broken: Vec<&str> = reasons.iter().map(|reason| reason.expectation.as_str()).collect();
    assert_eq!(broken, ["always: leaves-no-process"], "{}", run.printed);
}
