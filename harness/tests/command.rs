//! Runs the built command: its exit codes, its messages, and that nothing of a run outlives it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use assert_cmd::assert::OutputAssertExt;
use scenarios::{Event, Record};
use support::command::{TRAINWRECK, output_text, run_trainwreck, wait_for, workspace};
use support::machine::{GATE, Need, SANDBOX, missing};
use support::ordinary_user::OrdinaryUser;

fn main() -> ExitCode {
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
    trials.extend(trials![missing(&[Need::Mechanism("user-namespace")]); the_same_seed_gives_the_same_plan]);
    trials.extend(trials![missing(&[Need::OrdinaryUserWith("tmpfs")]); an_ordinary_user_can_run_it_too]);
    support::trial::run(trials)
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
    // The recorded events decide, not the recorded verdict.
    let text = std::fs::read_to_string(&record).unwrap();
    let without_output: String = text
        .lines()
        .filter(|line| !(line.contains("\"output\"") && line.contains("no inodes")))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&record, without_output).unwrap();
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
    assert_eq!(injections("a"), injections("b"));
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
    let (_, printed) = run("ablated", &["ablate", "fs-06", "--max-trials", "2"]);
    assert!(printed.contains("caught") && printed.contains("2 of "), "{printed}");
}

/// The processes whose command line contains this text.
fn processes_with(text: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pid = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    let has = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(text))
    };
    entries.filter_map(pid).filter(has).collect()
}

/// The memory cgroups of a run of the harness with this process ID.
fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    let own_cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let memory = own_cgroups.lines().find_map(|line| {
        line.split_once(":memory:").map(|(_, path)| path.trim_start_matches('/').to_owned())
    });
    let dir = Path::new("/sys/fs/cgroup/memory").join(memory.unwrap_or_default());
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().contains(&format!("-{pid}-"))).collect()
}

fn kill_9_of_the_harness_leaves_no_process_and_no_mount_and_recover_removes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let run_path = temporary.to_str().unwrap().to_owned();
    let start = |args: &[&str]| {
        let mut command = Command::new(TRAINWRECK);
        command.args(args).env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut harness =
        start(&["run", "fs-01", "fs-06", "--out", dir.path().join("out").to_str().unwrap()]).spawn().unwrap();
    wait_for("the targets to start", || processes_with(&run_path).len() >= 4);
    let cgroups = cgroups_of(harness.id());
    harness.kill().unwrap();
    harness.wait().unwrap();
    wait_for("every process to end", || processes_with(&run_path).is_empty());
    assert!(
        !std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&run_path),
        "no mount is left"
    );
    let recovered = start(&["recover"]).output().unwrap();
    assert!(
        recovered.status.success() && output_text(&recovered).contains("removed"),
        "{}",
        output_text(&recovered)
    );
    assert!(cgroups.iter().all(|path| !path.exists()), "{cgroups:?}");
    let mut left_files: Vec<PathBuf> = files_below(&temporary);
    // All runs of the user share it.
    left_files.retain(|path| !path.ends_with("lock"));
    assert!(left_files.is_empty(), "{left_files:?}");
}

/// All files in a directory and its subdirectories.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
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
