//! Small trainers of which users have brought the kinds: files beside the checkpoint with modes, owners and
//! links, relative directories, a misspelled placeholder, and a trainer of which the options tell nothing.

use std::path::Path;
use std::process::{Command, Output};

use libtest_mimic::Trial;
use scenarios::Outcome;

use crate::support::command::{TRAINWRECK, output_text, run_trainwreck, workspace};
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::scenario_run::ScenarioFiles;
use crate::support::small_target::{LONG_STALL, SmallTarget};
use crate::support::user_tree::UserTree;

const SAVED: [&str; 2] = ["--saved", r"^saved step (?<step>\d+)"];
const RESUMED: [&str; 2] = ["--resumed", r"^resumed from step (?<step>\d+)"];
const SAME: [&str; 2] = ["--same", r"^final sum (\w+)"];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![an_unknown_placeholder_of_a_command_is_invalid_input];
    trials.extend(trials![
        missing(&GATE);
        a_trainer_of_which_nothing_is_checked_is_not_judged,
        a_trainer_that_wipes_its_checkpoints_is_found,
    ]);
    trials.extend(trials![
        missing(SANDBOX.iter().chain(&GATE));
        a_trainer_with_a_relative_directory_leaves_the_users_own_one_alone,
        project_and_temporary_files_may_be_in_any_directory,
    ]);
    trials.extend(trials![
        missing(GATE.iter().chain(&[Need::Program("python3")]));
        a_trainer_that_insists_on_modes_owners_links_and_times_gives_no_finding,
        a_lost_mode_is_noticed_by_this_trainer,
    ]);
    trials
}

fn target(name: &str) -> String {
    workspace().join("harness/tests/targets").join(name).display().to_string()
}

/// Explores kills of a command in the directory that it gets as its last argument.
fn explore(options: &[&[&str]], command: &[&str], dir: &Path) -> Output {
    let mut explorer = Command::new(TRAINWRECK);
    explorer.args(["explore", "--crash", "process", "--watch"]).arg(dir).args(options.concat());
    explorer.arg("--").args(command).arg(dir).output().unwrap()
}

fn prepared_attributes() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let script = target("particular.py");
    assert!(Command::new("python3").args([&script, "prepare"]).arg(dir.path()).status().unwrap().success());
    dir
}

fn a_trainer_that_insists_on_modes_owners_links_and_times_gives_no_finding() {
    let dir = prepared_attributes();
    let script = target("particular.py");
    let output = explore(&[&SAVED, &RESUMED, &SAME], &["python3", &script, "train"], dir.path());
    assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
}

/// Without this, the test before would show nothing.
fn a_lost_mode_is_noticed_by_this_trainer() {
    let script = target("particular.py");
    for harm in
        ["chmod 644 secret", "chmod 644 helper", "cp first x; mv x first", "touch old", "chmod 755 shared"]
    {
        let dir = prepared_attributes();
        let shell = Command::new("sh").args(["-c", harm]).current_dir(dir.path()).status().unwrap();
        assert!(shell.success(), "{harm}");
        let trainer = Command::new("python3").args([&script, "train"]).arg(dir.path()).output().unwrap();
        assert_eq!(trainer.status.code(), Some(7), "{harm}: {}", output_text(&trainer));
    }
}

fn a_trainer_of_which_nothing_is_checked_is_not_judged() {
    let script = target("wipes.sh");
    for options in [&[][..], &[&SAVED[..]]] {
        let dir = tempfile::tempdir().unwrap();
        let output = explore(options, &[&script], dir.path());
        assert_eq!(output.status.code(), Some(3), "{options:?}: {}", output_text(&output));
    }
}

fn a_trainer_that_wipes_its_checkpoints_is_found() {
    let script = target("wipes.sh");
    for options in [&[&SAVED[..], &RESUMED][..], &[&SAVED, &RESUMED, &SAME]] {
        let dir = tempfile::tempdir().unwrap();
        let output = explore(options, &[&script], dir.path());
        assert_eq!(output.status.code(), Some(1), "{options:?}: {}", output_text(&output));
    }
}

const SCENARIO: &str = r"
version: 1
id: rel-01
title: killed
severity: low
target: {use: target.yaml}
method: [METHOD]
expect:
  - always: {outcome: [recovered]}
  - always: same-as-baseline
";

/// The target file of a shell script.
fn small_target(start: &str, more: &str) -> String {
    SmallTarget { program: "/bin/sh", start, stall: LONG_STALL, more }.to_yaml()
}

/// Each trial begins with the user's files as they are, and nothing of one trial is left for the next.
fn a_trainer_with_a_relative_directory_leaves_the_users_own_one_alone() {
    let tree = UserTree::create_in(Path::new("/var/tmp"), None);
    let before = tree.snapshot();
    let start = format!("['{{program}}', '{}', pause]", target("careless.sh"));
    let target = small_target(&start, "");
    let method = "signal: {which: [HUP, USR1], when: {output: '^saved step 2'}}";
    let scenario = SCENARIO.replace("METHOD", method);
    let run = ScenarioFiles { target, scenario }.run_in(&tree.project(), &["--jobs", "1"]);
    let differences = before.differences(&tree.snapshot());
    assert!(differences.is_empty(), "{differences:#?}\n{}", run.printed);
    assert_eq!((run.code, run.outcomes()), (0, vec![Outcome::Recovered; 2]), "{}", run.printed);
    // From its own save, and not from one of the user or of the trial before.
    let resumed: Vec<Option<u64>> = run.trials().iter().map(|trial| trial.resumed_from).collect();
    assert_eq!(resumed, [Some(2); 2], "{}", run.printed);
}

/// Each directory that a sandbox may have one of its own for, as the user's and as the harness's.
fn project_and_temporary_files_may_be_in_any_directory() {
    let places = ["/tmp", "/var/tmp", "/dev/shm"].map(Path::new).into_iter().filter(|dir| dir.is_dir());
    let places: Vec<&Path> = places.collect();
    for project in &places {
        for temporary in &places {
            let project = tempfile::tempdir_in(project).unwrap();
            // Also below the project itself.
            let beside = tempfile::tempdir_in(temporary).unwrap();
            let below = project.path().join("temporary");
            std::fs::create_dir(&below).unwrap();
            for temporary in [beside.path(), &below] {
                let watch = project.path().join("runs");
                let mut explorer = Command::new(TRAINWRECK);
                explorer
                    .args(["explore", "--crash", "process", "--watch"])
                    .arg(&watch)
                    .args(SAVED)
                    .args(RESUMED);
                explorer.arg("--").arg(target("stub.sh")).arg("sound").arg("runs");
                let output = explorer.current_dir(&project).env("TMPDIR", temporary).output().unwrap();
                let [project, temporary] = [project.path(), temporary].map(Path::display);
                let text = output_text(&output);
                assert_eq!(output.status.code(), Some(0), "{project} with TMPDIR={temporary}: {text}");
            }
        }
    }
}

/// A misspelled placeholder once made a directory of that name.
fn an_unknown_placeholder_of_a_command_is_invalid_input() {
    let start = "['{program}', x]";
    for (key, command) in [
        ("start", small_target("['{program}', '{checkpoint}']", "")),
        ("start", small_target("['{program}', '--out={checkpoint}/x']", "")),
        ("prepare", small_target(start, "").replace("'{checkpoints}']]", "'{checkpoint}']]")),
        ("resume", small_target(start, "resume: [sh, '{checkpoint}']")),
        ("verify", small_target(start, "verify: [sh, '{checkpoint}']")),
        ("submit", small_target(start, "submit: [sh, '{checkpoint}', '{file}']")),
        ("generate", small_target(start, "generate: {clean: [sh, '{checkpoint}', '{file}']}")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let [target, scenario] = ["target.yaml", "scenario.yaml"].map(|name| dir.path().join(name));
        std::fs::write(&target, &command).unwrap();
        let method = "crash: {when: {step: 3}}";
        std::fs::write(&scenario, SCENARIO.replace("METHOD", method)).unwrap();
        let out = dir.path().join("out");
        for arguments in [
            &["check", target.to_str().unwrap()][..],
            &["run", scenario.to_str().unwrap(), "--out", out.to_str().unwrap()],
        ] {
            let output = run_trainwreck(arguments);
            let text = output_text(&output);
            assert_eq!(output.status.code(), Some(2), "{key}: {arguments:?}: {text}");
            assert!(text.contains("checkpoint}") && text.contains("checkpoints"), "{key}: {text}");
        }
    }
}
