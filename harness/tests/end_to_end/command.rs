//! Runs the built command: its exit codes, its messages, and that nothing of a run outlives it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use assert_cmd::assert::OutputAssertExt;
use libtest_mimic::Trial;
use scenarios::{Event, Record};

use crate::support::command::{TRAINWRECK, output_text, run_trainwreck, wait_for, workspace};
use crate::support::leftovers::{cgroups_of, mounts_of_all_processes, processes_with, run_dirs};
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::ordinary_user::OrdinaryUser;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        all_errors_of_a_file_are_printed_with_carets_and_the_exit_code_is_2,
        an_unknown_id_is_reported_with_the_nearest_known_id,
        invalid_arguments_exit_with_2_and_help_with_0,
        a_report_never_overwrites_existing_files,
        the_printed_schema_is_the_committed_one,
        an_invalid_record_is_refused_with_the_line_and_column,
    ];
    trials.extend(trials![
        missing(&SANDBOX);
        a_record_judged_again_gives_the_same_verdict_without_running_anything,
    ]);
    trials.extend(trials![
        missing(SANDBOX.iter().chain(&GATE));
        kill_9_of_the_harness_leaves_no_process_and_no_mount_and_recover_removes_the_rest,
        what_was_tried_stands_next_to_the_verdict_in_each_report,
    ]);
    trials.extend(trials![
        missing(SANDBOX.iter().chain(&[Need::Mechanism("memory-cgroup")]));
        recover_removes_the_cgroups_of_a_killed_harness,
    ]);
    trials.extend(trials![missing(&[Need::Mechanism("user-namespace")]); the_same_seed_gives_the_same_plan]);
    trials.extend(trials![missing(&[Need::OrdinaryUserWith("tmpfs")]); an_ordinary_user_can_run_it_too]);
    trials
}

fn all_errors_of_a_file_are_printed_with_carets_and_the_exit_code_is_2() {
    let file = workspace().join("scenarios/tests/many-errors.yaml");
    let output = run_trainwreck(&["check", file.to_str().unwrap()]);
    output.clone().assert().code(2);
    let text = output_text(&output);
    assert!(text.contains("did you mean `title`?") && text.contains("4 │ severity: dreadful"), "{text}");
    assert!(text.matches("here").count() >= 10, "{text}");
}

fn an_unknown_id_is_reported_with_the_nearest_known_id() {
    let output = run_trainwreck(&["run", "fs-0l"]);
    output.clone().assert().code(2);
    assert!(
        output_text(&output).contains("there is no shipped scenario `fs-0l` (nearest: `fs-01`)"),
        "{}",
        output_text(&output)
    );
}

fn invalid_arguments_exit_with_2_and_help_with_0() {
    run_trainwreck(&["run", "--jobs", "0"]).assert().code(2);
    for (verb, option) in [("run", "--max-trials"), ("ablate", "--max-trials"), ("explore", "--max-states")] {
        for bound in ["0", "-1", "ALL", "1.5", ""] {
            let output = run_trainwreck(&[verb, option, bound]);
            output.clone().assert().code(2);
            let text = output_text(&output);
            assert!(text.contains("write a number from 1 to") || bound == "-1", "{verb} {bound}: {text}");
        }
    }
    run_trainwreck(&["frobnicate"]).assert().code(2);
    run_trainwreck(&["--help"]).assert().code(0);
}

fn a_report_never_overwrites_existing_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), b"x").unwrap();
    let output = run_trainwreck(&["run", "fs-02", "--out", dir.path().to_str().unwrap()]);
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("is not empty"), "{}", output_text(&output));
    let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!((names, std::fs::read(dir.path().join("mine")).unwrap()), (vec!["mine".into()], b"x".into()));
}

fn the_printed_schema_is_the_committed_one() {
    let committed = std::fs::read(workspace().join("scenarios/schema/scenario-v1.json")).unwrap();
    assert_eq!(run_trainwreck(&["schema"]).stdout, committed);
}

fn a_record_judged_again_gives_the_same_verdict_without_running_anything() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run_trainwreck(&["run", "fs-02", "--out", out.to_str().unwrap()]).assert().code(0);
    let record = out.join("record.jsonl");
    let again = run_trainwreck(&[
        "analyze",
        record.to_str().unwrap(),
        "--out",
        dir.path().join("again").to_str().unwrap(),
    ]);
    again.clone().assert().code(0);
    assert!(output_text(&again).contains("as recorded"), "{}", output_text(&again));
    for report in ["report.html", "junit.xml", "summary.md"] {
        assert_eq!(
            std::fs::read(out.join(report)).unwrap(),
            std::fs::read(dir.path().join("again").join(report)).unwrap()
        );
    }
    let text = std::fs::read_to_string(&record).unwrap();
    let is_expected = |line: &str| line.contains("\"output\"") && line.contains("no inodes");
    let without_output: String =
        text.lines().filter(|line| !is_expected(line)).map(|line| format!("{line}\n")).collect();
    assert_ne!(text, without_output);
    std::fs::write(&record, without_output).unwrap();
    let incomplete = run_trainwreck(&["analyze", record.to_str().unwrap()]);
    incomplete.clone().assert().code(2);
    assert!(output_text(&incomplete).contains("missing before it"), "{}", output_text(&incomplete));
    // The recorded events decide, not the recorded verdict.
    let mut changed = Record::parse(&text).unwrap();
    let says =
        |event: &Event| matches!(event, Event::Output { .. }) && format!("{event:?}").contains("no inodes");
    changed.entries.retain(|entry| !says(&entry.event));
    std::fs::write(&record, changed.to_text()).unwrap();
    let changed = run_trainwreck(&["analyze", record.to_str().unwrap()]);
    changed.clone().assert().code(1);
    assert!(output_text(&changed).contains("DIFFERS"), "{}", output_text(&changed));
}

fn an_invalid_record_is_refused_with_the_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("record.jsonl");
    std::fs::write(&record, b"{\"at_us\":1}\n").unwrap();
    let output = run_trainwreck(&["analyze", record.to_str().unwrap()]);
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("line 1, column"), "{}", output_text(&output));
}

fn the_same_seed_gives_the_same_plan() {
    let dir = tempfile::tempdir().unwrap();
    let injections = |name: &str| {
        let out = dir.path().join(name);
        run_trainwreck(&["run", "fs-06", "--seed", "7", "--out", out.to_str().unwrap()]).assert().code(0);
        let text = std::fs::read_to_string(out.join("record.jsonl")).unwrap();
        let mut injections: Vec<String> = text
            .lines()
            .filter(|line| line.contains("trial-started"))
            .map(|line| line.split("\"what\"").nth(1).unwrap().to_owned())
            .collect();
        injections.sort();
        injections
    };
    let first = injections("a");
    assert!(first.len() > 1, "{first:?}");
    assert_eq!(first, injections("b"));
}

/// What the trials of a record do, by their numbers.
fn trials_in(out: &Path) -> BTreeMap<u32, String> {
    let record = Record::parse(&std::fs::read_to_string(out.join("record.jsonl")).unwrap()).unwrap();
    let started = record.entries.into_iter().filter_map(|entry| match entry.event {
        Event::TrialStarted { what, .. } => Some((entry.trial.unwrap(), what)),
        _ => None,
    });
    started.collect()
}

fn what_was_tried_stands_next_to_the_verdict_in_each_report() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, options: &[&str]| {
        let out = dir.path().join(name);
        let output = run_trainwreck(&[options, &["--out", out.to_str().unwrap()]].concat());
        output.clone().assert().code(0);
        (out, output_text(&output))
    };
    let (out, printed) = run("bounded", &["run", "fs-06", "--max-trials", "3"]);
    let trials = trials_in(&out);
    assert_eq!(trials.len(), 3);
    let last = *trials.keys().next_back().unwrap();
    // The last page is always tried, and has the number of pages.
    let expected = format!("3 of {last} pages (--max-trials)");
    let record = out.join("record.jsonl");
    let again = output_text(&run_trainwreck(&["analyze", record.to_str().unwrap()]));
    let total = format!("3 trials tried, {} left out by bounds; --max-trials all tries them", last - 3);
    let files = ["report.html", "junit.xml", "summary.md"];
    let reports = files.map(|name| std::fs::read_to_string(out.join(name)).unwrap());
    for text in reports.iter().chain([&printed, &again]) {
        assert!(text.contains(&expected) && text.contains(&total), "{expected}: {text}");
    }
    assert!(reports[0].contains("trainwreck run fs-06 --seed 1 --max-trials 3"));
    // A trial has the same number with another bound.
    let middle = *trials.keys().nth(1).unwrap();
    let (out, printed) = run("only", &["run", "fs-06", "--trial", &middle.to_string()]);
    assert_eq!(trials_in(&out), BTreeMap::from([(middle, trials[&middle].clone())]));
    assert!(printed.contains(&format!("1 of {last} pages (only --trial {middle})")), "{printed}");
    let (_, printed) = run("ablated", &["ablate", "fs-06", "--max-trials", "2", "--keep-going"]);
    assert!(printed.contains("caught") && printed.contains("2 of "), "{printed}");
}

/// The command with its own directory for temporary files.
fn command_with(temporary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(TRAINWRECK);
    command.args(args).env("TMPDIR", temporary).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `recover` after a kill. It must find something to remove, and leave nothing.
fn recover(temporary: &Path) {
    assert!(!run_dirs(temporary, None).is_empty(), "nothing was left to remove");
    let recovered = command_with(temporary, &["recover"]).output().unwrap();
    assert!(
        recovered.status.success() && output_text(&recovered).contains("removed"),
        "{}",
        output_text(&recovered)
    );
    let left = run_dirs(temporary, None);
    assert!(left.is_empty(), "{left:?}");
}

fn kill_9_of_the_harness_leaves_no_process_and_no_mount_and_recover_removes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let run_path = temporary.to_str().unwrap().to_owned();
    let out = dir.path().join("out");
    let mut harness =
        command_with(&temporary, &["run", "fs-01", "fs-06", "--out", out.to_str().unwrap()]).spawn().unwrap();
    // The mounts are in the sandboxes, and not where this test can see them without their processes.
    wait_for("the targets to start", || {
        processes_with(&run_path).len() >= 4 && !mounts_of_all_processes(&run_path).is_empty()
    });
    harness.kill().unwrap();
    harness.wait().unwrap();
    wait_for("every process to end", || processes_with(&run_path).is_empty());
    let mounts = mounts_of_all_processes(&run_path);
    assert!(mounts.is_empty(), "{mounts:?}");
    recover(&temporary);
}

/// Every harness that starts removes what killed ones have left, and the tests beside this one start some: a killed
/// harness whose cgroup was removed before `recover` could be asked says nothing, and another one is killed.
fn recover_removes_the_cgroups_of_a_killed_harness() {
    const MAX_KILLED: usize = 20;
    let shown = (0..MAX_KILLED).any(|_| {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let pid = kill_harness_with_cgroup(&temporary, &dir.path().join("out"));
        wait_for("every process to end", || processes_with(temporary.to_str().unwrap()).is_empty());
        let is_left = !cgroups_of(pid).is_empty();
        recover(&temporary);
        assert!(cgroups_of(pid).is_empty(), "{:?}", cgroups_of(pid));
        is_left
    });
    assert!(shown, "another harness has removed each of {MAX_KILLED} cgroups before `recover`");
}

/// Runs a harness until it has a cgroup for a trial, and kills it. Returns its id. At its start it makes one to see
/// whether it can, before it has a directory of its own.
fn kill_harness_with_cgroup(temporary: &Path, out: &Path) -> u32 {
    let mut harness =
        command_with(temporary, &["run", "proc-01", "--out", out.to_str().unwrap()]).spawn().unwrap();
    wait_for("a directory and a cgroup", || {
        !run_dirs(temporary, None).is_empty() && !cgroups_of(harness.id()).is_empty()
    });
    harness.kill().unwrap();
    harness.wait().unwrap();
    harness.id()
}

fn an_ordinary_user_can_run_it_too() {
    let trainer = Path::new(TRAINWRECK).with_file_name("target-trainer");
    let user = OrdinaryUser::with_programs(&[TRAINWRECK.as_ref(), &trainer]);
    let output = user.command("trainwreck").args(["run", "fs-02", "proc-01"]).output().unwrap();
    assert!(
        output.status.success() && output_text(&output).contains("2 survived"),
        "{}",
        output_text(&output)
    );
}
