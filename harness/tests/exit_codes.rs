//! The exit codes of the built command: the same table everywhere, and the codes of runs that end early or
//! judge nothing. `command.rs` has those of ordinary runs.

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::assert::OutputAssertExt;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use support::command::{TRAINWRECK, output_text, run_trainwreck, workspace};
use support::machine::{SANDBOX, missing};

fn main() -> ExitCode {
    let mut trials = trials![
        help_readme_and_code_show_the_same_table_of_exit_codes,
        an_unreadable_record_and_a_bad_out_directory_are_invalid_input,
        a_missing_program_is_invalid_input,
        ablate_without_any_guard_has_nothing_to_rely_on,
    ];
    trials.extend(trials![
        missing(&SANDBOX);
        a_first_signal_ends_the_run_early_with_130_and_its_reports,
        a_trial_that_no_scenario_has_is_invalid_input,
    ]);
    support::trial::run(trials)
}

/// The rows of a table of exit codes, each line without what is before it: the code and its meaning.
fn table_rows(text: &str, before: &str) -> Vec<(u8, String)> {
    let row = |line: &str| {
        let line = line.trim_start().strip_prefix(before)?;
        let (code, meaning) = line.trim().trim_matches('|').trim().split_once([' ', '|'])?;
        Some((code.parse().ok()?, meaning.trim_matches(['|', ' ']).to_owned()))
    };
    text.lines().filter_map(row).collect()
}

fn help_readme_and_code_show_the_same_table_of_exit_codes() {
    let source = std::fs::read_to_string(workspace().join("harness/src/exit.rs")).unwrap();
    let documented = table_rows(&source, "/// |");
    let codes: Vec<u8> = documented.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 130]);
    let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
    let (_, section) = readme.split_once("| exit code | meaning |").unwrap();
    let (section, _) = section.split_once("\n\n").unwrap();
    assert_eq!(table_rows(section, "|"), documented);
    // Without line breaks, as in a wide terminal.
    let help = output_text(&run_trainwreck(&["--help"]));
    let (_, section) = help.split_once("Exit codes:").unwrap();
    let (section, precedence) = section.split_once("\n\n").unwrap();
    let words = section.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected: Vec<String> =
        documented.iter().map(|(code, meaning)| format!("{code} {meaning}")).collect();
    assert_eq!(words, expected.join(" "));
    let order = "the first of 2, 4, 130, 1, 5, 3";
    assert!([&source, &readme, precedence].iter().all(|text| text.contains(order)));
}

fn an_unreadable_record_and_a_bad_out_directory_are_invalid_input() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.jsonl");
    let output = run_trainwreck(&["analyze", missing.to_str().unwrap()]);
    output.clone().assert().code(2);
    let expected = format!("trainwreck: `{}`: No such file", missing.display());
    assert!(output_text(&output).contains(&expected), "{}", output_text(&output));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = run_trainwreck(&["run", "fs-02", "--out", file.join("out").to_str().unwrap()]);
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("name another directory with --out"), "{}", output_text(&output));
}

fn a_missing_program_is_invalid_input() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = |path: &str| std::fs::read_to_string(workspace().join("scenarios").join(path)).unwrap();
    let target = shipped("targets/reference.yaml").replace("program: target-trainer", "program: ./missing");
    std::fs::write(dir.path().join("reference"), target).unwrap();
    let scenario = dir.path().join("scenario.yaml");
    std::fs::write(&scenario, shipped("library/filesystem/fs-02-inodes-exhausted.yaml")).unwrap();
    let output = run_trainwreck(&["run", scenario.to_str().unwrap()]);
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("is not an executable file"), "{}", output_text(&output));
}

fn ablate_without_any_guard_has_nothing_to_rely_on() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = workspace().join("scenarios/library/filesystem/fs-02-inodes-exhausted.yaml");
    let text = std::fs::read_to_string(shipped).unwrap();
    let unguarded: String =
        text.lines().filter(|line| !line.starts_with("guards:")).map(|line| format!("{line}\n")).collect();
    let scenario = dir.path().join("scenario.yaml");
    std::fs::write(&scenario, unguarded).unwrap();
    let out = dir.path().join("out");
    let output = run_trainwreck(&["ablate", scenario.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    output.clone().assert().code(3);
    assert!(output_text(&output).contains("nothing was judged"), "{}", output_text(&output));
}

fn a_first_signal_ends_the_run_early_with_130_and_its_reports() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let (out, temporary) = (dir.path().join("out"), dir.path().join("tmp"));
        std::fs::create_dir(&temporary).unwrap();
        let mut command = Command::new(TRAINWRECK);
        command.args(["run", "fs-02", "fs-01", "fs-06", "--jobs", "1", "--out", out.to_str().unwrap()]);
        // A terminal's Ctrl-C goes to a whole process group.
        command.process_group(0).env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let record = out.join("record.jsonl");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !std::fs::read_to_string(&record).is_ok_and(|text| text.contains("target-started")) {
            assert!(Instant::now() < deadline, "timed out waiting for the first target");
            std::thread::sleep(Duration::from_millis(5));
        }
        killpg(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        output.clone().assert().code(130);
        assert!(output_text(&output).contains("interrupted"), "{}", output_text(&output));
        let text = std::fs::read_to_string(&record).unwrap();
        assert!(text.contains("\"exit_code\":130"), "the record says how the run ended");
        assert!(out.join("report.html").exists() && out.join("junit.xml").exists());
        let left: Vec<PathBuf> = std::fs::read_dir(&temporary)
            .unwrap()
            .flat_map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn a_trial_that_no_scenario_has_is_invalid_input() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        run_trainwreck(&["run", "fs-02", "--trial", "99", "--out", dir.path().join("out").to_str().unwrap()]);
    output.clone().assert().code(2);
    assert!(output_text(&output).contains("no scenario has a trial 99"), "{}", output_text(&output));
}
