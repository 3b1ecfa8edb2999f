//! What a trainer has promised must be there after every fault. Each way to break a promise has a small trainer that
//! must be caught, and a sound twin that raises no alarm.

use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use scenarios::{Outcome, Verdict, ViolationKind};

use crate::support::command::{TRAINWRECK, output_text, workspace};
use crate::support::machine::{GATE, missing};
use crate::support::scenario_run::{ScenarioFiles, ScenarioRun};

const SCENARIO: &str = r"
version: 1
id: fs-01
title: a stub under test
severity: extra
target: {use: target.yaml}
method: [METHOD]
expect:
  - always: {outcome: [recovered]}
";

const TARGET: &str = r"
version: 1
id: small
title: a trainer of a few lines
program: 'PROGRAM'
places: {checkpoints: ckpt}
prepare: [[mkdir, -p, '{checkpoints}']]
start: ['{program}', STYLE, '{root}']
announces:
  step: '^step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
same: '^finished (job (?<job>\w+) with )?(?<value>\d+)'
timeouts: {stall: 30 s, finish: 120 s}
";
const SAME: &str = r"same: '^finished (job (?<job>\w+) with )?(?<value>\d+)'";

/// In the third of three saves: `mv` tries twice if the file is there.
const CRASH_IN_THIRD_SAVE: &str = "crash: {when: {call: {to: [rename], on: 'ckpt/**', at: 4}}}";
const CRASH_AT_LAST_REMOVAL: &str =
    "crash: {when: {call: {to: [unlink], on: 'ckpt/latest', at: 1}}, point: after}";
const NOTHING_CAN_BE_RENAMED: &str =
    "fail-call: {errno: [EIO], persistence: persistent, when: {call: {to: [rename], on: 'ckpt/**', at: 1}}}";
const ONE_RENAME_FAILS: &str =
    "fail-call: {errno: [EIO], when: {call: {to: [rename], on: 'ckpt/**', at: every}}}";
const FAIL_EACH_RENAME: &str = "fail-call: {errno: [EIO], persistence: persistent, when: {call: {to: [rename], on: 'ckpt/**', at: every}}}";
const NO_WRITE_SUCCEEDS: &str =
    "fail-call: {errno: [EIO], persistence: persistent, when: {call: {to: [write], on: 'ckpt/**', at: 1}}}";
const DELAY_ONE_RENAME: &str = "delay-call: {time: 1 ms, when: {call: {to: [rename], on: 'ckpt/**', at: 1}}}";
const KILL_AT_EVERY_CALL: &str = "crash: {when: {call: {at: every}}}";

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        missing(&GATE);
        saves_that_failed_in_silence_are_missed_at_the_end,
        a_job_is_held_to_its_promises_after_its_end,
        announcements_are_read_from_both_outputs_and_from_progress_displays,
        step_0_is_an_ordinary_promise,
        an_end_before_the_baselines_is_caught,
        steps_that_are_left_out_or_repeated_are_caught,
        a_pattern_that_matches_nothing_is_refused_by_name,
        a_daemon_with_three_jobs_that_is_killed_at_every_call_raises_no_alarm,
        a_daemon_that_does_a_finished_job_again_is_caught,
        exit_code_0_alone_is_not_judged,
        a_trainer_that_cannot_be_resumed_after_its_end_raises_no_alarm,
        saves_that_failed_in_silence_are_missed_in_the_middle,
        an_error_is_swallowed_only_if_a_save_was_announced_after_it,
        a_trainer_that_does_not_resume_at_all_is_one_finding,
        what_a_trainer_that_does_not_resume_cannot_be_asked_is_not_judged,
        a_phase_that_never_begins_is_refused_by_name,
        each_failed_expectation_says_where_what_and_how_to_repeat,
        explore_reads_all_of_a_long_output_and_asks_for_the_end,
        a_long_output_of_the_run_and_of_a_recovery_needs_little_memory,
    ]
}

fn target(program: &str, style: &str) -> String {
    let program = workspace().join("harness/tests/targets").join(program);
    TARGET.replace("PROGRAM", program.to_str().unwrap()).replace("STYLE", style)
}

fn run_target(target: String, method: &str) -> ScenarioRun {
    ScenarioFiles { target, scenario: SCENARIO.replace("METHOD", method) }.run()
}

fn run(style: &str, method: &str) -> ScenarioRun {
    run_target(target("promises.sh", style), method)
}

/// Asserts that each trial has this outcome.
fn assert_outcome(run: &ScenarioRun, what: &str, expected: Outcome) {
    let outcomes = run.outcomes();
    let are_all = !outcomes.is_empty() && outcomes.iter().all(|outcome| *outcome == expected);
    assert!(are_all, "{what}: {outcomes:?}, not {expected}: {}", run.printed);
    let code = if expected == Outcome::Recovered { 0 } else { 1 };
    assert_eq!(run.code, code, "{what}: {}", run.printed);
}

/// It is never killed: only the files that it leaves tell.
fn saves_that_failed_in_silence_are_missed_at_the_end() {
    let swallows = run("swallows", NOTHING_CAN_BE_RENAMED);
    assert_outcome(&swallows, "swallows", Outcome::Restarted);
    assert!(swallows.printed.contains("error-swallowed"), "{}", swallows.printed);
    assert_outcome(&run("sound", ONE_RENAME_FAILS), "sound", Outcome::Recovered);
    assert_outcome(&run("sound", NOTHING_CAN_BE_RENAMED), "sound", Outcome::Recovered);
}

fn a_job_is_held_to_its_promises_after_its_end() {
    assert_outcome(&run("forgets-the-end", CRASH_AT_LAST_REMOVAL), "forgets-the-end", Outcome::Restarted);
}

fn announcements_are_read_from_both_outputs_and_from_progress_displays() {
    for style in ["stderr", "returns"] {
        assert_outcome(&run(style, CRASH_IN_THIRD_SAVE), style, Outcome::Recovered);
        let lost = format!("{style}-lost");
        assert_outcome(&run(&lost, CRASH_IN_THIRD_SAVE), &lost, Outcome::Restarted);
    }
}

fn step_0_is_an_ordinary_promise() {
    let in_second_save = CRASH_IN_THIRD_SAVE.replace("at: 4", "at: 2");
    let run = run("from-zero", &in_second_save);
    assert_outcome(&run, "from-zero", Outcome::Recovered);
    assert_eq!((run.trials()[0].acknowledged, run.trials()[0].resumed_from), (Some(0), Some(0)));
}

fn an_end_before_the_baselines_is_caught() {
    let without_value = target("promises.sh", "ends-early").replace(SAME, "");
    assert_outcome(&run_target(without_value, CRASH_IN_THIRD_SAVE), "ends-early", Outcome::EndedEarly);
    let without_value = target("promises.sh", "sound").replace(SAME, "");
    assert_outcome(&run_target(without_value, CRASH_IN_THIRD_SAVE), "sound", Outcome::Recovered);
}

fn steps_that_are_left_out_or_repeated_are_caught() {
    for (style, message) in [
        ("leaves-out", "step 7 was left out after step 6; the baseline did it"),
        ("repeats", "step 7 was done again after step 8"),
    ] {
        let run = run(style, CRASH_IN_THIRD_SAVE);
        assert_outcome(&run, style, Outcome::Corrupt);
        assert!(run.trials()[0].because.contains(message), "{}", run.trials()[0].because);
    }
}

fn a_pattern_that_matches_nothing_is_refused_by_name() {
    for (key, right, wrong) in [
        ("announces: step", "'^step ", "'^Step "),
        ("announces: saved", "'^saved", "'^SAVED"),
        ("announces: resumed", "'^resumed", "'^RESUMED"),
        ("same", "'^finished", "'^FINISHED"),
    ] {
        let run = run_target(target("promises.sh", "sound").replace(right, wrong), CRASH_AT_LAST_REMOVAL);
        let Verdict::Inconclusive { why } = run.verdict() else { panic!("{key}: {}", run.printed) };
        assert!(
            why.contains(&format!("pattern of `{key}`")) && why.contains(wrong.trim_start_matches('\'')),
            "{why}"
        );
        assert_eq!((run.code, run.trials().len()), (3, 0), "{key}: {}", run.printed);
    }
}

fn a_daemon_with_three_jobs_that_is_killed_at_every_call_raises_no_alarm() {
    let run = run_target(target("jobs.sh", "sound"), KILL_AT_EVERY_CALL);
    assert_outcome(&run, "jobs", Outcome::Recovered);
    assert!(run.outcomes().len() > 20, "{}", run.printed);
    // A line can do without the job's name.
    let unnamed = target("jobs.sh", "sound").replace("(?<job>", "(");
    assert_outcome(&run_target(unnamed, KILL_AT_EVERY_CALL), "jobs without names", Outcome::Recovered);
}

fn a_daemon_that_does_a_finished_job_again_is_caught() {
    let method = "crash: {when: {output: '^finished job a'}}";
    assert_outcome(&run_target(target("jobs.sh", "again"), method), "again", Outcome::Restarted);
    assert_outcome(&run_target(target("jobs.sh", "sound"), method), "sound", Outcome::Recovered);
}

fn exit_code_0_alone_is_not_judged() {
    let without = |style: &str| {
        target("promises.sh", style).replace(SAME, "").replace(r"  saved: '^saved step (?<step>\d+)'", "")
    };
    let run = run_target(without("sound"), CRASH_IN_THIRD_SAVE);
    assert!(
        matches!(run.verdict(), Verdict::Inconclusive { why } if why.contains("not-judged")),
        "{}",
        run.printed
    );
    assert_eq!((run.code, run.outcomes()), (3, vec![Outcome::NotJudged]), "{}", run.printed);
    // What can be judged is judged all the same.
    assert_outcome(
        &run_target(without("ends-early"), CRASH_IN_THIRD_SAVE),
        "ends-early",
        Outcome::EndedEarly,
    );
}

/// It removes its save at its end, as it always does.
fn a_trainer_that_cannot_be_resumed_after_its_end_raises_no_alarm() {
    assert_outcome(&run("one-shot", ONE_RENAME_FAILS), "one-shot", Outcome::Recovered);
}

/// Its files are gone at its end, so only those right after the save tell.
fn saves_that_failed_in_silence_are_missed_in_the_middle() {
    let swallows = run("swallows-one-shot", NOTHING_CAN_BE_RENAMED);
    assert_outcome(&swallows, "swallows-one-shot", Outcome::Restarted);
    let because = &swallows.trials()[0].because;
    assert!(
        because.contains("error-swallowed") && because.contains("right after the save of step 3"),
        "{because}"
    );
    assert_outcome(&run("one-shot", ONE_RENAME_FAILS), "one-shot", Outcome::Recovered);
    assert_outcome(&run("one-shot", NOTHING_CAN_BE_RENAMED), "one-shot", Outcome::Recovered);
    // The save after the one that failed is there.
    assert_outcome(&run("swallows-writes", NO_WRITE_SUCCEEDS), "swallows-writes", Outcome::Crashed);
    assert_outcome(&run("sound", NO_WRITE_SUCCEEDS), "sound", Outcome::Recovered);
}

/// Both leave a file that cannot be loaded, and are started again. One of them had raised the error.
fn an_error_is_swallowed_only_if_a_save_was_announced_after_it() {
    let method = format!("{{{NO_WRITE_SUCCEEDS}}}, {{crash: {{optional: true, when: {{step: 5}}}}}}");
    for (style, is_swallowed) in [("swallows-writes", true), ("in-place", false)] {
        let run = run(style, &method);
        assert_outcome(&run, style, Outcome::Crashed);
        let because = &run.trials()[0].because;
        assert_eq!(because.contains("error-swallowed"), is_swallowed, "{style}: {because}");
    }
}

/// The control tells it, before any trial does; no trial is worse.
fn a_trainer_that_does_not_resume_at_all_is_one_finding() {
    for (style, method, cause, outcome) in [
        ("never-resumes", NOTHING_CAN_BE_RENAMED, "does-not-resume", "restarted"),
        ("never-resumes", CRASH_IN_THIRD_SAVE, "does-not-resume", "restarted"),
        ("resumes-wrong", CRASH_IN_THIRD_SAVE, "resume-differs", "corrupt"),
        ("too-soon", DELAY_ONE_RENAME, "acknowledged-too-early", "restarted"),
    ] {
        let run = run(style, method);
        let Verdict::Violated { reasons } = run.verdict() else { panic!("{style}: {}", run.printed) };
        let [reason] = reasons.as_slice() else { panic!("{style}: {}", run.printed) };
        assert_eq!((reason.kind, reason.trial), (ViolationKind::Control, None), "{style}: {}", run.printed);
        assert!(reason.found.contains(cause) && reason.found.starts_with(outcome), "{}", reason.found);
        assert_eq!(run.code, 1, "{style}: {}", run.printed);
    }
    let sound = run("sound", CRASH_IN_THIRD_SAVE);
    assert!(!sound.baseline().progress.save_controls.is_empty(), "{}", sound.printed);
}

/// Where it may start over, that is no finding. Whether its saves were there after the fault is not judged.
fn what_a_trainer_that_does_not_resume_cannot_be_asked_is_not_judged() {
    let scenario = SCENARIO.replace("[recovered]", "[recovered, restarted]");
    let scenario = scenario.replace("METHOD", NOTHING_CAN_BE_RENAMED);
    let run = ScenarioFiles { target: target("promises.sh", "never-resumes"), scenario }.run();
    assert!(
        matches!(run.verdict(), Verdict::Inconclusive { why } if why.contains("not-judged")),
        "{}",
        run.printed
    );
}

fn a_phase_that_never_begins_is_refused_by_name() {
    let phases = r"phases: {save: {begins: '^Saving', ends: '^saved step', place: checkpoints}}";
    let target = target("promises.sh", "sound").replace("same:", &format!("{phases}\nsame:"));
    let run = run_target(target, "crash-states: {of: [process], during: save}");
    let Verdict::Inconclusive { why } = run.verdict() else { panic!("{}", run.printed) };
    assert!(why.contains("phases: save: begins") && why.contains("^Saving"), "{why}");
    assert_eq!(run.code, 3, "{}", run.printed);
}

fn each_failed_expectation_says_where_what_and_how_to_repeat() {
    let run = run("swallows-writes", NO_WRITE_SUCCEEDS);
    for part in [
        "always: {outcome: [recovered]}",
        "trial 1: crashed: error-swallowed",
        "injected: write(ckpt/new, 2 bytes), call 1: fails with EIO",
        "it said:  Error: ckpt/latest is empty",
        "/trainwreck run ",
    ] {
        assert!(run.printed.contains(part), "`{part}` is not in {}", run.printed);
    }
    let all = run_target(target("promises.sh", "swallows"), FAIL_EACH_RENAME);
    assert!(all.printed.contains("4 trials (2, 3, 4, ..): lost-work"), "{}", all.printed);
}

/// What explore prints about a style, and its exit code.
fn explore(style: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut explorer = Command::new(TRAINWRECK);
    explorer.args(["explore", "--crash", "process", "--watch"]).arg(dir.path().join("ckpt"));
    explorer.args(["--step", r"^step (?<step>\d+)", "--saved", r"^saved step (?<step>\d+)"]);
    explorer.args(["--resumed", r"^resumed from step (?<step>\d+)", "--same", r"^finished (\d+)", "--"]);
    explorer.arg(workspace().join("harness/tests/targets/promises.sh")).arg(style).arg(dir.path());
    let output = explorer.output().unwrap();
    (output.status.code(), output_text(&output))
}

/// A log of a gigabyte needs no more: what is kept of it has a bound.
fn a_long_output_of_the_run_and_of_a_recovery_needs_little_memory() {
    const LOG: &str =
        "yes 'a line of a log that is of no use to anybody, and not a short one' | head -c 96000000; echo";
    for is_long in ["[ ! -e v ]", "[ -e v ]"] {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "cd \"$0\"; {is_long} && {{ {LOG}; }}; [ -e v ] && echo resumed from step 1 && exit; \
             echo resumed from step 0; echo 1 >t; mv t v; echo saved step 1"
        );
        let mut explorer = Command::new(TRAINWRECK);
        explorer.args(["explore", "--crash", "process", "--saved", r"^saved step (?<step>\d+)"]);
        explorer.args(["--resumed", r"^resumed from step (?<step>\d+)", "--watch"]).arg(dir.path());
        explorer.args(["--", "sh", "-c", &script]).arg(dir.path());
        let explorer = explorer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = explorer.id();
        let output = std::thread::spawn(|| explorer.wait_with_output().unwrap());
        let mut peak_kib = 0;
        while !output.is_finished() {
            peak_kib = peak_memory_kib(pid).unwrap_or(peak_kib);
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = output.join().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
        assert!(peak_kib > 0 && peak_kib < 100 * 1024, "{peak_kib} KiB");
    }
}

/// The peak resident memory of a process. `None`: it has ended.
fn peak_memory_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().strip_suffix(" kB")?.parse().ok()
}

fn explore_reads_all_of_a_long_output_and_asks_for_the_end() {
    for style in ["sound", "stderr", "returns", "chatty"] {
        let (code, text) = explore(style);
        assert_eq!(code, Some(0), "{style}: {text}");
    }
    for (style, outcome) in
        [("chatty-ends-early", "ended-early"), ("leaves-out", "corrupt"), ("stderr-lost", "restarted")]
    {
        let (code, text) = explore(style);
        assert_eq!(code, Some(1), "{style}: {text}");
        assert!(text.contains(&format!("-> {outcome}")), "{style}: {text}");
    }
}
