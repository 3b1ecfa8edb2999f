//! Every detector has a known-bad target: a small trainer with exactly one defect must be caught. A correct
//! trainer must raise no alarm.

use libtest_mimic::Trial;
use scenarios::{Outcome, Verdict};

use crate::support::command::workspace;
use crate::support::machine::{GATE, missing};
use crate::support::scenario_run::{ScenarioFiles, ScenarioRun};
use crate::support::small_target::{LONG_STALL, SmallTarget};

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
/// The target waits in the call until the signal is sent, however busy the machine is.
const TERMINATE: &str =
    "signal: {which: [TERM], to: main, for: 60 s, when: {call: {during: checkpoint-save, at: 1}}}";
/// Longer than [`SHORT_STALL`]: a stop must not be taken for a hang.
const STOP: &str = "signal: {which: [STOP], to: every-process, for: 2500 ms, when: {call: {to: [rename], on: 'ckpt/**', at: 1}}}";
/// Within the third of four saves. The target waits in the call.
const CRASH_IN_THIRD_SAVE: &str = "crash: {when: {call: {to: [rename], on: 'ckpt/**', at: 3}}}";

const CLOCK_BACK: &str = "clock: {by: [-1 d], when: {step: 1}}";
/// After the second of four saves.
const CLOCK_BACK_AND_CRASH: &str =
    "clock: {by: [-1 d], when: {call: {to: [rename], on: 'ckpt/**', at: 2}}}, crash: {when: {step: 11}}";

/// For trainers that hang, and for stops that are longer.
const SHORT_STALL: &str = "2 s";

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        missing(&GATE);
        a_correct_trainer_raises_no_alarm,
        a_trainer_that_tears_its_checkpoint_is_caught,
        a_trainer_that_deletes_the_old_checkpoint_first_is_caught,
        a_trainer_that_acknowledges_before_it_has_saved_is_caught,
        a_trainer_that_silently_starts_from_scratch_is_caught,
        a_trainer_that_hangs_on_resume_is_caught,
        a_trainer_that_ignores_sigterm_is_caught,
        a_trainer_that_stops_with_exit_code_0_is_caught_unless_that_is_its_way,
        a_trainer_that_discards_its_work_after_a_pause_is_caught,
        a_trainer_that_takes_the_checkpoint_with_the_latest_date_is_caught,
        a_trainer_that_waits_by_the_wall_clock_is_caught,
        a_trainer_that_a_signal_kills_is_started_again,
        a_signal_that_comes_too_late_is_never_a_failure_of_the_harness,
        a_trainer_that_leaves_a_process_behind_is_caught_although_it_recovers,
    ]
}

/// Runs the stub in the given style.
fn run(style: &str, method: &str, stall: &str) -> ScenarioRun {
    let program = workspace().join("harness/tests/targets/stub.sh");
    let start = format!("['{{program}}', {style}, '{{root}}']");
    let target = SmallTarget { program: program.to_str().unwrap(), start: &start, stall, more: "" }.to_yaml();
    ScenarioFiles { target, scenario: SCENARIO.replace("METHOD", method) }.run()
}

/// The same for a target file with one key more.
fn run_with_key(style: &str, method: &str, more: &str) -> ScenarioRun {
    let program = workspace().join("harness/tests/targets/stub.sh");
    let (program, start) = (program.to_str().unwrap(), format!("['{{program}}', {style}, '{{root}}']"));
    let target = SmallTarget { program, start: &start, stall: LONG_STALL, more }.to_yaml();
    ScenarioFiles { target, scenario: SCENARIO.replace("METHOD", method) }.run()
}

/// Asserts that the scenario is violated, with the expected outcome in one of its trials.
fn assert_caught(style: &str, method: &str, expected: Outcome) {
    // Only what is expected to hang needs a short time.
    let stall = if expected == Outcome::Hung || method == STOP { SHORT_STALL } else { LONG_STALL };
    let run = run(style, method, stall);
    assert_eq!(run.code, 1, "{style}: violated, {}", run.printed);
    assert!(run.outcomes().contains(&expected), "{style}: {}", run.printed);
}

fn a_correct_trainer_raises_no_alarm() {
    for (method, stall) in [(CRASH, LONG_STALL), (TERMINATE, LONG_STALL), (STOP, SHORT_STALL)] {
        let run = run("sound", method, stall);
        assert_eq!(run.code, 0, "{method}: {}", run.printed);
        let outcomes = run.outcomes();
        let is_recovered = |outcome: &Outcome| *outcome == Outcome::Recovered;
        assert!(!outcomes.is_empty() && outcomes.iter().all(is_recovered), "{method}: {outcomes:?}");
    }
}

fn a_trainer_that_tears_its_checkpoint_is_caught() {
    assert_caught("torn", CRASH, Outcome::Corrupt);
}

fn a_trainer_that_deletes_the_old_checkpoint_first_is_caught() {
    assert_caught("deletes-first", CRASH, Outcome::Restarted);
}

fn a_trainer_that_acknowledges_before_it_has_saved_is_caught() {
    let in_second_save = CRASH_IN_THIRD_SAVE.replace("at: 3", "at: 2");
    assert_caught("acknowledges-early", &in_second_save, Outcome::LostWork);
}

/// The final value is right, but the trainer never announces from which step it resumes.
fn a_trainer_that_silently_starts_from_scratch_is_caught() {
    assert_caught("forgets", CRASH_IN_THIRD_SAVE, Outcome::Restarted);
}

fn a_trainer_that_hangs_on_resume_is_caught() {
    assert_caught("hangs", CRASH_IN_THIRD_SAVE, Outcome::Hung);
}

fn a_trainer_that_ignores_sigterm_is_caught() {
    assert_caught("ignores-sigterm", &TERMINATE.replace("60 s", "60 ms"), Outcome::Hung);
}

/// Whoever sees exit code 0 does not start the trainer again.
fn a_trainer_that_stops_with_exit_code_0_is_caught_unless_that_is_its_way() {
    assert_caught("stops-with-zero", TERMINATE, Outcome::EndedEarly);
    let run = run_with_key("stops-with-zero", TERMINATE, "stops-with-zero: true");
    assert_eq!((run.code, run.outcomes()), (0, vec![Outcome::Recovered]), "{}", run.printed);
}

/// A pause of the whole machine is no reason to give up work: virtual machines are suspended and migrated.
fn a_trainer_that_discards_its_work_after_a_pause_is_caught() {
    assert_caught("distrusts-pauses", STOP, Outcome::Restarted);
}

/// The clock may be set back between two saves. One that only asks for the time is not harmed.
fn a_trainer_that_takes_the_checkpoint_with_the_latest_date_is_caught() {
    assert_caught("by-date", CLOCK_BACK_AND_CRASH, Outcome::LostWork);
    let sound = run("asks-for-the-time", CLOCK_BACK_AND_CRASH, LONG_STALL);
    assert_eq!((sound.code, sound.outcomes()), (0, vec![Outcome::Recovered]), "{}", sound.printed);
}

/// It would go on a day later.
fn a_trainer_that_waits_by_the_wall_clock_is_caught() {
    assert_caught("waits-by-date", CLOCK_BACK, Outcome::Hung);
    assert_caught("distrusts-pauses", "clock: {by: [+1 d], when: {step: 4}}", Outcome::Restarted);
}

/// Neither signal asks the trainer to exit. This trainer handles neither, so each of them kills it. Each has
/// a trial of its own.
fn a_trainer_that_a_signal_kills_is_started_again() {
    let method = "signal: {which: [HUP, USR1], when: {call: {during: checkpoint-save, at: 1}}}";
    let run = run("sound", method, LONG_STALL);
    assert_eq!((run.code, run.outcomes()), (0, vec![Outcome::Recovered; 2]), "{}", run.printed);
}

/// The signal and the exit race. A signal that nobody received is no evidence, and no failure of the harness.
fn a_signal_that_comes_too_late_is_never_a_failure_of_the_harness() {
    for recipient in ["main", "every-process"] {
        let method = format!(
            "signal: {{which: [TERM, USR1], to: {recipient}, for: 5 s, when: {{output: '^finished'}}}}"
        );
        let run = run("sound", &method, LONG_STALL);
        assert!(matches!(run.code, 0 | 3), "{recipient}: {}", run.printed);
        assert_eq!(run.outcomes().len(), 2, "{recipient}: every trial has a result: {}", run.printed);
    }
}

/// Because of the process, and of nothing else.
fn a_trainer_that_leaves_a_process_behind_is_caught_although_it_recovers() {
    let run = run("leaks-a-child", CRASH_IN_THIRD_SAVE, LONG_STALL);
    assert_eq!((run.code, run.outcomes()), (1, vec![Outcome::Recovered]), "{}", run.printed);
    let Verdict::Violated { reasons } = run.verdict() else { panic!("{}", run.printed) };
    let broken: Vec<&str> = reasons.iter().map(|reason| reason.expectation.as_str()).collect();
    assert_eq!(broken, ["always: leaves-no-process"], "{}", run.printed);
}
