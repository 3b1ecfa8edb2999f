//! The explorer on small trainers that save in one style each: what is wrong is found with its cause, what is right is let alone.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const TRAINWRECK: &str = env!("CARGO_BIN_EXE_trainwreck");

/// The tiny trainer of `examples/saver.rs`, which cargo builds beside the tests.
fn saver() -> PathBuf {
    Path::new(TRAINWRECK).parent().unwrap().join("examples/saver")
}

struct Explored {
    code: Option<i32>,
    json: Value,
    text: String,
}

fn explore(options: &[&str], command: &[&str]) -> Explored {
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().join("checkpoints");
    std::fs::create_dir(&watch).unwrap();
    let json = dir.path().join("result.json");
    let saver = saver();
    let words = command.iter().map(|word| match *word {
        "SAVER" => saver.to_str().unwrap().to_owned(),
        "WATCH" => watch.to_str().unwrap().to_owned(),
        word => word.to_owned(),
    });
    let output = Command::new(TRAINWRECK)
        .args(["explore", "--json", json.to_str().unwrap(), "--watch", watch.to_str().unwrap()])
        .args(["--saved", r"^saved step (?<step>\d+)", "--resumed", r"^resumed from step (?<step>\d+)"])
        .args(options)
        .arg("--")
        .args(words)
        .output()
        .unwrap();
    let left: Vec<_> = std::fs::read_dir(&watch).unwrap().collect();
    assert!(left.is_empty(), "the watched folder itself is never touched: {left:?}");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let json = std::fs::read(&json).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Explored { code: output.status.code(), json: json.unwrap_or_default(), text }
}

const SAME: [&str; 2] = ["--same", r"^final sum (\w+)"];

fn causes(explored: &Explored) -> Vec<&str> {
    explored.json["findings"].as_array().unwrap().iter().map(|one| one["cause"].as_str().unwrap()).collect()
}

/// `cause` is found, first of all or beside others that follow from it, under these crashes.
fn check(style: &str, cause: &str, outcome: &str, under: &[&str]) {
    let explored = explore(&SAME, &["SAVER", style, "WATCH"]);
    assert_eq!(explored.code, Some(1), "{}", explored.text);
    let findings = explored.json["findings"].as_array().unwrap();
    let found = findings.iter().find(|one| one["cause"] == cause && one["outcome"] == outcome);
    let found = found.unwrap_or_else(|| panic!("{style}: {}", explored.text));
    for crash in under {
        assert!(found["under"].as_array().unwrap().iter().any(|one| one == crash), "{found}");
    }
    let advice = found["advice"].as_str().unwrap();
    assert!(!advice.is_empty() && explored.text.contains(advice));
}

#[test]
fn a_correct_saver_gives_no_finding() {
    let explored = explore(&SAME, &["SAVER", "correct", "WATCH"]);
    assert_eq!(explored.code, Some(0), "{}", explored.text);
    assert!(causes(&explored).is_empty());
    let outcomes = &explored.json["outcomes"];
    assert!(outcomes["process"]["recovered"].as_u64().unwrap() > 10, "{outcomes}");
    assert!(outcomes["power"]["recovered"].as_u64().unwrap() > 40, "{outcomes}");
    assert!(explored.json["never_synced"].as_array().unwrap().is_empty());
}

#[test]
fn what_is_written_in_place_is_found() {
    check("in-place", "written-in-place", "crashed", &["process", "ext4", "xfs", "btrfs", "posix"]);
}

#[test]
fn a_rename_without_fsync_is_found_and_only_under_power_loss() {
    let explored = explore(&SAME, &["SAVER", "no-fsync", "WATCH"]);
    assert_eq!(causes(&explored), ["no-fsync-before-rename"], "{}", explored.text);
    let under = explored.json["findings"][0]["under"].as_array().unwrap();
    assert!(under.iter().all(|crash| crash != "process") && under.iter().any(|crash| crash == "ext4"));
}

#[test]
fn a_folder_that_is_not_synced_is_found() {
    check("no-folder-fsync", "folder-not-synced", "lost-work", &["xfs", "btrfs", "posix"]);
}

#[test]
fn an_old_one_deleted_first_is_found() {
    check("delete-first", "old-deleted-first", "restarted", &["process"]);
}

#[test]
fn a_marker_written_first_is_found() {
    check("marker-first", "marker-written-first", "crashed", &["process"]);
}

#[test]
fn a_manifest_before_its_data_is_found() {
    check("manifest-first", "manifest-before-data", "crashed", &["process"]);
}

#[test]
fn two_files_replaced_one_after_the_other_are_found() {
    check("two-files", "files-replaced-one-by-one", "crashed", &["process"]);
}

#[test]
fn a_finding_s_command_repeats_just_that_state() {
    let explored = explore(&SAME, &["SAVER", "delete-first", "WATCH"]);
    let state = explored.json["findings"][0]["state"].as_str().unwrap();
    let again = explore(&[&SAME[..], &["--state", state]].concat(), &["SAVER", "delete-first", "WATCH"]);
    assert_eq!(again.code, Some(1), "{}", again.text);
    assert!(again.text.contains("1 states in"), "{}", again.text);
}

#[test]
fn a_bound_says_what_it_left_out() {
    let options = [&SAME[..], &["--max-states", "20"]].concat();
    let explored = explore(&options, &["SAVER", "no-fsync", "WATCH"]);
    let left_out = explored.json["left_out"]["power"].as_u64().unwrap();
    let distinct = explored.json["distinct"]["power"].as_u64().unwrap();
    assert_eq!(left_out, distinct - 20, "{}", explored.text);
    assert_eq!(causes(&explored), ["no-fsync-before-rename"], "representatives come first");
}

#[test]
fn what_can_not_be_learned_from_is_said_with_exit_code_3() {
    for (command, words) in [
        (vec!["/bin/sh", "-c", "echo saved step 1"], "nothing was recorded"),
        (vec!["/bin/sh", "-c", ": > \"$0/x\"; exit 7", "WATCH"], "exit code 7"),
        (vec!["/bin/false"], "exit code 1"),
        (vec!["/bin/sh", "-c", ": > \"$0/x\"", "WATCH"], "no line of the command's output matches --saved"),
    ] {
        let explored = explore(&[], &command);
        assert_eq!(explored.code, Some(3), "{}", explored.text);
        assert!(explored.text.contains(words), "{words}: {}", explored.text);
    }
}

#[test]
fn wrong_arguments_are_told_with_what_to_do_and_exit_code_2() {
    for (options, words) in [
        (["--same", "x"], "needs exactly one group"),
        (["--same", "("], "--same"),
        (["--state", "what"], "not the name of a state"),
        (["--timeout", "soon"], "10s"),
    ] {
        let explored = explore(&options, &["SAVER", "correct", "WATCH"]);
        assert_eq!(explored.code, Some(2), "{}", explored.text);
        assert!(explored.text.contains(words), "{words}: {}", explored.text);
    }
}

#[test]
fn a_recovery_that_hangs_is_told_so() {
    let script = "cd \"$0\"; if [ -e a ] && ! [ -e b ]; then sleep 100; fi; : > a; : > b; echo saved step 1; echo resumed from step 1";
    let options = ["--timeout", "300ms", "--crash", "process"];
    let explored = explore(&options, &["/bin/sh", "-c", script, "WATCH"]);
    assert_eq!(explored.json["findings"][0]["outcome"], "hung", "{}", explored.text);
}

#[test]
fn a_check_that_fails_makes_the_state_corrupt() {
    let script = "cd \"$0\"; [ -e a ] && [ ! -e b ] && : > half; : > a; : > b; echo saved step 1; echo resumed from step 1";
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().to_str().unwrap().to_owned();
    let output = Command::new(TRAINWRECK)
        .args([
            "explore",
            "--crash",
            "process",
            "--watch",
            &watch,
            "--check",
            &format!("! [ -e {watch}/half ]"),
        ])
        .args(["--", "/bin/sh", "-c", script, &watch])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("-> corrupt"), "{text}");
}
